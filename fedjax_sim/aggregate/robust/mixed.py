"""Reducers of mixed messages: means of random buckets, or of nearest neighbours, before another reducer."""

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate.base import Collected, Reduced, Reducer
from fedjax_sim.aggregate.collecting import of_today, reduced
from fedjax_sim.aggregate.robust.by_leaf import By, by_leaf
from fedjax_sim.aggregate.robust.distances import masked, rank, squared_distances
from fedjax_sim.aggregate.robust.faults import OnFew, faulty, few, obeying
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import check, check_count


def bucketing(s: int, then: Reducer) -> Reducer:
    """Another reducer of the means of random buckets of s clients (Karimireddy et al. 2022, Algorithm 1).

    Clients are put into a random order, by the round's key and their ids, and cut into buckets of s, of which the last
    may be smaller; f bad clients spoil f buckets at most. What `then` sees as its clients are ceil(n / s) buckets,
    with their numbers as ids and weights of 1, and its conditions are on them. s = 1 is `then` alone.

    Args:
        s: clients of a bucket.
        then: a reducer that collects, as `fs.aggregate.krum(f)`.

    Raises:
        ArgumentError: s below 1, or a linear reducer.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> messages = jnp.array([[1.0], [1.0], [1.0], [1e6], [1.0], [1.0]])
        >>> places = fs.aggregate.Collected(
        ...     messages, jnp.ones(6), jnp.ones(6, bool), ids=jnp.arange(6), key=jax.random.key(0)
        ... )
        >>> print(fs.aggregate.bucketing(2, fs.aggregate.median()).collect(places).value)
        [1.]
    """
    check_count("s", s)
    then = _collecting(then)

    def collect(collected: Collected) -> Reduced:
        own, its = jax.random.split(collected.key)
        draw = jax.vmap(lambda client: jax.random.uniform(jax.random.fold_in(own, client)))(collected.ids)
        places, n = len(collected.ids), jnp.sum(collected.contributes)
        bucket = rank(draw, collected) // s
        buckets = jnp.arange(-(-places // s))
        inside = (bucket[None] == buckets[:, None]) & collected.contributes[None]
        sizes = jnp.sum(inside, axis=1)
        there = buckets < -(-n // s)
        means = _mixed(inside / jnp.maximum(sizes, 1)[:, None], collected)
        ids = jnp.where(there, buckets, jnp.iinfo(jnp.int32).max)
        return reduced(
            then, collected._replace(messages=means, weights=there * 1.0, contributes=there, ids=ids, key=its)
        )

    return then._replace(name=f"bucketing({s}, {then.name})", weight="uniform", collect=collect, by_coordinate=False)


def nnm(f: Scalar, then: Reducer, on_few: OnFew = "abandon", by: By = "model") -> Reducer:
    """Another reducer of each message's mean with its nearest neighbours (Allouah et al. 2023, Algorithm 2).

    Each message becomes the mean of the n - f messages that are nearest to it, itself among them; distances are over
    all coordinates, ties go by client id. f = 0 makes all messages their mean. A round of n <= 2f clients that
    contribute is abandoned, and one that `then` refuses. It makes a second set of messages.

    Args:
        f: clients that may be bad, or their share of n, rounded down.
        then: a reducer that collects, as `fs.aggregate.trimmed_mean(f)`. What it refuses is refused.
        on_few: what a round of n <= 2f clients is: "abandon"; "mean", all messages become their mean, and
            `aggregate/averaged` is 1; or "error", it ends the run.
        by: "model", distances are over all coordinates; or "leaf", each leaf has both rules for itself.

    Raises:
        ArgumentError: a negative f, a share of a half or more, or a linear reducer; another word for `on_few` or `by`.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> messages = jnp.array([[1.0], [2.0], [3.0], [1e6]])
        >>> places = fs.aggregate.Collected(messages, jnp.ones(4), jnp.ones(4, bool), ids=jnp.arange(4))
        >>> print(fs.aggregate.nnm(1, fs.aggregate.median()).collect(places).value)
        [2.]
    """
    bad, then = faulty(f), _collecting(then)

    def collect(collected: Collected) -> Reduced:
        n = jnp.sum(collected.contributes)
        place = jax.vmap(lambda row: rank(row, collected))(_itself_first(squared_distances(collected)))
        short = few(on_few, n <= 2 * bad(n))
        near = (place < jnp.where(short.averaged, n, n - bad(n))) & collected.contributes[None]
        means = _mixed(near / jnp.maximum(jnp.sum(near, axis=1), 1)[:, None], collected)
        made = reduced(then, collected._replace(messages=means))
        metrics = {**(made.metrics or {}), **short.metrics}
        return made._replace(metrics=metrics, refused=jnp.logical_or(made.refused, short.refused))

    rule = then._replace(name=f"nnm({f}, {then.name})", collect=collect, by_coordinate=False)
    return obeying(on_few, by_leaf(by, rule))


def _itself_first(distances: jax.Array) -> jax.Array:
    """A message's duplicates are no nearer to it than it is."""
    return jnp.where(jnp.eye(len(distances), dtype=bool), -1.0, distances)


def _mixed(factors: jax.Array, collected: Collected) -> jax.Array:
    """Messages [m, ...] that are combinations, [m, n], of those that contribute."""
    valid = collected.contributes

    def leaf(values: jax.Array) -> jax.Array:
        flat = masked(values, valid).reshape(len(values), -1).astype(jnp.float32)
        return jnp.matmul(factors, flat, precision="highest").reshape(len(factors), *values.shape[1:])

    return jax.tree.map(leaf, collected.messages)


def _collecting(then: Reducer) -> Reducer:
    check(isinstance(then, Reducer), "then", then, "must be a reducer, as fs.aggregate.median().")
    check(not then.linear, "then", then.name, "must be a reducer that collects: a mean of means is no defence.")
    return of_today(then)
