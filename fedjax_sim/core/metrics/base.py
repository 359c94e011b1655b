"""Metrics as monoids of sums: each has a zero, a merge, and is divided only when it is read.

A client's metrics are merged over its steps, a cohort's over its clients; what a metric *means* is never averaged
by accident. A metric may carry a leading axis (one entry per client): `reduce` merges over it.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.arrays import Array, Scalar
from fedjax_sim.core.errors import ArgumentError, is_traced
from fedjax_sim.core.pytree import pytree, static

M = TypeVar("M", bound="Metric")


class Metric:
    """A commutative monoid whose elements are pytrees of arrays.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> from fedjax_sim.core.pytree import pytree
        >>> @pytree
        ... class RootMean(fs.metrics.Mean):
        ...     def compute(self):
        ...         return np.sqrt(super().compute())
        >>> print(RootMean(total=6.0, weight=1.0).merge(RootMean(2.0, 1.0)).compute())
        2.0
    """

    def zero(self: M) -> M:
        """The neutral element, in the shape of `self`."""
        return jax.tree.map(jnp.zeros_like, self)

    def merge(self: M, other: M) -> M:
        """The combination of two metrics."""
        return jax.tree.map(jnp.add, self, other)

    def reduce(self: M) -> M:
        """Merge over the leading axis."""
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), self)

    def compute(self) -> Any:
        """The value, as NumPy (traced, where the metric is); NaN where nothing was observed."""
        raise NotImplementedError


@pytree
class Sum(Metric):
    """A total.

    Example:
        >>> import fedjax_sim as fs
        >>> print(fs.metrics.Sum(2.0).merge(fs.metrics.Sum(3.0)).compute())
        5.0
    """

    total: Scalar

    def compute(self) -> np.ndarray:
        return self.total if is_traced(self.total) else np.asarray(self.total)  # type: ignore[return-value]


@pytree
class Mean(Metric):
    """A weighted mean: sum of weight x value, and sum of weights.

    Example:
        >>> import fedjax_sim as fs
        >>> print(fs.metrics.Mean(total=6.0, weight=2.0).merge(fs.metrics.Mean(0.0, 1.0)).compute())
        2.0
    """

    total: Scalar
    weight: Scalar

    def compute(self) -> np.ndarray:
        total, weight = self.total, self.weight
        if is_traced(total):
            return jnp.where(weight == 0, jnp.nan, total / jnp.where(weight == 0, 1, weight))  # type: ignore[return-value]
        total, weight = np.asarray(total, np.float64), np.asarray(weight, np.float64)
        return np.where(weight == 0, np.nan, total / np.where(weight == 0, 1, weight))


@pytree
class Max(Metric):
    """A maximum; its zero is minus infinity.

    Example:
        >>> import fedjax_sim as fs
        >>> print(fs.metrics.Max(2.0).merge(fs.metrics.Max(3.0)).compute())
        3.0
    """

    value: Scalar

    def zero(self) -> "Max":
        return Max(jnp.full_like(jnp.asarray(self.value, jnp.float32), -jnp.inf))

    def merge(self, other: Any) -> "Max":
        return Max(jnp.maximum(self.value, other.value))

    def reduce(self) -> "Max":
        return Max(jnp.max(self.value, axis=0, initial=-jnp.inf))

    def compute(self) -> np.ndarray:
        if is_traced(self.value):
            return jnp.where(jnp.isneginf(self.value), jnp.nan, self.value)  # type: ignore[return-value]
        value = np.asarray(self.value)
        return np.where(np.isneginf(value), np.nan, value)


@pytree
class Histogram(Metric):
    """Counts of values in fixed bins; the outer bins are open.

    Example:
        >>> import fedjax_sim as fs
        >>> print(fs.metrics.Histogram.of([0.1, 0.2, 0.9], edges=(0.0, 0.5, 1.0)).compute())
        [2. 1.]
    """

    counts: Scalar
    edges: tuple[float, ...] = static(default=(0.0, 1.0))

    @classmethod
    def of(cls, values: Array | Sequence[float], edges: tuple[float, ...], weight: Array | None = None) -> "Histogram":
        """The histogram of `values` (weighted by `weight`, of the same shape)."""
        values = jnp.ravel(jnp.asarray(values, jnp.float32))
        weight = jnp.ones_like(values) if weight is None else jnp.ravel(weight)
        bins = jnp.searchsorted(jnp.asarray(edges[1:-1]), values, side="right")
        return cls(jnp.zeros(len(edges) - 1).at[bins].add(weight), tuple(edges))

    def compute(self) -> np.ndarray:
        return self.counts if is_traced(self.counts) else np.asarray(self.counts)  # type: ignore[return-value]


def as_metrics(metrics: object) -> dict[str, Metric]:
    """Check a user's dict of metrics; a bare number becomes a `Mean` of weight one.

    Example:
        >>> import fedjax_sim as fs
        >>> metrics = fs.metrics.as_metrics({"loss": 0.5, "tokens": fs.metrics.Sum(20.0)})
        >>> print(metrics["loss"].merge(fs.metrics.Mean(1.0, 1.0)).compute(), metrics["tokens"].compute())
        0.75 20.0
    """
    if not isinstance(metrics, dict):
        raise ArgumentError(f"metrics={type(metrics).__name__}: must be a dict of name to Sum, Mean, Max or Histogram.")
    return {
        name: value if isinstance(value, Metric) else Mean(jnp.asarray(value, jnp.float32), jnp.ones(()))
        for name, value in metrics.items()
    }


def zero(metrics: dict[str, Metric]) -> dict[str, Metric]:
    """The neutral element of a dict of metrics.

    Example:
        >>> import fedjax_sim as fs
        >>> start = fs.metrics.zero({"loss": fs.metrics.Mean(6.0, 2.0), "norm": fs.metrics.Max(3.0)})
        >>> print(start["loss"].compute(), start["norm"].value)
        nan -inf
    """
    return {name: metric.zero() for name, metric in metrics.items()}


def merge(a: dict[str, Metric], b: dict[str, Metric]) -> dict[str, Metric]:
    """Merge two dicts of metrics of the same names.

    Example:
        >>> import fedjax_sim as fs
        >>> first = {"loss": fs.metrics.Mean(6.0, 2.0), "norm": fs.metrics.Max(3.0)}
        >>> second = {"loss": fs.metrics.Mean(0.0, 1.0), "norm": fs.metrics.Max(5.0)}
        >>> {name: float(metric.compute()) for name, metric in fs.metrics.merge(first, second).items()}
        {'loss': 2.0, 'norm': 5.0}
    """
    return {name: metric.merge(b[name]) for name, metric in a.items()}


def reduce(metrics: dict[str, Metric]) -> dict[str, Metric]:
    """Merge every metric over its leading axis.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> clients = {"loss": fs.metrics.Mean(jnp.array([6.0, 0.0]), jnp.array([2.0, 1.0]))}
        >>> print(clients["loss"].compute(), fs.metrics.reduce(clients)["loss"].compute())
        [3. 0.] 2.0
    """
    return {name: metric.reduce() for name, metric in metrics.items()}
