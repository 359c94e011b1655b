r"""Privacy curves that dp-accounting does not have.

Rényi curves of the discrete mechanisms, amplified by sampling a fixed number of clients, at whole orders; and the
privacy loss distribution of a Gaussian under such sampling.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedjax_sim.privacy.extra import needed

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

ORDERS = np.arange(2, 257)
"""Whole orders at which the curves are computed."""


def gaussian(orders: np.ndarray, multiplier: float, distance: float = 1.0) -> np.ndarray:
    r"""Rényi divergence :math:`\alpha \Delta^2 / (2 z^2)` of two Gaussians (Mironov 2017).

    Args:
        orders: [n] α.
        multiplier: z, the standard deviation.
        distance: Δ between the means.
    """
    return orders * (distance / multiplier) ** 2 / 2


def discrete_gaussian(orders: np.ndarray, sigma: float, norm: float, dimension: int, shares: int) -> np.ndarray:
    r"""Rényi curve of a sum that holds `shares` discrete Gaussians (Kairouz, Liu and Steinke 2021, theorem 1).

    A sum of discrete Gaussians is not quite one; with n shares of variance :math:`\sigma^2/n` the curve is
    :math:`\alpha\varepsilon^2/2` for

    .. math:: \varepsilon = \min\left(\sqrt{\frac{\Delta^2}{\sigma^2} + \frac{\tau d}{2}},
        \frac{\Delta}{\sigma} + \tau\sqrt d\right), \quad
        \tau = 10 \sum_{k=1}^{n-1} e^{-2\pi^2 \frac{\sigma^2}{n} \frac{k}{k+1}}.

    Args:
        orders: [n] α.
        sigma: standard deviation of the sum's noise, in integer units.
        norm: Δ, by how much the sum moves, in integer units.
        dimension: d, the numbers sent, padding included.
        shares: n, clients that added their share.
    """
    share = sigma**2 / shares
    k = np.arange(1, min(shares, 10_000))
    terms = np.exp(-2 * math.pi**2 * share * k / (k + 1))
    rest = max(shares - 1 - len(k), 0) * (terms[-1] if len(k) else 0.0)
    tau = 10 * (terms.sum() + rest)
    ratio = norm / sigma
    epsilon = min(math.sqrt(ratio**2 + tau * dimension / 2), ratio + tau * math.sqrt(dimension))
    return orders * epsilon**2 / 2


def skellam(orders: np.ndarray, variance: float, norm: float, dimension: int) -> np.ndarray:
    r"""Rényi curve of Skellam noise (Agarwal, Kairouz and Liu 2021, corollary 3.6), at whole orders.

    .. math:: \varepsilon(\alpha) = \frac{\alpha \Delta_2^2}{2\mu} + \min\left(
        \frac{(2\alpha - 1)\Delta_2^2 + 6\Delta_1}{4\mu^2}, \frac{3\Delta_1}{2\mu}\right)

    with :math:`\Delta_1 \le \min(\sqrt d \Delta_2, \Delta_2^2)`, as the messages are integers.

    Args:
        orders: [n] whole α.
        variance: μ, of the sum's noise, in integer units; sums of Skellam noise are Skellam.
        norm: Δ2, by how much the sum moves, in integer units.
        dimension: d.
    """
    l1 = min(math.sqrt(dimension) * norm, norm**2)
    extra = np.minimum(((2 * orders - 1) * norm**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
    return orders * norm**2 / (2 * variance) + extra


def without_replacement(base: np.ndarray, fraction: float) -> np.ndarray:
    r"""Amplification by a fixed number of clients (Wang, Balle and Kasiviswanathan 2019, theorem 9).

    .. math:: \varepsilon'(\alpha) \le \frac{1}{\alpha - 1} \log\left(1 + \gamma^2 \binom{\alpha}{2}
        \min\{4(e^{\varepsilon(2)} - 1), 2e^{\varepsilon(2)}\}
        + \sum_{j=3}^{\alpha} 2 \gamma^j \binom{\alpha}{j} e^{(j-1)\varepsilon(j)}\right)

    Args:
        base: [255] the curve under replace-one at `ORDERS`.
        fraction: γ, drawn clients over the population.

    Returns:
        [255] at `ORDERS`; never above `base`.
    """
    if fraction >= 1:
        return base
    second = min(math.log(4) + _log_expm1(base[0]), math.log(2) + base[0])
    terms = math.log(2) + ORDERS * math.log(fraction) + (ORDERS - 1) * base
    terms[0] = 2 * math.log(fraction) + second
    total = np.logaddexp.reduce(_log_binomials() + terms, axis=1)  # of order and j
    return np.minimum(np.logaddexp(0.0, total) / (ORDERS - 1), base)


def mixed(log_masses: Sequence[float], of: Sequence[np.ndarray]) -> np.ndarray:
    r"""The curve where chance, which does not depend on the data, says which curve holds, and is told.

    .. math:: \varepsilon(\alpha) = \frac{1}{\alpha - 1} \log \sum_i p_i e^{(\alpha - 1) \varepsilon_i(\alpha)}

    Args:
        log_masses: [n] logarithms of p, which may sum to more than 1.
        of: [n] curves, each [255] at `ORDERS`.
    """
    terms = np.asarray(log_masses)[:, None] + (ORDERS - 1)[None] * np.stack(of)
    return np.maximum(np.logaddexp.reduce(terms, axis=0), 0.0) / (ORDERS - 1)


def binomial_parts(population: int, probability: float, aside: float, parts: int = 48) -> list[tuple[int, int, float]]:
    """How many clients Poisson sampling draws, but for rare draws: `(fewest, most, log of the chance)`.

    Args:
        population: K.
        probability: q.
        aside: the chance of the draws that are left out, at both ends.
        parts: at most; 0, if it is not left out, is one of its own besides.
    """
    law = needed("scipy.stats", "accounting of Poisson sampling").binom(population, probability)
    low, high = int(law.ppf(aside / 2)), int(law.isf(aside / 2))
    while low > 0 and law.cdf(low - 1) > aside / 2:
        low -= 1
    while high < population and law.sf(high) > aside / 2:
        high += 1
    masses = law.pmf(np.arange(low, high + 1))
    inner = np.linspace(max(low, 1), high + 1, min(parts, high + 1 - max(low, 1)) + 1).astype(int)
    edges = np.unique(np.concatenate([[low], inner])).tolist()
    found = [(a, b - 1, float(masses[a - low : b - low].sum())) for a, b in itertools.pairwise(edges)]
    return [(fewest, most, math.log(mass)) for fewest, most, mass in found if mass > 0]


def without_replacement_pld(multiplier: float, fraction: float, interval: float = 1e-4) -> "PrivacyLossDistribution":
    r"""Privacy loss distribution of a Gaussian on a fixed number of clients, under replace-one.

    A client that is not drawn leaves its place to another, so that any two of the three sums in question differ by up
    to 2C. By the advanced joint convexity of the hockey-stick divergence (Balle, Barthe and Gaboardi 2018), for
    :math:`\gamma = 1 + (\gamma' - 1)/q \ge 1`,

    .. math:: H_{\gamma'}(P \Vert Q) \le q\, H_\gamma(N(2, z^2) \Vert N(0, z^2)),

    in both directions. The distribution returned has this curve on both sides of 0 (below it by
    :math:`H_\gamma(P \Vert Q) = 1 - \gamma + \gamma H_{1/\gamma}(Q \Vert P)`), so that it stays a bound when composed:
    Poisson sampling's add-or-remove pair at half the multiplier, which other packages take, does not bound it there.

    Args:
        multiplier: z, over the L2 bound C of one client.
        fraction: q, drawn clients over the population.
        interval: between the losses.
    """
    pmf = needed("dp_accounting.pld.pld_pmf", "accounting of a fixed number of clients")
    distribution = needed("dp_accounting.pld.privacy_loss_distribution", "accounting of a fixed number of clients")
    special = needed("scipy.special", "accounting of a fixed number of clients")
    mu = 2 / multiplier

    def delta(loss: np.ndarray) -> np.ndarray:
        before = np.log1p(np.expm1(loss) / fraction)
        first = special.log_ndtr(mu / 2 - before / mu)
        second = before + special.log_ndtr(-mu / 2 - before / mu)
        return fraction * np.exp(first) * -np.expm1(np.minimum(second - first, 0))

    # Beyond this loss, q times the Gaussian's mass is below 1e-16.
    largest = math.log1p(fraction * math.expm1(min(mu**2 / 2 + 8.3 * mu, 700.0)))
    steps = max(math.ceil(largest / interval), 1)
    losses = np.arange(steps + 1) * interval
    above = np.minimum.accumulate(np.clip(delta(losses), 0, 1))
    below = -np.expm1(-losses[1:]) + np.exp(-losses[1:]) * above[1:]
    deltas = np.concatenate([below[::-1], above])
    made = pmf.create_pmf_pessimistic_connect_dots_fixed_gap(interval, -steps, steps, deltas)
    return distribution.PrivacyLossDistribution(made)


@functools.cache
def _log_binomials() -> np.ndarray:
    """[255, 255] log of alpha over j, for orders and for j of 2 and more; minus infinity for j over alpha."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, ORDERS[-1] + 1)))])
    order, j = ORDERS[:, None], ORDERS[None]
    binomial = log_factorial[order] - log_factorial[j] - log_factorial[np.maximum(order - j, 0)]
    return np.where(j <= order, binomial, -np.inf)


def _log_expm1(x: float) -> float:
    return x + math.log(-math.expm1(-x))
