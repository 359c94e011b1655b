"""Stochastic rounding to whole numbers: unbiased, from a few random bits a number, and under a bound on the norm."""

import math

import jax
import jax.numpy as jnp

from fedjax_sim.core.arrays import PyTree, Scalar
from fedjax_sim.core.pytree import squared_norm
from fedjax_sim.core.types import Key

BITS = 8  # random bits of a number's own
TRIES = 30
BETA = math.exp(-0.5)


def uniforms(key: Key, shape: tuple[int, ...]) -> jax.Array:
    r"""Numbers in [0, 1), four from each random word and one word for all: :math:`u_j = (r_j + v) / 256`.

    :math:`r_j` are independent bytes, and v in [0, 1) is shared. So each :math:`u_j` by itself is uniform, to the
    :math:`2^{-32}` that a random word resolves (24 bits of it in float32); only pairs betray the saving: whatever two
    of them decide (round up or down) is correlated by at most :math:`2^{-18}` in covariance.
    """
    size = math.prod(shape)
    words = jax.random.bits(jax.random.fold_in(key, 0), (-(-size * BITS // 32), 1))
    parts = words >> jnp.arange(0, 32, BITS, dtype=jnp.uint32)[None]
    own = (parts & (2**BITS - 1)).reshape(-1)[:size].reshape(shape).astype(jnp.float32)
    shared = jax.random.uniform(jax.random.fold_in(key, 1))
    return (own + shared) * 2.0**-BITS


def round_up_or_down(key: Key, tree: PyTree) -> PyTree:
    r"""Each number x to :math:`\lfloor x \rfloor + [u < x - \lfloor x \rfloor]`: x on average, and x itself if whole.

    Args:
        key: each leaf draws from its own.
        tree: floats, below 2^24 in magnitude.

    Returns:
        The tree of whole numbers, as floats.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fedjax_sim.aggregate.numerics.rounding import round_up_or_down
        >>> rounded = round_up_or_down(jax.random.key(0), jnp.full(10_000, 0.3))
        >>> print(abs(rounded.mean() - 0.3) < 0.02, round_up_or_down(jax.random.key(0), jnp.array([-2.0, 0.0])))
        True [-2.  0.]
    """
    leaves, structure = jax.tree.flatten(tree)
    rounded = []
    for i, x in enumerate(leaves):
        below = jnp.floor(x)
        up = uniforms(jax.random.fold_in(key, i), x.shape) < x - below
        rounded.append(below + up.astype(below.dtype))
    return jax.tree.unflatten(structure, rounded)


def norm_bound(norm: Scalar, dim: int) -> jax.Array:
    r"""A bound on the L2 norm after rounding that a draw meets with probability :math:`1 - \beta`, or always.

    .. math:: \min\left(c + \sqrt d,\ \sqrt{c^2 + d/4 + \sqrt{2 \ln(1/\beta)}\, (c + \sqrt d / 2)}\right),
        \qquad \beta = e^{-1/2}

    (Kairouz, Liu and Steinke 2021, where it bounds the sensitivity of the distributed discrete Gaussian.)

    Args:
        norm: c, the bound before, in steps of the grid.
        dim: d, numbers; the padding of a rotation counts.

    Example:
        >>> from fedjax_sim.aggregate.numerics.rounding import norm_bound
        >>> print(norm_bound(127.0, 1).round(2), norm_bound(127.0, 262_144).round(1))
        127.5 286.4
    """
    root = math.sqrt(dim)
    norm = jnp.asarray(norm, jnp.float32)
    likely = jnp.sqrt(norm**2 + dim / 4 + math.sqrt(2 * math.log(1 / BETA)) * (norm + root / 2))
    return jnp.minimum(norm + root, likely)


def round_within(key: Key, tree: PyTree, bound: Scalar) -> tuple[PyTree, jax.Array]:
    """Round stochastically, again and again while the norm is over the bound; toward zero when no try is within.

    A try is within the `norm_bound` with probability 1 - β = 0.39 at least, so that the last resort, which keeps the
    bound but not the mean, is taken less than once in three million times. Conditioning biases what is rounded by a
    trifle: the price of a bound that always holds.

    Args:
        key: each try draws anew.
        tree: floats, within the bound themselves.
        bound: on the L2 norm over all leaves.

    Returns:
        `(tree of whole numbers, tries)`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fedjax_sim.aggregate.numerics.rounding import round_within
        >>> print(*round_within(jax.random.key(0), jnp.array([0.0, 0.0]), bound=0.1))
        [0. 0.] 1
    """

    def over(carry):
        tries, rounded = carry
        return (tries < TRIES) & (squared_norm(rounded) > limit)

    def again(carry):
        tries, _ = carry
        return tries + 1, round_up_or_down(jax.random.fold_in(key, tries), tree)

    limit = jnp.square(jnp.asarray(bound, jnp.float32))
    start = round_up_or_down(jax.random.fold_in(key, 0), tree)
    tries, rounded = jax.lax.while_loop(over, again, (jnp.ones((), jnp.int32), start))
    failed = squared_norm(rounded) > limit
    return jax.tree.map(lambda r, x: jnp.where(failed, jnp.trunc(x), r), rounded, tree), tries
