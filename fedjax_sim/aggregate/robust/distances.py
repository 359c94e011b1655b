"""Distances between clients' messages, over all coordinates of all leaves, and the order that they give."""

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate.base import Collected
from fedjax_sim.aggregate.robust.blocks import each, fold
from fedjax_sim.core.arrays import Array, PyTree

CANCELLED = 16.0
"""How many times larger than a squared distance the squares may be that it is the difference of: about 4 of 24 bits."""


def squared_distances(collected: Collected) -> jax.Array:
    """[n, n] squared distances of those that contribute, infinity for others and 0 on the diagonal.

    From products of centred rows, ‖x‖² + ‖y‖² - 2xy, which cancel where rows are far from the centre. The mean is a
    good one while no row is far from it beside another that is near, as one bad client moves it. Where some are, it
    serves to find a client in the crowd's middle, the one with the least median distance: the centre of a second pass.
    """
    valid, n = collected.contributes, jnp.sum(collected.contributes)
    rough, cancelled = _distances(collected, valid / jnp.maximum(n, 1))

    def around_a_client() -> jax.Array:
        middle = jnp.sort(rough, axis=1)[:, jnp.maximum(n - 1, 0) // 2]
        chosen = jnp.argmin(jnp.where(valid, middle, jnp.inf))
        return _distances(collected, jnp.arange(len(valid)) == chosen)[0]

    return jax.lax.cond(cancelled > CANCELLED, around_a_client, lambda: rough)


def _distances(collected: Collected, centre: Array) -> tuple[jax.Array, jax.Array]:
    """By products of rows from which the given combination of them is taken; and what cancelled at the most.

    That is (‖x‖² + ‖y‖²) / ‖x - y‖², by which roundings of the squares are larger in the distance.
    """
    valid = collected.contributes

    def add(total: jax.Array, block: jax.Array) -> jax.Array:
        block = masked(block, valid)
        block = block - jnp.matmul(jnp.asarray(centre, jnp.float32), block, precision="highest")[None]
        return total + jax.lax.dot_general(block, block, (((1,), (1,)), ((), ())), precision="highest")

    products = fold(add, jnp.zeros((len(valid), len(valid)), jnp.float32), collected.messages)
    squares = jnp.diagonal(products)
    both, others = squares[:, None] + squares[None], ~jnp.eye(len(valid), dtype=bool)
    found = jnp.maximum(both - (products + products.T), 0)
    known = valid[:, None] & valid[None] & ~jnp.isnan(found)  # NaN: of numbers beyond float32
    times = jnp.where(found > 0, both / jnp.where(found > 0, found, 1), jnp.inf)
    cancelled = jnp.max(jnp.where(valid[:, None] & valid[None] & others, times, 0))
    return jnp.where(others, jnp.where(known, found, jnp.inf), 0), cancelled


def norms(collected: Collected, centre: PyTree = None) -> jax.Array:
    """[n] the messages' distances from a tree of their shapes, or from 0; 0 of those that do not contribute."""

    def add(total: jax.Array, block: jax.Array, centre: jax.Array | float = 0.0) -> jax.Array:
        apart = jnp.square(masked(block - centre, collected.contributes))
        return total + row_sums(apart)

    centres = () if centre is None else (jax.tree.map(lambda leaf: leaf[None], centre),)
    squares = fold(add, jnp.zeros(len(collected.contributes)), collected.messages, *centres)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)  # whose derivative at 0 is finite


def norms_around(factors: Array, collected: Collected) -> jax.Array:
    """[n] the messages' distances from the sum of factors x messages, in one pass; of those that contribute."""
    valid = collected.contributes
    factors = masked(jnp.asarray(factors, jnp.float32), valid)

    def add(total: jax.Array, block: jax.Array) -> jax.Array:
        block = masked(block, valid)
        middle = jnp.matmul(factors, block, precision="highest")
        return total + row_sums(jnp.square(masked(block - middle[None], valid)))

    return jnp.sqrt(fold(add, jnp.zeros(len(valid)), collected.messages))


def masked(values: jax.Array, valid: Array) -> jax.Array:
    """[n, ...] with zeros, whatever was there, for those that do not contribute."""
    return jnp.where(valid.reshape(-1, *[1] * (values.ndim - 1)), values, 0)


def combined(factors: Array, collected: Collected) -> PyTree:
    """The sum of factors x messages of those that contribute; float32."""
    valid = collected.contributes
    factors = masked(jnp.asarray(factors, jnp.float32), valid)
    return each(lambda block: jnp.matmul(factors, masked(block, valid), precision="highest"), collected.messages)


def row_sums(block: jax.Array) -> jax.Array:
    """[n] of [n, b]: a product, as XLA's CPU sums over rows are slow."""
    return jnp.matmul(block, jnp.ones(block.shape[1]), precision="highest")


def rank(scores: jax.Array, collected: Collected) -> jax.Array:
    """[n] places of the scores from the smallest on, ties by client id; those that do not contribute come last."""
    scores = jnp.where(collected.contributes, scores, jnp.inf)
    order = jnp.lexsort((collected.ids, scores, ~collected.contributes))
    return jnp.zeros(len(order), jnp.int32).at[order].set(jnp.arange(len(order), dtype=jnp.int32))
