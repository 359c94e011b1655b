"""What is said of logits for labels: the loss and the accuracy, and measures of evaluations."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.client.labels import whole
from fedjax_sim.client.task import Loss
from fedjax_sim.core.errors import ArgumentError, check
from fedjax_sim.core.metrics import Metric

Measure = Callable[[jax.Array, jax.Array, jax.Array], Metric]
"""`(logits [n, C], labels [n], weights [n]) -> Metric`: sums over examples, of which those of weight 0 do not count."""


def label_loss(logits: jax.Array, y: Any) -> Loss:
    """Cross-entropy and accuracy of logits [B, ..., C] for labels [B, ...].

    Negative ones do not count. Of one that is no class the loss is NaN.
    """
    if logits.shape[:-1] != y.shape:
        raise ArgumentError(
            f"logits {logits.shape} for labels {y.shape}: must be the labels' shape and one axis of classes."
        )
    y = whole(y, logits.shape[-1])
    real, logits = y >= 0, logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(real, y, 0))
    right = (jnp.argmax(logits, axis=-1) == y).astype(jnp.float32)
    if y.ndim == 1:
        weight = real.astype(jnp.float32)
        return Loss(each, weight, {"accuracy": (right, weight)})
    axes = tuple(range(1, y.ndim))
    weight = jnp.sum(real, axes).astype(jnp.float32)
    mean = lambda value: jnp.sum(value * real, axes) / jnp.maximum(weight, 1)
    return Loss(mean(each), weight, {"accuracy": (mean(right), weight)})


def label_measures(
    measures: Mapping[str, Measure], logits: jax.Array, y: jax.Array, mask: jax.Array
) -> dict[str, Metric]:
    """Measures of logits [B, ..., C] for labels [B, ...], of which negative ones and padding do not count."""
    y = whole(y, logits.shape[-1])
    weight = (y >= 0) * mask.reshape(-1, *(1,) * (y.ndim - 1))
    logits, y, weight = logits.reshape(-1, logits.shape[-1]).astype(jnp.float32), y.reshape(-1), weight.reshape(-1)
    for name, measure in measures.items():
        check(callable(measure), f"measures[{name!r}]", measure, "must be a function, (logits, labels, weights).")
    return {name: measure(logits, y, weight) for name, measure in measures.items()}


def joined(metrics: Mapping[str, Any], measures: Mapping[str, Metric]) -> dict[str, Any]:
    """The loss's metrics and an evaluation's own."""
    for name, measure in measures.items():
        taken = name == "loss" or name in metrics
        check(not taken, "measures", name, "the loss has a metric of that name; choose another.")
        if not isinstance(measure, Metric):
            raise ArgumentError(f"measures[{name!r}] is a {type(measure).__name__}: must be a fs.metrics.Metric, sums.")
    return {**metrics, **measures}
