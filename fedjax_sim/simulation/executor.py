"""Plans rounds and runs them: the compiled programs of a simulation, the examples on its devices, and its lanes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.types import RoundState
from fedjax_sim.engine.device import placement
from fedjax_sim.engine.parts import Parts
from fedjax_sim.engine.plan.planner import PlanShape
from fedjax_sim.engine.plan.words import place_plans, unpack_plan
from fedjax_sim.engine.round.block import Plans, block, pack
from fedjax_sim.engine.round.device_state import DeviceState
from fedjax_sim.engine.round.phase import make_round
from fedjax_sim.engine.round.staged import Staged
from fedjax_sim.engine.round.waves import Waves
from fedjax_sim.engine.store.residency import Constants, resident
from fedjax_sim.privacy.accounting import Meter
from fedjax_sim.simulation import debug, first_state, lanes, ledger
from fedjax_sim.simulation.choice import choosing
from fedjax_sim.simulation.epsilon import meter, spent
from fedjax_sim.simulation.execution import Execution
from fedjax_sim.simulation.fingerprint import Fingerprint, fingerprint
from fedjax_sim.simulation.history import RoundMetrics


class Executor:
    """Runs a simulation's rounds on its devices.

    Args:
        parts: what it is made of.
        execution: how its rounds are computed.

    Attributes:
        lanes: clients that a device trains side by side: fewer, once a round did not fit the memory.
        lanes_chosen: they were "auto".
        rounds_per_dispatch: rounds in one compiled dispatch.
        untuned: they are to be measured before the first round.
        tuning: seconds of a cut round by lanes, if they were measured; else None.
    """

    def __init__(self, parts: Parts, execution: Execution):
        self.parts = parts
        self._cut = Waves(parts) if parts.rows == "host" else Staged(parts) if parts.staged else None
        platform = parts.devices[0].platform
        self.lanes_chosen = execution.lanes == "auto"
        chosen = lanes.for_simulation(parts) if execution.lanes == "auto" else int(execution.lanes)
        self.lanes = min(chosen, max(-(-parts.capacity // len(parts.devices)), 1))
        self.tuning: dict[int, float] | None = None
        tunes = platform != "cpu" if execution.autotune is None else execution.autotune
        self.untuned = tunes and self.lanes_chosen and not parts.multi_process and self._cut is None
        rounds = execution.rounds_per_dispatch
        rounds = (1 if platform == "cpu" else 8) if rounds == "auto" else int(rounds)
        self.rounds_per_dispatch = 1 if parts.sampler.waits or self._cut is not None else rounds
        self._programs: dict[tuple[PlanShape, int], Callable[..., Any]] = {}

    @functools.cached_property
    def constants(self) -> Constants:
        """The federation's arrays and the task's frozen constants on every device, put there once."""
        assert self.parts.reader is None, "a streamed plan's order counts rows of its own block"
        return Constants(resident(self.parts.mesh, self.parts.data.arrays), self._frozen)

    @functools.cached_property
    def _frozen(self) -> Any:
        return resident(self.parts.mesh, self.parts.algorithm.task.frozen)

    @functools.cached_property
    def first(self) -> Callable[[Any], Any]:
        """The program of the first state, `(params) -> state`."""
        return first_state.program(self.parts)

    @functools.cached_property
    def fingerprint(self) -> Fingerprint:
        """What the simulation is, for checkpoints."""
        return fingerprint(self.parts)

    @functools.cached_property
    def released(self) -> ledger.Record:
        """What a round releases: an entry of the ledger, without rounds."""
        return ledger.setting(self.parts)

    @functools.cached_property
    def _meter(self) -> Meter | None:
        return meter(self.parts)

    # Planning

    def plan(self, state: RoundState, count: int, slots: int) -> Plans:
        """The next rounds' plans, on the devices; as of `pack`."""
        return self.placed(self.pack(state, count, slots))

    def pack(self, state: RoundState, count: int, slots: int) -> Plans:
        """The next rounds' plans, on the host."""
        return pack(choosing(self.parts, state), state, count, slots, self.lanes)

    def placed(self, plans: Plans) -> Plans:
        """Packed plans, on the devices."""
        return plans._replace(words=place_plans(self.parts.mesh, plans.words))

    def read(self, plans: Plans) -> Constants:
        """What those rounds read: the resident arrays, or what was streamed for them."""
        return self.constants if plans.examples is None else Constants(plans.examples.result(), self._frozen)

    # Running

    def dispatch(
        self, state: RoundState, plans: Plans, copy: Callable[[Any], Any]
    ) -> tuple[RoundState, list[RoundMetrics]]:
        """Start a block of rounds on the devices; returns without waiting for it, but for a program's first."""
        while True:
            try:
                return self._attempt(state, plans, copy)
            except lanes.FAILURES as error:
                self._programs.pop((plans.shape, plans.slots), None)
                if self._cut is not None:
                    self._cut.forget(plans.shape)
                self.lanes = lanes.fewer(self.parts, self.lanes, state, error)
                plans = self.plan(state, len(plans.cohorts), plans.slots)

    def _attempt(
        self, state: RoundState, plans: Plans, copy: Callable[[Any], Any]
    ) -> tuple[RoundState, list[RoundMetrics]]:
        constants = self.read(plans)
        if self.parts.debug:
            for r in range(len(plans.cohorts)):
                debug.run_clients(self.parts, state, unpack_plan(plans.words[r], plans.shape), constants)
        with debug.explained(self.parts.debug):
            programs = self.compile_count()
            if self._cut is not None:
                made, rows, output = self._cut.round(state, plans, constants)
                outputs = [output]
            else:
                program = self.program(plans.shape, plans.slots)
                made, count = copy(on_devices(state)), np.int32(len(plans.cohorts))
                made, outputs = program(state.seeds, made, plans.words, count, constants)
                rows = made.rows
            if self.compile_count() > programs:  # an allocation that fails is told now
                jax.block_until_ready((made, outputs))
        after = dataclasses.replace(
            state,
            round=state.round + len(plans.cohorts),
            server=made.server,
            aggregator=made.aggregator,
            sampler=plans.sampler_state,
            rows=rows,
            versions=made.versions,
        )
        return self._reported(after, plans, outputs)

    def _reported(self, after: RoundState, plans: Plans, outputs: Any) -> tuple[RoundState, list[RoundMetrics]]:
        """The state with what its rounds released in its ledger, and each round's metrics."""
        metrics, epsilon = [], None
        for i, (cohort, stats, output) in enumerate(zip(plans.cohorts, plans.stats, outputs, strict=False)):
            sent = 0 if output.unseen is not None and bool(output.unseen) else stats.sent
            entered = ledger.entered(after.ledger, self.released, stats.drawn, sent)
            after = dataclasses.replace(after, ledger=entered)
            if self._meter is not None:
                epsilon = functools.partial(spent, self._meter, after.ledger, plans.first + i + 1)
            metrics.append(RoundMetrics(plans.first + i, cohort, stats, output, epsilon))
        return after, metrics

    def program(self, shape: PlanShape, slots: int) -> Callable[..., Any]:
        """The program of up to `slots` rounds, `(seeds, state, words, count, constants)`, kept once compiled."""
        if (shape, slots) not in self._programs:
            self._programs[shape, slots] = self.made(shape, slots)
        return self._programs[shape, slots]

    def made(self, shape: PlanShape, slots: int) -> Callable[..., Any]:
        """That program, to be compiled."""
        run = block(make_round(self.parts, shape.capacity), shape, slots)
        # Without a say, XLA may place the state elsewhere than it was, and the next round is another program.
        out = (
            first_state.shardings(self.parts),
            placement.everywhere(self.parts.mesh) if self.parts.multi_process else None,
        )
        return jax.jit(run, donate_argnums=(1,) if self.parts.donates else (), out_shardings=out)

    def compile_count(self) -> int:
        """How many programs the rounds have needed so far."""
        if self._cut is not None:
            return self._cut.compile_count()
        return sum(program._cache_size() for program in self._programs.values())  # type: ignore[attr-defined]

    # Between rounds

    def use(self, chosen: int) -> None:
        """Train with lanes that were measured, or that a checkpoint was trained with, unless the user chose some."""
        if self.lanes_chosen:
            self.lanes, self.untuned = chosen, False

    def copy_if_donated(self, tree: PyTree) -> Any:
        """What the next dispatch may not take."""
        if not self.parts.donates:
            return tree
        copy = _copy(tree)
        if len(self.parts.devices) > 1:
            return copy
        # There dealt rows count as whole once they are copied, and the next round's program would be another.
        return jax.device_put(copy, jax.tree.map(lambda leaf: leaf.sharding, tree))

    def observed(self, state: RoundState, rounds: list[RoundMetrics]) -> RoundState:
        """The state with what the sampler takes from rounds that are done, its rows safe."""
        if self.parts.rows == "host":
            state.rows.settle()
        sampler = self.parts.sampler
        if sampler.observe is None:
            return state
        seen = sampler.observe(state.sampler, rounds[-1].cohort, rounds[-1].observed())
        return dataclasses.replace(state, sampler=seen)

    def replay(self, good: RoundState, failed: int) -> tuple[RoundState, list[RoundMetrics]]:
        """The state just before a failed round of a block: its good rounds once more, one by one."""
        rounds: list[RoundMetrics] = []
        while good.round < failed:
            plans = self.plan(good, 1, self.rounds_per_dispatch)
            good, metrics = self.dispatch(good, plans, self.copy_if_donated)
            good = self.observed(good, metrics)
            rounds += metrics
        return good, rounds


def on_devices(state: RoundState) -> DeviceState:
    """The part of a state that a program takes."""
    return DeviceState(state.server, state.aggregator, state.rows, state.versions)


@jax.jit
def _copy(tree: PyTree) -> Any:
    return jax.tree.map(jnp.copy, tree)
