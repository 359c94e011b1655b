"""Reducers: weighted and uniform means, and the coordinate-wise median."""

from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate.base import Collected, Reduced, Reducer
from fedjax_sim.aggregate.numerics.sorting import mean_of_places
from fedjax_sim.core.errors import check


def mean(weight: Literal["examples", "uniform"] = "examples") -> Reducer:
    r"""The weighted mean :math:`\sum_k w_k u_k / \sum_k w_k` of the updates.

    An empty cohort gives zero. Under noise the denominator is the sampler's *expected* cohort, set by
    `Simulation`, never the realised one.

    Args:
        weight: "examples", the weight that each client's update states; or "uniform", 1 a client.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.aggregate.mean(weight="uniform").name
        'mean(uniform)'
    """
    check(weight in ("examples", "uniform"), "weight", weight, 'must be "examples" or "uniform".')

    def result(aggregate, expected):
        total = aggregate.weight if expected is None else jnp.asarray(expected, jnp.float32)
        scale = jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)
        wide = lambda value: value if jnp.issubdtype(value.dtype, jnp.inexact) else value.astype(jnp.float32)
        values = jax.tree.map(wide, aggregate.value)
        return jax.tree.map(lambda value: value * scale.astype(value.dtype), values)

    return Reducer(f"mean({weight})", result, weight)


def median() -> Reducer:
    """The coordinate-wise median of the updates, each client counting once (Yin et al. 2018).

    For an even number of clients the mean of the two middle values; zero for an empty cohort. It collects the
    cohort's messages: memory of C models, spread over the devices.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> messages, contributes = (
        ...     jnp.array([[1.0], [9.0], [2.0], [7.0]]),
        ...     jnp.array([True, True, True, False]),
        ... )
        >>> print(fs.aggregate.median().collect(fs.aggregate.Collected(messages, None, contributes)).value)
        [2.]
    """

    def collect(collected: Collected) -> Reduced:
        count = jnp.sum(collected.contributes)
        low, high = jnp.maximum(count - 1, 0) // 2, count // 2
        values = collected.messages.astype(jnp.promote_types(collected.messages.dtype, jnp.float32))
        return Reduced(jnp.where(count > 0, mean_of_places(values, collected.contributes, low, high), 0))

    return Reducer("median", weight="uniform", collect=collect, by_coordinate=True)
