"""From a chain's noise and a sampler's event to what the rounds release: which mechanisms, how often, how amplified.

A mechanism is what `fs.aggregate.Mechanism` says, an event what `fs.sampler.SamplingEvent` says.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from fedjax_sim.core.errors import ArgumentError, check
from fedjax_sim.privacy import curves
from fedjax_sim.privacy.extra import needed

if TYPE_CHECKING:
    from dp_accounting import DpEvent
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

ADD_REMOVE, REPLACE_ONE, ZERO_OUT, LOCAL = "add-or-remove-one", "replace-one", "zero-out", "local"
"""Neighbours: one client more or less; one client's data replaced; its parts replaced by zeros; its message's value."""

DISCRETE = ("discrete_gaussian", "skellam")
CORRELATED = ("tree", "banded")

Event = Any
"""An `fs.sampler.SamplingEvent` or `SeparationEvent`, or None for a sampler without one."""


class Mechanism(Protocol):
    """What is read of a noise: an `fs.aggregate.Mechanism`, resolved, or `fs.privacy.calibrate`'s own."""

    @property
    def kind(self) -> str: ...
    @property
    def multiplier(self) -> Any: ...
    @property
    def where(self) -> str: ...
    @property
    def of(self) -> str: ...
    @property
    def transform(self) -> str: ...
    @property
    def details(self) -> Any: ...


class Rounds(NamedTuple):
    """Equal rounds, one after another: an entry of a ledger, or a plan.

    Attributes:
        mechanisms: the noise of each; () where they were released without.
        sampling: the sampler's event, or None.
        rounds: how many.
        sampler: who was drawn, in words.
        counts: rounds by (clients drawn, clients that added their share of noise), where noise is shared out; None for
            a plan: whoever the sampler may draw.
    """

    mechanisms: tuple[Mechanism, ...]
    sampling: Event
    rounds: int
    sampler: str = "the sampler"
    counts: Mapping[tuple[int, int], int] | None = None


class Release(NamedTuple):
    """Equal releases, one after another.

    Attributes:
        times: how many.
        text: one of them, in words.
        event: one of them as a `dp_accounting.DpEvent`, or None where that package has none.
        curve: else `() ->` the Rényi curve of one of them, [255] at `curves.ORDERS`.
        pld: `() -> PrivacyLossDistribution` of one of them, where the accountant does not make it from the event.
        aside: the chance of what one of them does not cover, which is a part of delta.
    """

    times: int
    text: str
    event: "DpEvent | None" = None
    curve: Callable[[], np.ndarray] | None = None
    pld: Callable[[], "PrivacyLossDistribution"] | None = None
    aside: float = 0.0


def check_sampler(mechanisms: Sequence[Mechanism], sampling: Event, sampler: str) -> None:
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


def check_accountable(mechanisms: Sequence[Mechanism], sampling: Event, sampler: str = "the sampler") -> None:
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


def neighbours(mechanisms: Sequence[Mechanism], sampling: Event) -> tuple[tuple[str, ...], str]:
    """Under which neighbours rounds are accounted, their own first, and why."""
    if any(m.where == "local" for m in mechanisms):
        return (LOCAL,), "local noise"
    if sampling.kind == "min_separation":
        return (ZERO_OUT,), "a minimum separation"
    if any(m.where == "distributed" for m in mechanisms):
        return (REPLACE_ONE,), "distributed noise"
    if sampling.kind == "poisson":
        return (ADD_REMOVE, REPLACE_ONE), "Poisson sampling"
    return (REPLACE_ONE,), "a fixed number of clients"


def common_neighbours(entries: Sequence[Rounds], adjacency: str | None = None) -> str:
    """The neighbours under which all entries are accounted: those asked for, or else the first entry's own.

    Raises:
        ArgumentError: there are none; or an entry can be accounted alone only, or not at all.
    """
    _check_order(entries)
    known = [neighbours(entry.mechanisms, entry.sampling) for entry in entries]
    common = [each for each in known[0][0] if all(each in of for of, _ in known)]
    if adjacency in common or (adjacency is None and common):
        return common[0] if adjacency is None else adjacency
    if adjacency is not None and len(entries) == 1:
        (of, what), *_ = known
        raise ArgumentError(f"adjacency={adjacency!r}: {what} is accounted under {' or '.join(map(repr, of))}.")
    each = "; ".join(
        f"{name}: {' or '.join(map(repr, of))}" for name, (of, _) in zip(spans(entries), known, strict=True)
    )
    asked = "" if adjacency is None else f"adjacency={adjacency!r}: "
    raise ArgumentError(
        f"{asked}no epsilon covers rounds that are accounted under different neighbours ({each}). Ask for those that "
        "belong together, in a state of their own."
    )


def _check_order(entries: Sequence[Rounds]) -> None:
    """Each entry can be accounted, and correlated noise begins with the first round and is not taken up again."""
    for i, (entry, span) in enumerate(zip(entries, spans(entries), strict=True)):
        if not entry.mechanisms:
            raise ArgumentError(f"{span}: released without noise, so that no epsilon covers them.")
        check_accountable(entry.mechanisms, entry.sampling, entry.sampler)
        if i and any(m.kind in CORRELATED for m in entry.mechanisms):
            raise ArgumentError(
                f"{span}: their noise is correlated, and they follow rounds of other settings, so that what they take "
                "back is not what they added. It is accounted where one setting holds from the first round on."
            )


def spans(entries: Sequence[Rounds]) -> list[str]:
    """Which rounds entries are, and what they did, in words."""
    words, first = [], 0
    for entry in entries:
        last = first + entry.rounds - 1
        which = f"round {first}" if last <= first else f"rounds {first} to {last}"
        words.append(f"{which} ({entry.sampler}, {_names(entry.mechanisms) or 'no noise'})")
        first += entry.rounds
    return words


def releases(entry: Rounds, accountant: str, adjacency: str, delta: float) -> tuple[Release, ...]:
    """What those rounds release.

    Args:
        entry: the rounds, which `check_accountable` has seen.
        accountant: "pld" or "rdp": under replace-one the first doubles the sensitivity by itself.
        adjacency: one of `neighbours`.
        delta: of the guarantee; some of it may be set aside.
    """
    mechanisms, sampling, rounds, _, counts = entry
    if adjacency == LOCAL:
        return (_local(mechanisms[0], rounds, accountant),)
    if adjacency == ZERO_OUT:
        return _separated(mechanisms, sampling, rounds, counts)
    if any(m.where == "distributed" for m in mechanisms):
        if counts is None and sampling.kind == "poisson":
            return (_over_draws(mechanisms, sampling, rounds, delta),)
        each = _planned(sampling, rounds) if counts is None else counts
        return tuple(
            _distributed(mechanisms, sampling, drawn, sent, n) for (drawn, sent), n in each.items() if sent and n
        )
    z = _joint(mechanisms)
    if sampling.kind == "poisson":
        if adjacency == REPLACE_ONE and accountant == "rdp":
            raise ArgumentError(
                'accountant="rdp": no Rényi curve of Poisson sampling is known under replace-one; use "pld".'
            )
        return (_poisson(z, sampling.probability, rounds),)
    return (_fixed_size(z, sampling, rounds),)


def _poisson(z: float, probability: float, rounds: int) -> Release:
    dp = needed("dp_accounting", "accounting of privacy")
    event = dp.PoissonSampledDpEvent(probability, dp.GaussianDpEvent(z))
    return Release(rounds, f"Poisson({probability:g}) of Gaussian({z:.6g})", event)


def _fixed_size(z: float, sampling: Event, rounds: int) -> Release:
    dp = needed("dp_accounting", "accounting of privacy")
    size, population = sampling.cohort_size, sampling.population
    # A clipped sum moves by 2C when a client is replaced, and dp-accounting's Rényi event takes 1 for that.
    event = dp.SampledWithoutReplacementDpEvent(population, size, dp.GaussianDpEvent(z / 2))
    text = f"{size} of {population} without replacement, of Gaussian({z:.6g}) for sums that move by 2"
    return Release(rounds, text, event, pld=lambda: curves.without_replacement_pld(z, size / population))


def _local(m: Mechanism, rounds: int, accountant: str) -> Release:
    dp = needed("dp_accounting", "accounting of privacy")
    # A message's value moves by 2C; half the multiplier says so to any accountant.
    kinds = {"gaussian": dp.GaussianDpEvent, "laplace": dp.LaplaceDpEvent}
    if m.kind not in kinds:
        raise ArgumentError(f"kind={m.kind!r} ({m.transform}): local noise of this kind is not accounted.")
    text = f"{m.kind.capitalize()}({m.multiplier:.6g}) on one client's message, which moves by 2, in each round"
    return Release(rounds, text, kinds[m.kind](m.multiplier / 2))


def _separated(
    mechanisms: Sequence[Mechanism], sampling: Event, rounds: int, counts: Mapping[tuple[int, int], int] | None
) -> tuple[Release, ...]:
    """A client takes part once in any `separation` rounds; no amplification is claimed."""
    dp = needed("dp_accounting", "accounting of privacy")
    times = -(-rounds // sampling.separation)
    (m, *more) = mechanisms
    if m.kind == "tree":
        # A client is in one leaf of a tree, and in as many nodes as the tree has levels.
        separation = int(m.details["separation"])
        event = dp.SingleEpochTreeAggregationDpEvent(m.multiplier, min(separation, rounds))
        return (Release(times, f"a tree of {separation} rounds with Gaussian({m.multiplier:.6g}) nodes", event),)
    if m.kind == "banded":
        # The multiplier is over the sensitivity of the rounds that were planned; these are other ones.
        planned, sensitivity = int(m.details["rounds"]), m.details["sensitivity"]
        z = m.multiplier * sensitivity(planned) / sensitivity(rounds) if rounds else math.inf
        text = f"banded noise over {rounds} rounds ({planned} planned) as one Gaussian({z:.6g})"
        return (Release(1, text, dp.GaussianDpEvent(z)),)
    if any(m.kind in DISCRETE for m in (m, *more)):
        terms, found = _terms(mechanisms), []
        each = _planned(sampling, rounds) if counts is None else counts
        for shares, n in sorted((sent, n) for (_, sent), n in each.items() if sent):  # where the least noise is, first
            taken = min(n, times)
            times -= taken
            if taken:
                text = f"{_names(mechanisms)} of {shares} clients"
                found.append(Release(taken, text, curve=functools.partial(_sum_of_curves, terms, 1.0, shares)))
        return tuple(found)
    z = _joint(mechanisms)
    return (Release(times, f"Gaussian({z:.6g})", dp.GaussianDpEvent(z)),)


def _planned(sampling: Event, rounds: int) -> Mapping[tuple[int, int], int]:
    """Rounds of a fixed number of clients, all of whom send."""
    return {(sampling.cohort_size, sampling.cohort_size): rounds}


def _distributed(mechanisms: Sequence[Mechanism], sampling: Event, drawn: int, shares: int, rounds: int) -> Release:
    """Given how many clients were drawn, who they are is a uniform choice: of a fixed number, also under Poisson.

    Noise is the sum of the shares of those who sent; a client's chance is that of being drawn, whatever it sends.
    """
    drawn = max(drawn, shares, sampling.cohort_size or 0)
    text = (
        f"{drawn} of {sampling.population} without replacement, of {_names(mechanisms)} by {shares} clients for sums "
        "that move by 2"
    )
    fraction = min(drawn / sampling.population, 1.0)
    return Release(rounds, text, curve=functools.partial(_amplified, _terms(mechanisms), shares, fraction))


def _over_draws(mechanisms: Sequence[Mechanism], sampling: Event, rounds: int, delta: float) -> Release:
    """Planned rounds of Poisson sampling, in which all who are drawn send: their number is not known yet.

    It does not depend on the data, so that the curve is the mean over numbers, in the sense of `curves.mixed`. Draws so
    small, or large, that all rounds together meet one with a tenth of delta's chance are paid for with that.
    """
    text = f"Poisson({sampling.probability:g}) of {_names(mechanisms)}, a share each, for sums that move by 2"
    aside = 0.1 * delta / max(rounds, 1)
    law = (int(sampling.population), float(sampling.probability), aside)
    return Release(rounds, text, curve=functools.partial(_mixed, _terms(mechanisms), *law), aside=aside)


Terms = tuple[tuple[str, float, float, int, float], ...]
"""Of each mechanism: kind, multiplier, norm in units, dimension, and the shares that its multiplier is for."""


def _terms(mechanisms: Sequence[Mechanism]) -> Terms:
    terms = []
    for m in mechanisms:
        details = m.details or {}
        if m.kind in DISCRETE:
            missing = [name for name in ("norm", "dimension", "shares") if name not in details]
            if missing:
                raise ArgumentError(
                    f"{m.kind}'s details lack {missing}: ask the simulation, sim.epsilon, which knows them."
                )
            known = (float(details["norm"]), int(details["dimension"]), float(details["shares"]))
        else:
            known = (1.0, 1, 1.0)
        terms.append((m.kind, float(m.multiplier), *known))
    return tuple(terms)


@functools.lru_cache(maxsize=2048)
def _sum_of_curves(terms: Terms, distance: float, shares: int) -> np.ndarray:
    """The Rényi curve of mechanisms together, when that many clients add their share."""
    total = np.zeros(len(curves.ORDERS))
    for kind, multiplier, norm, dimension, whole in terms:
        if kind == "gaussian":
            total = total + curves.gaussian(curves.ORDERS, multiplier, distance)
            continue
        # The multiplier is that of the expected cohort's shares together; those who do not send add none.
        sigma = multiplier * norm * math.sqrt(shares / whole)
        if kind == "skellam":
            total = total + curves.skellam(curves.ORDERS, sigma**2, distance * norm, dimension)
        else:
            total = total + curves.discrete_gaussian(curves.ORDERS, sigma, distance * norm, dimension, shares)
    return total


@functools.lru_cache(maxsize=2048)
def _amplified(terms: Terms, shares: int, fraction: float) -> np.ndarray:
    return curves.without_replacement(_sum_of_curves(terms, 2.0, shares), fraction)


@functools.lru_cache(maxsize=64)
def _mixed(terms: Terms, population: int, probability: float, aside: float) -> np.ndarray:
    parts = [
        (log_mass, _amplified(terms, fewest, most / population) if most else np.zeros(len(curves.ORDERS)))
        for fewest, most, log_mass in curves.binomial_parts(population, probability, aside)
    ]
    return curves.mixed([mass for mass, _ in parts], [curve for _, curve in parts])


def _joint(mechanisms: Sequence[Mechanism]) -> float:
    """Gaussians on the same clients, released together, are one: their inverse squares add up."""
    return sum(m.multiplier**-2 for m in mechanisms) ** -0.5


def _names(mechanisms: Sequence[Mechanism]) -> str:
    return " + ".join(m.transform or f"{m.kind}({m.multiplier:g})" for m in mechanisms)
