"""How many clients a device trains side by side: by a rule, and fewer where memory does not suffice."""

import warnings

import jax
import numpy as np

from fedjax_sim.core import pytree
from fedjax_sim.core.errors import FedSimError
from fedjax_sim.core.types import RoundState
from fedjax_sim.engine.parts import Parts
from fedjax_sim.engine.plan.planner import deal

FAILURES = (jax.errors.JaxRuntimeError, MemoryError)
"""What a failed allocation raises; and others raise the former."""

DRAWN = 3200
"""Clients that are drawn to weigh lanes against each other, in 4 to 32 cohorts."""


def for_simulation(parts: Parts, members: int = 1) -> int:
    """The lanes that `lanes="auto"` means for a simulation, or for a sweep of so many members.

    A function of model, data, batching, sampler and devices, so that it is the same for every seed and for a run that
    goes on. Found once: it costs O(population).
    """
    num_params, platform = pytree.size(parts.model), parts.devices[0].platform
    if platform == "cpu":  # where a lane's step reads frozen constants through the cache, as it does its own numbers
        num_params += pytree.size(parts.algorithm.task.frozen)
    per_device = max(1, -(-parts.capacity // len(parts.devices)))
    most = auto_lanes(num_params, platform, per_device, members)
    if platform != "cpu":
        return most
    sizes, clients = parts.data.kinds()
    steps, work = parts.batching.count_steps(sizes), num_params * parts.batching.batch_size
    return for_steps(most, steps, clients, parts.expected, len(parts.devices), work)


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


def fewer(parts: Parts, lanes: int, state: RoundState, error: Exception) -> int:
    """Half the lanes, if the error says that memory did not suffice for a round; else it is raised.

    Raises:
        FedSimError: one lane is too much.
    """
    if not out_of_memory(error) or parts.multi_process or _gone(state):
        raise error
    said = " ".join(str(error).split())[:200]
    if lanes == 1:
        raise FedSimError(
            f"round {state.round} does not fit the devices' memory, with one client at a time on each ({said}). Lower "
            'the batch size, or wrap the task in fs.client.micro_batches or remat; residency="stream" and rows="host" '
            "keep examples and clients' rows elsewhere."
        ) from error
    warnings.warn(
        f"round {state.round} did not fit the devices' memory with lanes={lanes} ({said}): it is trained again, and "
        f"later rounds are, with lanes={lanes // 2}.",
        stacklevel=4,
    )
    return lanes // 2


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a device or on the host."""
    words = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")
    return isinstance(error, MemoryError) or any(each in str(error) for each in words)


def _gone(state: RoundState) -> bool:
    leaves = jax.tree.leaves((state.server, state.aggregator, state.rows, state.versions))
    return any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in leaves)
