"""Evaluation: pooled over one data set, or client by client, through the engine's own map."""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.client import ClientBatches, Task, local_steps
from fedjax_sim.client.task import evaluation
from fedjax_sim.core import metrics as metrics_lib
from fedjax_sim.core import rng
from fedjax_sim.core.errors import check_count, is_traced
from fedjax_sim.core.kinds import check_computable
from fedjax_sim.core.metrics import Metric
from fedjax_sim.core.rng import Purpose
from fedjax_sim.core.types import Params, RoundPlan
from fedjax_sim.data.batching import Batching
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.store.procedural import ProceduralData
from fedjax_sim.engine.device import placement
from fedjax_sim.engine.plan.planner import Planner
from fedjax_sim.engine.round.cohort_map import ClientResult, CohortMap, Lane
from fedjax_sim.engine.store import data_checks, residency
from fedjax_sim.population import sampling
from fedjax_sim.simulation.lanes import auto_lanes, for_steps


class ClientMetrics:
    """The metrics of every client of a federation.

    Attributes:
        metrics: dict of name to [K] values; NaN for a client without data_checks.
        sizes: [K] examples of each client.
    """

    def __init__(self, metrics: dict[str, Metric], sizes: np.ndarray):
        self.metrics = {name: metric.compute() for name, metric in metrics.items()}
        self.sizes = sizes

    def __getitem__(self, name: str) -> np.ndarray:
        return self.metrics[name]

    def quantiles(
        self, name: str, probabilities: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
    ) -> dict[float, float]:
        """Quantiles of a metric over the clients that have a value, each client counting once."""
        if is_traced(self.metrics[name]):
            return {p: jnp.nanquantile(self.metrics[name], p) for p in probabilities}  # type: ignore[misc]
        values = self.metrics[name][~np.isnan(self.metrics[name])]
        return {p: float(np.quantile(values, p)) for p in probabilities} if len(values) else {}

    def __repr__(self) -> str:
        return f"ClientMetrics({len(self.sizes)} clients, {sorted(self.metrics)})"


def evaluate(
    task: Task,
    params: Params,
    arrays: Any,
    batch_size: int = 256,
    devices: Any = None,
) -> dict[str, float]:
    """A model's metrics on one data set: every example counts once, however it is batched.

    Args:
        task: the task; its `evaluate` function, or its loss.
        params: the model; under a JAX transformation the result is traced too.
        arrays: dict of arrays, [N, ...] each, or a `FederatedData`, whose clients are pooled.
        batch_size: examples at a time.
        devices: None for all local ones.

    Returns:
        dict of name to number.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> task = fs.Task(lambda key: 0.0, lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> fs.evaluate(task, jnp.zeros(()), {"x": jnp.array([1.0, 2.0, 3.0])}, batch_size=2)
        {'loss': 4.666666666666667}
    """
    if not isinstance(arrays, FederatedData):
        arrays = FederatedData(arrays, [0, len(jax.tree.leaves(arrays)[0])])
    mesh = placement.client_mesh(devices)
    shares = 8 * mesh.size
    if residency.streams("auto", arrays, mesh.devices.flat[0]):
        shares = max(shares, -(-arrays.num_examples // (16 * batch_size)))
    offsets = np.linspace(0, arrays.num_examples, shares + 1).astype(np.int64)
    made = isinstance(arrays, ProceduralData)  # whose examples have no place of their own
    pooled = arrays if made else FederatedData(arrays.arrays, offsets, arrays.index)
    metrics = metrics_lib.reduce(_evaluate_all(task, params, pooled, batch_size, devices, 1))
    if _traced(params):
        return {name: metric.compute() for name, metric in metrics.items()}
    return {name: float(metric.compute()) for name, metric in jax.device_get(metrics).items()}


def evaluate_clients(
    task: Task,
    params: Params,
    data: FederatedData,
    batch_size: int = 64,
    devices: Any = None,
) -> ClientMetrics:
    """A model's metrics on each client's examples; arguments as in `evaluate`.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> task = fs.Task(lambda key: 0.0, lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> data = fs.data.FederatedData({"x": jnp.array([1.0, 2.0, 3.0])}, offsets=[0, 1, 3])
        >>> fs.evaluate_clients(task, jnp.zeros(()), data)["loss"]
        array([1. , 6.5])
    """
    mesh = placement.client_mesh(devices)
    platform = mesh.devices.flat[0].platform
    size = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))
    lanes = auto_lanes(size, platform, data.num_clients)
    if platform == "cpu":
        sizes, clients = data.kinds()
        lanes = for_steps(lanes, -(-sizes // batch_size), clients, data.num_clients, mesh.size, size * batch_size)
    metrics = _evaluate_all(task, params, data, batch_size, devices, lanes)
    return ClientMetrics(metrics if _traced(params) else jax.device_get(metrics), data.sizes)


def _evaluate_all(
    task: Task, params: Params, data: FederatedData, batch_size: int, devices: Any, lanes: int
) -> dict[str, Metric]:
    """Metrics of all clients, [K] each."""
    check_count("batch_size", batch_size)
    mesh = placement.client_mesh(devices)
    batching = Batching(batch_size, shuffle=False)
    traced = _traced(params)
    eager = jax.ensure_compile_time_eval if traced else contextlib.nullcontext
    program = (_make_program if traced else _program)(task, mesh, batch_size)  # a traced task must not be kept
    params = params if traced else placement.replicate(mesh, placement.local(params))
    check_computable(data.arrays)
    streamed = residency.streams("auto", data, mesh.devices.flat[0])
    if not streamed:
        data_checks.check_all(task, data, streamed)
    planner = Planner(data, batching, mesh.size, streamed=streamed)
    size = min(data.num_clients, _GROUP * mesh.size * lanes) if streamed else data.num_clients
    shape = planner.shape(size, lanes)
    arrays: Any = None
    if streamed:
        reader = residency.Reader(data, mesh, task.check)
        ask = lambda plan: reader.ask([plan], 1, planner.examples(shape))
    else:
        with eager():
            arrays = residency.resident_arrays(mesh, data)
        ask = lambda plan: None

    def begin(first: int) -> tuple[RoundPlan, Any]:
        ids = np.arange(first, min(first + size, data.num_clients))
        plan, _ = planner.plan(sampling.cohort(ids, size), shape, seed=0, round=0)
        return plan, ask(plan)

    out: dict[str, Metric] = {}
    group = begin(0)
    for first in range(0, data.num_clients, size):
        plan, read = group
        given = read.result() if streamed else arrays
        with eager():
            placed = placement.shard(mesh, plan)
        kept = program(params, placed, given)
        if first + size < data.num_clients:
            group = begin(first + size)  # read while this one is computed
        slots = plan.slot.reshape(-1)
        real = slots < size
        for name, metric in kept.items():
            host = (lambda leaf: leaf) if traced else np.asarray
            flat = jax.tree.map(lambda leaf, host=host: host(leaf).reshape(len(slots), *leaf.shape[3:]), metric)
            if name not in out:
                empty = jax.tree.map(lambda leaf: np.zeros((data.num_clients, *leaf.shape[1:])), flat)
                out[name] = empty.zero() if traced else jax.tree.map(np.array, empty.zero())
            at = first + slots[real]
            out[name] = jax.tree.map(lambda all, leaf, at=at, real=real: _put(all, at, leaf[real]), out[name], flat)
    return out


_GROUP = 16
"""Clients a lane and device in one go, where the data are streamed."""


def _put(out: Any, at: np.ndarray, values: Any) -> Any:
    """`out` with `values` at `at`; in place, where `out` is the host's."""
    if is_traced(values) or isinstance(out, jax.Array):
        return jnp.asarray(out, values.dtype).at[at].set(values)
    out[at] = values
    return out


def _traced(params: Params) -> bool:
    return any(is_traced(leaf) for leaf in jax.tree.leaves(params))


def _make_program(task: Task, mesh: jax.sharding.Mesh, batch_size: int):
    measure = evaluation(task)

    def one_client(params: Params, row: Any, lane: Lane, batches: ClientBatches) -> ClientResult:
        key = rng.key(0, Purpose.EVALUATE)
        _, metrics = local_steps(lambda nothing, batch, key: (nothing, measure(params, batch, key)), (), batches, key)
        return ClientResult((), jnp.ones(()), lane.steps > 0, metrics, row)

    run = CohortMap(one_client, mesh, Batching(batch_size, shuffle=False), 0, convolutions=task.convolutions)
    return jax.jit(lambda params, plan, arrays: run(params, None, plan, arrays).metrics)


PROGRAMS = 8
"""Programs that are kept, each with its task: a small one takes 6 MB."""

_program = functools.lru_cache(maxsize=PROGRAMS)(_make_program)
