"""Shorter floating-point numbers."""

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate.base import Facts, Transform
from fedjax_sim.aggregate.compress.messages import check_floats
from fedjax_sim.core.pytree import size


def bfloat16() -> Transform:
    r"""Round each number to the nearest bfloat16: 8 significant bits and the range of float32, 16 bits in all.

    The relative error of a number is :math:`2^{-9}` at most. It is biased by that little, and sums are of float32.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.aggregate.chain(fs.aggregate.bfloat16()).facts.bits
        16.0
    """

    def client(key, state, row, payload, context):
        return jax.tree.map(_rounded, payload), row, {}

    def facts(facts: Facts) -> Facts:
        check_floats("bfloat16()", facts)
        return facts._replace(bits=16.0)

    return Transform(
        "bfloat16()",
        client=client,
        facts=facts,
        bound=lambda state, incoming, dim: incoming * (1 + 2.0**-9),
        bits=lambda message, incoming: 16.0 * size(message),
    )


def _rounded(x: jax.Array) -> jax.Array:
    """To bfloat16 and back; `reduce_precision`, as a pair of casts may be optimised away."""
    x = x.astype(jnp.float32)
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
