"""FLTrust: the server trains on a few examples of its own, and trusts whoever goes its way."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.aggregate.base import Collected, Reduced, Reducer
from fedjax_sim.aggregate.robust.blocks import fold
from fedjax_sim.aggregate.robust.distances import combined, masked, norms
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import check, check_count
from fedjax_sim.core.metrics import Mean


def fltrust(server_data: PyTree, steps: int) -> Reducer:
    r"""Messages weighted by their cosine with the server's own, scaled to its length (Cao et al. 2021, Algorithm 2).

    .. math:: \frac{1}{\sum_i t_i} \sum_i t_i \frac{\lVert g_0 \rVert}{\lVert g_i \rVert} g_i, \quad
        t_i = \max(0, \cos(g_i, g_0))

    g_0 is what a client with the server's data would send after so many local steps from the round's model, with the
    algorithm's client function and the chain's client sides. It is no row of the mean. Where nobody is trusted, also
    as g_0 is 0, the round is abandoned, which keeps the model. Metrics: `trust`, the clients' mean t.

    Args:
        server_data: pytree of [m, ...], examples as in the federation; they are kept with the reducer's state.
        steps: local steps of the server, of the simulation's batch size; a new order each epoch.

    Raises:
        ArgumentError: no examples, or arrays of different lengths; steps below 1.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> messages = jnp.array([[3.0, 0.0], [0.0, 5.0], [-9.0, 0.0]])
        >>> train = lambda examples, steps: jnp.array([1.0, 0.0])
        >>> places = fs.aggregate.Collected(messages, jnp.ones(3), jnp.ones(3, bool), train=train)
        >>> reducer = fs.aggregate.fltrust({"x": jnp.zeros((4, 2))}, steps=2)
        >>> print(reducer.collect(places).value)
        [1. 0.]
    """
    sizes = sorted({np.shape(leaf)[:1] for leaf in jax.tree.leaves(server_data)})
    alike = len(sizes) == 1 and sizes[0] > (0,)
    check(alike, "server_data", sizes, "must be arrays of one and the same length, at least 1.")
    check_count("steps", steps)

    def collect(collected: Collected) -> Reduced:
        assert collected.train is not None
        own, valid = collected.train(collected.state, steps), collected.contributes
        along = lambda total, block, own: total + jnp.matmul(masked(block, valid), own[0], precision="highest")
        alone = jax.tree.map(lambda leaf: leaf[None].astype(jnp.float32), own)
        products = fold(along, jnp.zeros(len(valid)), collected.messages, alone)
        length = norms(Collected(alone, jnp.ones(1), jnp.ones(1, bool)))[0]
        lengths = norms(collected)
        both = length * lengths
        trust = jnp.where(valid & (both > 0), jnp.maximum(products / jnp.where(both > 0, both, 1), 0), 0)
        total = jnp.sum(trust)
        factors = trust * length / jnp.where(lengths > 0, lengths, 1) / jnp.where(total > 0, total, 1)
        mean = Mean(total, jnp.sum(valid).astype(jnp.float32))
        return Reduced(combined(factors, collected), collected.state, {"trust": mean}, refused=total == 0)

    init = lambda shapes: jax.tree.map(jnp.asarray, server_data)
    return Reducer(
        f"fltrust({sizes[0][0]} examples, {steps})", weight="uniform", collect=collect, init=init, by_client=True
    )
