"""Models of the clients' own, of algorithms that have such: one of them, or all of them evaluated in one pass."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from fedjax_sim.client import ClientBatches
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.core.metrics import Metric
from fedjax_sim.core.types import Params, RoundState
from fedjax_sim.data.batching import Batching
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.engine.device import placement
from fedjax_sim.engine.parts import Parts
from fedjax_sim.engine.store import row_table
from fedjax_sim.server import averaged
from fedjax_sim.simulation.client_map import over_clients
from fedjax_sim.simulation.evaluation import ClientMetrics, measure_of

Personal = Callable[[PyTree, PyTree], Params]
"""`(server_state, row) -> params`."""


class _OwnMeasure(NamedTuple):
    """A client's metrics under the model of its row; equal for equal parts, so that programs are kept."""

    measure: Callable[..., dict[str, Metric]]
    personal: Personal

    def __call__(self, key: jax.Array, server: PyTree, row: PyTree, batches: ClientBatches) -> dict[str, Metric]:
        return self.measure(key, self.personal(server, row), None, batches)


def evaluate_clients_of(
    parts: Parts,
    state: RoundState,
    data: FederatedData | None,
    personal: bool | Literal["unseen"],
    batch_size: int,
) -> ClientMetrics:
    """`sim.evaluate_clients`."""
    check(personal in (True, False, "unseen"), "personal", personal, 'must be True, False or "unseen".')
    check_count("batch_size", batch_size)
    data = parts.data if data is None else data
    task, batching = parts.algorithm.task, Batching(batch_size, shuffle=False)
    model = parts.algorithm.params(state.server)
    measure, given, rows = measure_of(task), model, None
    if personal == "unseen":
        given = _own(parts)(state.server, parts.algorithm.init(model)[1])
    elif personal:
        own = _own(parts)
        if data.num_clients != parts.data.num_clients:
            raise ArgumentError(
                f"data: has {data.num_clients} clients, and rows are those of {parts.data.num_clients}: give examples "
                'of the same clients, in the same order; clients without a row are evaluated by personal="unseen".'
            )
        measure, given, rows = _OwnMeasure(measure, own), state.server, state.rows
    metrics = over_clients(measure, given, data, batching, parts.mesh, rows=rows, task=task)
    return ClientMetrics(metrics, data.sizes)


def model_in(parts: Parts, state: Any, ema: bool, client: int | None) -> Params:
    """`sim.params`."""
    if client is None:
        params = parts.algorithm.params(state.server)
        return averaged(state.server, params) if ema else params
    check(not ema, "ema", ema, "is of the server's model; leave client= out.")
    count = parts.data.num_clients
    known = isinstance(client, int | np.integer) and 0 <= client < count
    check(known, "client", client, f"must be a client's id, 0 to {count - 1}.")
    return _own(parts)(placement.local(state.server), row_table.client_row(state.rows, int(client)))


def _own(parts: Parts) -> Personal:
    if parts.algorithm.personal is None:
        raise ArgumentError(
            "personal: this algorithm gives clients no model of their own. Take one that does, as "
            "fs.fedavg(..., private=)."
        )
    return parts.algorithm.personal
