"""One round on the devices: for each phase broadcast, train, encode, reduce, decode, and take a server step."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate import Aggregator, Context
from fedjax_sim.algorithms.base import Phase
from fedjax_sim.client import ClientBatches
from fedjax_sim.core import metrics as metrics_lib
from fedjax_sim.core import rng
from fedjax_sim.core.convolution import Convolutions
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.kinds import check_keeps, check_leaves
from fedjax_sim.core.metrics import Metric
from fedjax_sim.core.pytree import bits, pytree, squared_norm, where
from fedjax_sim.core.rng import Purpose
from fedjax_sim.core.types import Aggregate, ClientRows, ClientUpdate, Params, RoundPlan
from fedjax_sim.data.batching import Batching
from fedjax_sim.engine.device.placement import everywhere
from fedjax_sim.engine.round.cohort_map import (
    ClientResult,
    CohortMap,
    CohortResult,
    Lane,
    by_dtype,
    client_batches,
)
from fedjax_sim.engine.round.sums import fits


@pytree
class DeviceState:
    """The part of a `RoundState` that lives on devices."""

    server: Any
    aggregator: Any
    rows: ClientRows


@pytree
class RoundOutput:
    """What a round reports, on the devices.

    Attributes:
        merged: dict of metrics over the cohort.
        per_client: dict of metrics, [C] each, by place in the cohort; zeros for places that did not train.
        finite: [C] bool; False for a client whose update held NaN or infinity.
        count: [] float32, clients that contributed, in the last phase.
        weight: [] float32, the sum of their effective weights.
    """

    merged: dict[str, Metric]
    per_client: dict[str, Metric]
    finite: Any
    count: Any
    weight: Any


def make_round(parts: list["PhaseRound"], capacity: int) -> Callable[..., tuple[DeviceState, RoundOutput]]:
    """The function of one round, `(seeds, state, plan, arrays) -> (state, output)`, to be compiled.

    `seeds` are the run's and its noise's, [2] uint32.
    """

    def one_round(seeds: Any, state: DeviceState, plan: RoundPlan, arrays: Any):
        output = no_output(capacity)
        for part in parts:
            shared = part.shared(seeds, state, plan)
            result = part.train(shared, part.rows(state.rows), plan, arrays)
            state = replace(state, rows=part.with_rows(state.rows, result.rows))
            state, output = part.finish(shared, state, plan, result, output)
        return state, output

    return one_round


def no_output(capacity: int) -> RoundOutput:
    """Of a round that has not begun."""
    nothing = jnp.zeros((), jnp.float32)
    return RoundOutput({}, {}, jnp.ones(capacity, bool), nothing, nothing)


class PhaseRound:
    """One phase of a round, in its parts: what the cohort shares, its training, and the server's side.

    An `exact` round's result depends neither on devices nor on the cohort's order.

    Args:
        index, phase: which one it is.
        mesh: the devices.
        batching: how examples become batches.
        longest: steps of the longest client.
        capacity: places in a cohort.
        expected: clients that the sampler expects.
        sent: what the phase sends.
        members, convolutions: as in `CohortMap`.
        everyone: plans hold all clients that arrive, and each adds its noise (`Planner(everyone=True)`).
        population: clients of the federation.
    """

    def __init__(
        self,
        index: int,
        phase: Phase,
        mesh: jax.sharding.Mesh,
        batching: Batching,
        longest: int,
        capacity: int,
        expected: float,
        sent: "Sent",
        members: str | None = None,
        exact: bool = False,
        everyone: bool = False,
        population: int | None = None,
        convolutions: Convolutions = "auto",
    ):
        self.index, self.phase, self.mesh, self.capacity = index, phase, mesh, capacity
        self.expected, self.sent, self.exact = expected, sent, exact
        self.everyone, self.population = everyone, population
        self.aggregator: Aggregator = phase.aggregator  # type: ignore[assignment]
        self.train = CohortMap(
            _client(phase, self.aggregator, expected, sent.downlink, exact, everyone),
            mesh,
            batching,
            longest,
            self.aggregator.reducer.linear,
            self.aggregator.facts.weighted,
            members,
            capacity if exact else None,
            convolutions,
        )

    def shared(self, seeds: Any, state: DeviceState, plan: RoundPlan) -> Any:
        """What all clients see: server state, the transforms' state, the round's keys and its number."""
        this_round = plan.round[0]
        keys = rng.round_keys(seeds, _PURPOSES, this_round, self.index)
        return state.server, state.aggregator[self.index], keys, this_round

    def rows(self, rows: ClientRows) -> Any:
        """Those that this phase's clients have."""
        return rows.client, None if rows.aggregator is None else rows.aggregator[self.index]

    def with_rows(self, rows: ClientRows, new: Any) -> ClientRows:
        """All rows, with this phase's new ones."""
        client, own = new
        if rows.aggregator is None:
            return ClientRows(client, None)
        return ClientRows(client, _with_entry(rows.aggregator, self.index, own))

    def finish(
        self, shared: Any, state: DeviceState, plan: RoundPlan, result: CohortResult, output: RoundOutput
    ) -> tuple[DeviceState, RoundOutput]:
        """Reduce, decode and take a server step: the state after the phase, and what the round reports so far."""
        server, aggregator_state, keys, _ = shared
        aggregator, slots = self.aggregator, plan.slot.reshape(-1)

        def in_order(tree: Any) -> Any:
            """From places in the cohort to the order of client ids, whole on every device."""
            last = jnp.full(self.capacity, jnp.iinfo(jnp.int32).max)
            order = jnp.argsort(last.at[slots].set(plan.client_id.reshape(-1), mode="drop"))
            whole = jax.lax.with_sharding_constraint((tree, order), everywhere(self.mesh))
            return jax.tree.map(lambda leaf: leaf[whole[1]], whole[0])

        total = result.total
        if aggregator.reducer.collect is not None:
            collected = _by_lane((result.messages, result.weights, result.contributes))
            if self.exact:
                collected = in_order(_scattered(collected, slots, _empty(collected, self.capacity)))
            total = aggregator.reducer.collect(*collected)
        bound, step = aggregator.bound_and_step(aggregator_state, self.sent.payload)
        aggregate, new_aggregator_state, server_metrics = aggregator.server(
            keys[Purpose.DECODE],
            aggregator_state,
            Aggregate(
                total,
                result.weight,
                result.count,
                bound=bound,
                step=step,
                sums=result.sums,
                round_key=keys[Purpose.SHARED],
                shares=jnp.sum((plan.weight > 0).astype(jnp.float32)) if self.everyone else None,
                population=self.population,
            ),
            self.expected,
            keys[Purpose.CENTRAL_NOISE],
        )
        new_server = self.phase.server(keys[Purpose.SERVER], server, aggregate)
        _check_server(server, new_server)
        new_server = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), new_server, server)
        # Nobody contributed: the model stays, unless noise must be released all the same.
        go = (result.count > 0) | aggregator.facts.noisy
        state = replace(
            state,
            server=where(go, new_server, server),
            aggregator=_with_entry(state.aggregator, self.index, where(go, new_aggregator_state, aggregator_state)),
        )

        lanes, slots = self._whole((_by_lane(result.metrics), slots))
        (bad,) = jax.tree.leaves(lanes.pop(_BAD))
        placed = _by_slot(lanes, slots, self.capacity)
        merged = _with(output.merged, metrics_lib.reduce(in_order(placed) if self.exact else lanes))
        server_metrics = {f"aggregate/{name}": metric for name, metric in server_metrics.items()}
        twice = sorted(set(server_metrics) & set(lanes))
        if twice:
            raise ArgumentError(
                f"{aggregator.name} reports {twice} from its clients' side and from its server's: rename one."
            )
        return state, RoundOutput(
            merged | server_metrics,
            _with(output.per_client, placed),
            output.finite.at[slots].min(bad == 0, mode="drop"),
            result.count,
            result.weight,
        )

    def _whole(self, lanes: Any) -> Any:
        """What is kept of each client, [N, ...] a leaf, for every process: in one message for each dtype."""
        if not self.mesh.is_multi_process:
            return lanes

        whole = lambda message: jax.lax.with_sharding_constraint(message, everywhere(self.mesh))
        return by_dtype(whole, lanes, keep=1)


def _with_entry(entries: tuple[Any, ...], i: int, entry: Any) -> tuple[Any, ...]:
    return (*entries[:i], entry, *entries[i + 1 :])


def _with(metrics: dict[str, Metric], more: dict[str, Metric]) -> dict[str, Metric]:
    """A later phase's metrics over an earlier one's; what is sent adds up."""
    both = {name: metrics[name].merge(more[name]) for name in _BITS if name in metrics and name in more}
    return {**metrics, **more, **both}


_BITS = ("aggregate/uplink_bits", "aggregate/downlink_bits")
_PURPOSES = (
    *(Purpose.CLIENT, Purpose.ENCODE, Purpose.SHARED, Purpose.RECEIVE, Purpose.DECODE, Purpose.SERVER),
    *rng.NOISES,
)
_BAD = "nonfinite"


def _client(
    phase: Phase, aggregator: Aggregator, expected: float, downlink: float, exact: bool = False, everyone: bool = False
):
    """One client's whole part of a phase: train, encode, receive."""
    facts = aggregator.facts
    local = any(m.where == "local" for m in facts.noise)
    shares = local or any(m.where == "distributed" for m in facts.noise)

    def one_client(shared: Any, rows: Any, lane: Lane, batches: ClientBatches) -> ClientResult:
        server, states, keys, this_round = shared
        client_row, aggregator_row = rows
        own = lambda purpose: jax.random.fold_in(keys[purpose], lane.client_id)
        update = checked_update(phase.client(own(Purpose.CLIENT), server, client_row, batches), client_row)

        weight = jnp.asarray(update.weight, jnp.float32)
        finite = jnp.isfinite(squared_norm((update.payload, update.state))) & jnp.isfinite(weight)
        finite &= ~_any_nan(update.metrics.get("loss"))
        trained = lane.steps > 0
        contributes = trained & finite
        # Noise that clients add must not tell who has data: all that were drawn and arrive send. Their weights are 1.
        sends = lane.weight > 0 if everyone else trained
        payload = jax.tree.map(lambda leaf: jnp.where(contributes, leaf, jnp.zeros_like(leaf)), update.payload)
        weight = jnp.where(aggregator.reducer.weight == "uniform", 1.0, weight) * lane.weight
        if facts.max_weight is not None:
            weight = jnp.clip(jnp.round(weight), 0, facts.max_weight)
        weight = jnp.where(contributes, weight, 0.0)
        context = Context(
            lane.client_id,
            this_round,
            keys[Purpose.SHARED],
            jnp.asarray(jnp.inf, jnp.float32),
            neighbour=lane.neighbour,
            weight=sends.astype(jnp.float32) if shares else weight,
            expected=expected,
        )
        own_keys = own(Purpose.ENCODE), own(Purpose.NOISE)
        encoded = aggregator.encode(own_keys[0], states, aggregator_row, payload, context, own_keys[1])
        message = aggregator.receive(own(Purpose.RECEIVE), states, encoded.message)
        factor = sends if facts.weighted or shares else weight
        if exact and not facts.weighted:  # what is beyond the range of the sum counts as what is not finite
            inside = fits((message, encoded.sums), jnp.maximum(weight, 1.0))
            finite, contributes = finite & inside, contributes & inside
            message = jax.tree.map(lambda leaf: jnp.where(inside, leaf, jnp.zeros_like(leaf)), message)
            weight, factor = (jnp.where(inside, each, 0.0) for each in (weight, factor))
        received = downlink if phase.downlink is None else phase.downlink(server)
        seen = {**encoded.metrics, "downlink_bits": metrics_lib.Sum(jnp.asarray(received, jnp.float32))}

        metrics = _reported(update.metrics, seen, contributes, sends if everyone else None)
        metrics[_BAD] = metrics_lib.Sum((trained & ~finite).astype(jnp.float32))
        new_rows = (update.state, encoded.rows)
        counted = sends if local else contributes
        return ClientResult(
            message,
            weight,
            contributes,
            metrics,
            where(contributes, new_rows, rows),
            jax.tree.map(lambda leaf: jnp.where(counted, leaf, jnp.zeros_like(leaf)), encoded.sums),
            factor,
        )

    return one_client


def _reported(client: dict[str, Metric], seen: dict[str, Metric], contributes: Any, sends: Any) -> dict[str, Metric]:
    """A client's metrics, nothing for one that does not contribute; with what it sends, should it send all the same."""
    metrics = {f"client/{name}": metric for name, metric in client.items()}
    metrics |= {f"aggregate/{name}": metric for name, metric in seen.items()}
    nothing = metrics_lib.zero(metrics)
    if sends is not None:
        nothing |= {name: where(sends, metrics[name], nothing[name]) for name in _BITS}
    return where(contributes, metrics, nothing)


def _any_nan(metric: Metric | None) -> Any:
    """Whether a metric holds NaN: labels without a class make a loss so, and leave the update finite."""
    leaves = [leaf for leaf in jax.tree.leaves(metric) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
    return functools.reduce(jnp.logical_or, (jnp.any(jnp.isnan(leaf)) for leaf in leaves), jnp.zeros((), bool))


def checked_update(update: Any, row: Any) -> ClientUpdate:
    """Check what a client function returned; fill in an unchanged row."""
    if not isinstance(update, ClientUpdate):
        raise ArgumentError(f"the client function returned {type(update).__name__}: must be a fs.ClientUpdate.")
    if jnp.shape(update.weight) != ():
        raise ArgumentError(f"ClientUpdate.weight has shape {jnp.shape(update.weight)}: must be a scalar.")
    check_leaves("ClientUpdate.payload", update.payload)
    state = row if update.state is None or not jax.tree.leaves(row) else update.state
    check_leaves("ClientUpdate.state", state)
    _check_like("ClientUpdate.state", row, state, "the row that the algorithm's init returned")
    payload = jax.tree.map(jnp.asarray, update.payload)
    return ClientUpdate(payload, update.weight, state=state, metrics=metrics_lib.as_metrics(update.metrics))


def _check_server(old: Any, new: Any) -> None:
    check_leaves("the server function's result", new)
    _check_like("the server function's result", old, new, "the server state")


def _check_like(what: str, old: Any, new: Any, like: str) -> None:
    if jax.tree.structure(old) != jax.tree.structure(new):
        raise ArgumentError(
            f"{what} has structure {jax.tree.structure(new)}: must be that of {like}, {jax.tree.structure(old)}."
        )
    leaves = jax.tree_util.tree_leaves_with_path(old)
    for (path, a), b in zip(leaves, jax.tree.leaves(new), strict=True):
        if jnp.shape(a) != jnp.shape(b):
            raise ArgumentError(
                f"{what}{jax.tree_util.keystr(path)} has shape {jnp.shape(b)}: must be {jnp.shape(a)}, as in {like}."
            )
    check_keeps(what, old, new)


def _by_lane(tree: Any) -> Any:
    """One axis for the three of lane order, [D, T, L, ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(math.prod(leaf.shape[:3]), *leaf.shape[3:]), tree)  # of any size


def _by_slot(metrics: dict[str, Metric], slots: Any, capacity: int) -> dict[str, Metric]:
    """From lane order to places in the cohort; empty lanes point past the end."""
    return _scattered(metrics, slots, metrics_lib.zero(_empty(metrics, capacity)))


def _empty(tree: Any, capacity: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape[1:]), leaf.dtype), tree)


def _scattered(tree: Any, slots: Any, empty: Any) -> Any:
    return jax.tree.map(lambda out, leaf: out.at[slots].set(leaf, mode="drop"), empty, tree)


class Sent(NamedTuple):
    """What passes between the server and a client in a phase.

    Attributes:
        payload: shapes of what the client function returns for the aggregator.
        downlink: bits of the server state's leaves that the client function reads.
    """

    payload: Any
    downlink: float


def sent(
    phases: tuple[Phase, ...],
    server: Any,
    client_row: Any,
    arrays: Any,
    batching: Batching,
    longest: int,
) -> list[Sent]:
    """What each phase sends, found by tracing its client function once, without computing."""
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays)

    def payload(phase: Phase, server: Any, row: Any, arrays: Any, zero: Any):
        lane = Lane(zero, zero, zero, zero, zero.astype(jnp.float32), zero, zero)
        batches = client_batches(lane, zero[None], arrays, batching, bound=zero, longest=longest, alone=False)
        return checked_update(phase.client(jax.random.key(0), server, row, batches), row).payload

    found = []
    for phase in phases:
        trace = jax.make_jaxpr(lambda *a, phase=phase: payload(phase, *a), return_shape=True)
        program, shape = trace(server, client_row, shapes, scalar)
        program = program.jaxpr
        read = {id(v) for equation in program.eqns for v in equation.invars} | {id(v) for v in program.outvars}
        leaves = jax.tree.leaves(server)
        inputs = zip(leaves, program.invars[: len(leaves)], strict=True)
        found.append(Sent(shape, float(sum(bits(leaf) for leaf, variable in inputs if id(variable) in read))))
    return found


def check_params(like: Params, params: Params) -> None:
    """Given parameters have the structure, shapes and kinds of the task's."""
    check_leaves("params", params)
    expected, given = jax.tree.structure(like), jax.tree.structure(params)
    if expected != given:
        raise ArgumentError(f"params have structure {given}: the task's have {expected}.")
    leaves = jax.tree_util.tree_leaves_with_path(like)
    for (path, a), b in zip(leaves, jax.tree.leaves(params), strict=True):
        if a.shape != jnp.shape(b):
            raise ArgumentError(
                f"params{jax.tree_util.keystr(path)} has shape {jnp.shape(b)}: the task's has {a.shape}."
            )
    check_keeps("params", like, params)
