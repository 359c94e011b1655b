"""Host stages in a simulation: what they add to cohorts, and where they cannot speak."""

from fedjax_sim.algorithms.base import Pass
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.engine.parts import Parts
from fedjax_sim.population.sampling import Sampler


def with_columns(sampler: Sampler, phases: tuple[Pass, ...]) -> Sampler:
    """The sampler, whose cohorts have the host stages' columns too when they are planned.

    Raises:
        ArgumentError: a name that is taken.
    """
    columns = dict(sampler.columns or {})
    for phase in phases:
        for name, empty in (phase.aggregator.host.columns if phase.aggregator.host else {}).items():
            if name in columns:
                raise ArgumentError(
                    f"{phase.aggregator.name} has a host stage with a column {name!r}, which {sampler.name} or another "
                    "phase has too: rename one."
                )
            columns[name] = empty
    return sampler._replace(columns=columns or None)


def checked(parts: Parts) -> Parts:
    """The parts; raises where the host cannot speak between clients and server."""
    if parts.staged and parts.rows == "host":
        raise ArgumentError(
            "a host stage speaks between clients and server, and this simulation's rows are on the host: give it "
            'fs.Execution(rows="device").'
        )
    if parts.staged and parts.multi_process:
        raise ArgumentError("a host stage speaks between clients and server: train in one process.")
    return parts


def check_fused(parts: Parts, what: str) -> None:
    """Raise where rounds are to be one program."""
    if parts.staged:
        names = ", ".join(phase.aggregator.name for phase in parts.phases if phase.aggregator.host is not None)
        raise ArgumentError(f"{what} is one program, and the host of {names} speaks in the middle of a round: step it.")
