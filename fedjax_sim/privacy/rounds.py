"""From a chain's noise and a sampler's event to what the rounds release: which mechanisms, how often, how amplified.

A mechanism is what `fs.aggregate.Mechanism` says, an event what `fs.sampler.SamplingEvent` says.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.core.errors import ArgumentError, check
from fedjax_sim.privacy import curves
from fedjax_sim.privacy.extra import needed

ADD_REMOVE, REPLACE_ONE, ZERO_OUT, LOCAL = "add-or-remove-one", "replace-one", "zero-out", "local"
"""Neighbours: one client more or less; one client's data replaced; its parts replaced by zeros; its message's value."""

DISCRETE = ("discrete_gaussian", "skellam")
CORRELATED = ("tree", "banded")


class Release(NamedTuple):
    """Equal releases, one after another.

    Attributes:
        times: how many.
        text: one of them, in words.
        event: one of them as a `dp_accounting.DpEvent`, or None where that package has none.
        curve: else the Rényi curve of one of them, [255] at `curves.ORDERS`.
        pld: `() -> PrivacyLossDistribution` of one of them, where the accountant does not make it from the event.
    """

    times: int
    text: str
    event: Any = None
    curve: np.ndarray | None = None
    pld: Callable[[], Any] | None = None


def check_sampler(mechanisms: Sequence[Any], sampling: Any, sampler: str) -> None:
    """Raise `ArgumentError` where noise counts on something that the sampler does not enforce.

    Args:
        mechanisms: the noise of a chain.
        sampling: the sampler's event, or None.
        sampler: its name, for the message.
    """
    if sampling is None and any(m.where != "local" for m in mechanisms):
        raise ArgumentError(
            f"{sampler} has no accounting event, and {_names(mechanisms)} is noise for privacy, which could not be "
            "accounted: use fs.sampler.poisson, fs.sampler.uniform or fs.sampler.min_separation."
        )
    for m in mechanisms:
        if m.kind in CORRELATED:
            needs = int((m.details or {})["separation"])
            if sampling is None or sampling.kind != "min_separation" or sampling.separation < needs:
                raise ArgumentError(
                    f"{m.transform or m.kind} counts on at least {needs} rounds between two participations of a "
                    f"client, which {sampler} does not enforce: use fs.sampler.min_separation(cohort_size, "
                    f"separation={needs})."
                )
            if len(mechanisms) > 1:
                raise ArgumentError(f"{_names(mechanisms)}: correlated noise is accounted alone; leave out the rest.")


def check_accountable(mechanisms: Sequence[Any], sampling: Any, sampler: str = "the sampler") -> None:
    """Raise `ArgumentError` where no accountant could say what the noise protects. Arguments as in `check_sampler`."""
    if not any(m.of == "value" for m in mechanisms):
        raise ArgumentError(
            "there is no noise on what is sent: no privacy is claimed. Add fs.aggregate.gaussian_noise."
        )
    for m in mechanisms:
        check(m.multiplier > 0, f"{m.transform or m.kind}'s multiplier", m.multiplier, "must be positive.")
    check_sampler(mechanisms, sampling, sampler)
    if any(m.where == "local" for m in mechanisms):
        if len(mechanisms) > 1:
            raise ArgumentError(f"{_names(mechanisms)}: local noise is accounted alone; leave out the rest.")
        return
    check(
        sampling.kind in ("poisson", "without_replacement", "min_separation"),
        "event.kind",
        sampling.kind,
        'must be "poisson", "without_replacement" or "min_separation".',
    )
    for m in mechanisms:
        if m.kind not in ("gaussian", *DISCRETE, *CORRELATED):
            raise ArgumentError(f"kind={m.kind!r} ({m.transform}): noise of this kind, {m.where}, is not accounted.")


def releases(
    mechanisms: Sequence[Any],
    sampling: Any,
    rounds: int,
    accountant: str,
    adjacency: str | None = None,
    contributed: Mapping[int, int] | None = None,
) -> tuple[tuple[Release, ...], str]:
    """`(releases, adjacency)` of that many rounds.

    Args:
        mechanisms: the noise of a chain.
        sampling: the sampler's event.
        rounds: how many.
        accountant: "pld" or "rdp": under replace-one the first doubles the sensitivity by itself.
        adjacency: None for the one that goes with the sampler.
        contributed: rounds by how many clients contributed, for distributed noise; None for the expected number.
    """
    if any(m.where == "local" for m in mechanisms):
        _only(adjacency, (LOCAL,), "local noise")
        return (_local(mechanisms[0], rounds, accountant),), LOCAL
    if sampling.kind == "min_separation":
        _only(adjacency, (ZERO_OUT,), "a minimum separation")
        return (_separated(mechanisms, sampling, rounds),), ZERO_OUT
    if any(m.where == "distributed" for m in mechanisms):
        _only(adjacency, (REPLACE_ONE,), "distributed noise")
        if contributed is None:
            contributed = {_expected(sampling): rounds}
        return tuple(_distributed(mechanisms, sampling, n, k) for n, k in contributed.items() if n and k), REPLACE_ONE
    z = _joint(mechanisms)
    if sampling.kind == "poisson":
        _only(adjacency, (ADD_REMOVE, REPLACE_ONE), "Poisson sampling")
        if adjacency == REPLACE_ONE and accountant == "rdp":
            raise ArgumentError(
                'accountant="rdp": no Rényi curve of Poisson sampling is known under replace-one; use "pld".'
            )
        return (_poisson(z, sampling.probability, rounds),), adjacency or ADD_REMOVE
    _only(adjacency, (REPLACE_ONE,), "a fixed number of clients")
    return (_fixed_size(z, sampling, rounds),), REPLACE_ONE


def _poisson(z: float, probability: float, rounds: int) -> Release:
    dp = needed("dp_accounting", "accounting of privacy")
    event = dp.PoissonSampledDpEvent(probability, dp.GaussianDpEvent(z))
    return Release(rounds, f"Poisson({probability:g}) of Gaussian({z:.6g})", event)


def _fixed_size(z: float, sampling: Any, rounds: int) -> Release:
    dp = needed("dp_accounting", "accounting of privacy")
    size, population = sampling.cohort_size, sampling.population
    # A clipped sum moves by 2C when a client is replaced, and dp-accounting's Rényi event takes 1 for that.
    event = dp.SampledWithoutReplacementDpEvent(population, size, dp.GaussianDpEvent(z / 2))
    text = f"{size} of {population} without replacement, of Gaussian({z:.6g}) for sums that move by 2"
    return Release(rounds, text, event, pld=lambda: curves.without_replacement_pld(z, size / population))


def _local(m: Any, rounds: int, accountant: str) -> Release:
    dp = needed("dp_accounting", "accounting of privacy")
    # A message's value moves by 2C; half the multiplier says so to any accountant.
    kinds = {"gaussian": dp.GaussianDpEvent, "laplace": dp.LaplaceDpEvent}
    if m.kind not in kinds:
        raise ArgumentError(f"kind={m.kind!r} ({m.transform}): local noise of this kind is not accounted.")
    text = f"{m.kind.capitalize()}({m.multiplier:.6g}) on one client's message, which moves by 2, in each round"
    return Release(rounds, text, kinds[m.kind](m.multiplier / 2))


def _separated(mechanisms: Sequence[Any], sampling: Any, rounds: int) -> Release:
    """A client takes part once in any `separation` rounds; no amplification is claimed."""
    dp = needed("dp_accounting", "accounting of privacy")
    times = -(-rounds // sampling.separation)
    (m, *more) = mechanisms
    if m.kind == "tree":
        # A client is in one leaf of a tree, and in as many nodes as the tree has levels.
        separation = int(m.details["separation"])
        event = dp.SingleEpochTreeAggregationDpEvent(m.multiplier, min(separation, rounds))
        return Release(times, f"a tree of {separation} rounds with Gaussian({m.multiplier:.6g}) nodes", event)
    if m.kind == "banded":
        # The multiplier is over the sensitivity of the rounds that were planned; these are other ones.
        planned, sensitivity = int(m.details["rounds"]), m.details["sensitivity"]
        z = m.multiplier * sensitivity(planned) / sensitivity(rounds) if rounds else math.inf
        text = f"banded noise over {rounds} rounds ({planned} planned) as one Gaussian({z:.6g})"
        return Release(1, text, dp.GaussianDpEvent(z))
    if any(m.kind in DISCRETE for m in (m, *more)):
        curve = sum(_curve(m, 1.0, sampling.cohort_size) for m in mechanisms)
        return Release(times, f"{_names(mechanisms)}, at the expected number of clients", curve=np.asarray(curve))
    z = _joint(mechanisms)
    return Release(times, f"Gaussian({z:.6g})", dp.GaussianDpEvent(z))


def _distributed(mechanisms: Sequence[Any], sampling: Any, clients: int, rounds: int) -> Release:
    """Given how many clients contributed, who they were is a uniform choice: of a fixed number, also under Poisson."""
    fraction = min(clients / sampling.population, 1.0)
    base = sum(_curve(m, 2.0, clients) for m in mechanisms)
    text = f"{clients} of {sampling.population} without replacement, of {_names(mechanisms)} for sums that move by 2"
    return Release(rounds, text, curve=curves.without_replacement(np.asarray(base), fraction))


def _curve(m: Any, distance: float, clients: int) -> np.ndarray:
    """The Rényi curve of one mechanism when that many clients add their share."""
    if m.kind == "gaussian":
        return curves.gaussian(curves.ORDERS, m.multiplier, distance)
    details = m.details or {}
    missing = [name for name in ("norm", "dimension", "shares") if name not in details]
    if missing:
        raise ArgumentError(f"{m.kind}'s details lack {missing}: ask the simulation, sim.epsilon, which knows them.")
    norm, dimension = float(details["norm"]), int(details["dimension"])
    # The multiplier is that of the expected cohort's shares together; those who do not contribute add none.
    sigma = m.multiplier * norm * math.sqrt(clients / details["shares"])
    if m.kind == "skellam":
        return curves.skellam(curves.ORDERS, sigma**2, distance * norm, dimension)
    return curves.discrete_gaussian(curves.ORDERS, sigma, distance * norm, dimension, clients)


def _joint(mechanisms: Sequence[Any]) -> float:
    """Gaussians on the same clients, released together, are one: their inverse squares add up."""
    return sum(m.multiplier**-2 for m in mechanisms) ** -0.5


def _expected(sampling: Any) -> int:
    """Clients of a round, rounded down."""
    if sampling.kind == "poisson":
        return max(int(sampling.population * sampling.probability), 1)
    return int(sampling.cohort_size)


def _only(adjacency: str | None, known: tuple[str, ...], what: str) -> None:
    if adjacency is not None and adjacency not in known:
        raise ArgumentError(f"adjacency={adjacency!r}: {what} is accounted under {' or '.join(map(repr, known))}.")


def _names(mechanisms: Sequence[Any]) -> str:
    return " + ".join(m.transform or f"{m.kind}({m.multiplier:g})" for m in mechanisms)
