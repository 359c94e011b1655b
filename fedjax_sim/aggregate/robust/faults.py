"""How many clients may be bad: a number, or a share of those that contribute."""

from collections.abc import Callable
from numbers import Integral

import jax
import jax.numpy as jnp

from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import check, is_traced

ROUNDING = 1e-4
"""A share of n that is a whole number, but for the rounding of float32, is that number."""


def faulty(f: Scalar) -> Callable[[jax.Array], jax.Array]:
    """`n -> f` of a round, both [] int32: a whole number as it is, a share of n rounded down.

    Raises:
        ArgumentError: a negative f, or a share of a half or more.
    """
    if is_traced(f):
        whole = jnp.issubdtype(jnp.result_type(f), jnp.integer)
        check((f >= 0) & (jnp.asarray(whole) | (f < 0.5)), "f", f, _ADVICE)
    else:
        whole = isinstance(f, Integral) and not isinstance(f, bool)
        check(whole or isinstance(f, float), "f", f, _ADVICE)
        check(f >= 0 and (whole or f < 0.5), "f", f, _ADVICE)
    if whole:
        return lambda n: jnp.asarray(f, jnp.int32)
    return lambda n: jnp.floor(f * n.astype(jnp.float32) + ROUNDING).astype(jnp.int32)


_ADVICE = "must be the number of bad clients, a whole number from 0 on, or their share of a round's clients, below 0.5."
