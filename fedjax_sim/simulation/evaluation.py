"""Evaluation: pooled over one data set, or client by client, as a map over clients."""

from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_sim.client import ClientBatches, Task, evaluation, local_steps
from fedjax_sim.client.bound import BOUND, bound
from fedjax_sim.core import metrics as metrics_lib
from fedjax_sim.core import rng
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.metrics import Metric
from fedjax_sim.core.rng import Purpose
from fedjax_sim.core.types import Params
from fedjax_sim.data.batching import Batching
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.store.procedural import ProceduralData
from fedjax_sim.engine.device import placement
from fedjax_sim.engine.store import residency
from fedjax_sim.simulation.client_map import over_clients
from fedjax_sim.simulation.client_metrics import ClientMetrics, values_of


def evaluate(
    task: Task,
    params: Params,
    arrays: PyTree,
    batch_size: int = 256,
    devices: Any = None,
) -> dict[str, Any]:
    """A model's metrics on one data set: every example counts once, however it is batched.

    Args:
        task: the task; its `evaluate` function, or its loss.
        params: the model; under a JAX transformation the result is traced too.
        arrays: dict of arrays, [N, ...] each, or a `FederatedData`, whose clients are pooled.
        batch_size: examples at a time.
        devices: None for all local ones.

    Returns:
        dict of name to number; to an array, where a metric's value is one, such as a confusion matrix.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> task = fs.Task(lambda key: 0.0, lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> fs.evaluate(task, jnp.zeros(()), {"x": jnp.array([1.0, 2.0, 3.0])}, batch_size=2)
        {'loss': 4.666666666666667}
    """
    if not isinstance(arrays, FederatedData):
        arrays = FederatedData(arrays, [0, len(jax.tree.leaves(arrays)[0])])
    batching, mesh = Batching(batch_size, shuffle=False), placement.client_mesh(devices)
    shares = 8 * mesh.size
    if residency.streams("auto", arrays, mesh.devices.flat[0]):
        shares = max(shares, -(-arrays.num_examples // (16 * batch_size)))
    offsets = np.linspace(0, arrays.num_examples, shares + 1).astype(np.int64)
    made = isinstance(arrays, ProceduralData)  # whose examples have no place of their own
    pooled = arrays if made else FederatedData(arrays.arrays, offsets, arrays.index)
    metrics = over_clients(measure_of(task), params, pooled, batching, mesh, lanes=1, task=task)
    return values_of(metrics_lib.reduce(metrics))


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
    batching, mesh = Batching(batch_size, shuffle=False), placement.client_mesh(devices)
    metrics = over_clients(measure_of(task), params, data, batching, mesh, task=task)
    return ClientMetrics(metrics, data.sizes)


class _Measure(NamedTuple):
    """A client's metrics under the server's model; equal for equal tasks, so that programs are kept."""

    task: Task

    def __call__(self, key: jax.Array, server: Params, row: PyTree, batches: ClientBatches) -> dict[str, Metric]:
        measure = evaluation(self.task)
        key = rng.key(0, Purpose.EVALUATE)  # one for all: clients of pooled data are none
        with bound(BOUND, batches.frozen):
            return local_steps(lambda nothing, batch, key: (nothing, measure(server, batch, key)), (), batches, key)[1]


def measure_of(task: Task) -> _Measure:
    """Its constants are an argument of the program."""
    return _Measure(task if task.frozen is None else task._replace(frozen=BOUND))
