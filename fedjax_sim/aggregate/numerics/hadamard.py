"""The fast Walsh-Hadamard transform, and random rotations made of it.

The transform of 2^k numbers is the product with the k-fold Kronecker power of [[1, 1], [1, -1]]. It is computed as one
matrix product over the last five of the k factors, then two factors at a time by additions, each a pass over the array:
of the forms tried the fastest on a CPU (see `benchmarks/hadamard.py`), where a plain butterfly took twice its time.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.errors import check
from fedjax_sim.core.types import Key

TAIL = 5  # factors in the matrix product


def padded_size(size: int) -> int:
    """The power of two that holds so many numbers: what a rotation sends for them."""
    return 1 << max(size - 1, 0).bit_length()


def hadamard(x: jax.Array) -> jax.Array:
    r"""The orthonormal Walsh-Hadamard transform, its own inverse.

    .. math:: y = 2^{-k/2} H_{2^k} x, \qquad H_{2^k} = \begin{pmatrix} 1 & 1 \\ 1 & -1 \end{pmatrix}^{\otimes k}

    in :math:`k 2^k` additions, in Hadamard's (natural) order.

    Args:
        x: [2^k] floats.

    Returns:
        [2^k].

    Raises:
        ArgumentError: the size is no power of two.

    Example:
        >>> import jax.numpy as jnp
        >>> from fedjax_sim.aggregate.numerics.hadamard import hadamard
        >>> print(hadamard(jnp.array([3.0, 1.0, 0.0, 0.0])))
        [2. 1. 2. 1.]
    """
    check(x.ndim == 1 and x.size == padded_size(x.size), "x.shape", x.shape, "must be [2^k]: pad it with zeros.")
    size, tail = x.size, min(x.size, 1 << TAIL)
    y = jnp.matmul(x.reshape(-1, tail), _matrix(tail, size), precision=jax.lax.Precision.HIGHEST)
    left = 1
    while left * tail < size:
        right = size // left // 4
        if right < tail:
            a, b = (y.reshape(left, 2, tail)[:, i] for i in range(2))
            y = jnp.stack([a + b, a - b], 1)
            break
        a, b, c, d = (y.reshape(left, 4, right)[:, i] for i in range(4))
        (ab, a_b), (cd, c_d) = (a + b, a - b), (c + d, c - d)
        y = jnp.stack([ab + cd, a_b + c_d, ab - cd, a_b - c_d], 1)
        # A pass of its own: fused with the next one, each sum would be computed four times.
        y = jax.lax.optimization_barrier(y)
        left *= 4
    return y.reshape(size)


def rotate_randomly(key: Key, x: jax.Array) -> jax.Array:
    r"""A random rotation :math:`z = 2^{-k/2} H D x`, D a diagonal of random signs: the norm stays, the energy spreads.

    Args:
        key: the signs come from it alone.
        x: [d], padded with zeros up to 2^k.

    Returns:
        [2^k].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fedjax_sim.aggregate.numerics.hadamard import rotate_back, rotate_randomly
        >>> key, x = jax.random.key(0), jnp.array([6.0, 0.0, 0.0])
        >>> print(abs(rotate_randomly(key, x)), abs(rotate_back(key, rotate_randomly(key, x), 3)))
        [3. 3. 3. 3.] [6. 0. 0.]
    """
    x = jnp.pad(x, (0, padded_size(x.size) - x.size))
    return hadamard(flip_signs(key, x))


def rotate_back(key: Key, z: jax.Array, size: int) -> jax.Array:
    """The inverse of `rotate_randomly`, its first `size` numbers; linear, so that sums are rotated back as well."""
    return flip_signs(key, hadamard(z))[:size]


def flip_signs(key: Key, x: jax.Array) -> jax.Array:
    """Each number times a sign of its own, one random bit each, 32 from a random word."""
    words = jax.random.bits(key, (-(-x.size // 32), 1))
    bits = (words >> jnp.arange(32, dtype=jnp.uint32)[None]).reshape(-1)[: x.size] & 1
    return jnp.where(bits == 1, -x, x)


def _matrix(size: int, of: int) -> np.ndarray:
    """The Hadamard matrix of so many rows, scaled to make the transform of `of` numbers orthonormal."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (matrix / np.sqrt(of)).astype(np.float32)
