"""How much privacy rounds cost: epsilon at a delta, with all that the number means."""

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.privacy import curves
from fedjax_sim.privacy.extra import needed
from fedjax_sim.privacy.rounds import (
    ADD_REMOVE,
    LOCAL,
    REPLACE_ONE,
    ZERO_OUT,
    Release,
    check_accountable,
    releases,
)


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
    mechanisms: Sequence[Any],
    sampling: Any,
    rounds: int,
    delta: float,
    *,
    accountant: str | None = None,
    adjacency: str | None = None,
    contributed: Mapping[int, int] | None = None,
    sampler: str | None = None,
) -> Epsilon:
    """Epsilon of a number of rounds. `sim.epsilon` calls it with what the simulation does.

    - Poisson sampling: add-or-remove-one, by the Poisson-subsampled Gaussian; or replace-one, by PLD only.
    - A fixed number of clients: replace-one, under which a clipped sum moves by twice its bound.
    - A minimum separation: zero-out; a client takes part `ceil(rounds / separation)` times at most. No amplification.
    - Distributed noise: replace-one, by RDP: given how many clients contributed, they are a uniform choice, and the
      noise is the sum of their shares.
    - Local noise: of one client's value against the server, as if it took part in every round.

    Args:
        mechanisms: the noise, as in `chain(...).facts.noise`.
        sampling: a `fs.sampler.SamplingEvent`; None will do for local noise.
        rounds: how many; 0 costs nothing.
        delta: in (0, 1), well below one over the population.
        accountant: "pld", "rdp", or None for PLD wherever there is one.
        adjacency: "add-or-remove-one" or "replace-one"; None for what goes with the sampler.
        contributed: rounds by the number of clients that contributed, for distributed noise.
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
    check_delta(delta)
    check(accountant in (None, "pld", "rdp"), "accountant", accountant, 'must be "pld", "rdp" or None.')
    check_accountable(mechanisms, sampling)
    found, neighbours = releases(mechanisms, sampling, rounds, accountant or "pld", adjacency, contributed)
    if accountant is None:
        accountant = "pld" if all(_has_pld(r) for r in found) else "rdp"
    if sampler is None:
        sampler = "any sampler" if sampling is None else f"{sampling.kind} of {sampling.population} clients"
    text = ", ".join(f"{r.times} x {r.text}" for r in found[:3]) + (", ..." if len(found) > 3 else "")
    value = 0.0
    if rounds and found:
        value = _by_pld(found, neighbours, delta) if accountant == "pld" else _by_rdp(found, neighbours, delta)
    return Epsilon(value, delta, rounds, neighbours, sampler, text or "nothing", accountant.upper())


def check_delta(delta: Any) -> None:
    """Delta is a probability."""
    check(isinstance(delta, int | float) and 0 < delta < 1, "delta", delta, "must lie in (0, 1), below 1/population.")


class Meter:
    """Epsilon round after round, by RDP, at the cost of a few multiplications each.

    Args:
        mechanisms, sampling, delta: as in `epsilon`.
    """

    def __init__(self, mechanisms: Sequence[Any], sampling: Any, delta: float):
        self._of = functools.partial(releases, mechanisms, sampling, accountant="rdp")
        self.delta = delta
        self._costs: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def epsilon(self, rounds: int) -> float:
        """Of the first so many rounds."""
        if not rounds:
            return 0.0
        found, neighbours = self._of(rounds=rounds)
        costs = []
        for release in found:
            if release.text not in self._costs:
                self._costs[release.text] = _renyi(release._replace(times=1), neighbours)
            costs.append(self._costs[release.text])
        total = sum(release.times * cost for release, (_, cost) in zip(found, costs, strict=True))
        return _converted(costs[0][0], total, self.delta)


def _has_pld(release: Release) -> bool:
    if release.pld is not None:
        return True
    return release.event is not None and not type(release.event).__name__.startswith("SingleEpochTree")


def _relation(adjacency: str) -> Any:
    relations = needed("dp_accounting", "accounting of privacy").NeighboringRelation
    # Local events come with half their multiplier: one value against any other is their pair at distance 1.
    return {
        ADD_REMOVE: relations.ADD_OR_REMOVE_ONE,
        REPLACE_ONE: relations.REPLACE_ONE,
        ZERO_OUT: relations.REPLACE_SPECIAL,
        LOCAL: relations.REPLACE_SPECIAL,
    }[adjacency]


def _by_pld(found: Sequence[Release], adjacency: str, delta: float) -> float:
    if not all(_has_pld(release) for release in found):
        raise ArgumentError(f'accountant="pld": no privacy loss distribution is known of {found[0].text}; use "rdp".')
    if any(release.pld is not None for release in found):
        parts = [release.pld().self_compose(release.times) for release in found if release.pld is not None]
        return float(functools.reduce(lambda a, b: a.compose(b), parts).get_epsilon_for_delta(delta))
    accountant = needed("dp_accounting.pld", "accounting of privacy").PLDAccountant(_relation(adjacency))
    for release in found:
        accountant.compose(release.event, release.times)
    return float(accountant.get_epsilon(delta))


def _by_rdp(found: Sequence[Release], adjacency: str, delta: float) -> float:
    costs = [_renyi(release, adjacency) for release in found]
    return _converted(costs[0][0], sum(cost for _, cost in costs), delta)


def _renyi(release: Release, adjacency: str) -> tuple[np.ndarray, np.ndarray]:
    """`(orders, curve)` of a release."""
    if release.curve is not None:
        return curves.ORDERS, release.times * release.curve
    accountant = needed("dp_accounting.rdp", "accounting of privacy").RdpAccountant(
        neighboring_relation=_relation(adjacency)
    )
    logger = logging.getLogger("absl")
    logger.addFilter(_not_of_left_out_orders)
    try:
        accountant.compose(release.event, release.times)
    finally:
        logger.removeFilter(_not_of_left_out_orders)
    return accountant._orders, accountant._rdp


def _not_of_left_out_orders(record: logging.LogRecord) -> bool:
    """An order whose series does not converge is left out: the least over the others is a bound all the same."""
    return "failed to converge" not in record.getMessage()


def _converted(orders: np.ndarray, curve: Any, delta: float) -> float:
    value, _ = needed("dp_accounting.rdp", "accounting of privacy").compute_epsilon(orders, curve, delta)
    return float(value) if math.isfinite(value) else math.inf
