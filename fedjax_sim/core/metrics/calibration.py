"""Calibration: whether a model that is 80 % sure is right 8 times in 10."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.arrays import Array, Scalar
from fedjax_sim.core.errors import check_count
from fedjax_sim.core.metrics.base import Metric
from fedjax_sim.core.metrics.numbers import host, of_classes, ratio
from fedjax_sim.core.pytree import pytree


@pytree
class CalibrationError(Metric):
    r"""The expected calibration error, :math:`\sum_b (n_b / n) \lvert \mathrm{acc}_b - \mathrm{conf}_b \rvert`.

    Bins are of equal width in the confidence, the greatest probability of the softmax: bin b has the examples with
    confidence in (b / bins, (b + 1) / bins], their accuracy and their mean confidence. Guo et al. (2017, "On
    calibration of modern neural networks", eq. 3) have 15 bins. It depends on the bins: say how many there were. The
    mean over clients of their own errors is not the pooled one: small clients' bins hold few examples, and look badly
    calibrated.

    Attributes:
        right, confidence, weight: [..., bins] sums over a bin's examples.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> logits = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]]))
        >>> error = fs.metrics.CalibrationError.of(logits, labels=jnp.array([0, 1, 1]), bins=10)
        >>> print(error.compute().round(4))  # (2 * |0.5 - 0.9| + |1 - 0.6|) / 3
        0.4
    """

    right: Scalar
    confidence: Scalar
    weight: Scalar

    @classmethod
    def of(cls, logits: Array, labels: Array, weight: Array | None = None, bins: int = 15) -> "CalibrationError":
        """Of logits [..., C], labels [...] and weights [...]; a negative label does not count.

        A label that is no class, and logits with a NaN, make the value NaN.
        """
        check_count("bins", bins)
        logits, labels, weight = of_classes(logits, labels, weight)
        sure = jnp.max(jax.nn.softmax(logits), -1)
        at = jnp.clip(jnp.ceil(jnp.where(jnp.isnan(sure), 1.0, sure) * bins).astype(jnp.int32) - 1, 0, bins - 1)
        total = lambda values: jnp.zeros(bins).at[at].add(values)
        right = jnp.argmax(logits, -1) == labels
        # What weighs nothing adds nothing, whatever it is.
        mass = lambda values: jnp.where(weight == 0, 0.0, weight * values)
        return cls(total(mass(right)), total(mass(sure)), total(weight))

    def compute(self) -> np.ndarray:
        xp, right, confidence, weight = host(self.right, self.confidence, self.weight)
        return ratio(xp, xp.abs(right - confidence).sum(-1), weight.sum(-1))

    def reliability(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`(confidence, accuracy, weight)`, [..., bins] each: a reliability diagram. NaN for empty bins."""
        xp, right, confidence, weight = host(self.right, self.confidence, self.weight)
        return ratio(xp, confidence, weight), ratio(xp, right, weight), weight
