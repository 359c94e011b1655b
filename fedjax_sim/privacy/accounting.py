"""How much privacy rounds cost: epsilon at a delta, with all that the number means."""

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.privacy import curves
from fedjax_sim.privacy.extra import needed
from fedjax_sim.privacy.rounds import (
    ADD_REMOVE,
    LOCAL,
    REPLACE_ONE,
    ZERO_OUT,
    Event,
    Mechanism,
    Release,
    Rounds,
    check_accountable,
    common_neighbours,
    releases,
)

if TYPE_CHECKING:
    from dp_accounting import DpEvent, NeighboringRelation


@dataclasses.dataclass(frozen=True)
class Epsilon:
    """A differential-privacy guarantee of whole clients, and what it means.

    Attributes:
        epsilon, delta: the guarantee.
        rounds: that it covers.
        adjacency: which populations are neighbours: "add-or-remove-one" client, "replace-one", "zero-out" (one client
            sends nothing, or zeros, whenever it takes part; its bit of adaptive clipping is 0, too), or "local" (one
            client's value, against the server too).
        sampler: who was drawn, by name.
        event: what was released, and how often.
        accountant: "PLD" (privacy loss distributions) or "RDP" (Rényi).

    Example:
        >>> import fedjax_sim as fs
        >>> spent = fs.privacy.Epsilon(1.83, 1e-5, 1000, "add-or-remove-one", "poisson(0.01)", "Gaussian(1)", "PLD")
        >>> float(spent)
        1.83
    """

    epsilon: float
    delta: float
    rounds: int
    adjacency: str
    sampler: str
    event: str
    accountant: str

    def __float__(self) -> float:
        return float(self.epsilon)

    def __str__(self) -> str:
        return (
            f"epsilon {self.epsilon:.4g} at delta {self.delta:g} for {self.rounds} rounds; {self.adjacency} client, "
            f"{self.sampler}, {self.event}; {self.accountant}; for one run: released runs of one seed share their "
            "noise, which cancels"
        )


def epsilon(
    mechanisms: Sequence[Mechanism],
    sampling: Event,
    rounds: int,
    delta: float,
    *,
    accountant: str | None = None,
    adjacency: str | None = None,
    counts: Mapping[tuple[int, int], int] | None = None,
    sampler: str | None = None,
) -> Epsilon:
    """Epsilon of a number of equal rounds. `sim.epsilon` says it of what a simulation does, and of what it has done.

    - Poisson sampling: add-or-remove-one, by the Poisson-subsampled Gaussian; or replace-one, by PLD only.
    - A fixed number of clients: replace-one, under which a clipped sum moves by twice its bound.
    - A minimum separation: zero-out; a client takes part `ceil(rounds / separation)` times at most. No amplification.
    - Distributed noise: replace-one, by RDP: given how many clients are drawn, they are a uniform choice, and the
      noise is the sum of the shares of those who send.
    - Local noise: of one client's value against the server, as if it took part in every round.

    Args:
        mechanisms: the noise, as in `chain(...).facts.noise`.
        sampling: a `fs.sampler.SamplingEvent`; None will do for local noise.
        rounds: how many; 0 costs nothing.
        delta: in (0, 1), well below one over the population.
        accountant: "pld", "rdp", or None for PLD wherever there is one.
        adjacency: "add-or-remove-one" or "replace-one"; None for what goes with the sampler.
        counts: rounds by (clients drawn, clients that added their share), for distributed noise; None for a plan, in
            which all who are drawn send.
        sampler: the sampler's name; None for the event's.

    Raises:
        ArgumentError: noise, sampler and accountant that do not go together; no package dp-accounting.

    Example:
        >>> import fedjax_sim as fs
        >>> noise = fs.aggregate.Mechanism("gaussian", 1.0)
        >>> event = fs.sampler.poisson(0.01).event(10_000)
        >>> spent = fs.privacy.epsilon([noise], event, rounds=1000, delta=1e-5)
        >>> print(f"{spent.epsilon:.3f}; {spent.adjacency}; {spent.event}; {spent.accountant}")
        1.828; add-or-remove-one; 1000 x Poisson(0.01) of Gaussian(1); PLD
    """
    check_count("rounds", rounds, minimum=0)
    if counts is not None:
        check(sum(counts.values()) == rounds, "counts", dict(counts), f"must count rounds={rounds}.")
    check_accountable(mechanisms, sampling)
    if sampler is None:
        sampler = "any sampler" if sampling is None else f"{sampling.kind} of {sampling.population} clients"
    entry = Rounds(tuple(mechanisms), sampling, rounds, sampler, counts)
    return compose([entry], delta, accountant=accountant, adjacency=adjacency)


def compose(
    entries: Sequence[Rounds], delta: float, *, accountant: str | None = None, adjacency: str | None = None
) -> Epsilon:
    """Epsilon of different rounds, one after another.

    Args:
        entries: one or more, in order.
        delta, accountant, adjacency: as in `epsilon`.

    Raises:
        ArgumentError: an entry that cannot be accounted, or that has no neighbours or accountant in common with others.
    """
    check_delta(delta)
    check(accountant in (None, "pld", "rdp"), "accountant", accountant, 'must be "pld", "rdp" or None.')
    adjacency = common_neighbours(entries, adjacency)
    released = lambda by: [r for entry in entries for r in releases(entry, by, adjacency, delta)]
    found = released(accountant or "pld")
    if accountant is None:
        accountant = "pld" if all(_has_pld(r) for r in found) else "rdp"
        found = found if accountant == "pld" else released("rdp")
    text = ", ".join(f"{r.times} x {r.text}" for r in found[:3]) + (", ..." if len(found) > 3 else "")
    rounds, samplers = sum(entry.rounds for entry in entries), dict.fromkeys(entry.sampler for entry in entries)
    value = 0.0
    if rounds and found:
        value = _by_pld(found, adjacency, delta) if accountant == "pld" else _by_rdp(found, adjacency, delta)
    return Epsilon(value, delta, rounds, adjacency, ", then ".join(samplers), text or "nothing", accountant.upper())


def check_delta(delta: object) -> None:
    """Delta is a probability."""
    check(isinstance(delta, int | float) and 0 < delta < 1, "delta", delta, "must lie in (0, 1), below 1/population.")


class Meter:
    """Epsilon round after round, by RDP, whose curves are kept: a round costs a few additions.

    Args:
        delta: as in `epsilon`.
    """

    def __init__(self, delta: float):
        self.delta = delta

    def epsilon(self, entries: Sequence[Rounds]) -> float:
        """Of what happened; infinite where no accountant can say."""
        if not entries:
            return 0.0
        try:
            return compose(entries, self.delta, accountant="rdp").epsilon
        except ArgumentError:
            return math.inf


def _has_pld(release: Release) -> bool:
    if release.pld is not None:
        return True
    return release.event is not None and not type(release.event).__name__.startswith("SingleEpochTree")


def _relation(adjacency: str) -> "NeighboringRelation":
    relations = needed("dp_accounting", "accounting of privacy").NeighboringRelation
    # Local events come with half their multiplier: one value against any other is their pair at distance 1.
    return {
        ADD_REMOVE: relations.ADD_OR_REMOVE_ONE,
        REPLACE_ONE: relations.REPLACE_ONE,
        ZERO_OUT: relations.REPLACE_SPECIAL,
        LOCAL: relations.REPLACE_SPECIAL,
    }[adjacency]


def _by_pld(found: Sequence[Release], adjacency: str, delta: float) -> float:
    for release in found:
        if not _has_pld(release):
            raise ArgumentError(
                f'accountant="pld": no privacy loss distribution is known of {release.text}; use "rdp".'
            )
    accountant = needed("dp_accounting.pld", "accounting of privacy").PLDAccountant(_relation(adjacency))
    own = [release.pld().self_compose(release.times) for release in found if release.pld is not None]
    for release in found:
        if release.pld is None:
            accountant.compose(release.event, release.times)
    if not own:
        return float(accountant.get_epsilon(delta))
    if len(own) < len(found):
        own.append(accountant._pld)
    return float(functools.reduce(lambda a, b: a.compose(b), own).get_epsilon_for_delta(delta))


def _by_rdp(found: Sequence[Release], adjacency: str, delta: float) -> float:
    whole = any(release.curve is not None for release in found)  # curves of our own are known at whole orders alone
    costs = [release.times * _renyi(release, adjacency, whole) for release in found]
    delta -= sum(release.times * release.aside for release in found)
    return _converted(curves.ORDERS if whole else _orders(), sum(costs), delta)


def _renyi(release: Release, adjacency: str, whole: bool) -> np.ndarray:
    """The Rényi curve of one release."""
    return _of_event(release.event, adjacency, whole) if release.curve is None else release.curve()


def _orders() -> np.ndarray:
    """The orders of dp-accounting."""
    return np.asarray(needed("dp_accounting.rdp", "accounting of privacy").RdpAccountant()._orders)


@functools.lru_cache(maxsize=256)
def _of_event(event: "DpEvent | None", adjacency: str, whole: bool) -> np.ndarray:
    accountant = needed("dp_accounting.rdp", "accounting of privacy").RdpAccountant(
        orders=curves.ORDERS.tolist() if whole else None, neighboring_relation=_relation(adjacency)
    )
    logger = logging.getLogger("absl")
    logger.addFilter(_not_of_left_out_orders)
    try:
        accountant.compose(event)
    finally:
        logger.removeFilter(_not_of_left_out_orders)
    return np.asarray(accountant._rdp)


def _not_of_left_out_orders(record: logging.LogRecord) -> bool:
    """An order whose series does not converge is left out: the least over the others is a bound all the same."""
    return "failed to converge" not in record.getMessage()


def _converted(orders: np.ndarray, curve: np.ndarray | float, delta: float) -> float:
    value, _ = needed("dp_accounting.rdp", "accounting of privacy").compute_epsilon(orders, curve, delta)
    return float(value) if math.isfinite(value) else math.inf
