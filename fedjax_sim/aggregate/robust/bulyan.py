"""Bulyan: clients chosen by Krum again and again, and of them a mean around the median of each coordinate."""

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate.base import Collected, Reduced, Reducer
from fedjax_sim.aggregate.robust.blocks import each
from fedjax_sim.aggregate.robust.by_leaf import By, by_leaf
from fedjax_sim.aggregate.robust.distances import rank, squared_distances
from fedjax_sim.aggregate.robust.faults import OnFew, faulty, few, obeying
from fedjax_sim.core.arrays import Scalar


def bulyan(f: Scalar, on_few: OnFew = "abandon", by: By = "model") -> Reducer:
    r"""The mean of the values nearest to the median of each coordinate, among clients that Krum chose.

    Krum chooses n - 2f clients one by one, each among those that are left, with the r - f - 2 nearest neighbours of the
    r left (El Mhamdi et al. 2018, Algorithm 2; of the last ones at least one neighbour counts). Of their values of a
    coordinate, the n - 4f nearest to the median are averaged; ties go by client id. f = 0 is the mean. A round of
    n < 4f + 3 clients that contribute is abandoned.

    Args:
        f: clients that may be bad, or their share of n, rounded down.
        on_few: what such a round is instead: "mean", that of all that contribute, and `aggregate/averaged` is 1; or
            "error", it ends the run.
        by: "model", Krum's distances are over all coordinates; or "leaf", each leaf has a rule of its own.

    Raises:
        ArgumentError: a negative f, or a share of a half or more; another word for `on_few` or `by`.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> messages = jnp.array([[1.0], [1.1], [1.2], [1.3], [1.4], [9.0], [1e6]])
        >>> places = fs.aggregate.Collected(messages, jnp.ones(7), jnp.ones(7, bool), ids=jnp.arange(7))
        >>> print(fs.aggregate.bulyan(1).collect(places).value.round(3))
        [1.2]
    """
    bad = faulty(f)

    def collect(collected: Collected) -> Reduced:
        n = jnp.sum(collected.contributes)
        short = few(on_few, n < 4 * bad(n) + 3)
        spoilt = jnp.where(short.averaged, 0, bad(n))
        count = n - 2 * spoilt
        chosen = _chosen(squared_distances(collected), collected, spoilt, count)
        by_id = jnp.argsort(jnp.where(chosen, collected.ids, jnp.iinfo(jnp.int32).max), stable=True)
        there = chosen[by_id][:, None]

        def rule(block: jax.Array) -> jax.Array:
            block = block[by_id]
            ordered = jnp.sort(jnp.where(there, block, jnp.inf), axis=0)
            middle = (ordered[jnp.maximum(count - 1, 0) // 2] + ordered[count // 2]) / 2
            nearest = jnp.argsort(jnp.where(there, jnp.abs(block - middle[None]), jnp.inf), axis=0, stable=True)
            kept = jnp.arange(len(block))[:, None] < count - 2 * spoilt
            values = jnp.take_along_axis(block, nearest, axis=0)
            return jnp.sum(jnp.where(kept, values, 0), axis=0) / jnp.maximum(count - 2 * spoilt, 1)

        return Reduced(each(rule, collected.messages), metrics=short.metrics, refused=short.refused)

    return obeying(on_few, by_leaf(by, Reducer(f"bulyan({f})", weight="uniform", collect=collect)))


def _chosen(distances: jax.Array, collected: Collected, bad: jax.Array, count: jax.Array) -> jax.Array:
    """[n] bool, by Krum among those that are left, one after another."""
    size = len(distances)
    order = jnp.argsort(jnp.where(jnp.eye(size, dtype=bool), jnp.inf, distances), axis=1)
    ordered = jnp.take_along_axis(distances, order, axis=1)

    def choose(i: jax.Array, left: jax.Array) -> jax.Array:
        beside = left[order] & (order != jnp.arange(size)[:, None])
        near = beside & (jnp.cumsum(beside, axis=1) <= jnp.maximum(jnp.sum(left) - bad - 2, 1))
        scores = jnp.where(left, jnp.sum(jnp.where(near, ordered, 0), axis=1), jnp.inf)
        best = rank(scores, collected._replace(contributes=left)) == 0
        return left & ~(best & (i < count))

    left = jax.lax.fori_loop(0, size, choose, collected.contributes)
    return collected.contributes & ~left
