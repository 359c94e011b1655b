"""What metrics of predictions share: weights that tell of impossible examples, and numbers on the host or traced."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.arrays import Array
from fedjax_sim.core.errors import ArgumentError, is_traced


def host(*arrays: Any) -> tuple[Any, ...]:
    """`(jnp, arrays)` where one is traced, else `(np, arrays in float64)`: sums of counts are exact there."""
    if any(map(is_traced, arrays)):
        return (jnp, *arrays)
    return (np, *(np.asarray(array, np.float64) for array in arrays))


def ratio(xp: Any, over: Any, under: Any) -> Any:
    """`over / under`, NaN where `under` is 0."""
    return xp.where(under == 0, xp.nan, over / xp.where(under == 0, 1, under))


def flat(what: str, scores: Array, labels: Array, weight: Array | None, axes: int) -> tuple[jax.Array, ...]:
    """Scores, [n] or [n, C], labels [n] and float32 weights [n], of any leading shape."""
    scores, labels = jnp.asarray(scores), jnp.asarray(labels)
    shape = scores.shape[: scores.ndim - axes]
    if scores.ndim < axes or labels.shape != shape or (weight is not None and jnp.shape(weight) != shape):
        weights = "" if weight is None else f" and weights {jnp.shape(weight)}"
        raise ArgumentError(
            f"{what} {scores.shape} for labels {labels.shape}{weights}: must be a label and a weight an example, "
            f"{'and one axis of classes' if axes else 'as there are scores'}."
        )
    weight = jnp.ones(shape) if weight is None else jnp.asarray(weight, jnp.float32)
    rest = scores.shape[len(shape) :]
    return scores.astype(jnp.float32).reshape(-1, *rest), labels.reshape(-1), weight.reshape(-1)


def counted(weight: jax.Array, possible: jax.Array) -> jax.Array:
    """Weights, NaN for an example that counts and cannot be: what is divided by their sums is NaN then, and no lie."""
    return jnp.where((weight > 0) & ~possible, jnp.nan, weight)


def of_classes(logits: Array, labels: Array, weight: Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits [n, C], labels [n] in 0..C-1, weights [n]; a negative label has weight 0, a NaN or another label NaN."""
    logits, labels, weight = flat("logits", logits, labels, weight, axes=1)
    classes = logits.shape[-1]
    weight = jnp.where(labels < 0, 0.0, weight)
    weight = counted(weight, (labels < classes) & ~jnp.isnan(logits).any(-1))
    return logits, jnp.clip(labels, 0, classes - 1), weight
