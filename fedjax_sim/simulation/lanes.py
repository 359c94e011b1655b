"""How many clients a device trains side by side: by a rule, by measurement, and fewer where memory does not suffice."""

import contextlib
import dataclasses
import hashlib
import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_sim.core import pytree
from fedjax_sim.core.errors import FedSimError, RunFolderError
from fedjax_sim.core.types import Cohort, RoundState
from fedjax_sim.engine.plan.packing import Plans
from fedjax_sim.engine.plan.planner import deal
from fedjax_sim.engine.store.residency import memory_of
from fedjax_sim.runs.writing import replace

STEPS = 2
"""Local steps of a client, while candidates are timed."""

FAILURES = (jax.errors.JaxRuntimeError, MemoryError)
"""What a failed allocation raises; and others raise the former."""

TIMED = 3
"""Rounds of a candidate that are timed."""


DRAWN = 3200
"""Clients that are drawn to weigh lanes against each other, in 4 to 32 cohorts."""


def for_simulation(sim: Any, members: int = 1) -> int:
    """The lanes that `lanes="auto"` means for a simulation, or for a sweep of so many members.

    A function of model, data, batching, sampler and devices, so that it is the same for every seed and for a run that
    goes on. Found once: it costs O(population).
    """
    num_params, platform = pytree.size(sim.model), sim.devices[0].platform
    per_device = max(1, -(-sim._capacity // len(sim.devices)))
    most = auto_lanes(num_params, platform, per_device, members)
    if platform != "cpu":
        return most
    sizes, clients = sim.data.kinds()
    steps, work = sim.batching.count_steps(sizes), num_params * sim.batching.batch_size
    return for_steps(most, steps, clients, sim._expected, len(sim.devices), work)


def for_steps(most: int, steps: np.ndarray, clients: np.ndarray, cohort: float, devices: int, work: int) -> int:
    """The lanes that train a cohort soonest on a CPU, `most` at the most.

    A chunk of L lanes runs to its longest client, so that lanes beside a long one compute steps that nobody needs. A
    step of L lanes takes the time of p + L of one client, p = 1 / (1 + work / 30,000); lanes share no more than the p.
    The slowest device's steps are counted, for cohorts drawn from the population, each client as likely as another.

    Args:
        most: where the lanes' models leave the cache, or a device has no more clients.
        steps: [n] the step counts that occur.
        clients: [n] how many clients have each.
        cohort: clients that are expected in a round.
        devices: that share them.
        work: parameters times batch size.

    Example:
        >>> import numpy as np
        >>> from fedjax_sim.simulation.lanes import for_steps
        >>> for_steps(16, np.array([5]), np.array([50]), cohort=50, devices=1, work=6100)
        8
        >>> for_steps(16, np.array([5, 150]), np.array([49, 1]), cohort=50, devices=1, work=6100)
        1
    """
    candidates = sorted({most, *(2**i for i in range(most.bit_length()))})
    shared, population = 1 / (1 + work / 30_000), int(clients.sum())
    size = int(min(max(round(cohort), 1), population))
    falling = np.argsort(-steps, kind="stable")
    steps, clients = steps[falling], clients[falling]
    cost = dict.fromkeys(candidates, 0.0)
    draw = np.random.default_rng(0)  # no run's: what seeds share
    for _ in range(max(4, min(32, DRAWN // size)) if size < population else 1):
        drawn = draw.multivariate_hypergeometric(clients, size, method="marginals") if size < population else clients
        each = np.repeat(steps, drawn)
        each = each[each > 0]
        device = deal(each, devices)
        for lanes in candidates:
            longest = max(int(each[device == d][::lanes].sum()) for d in range(devices))
            cost[lanes] += longest * (shared + lanes)
    return min(candidates, key=cost.__getitem__)


def auto_lanes(num_params: int, platform: str, clients_per_device: int, members: int = 1) -> int:
    """How many clients a device trains side by side, when the user does not say, by size alone: on a CPU, at the most.

    On a CPU the lanes' models should stay in its cache: 1 from 50,000 parameters on, else up to 16 for as long as the
    lanes hold 50,000 parameters together. On an accelerator, which wants wide work: as many as hold 2**28
    parameters together (1 GiB in float32, four or five times that with gradients and updates), at most 256.
    Never more than a device has clients. A lane of a sweep holds a model of each of its `members`, which share a
    batch's reading and planning: there the CPU's lanes may hold 100,000 parameters.
    """
    budget, most = (50_000 if members == 1 else 100_000, 16) if platform == "cpu" else (2**28, 256)
    return int(max(1, min(most, budget // max(num_params * members, 1), clients_per_device)))


# Where memory does not suffice


def replanned(sim: Any, state: RoundState, plans: Plans, error: Exception) -> Plans:
    """The same rounds for half the lanes, if the error says that memory did not suffice; else it is raised.

    Raises:
        FedSimError: one lane is too much.
    """
    if not out_of_memory(error) or sim.shared or _gone(state):
        raise error
    said = " ".join(str(error).split())[:200]
    if sim.lanes == 1:
        raise FedSimError(
            f"round {state.round} does not fit the devices' memory, with one client at a time on each ({said}). Lower "
            'the batch size, or wrap the task in fs.client.micro_batches or remat; residency="stream" and rows="host" '
            "keep examples and clients' rows elsewhere."
        ) from error
    before, sim.lanes = sim.lanes, sim.lanes // 2
    warnings.warn(
        f"round {state.round} did not fit the devices' memory with lanes={before} ({said}): it is trained again, and "
        f"later rounds are, with lanes={sim.lanes}.",
        stacklevel=4,
    )
    return sim._plan(state, len(plans.cohorts), plans.slots)


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a device or on the host."""
    words = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")
    return isinstance(error, MemoryError) or any(each in str(error) for each in words)


def _gone(state: RoundState) -> bool:
    leaves = jax.tree.leaves((state.server, state.aggregator, state.rows))
    return any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in leaves)


# By measurement


def tune(sim: Any, state: RoundState) -> dict[int, float]:
    """Set `sim.lanes` to what trains a round's clients fastest: seconds by candidate, infinite for what does not fit.

    Candidates are half, twice and four times the rule's lanes, and these. Each one's round is compiled; what needs more
    memory than a device has is left out, by the compiler's account or by the attempt; the others train the state's next
    cohort, cut to `STEPS` steps a client, `TIMED` times. The result is kept for the process and, where compiled
    programs are kept, beside them, by program and device.
    """
    per_device = -(-sim._capacity // len(sim.devices))
    rule = sim.lanes
    candidates = sorted({max(1, min(n, per_device)) for n in (rule // 2, rule, 2 * rule, 4 * rule)})
    sampler = sim.sampler
    sim.sampler = sampler._replace(sample=_cut(sampler.sample))
    key, found = "", {}
    try:
        for lanes in sorted(candidates, key=lambda n: n != rule):
            sim.lanes = lanes
            plans = sim._plan(state, 1, slots=sim.rounds_per_dispatch)
            arrays = sim._resident_arrays() if plans.examples is None else plans.examples.result()
            given = (state.seeds, sim._on_devices(state), plans.words, np.int32(1), arrays)
            lowered = sim._program(plans.shape, plans.slots).lower(*given)
            if not key:
                key = _key(sim, lowered, candidates)
                found = _known(key)
                if found:
                    break
            found[lanes] = _seconds(sim, lowered, given)
        else:
            _keep(key, found)
    finally:
        sim.sampler, sim.lanes = sampler, rule
        sim._programs.clear()
    sim.lanes = min(found, key=found.__getitem__)
    return found


def _cut(sample: Any) -> Any:
    """Cohorts whose clients stop after a few steps."""

    def cut(state: Any, round: int, seed: int) -> tuple[Cohort, Any]:
        cohort, state = sample(state, round, seed)
        steps = np.full(len(cohort.ids), STEPS, np.int32)
        if cohort.max_steps is not None:
            steps = np.minimum(steps, cohort.max_steps)
        return dataclasses.replace(cohort, max_steps=steps), state

    return cut


def _seconds(sim: Any, lowered: Any, given: Any) -> float:
    """A round's, by the middle of a few; infinite if it does not fit."""
    try:
        compiled = lowered.compile()
        needs = compiled.memory_analysis()
        if needs is not None:
            sizes = (needs.temp_size_in_bytes, needs.argument_size_in_bytes, needs.output_size_in_bytes)
            if sum(sizes) - needs.alias_size_in_bytes > memory_of(sim.devices[0]):
                return float("inf")
        seconds = []
        for _ in range(TIMED + 1):
            made = sim._copy_if_donated(given[1])
            begin = time.perf_counter()
            jax.block_until_ready(compiled(given[0], made, *given[2:]))
            seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds[1:])
    except FAILURES as error:
        if not out_of_memory(error):
            raise
        return float("inf")


_tuned: dict[str, dict[int, float]] = {}


def _key(sim: Any, lowered: Any, candidates: list[int]) -> str:
    """Of a program and the devices that it runs on."""
    device = sim.devices[0]
    told = (lowered.as_text(), jax.__version__, device.platform, device.device_kind, len(sim.devices), candidates)
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
            replace(file, json.dumps(found))
