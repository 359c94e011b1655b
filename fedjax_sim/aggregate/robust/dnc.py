"""Divide and conquer: clients that stand out along the direction of largest variance are left out."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.aggregate.base import Collected, Reduced, Reducer
from fedjax_sim.aggregate.robust.by_leaf import By, by_leaf
from fedjax_sim.aggregate.robust.distances import combined, masked, rank
from fedjax_sim.aggregate.robust.faults import ROUNDING, OnFew, faulty, few, obeying
from fedjax_sim.core.arrays import Key, Scalar
from fedjax_sim.core.errors import check_count, check_positive


def dnc(
    f: Scalar,
    c: Scalar = 1.0,
    iterations: int = 1,
    sketch: int = 10_000,
    on_few: OnFew = "abandon",
    by: By = "model",
) -> Reducer:
    r"""The mean without the clients that stand out in a spectrum (Shejwalkar and Houmansadr 2021, Algorithm 2).

    Of some coordinates, centred, v is the top right singular vector; the c f clients of the largest
    :math:`\langle x_i - \mu, v \rangle^2` are left out, ties by client id; who is left in all iterations is averaged.
    f = 0 is the mean. Coordinates are drawn from (seed, round), one from each of as many equal stretches of a leaf,
    where the paper draws them from all. A round of n <= 2f clients that contribute, or of which nobody is left, is
    abandoned. Metric: `kept`, the clients that are averaged.

    Args:
        f: clients that may be bad, or their share of n, rounded down.
        c: how many are left out for each of them.
        iterations: of drawing and leaving out.
        sketch: coordinates at most, about.
        on_few: what such a round is instead: "mean", that of all that contribute, and `aggregate/averaged` is 1; or
            "error", it ends the run. Under "mean" a round of which nobody is left is abandoned all the same.
        by: "model", directions are of all coordinates; or "leaf", each leaf has a rule of its own.

    Raises:
        ArgumentError: a negative f, a share of a half or more, c that is not positive, iterations or sketch below 1;
            another word for `on_few` or `by`.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> messages = jnp.array([[1.0, 0.0], [2.0, 1.0], [3.0, 2.0], [1e6, 0.0]])
        >>> places = fs.aggregate.Collected(
        ...     messages, jnp.ones(4), jnp.ones(4, bool), ids=jnp.arange(4), key=jax.random.key(0)
        ... )
        >>> print(fs.aggregate.dnc(1).collect(places).value)
        [2. 1.]
    """
    bad = faulty(f)
    check_positive("c", c)
    check_count("iterations", iterations)
    check_count("sketch", sketch)

    def collect(collected: Collected) -> Reduced:
        n = jnp.sum(collected.contributes)
        short = few(on_few, n <= 2 * bad(n))
        left_out = jnp.where(short.averaged, 0, jnp.floor(c * bad(n) + ROUNDING).astype(jnp.int32))
        kept = collected.contributes
        for i in range(iterations):
            outlying = rank(-_projections(jax.random.fold_in(collected.key, i), collected, sketch), collected)
            kept &= outlying >= left_out
        count = jnp.sum(kept)
        value = combined(kept / jnp.maximum(count, 1), collected)
        refused = short.refused | (count == 0)
        return Reduced(value, metrics={"kept": count, **short.metrics}, refused=refused)

    rule = Reducer(f"dnc({f}, c={c}, {iterations}, {sketch})", weight="uniform", collect=collect, by_client=True)
    return obeying(on_few, by_leaf(by, rule))


def _projections(key: Key, collected: Collected, sketch: int) -> jax.Array:
    """[n] squared projections on the top right singular vector: the top eigenvector's entries of the Gram matrix."""
    valid, n = collected.contributes, jnp.maximum(jnp.sum(collected.contributes), 1)
    leaves = jax.tree.leaves(collected.messages)
    size = sum(math.prod(leaf.shape[1:]) for leaf in leaves)
    some = []
    for i, leaf in enumerate(leaves):
        flat = leaf.reshape(len(valid), math.prod(leaf.shape[1:]))
        count = min(flat.shape[1], -(-sketch * flat.shape[1] // max(size, 1)))
        if 0 < count < flat.shape[1]:
            ends = np.arange(count + 1) * flat.shape[1] // count
            draw = jax.random.uniform(jax.random.fold_in(key, i), (count,))
            flat = flat[:, ends[:-1] + jnp.floor(draw * np.diff(ends)).astype(jnp.int32)]
        some.append(masked(flat.astype(jnp.float32), valid))
    rows = jnp.concatenate([*some, jnp.zeros((len(valid), 1))], axis=1)
    rows = masked(rows - jnp.sum(rows, axis=0, keepdims=True) / n, valid)
    gram = jnp.matmul(rows, rows.T, precision="highest")
    largest = jnp.maximum(jnp.max(jnp.diagonal(gram)), jnp.finfo(jnp.float32).tiny)
    values, vectors = jnp.linalg.eigh(gram / largest)
    return values[-1] * jnp.square(vectors[:, -1])
