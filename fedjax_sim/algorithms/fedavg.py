"""Federated averaging (McMahan et al. 2017, Algorithm 1), with any client and server optimizer.

With a proximal term it is FedProx (Li et al. 2020, Algorithm 2): the same client, another gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.aggregate import Aggregator, Reducer
from fedjax_sim.algorithms.base import Algorithm, ClientFunction, server_init, server_update
from fedjax_sim.client import Task, gradient, local_steps, replace, split_params
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import ArgumentError, check_not_negative
from fedjax_sim.core.types import ClientUpdate, Params


def fedavg(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | Reducer | None = None,
) -> Algorithm:
    r"""FedAvg, and with an adaptive server optimizer FedOpt (Reddi et al. 2021, Algorithm 1).

    .. math:: \Delta_k = y_k - x, \qquad x \leftarrow x + \sum_k n_k \Delta_k / \sum_k n_k

    where :math:`y_k` is the client's model after its local steps from x, and the server optimizer takes the place of
    the sum's plain addition.

    Args:
        task: what is learnt.
        client_optimizer: an optax transformation, started anew in each round.
        server_optimizer: one of `fs.server` or any optax transformation, fed with the pseudo-gradient; None for
            `optax.sgd(1.0)`, FedAvg itself.
        aggregator: a chain or reducer; None for the mean by examples.

    Example:
        >>> import optax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.fedavg(task, optax.sgd(0.05), server_optimizer=fs.server.fedyogi(1e-2))
    """
    return _build(task, client_optimizer, server_optimizer, aggregator, lambda y, x: None)


def fedprox(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | Reducer | None = None,
    *,
    mu: Scalar,
) -> Algorithm:
    r"""FedProx: FedAvg whose clients minimise :math:`f_k(y) + \frac{\mu}{2} \lVert y - x \rVert^2`.

    The term's gradient :math:`\mu (y - x)` is added to each step's; x is the model that the client received. Partial
    work of slow clients is kept, as in the paper. Deviation: clients are weighted by examples, where the paper
    samples them in that proportion and averages plainly; pass `aggregator=fs.aggregate.mean("uniform")` for the
    latter.

    Args:
        mu: :math:`\mu`, zero or more; 0 is FedAvg. Others as in `fs.fedavg`.

    Example:
        >>> import optax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.fedprox(task, optax.sgd(0.05), mu=0.1)
    """
    check_not_negative("mu", mu)
    pull = lambda y, x: jax.tree.map(lambda a, b: mu * (a - b), y, x)
    return _build(task, client_optimizer, server_optimizer, aggregator, pull)


def _build(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation | None,
    aggregator: Aggregator | Reducer | None,
    pull: Callable[[Params, Params], Params | None],
) -> Algorithm:
    check_optimizer("client_optimizer", client_optimizer)
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    check_optimizer("server_optimizer", server_optimizer)
    start, update = server_init(task, server_optimizer), server_update(task, server_optimizer)

    def server(key, server, aggregate):
        return update(server, aggregate.value)

    return Algorithm(
        task,
        init=lambda params: (start(params), None),
        client=local_training(task, client_optimizer, pull),
        server=server,
        aggregator=aggregator,
        params=lambda server: server.params,
    )


def local_training(
    task: Task,
    optimizer: optax.GradientTransformation,
    pull: Callable[[Params, Params], Params | None],
) -> ClientFunction:
    """A client that trains from the server's `params` and sends its delta.

    Args:
        pull: `(trained params, the received ones) ->` an addition to each gradient, or None.
    """
    gradient_fn = gradient(task)

    def client(key, server, row, batches):
        received, _ = split_params(task, server.params)

        def step(carry, batch, key):
            params, optimizer_state = carry
            grads, metrics, variables = gradient_fn(params, batch, key)
            (trained, held), (grads, _) = split_params(task, params), split_params(task, grads)
            addition = pull(trained, received)
            if addition is not None:
                grads = jax.tree.map(jnp.add, grads, addition)
            updates, optimizer_state = optimizer.update(grads, optimizer_state, trained)
            trained = optax.apply_updates(trained, updates)
            return (replace(trained, {**held, **variables}), optimizer_state), metrics

        init = (server.params, optimizer.init(received))
        (params, _), metrics = local_steps(step, init, batches, key)
        delta = jax.tree.map(jnp.subtract, params, server.params)
        return ClientUpdate(delta, weight=batches.num_examples, metrics=metrics)

    return client


def check_optimizer(name: str, optimizer: object) -> None:
    """An optax transformation: a pair of functions."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ArgumentError(f"{name}={optimizer!r}: must be an optax transformation, as optax.sgd(0.1).")
