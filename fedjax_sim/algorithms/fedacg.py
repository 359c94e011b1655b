"""FedACG: clients start where the server's momentum leads (Kim, Kim and Han 2024, Algorithm 1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.aggregate import Aggregator, Reducer
from fedjax_sim.algorithms.base import Algorithm
from fedjax_sim.algorithms.local import check_optimizer, difference, train
from fedjax_sim.client import Task, replace, split_params
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import check_fraction, check_not_negative
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import ClientUpdate, Params


class FedACGState(NamedTuple):
    """Server state: the model, the model that is sent, and the momentum (for what gradients train).

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.ones(2), lambda w, batch, key: jnp.sum((w - batch["x"]) ** 2, -1))
        >>> server, _ = fs.fedacg(task, optax.sgd(0.1)).init(jnp.ones(2))
        >>> print(server.params, server.sent, server.momentum)
        [1. 1.] [1. 1.] [0. 0.]
    """

    params: Params
    sent: Params
    momentum: Params


@named("task", "aggregator")
def fedacg(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    lam: Scalar = 0.85,
    beta: Scalar = 0.01,
    aggregator: Aggregator | Reducer | None = None,
) -> Algorithm:
    r"""FedACG: Nesterov's look-ahead between rounds, for the bytes of FedAvg.

    Clients receive :math:`z = x + \lambda m` and minimise :math:`f_k(y) + \frac{\beta}{2} \lVert y - z \rVert^2`; then

    .. math:: m \leftarrow \lambda m + \bar \Delta, \qquad x \leftarrow x + m, \qquad
        \bar \Delta = \sum_k n_k (y_k - z) / \sum_k n_k

    z is one model, so that neither x nor m is sent. :math:`\lambda = 0` is FedProx, with :math:`\beta = 0` FedAvg.
    Collections (batch statistics) are averaged plainly, without momentum.

    Args:
        task: what is learnt.
        client_optimizer: an optax transformation, started anew in each round.
        lam: :math:`\lambda` in [0, 1); may be traced.
        beta: :math:`\beta`, zero or more; may be traced.
        aggregator: a chain or reducer; None for the mean by examples.

    Example:
        >>> import optax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.fedacg(task, optax.sgd(0.05))
    """
    check_optimizer("client_optimizer", client_optimizer)
    check_fraction("lam", lam)
    check_not_negative("beta", beta)

    def client(key, server, row, batches):
        z, _ = split_params(task, server.sent)
        pull = lambda y: jax.tree.map(lambda y, z: beta * (y - z), y, z)
        done = train(task, client_optimizer, server.sent, batches, key, pull=pull)
        delta = difference(done.params, server.sent)
        return ClientUpdate(delta, weight=batches.num_examples, metrics=done.metrics)

    def server(key, server, aggregate):
        delta, _ = split_params(task, aggregate.value)
        momentum = jax.tree.map(lambda m, d: lam * m + d, server.momentum, delta)
        params = jax.tree.map(jnp.add, server.sent, aggregate.value)  # x + lam m + the mean delta
        x, held = split_params(task, params)
        sent = jax.tree.map(lambda x, m: x + lam * m, x, momentum)
        return FedACGState(params, replace(sent, held), momentum)

    def init(params: Params):
        return FedACGState(params, params, jax.tree.map(jnp.zeros_like, split_params(task, params)[0])), None

    return Algorithm(task, init, client, server, aggregator, params=lambda server: server.params)
