"""Host stages in a simulation: what they add to cohorts, and where they cannot speak."""

from fedjax_sim.aggregate.host import declared_columns
from fedjax_sim.algorithms.base import Pass
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.engine.parts import Parts
from fedjax_sim.population.sampling import Sampler


def with_columns(sampler: Sampler, phases: tuple[Pass, ...], places: int) -> Sampler:
    """The sampler, whose cohorts have the host stages' columns too when they are planned.

    Args:
        sampler: as it was given.
        phases: with their chains.
        places: of a cohort.

    Raises:
        ArgumentError: a name that is taken, or a cohort that a stage cannot serve.
    """
    columns = dict(sampler.columns or {})
    for phase in phases:
        if phase.aggregator.host is not None and phase.aggregator.host.check is not None:
            phase.aggregator.host.check(places)
        for name, empty in declared_columns(phase.aggregator.host, places).items():
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
