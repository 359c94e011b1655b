"""A block of rounds: planned together, and run by one program."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.aggregate import HostRound
from fedjax_sim.aggregate.checks import check_build, check_cohort
from fedjax_sim.aggregate.host import told_before
from fedjax_sim.core import pytree
from fedjax_sim.core.arrays import Array, PyTree
from fedjax_sim.core.types import Cohort, RoundPlan, RoundState
from fedjax_sim.engine.parts import Parts
from fedjax_sim.engine.plan.planner import PlanShape, PlanStats
from fedjax_sim.engine.plan.words import pack_plans, unpack_plan
from fedjax_sim.engine.round.cohort_map import EDGE
from fedjax_sim.engine.round.device_state import DeviceState
from fedjax_sim.engine.round.phase import RoundOutput
from fedjax_sim.engine.store.residency import Constants


class Plans(NamedTuple):
    """A block of rounds, planned; its words packed, or placed."""

    first: int
    cohorts: list[Cohort]
    stats: list[PlanStats]
    words: Array
    shape: PlanShape
    slots: int
    sampler_state: Any
    rounds: list[RoundPlan]
    examples: PyTree = None


def pack(parts: Parts, state: RoundState, count: int, slots: int, lanes: int, capacity: int = 0) -> Plans:
    """Cohorts and plans of the next rounds; all of one capacity, so that they share a dispatch of `slots`.

    Args:
        parts: of the simulation.
        state: before the first of the rounds.
        count: rounds, at most `slots`.
        slots: rounds that the dispatch has room for.
        lanes: clients that a device trains side by side.
        capacity: places in a cohort at least, over the sampler's.
    """
    sampler_state, cohorts = state.sampler, []
    for r in range(state.round, state.round + count):
        cohort, sampler_state = parts.sampler.sample(sampler_state, r, state.seed)
        if cohort.abandoned:
            cohort = replace(cohort, arrives=np.zeros(len(cohort.ids), bool))
        for phase in parts.phases:
            check_cohort(phase.aggregator, cohort, parts.sampler.name)
            if phase.aggregator.host is not None and phase.aggregator.host.before is not None:
                host = HostRound(r, int(state.seeds[1]), cohort)
                cohort = told_before(phase.aggregator.host, host, phase.aggregator.name)
        if parts.algorithm.edges is not None:
            edge = parts.algorithm.edges.places(np.asarray(cohort.ids))
            cohort = replace(cohort, columns={**cohort.columns, EDGE: edge})
        cohorts.append(cohort)
    capacity = max(capacity, parts.capacity, *(len(cohort.ids) for cohort in cohorts))
    if capacity > parts.capacity:
        check_aggregation(parts, state.aggregator, capacity)
    shape = parts.planner.shape(capacity, lanes)
    cohorts = [widened(cohort, capacity) for cohort in cohorts]
    planned = [
        parts.planner.plan(cohort, shape, state.seed, round) for round, cohort in enumerate(cohorts, state.round)
    ]
    plans = [plan for plan, _ in planned]
    read = None
    if parts.reader is not None:
        read = parts.reader.ask(plans, slots, parts.planner.examples(shape), (shape, slots))
    words = pack_plans(plans + [plans[0]] * (slots - count))
    stats = [stats for _, stats in planned]
    return Plans(state.round, cohorts, stats, words, shape, slots, sampler_state, plans, read)


def check_aggregation(parts: Parts, aggregator_states: PyTree, capacity: int) -> None:
    """Raise where a chain cannot carry what so many clients send."""
    for phase, state, sent in zip(parts.phases, aggregator_states, parts.sent, strict=True):
        check_build(phase.aggregator, state, sent.payload, capacity, parts.expected)


def block(one_round: Callable[..., Any], shape: PlanShape, slots: int) -> Callable[..., Any]:
    """Up to `slots` rounds in one dispatch; how many is traced. Outputs come as a list, one entry a slot."""

    one_round = jax.jit(one_round, inline=True)  # traced once, for the shapes and for the loop

    def run(seeds: jax.Array, state: DeviceState, words: jax.Array, count: jax.Array, constants: Constants):
        plan_of = lambda r: unpack_plan(words[r], shape)
        like = jax.eval_shape(lambda: one_round(seeds, state, plan_of(0), constants)[1])
        outputs = jax.tree.map(lambda a: jnp.zeros((slots, *a.shape), a.dtype), like)

        def body(r: Any, carry: tuple[DeviceState, RoundOutput]):
            state, outputs = carry
            state, output = one_round(seeds, state, plan_of(r), constants)
            return state, pytree.put(outputs, output, r)

        state, outputs = jax.lax.fori_loop(0, count, body, (state, outputs))
        return state, [jax.tree.map(lambda leaf, r=r: leaf[r], outputs) for r in range(slots)]

    return run


def widened(cohort: Cohort, capacity: int) -> Cohort:
    """The cohort with empty places up to `capacity`."""
    missing = capacity - len(cohort.ids)
    if not missing:
        return cohort
    places = lambda leaf: [(0, missing), *[(0, 0)] * (np.ndim(leaf) - 1)]
    told, cohort = cohort.told, replace(cohort, told=None)
    return replace(jax.tree.map(lambda leaf: np.pad(np.asarray(leaf), places(leaf)), cohort), told=told)
