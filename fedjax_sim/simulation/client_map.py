"""Any function of each client, its row and its batches, over all clients or some, in one compiled pass."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_sim.client import ClientBatches, Task
from fedjax_sim.client.bound import bound
from fedjax_sim.core import pytree, rng
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.convolution import Convolutions
from fedjax_sim.core.errors import check, check_count, is_traced
from fedjax_sim.core.kinds import check_computable
from fedjax_sim.core.metrics import Metric
from fedjax_sim.core.rng import Purpose
from fedjax_sim.core.types import ClientRows, Lane, RoundPlan
from fedjax_sim.data.batching import Batching
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.engine.device import placement
from fedjax_sim.engine.plan.planner import Planner, PlanShape
from fedjax_sim.engine.round import waves
from fedjax_sim.engine.round.cohort_map import ClientResult, CohortMap
from fedjax_sim.engine.store import data_checks, residency, row_table
from fedjax_sim.engine.store.residency import Constants
from fedjax_sim.engine.store.row_file import HostRows
from fedjax_sim.population import sampling
from fedjax_sim.simulation.lanes import auto_lanes, for_steps

Function = Callable[[Any, Any, Any, ClientBatches], Any]


def map_clients(
    function: Function,
    server: PyTree,
    data: FederatedData,
    batching: Batching | int,
    *,
    rows: PyTree = None,
    clients: Sequence[int] | np.ndarray | None = None,
    seed: int = 0,
    round: int = 0,
    devices: Sequence[placement.Device] | None = None,
    lanes: int | None = None,
    task: Task | None = None,
) -> Any:
    """A function's results for each client, computed as a round's clients are, without a round.

    For personal models, drifts, gradient norms, whatever a client could report. It changes neither data nor state;
    `fs.data.map_clients` makes a new federation, on the host.

    Args:
        function: `(key, server, row, batches) -> pytree of arrays`, as a phase's client function; metrics
            (`fs.metrics`) may be among them. It is compiled once: the last 8 functions keep their programs, so give the
            same one again. What it closes over is compiled in; what changes belongs in `server` or `rows`.
        server: pytree of arrays that all clients see.
        data: the federation.
        batching: how examples become batches; a number is a batch size, in the stored order.
        rows: what each client has of its own: `state.rows`, of which the function sees the algorithm's, or a pytree of
            [K, ...]; None for nothing.
        clients: [n] distinct ids; None for all.
        seed, round: keys and shuffled batches come from (seed, round, client id).
        devices: None for all local ones.
        lanes: clients that a device computes side by side; None for a rule, by the sizes of `server` and a row.
        task: one that the function reads, if any: its check and convolutions hold, and its frozen constants are an
            argument of the program.

    Returns:
        What the function returns, [n, ...] a leaf on the host, in the order of `clients`. A client without a batch is
        not computed: it has zeros, and metrics that have observed nothing.

    Raises:
        ArgumentError: ids that are no clients or come twice; rows of another population.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> data = fs.data.FederatedData({"x": jnp.array([1.0, 2.0, 6.0])}, offsets=[0, 1, 3])
        >>> def personal_loss(key, server, row, batches):
        ...     def step(total, batch, key):
        ...         return total + jnp.sum(batch["mask"] * (batch["x"] - row) ** 2), {}
        ...
        ...     return fs.local_steps(step, 0.0, batches, key)[0] / batches.num_examples
        >>> fs.map_clients(personal_loss, None, data, 2, rows=jnp.array([0.0, 4.0]))
        array([1., 4.], dtype=float32)
    """
    if not isinstance(batching, Batching):
        check_count("batching", batching)
        batching = Batching(batching, shuffle=False)
    rng.check_seed(seed)
    check_count("round", round, minimum=0)
    ids = None if clients is None else _checked_ids(clients, data.num_clients)
    longest = batching.most_steps(data.kinds()[0])
    mesh = placement.client_mesh(devices)
    given = dict(rows=rows, ids=ids, seed=seed, round=round, lanes=lanes, longest=longest, task=task)
    if task is not None and task.frozen is not None:
        function = _Reads(function, _Same(task.frozen))
    return over_clients(function, server, data, batching, mesh, **given)


class _Same:
    """Equal for the very same object, so that programs are kept."""

    def __init__(self, value: PyTree):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class _Reads(NamedTuple):
    """A function that reads frozen constants, from where the program has them."""

    function: Function
    frozen: _Same

    def __call__(self, key: jax.Array, server: PyTree, row: PyTree, batches: ClientBatches) -> Any:
        with bound(self.frozen.value, batches.frozen):
            return self.function(key, server, row, batches)


def over_clients(
    function: Function,
    server: PyTree,
    data: FederatedData,
    batching: Batching,
    mesh: Mesh,
    *,
    rows: PyTree = None,
    ids: np.ndarray | None = None,
    seed: int = 0,
    round: int = 0,
    lanes: int | None = None,
    longest: int = 0,
    task: Task | None = None,
) -> Any:
    """`map_clients` of checked arguments; a `task`'s check and convolutions hold. Traced, where server or rows are."""
    rows, row = _placed_rows(rows, data.num_clients, mesh)
    traced = any(is_traced(leaf) for leaf in jax.tree.leaves((server, rows)))
    eager = jax.ensure_compile_time_eval if traced else contextlib.nullcontext
    ids = np.arange(data.num_clients) if ids is None else ids
    if lanes is None:
        read = (server, row, task.frozen if task else None)
        lanes = _lanes(sum(map(pytree.size, read)), data, batching, mesh, len(ids))
    make = _make_programs if traced else _programs  # a function that holds traced values must not be kept
    programs = make(function, mesh, batching, task.convolutions if task else "auto")
    server = server if traced else placement.replicate(mesh, placement.local(server))
    check_computable(data.arrays)
    streamed = residency.streams("auto", data, mesh.devices.flat[0])
    if task and not streamed:
        data_checks.check_all(task, data, streamed)
    homes = row_table.homes(data.num_clients, mesh.size) if row_table.has_rows(rows) else None
    planner = Planner(data, batching, mesh.size, homes, streamed)
    size = min(len(ids), _GROUP * mesh.size * lanes) if streamed else len(ids)
    shape = planner.shape(size, lanes)
    with eager():
        frozen = residency.resident(mesh, task.frozen if task else None)
        arrays = None if streamed else residency.resident(mesh, data.arrays)
    if streamed:
        reader = residency.Reader(data, mesh, task.check if task else None)
        ask = lambda plan: reader.ask([plan], 1, planner.examples(shape)).result
    else:
        ask = lambda plan: lambda: arrays

    def begin(first: int) -> tuple[RoundPlan, Callable[[], Any]]:
        plan, _ = planner.plan(sampling.cohort(ids[first : first + size], size), shape, seed, round)
        return plan, ask(plan)

    groups = _Groups(programs, mesh, shape, (server, np.array([seed, round], np.uint32)), rows, longest, eager)
    out: Any = None
    group = begin(0)
    for first in range(0, len(ids), size):
        plan, read = group
        kept = groups.compute(plan, Constants(read(), frozen))
        if first + size < len(ids):
            group = begin(first + size)  # read while this one is computed
        slots = plan.lanes.slot.reshape(-1)
        out = _gathered(out, kept, first + slots, slots < size, len(ids), traced)
    return out.value


_GROUP = 16
"""Clients a lane and device in one go, where the data are streamed."""


def _checked_ids(clients: Any, num_clients: int) -> np.ndarray:
    ids = np.asarray(clients)
    check(ids.ndim == 1 and len(ids) > 0, "clients", clients, "must be [n] ids, at least one; None is for all.")
    check(np.issubdtype(ids.dtype, np.integer), "clients", clients, "ids are whole numbers.")
    check(ids.min() >= 0 and ids.max() < num_clients, "clients", clients, f"ids must lie in 0..{num_clients - 1}.")
    check(len(np.unique(ids)) == len(ids), "clients", clients, "names a client more than once.")
    return ids


def _lanes(size: int, data: FederatedData, batching: Batching, mesh: Mesh, count: int) -> int:
    """Clients side by side, by the rule of simulations."""
    platform = mesh.devices.flat[0].platform
    lanes = auto_lanes(size, platform, count)
    if platform != "cpu":
        return lanes
    sizes, clients = data.kinds()
    return for_steps(lanes, batching.count_steps(sizes), clients, count, mesh.size, size * batching.batch_size)


# Rows


def _placed_rows(rows: PyTree, num_clients: int, mesh: Mesh) -> tuple[PyTree, PyTree]:
    """Rows as the map takes them, tables dealt over the devices or `HostRows`; and one row's shapes."""
    if isinstance(rows, HostRows):
        check(rows.num_clients == num_clients, "rows", rows, f"the data have {num_clients} clients.")
        return (rows if row_table.has_rows(rows.first.client) else None), rows.first.client
    padded = isinstance(rows, ClientRows)
    tables = rows.client if padded else rows
    length = row_table.rows_per_device(num_clients, mesh.size) * mesh.size

    def dealt(table: Any) -> Any:
        shape = jnp.shape(table)
        fits = len(shape) > 0 and (shape[0] == num_clients or (padded and shape[0] > num_clients))
        check(fits, "rows", f"a leaf of shape {shape}", f"must be [K, ...], a row for each of {num_clients} clients.")
        if is_traced(table):
            return table[jnp.minimum(jnp.arange(length), num_clients - 1)]
        if isinstance(table, jax.Array):
            check(table.is_fully_addressable, "rows", shape, "are spread over processes; give this process all.")
            if len(table) == length and table.sharding.is_equivalent_to(placement.dealt(mesh), table.ndim):
                return table
        table = table if isinstance(table, jax.Array) else np.asarray(table)
        if len(table) != length:
            table = table[np.minimum(np.arange(length), num_clients - 1)]
        return placement.shard(mesh, table)

    tables = jax.tree.map(dealt, tables)
    return tables, jax.tree.map(lambda table: jax.ShapeDtypeStruct(table.shape[1:], table.dtype), tables)


# The pass


@pytree.pytree
class _Results(Metric):
    """What the function returned, any pytree: in the map it is kept as a metric is."""

    value: PyTree

    def zero(self) -> "_Results":
        is_metric = lambda leaf: isinstance(leaf, Metric)
        zero = lambda leaf: leaf.zero() if is_metric(leaf) else jnp.zeros_like(leaf)
        return _Results(jax.tree.map(zero, self.value, is_leaf=is_metric))


class _Programs(NamedTuple):
    """A function's: `whole` in one go; or, for rows from the host, `begin`, `wave` again and again, `finish`."""

    whole: Callable[..., Any]
    begin: Callable[..., Any]
    wave: Callable[..., Any]
    finish: Callable[..., Any]


def _make_programs(function: Function, mesh: Mesh, batching: Batching, convolutions: Convolutions) -> _Programs:
    def one_client(given: PyTree, row: PyTree, lane: Lane, batches: ClientBatches) -> ClientResult:
        server, numbers = given
        key = jax.random.fold_in(rng.key(numbers[0], Purpose.EVALUATE, numbers[1]), lane.client_id)
        results = jax.tree.map(jnp.asarray, function(key, server, row, batches))
        return ClientResult((), jnp.ones(()), lane.steps > 0, {"results": _Results(results)}, None)

    run = lambda longest: CohortMap(one_client, mesh, batching, longest, convolutions=convolutions)
    results = lambda result: result.metrics["results"]
    return _Programs(
        jax.jit(lambda longest, *given: results(run(longest)(*given)), static_argnums=0),
        jax.jit(lambda longest, *given: run(longest).begin(*given), static_argnums=0),
        jax.jit(lambda longest, *given: run(longest).wave(*given)[0], static_argnums=0),
        jax.jit(lambda sums: results(run(0).finish(sums))),
    )


PROGRAMS = 8
"""Functions whose programs are kept: a small one takes 6 MB."""

_programs = functools.lru_cache(maxsize=PROGRAMS)(_make_programs)


class _Groups(NamedTuple):
    """What the groups of a pass have in common.

    Attributes:
        programs: the function's.
        mesh: the devices.
        shape: of every plan.
        given: the server's state, and seed and round.
        rows: of `_placed_rows`.
        longest: steps of the longest client.
        eager: a context in which arrays are placed, whatever is traced.
    """

    programs: _Programs
    mesh: Mesh
    shape: PlanShape
    given: PyTree
    rows: PyTree
    longest: int
    eager: Callable[[], Any]

    def compute(self, plan: RoundPlan, constants: Constants) -> _Results:
        """A group's results in lane order, [D, T, L, ...] a leaf."""
        with self.eager():
            placed = placement.shard(self.mesh, plan)
        if not isinstance(self.rows, HostRows):
            return self.programs.whole(self.longest, self.given, self.rows, placed, constants)
        wave = waves.chunks_of(self.shape, pytree.bits(self.rows.first) // 8, self.mesh)
        sums = None
        for first in range(0, int(max(plan.chunks.max(), 1)), wave):
            clients = waves.clients_of(plan, first, wave)
            with self.eager():
                block = waves.read_rows(self.mesh, self.rows, clients, wave * self.shape.lanes).client
            before = self.programs.begin(self.longest, self.given, block, placed, constants) if sums is None else sums
            if not any(is_traced(leaf) for leaf in jax.tree.leaves(before)):
                jax.block_until_ready(before)  # two waves' rows at a time
            sums = self.programs.wave(self.longest, self.given, block, placed, constants, before, np.int32(first))
        return self.programs.finish(sums)


def _gathered(out: Any, kept: _Results, at: np.ndarray, real: np.ndarray, count: int, traced: bool) -> Any:
    """`out`, [n, ...], with a group's results at their places; in place, where it is the host's."""
    host = (lambda leaf: leaf) if traced else np.asarray
    flat = jax.tree.map(lambda leaf: host(leaf).reshape(len(at), *leaf.shape[3:]), kept)
    if out is None:
        empty = jax.tree.map(lambda leaf: np.zeros((count, *leaf.shape[1:]), leaf.dtype), flat).zero()
        out = empty if traced else jax.tree.map(np.array, empty)

    def put(all: Any, leaf: Any) -> Any:
        if traced:
            return jnp.asarray(all, leaf.dtype).at[at[real]].set(leaf[real])
        all[at[real]] = leaf[real]
        return all

    return jax.tree.map(put, out, flat)
