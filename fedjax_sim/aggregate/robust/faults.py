"""How many clients may be bad, a number or a share of those that contribute, and what a round of too few is."""

from collections.abc import Callable
from numbers import Integral
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate.base import Reducer
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import check, is_traced
from fedjax_sim.core.metrics import Max

OnFew = Literal["abandon", "mean", "error"]
"""What becomes of a round of too few clients for a rule: it is abandoned, it is their mean, or it ends the run."""

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


class Few(NamedTuple):
    """What a round is where too few contribute.

    Attributes:
        averaged: [] bool, the value is the mean of all.
        refused: [] bool, there is none.
        metrics: `averaged`, under "mean".
    """

    averaged: jax.Array | bool
    refused: jax.Array | bool
    metrics: dict[str, Max]


def few(on_few: OnFew, short: jax.Array) -> Few:
    """Of a round that is short of clients, or not."""
    if on_few == "mean":
        return Few(short, False, {"averaged": Max(short.astype(jnp.float32))})
    return Few(False, short, {})


def obeying(on_few: OnFew, reducer: Reducer) -> Reducer:
    """The reducer under its name, whose refusals do what `on_few` says.

    Raises:
        ArgumentError: another word.
    """
    check(on_few in ("abandon", "mean", "error"), "on_few", on_few, 'must be "abandon", "mean" or "error".')
    if on_few == "abandon":
        return reducer
    named = named_too(reducer, f"on_few={on_few}")
    return named._replace(on_refused="error") if on_few == "error" else named


def named_too(reducer: Reducer, argument: str) -> Reducer:
    """With one more argument in its name."""
    return reducer._replace(name=f"{reducer.name.removesuffix(')')}, {argument})")
