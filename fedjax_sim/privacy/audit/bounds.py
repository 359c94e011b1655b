"""Lower bounds on epsilon from canaries' scores, and what a claim is checked by."""

from typing import Literal

import numpy as np

from fedjax_sim.core.arrays import Array
from fedjax_sim.core.errors import FedSimError, check
from fedjax_sim.privacy.extra import needed

SMALLEST = 1e-300
"""What jax-privacy is told where delta is 0, which it does not take."""


def one_run(
    scores: Array,
    included: Array,
    delta: float,
    beta: float = 0.05,
    method: Literal["any", "gaussian"] = "any",
    guesses: int | None = None,
    seed: int = 0,
) -> float:
    r"""A lower bound on epsilon from the canaries of one run; true with probability at least 1 - beta.

    "any" (Steinke et al. 2023, Theorem 5.2) holds for every mechanism: of the r highest scores it guesses that they
    were in, is right v times, and rejects each epsilon for which

    .. math:: P[\mathrm{Bin}(r, e^\epsilon / (1 + e^\epsilon)) \ge v] + 2 m \delta \alpha \le \beta

    by jax-privacy. "gaussian" holds where the released numbers are a Gaussian mechanism in which all take part, and the
    canaries' scores are independent, as those of random directions in many dimensions are: a threshold is chosen on a
    random quarter of the canaries, and error rates at it, each at its Clopper-Pearson limit, give :math:`\mu \ge
    \Phi^{-1}(1 - FPR) - \Phi^{-1}(FNR)` on the others, which is much tighter.

    Who sees what: an auditor who put the canaries in, and sees what each round releases.

    Args:
        scores: [m] of the canaries; higher means more likely in.
        included: [m] bool, which were in, each by a coin of its own tossed before the run.
        delta: of the claim; 0 must be said.
        beta: in (0, 1), how often the bound may be wrong.
        method: "any" or "gaussian".
        guesses: r, fixed before the scores are seen; None tries all, and pays for it (Bonferroni). Of "any".
        seed: of the quarter of "gaussian".

    Returns:
        epsilon, 0 where nothing is rejected.

    Raises:
        ArgumentError: no canaries that were in or none that were not, delta outside of [0, 1), beta of (0, 1).

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> included = np.arange(1000) % 2 == 0
        >>> certain = included + np.linspace(0, 0.1, 1000)
        >>> print(f"{fs.privacy.audit.one_run(certain, included, delta=0.0, guesses=100):.5f}")
        3.49297
    """
    scores, included = np.asarray(scores, np.float64), np.asarray(included, bool)
    fits = scores.ndim == 1 and scores.shape == included.shape and not np.isnan(scores).any()
    check(fits, "scores", scores.shape, f"must be one number a canary, as included, {included.shape}, has.")
    check(
        0 < included.sum() < len(included), "included", int(included.sum()), "canaries were in: some must be, not all."
    )
    check(0 <= delta < 1, "delta", delta, "must be in [0, 1).")
    check(0 < beta < 1, "beta", beta, "must be in (0, 1).")
    check(method in ("any", "gaussian"), "method", method, 'must be "any" or "gaussian".')
    if method == "gaussian":
        check(delta > 0, "delta", delta, "must be above 0: no Gaussian mechanism has an epsilon at 0.")
        return _gaussian(scores, included, delta, beta, seed)
    auditing = needed("jax_privacy.auditing", "one_run")
    strategy = auditing.Bonferroni()
    if guesses is not None:
        check(1 <= guesses <= len(scores), "guesses", guesses, f"must be from 1 to the {len(scores)} canaries.")
        strategy = auditing.Explicit(float(np.sort(scores)[-guesses]))
    auditor = auditing.CanaryScoreAuditor(scores[included], scores[~included])
    return float(auditor.epsilon_one_run(beta, max(delta, SMALLEST), threshold_strategy=strategy))


def _gaussian(scores: np.ndarray, included: np.ndarray, delta: float, beta: float, seed: int) -> float:
    """By a threshold between the means of a quarter of the canaries, at the rest."""
    accounting = needed("dp_accounting", "one_run")
    first = np.random.default_rng(seed).permutation(len(scores)) % 4 == 0
    sides = [(first & side) for side in (included, ~included)]
    if not all(side.any() and (side < whole).any() for side, whole in zip(sides, (included, ~included), strict=True)):
        return 0.0  # too few to choose a threshold by, and to measure at it
    threshold = float(np.mean([scores[side].mean() for side in sides]))
    mu = _separation(scores[~first], included[~first], threshold, beta / 2)
    return float(accounting.get_epsilon_gaussian(1 / mu, delta)) if mu > 0 else 0.0


def _separation(scores: np.ndarray, included: np.ndarray, threshold: float, beta: float) -> float:
    """mu by the upper limits of both error rates, each true with probability 1 - beta."""
    from scipy.stats import beta as beta_distribution
    from scipy.stats import norm

    def limit(wrong: int, of: int) -> float:
        return 1.0 if wrong == of else float(beta_distribution.ppf(1 - beta, wrong + 1, of - wrong))

    alarms = limit(int((scores[~included] >= threshold).sum()), int((~included).sum()))
    misses = limit(int((scores[included] < threshold).sum()), int(included.sum()))
    return float(norm.isf(alarms) - norm.ppf(misses))


def check_claim(lower: float, upper: float) -> None:
    """An audit's lower bound beside what is claimed: raises where the claim cannot be true.

    Args:
        lower: an audit's, of `one_run`.
        upper: the claim, of `sim.epsilon`, at the same delta.

    Raises:
        FedSimError: the lower bound is above the claim: noise, clipping or accounting is wrong, unless by chance.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.privacy.audit.check_claim(lower=1.2, upper=4.4)
    """
    check(not np.isnan(lower) and not np.isnan(upper), "lower, upper", (lower, upper), "must be numbers.")
    if lower > upper:
        raise FedSimError(
            f"an audit shows epsilon >= {lower:.4g}, and {upper:.4g} is claimed: noise, clipping or accounting is "
            "wrong; or the audit, by chance, or as its canaries were not tossed for before the run."
        )
