"""Bulyan: clients chosen by Krum again and again, and of them a mean around the median of each coordinate."""

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate.base import Collected, Reduced, Reducer
from fedjax_sim.aggregate.numerics.sorting import in_order
from fedjax_sim.aggregate.robust.blocks import each
from fedjax_sim.aggregate.robust.by_leaf import By, by_leaf
from fedjax_sim.aggregate.robust.distances import rank, squared_distances
from fedjax_sim.aggregate.robust.faults import OnFew, faulty, few, obeying
from fedjax_sim.core.arrays import Scalar


def bulyan(f: Scalar, on_few: OnFew = "abandon", by: By = "model") -> Reducer:
    r"""The mean of the values nearest to the median of each coordinate, among clients that Krum chose.

    Krum chooses n - 2f clients one by one, each among those that are left, with the r - f - 2 nearest neighbours of the
    r left (El Mhamdi et al. 2018, Algorithm 2; of the last ones at least one neighbour counts). Of their values of a
    coordinate, the n - 4f nearest to the median are averaged, of two as near the smaller. Ties of clients go by id.
    f = 0 is the mean. A round of n < 4f + 3 clients that contribute is abandoned.

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
        kept = count - 2 * spoilt
        value = each(lambda block: _mean_of_nearest(block, chosen, count, kept), collected.messages)
        return Reduced(value, metrics=short.metrics, refused=short.refused)

    return obeying(on_few, by_leaf(by, Reducer(f"bulyan({f})", weight="uniform", collect=collect)))


def _mean_of_nearest(block: jax.Array, there: jax.Array, count: jax.Array, kept: jax.Array) -> jax.Array:
    """[b] the mean of so many values of each column of [n, b], those nearest to its median.

    In order they are neighbours: what is at place i is too low if the value `kept` places on is nearer to the median,
    and too high if that `kept` places before it is as near.
    """
    size = len(block)
    rows = jnp.stack(in_order(jnp.where(there[:, None], block, jnp.inf)))
    middle = ((rows[jnp.maximum(count - 1, 0) // 2] + rows[count // 2]) / 2)[None]
    beyond = jnp.concatenate([rows, jnp.full_like(rows, jnp.inf)])
    low = middle - rows > jax.lax.dynamic_slice_in_dim(beyond, kept, size) - middle
    before = jnp.concatenate([jnp.ones_like(low), low])
    high = ~jax.lax.dynamic_slice_in_dim(before, size - kept, size)
    inside = ~low & ~high & (jnp.arange(size)[:, None] < count)
    return jnp.sum(jnp.where(inside, rows, 0), axis=0) / jnp.maximum(kept, 1)


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
