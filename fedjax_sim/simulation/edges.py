"""What edges of `fs.hierarchical` ask of a simulation, and what their column adds to its plans."""

import jax
import numpy as np

from fedjax_sim.algorithms.base import Edges, Pass
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.batching import Batching
from fedjax_sim.engine.parts import Parts
from fedjax_sim.engine.round.cohort_map import EDGE
from fedjax_sim.population.sampling import Sampler

_ADVICE = "Edges go with clips and compressions: fs.aggregate.clip_by_l2, bfloat16, drive, error_feedback and the like."


def check_edges(edges: Edges | None, phases: tuple[Pass, ...], sampler: Sampler, num_clients: int) -> None:
    """Raise `ArgumentError` for edges that do not fit the population, the chains or the sampler."""
    if edges is None:
        return
    if edges.of is not None and len(edges.of) != num_clients:
        raise ArgumentError(f"edges: {len(edges.of)} clients have one, and the population has {num_clients} clients.")
    if edges.number > num_clients:
        raise ArgumentError(f"edges={edges.number}: some have no clients, as the population has {num_clients}.")
    if sampler.versions:
        raise ArgumentError(f"{sampler.name}: clients start from old models of the server, and edges keep none.")
    if EDGE in (sampler.columns or {}):
        raise ArgumentError(f"{sampler.name} has a column {EDGE!r}, which fs.hierarchical has too: rename one.")
    for phase in phases:
        facts, host = phase.aggregator.facts, phase.aggregator.host
        for wrong, what in (
            (facts.noisy, "adds noise for privacy, whose accounting knows of one sum a round"),
            (facts.modulus is not None or facts.weighted, "sums modular integers, of the whole cohort"),
            (host is not None, "has a host stage, for the whole cohort's sum"),
        ):
            if wrong:
                raise ArgumentError(f"{phase.aggregator.name} {what}, and each edge has a sum of its own. {_ADVICE}")


def checked(parts: Parts, states: PyTree) -> Parts:
    """The parts; raises where rounds with edges cannot run.

    Args:
        parts: of a simulation.
        states: the chains' first, an entry a phase.
    """
    if parts.algorithm.edges is None:
        return parts
    for phase, state in zip(parts.phases, states, strict=True):
        if jax.tree.leaves(state):
            raise ArgumentError(
                f"{phase.aggregator.name} keeps a state on the server, and there are several edges. {_ADVICE}"
            )
    if parts.rows == "host":
        raise ArgumentError(
            "edges train their clients several times in a round, and this simulation's rows are on the host: give it "
            'fs.Execution(rows="device").'
        )
    return parts


def with_column(sampler: Sampler, edges: Edges | None) -> Sampler:
    """The sampler, whose cohorts say which edge clients belong to when they are planned."""
    return sampler if edges is None else sampler._replace(columns={**(sampler.columns or {}), EDGE: np.int32(0)})


def of_round(batching: Batching, edges: Edges | None) -> Batching:
    """What a client does in a whole round."""
    return batching if edges is None else batching.times(edges.rounds)
