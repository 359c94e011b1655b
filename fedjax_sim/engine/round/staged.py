"""Rounds in which the host speaks between the clients' sum and the server's side: two programs a phase."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.aggregate import HostResult, HostRound, HostStage, HostSum
from fedjax_sim.aggregate.collecting import ABANDONED
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.metrics import Mean, Sum
from fedjax_sim.core.types import ClientRows, RoundState
from fedjax_sim.engine.parts import Parts
from fedjax_sim.engine.plan.planner import PlanShape
from fedjax_sim.engine.plan.words import unpack_plan
from fedjax_sim.engine.round.abandoned import abandoned_state
from fedjax_sim.engine.round.block import Plans
from fedjax_sim.engine.round.cohort_map import CohortResult
from fedjax_sim.engine.round.device_state import DeviceState
from fedjax_sim.engine.round.phase import PhaseRound, RoundOutput, no_output, phase_rounds
from fedjax_sim.engine.store.residency import Constants


class Programs(NamedTuple):
    """What a phase compiles: clients to their sum, and the server's side."""

    train: Callable[..., Any]
    finish: Callable[..., Any]
    stage: HostStage | None


class Staged:
    """Runs the rounds of a simulation whose chains have a host stage between.

    Args:
        parts: of the simulation.
    """

    def __init__(self, parts: Parts):
        self.parts = parts
        self._programs: dict[PlanShape, list[Programs]] = {}

    def round(
        self, state: RoundState, plans: Plans, constants: Constants
    ) -> tuple[DeviceState, ClientRows, RoundOutput]:
        """One round: the server's state after it, the clients' rows, and what it reports; waits for phases' sums."""
        before = made = DeviceState(state.server, state.aggregator, state.rows, state.versions)
        output, metrics, refused, unseen = no_output(plans.shape.capacity), {}, False, False
        host = HostRound(plans.first, int(state.seeds[1]), plans.cohorts[0])
        for programs in self.programs(plans.shape):
            given = (state.seeds, made, plans.words)
            result, rows, contributes = programs.train(*given, constants)
            if programs.stage is not None and programs.stage.between is not None:
                said = _said(programs.stage, host, result, contributes)
                result, refused = result._replace(total=said.value), refused or said.refused
                unseen = said.refused and not said.released and len(self.parts.phases) == 1
                named = lambda name: name if "/" in name else f"aggregate/{name}"
                metrics |= {named(name): _mean(value) for name, value in said.metrics.items()}
            made, output = programs.finish(*given, rows, result, output, constants.frozen)
        refused |= output.abandoned is not None and bool(output.abandoned)  # by a reducer
        if refused:
            made = replace(abandoned_state(self.parts, before, made), rows=before.rows)
        metrics[f"aggregate/{ABANDONED}"] = Sum(jnp.asarray(refused, jnp.float32))
        told = {"abandoned": jnp.asarray(refused), "unseen": jnp.asarray(unseen)}
        return made, made.rows, replace(output, merged=output.merged | metrics, **told)

    def programs(self, shape: PlanShape) -> list[Programs]:
        """A phase each."""
        if shape not in self._programs:
            phases = phase_rounds(self.parts, shape.capacity)
            self._programs[shape] = [self._compiled(phase, shape) for phase in phases]
        return self._programs[shape]

    def _compiled(self, phase: PhaseRound, shape: PlanShape) -> Programs:
        def train(seeds: jax.Array, state: DeviceState, words: jax.Array, constants: Constants) -> Any:
            plan = unpack_plan(words[0], shape)
            result = phase.train(phase.broadcast(seeds, state, plan), phase.rows(state.rows), plan, constants)
            slots = plan.lanes.slot.reshape(-1)
            contributes = jnp.zeros(shape.capacity, bool).at[slots].set(result.contributes.reshape(-1), mode="drop")
            return result._replace(rows=()), phase.with_rows(state.rows, result.rows), contributes

        def finish(
            seeds: jax.Array,
            state: DeviceState,
            words: jax.Array,
            rows: ClientRows,
            result: CohortResult,
            output: RoundOutput,
            frozen: PyTree,
        ):
            plan = unpack_plan(words[0], shape)
            broadcast = phase.broadcast(seeds, state, plan)
            return phase.finish(broadcast, replace(state, rows=rows), plan, result, output, frozen)

        return Programs(jax.jit(train), jax.jit(finish), phase.aggregator.host)

    def forget(self, shape: PlanShape) -> None:
        """A round of that shape failed."""
        self._programs.pop(shape, None)

    def compile_count(self) -> int:
        """Programs of clients that were compiled: one a phase."""
        phases = [each for programs in self._programs.values() for each in programs]
        return sum(each.train._cache_size() for each in phases)  # type: ignore[attr-defined]


def _said(stage: HostStage, host: HostRound, result: CohortResult, contributes: jax.Array) -> HostResult:
    """What a stage makes of a sum, checked."""
    assert stage.between is not None
    total, seen, weight = jax.tree.map(np.array, jax.device_get((result.total, contributes, result.weight)))
    said = stage.between(host, HostSum(total, seen, float(weight)))
    if not isinstance(said, HostResult):
        raise ArgumentError(f"a host stage's between returned {said!r}: must be an fs.aggregate.HostResult.")
    kinds = lambda tree: jax.tree.map(lambda leaf: f"{np.asarray(leaf).dtype}{list(np.shape(leaf))}", tree)
    if kinds(said.value) != kinds(total):
        raise ArgumentError(
            f"a host stage's between turned a sum of {kinds(total)} into {kinds(said.value)}: structure, shapes and "
            "dtypes must stay."
        )
    if not said.refused and _finite(total) and not _finite(said.value):
        raise ArgumentError(
            f"a host stage's between made a sum that is not finite, in round {host.round}, of one that was: mend it, "
            "or return HostResult(..., refused=True)."
        )
    placed = jax.tree.map(lambda leaf, old: jax.device_put(np.asarray(leaf), old.sharding), said.value, result.total)
    return said._replace(value=placed)


def _finite(tree: PyTree) -> bool:
    return all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


def _mean(value: float) -> Mean:
    return Mean(jnp.asarray(value, jnp.float32), jnp.ones(()))
