"""What the rounds of a simulation cost in privacy: its own chain, sampler and, for shares of noise, its own cohorts."""

import importlib.util
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate import Context
from fedjax_sim.core import pytree
from fedjax_sim.core.errors import ArgumentError, is_traced
from fedjax_sim.core.types import RoundState
from fedjax_sim.privacy.accounting import Epsilon, Meter
from fedjax_sim.privacy.accounting import epsilon as account
from fedjax_sim.privacy.rounds import check_accountable, check_sampler

SHARED = ("discrete_gaussian", "skellam")
"""Noise whose accounting needs its scale in integers."""


def default_delta(num_clients: int) -> float:
    """Below one over the population: K to the power of -1.1, and 1e-3 at most."""
    return min(num_clients**-1.1, 1e-3)


def noise(sim: Any) -> tuple[Any, ...]:
    """All noise of a round, with what accounting needs.

    Raises:
        ArgumentError: a phase sends its aggregate without noise.
    """
    found: list[Any] = []
    for i, (phase, sent) in enumerate(zip(sim._phases, sim._sent, strict=True)):
        aggregator = phase.aggregator
        if not aggregator.facts.noisy:
            of = f"phase {i} of {len(sim._phases)}: " if len(sim._phases) > 1 else ""
            raise ArgumentError(
                f"{of}{aggregator.name} adds no noise, so that there is no privacy to account for: put "
                "fs.aggregate.gaussian_noise(multiplier) into the chain, after a clip."
            )
        for mechanism in aggregator.mechanisms(sim._expected):
            found.append(_scaled(mechanism, aggregator, sent.payload, sim._expected))
    return tuple(found)


def _scaled(mechanism: Any, aggregator: Any, payload: Any, expected: float) -> Any:
    """With the bound in integer units and the dimension, where the noise is discrete."""
    if mechanism.kind not in SHARED:
        return mechanism
    states, rows = aggregator.init(payload)
    bound, step = aggregator.bound_and_step(states, payload)
    if is_traced(bound) or is_traced(step):
        raise ArgumentError(f"{aggregator.name}: its bound is traced, and accounting needs a number.")
    zero, one = jnp.zeros((), jnp.int32), jnp.ones(())
    unbounded = jnp.asarray(jnp.inf, jnp.float32)
    context = Context(zero, zero, jax.random.key(0), unbounded, zero, weight=one, expected=expected, step=one)
    message = jax.eval_shape(lambda p: aggregator.client(jax.random.key(0), states, rows, p, context)[0], payload)
    shares = (mechanism.details or {}).get("survivors") or expected
    details = {"norm": float(bound) / float(step), "dimension": pytree.size(message), "shares": shares}
    return mechanism._replace(details=details)


def epsilon(
    self: Any,
    rounds: int | None = None,
    delta: float | None = None,
    *,
    state: RoundState | None = None,
    accountant: Literal["pld", "rdp"] | None = None,
    adjacency: str | None = None,
) -> Epsilon:
    """What rounds cost in privacy, bound to this simulation's noise, sampler and population.

    It covers what the rounds release, the aggregates and so the models; not `client/` metrics and per-client
    tables, which are for the experimenter's eyes. Needs the extra `privacy`.

    Args:
        rounds: how many are planned. Shares of distributed noise are then those of the expected cohort.
        delta: of the guarantee; None for the simulation's.
        state: instead of `rounds`, for the rounds that it has behind it, with the shares of noise that clients
            really contributed.
        accountant: "pld", "rdp", or None for PLD wherever there is one.
        adjacency: "add-or-remove-one" or "replace-one"; None for what goes with the sampler, see
            `fs.privacy.epsilon`.

    Raises:
        ArgumentError: no noise, or none that can be accounted with this sampler.

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
    if (rounds is None) == (state is None):
        raise ArgumentError(
            "epsilon needs rounds=, how many are planned, or state=, whose rounds were run; one of them."
        )
    sim = self
    mechanisms, contributed = noise(sim), None
    if state is not None:
        rounds = state.round
        if keeps_ledger(sim):
            contributed = {int(n): count for n, count in ((state.ledger or {}).get("contributed", {})).items()}
            if sum(contributed.values()) != rounds:
                raise ArgumentError(
                    f"the state's ledger knows {sum(contributed.values())} of its {rounds} rounds: give a state that "
                    "this simulation made."
                )
    return account(
        mechanisms,
        _event(sim),
        rounds,  # type: ignore[arg-type]
        sim.delta if delta is None else delta,
        contributed=contributed,
        sampler=f"{sim.sampler.name} of {sim.data.num_clients}",
        accountant=accountant,
        adjacency=adjacency,
    )


def meter(sim: Any) -> Meter | None:
    """Of epsilon per round; None without noise, without the package, or where nothing can be said."""
    if importlib.util.find_spec("dp_accounting") is None:
        return None
    try:
        mechanisms = noise(sim)
        check_accountable(mechanisms, _event(sim), sim.sampler.name)
    except ArgumentError:
        return None
    if any(is_traced(m.multiplier) for m in mechanisms):
        return None
    return Meter(mechanisms, _event(sim), sim.delta)


def check_participation(sim: Any) -> None:
    """Raise `ArgumentError` where noise counts on participations that the sampler does not keep apart."""
    for phase in sim._phases:
        check_sampler(phase.aggregator.mechanisms(sim._expected), _event(sim), sim.sampler.name)


def noisy(sim: Any) -> bool:
    """True where any phase adds noise for privacy."""
    return any(phase.aggregator.facts.noisy for phase in sim._phases)


def keeps_ledger(sim: Any) -> bool:
    """True where the noise is the sum of the contributing clients' shares."""
    return any(m.where == "distributed" for phase in sim._phases for m in phase.aggregator.facts.noise)


def entered(ledger: Any, contributed: list[int]) -> dict[str, Any]:
    """The ledger with more rounds: how many rounds had how many clients that contributed."""
    counts = dict((ledger or {}).get("contributed", {}))
    for n in contributed:
        counts[str(n)] = counts.get(str(n), 0) + 1
    return {"contributed": counts}


def _event(sim: Any) -> Any:
    return None if sim.sampler.event is None else sim.sampler.event(sim.data.num_clients)
