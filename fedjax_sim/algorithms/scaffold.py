"""SCAFFOLD: stochastic controlled averaging (Karimireddy et al. 2020, Algorithm 1)."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate import Aggregator, Reducer, mean
from fedjax_sim.algorithms.base import Algorithm
from fedjax_sim.algorithms.local import full_gradient
from fedjax_sim.client import Task, gradient, local_steps, replace, split_params
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import check, check_count, check_positive
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import ClientUpdate, Params


class ScaffoldState(NamedTuple):
    """Server state: the model x and the server's control variate c (for what gradients train).

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.ones(2), lambda w, batch, key: jnp.sum((w - batch["x"]) ** 2, -1))
        >>> server, client_control = fs.scaffold(task, client_lr=0.1, num_clients=10).init(jnp.ones(2))
        >>> print(server.params, server.control, client_control)
        [1. 1.] [0. 0.] [0. 0.]
    """

    params: Params
    control: Params


@named("task", "aggregator")
def scaffold(
    task: Task,
    client_lr: Scalar,
    num_clients: int | None = None,
    option: Literal[1, 2] = 2,
    server_lr: Scalar = 1.0,
    aggregator: Aggregator | Reducer | None = None,
) -> Algorithm:
    r"""SCAFFOLD: local steps corrected by control variates, so that clients that differ do not drift apart.

    Each local step is :math:`y \leftarrow y - \eta (g_k(y) - c_k + c)`. After :math:`K_k` steps

    .. math::

        c_k^+ = \nabla f_k(x) \text{ (option 1)}, \qquad c_k^+ = c_k - c + \frac{x - y}{K_k \eta} \text{ (option 2)}

        x \leftarrow x + \eta_g \frac{1}{|S|} \sum_S (y_k - x), \qquad c \leftarrow c + \frac{1}{N} \sum_S (c_k^+ - c_k)

    so that c stays the mean of all clients' control variates. Option 2 holds for plain SGD at a constant rate alone,
    which is why there is no `client_optimizer`. :math:`K_k` counts a client's real steps, epochs included.

    Option 1's gradient is over the client's batches of the round, at x: with `drop_remainder` or `steps` it is
    stochastic. Collections (batch statistics) carry no control variate; they are averaged.

    Args:
        task: what is learnt.
        client_lr: :math:`\eta`; may be traced.
        num_clients: N, the whole population, not the cohort; None for the simulation's. Another one is refused.
        option: 1 or 2.
        server_lr: :math:`\eta_g`; may be traced.
        aggregator: a chain or reducer of uniform weights; None for `fs.aggregate.mean("uniform")`.

    Example:
        >>> import fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.scaffold(task, client_lr=0.05)
    """
    check_positive("client_lr", client_lr)
    check_positive("server_lr", server_lr)
    if num_clients is not None:
        check_count("num_clients", num_clients)
    check(option in (1, 2), "option", option, "must be 1 or 2, the paper's options.")
    gradient_fn = gradient(task)

    def init(params: Params):
        zeros = jax.tree.map(jnp.zeros_like, split_params(task, params)[0])
        return ScaffoldState(params, zeros), zeros

    def client(key, server, c_k, batches):
        drift = jax.tree.map(jnp.subtract, server.control, c_k)

        def step(params, batch, key):
            grads, metrics, variables = gradient_fn(params, batch, key)
            (y, held), (grads, _) = split_params(task, params), split_params(task, grads)
            y = jax.tree.map(lambda y, g, d: y - client_lr * (g + d), y, grads, drift)
            return replace(y, {**held, **variables}), metrics

        params, metrics = local_steps(step, server.params, batches, key)
        delta = jax.tree.map(jnp.subtract, params, server.params)
        if option == 1:
            c_new, _ = full_gradient(task, server.params, batches, key)
        else:
            scale = 1 / (client_lr * jnp.maximum(batches.num_steps, 1))
            trained, _ = split_params(task, delta)
            c_new = jax.tree.map(lambda d, moved: -d - scale * moved, drift, trained)
        payload = {"delta": delta, "control": jax.tree.map(jnp.subtract, c_new, c_k)}
        return ClientUpdate(payload, weight=1.0, state=c_new, metrics=metrics)

    def server(key, server, aggregate):
        move = jax.tree.map(lambda d: server_lr * d, aggregate.value["delta"])
        moved, _ = split_params(task, move)
        _, held = split_params(task, aggregate.value["delta"])
        population = aggregate.population if num_clients is None else num_clients
        assert population is not None  # a simulation tells it
        scale = aggregate.count / population
        return ScaffoldState(
            jax.tree.map(jnp.add, server.params, replace(moved, held)),
            jax.tree.map(lambda c, d: c + scale * d, server.control, aggregate.value["control"]),
        )

    return Algorithm(
        task,
        init,
        client,
        server,
        aggregator=mean("uniform") if aggregator is None else aggregator,
        params=lambda server: server.params,
        num_clients=num_clients,
    )
