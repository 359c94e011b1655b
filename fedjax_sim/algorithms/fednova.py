"""FedNova: normalised averaging (Wang et al. 2020, equation 8)."""

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.aggregate import Aggregator, Reducer
from fedjax_sim.algorithms.base import Algorithm, server_init, server_update
from fedjax_sim.algorithms.local import check_optimizer, difference, discount
from fedjax_sim.client import Task, gradient, local_steps, replace, split_params
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import check, check_fraction, check_not_negative, check_positive, is_traced
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import ClientUpdate


@named("task", "aggregator")
def fednova(
    task: Task,
    client_lr: Scalar,
    momentum: Scalar = 0.0,
    mu: Scalar = 0.0,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | Reducer | None = None,
) -> Algorithm:
    r"""FedNova: clients that take more steps do not pull the model towards their own optimum for that.

    Of the local SGD steps from x a client's model is :math:`y_k = x - \eta \sum_s a_{k,s} g_{k,s}`, a sum of its
    gradients with weights :math:`a_k`. The normalised updates are averaged, and the mean is given a common length:

    .. math::

        x \leftarrow x + \tau \sum_k p_k \frac{y_k - x}{\lVert a_k \rVert_1}, \qquad
        \tau = \sum_k p_k \lVert a_k \rVert_1, \qquad p_k = n_k / \sum_S n_k

    :math:`\lVert a_k \rVert_1` is the number of real steps :math:`K_k` for plain SGD. With momentum :math:`\rho`, or
    with FedProx's pull :math:`\mu`, it is

    .. math::

        \frac{1}{1 - \rho} \left( K_k - \frac{\rho (1 - \rho^{K_k})}{1 - \rho} \right), \qquad
        \frac{1 - (1 - \eta \mu)^{K_k}}{\eta \mu},

    and for any of them how far the same rule moves a number whose gradient is always 1, which is how it is computed
    here. The payload is the normalised update and :math:`\lVert a_k \rVert_1`, so that all that is needed are sums.
    With equal :math:`\lVert a_k \rVert_1` it is FedAvg. At a finite rate it ends near the optimum, not at it.

    Choose it where clients take different numbers of steps: unequal sizes at equal epochs, or slow devices.

    Args:
        task: what is learnt. Collections (batch statistics) are averaged plainly.
        client_lr: :math:`\eta`; may be traced, as the next two.
        momentum: :math:`\rho` in [0, 1), of heavy-ball SGD that starts anew in each round.
        mu: :math:`\mu`, zero or more; the pull :math:`\mu (y - x)` comes after the momentum, as in the authors' code.
        server_optimizer: fed with the negated update above; None for `optax.sgd(1.0)`.
        aggregator: a chain or reducer; None for the mean by examples.

    Raises:
        ArgumentError: :math:`\eta \mu > 1`, under which weights of gradients change their signs.

    Example:
        >>> import fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.fednova(task, client_lr=0.05, momentum=0.9)
    """
    check_positive("client_lr", client_lr)
    check_fraction("momentum", momentum)
    check_not_negative("mu", mu)
    check(client_lr * mu <= 1, "mu", mu, f"client_lr * mu must be at most 1, and client_lr is {client_lr}.")
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    check_optimizer("server_optimizer", server_optimizer)
    start, update = server_init(task, server_optimizer), server_update(task, server_optimizer)
    gradient_fn = gradient(task)
    velocity = optax.identity() if _is_zero(momentum) else optax.trace(momentum)
    pulled = not _is_zero(mu)

    def client(key, server, row, batches):
        zero, one = jnp.zeros(()), jnp.ones(())
        origin = (split_params(task, server.params)[0], zero)

        def step(carry, batch, key):
            params, unit, buffer = carry
            grads, metrics, variables = gradient_fn(params, batch, key)
            (y, held), (grads, _) = split_params(task, params), split_params(task, grads)
            move, buffer = velocity.update((grads, one), buffer)
            if pulled:
                move = jax.tree.map(lambda m, v, v0: m + mu * (v - v0), move, (y, unit), origin)
            y, unit = jax.tree.map(lambda v, m: v - client_lr * m, (y, unit), move)
            return (replace(y, {**held, **variables}), unit, buffer), metrics

        first = (server.params, zero, velocity.init(origin))
        (params, unit, _), metrics = local_steps(step, first, batches, key)
        length = -unit / client_lr
        trained, held = split_params(task, difference(params, server.params))
        trained = jax.tree.map(lambda d: d / jnp.where(length > 0, length, 1.0), trained)
        payload = {"delta": replace(trained, held), "steps": length / discount(batches)}
        return ClientUpdate(payload, weight=batches.num_examples, metrics=metrics)

    def server(key, server, aggregate):
        trained, held = split_params(task, aggregate.value["delta"])
        trained = jax.tree.map(lambda d: aggregate.value["steps"] * d, trained)
        return update(server, replace(trained, held))

    return Algorithm(
        task, lambda params: (start(params), None), client, server, aggregator, params=lambda server: server.params
    )


def _is_zero(number: Scalar) -> bool:
    return not is_traced(number) and float(number) == 0.0
