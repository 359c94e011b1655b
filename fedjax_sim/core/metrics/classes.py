"""Metrics by class: the confusion matrix, macro F1, balanced accuracy."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.arrays import Array, Scalar
from fedjax_sim.core.metrics.base import Metric
from fedjax_sim.core.metrics.numbers import host, of_classes, ratio
from fedjax_sim.core.pytree import pytree

C = TypeVar("C", bound="_ByClass")


@pytree
class Confusion(Metric):
    """Counts of (label, prediction): entry [i, j] is the weight of examples of class i that were taken for class j.

    Attributes:
        counts: [..., C, C].

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> logits = jnp.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
        >>> matrix = fs.metrics.Confusion.of(logits, labels=jnp.array([0, 1, 1]))
        >>> print(matrix.compute().tolist(), matrix.recall(), matrix.precision())
        [[1.0, 0.0], [1.0, 1.0]] [1.  0.5] [0.5 1. ]

        Of all clients, or of each, after an evaluation:

        >>> print(fs.metrics.Confusion(jnp.array([[[1.0, 0.0], [1.0, 1.0]]])).f1())
        [[0.66666667 0.66666667]]
    """

    counts: Scalar

    @classmethod
    def of(cls, logits: Array, labels: Array, weight: Array | None = None) -> "Confusion":
        """Of logits [..., C], labels [...] and weights [...]; a negative label does not count.

        A label that is no class, and logits with a NaN, make the counts NaN.
        """
        logits, labels, weight = of_classes(logits, labels, weight)
        classes = logits.shape[-1]
        rows = jax.nn.one_hot(labels, classes) * weight[:, None]
        columns = jax.nn.one_hot(jnp.argmax(logits, -1), classes)
        return cls(jnp.matmul(rows.T, columns, precision=jax.lax.Precision.HIGHEST))

    def compute(self) -> np.ndarray:
        return host(self.counts)[1]

    def recall(self) -> np.ndarray:
        """[..., C], of each class's examples the share that was found; NaN for a class without any."""
        return self._sums().recall()

    def precision(self) -> np.ndarray:
        """[..., C], of what was taken for each class the share that was right; NaN where nothing was."""
        right, predicted, _ = self._sums().numbers()[1:]
        return ratio(host(right)[0], right, predicted)

    def f1(self) -> np.ndarray:
        """[..., C], twice the right ones over labels and predictions of a class; NaN for a class with neither."""
        return self._sums().f1()

    def _sums(self) -> "_ByClass":
        xp, counts = host(self.counts)
        return _ByClass(xp.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-2), counts.sum(-1))


@pytree
class _ByClass(Metric):
    """Of each class, [..., C]: the weight of right predictions, of predictions, of labels."""

    right: Scalar
    predicted: Scalar
    actual: Scalar

    @classmethod
    def of(cls: type[C], logits: Array, labels: Array, weight: Array | None = None) -> C:
        """Of logits [..., C], labels [...] and weights [...]; a negative label does not count.

        A label that is no class, and logits with a NaN, make the value NaN.
        """
        logits, labels, weight = of_classes(logits, labels, weight)
        taken, zeros = jnp.argmax(logits, -1), jnp.zeros(logits.shape[-1])
        right = jnp.where(taken == labels, weight, 0.0 * weight)
        return cls(zeros.at[labels].add(right), zeros.at[taken].add(weight), zeros.at[labels].add(weight))

    def numbers(self) -> tuple[Any, Any, Any, Any]:
        return host(self.right, self.predicted, self.actual)  # type: ignore[return-value]

    def recall(self) -> Any:
        xp, right, _, actual = self.numbers()
        return ratio(xp, right, actual)

    def f1(self) -> Any:
        xp, right, predicted, actual = self.numbers()
        return ratio(xp, 2 * right, predicted + actual)


def _mean(values: Any, counts: Any) -> Any:
    """The mean over the classes that count; NaN where one that counts is, and where none does."""
    xp, values, counts = host(values, counts)
    return ratio(xp, xp.where(counts == 0, 0.0, values).sum(-1), (counts != 0).sum(-1))


@pytree
class MacroF1(_ByClass):
    r"""The mean over classes of :math:`2 r_c / (p_c + a_c)`: right predictions, predictions and labels of class c.

    Of the classes that occur among labels or predictions, as scikit-learn has it.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> logits = jnp.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
        >>> print(fs.metrics.MacroF1.of(logits, labels=jnp.array([0, 1, 1])).compute().round(4))
        0.6667
    """

    def compute(self) -> np.ndarray:
        return _mean(self.f1(), self.predicted + self.actual)


@pytree
class BalancedAccuracy(_ByClass):
    r"""The mean over classes of the recall :math:`r_c / a_c`, of the classes that occur among labels.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> logits = jnp.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
        >>> print(fs.metrics.BalancedAccuracy.of(logits, labels=jnp.array([0, 1, 1])).compute())
        0.75
    """

    def compute(self) -> np.ndarray:
        return _mean(self.recall(), self.actual)
