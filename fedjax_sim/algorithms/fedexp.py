"""FedExP: a server step that extrapolates (Jhunjhunwala, Wang and Joshi 2023, equation 5)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.aggregate import Aggregator, Reducer
from fedjax_sim.algorithms.base import Algorithm, uniform
from fedjax_sim.algorithms.local import check_optimizer, difference, discount, train
from fedjax_sim.client import Task, replace, split_params
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import check_positive
from fedjax_sim.core.pytree import squared_norm
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import ClientUpdate, Params


class FedExPState(NamedTuple):
    """Server state: the model, the one of a round before, and the last round's server step (1 before the first).

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.ones(2), lambda w, batch, key: jnp.sum((w - batch["x"]) ** 2, -1))
        >>> server, _ = fs.fedexp(task, optax.sgd(0.1)).init(jnp.ones(2))
        >>> print(server.params, server.previous, server.server_lr)
        [1. 1.] [1. 1.] 1.0
    """

    params: Params
    previous: Params
    server_lr: jax.Array


@named("task", "aggregator")
def fedexp(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    eps: Scalar = 1e-3,
    aggregator: Aggregator | Reducer | None = None,
) -> Algorithm:
    r"""FedExP: FedAvg whose server step grows where clients' deltas point different ways.

    .. math::

        \eta_g = \max \left( 1, \frac{\sum_S \lVert \Delta_k \rVert^2}{2 M (\lVert \bar \Delta \rVert^2 + \epsilon)}
        \right), \qquad x \leftarrow x + \eta_g \bar \Delta, \qquad \bar \Delta = \frac{1}{M} \sum_S \Delta_k,
        \qquad M = |S|

    Each client sends the square of its delta's norm beside the delta, so that sums are all that is needed; a transform
    of the whole payload covers both.

    Near an optimum of clients that differ the step overshoots, so that the last model jumps about. `sim.params` gives
    the mean of the last two, as the paper advises; `state.server.params` is x, from which clients start, and
    `state.server.server_lr` is :math:`\eta_g`. Collections (batch statistics) are averaged plainly and count in no
    norm.

    Args:
        task: what is learnt.
        client_optimizer: an optax transformation, started anew in each round.
        eps: :math:`\epsilon`, positive; may be traced.
        aggregator: a chain of uniform weights; None for `fs.aggregate.mean("uniform")`.

    Example:
        >>> import optax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.fedexp(task, optax.sgd(0.05))
    """
    check_optimizer("client_optimizer", client_optimizer)
    check_positive("eps", eps, "It keeps the step finite where the mean delta is small.")

    def client(key, server, row, batches):
        done = train(task, client_optimizer, server.params, batches, key)
        delta = difference(done.params, server.params)
        square = squared_norm(split_params(task, delta)[0])
        payload = {"delta": delta, "square": discount(batches) * square}  # of what is summed, once it is discounted
        return ClientUpdate(payload, weight=1.0, metrics=done.metrics)

    def server(key, server, aggregate):
        mean, square = aggregate.value["delta"], aggregate.value["square"]
        delta, held = split_params(task, mean)
        server_lr = jnp.maximum(1.0, square / (2 * (squared_norm(delta) + eps)))
        move = replace(jax.tree.map(lambda d: server_lr * d, delta), held)
        return FedExPState(jax.tree.map(jnp.add, server.params, move), server.params, server_lr)

    def last_two(server: FedExPState) -> Params:
        (new, held), (old, _) = split_params(task, server.params), split_params(task, server.previous)
        return replace(jax.tree.map(lambda a, b: (a + b) / 2, new, old), held)

    return Algorithm(
        task,
        init=lambda params: (FedExPState(params, params, jnp.ones(())), None),
        client=client,
        server=server,
        aggregator=uniform(aggregator, "the step is of plain means over clients"),
        params=last_two,
    )
