"""Rankings: areas under ROC and precision-recall curves, by histograms of scores, with a bound of what these cost."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.arrays import Array, Scalar
from fedjax_sim.core.errors import check, check_count
from fedjax_sim.core.metrics.base import Metric
from fedjax_sim.core.metrics.numbers import counted, flat, host, of_classes, ratio
from fedjax_sim.core.pytree import pytree

R = TypeVar("R", bound="_Ranking")
BINS, LOW, HIGH = 1024, -16.0, 16.0  # of log-odds; the outer bins are open


@pytree
class _Ranking(Metric):
    """Weights of positives and of negatives by their score, [..., bins] each, from the lowest score to the highest.

    Attributes:
        positive, negative: [..., bins].
    """

    positive: Scalar
    negative: Scalar

    @classmethod
    def of(
        cls: type[R], logits: Array, labels: Array, weight: Array | None = None, label: int = 1, bins: int = BINS
    ) -> R:
        """One class against the others: of logits [..., C], labels [...] and weights [...].

        The score is the log-odds of the class `label`, in bins of equal width over -16..16. A negative label does not
        count; one that is no class, and logits with a NaN, make the value NaN.
        """
        logits, labels, weight = of_classes(logits, labels, weight)
        classes = logits.shape[-1]
        check(0 <= label < classes, "label", label, f"must be one of the {classes} classes, 0..{classes - 1}.")
        check(classes > 1, "logits", f"[..., {classes}]", "must have two classes at least; of_scores takes scores.")
        others = jnp.where(jnp.arange(classes)[None] == label, -jnp.inf, logits)
        odds = logits[:, label] - jax.nn.logsumexp(others, axis=-1)
        odds = jnp.where(jnp.isnan(weight), 0.0, odds)
        return cls.of_scores(odds, labels == label, weight, bins)

    @classmethod
    def of_scores(
        cls: type[R],
        scores: Array,
        positive: Array,
        weight: Array | None = None,
        bins: int = BINS,
        low: float = LOW,
        high: float = HIGH,
    ) -> R:
        """Of scores [...], truths [...] (0 or 1) and weights [...]; bins are of equal width over low..high."""
        check_count("bins", bins)
        check(low < high, "low", low, f"must be below high={high}.")
        scores, positive, weight = flat("scores", scores, positive, weight, axes=0)
        weight = counted(weight, ~jnp.isnan(scores))
        place = jnp.where(jnp.isnan(scores), 0.0, (scores - low) * (bins / (high - low)))
        at = jnp.clip(place, 0, bins - 1).astype(jnp.int32)
        zeros, true = jnp.zeros(bins), positive.astype(jnp.float32)
        return cls(zeros.at[at].add(weight * true), zeros.at[at].add(weight * (1 - true)))

    def numbers(self) -> tuple[Any, Any, Any, Any, Any]:
        """`(numpy or jax.numpy, positive, negative, sum of positives, sum of negatives)`."""
        xp, positive, negative = host(self.positive, self.negative)
        return xp, positive, negative, positive.sum(-1), negative.sum(-1)


@pytree
class AUC(_Ranking):
    r"""The area under the ROC curve: the probability that a positive scores over a negative, a tie counting half.

    Scores in a bin are taken for ties: with :math:`p_b` positives and :math:`n_b` negatives in bin b, of P and N,

    .. math:: \frac{1}{PN} \sum_b p_b \Big( \sum_{a < b} n_a + \tfrac{1}{2} n_b \Big),

    which is off the area of the scores themselves by :math:`\sum_b p_b n_b / (2PN)` at most: `bound`. So sums over
    clients give the pooled area, in 8 bytes a bin. NaN where there are only positives, or none.

    Attributes:
        positive, negative: [..., bins] weights, from the lowest score to the highest.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> scores, truths = jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1])
        >>> area = fs.metrics.AUC.of_scores(scores, truths, low=0.0, high=1.0)
        >>> print(area.compute(), area.bound())
        0.75 0.0
    """

    def compute(self) -> np.ndarray:
        xp, positive, negative, P, N = self.numbers()
        below = xp.cumsum(negative, -1) - negative / 2
        return ratio(xp, (positive * below).sum(-1), P * N)

    def bound(self) -> np.ndarray:
        """[...], by how much the value can be off that of the scores without bins."""
        xp, positive, negative, P, N = self.numbers()
        return ratio(xp, (positive * negative).sum(-1), 2 * P * N)


@pytree
class AveragePrecision(_Ranking):
    r"""The average precision: the mean over positives of the precision among all that score as high or higher.

    That is :math:`\sum_b (p_b / P) \, T_b / (T_b + F_b)`, with T and F the positives and negatives in bin b and the
    bins above, the area under the precision-recall curve in steps, as scikit-learn has it, of the scores in bins.
    `bound` holds the best and the worst order within bins. NaN without positives.

    Attributes:
        positive, negative: [..., bins] weights, from the lowest score to the highest.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> scores, truths = jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1])
        >>> area = fs.metrics.AveragePrecision.of_scores(scores, truths, low=0.0, high=1.0)
        >>> print(area.compute().round(4))
        0.8333
    """

    def compute(self) -> np.ndarray:
        xp, positive, T, F, P = self._falling()
        return ratio(xp, (positive * ratio(xp, T, xp.where(positive == 0, 1, T + F))).sum(-1), P)

    def bound(self) -> np.ndarray:
        """[...], by how much the value can be off that of the scores without bins.

        A positive of bin b has a precision of :math:`T_b / (T_b + F_{b+1})` at most, as if its bin held no negative;
        and together a bin's positives have :math:`\\int_0^{p_b} (T_{b+1} + x) / (T_{b+1} + x + F_b) \\, dx` at least,
        as if they came after all of its negatives.
        """
        xp, positive, T, F, P = self._falling()
        negative = xp.flip(host(self.negative)[1], -1)
        most = positive * ratio(xp, T, xp.where(positive == 0, 1, T + F - negative))
        before = T - positive + F
        least = positive - xp.where(F == 0, 0.0, F * xp.log1p(positive / xp.where(before == 0, 1, before)))
        value = self.compute()
        most, least = (ratio(xp, xp.where(positive == 0, 0.0, each).sum(-1), P) for each in (most, least))
        return xp.maximum(most - value, value - least)

    def _falling(self) -> tuple[Any, Any, Any, Any, Any]:
        """From the highest bin to the lowest: positives, and positives and negatives so far; the sum of positives."""
        xp, positive, negative, P, _ = self.numbers()
        positive, negative = xp.flip(positive, -1), xp.flip(negative, -1)
        return xp, positive, xp.cumsum(positive, -1), xp.cumsum(negative, -1), P
