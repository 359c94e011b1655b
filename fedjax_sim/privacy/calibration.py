"""How much noise a target epsilon needs, and how it is split between a sum and a statistic."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_sim.core.errors import ArgumentError, check, check_count, check_positive
from fedjax_sim.privacy.accounting import check_delta, epsilon
from fedjax_sim.privacy.extra import needed
from fedjax_sim.privacy.rounds import Mechanism


class Noise(NamedTuple):
    """The least that accounting reads of a mechanism."""

    kind: str
    multiplier: float
    where: str = "central"
    of: str = "value"
    transform: str = ""
    details: Mapping[str, object] | None = None


def calibrate(
    *,
    target_epsilon: float,
    delta: float,
    rounds: int,
    sampler: Any,
    population: int | None = None,
    mechanisms: Callable[[float], Sequence[Mechanism]] | None = None,
    accountant: str | None = None,
    adjacency: str | None = None,
    tolerance: float = 1e-3,
) -> float:
    """The smallest noise multiplier whose rounds cost no more than an epsilon.

    Args:
        target_epsilon: what the rounds may cost.
        delta, rounds, accountant, adjacency: as in `fs.privacy.epsilon`.
        sampler: from `fs.sampler`, together with `population`; or a `fs.sampler.SamplingEvent`.
        population: number of clients.
        mechanisms: `multiplier -> the noise`, where it is not one Gaussian on the sum; for a chain
            `lambda z: chain_of(z).facts.noise`.
        tolerance: relative, of the multiplier. The result errs to the private side.

    Raises:
        ArgumentError: parts that do not go together; an epsilon out of reach.

    Example:
        >>> import fedjax_sim as fs
        >>> z = fs.privacy.calibrate(
        ...     target_epsilon=2.0, delta=1e-5, rounds=100, sampler=fs.sampler.poisson(0.02), population=5000
        ... )
        >>> print(f"{z:.2f}")
        0.88
    """
    check_positive("target_epsilon", target_epsilon)
    check_positive("tolerance", tolerance)
    check_count("rounds", rounds)
    check_delta(delta)
    event = sampler
    said = getattr(sampler, "population", population)
    check(population in (None, said), "population", population, f"the event has {said} clients; leave it out.")
    if hasattr(sampler, "event"):
        local = mechanisms is not None and all(m.where == "local" for m in mechanisms(1.0))
        if sampler.event is None and not local:
            raise ArgumentError(
                f"{sampler.name} has no accounting event: use fs.sampler.poisson, fs.sampler.uniform or "
                "fs.sampler.min_separation."
            )
        check_count("population", population)
        event = None if sampler.event is None else sampler.event(population)
    brent = needed("scipy.optimize", "calibration").brentq
    made = mechanisms or (lambda z: (Noise("gaussian", z),))

    def above(log_z: float, by: str | None) -> float:
        spent = epsilon(made(math.exp(log_z)), event, rounds, delta, accountant=by, adjacency=adjacency)
        return math.log(max(spent.epsilon, 1e-12) / target_epsilon)

    # Rényi accounting is cheap and never below PLD where both exist: it brackets the multiplier.
    cheap = "rdp" if adjacency is None else accountant
    low, high = math.log(0.5), math.log(1.0)
    while above(high, cheap) > 0:
        low, high = high, high + math.log(2)
        if high > math.log(1e6):
            raise ArgumentError(f"target_epsilon={target_epsilon}: out of reach even with a multiplier of 1e6.")
    while above(low, cheap) <= 0:
        low, high = low - math.log(2), low
        if low < math.log(1e-3):
            return math.exp(high)
    if accountant != cheap:
        high = low = brent(lambda log_z: above(log_z, cheap), low, high, xtol=tolerance)
        while above(high, accountant) > 0:
            low, high = high, high + 0.1
        while low == high or above(low, accountant) <= 0:
            low, high = low - 0.3, low
    root = brent(lambda log_z: above(log_z, accountant), low, high, xtol=tolerance / 4)
    while above(root, accountant) > 0:
        root += tolerance / 4
    return math.exp(root)


def value_multiplier(multiplier: float, statistic_multiplier: float) -> float:
    r"""The noise on the sum of adaptively clipped updates that leaves room for the noisy bit (Andrew et al. 2021).

    Both together cost what one Gaussian of `multiplier` costs:

    .. math:: z_\Delta = \left(z^{-2} - z_b^{-2}\right)^{-1/2}

    The sum of the bits has noise of standard deviation :math:`\sigma_b` and, as the bits are shifted by 1/2,
    sensitivity 1/2: :math:`z_b = 2\sigma_b`, with the paper's default :math:`\sigma_b = m/20` for m clients a round.

    Args:
        multiplier: z, of both together.
        statistic_multiplier: z_b, over the bit's sensitivity; larger than z.

    Raises:
        ArgumentError: the bit alone costs more than both may.

    Example:
        >>> import fedjax_sim as fs
        >>> print(f"{fs.privacy.value_multiplier(1.0, 2 * 100 / 20):.4f}")
        1.0050
    """
    check_positive("multiplier", multiplier)
    check_positive("statistic_multiplier", statistic_multiplier)
    check(
        statistic_multiplier > multiplier,
        "statistic_multiplier",
        statistic_multiplier,
        f"must be above multiplier={multiplier}, or nothing is left for the sum; add more noise to the bit.",
    )
    return (multiplier**-2 - statistic_multiplier**-2) ** -0.5
