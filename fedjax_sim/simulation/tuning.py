"""Lanes by measurement: a few numbers of them are timed before the first round."""

import contextlib
import dataclasses
import hashlib
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import RunFolderError
from fedjax_sim.core.types import Cohort, RoundState
from fedjax_sim.engine.parts import Parts
from fedjax_sim.engine.round.block import pack
from fedjax_sim.engine.store.residency import memory_of
from fedjax_sim.runs.writing import rewrite
from fedjax_sim.simulation.executor import Executor, on_devices
from fedjax_sim.simulation.lanes import FAILURES, out_of_memory

STEPS = 2
"""Local steps of a client, while candidates are timed."""

TIMED = 3
"""Rounds of a candidate that are timed."""


def tune(executor: Executor, state: RoundState) -> None:
    """Choose an executor's lanes by measurement, once, before the first round, if that is wanted."""
    if executor.untuned:
        executor.tuning = measured(executor, state)
        executor.use(min(executor.tuning, key=executor.tuning.__getitem__))


def measured(executor: Executor, state: RoundState) -> dict[int, float]:
    """Seconds of a round by candidate, infinite for what does not fit the memory.

    The rule counts parameters; what a step keeps beside them the compiler says: where the rule's lanes need more memory
    than a device has, by its account, as many as fit take their place. Candidates are half, twice and four times those,
    and these. Each one's round is compiled; what does not fit, by that account or by the attempt, is left out; the
    others train the state's next cohort, cut to `STEPS` steps a client, `TIMED` times. The result is kept for the
    process and, where compiled programs are kept, beside them, by program and device.
    """
    parts, rule, slots = executor.parts, executor.lanes, executor.rounds_per_dispatch
    cut = dataclasses.replace(parts, sampler=parts.sampler._replace(sample=_cut(parts.sampler.sample)))

    def lowered(lanes: int) -> Any:
        plans = executor.placed(pack(cut, state, 1, slots, lanes))
        given = (state.seeds, on_devices(state), plans.words, np.int32(1), executor.read(plans))
        return executor.made(plans.shape, slots).lower(*given), given  # type: ignore[attr-defined]

    first, given = lowered(rule)
    key = _key(parts, first)
    found = _known(key)
    if found:
        return found
    fits = _fitting(first, rule, memory_of(parts.devices[0]))
    if fits == rule:
        found[rule] = _seconds(executor, first, given)
    per_device = -(-parts.capacity // len(parts.devices))
    for lanes in sorted({max(1, min(n, per_device)) for n in (fits // 2, fits, 2 * fits, 4 * fits)} - {*found}):
        if lanes < rule or fits == rule:
            found[lanes] = _seconds(executor, *lowered(lanes))
    _keep(key, found)
    return found


def _fitting(lowered: Any, lanes: int, memory: int) -> int:
    """So many lanes, or as many as a program of so many lets expect to fit."""
    try:
        needs = lowered.compile().memory_analysis()
    except FAILURES as error:
        if not out_of_memory(error):
            raise
        return max(1, lanes // 2)
    if needs is None or not needs.temp_size_in_bytes:
        return lanes
    fixed = needs.argument_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes
    return max(1, min(lanes, lanes * (memory - fixed) // needs.temp_size_in_bytes))


def _cut(sample: Any) -> Any:
    """Cohorts whose clients stop after a few steps."""

    def cut(state: Any, round: int, seed: int) -> tuple[Cohort, Any]:
        cohort, state = sample(state, round, seed)
        steps = np.full(len(cohort.ids), STEPS, np.int32)
        if cohort.max_steps is not None:
            steps = np.minimum(steps, cohort.max_steps)
        return dataclasses.replace(cohort, max_steps=steps), state

    return cut


def _seconds(executor: Executor, lowered: Any, given: PyTree) -> float:
    """A round's, by the middle of a few; infinite if it does not fit."""
    try:
        compiled = lowered.compile()
        needs = compiled.memory_analysis()
        if needs is not None:
            sizes = (needs.temp_size_in_bytes, needs.argument_size_in_bytes, needs.output_size_in_bytes)
            if sum(sizes) - needs.alias_size_in_bytes > memory_of(executor.parts.devices[0]):
                return float("inf")
        seconds = []
        for _ in range(TIMED + 1):
            made = executor.copy_if_donated(given[1])
            begin = time.perf_counter()
            jax.block_until_ready(compiled(given[0], made, *given[2:]))
            seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds[1:])
    except FAILURES as error:
        if not out_of_memory(error):
            raise
        return float("inf")


_tuned: dict[str, dict[int, float]] = {}


def _key(parts: Parts, lowered: Any) -> str:
    """Of a program and the devices that it runs on."""
    device = parts.devices[0]
    told = (
        lowered.as_text(),
        jax.__version__,
        device.platform,
        device.device_kind,
        len(parts.devices),
        memory_of(device),
    )
    return hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()


def _file(key: str) -> Path | None:
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    return Path(folder) / f"lanes-{key}.json" if folder else None


def _known(key: str) -> dict[int, float]:
    file = _file(key)
    if key not in _tuned and file is not None and file.exists():
        try:
            _tuned[key] = {int(lanes): float(seconds) for lanes, seconds in json.loads(file.read_text()).items()}
        except (OSError, ValueError, AttributeError):  # it is measured again
            return {}
    return dict(_tuned.get(key, {}))


def _keep(key: str, found: dict[int, float]) -> None:
    _tuned[key] = found
    file = _file(key)
    if file is not None:
        with contextlib.suppress(RunFolderError):  # it is measured again
            rewrite(file, json.dumps(found))
