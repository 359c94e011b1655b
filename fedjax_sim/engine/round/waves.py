"""Rounds of clients whose rows are on the host: waves of a few chunks, their rows read before and written after.

While the devices train a wave, this thread reads the next one's rows and another writes those of the one before. No
more than three waves' rows are on the devices at a time, however large the cohort.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.types import ClientRows, RoundPlan, RoundState
from fedjax_sim.engine.device import placement
from fedjax_sim.engine.parts import Parts
from fedjax_sim.engine.plan.planner import PlanShape
from fedjax_sim.engine.plan.words import unpack_plan
from fedjax_sim.engine.round.abandoned import abandoned_state
from fedjax_sim.engine.round.block import Plans
from fedjax_sim.engine.round.device_state import DeviceState
from fedjax_sim.engine.round.phase import PhaseRound, RoundOutput, no_output, phase_rounds
from fedjax_sim.engine.store import row_file
from fedjax_sim.engine.store.residency import Constants
from fedjax_sim.engine.store.row_file import HostRows, Row

WAVE = {"cpu": 2**24}
"""Bytes of a wave's rows on a device; elsewhere `_WAVE`."""
_WAVE = 2**28


class Programs(NamedTuple):
    """What a phase compiles: the sums' beginning, a wave, and the server's side."""

    begin: Callable[..., Any]
    wave: Callable[..., Any]
    finish: Callable[..., Any]


class Waves:
    """Runs the rounds of a simulation whose rows are on the host.

    Args:
        parts: of the simulation.
    """

    def __init__(self, parts: Parts):
        self.parts = parts
        self._programs: dict[PlanShape, list[Programs]] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="fedjax_sim-rows")
        self._unwritten: deque[Future[None]] = deque()

    def round(self, state: RoundState, plans: Plans, constants: Constants) -> tuple[DeviceState, HostRows, RoundOutput]:
        """One round: the server's state after it, the clients' rows, and what it reports.

        Waits for no computation, unless a reducer may refuse the round: rows of before are then kept by the host.
        """
        rows: HostRows = state.rows  # type: ignore[assignment]
        before = made = DeviceState(state.server, state.aggregator, ClientRows(), state.versions)
        seeds, output = state.seeds, None
        for programs in self.programs(plans.shape):
            sums, rows = self._train(programs, (seeds, made, plans.words), rows, plans, constants)
            made, output = programs.finish(seeds, made, plans.words, sums, output, constants.frozen)
        assert output is not None
        if output.abandoned is not None and bool(output.abandoned):
            made, rows = abandoned_state(self.parts, before, made), state.rows  # type: ignore[assignment]
        return made, rows, output

    def _train(self, programs: Programs, given: PyTree, rows: HostRows, plans: Plans, constants: Constants) -> Any:
        """A phase's sums, and the rows after it."""
        plan: RoundPlan = plans.rounds[0]
        chunks, lanes = chunks_of(plans.shape, self.parts.row_bytes, self.parts.mesh), plans.shape.lanes
        new: dict[int, Row] = {}
        writes, sums = [], None
        for first in range(0, int(max(plan.chunks.max(), 1)), chunks):
            clients, copies = clients_of(plan, first, chunks), copies_of(plan, first, chunks)
            block = read_rows(self.parts.mesh, rows, clients, chunks * lanes)
            if sums is None:
                sums = programs.begin(*given, block, constants)
            if len(self._unwritten) > 1:
                wait([self._unwritten.popleft()])  # what went wrong is said where its state settles
            sums, after = programs.wave(*given, block, constants, sums, np.int32(first))
            made = [[rows.file.new() for _ in its] for its in clients]
            write = self._writer.submit(_write, after, made)
            self._unwritten.append(write)
            writes.append(write)
            for its, which, rows_made in zip(clients, copies, made, strict=True):
                for client, copy, row in zip(its, which, rows_made, strict=True):
                    row.written = write
                    if not copy:
                        new[client] = row
        return sums, rows.updated(new, writes)

    def programs(self, shape: PlanShape) -> list[Programs]:
        """A phase each."""
        if shape not in self._programs:
            phases = phase_rounds(self.parts, shape.capacity)
            self._programs[shape] = [self._compiled(phase, shape) for phase in phases]
        return self._programs[shape]

    def _compiled(self, phase: PhaseRound, shape: PlanShape) -> Programs:
        def begin(
            seeds: jax.Array, state: DeviceState, words: jax.Array, block: ClientRows, constants: Constants
        ) -> Any:
            plan = unpack_plan(words[0], shape)
            return phase.train.begin(phase.broadcast(seeds, state, plan), phase.rows(block), plan, constants)

        def wave(
            seeds: jax.Array,
            state: DeviceState,
            words: jax.Array,
            block: ClientRows,
            constants: Constants,
            sums: PyTree,
            first: jax.Array,
        ):
            plan = unpack_plan(words[0], shape)
            broadcast = phase.broadcast(seeds, state, plan)
            sums, rows = phase.train.wave(broadcast, phase.rows(block), plan, constants, sums, first)
            return sums, phase.with_rows(block, rows)

        def finish(
            seeds: jax.Array,
            state: DeviceState,
            words: jax.Array,
            sums: PyTree,
            output: RoundOutput | None,
            frozen: PyTree,
        ):
            plan = unpack_plan(words[0], shape)
            output, result = no_output(shape.capacity) if output is None else output, phase.train.finish(sums)
            return phase.finish(phase.broadcast(seeds, state, plan), state, plan, result, output, frozen)

        return Programs(jax.jit(begin), jax.jit(wave, donate_argnums=5), jax.jit(finish))

    def forget(self, shape: PlanShape) -> None:
        """A round of that shape failed."""
        self._programs.pop(shape, None)
        self._unwritten.clear()

    def compile_count(self) -> int:
        """Programs of waves that were compiled: one a phase."""
        phases = [each for programs in self._programs.values() for each in programs]
        return sum(each.wave._cache_size() for each in phases)  # type: ignore[attr-defined]


def chunks_of(shape: PlanShape, row_bytes: int, mesh: Mesh) -> int:
    """Chunks of a wave."""
    budget = WAVE.get(mesh.devices.flat[0].platform, _WAVE)
    return int(max(1, min(budget // max(1, row_bytes * shape.lanes), -(-shape.chunks // shape.devices))))


def clients_of(plan: RoundPlan, first: int, chunks: int) -> list[list[int]]:
    """Of each device, the clients of so many chunks from the first on: those of its first lanes there."""
    return _of_lanes(plan, plan.lanes.client_id, first, chunks)


def copies_of(plan: RoundPlan, first: int, chunks: int) -> list[list[int]]:
    """Of each device, which copies of them those are: 0 for those whose rows are kept."""
    copies = plan.lanes.copy
    return _of_lanes(plan, np.zeros_like(plan.lanes.steps) if copies is None else copies, first, chunks)


def _of_lanes(plan: RoundPlan, column: np.ndarray, first: int, chunks: int) -> list[list[int]]:
    part = (slice(None), slice(first, first + chunks))
    steps, values = (leaf[part].reshape(len(leaf), -1) for leaf in (plan.lanes.steps, column))
    return [values[d, steps[d] > 0].tolist() for d in range(len(values))]


def read_rows(mesh: Mesh, rows: HostRows, clients: list[list[int]], count: int) -> ClientRows:
    """The rows of a wave's clients, those of each device on it, with room for `count`."""
    blocks = []
    for its in clients:
        leaves = [placement.aligned_empty((count, *shape), dtype) for shape, dtype in rows.file.leaves]
        rows.read(its, leaves)
        blocks.append(jax.tree.unflatten(rows.file.structure, leaves))
    return placement.deal_blocks(mesh, blocks).arrays


def _write(after: ClientRows, rows: list[list[Row]]) -> None:
    """Write each device's rows, once they are computed."""
    jax.block_until_ready(after)  # raises what went wrong, where reading would end the process
    for d, its in enumerate(rows):
        row_file.write(its, [np.asarray(leaf.addressable_shards[d].data) for leaf in jax.tree.leaves(after)])
