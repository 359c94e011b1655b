"""The map of a client function over a cohort: chunks of lanes on all devices, and the sums at the end.

A device loops over the chunks of its queue; a chunk is a vmap over L lanes; a lane is one client, whose loop over steps
runs to the chunk's longest client. All bounds are traced, so that one program serves every cohort. The only collective
is the sum at the end. Where clients' rows come from the host, a cohort is trained in waves of a few chunks each.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_sim.client import ClientBatches
from fedjax_sim.core import metrics as metrics_lib
from fedjax_sim.core import pytree
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.convolution import Convolutions, rewritten, traced
from fedjax_sim.core.metrics import Metric
from fedjax_sim.core.types import Lane, RoundPlan
from fedjax_sim.data.batching import Batching
from fedjax_sim.engine.device.placement import AXIS, REPLICATED, SHARDED, Dealt
from fedjax_sim.engine.round import sums as sums_lib
from fedjax_sim.engine.store.residency import Constants

EDGE, FIRST = "edge", "edge/first"
"""Columns of lanes where edges stand between clients and server: which one, and `ClientBatches.first`."""


def client_batches(
    lane: Lane,
    round: jax.Array,
    order: jax.Array,
    constants: Constants,
    batching: Batching,
    *,
    bound: jax.Array | int,
    longest: int,
    alone: bool,
) -> ClientBatches:
    """What the client of a lane sees of its data."""
    stride = lane.size
    if batching.drop_remainder:
        stride = lane.size // batching.batch_size * batching.batch_size
    columns = dict(lane.columns)
    first = columns.pop(FIRST, None)
    return ClientBatches(
        num_steps=lane.steps,
        num_examples=lane.size.astype(jnp.float32),
        client_id=lane.client_id,
        info={"weight": lane.weight, "version": lane.version, "round": round, **columns},
        bound=bound,
        arrays=constants.examples,
        order=order,
        start=lane.start,
        stride=stride,
        batch_size=batching.batch_size,
        longest=longest,
        alone=alone,
        frozen=constants.frozen,
        first=first,
    )


class ClientResult(NamedTuple):
    """What the engine keeps of one client.

    Attributes:
        message: pytree; summed with `weight`, or kept, for reducers that are not linear.
        weight: [] float32; 0 for a client that contributes nothing.
        contributes: [] bool.
        metrics: dict of metrics, kept for each client.
        row: its new private row; None where rows are only read.
        sums: pytree of float32, summed as it is.
        factor: what the message is multiplied by in the sum; None for the weight.
    """

    message: PyTree
    weight: jax.Array
    contributes: jax.Array
    metrics: dict[str, Metric]
    row: PyTree
    sums: PyTree = ()
    factor: jax.Array | None = None


class CohortResult(NamedTuple):
    """A cohort's sums, and what is kept of each client in lane order, [D, T, L, ...]."""

    total: PyTree
    weight: jax.Array
    count: Any
    sums: PyTree
    messages: PyTree
    weights: jax.Array
    contributes: jax.Array
    metrics: dict[str, Metric]
    rows: PyTree


OneClient = Callable[[Any, Any, Lane, ClientBatches], ClientResult]


class _Client(NamedTuple):
    """The function of one client: `run(lane, row, bound) -> ClientResult`, and the shapes of that."""

    run: Callable[[Lane, Any, Any], ClientResult]
    like: PyTree


class CohortMap:
    """A function of a whole cohort from a function of one client, `(broadcast, rows, plan, constants) -> CohortResult`.

    To be called under `jax.jit`. `rows` are tables whose leading axis is dealt over the devices in blocks; the client k
    of a block is its row k - (first of the block). Or, in waves: `begin`, `wave` again and again, `finish`.

    Args:
        one_client: `(broadcast, row, lane, batches) -> ClientResult`.
        mesh: the devices.
        batching: how examples become batches.
        longest: steps of the longest client, for `ClientBatches.longest`.
        linear: sum the messages; else keep them all.
        modular: sum in the messages' own type, which wraps for integers; else in float32 at least.
        members: the name of a vmap's axis over which plans differ. Loops then run as long as the longest member's, as
            bounds that differ would turn every step into a choice between old and new.
        exact: the most clients of a cohort, to sum exactly; None to sum in floating point.
        convolutions: as in `fs.Task`.
        static: loops run to bounds that are known before any plan, the room for chunks and the longest client's steps,
            so that JAX can differentiate them in reverse; what is beyond a plan's work is masked.
        edges: E, sums are kept apart for the edges that lanes name, [E, ...] a leaf; None for one sum.
    """

    def __init__(
        self,
        one_client: OneClient,
        mesh: Mesh,
        batching: Batching,
        longest: int,
        linear: bool = True,
        modular: bool = False,
        members: str | None = None,
        exact: int | None = None,
        convolutions: Convolutions = "auto",
        static: bool = False,
        edges: int | None = None,
    ):
        self.edges = edges
        self.one_client, self.mesh, self.batching, self.longest = one_client, mesh, batching, longest
        self.linear, self.members, self.exact, self.static = linear, members, exact, static
        self.rewrite = rewritten(convolutions, mesh.devices.flat[0].platform)
        self._plainly = sums_lib.floating() if exact is None else sums_lib.exact(exact)
        self._for_messages = sums_lib.floating(own_type=True) if modular else self._plainly

    def __call__(self, broadcast: PyTree, rows: PyTree, plan: RoundPlan, constants: Constants) -> CohortResult:
        def share(broadcast: PyTree, rows: PyTree, plan: RoundPlan, constants: Constants) -> CohortResult:
            plan = jax.tree.map(lambda leaf: leaf[0], plan)
            per_device = _length(rows)
            first = jax.lax.axis_index(AXIS) * per_device
            place = lambda chunk, lane: lane.client_id - first
            client = self._client(broadcast, rows, plan, constants)
            sums, rows = self._chunks(client, rows, plan, self._zero(client, plan), place)
            edge = None if self.edges is None else plan.lanes.columns[EDGE]
            return self._added(sums, edge)._replace(rows=rows)

        specs: Any = (REPLICATED, SHARDED, SHARDED, _spec(constants))
        return self._over(share, specs, _RESULT)(broadcast, rows, plan, _arrays(constants))

    def begin(self, broadcast: PyTree, rows: PyTree, plan: RoundPlan, constants: Constants) -> Any:
        """A cohort's sums before the first wave, dealt over the devices; `rows` as for `wave`."""

        def share(broadcast: PyTree, rows: PyTree, plan: RoundPlan, constants: Constants) -> Any:
            plan = jax.tree.map(lambda leaf: leaf[0], plan)
            zero = self._zero(self._client(broadcast, rows, plan, constants), plan)
            return jax.tree.map(lambda leaf: leaf[None], zero)

        specs: Any = (REPLICATED, SHARDED, SHARDED, _spec(constants))
        return self._over(share, specs, SHARDED)(broadcast, rows, plan, _arrays(constants))

    def wave(
        self, broadcast: PyTree, rows: PyTree, plan: RoundPlan, constants: Constants, sums: PyTree, first: jax.Array
    ) -> tuple[PyTree, PyTree]:
        """`(sums, rows)` after as many chunks, from the first given on, as `rows` has clients for.

        Args:
            rows: for each device, one after another, those of its clients of these chunks, in the order of the lanes.
            first: [] int32, a chunk.
        """

        def share(
            broadcast: PyTree, rows: PyTree, plan: RoundPlan, constants: Constants, sums: PyTree, first: jax.Array
        ) -> tuple[PyTree, PyTree]:
            plan, sums = jax.tree.map(lambda leaf: leaf[0], (plan, sums))
            lanes = plan.lanes.start.shape[1]
            place = lambda chunk, lane: (chunk - first) * lanes + jnp.arange(lanes)
            end = jnp.minimum(first + _length(rows) // lanes, plan.chunks)
            client = self._client(broadcast, rows, plan, constants)
            room = jax.tree.map(jnp.zeros_like, rows)  # XLA would copy tables that are read and written, and each row
            sums, made = self._chunks(client, rows, plan, sums, place, first, end, room)
            return jax.tree.map(lambda leaf: leaf[None], sums), made

        specs: Any = (REPLICATED, SHARDED, SHARDED, _spec(constants), SHARDED, REPLICATED)
        return self._over(share, specs, (SHARDED, SHARDED))(broadcast, rows, plan, _arrays(constants), sums, first)

    def finish(self, sums: PyTree) -> CohortResult:
        """What the waves have added up to; without rows."""
        share = lambda sums: self._added(jax.tree.map(lambda leaf: leaf[0], sums))
        return self._over(share, (SHARDED,), _RESULT._replace(rows=()))(sums)

    def _over(self, share: Callable[..., Any], specs: Any, out: Any) -> Callable[..., Any]:
        return jax.shard_map(share, mesh=self.mesh, in_specs=specs, out_specs=out, check_vma=False)

    # One device's share

    def _client(self, broadcast: PyTree, rows: PyTree, plan: RoundPlan, constants: Constants) -> "_Client":
        """The function of one client, traced once, whoever wrote it: its convolutions rewritten where that pays."""
        alone = self._alone(plan)

        def client(
            round: jax.Array, broadcast: PyTree, order: jax.Array, constants: Constants, *each: Any
        ) -> ClientResult:
            lane, row, bound = each
            made: Any = dict(bound=self.longest if self.static else bound, longest=self.longest, alone=alone)
            batches = client_batches(lane, round, order, constants, self.batching, **made)
            return self.one_client(broadcast, row, lane, batches)

        one: Any = lambda leaf, axes: jax.ShapeDtypeStruct(leaf.shape[axes:], leaf.dtype)
        lane = jax.tree.map(lambda column: one(column, 2), plan.lanes.placeless())
        row = jax.tree.map(lambda table: one(table, 1), rows)
        shared = (plan.round, broadcast, plan.order, constants)
        run, like = traced(client, (*shared, lane, row, lane.steps), self.rewrite)
        return _Client(lambda *each: run(*shared, *each), like)

    def _alone(self, plan: RoundPlan) -> bool:
        """A chunk is one client, whose own steps bound its loop."""
        return plan.lanes.start.shape[1] == 1 and self.members is None and not self.static

    def _run(self, client: "_Client", rows: PyTree, plan: RoundPlan, chunk: jax.Array, place: Any):
        """A chunk's clients: results, [L, ...], and the places where rows are kept; past the end where none is.

        Of a client with several lanes all read its row as it was before the phase, and the last copy's is kept: they
        are on one device, in order, so that no chunk before that one's writes it.
        """
        at = lambda column: jax.lax.dynamic_index_in_dim(column, chunk, 0, False)
        queue = jax.tree.map(at, plan.lanes.placeless())
        bound = queue.steps[0] if self._alone(plan) else self._longest_member(jnp.max(queue.steps))
        places = jnp.where(queue.steps > 0, place(chunk, queue), _length(rows))
        mine = jax.tree.map(lambda table: table.at[places].get(mode="clip"), rows)
        if queue.copy is not None:
            places = jnp.where(queue.copy == 0, places, _length(rows))
        if plan.lanes.start.shape[1] > 1:
            return jax.vmap(client.run, in_axes=(0, 0, None))(queue, mine, bound), places
        lane, row = jax.tree.map(lambda leaf: leaf[0], (queue, mine))
        single = client.run(lane, row, bound)
        return jax.tree.map(lambda leaf: leaf[None], single), places

    def _longest_member(self, bound: jax.Array) -> Any:
        return bound if self.members is None else jax.lax.pmax(bound, self.members)

    def _all_chunks(self, plan: RoundPlan) -> Any:
        return plan.lanes.start.shape[0] if self.static else self._longest_member(plan.chunks)

    def _zero(self, client: "_Client", plan: RoundPlan) -> Any:
        """Nothing added yet, and room for what is kept of each client."""
        chunks, lanes = plan.lanes.start.shape
        like: ClientResult = client.like
        buffer = lambda tree: jax.tree.map(lambda a: jnp.zeros((chunks, lanes, *a.shape), a.dtype), tree)
        kept = (
            () if self.linear else buffer(like.message),
            buffer(like.weight),
            buffer(like.contributes),
            metrics_lib.zero(buffer(like.metrics)),
        )
        total = self._for_messages.zero(like.message) if self.linear else ()
        sums = total, self._plainly.zero(like.sums)
        if self.edges is not None:
            sums = jax.tree.map(lambda leaf: jnp.zeros((self.edges, *leaf.shape), leaf.dtype), sums)
        return *sums, kept

    def _chunks(
        self,
        client: "_Client",
        rows: PyTree,
        plan: RoundPlan,
        sums: PyTree,
        place: Any,
        first: jax.Array | int = 0,
        end: jax.Array | None = None,
        room: PyTree = None,
    ) -> tuple[PyTree, PyTree]:
        """Sums and rows after the chunks from the first on, by default all of them.

        New rows are written into `room`, tables like those of the rows, for places that no other chunk reads; or over
        the old ones.
        """

        def body(chunk: jax.Array, carry: PyTree) -> Any:
            total, sums, kept, made = carry
            result, places = self._run(client, made if room is None else rows, plan, chunk, place)
            factor = result.weight if result.factor is None else result.factor
            edge = None if self.edges is None else plan.lanes.columns[EDGE][chunk]
            total = _add(self._for_messages, total, result.message, factor, edge) if self.linear else total
            sums = _add(self._plainly, sums, result.sums, jnp.ones_like(result.weight), edge)
            new = (() if self.linear else result.message, result.weight, result.contributes, result.metrics)
            kept = pytree.put(kept, new, chunk)
            if result.row is not None:
                write = lambda table, row: table.at[places].set(row.astype(table.dtype), mode="drop")
                made = jax.tree.map(write, made, result.row)
            return total, sums, kept, made

        end = self._all_chunks(plan) if end is None else end
        *sums, made = jax.lax.fori_loop(first, end, body, (*sums, rows if room is None else room))
        return tuple(sums), made

    def _added(self, sums: PyTree, edge: jax.Array | None = None) -> CohortResult:
        """The devices' sums, added; what is kept stays where it is."""
        total, sums, (messages, weights, contributes, metrics) = sums

        def counted(weights: jax.Array, contributes: jax.Array) -> tuple[PyTree, jax.Array]:
            weight = jnp.sum(weights)
            if self.exact is not None:
                weight = self._plainly.add(self._plainly.zero(weight), weights.reshape(-1), jnp.ones(weights.size))
            return weight, jnp.sum(contributes.astype(jnp.float32))

        if edge is None:
            weight, count = counted(weights, contributes)
        else:
            of = lambda number: counted(jnp.where(edge == number, weights, 0.0), contributes & (edge == number))
            weight, count = jax.vmap(of)(jnp.arange(self.edges))
        total, weight, count, sums = self._over_devices((total, weight, count, sums))
        each = lambda function: function if edge is None else jax.vmap(function, axis_size=self.edges)
        total = each(self._for_messages.result)(total)
        weight, sums = each(self._plainly.result)(weight), each(self._plainly.result)(sums)
        kept: PyTree = (messages, weights, contributes, metrics)
        kept = jax.tree.map(lambda leaf: leaf[None], kept)
        return CohortResult(total, weight, count, sums, *kept, rows=())

    def _over_devices(self, tree: PyTree) -> Any:
        """The sums over devices; of processes in one message for each dtype, as every message waits for the slowest."""
        if not self.mesh.is_multi_process:
            return jax.lax.psum(tree, AXIS)
        return by_dtype(lambda message: jax.lax.psum(message, AXIS), tree)


def _add(sums: sums_lib.Sums, total: PyTree, values: PyTree, factors: jax.Array, edge: jax.Array | None) -> PyTree:
    if edge is None:
        return sums.add(total, values, factors)
    return sums_lib.add_by_group(sums, total, values, factors, edge)


def by_dtype(send: Callable[[Any], Any], tree: PyTree, keep: int = 0) -> Any:
    """Leaves that `send` takes all at once, those of a dtype joined; their first `keep` axes, all alike, stay."""
    leaves, structure = jax.tree.flatten(tree)
    for dtype in sorted({leaf.dtype for leaf in leaves}, key=str):
        at = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
        flat = [leaves[i].reshape(*leaves[i].shape[:keep], -1) for i in at]
        ends = np.cumsum([leaf.shape[-1] for leaf in flat])
        parts = jnp.split(send(jnp.concatenate(flat, axis=-1)), ends[:-1].tolist(), axis=-1)
        for i, part in zip(at, parts, strict=True):
            leaves[i] = part.reshape(leaves[i].shape)
    return jax.tree.unflatten(structure, leaves)


_SPECS: Any = (*[REPLICATED] * 4, *[SHARDED] * 5)
_RESULT: Any = CohortResult(*_SPECS)


def _length(rows: PyTree) -> int:
    """Rows of a device's block."""
    leaves = jax.tree.leaves(rows)
    return leaves[0].shape[0] if leaves else 0


def _spec(constants: Constants) -> Any:
    return Constants(SHARDED if isinstance(constants.examples, Dealt) else REPLICATED, REPLICATED)


def _arrays(constants: Constants) -> Constants:
    examples = constants.examples
    return Constants(examples.arrays if isinstance(examples, Dealt) else examples, constants.frozen)
