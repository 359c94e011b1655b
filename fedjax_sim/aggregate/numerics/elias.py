"""Elias' universal codes of positive integers (Elias 1975): how many bits they take, computed on the device."""

import jax
import jax.numpy as jnp


def gamma_length(n: jax.Array) -> jax.Array:
    r"""Bits of the gamma code, :math:`2 \lfloor \log_2 n \rfloor + 1`.

    Args:
        n: integers, 1 or more, of any shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from fedjax_sim.aggregate.numerics.elias import gamma_length
        >>> print(gamma_length(jnp.array([1, 2, 3, 4, 100])))
        [ 1  3  3  5 13]
    """
    return 2 * _log2(n) + 1


def omega_length(n: jax.Array) -> jax.Array:
    r"""Bits of the omega (recursive) code: a number, before it the number of its bits less one, and so on, and a zero.

    .. math:: |\omega(n)| = 1 + l(n), \qquad l(1) = 0, \quad
        l(n) = \lfloor \log_2 n \rfloor + 1 + l(\lfloor \log_2 n \rfloor)

    Args:
        n: integers, 1 or more, of any shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from fedjax_sim.aggregate.numerics.elias import omega_length
        >>> print(omega_length(jnp.array([1, 2, 3, 4, 100])))
        [ 1  3  3  6 13]
    """
    length = jnp.ones_like(n)
    for _ in range(5):  # 2^31 > 30 > 4 > 2 > 1
        more = _log2(n)
        length = length + jnp.where(n > 1, more + 1, 0)
        n = jnp.where(n > 1, more, 1)
    return length


def run_lengths(nonzero: jax.Array) -> jax.Array:
    """For each position that holds True, its distance from the last one before it (from -1 for the first); else 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from fedjax_sim.aggregate.numerics.elias import run_lengths
        >>> print(run_lengths(jnp.array([False, True, True, False, False, True])))
        [1 2 1 1 1 3]
    """
    places = jnp.arange(nonzero.size, dtype=jnp.int32)
    latest = jax.lax.cummax(jnp.where(nonzero, places, -1))
    before = jnp.concatenate([jnp.full(1, -1, jnp.int32), latest[:-1]])
    return jnp.where(nonzero, places - before, 1)


def _log2(n: jax.Array) -> jax.Array:
    """The whole part of the logarithm."""
    return 31 - jax.lax.clz(n.astype(jnp.int32))
