"""Who takes part where there is noise for privacy: what a chain's noise asks of the sampler and of clients' rows."""

import jax

from fedjax_sim.algorithms.base import Pass
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.population.sampling import Sampler, SamplingEvent, SeparationEvent
from fedjax_sim.privacy.rounds import check_sampler

Phases = tuple[Pass, ...]
"""Each with a whole aggregator."""


def default_delta(num_clients: int) -> float:
    """Below one over the population: K to the power of -1.1, and 1e-3 at most."""
    return min(num_clients**-1.1, 1e-3)


def event(sampler: Sampler, num_clients: int) -> SamplingEvent | SeparationEvent | None:
    """The sampler's event for a population, or None."""
    return None if sampler.event is None else sampler.event(num_clients)


def check_participation(phases: Phases, sampler: Sampler, num_clients: int, expected: float) -> None:
    """Raise `ArgumentError` where noise counts on a draw that the sampler does not make."""
    law = event(sampler, num_clients)
    for phase in phases:
        check_sampler(phase.aggregator.mechanisms(expected), law, sampler.name)
    if noisy(phases) and sampler.waits:
        raise ArgumentError(
            f"{sampler.name} draws by what it observes of clients, and {_noisy_chain(phases)} adds noise for privacy, "
            "whose accounting takes draws that do not depend on their data: use fs.sampler.poisson, uniform or "
            "min_separation."
        )


def check_repeats(phases: Phases, sampler: Sampler) -> None:
    """Raise `ArgumentError` where a client may be in a cohort twice, or scaled, and a chain counts on its bound."""
    scaled = "scale" in (sampler.columns or {})
    for phase in phases if sampler.repeats or scaled else ():
        facts = phase.aggregator.facts
        if scaled and (facts.noisy or facts.weighted):
            raise ArgumentError(
                f"{sampler.name} scales clients' messages, and {phase.aggregator.name} adds noise by a bound of them, "
                "or sums them as integers: use fs.sampler.poisson, uniform or min_separation."
            )
        if facts.noisy or facts.modulus is not None:
            what = "adds noise for privacy" if facts.noisy else "masks each client's message by its id"
            why = "moves the sum by twice its bound" if facts.noisy else "would send one of its messages in clear"
            raise ArgumentError(
                f"{sampler.name} may draw a client twice in a round, and {phase.aggregator.name} {what}: a client that "
                f"is there twice {why}. Use fs.sampler.poisson, uniform or min_separation."
            )


def check_rows(phases: Phases, sampler: Sampler, num_clients: int, row: PyTree) -> None:
    """Raise `ArgumentError` where clients keep something that tells who was drawn before, and draws are to amplify."""
    law = event(sampler, num_clients)
    amplified = law is not None and law.kind != "min_separation" and noisy(phases) and not shares_alone(phases)
    if amplified and jax.tree.leaves(row):
        raise ArgumentError(
            f"clients keep rows and {_noisy_chain(phases)} adds noise for privacy: what a client sends would depend on "
            "the rounds that drew it before, which no accountant of sampling covers. Take an algorithm without rows, "
            "or fs.sampler.min_separation, whose accounting does not count on the draw."
        )


def noisy(phases: Phases) -> bool:
    """True where any phase adds noise for privacy."""
    return any(phase.aggregator.facts.noisy for phase in phases)


def shared_out(phases: Phases) -> bool:
    """True where all that are drawn and arrive must send: they add noise, or have masks that others count on."""
    if any(phase.aggregator.facts.masked for phase in phases):
        return True
    return any(m.where != "central" for phase in phases for m in phase.aggregator.facts.noise)


def shares_alone(phases: Phases) -> bool:
    """True where all noise is local, which counts on no draw."""
    return all(m.where == "local" for phase in phases for m in phase.aggregator.facts.noise)


def _noisy_chain(phases: Phases) -> str:
    return next(phase.aggregator.name for phase in phases if phase.aggregator.facts.noisy)
