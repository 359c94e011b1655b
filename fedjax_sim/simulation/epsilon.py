"""What rounds cost in privacy: planned ones by a simulation's chain and sampler, past ones by their state's ledger."""

import importlib.util
import math
from typing import Any, Literal

import jax

from fedjax_sim.core.errors import ArgumentError, check_count
from fedjax_sim.core.types import RoundState
from fedjax_sim.privacy.accounting import Epsilon, Meter, compose
from fedjax_sim.privacy.rounds import check_sampler, common_neighbours
from fedjax_sim.simulation import ledger as ledger_lib


def default_delta(num_clients: int) -> float:
    """Below one over the population: K to the power of -1.1, and 1e-3 at most."""
    return min(num_clients**-1.1, 1e-3)


def epsilon(
    self: Any,
    rounds: int | None = None,
    delta: float | None = None,
    *,
    state: RoundState | None = None,
    accountant: Literal["pld", "rdp"] | None = None,
    adjacency: str | None = None,
) -> Epsilon:
    """What rounds cost in privacy: those that a state has behind it, those that are planned, or both.

    Planned rounds have this simulation's noise, sampler and population. Those behind a state have what they had: its
    ledger says so, whatever this simulation is. It covers what the rounds release, the aggregates and so the models;
    not `client/` metrics and per-client tables, which are for the experimenter's eyes. Needs the extra `privacy`.

    Args:
        rounds: how many are planned, after the state's if there is one. With shares of distributed noise, all who are
            drawn are taken to send theirs.
        delta: of the guarantee; None for the simulation's.
        state: whose rounds were run, with the shares of noise that clients really sent.
        accountant: "pld", "rdp", or None for PLD wherever there is one.
        adjacency: "add-or-remove-one" or "replace-one"; None for what goes with the sampler, see
            `fs.privacy.epsilon`. Rounds of different settings must have it in common.

    Raises:
        ArgumentError: no noise, or none that can be accounted with this sampler; a state whose ledger does not know all
            of its rounds, as of a version without one; rounds that no one epsilon covers.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> data = fs.data.FederatedData({"x": jnp.arange(100.0)}, offsets=range(101))
        >>> noise = (fs.aggregate.clip_by_l2(1.0), fs.aggregate.gaussian_noise(multiplier=1.0))
        >>> private = fs.fedavg(
        ...     task, optax.sgd(0.1), aggregator=fs.aggregate.chain(*noise, reduce=fs.aggregate.mean("uniform"))
        ... )
        >>> sim = fs.Simulation(private, data, fs.sampler.poisson(0.1), fs.Batching(1))
        >>> spent = sim.epsilon(rounds=10, delta=1e-3)
        >>> print(f"{spent.epsilon:.2f}", spent.adjacency)
        1.57 add-or-remove-one
    """
    if rounds is None and state is None:
        raise ArgumentError(
            "epsilon needs rounds=, how many are planned, or state=, whose rounds were run, or both: what was run and "
            "then so many planned rounds."
        )
    if rounds is not None:
        check_count("rounds", rounds, minimum=0)
    ledger = [] if state is None else ledger_lib.checked(state.ledger, state.round)
    if rounds is not None or not ledger:
        ledger_lib.noise(self)  # says what is wrong with this simulation's own chain
        ledger = ledger_lib.planned(ledger, self._released, rounds or 0)
    of = self.delta if delta is None else delta
    return compose(ledger_lib.rounds(ledger), of, accountant=accountant, adjacency=adjacency)


def meter(sim: Any) -> Meter | None:
    """Of epsilon per round; None without noise, without the package, or where nothing can be said of its own rounds."""
    if not noisy(sim) or importlib.util.find_spec("dp_accounting") is None:
        return None
    try:
        common_neighbours(ledger_lib.rounds(ledger_lib.planned([], sim._released, 1)))
    except ArgumentError:
        return None
    return Meter(sim.delta)


def spent(meter: Meter, ledger: Any, rounds: int) -> float:
    """`privacy/epsilon` after so many rounds: infinite where the ledger lacks some, or holds what no epsilon covers."""
    try:
        return meter.epsilon(ledger_lib.rounds(ledger_lib.checked(ledger, rounds)))
    except ArgumentError:
        return math.inf


def check_participation(sim: Any) -> None:
    """Raise `ArgumentError` where noise counts on a draw that the sampler does not make."""
    for phase in sim._phases:
        check_sampler(phase.aggregator.mechanisms(sim._expected), ledger_lib.event(sim), sim.sampler.name)
    if noisy(sim) and sim.sampler.observe is not None:
        raise ArgumentError(
            f"{sim.sampler.name} draws by what it observes of clients, and {_noisy_chain(sim)} adds noise for privacy, "
            "whose accounting takes draws that do not depend on their data: use fs.sampler.poisson, uniform or "
            "min_separation."
        )


def check_rows(sim: Any, row: Any) -> None:
    """Raise `ArgumentError` where clients keep something that tells who was drawn before, and draws are to amplify."""
    amplified = noisy(sim) and not shares_alone(sim) and ledger_lib.event(sim) is not None
    if amplified and ledger_lib.event(sim).kind != "min_separation" and jax.tree.leaves(row):
        raise ArgumentError(
            f"clients keep rows and {_noisy_chain(sim)} adds noise for privacy: what a client sends would depend on "
            "the rounds that drew it before, which no accountant of sampling covers. Take an algorithm without rows, "
            "or fs.sampler.min_separation, whose accounting does not count on the draw."
        )


def noisy(sim: Any) -> bool:
    """True where any phase adds noise for privacy."""
    return any(phase.aggregator.facts.noisy for phase in sim._phases)


def shared_out(sim: Any) -> bool:
    """True where clients add noise themselves: all that are drawn and arrive must send theirs."""
    return any(m.where != "central" for phase in sim._phases for m in phase.aggregator.facts.noise)


def shares_alone(sim: Any) -> bool:
    """True where all noise is local, which counts on no draw."""
    return all(m.where == "local" for phase in sim._phases for m in phase.aggregator.facts.noise)


def _noisy_chain(sim: Any) -> str:
    return next(phase.aggregator.name for phase in sim._phases if phase.aggregator.facts.noisy)
