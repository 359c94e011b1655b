"""What rounds cost in privacy: planned ones by a simulation's chain and sampler, past ones by their state's ledger."""

import importlib.util
import math
from collections.abc import Callable
from typing import Any, Literal

from fedjax_sim.core.errors import ArgumentError, check_count
from fedjax_sim.core.types import RoundState
from fedjax_sim.engine.parts import Parts
from fedjax_sim.population.transformed import short
from fedjax_sim.privacy.accounting import Epsilon, Meter, compose
from fedjax_sim.privacy.rounds import common_neighbours
from fedjax_sim.simulation import ledger as ledger_lib


def epsilon(
    parts: Parts,
    released: Callable[[], ledger_lib.Record],
    rounds: int | None,
    delta: float | None,
    state: RoundState | None,
    accountant: Literal["pld", "rdp"] | None,
    adjacency: str | None,
) -> Epsilon:
    """`sim.epsilon`; `released` gives what a round releases, once the chain is known to have noise."""
    if rounds is None and state is None:
        raise ArgumentError(
            "epsilon needs rounds=, how many are planned, or state=, whose rounds were run, or both: what was run and "
            "then so many planned rounds."
        )
    if rounds is not None:
        check_count("rounds", rounds, minimum=0)
    ledger = [] if state is None else ledger_lib.checked(state.ledger, state.round)
    if rounds is not None or not ledger:
        ledger_lib.noise(parts)  # says what is wrong with this simulation's own chain
        if rounds:
            _check_shares(parts)
        ledger = ledger_lib.planned(ledger, released(), rounds or 0)
    of = parts.delta if delta is None else delta
    return compose(ledger_lib.rounds(ledger), of, accountant=accountant, adjacency=adjacency)


def _check_shares(parts: Parts) -> None:
    """Raise where a plan would count on shares of noise that may not come."""
    chains = [phase.aggregator for phase in parts.phases]
    if not any(m.where == "distributed" for chain in chains for m in chain.facts.noise):
        return
    lossy = [chain.name for chain in chains if chain.facts.loses]
    name = lossy[0] if lossy else short(parts.sampler, parts.data.num_clients)
    if name:
        raise ArgumentError(
            f"rounds: by {name} fewer clients may send their share of noise than are drawn, so that a plan in which "
            "all do is no bound: ask for rounds that were run, by state=, which knows who sent; or plan without "
            "losses, with the noise that is left of the fewest who are to send."
        )


def meter(parts: Parts) -> Meter | None:
    """Of epsilon per round; None without noise, without the package, or where nothing can be said of its own rounds."""
    if not parts.noisy or importlib.util.find_spec("dp_accounting") is None:
        return None
    try:
        common_neighbours(ledger_lib.rounds(ledger_lib.planned([], ledger_lib.setting(parts), 1)))
    except ArgumentError:
        return None
    return Meter(parts.delta)


def spent(meter: Meter, ledger: Any, rounds: int) -> float:
    """`privacy/epsilon` after so many rounds: infinite where the ledger lacks some, or holds what no epsilon covers."""
    try:
        return meter.epsilon(ledger_lib.rounds(ledger_lib.checked(ledger, rounds)))
    except ArgumentError:
        return math.inf
