"""A block of rounds, planned together: cohorts, plans, and the examples that are read for them."""

from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_sim.aggregate.checks import check_cohort
from fedjax_sim.core.types import Cohort, RoundPlan, RoundState
from fedjax_sim.engine.plan.planner import PlanShape, PlanStats
from fedjax_sim.engine.plan.words import pack_plans


class Plans(NamedTuple):
    """A block of rounds, planned; its words packed, or placed."""

    first: int
    cohorts: list[Cohort]
    stats: list[PlanStats]
    words: Any
    shape: PlanShape
    slots: int
    sampler_state: Any
    rounds: list[RoundPlan]
    examples: Any = None


def pack(sim: Any, state: RoundState, count: int, slots: int, capacity: int = 0) -> Plans:
    """Cohorts and plans of the next rounds; all of one capacity, so that they share a dispatch of `slots`."""
    sampler_state, cohorts = state.sampler, []
    for r in range(state.round, state.round + count):
        cohort, sampler_state = sim.sampler.sample(sampler_state, r, state.seed)
        for phase in sim._phases:
            check_cohort(phase.aggregator, cohort, sim.sampler.name)
        cohorts.append(cohort)
    capacity = max(capacity, sim._capacity, *(len(cohort.ids) for cohort in cohorts))
    if capacity > sim._capacity:
        sim._check_aggregation(state.aggregator, capacity)
    shape = sim._planner.shape(capacity, sim.lanes)
    planned = [
        sim._planner.plan(widened(cohort, capacity), shape, state.seed, state.round + i)
        for i, cohort in enumerate(cohorts)
    ]
    plans = [plan for plan, _ in planned]
    read = None
    if sim._reader is not None:
        read = sim._reader.ask(plans, slots, sim._planner.examples(shape), (shape, slots))
    padded = plans + [plans[0]] * (slots - count)
    return Plans(
        state.round,
        [widened(cohort, capacity) for cohort in cohorts],
        [stats for _, stats in planned],
        pack_plans(padded),
        shape,
        slots,
        sampler_state,
        plans,
        read,
    )


def widened(cohort: Cohort, capacity: int) -> Cohort:
    """The cohort with empty places up to `capacity`."""
    missing = capacity - len(cohort.ids)
    if not missing:
        return cohort
    return jax.tree.map(lambda leaf: np.pad(np.asarray(leaf), (0, missing)), cohort)
