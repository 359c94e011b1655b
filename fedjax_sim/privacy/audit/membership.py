"""Membership inference: how well scores tell those who took part from those who did not."""

from typing import NamedTuple

import numpy as np

from fedjax_sim.core.arrays import Array
from fedjax_sim.core.errors import ArgumentError, check


class Rate(NamedTuple):
    """A true positive rate, with its Clopper-Pearson interval.

    Attributes:
        value: the share of members found.
        low, high: its 95% interval.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> found = fs.privacy.audit.membership(np.ones(10), np.zeros(10), rates=(0.1,))
        >>> print(f"{found.at[0.1].low:.3f}")
        0.692
    """

    value: float
    low: float
    high: float


class Membership(NamedTuple):
    """How well scores tell members from others.

    Attributes:
        auc: the probability that a member's score is above another's, ties counting half.
        at: false positive rate to the `Rate` of members found there.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> found = fs.privacy.audit.membership(np.array([3.0, 2.0, 2.0]), np.array([1.0, 2.0, 0.0]))
        >>> print(f"{found.auc:.4f}")
        0.8889
    """

    auc: float
    at: dict[float, Rate]


def membership(members: Array, others: Array, rates: tuple[float, ...] = (0.001, 0.01, 0.1)) -> Membership:
    """How well scores tell those who took part from those who did not, at low false alarm rates (Carlini et al. 2022).

    Who sees what: an attacker with the scores alone, such as the released model's negative losses on each example or
    client, or `lira`. Accuracy is never told: it hides what happens to the few who are found with certainty.

    Args:
        members: [n] scores of those who took part; higher means more like a member.
        others: [m] scores of those who did not.
        rates: false positive rates, each in (0, 1).

    Returns:
        The AUC, and the share of members found at each rate: the largest of any threshold whose false positives are no
        more than that share of the others.

    Raises:
        ArgumentError: no members or no others, a NaN score, a rate outside of (0, 1).

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> draw = np.random.default_rng(0)
        >>> found = fs.privacy.audit.membership(draw.normal(1, 1, 10_000), draw.normal(0, 1, 10_000))
        >>> abs(found.auc - 0.7602) < 0.01, found.at[0.01].low < 0.0924 < found.at[0.01].high
        (True, True)
    """
    inside, outside = _scores("members", members), _scores("others", others)
    outside = np.sort(outside)
    below = np.searchsorted(outside, inside, "left")
    ties = np.searchsorted(outside, inside, "right") - below
    auc = float((below + ties / 2).mean() / len(outside))
    at = {}
    for rate in rates:
        check(0 < rate < 1, "rates", rate, "must be in (0, 1).")
        allowed = int(np.floor(rate * len(outside) + 1e-9))
        threshold = outside[len(outside) - 1 - allowed]  # only scores above it count
        at[rate] = _rate(int((inside > threshold).sum()), len(inside))
    return Membership(auc, at)


def lira(score: Array, shadows: Array, included: Array) -> np.ndarray:
    r"""The likelihood ratio attack's scores (Carlini et al. 2022, Algorithm 1, online, with one variance each).

    .. math:: \log \mathcal{N}(s; \mu_{in}, \sigma^2_{in}) - \log \mathcal{N}(s; \mu_{out}, \sigma^2_{out})

    where the moments are those of shadow models that saw an example, and of those that did not. Losses are far from
    normal: give the logit of the right class's probability, :math:`\log p - \log (1 - p)`.

    Who sees what: an attacker with the released model, who can train models like it on data like its own.

    Args:
        score: [n] the released model's, of each example.
        shadows: [S, n] the shadow models'.
        included: [S, n] bool, whether a shadow model was trained on an example.

    Returns:
        [n] scores for `membership`.

    Raises:
        ArgumentError: an example that fewer than two shadow models saw, or did not see; scores of other examples, or
            NaN.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> shadows = np.array([[2.0, 0.0], [3.0, 1.0], [0.0, 3.0], [-1.0, 4.0]])
        >>> included = np.array([[True, False], [True, False], [False, True], [False, True]])
        >>> scores = fs.privacy.audit.lira(np.array([2.5, 0.5]), shadows, included)
        >>> bool(scores[0] > 0 > scores[1])
        True
    """
    shadows, included = np.asarray(shadows, np.float64), np.asarray(included, bool)
    score = _scores("score", score)
    fits = shadows.ndim == 2 and shadows.shape[1:] == score.shape
    check(fits, "shadows", shadows.shape, f"must be of shape [S, {len(score)}], of the examples that score has.")
    check(not np.isnan(shadows).any(), "shadows", "NaN", "is no score.")
    check(shadows.shape == included.shape, "included", included.shape, f"must be of shape {shadows.shape}, as shadows.")
    fewest = int(min(included.sum(0).min(), (~included).sum(0).min()))
    check(
        fewest >= 2, "included", fewest, "is how often some example was in, or out: must be at least 2, for a variance."
    )

    def log_density(mask: np.ndarray) -> np.ndarray:
        values = np.where(mask, shadows, np.nan)
        mean, std = np.nanmean(values, axis=0), np.maximum(np.nanstd(values, axis=0, ddof=1), 1e-12)
        return -np.log(std) - ((score - mean) / std) ** 2 / 2

    return log_density(included) - log_density(~included)


def most_under_gaussian(mu: float, rate: float) -> float:
    r"""The most that any attack finds of a Gaussian mechanism: :math:`\Phi(\Phi^{-1}(\alpha) + \mu)`.

    Dong et al. (2022), equation 6. An audit's interval should not lie above this line.

    Args:
        mu: of mu-GDP; the reciprocal of the noise multiplier, times the root of the rounds, where all take part.
        rate: the false positive rate, alpha.

    Example:
        >>> import fedjax_sim as fs
        >>> print(f"{fs.privacy.audit.most_under_gaussian(1.0, 0.01):.5f}")
        0.09236
    """
    from scipy.stats import norm

    check(0 < rate < 1, "rate", rate, "must be in (0, 1).")
    return float(norm.cdf(norm.ppf(rate) + mu))


def most_under_dp(epsilon: float, delta: float, rate: float) -> float:
    r"""The most that any attack finds under (epsilon, delta)-DP (Kairouz et al. 2015, Theorem 2.1).

    .. math:: \min(e^\epsilon \alpha + \delta, \; 1 - e^{-\epsilon} (1 - \delta - \alpha))

    Args:
        epsilon, delta: the claim.
        rate: the false positive rate, alpha.

    Example:
        >>> import fedjax_sim as fs
        >>> print(f"{fs.privacy.audit.most_under_dp(1.0, 1e-5, 0.01):.5f}")
        0.02719
    """
    check(0 < rate < 1, "rate", rate, "must be in (0, 1).")
    return float(min(np.exp(epsilon) * rate + delta, 1 - np.exp(-epsilon) * (1 - delta - rate), 1.0))


def _rate(found: int, of: int) -> Rate:
    """With its interval of 95% confidence (Clopper and Pearson 1934)."""
    from scipy.stats import beta

    low = 0.0 if found == 0 else float(beta.ppf(0.025, found, of - found + 1))
    high = 1.0 if found == of else float(beta.ppf(0.975, found + 1, of - found))
    return Rate(found / of, low, high)


def _scores(name: str, given: Array) -> np.ndarray:
    scores = np.asarray(given, np.float64)
    if scores.ndim != 1 or not len(scores):
        raise ArgumentError(f"{name} has shape {scores.shape}: must be scores, [n], of one at least.")
    check(not np.isnan(scores).any(), name, "NaN", "is no score.")
    return scores
