"""Decentralised learning: nodes train, and mix with their neighbours (Lian et al. 2017, D-PSGD, with local steps)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from fedjax_sim.aggregate import Collected, Reduced, Reducer
from fedjax_sim.algorithms.base import Algorithm
from fedjax_sim.algorithms.local import check_optimizer, difference, train
from fedjax_sim.algorithms.mixing import is_connected
from fedjax_sim.client import Task
from fedjax_sim.client.bound import ask_for_rounds, this_round
from fedjax_sim.core import pytree
from fedjax_sim.core.arrays import Array
from fedjax_sim.core.errors import check
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import ClientUpdate, Params


class Nodes(NamedTuple):
    """The nodes' models, [N, ...] a leaf, where other algorithms have a server's state.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.ones(2), lambda w, batch, key: jnp.sum((w - batch["x"]) ** 2, -1))
        >>> nodes, _ = fs.gossip(task, optax.sgd(0.1), fs.mixing.ring(4)).init(jnp.ones(2))
        >>> nodes.params.shape
        (4, 2)
    """

    params: Params


@named("task", "aggregator")
def gossip(
    task: Task,
    client_optimizer: optax.GradientTransformation,
    mixing: npt.ArrayLike | Sequence[npt.ArrayLike],
) -> Algorithm:
    r"""Gossip: no server; each client is a node with a model, which it trains and then averages with its neighbours'.

    .. math:: y_i = \text{local steps from } x_i, \qquad x_i \leftarrow \sum_j W_{ij}\, y_j

    with W doubly stochastic, so that the mean over nodes is what FedAvg's plain mean would be, and what differs between
    nodes shrinks by W's second eigenvalue a round, 0.80 for a ring of 8. Nodes that the sampler does not draw mix all
    the same. A round in which nobody trains changes nothing. `fs.mixing.complete` is FedAvg with plain means.

    The state holds all N models on each device, and a round's messages beside them: it is for networks of that size.
    Bits up are one model's, which all neighbours hear; down, of as many as a node has neighbours on average.

    `sim.params` is the mean of all nodes' models, which no node has. A client's own is its node's, by
    `sim.evaluate_clients(state, personal=True)`; the mean's, for one that never trained.

    Args:
        task: what is learnt. Collections (batch statistics) are mixed like the rest.
        client_optimizer: an optax transformation, started anew in each round.
        mixing: W, [N, N], one of `fs.mixing` or any; or several, for one round after the other, again and again.

    Raises:
        ArgumentError: rows or columns that do not sum to 1, negative weights, or a graph that is not connected, of
            several taken together.

    Example:
        >>> import optax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.gossip(task, optax.sgd(0.05), fs.mixing.ring(20))
    """
    check_optimizer("client_optimizer", client_optimizer)
    neighbours, weights = _sparse(_checked(mixing))
    several, n, _ = weights.shape
    degree = float(np.mean(np.sum(weights > 0, axis=-1) - (neighbours == np.arange(n)[:, None]).any(-1)))
    if several > 1:
        ask_for_rounds()

    def mixed(leaf: Array) -> jax.Array:
        now = this_round() % several
        who, much = jnp.asarray(neighbours, jnp.int32)[now], jnp.asarray(weights, jnp.float32)[now]

        def add(i, total):
            return total + much[:, i].reshape(n, *[1] * (leaf.ndim - 1)) * leaf[who[:, i]]

        return jax.lax.fori_loop(0, much.shape[1], add, jnp.zeros(leaf.shape, jnp.float32)).astype(leaf.dtype)

    def collect(collected: Collected) -> Reduced:
        def by_node(leaf):  # nobody's id is past the end
            weighed = jnp.where(collected.contributes.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0.0)
            return jnp.zeros((n, *leaf.shape[1:]), weighed.dtype).at[collected.ids].add(weighed, mode="drop")

        return Reduced(jax.tree.map(by_node, collected.messages), collected.state)

    def client(key, server, row, batches):
        own = jax.tree.map(lambda leaf: leaf[batches.client_id], server.params)
        done = train(task, client_optimizer, own, batches, key)
        return ClientUpdate(difference(done.params, own), state=batches.client_id, metrics=done.metrics)

    def server(key, server, aggregate):
        after = jax.tree.map(lambda x, d: (x + d).astype(x.dtype), server.params, aggregate.value)
        return Nodes(jax.tree.map(mixed, after))

    average = lambda server: jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0).astype(leaf.dtype), server.params)

    def personal(server, row):
        own = jax.tree.map(lambda leaf: leaf[jnp.maximum(row, 0)], server.params)
        return pytree.where(row < 0, average(server), own)

    def init(params: Params):
        alike = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (n, *jnp.shape(leaf))), params)
        return Nodes(alike), jnp.full((), -1, jnp.int32)

    return Algorithm(
        task,
        init,
        client,
        server,
        Reducer(f"gossip of {n}", weight="uniform", collect=collect),
        params=average,
        downlink=lambda server: jnp.float32(degree * pytree.bits(server.params) / n),
        num_clients=n,
        personal=personal,
    )


def _checked(mixing: npt.ArrayLike | Sequence[npt.ArrayLike]) -> np.ndarray:
    """[T, N, N]."""
    matrices = np.asarray(mixing, np.float64)
    given = matrices.shape
    matrices = matrices[None] if matrices.ndim == 2 else matrices
    square = matrices.ndim == 3 and matrices.shape[1] == matrices.shape[2] and matrices.size > 0
    check(square, "mixing.shape", given, "must be [N, N], or several such.")
    check(bool((matrices >= 0).all()), "mixing", float(matrices.min()), "weights must not be negative.")
    for name, axis in (("rows", 2), ("columns", 1)):
        sums = matrices.sum(axis=axis)
        worst = float(sums.flat[np.abs(sums - 1).argmax()])
        check(abs(worst - 1) < 1e-5, "mixing", worst, f"its {name} must each sum to 1.")
    check(is_connected(np.any(matrices > 0, axis=0)), "mixing.shape", given, "its graph must be connected.")
    return matrices


def _sparse(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours and their weights, [T, N, d] each, with zero weights where there are fewer."""
    most = int((matrices > 0).sum(axis=-1).max())
    neighbours = np.argsort(-matrices, axis=-1, kind="stable")[..., :most]
    return neighbours, np.take_along_axis(matrices, neighbours, axis=-1)
