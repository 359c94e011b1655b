"""One round on the devices: for each phase broadcast, train, encode, reduce, decode, and take a server step."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate import Aggregator, Collected, Reduced
from fedjax_sim.aggregate.collecting import ABANDONED
from fedjax_sim.client.bound import bound
from fedjax_sim.core import metrics as metrics_lib
from fedjax_sim.core import rng
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.metrics import Metric, Sum
from fedjax_sim.core.pytree import pytree, where
from fedjax_sim.core.rng import Purpose
from fedjax_sim.core.types import Aggregate, ClientRows, RoundPlan
from fedjax_sim.engine.device.placement import everywhere
from fedjax_sim.engine.parts import Parts
from fedjax_sim.engine.round import edges
from fedjax_sim.engine.round.abandoned import abandoned_state, abandoned_states, cohort_rows, rows_put_back
from fedjax_sim.engine.round.client_side import BITS, NONFINITE, ClientSide
from fedjax_sim.engine.round.cohort_map import CohortMap, CohortResult, by_dtype
from fedjax_sim.engine.round.collected import reduce_collected
from fedjax_sim.engine.round.device_state import DeviceState
from fedjax_sim.engine.round.own_message import own_message
from fedjax_sim.engine.round.returned import check_server
from fedjax_sim.engine.round.versions import remembered
from fedjax_sim.engine.store.residency import Constants


@pytree
class RoundOutput:
    """What a round reports, on the devices.

    Attributes:
        merged: dict of metrics over the cohort.
        per_client: dict of metrics, [C] each, by place in the cohort; zeros for places that did not train.
        finite: [C] bool; False for a client whose update held NaN or infinity.
        count: [] float32, clients that contributed, in the last phase.
        weight: [] float32, the sum of their effective weights.
        abandoned: [] bool, a reducer refused the round; None where none ever does.
        unseen: [] bool, it is abandoned and its sum was never seen; None where none ever is.
    """

    merged: dict[str, Metric]
    per_client: dict[str, Metric]
    finite: jax.Array
    count: jax.Array
    weight: jax.Array
    abandoned: jax.Array | None = None
    unseen: jax.Array | None = None


def make_round(
    parts: Parts, capacity: int, members: str | None = None, static: bool = False
) -> Callable[..., tuple[DeviceState, RoundOutput]]:
    """The function of one round, `(seeds, state, plan, constants) -> (state, output)`, to be compiled.

    `seeds` are the run's and its noise's, [2] uint32; `members` and `static` are as in `CohortMap`.
    """
    phases = phase_rounds(parts, capacity, members, static)
    if parts.algorithm.edges is not None:
        return edges.make_round(parts, phases, no_output(capacity))
    collects = any(not phase.aggregator.reducer.linear for phase in parts.phases)

    def one_round(seeds: jax.Array, state: DeviceState, plan: RoundPlan, constants: Constants):
        before, output = state, no_output(capacity)
        rows = cohort_rows(parts.mesh, state.rows, plan) if collects else None  # no work where nothing is refused
        for phase in phases:
            broadcast = phase.broadcast(seeds, state, plan)
            result = phase.train(broadcast, phase.rows(state.rows), plan, constants)
            state = replace(state, rows=phase.with_rows(state.rows, result.rows))
            state, output = phase.finish(broadcast, state, plan, result, output, constants.frozen)
        if output.abandoned is None:
            return state, output
        rows = rows_put_back(parts.mesh, state.rows, plan, rows, output.abandoned)
        back = abandoned_state(parts, before, state)
        server, states = where(output.abandoned, (back.server, back.aggregator), (state.server, state.aggregator))
        return replace(state, server=server, aggregator=states, rows=rows), output

    return one_round


def phase_rounds(parts: Parts, capacity: int, members: str | None = None, static: bool = False) -> list["PhaseRound"]:
    """Each phase of a round; arguments as of `make_round`."""
    return [PhaseRound(parts, index, capacity, members, static) for index in range(len(parts.phases))]


def no_output(capacity: int) -> RoundOutput:
    """Of a round that has not begun."""
    nothing = jnp.zeros((), jnp.float32)
    return RoundOutput({}, {}, jnp.ones(capacity, bool), nothing, nothing)


class PhaseRound:
    """One phase of a round, in its parts: what the cohort shares, its training, and the server's side.

    An `exact` round's result depends neither on devices nor on the cohort's order.

    Args:
        parts: of the simulation.
        index: of the phase.
        capacity: places in a cohort.
        members, static: as in `CohortMap`.
    """

    def __init__(self, parts: Parts, index: int, capacity: int, members: str | None = None, static: bool = False):
        self.parts, self.index, self.capacity = parts, index, capacity
        self.phase = parts.phases[index]
        self.aggregator: Aggregator = self.phase.aggregator
        self.edges = parts.algorithm.edges
        self.train = CohortMap(
            ClientSide(parts, index),
            parts.mesh,
            parts.batching,
            parts.planner.longest if self.edges is None else parts.planner.longest // self.edges.rounds,
            self.aggregator.reducer.linear,
            self.aggregator.facts.weighted,
            members,
            capacity if parts.exact else None,
            parts.algorithm.task.convolutions,
            static,
            None if self.edges is None else self.edges.number,
        )

    def broadcast(self, seeds: jax.Array, state: DeviceState, plan: RoundPlan, turn: jax.Array | int = 0) -> Any:
        """What all clients see: server state, the transforms' state, the round's keys and number, old server states.

        With edges the states are theirs, [E, ...] a leaf, and `turn` is which of the round's edge rounds it is.
        """
        this_round = plan.round[0]
        purposes = _PURPOSES if self.aggregator.reducer.linear else (*_PURPOSES, Purpose.REDUCE)
        keys = rng.round_keys(seeds, purposes, this_round, turn * len(self.parts.phases) + self.index)
        ring = None if state.versions is None else state.versions[self.index]
        return state.server, state.aggregator[self.index], keys, this_round, ring

    def rows(self, rows: ClientRows) -> Any:
        """Those that this phase's clients have."""
        return rows.client, None if rows.aggregator is None else rows.aggregator[self.index]

    def with_rows(self, rows: ClientRows, new: PyTree) -> ClientRows:
        """All rows, with this phase's new ones."""
        client, own = new
        if rows.aggregator is None:
            return ClientRows(client, None)
        return ClientRows(client, _with_entry(rows.aggregator, self.index, own))

    def finish(
        self,
        broadcast: PyTree,
        state: DeviceState,
        plan: RoundPlan,
        result: CohortResult,
        output: RoundOutput,
        frozen: PyTree,
    ) -> tuple[DeviceState, RoundOutput]:
        """Reduce, decode and take a server step: the state after the phase, and what the round reports so far."""
        slots = plan.lanes.slot.reshape(-1)

        def in_order(tree: PyTree) -> Any:
            """From places in the cohort to the order of client ids, whole on every device."""
            last = jnp.full(self.capacity, jnp.iinfo(jnp.int32).max)
            order = jnp.argsort(last.at[slots].set(plan.lanes.client_id.reshape(-1), mode="drop"))
            whole = jax.lax.with_sharding_constraint((tree, order), everywhere(self.parts.mesh))
            return jax.tree.map(lambda leaf: leaf[whole[1]], whole[0])

        with bound(self.parts.algorithm.task.frozen, frozen, plan.round[0]):
            state, server_metrics, refused = self._server(broadcast, state, plan, result, frozen)
        lanes, slots = self._whole((_by_lane(result.metrics), slots))
        (bad,) = jax.tree.leaves(lanes.pop(NONFINITE))
        placed = _by_slot(lanes, slots, self.capacity)
        merged = _with(output.merged, metrics_lib.reduce(in_order(placed) if self.parts.exact else lanes))
        server_metrics = {f"aggregate/{name}": metric for name, metric in server_metrics.items()}
        abandoned = output.abandoned
        if refused is not False:
            abandoned = refused if abandoned is None else abandoned | refused
        if abandoned is not None:
            server_metrics[f"aggregate/{ABANDONED}"] = Sum(abandoned.astype(jnp.float32))
        twice = sorted(set(server_metrics) & set(lanes))
        if twice:
            raise ArgumentError(
                f"{self.aggregator.name} reports {twice} from its clients' side and from its server's: rename one."
            )
        return state, RoundOutput(
            merged | server_metrics,
            _with(output.per_client, placed),
            output.finite.at[slots].min(bad == 0, mode="drop"),
            result.count,
            result.weight,
            abandoned,
        )

    def _reduced(
        self, broadcast: PyTree, plan: RoundPlan, result: CohortResult, frozen: PyTree, bound: jax.Array
    ) -> Any:
        """What the reducer makes of the cohort, and the chain's states after that."""
        server, states, keys, this_round, _ = broadcast
        if self.aggregator.reducer.linear:
            return Reduced(result.total, metrics={}), states
        collected = Collected(
            result.messages,
            result.weights,
            result.contributes,
            plan.lanes.client_id,
            keys[Purpose.REDUCE],
            round=this_round,
            bound=bound,
            server=server,
            train=functools.partial(own_message, self.parts, self.index, broadcast, frozen),
        )
        in_order = self.capacity if self.parts.exact else None
        return reduce_collected(self.aggregator, states, collected, self.parts.mesh, in_order, self.capacity)

    def _server(
        self, broadcast: PyTree, state: DeviceState, plan: RoundPlan, result: CohortResult, frozen: PyTree
    ) -> tuple[DeviceState, dict[str, Metric], Any]:
        """The reducer, the server's side of the chain, and its step; the metrics, and whether the round is refused."""
        server, aggregator_state, keys, this_round, ring = broadcast
        aggregator, parts = self.aggregator, self.parts
        bound, step = aggregator.bound_and_step(aggregator_state, parts.sent[self.index].payload)
        reduced, reduced_state = self._reduced(broadcast, plan, result, frozen, bound)
        shares = jnp.sum((plan.lanes.weight > 0).astype(jnp.float32)) if parts.everyone else None

        def decoded(
            server: PyTree, value: PyTree, weight: jax.Array, count: jax.Array, sums: PyTree, key: jax.Array
        ) -> tuple[PyTree, PyTree, dict[str, Metric]]:
            aggregate, new_aggregator_state, metrics = aggregator.server(
                keys[Purpose.DECODE],
                reduced_state,
                Aggregate(
                    value,
                    weight,
                    count,
                    bound=bound,
                    step=step,
                    sums=sums,
                    round_key=keys[Purpose.SHARED],
                    shares=shares,
                    population=parts.data.num_clients,
                ),
                parts.expected,
                keys[Purpose.CENTRAL_NOISE],
            )
            new_server = self.phase.server(key, server, aggregate)
            check_server(server, new_server)
            new_server = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), new_server, server)
            # Nobody contributed: the model stays, unless noise must be released all the same, in a round not given up.
            go = (count > 0) | (aggregator.facts.noisy & (plan.abandoned[0] == 0))
            kept = abandoned_states(aggregator, aggregator_state, new_aggregator_state)
            new_states = where(go, new_aggregator_state, kept)
            return where(go, new_server, server), new_states, metrics

        given = (server, reduced.value, result.weight, result.count, result.sums)
        if self.edges is None:
            server_after, new_states, metrics = decoded(*given, keys[Purpose.SERVER])
        else:
            own = jax.vmap(functools.partial(jax.random.fold_in, keys[Purpose.SERVER]))(jnp.arange(self.edges.number))
            server_after, new_states, metrics = jax.vmap(decoded)(*given, own)
            metrics = metrics_lib.reduce(metrics)
        new_states = _with_entry(state.aggregator, self.index, new_states)
        state = replace(state, server=server_after, aggregator=new_states)
        if ring is not None:
            ring = remembered(ring, server, this_round, parts.sent[self.index].read, result.count)
            state = replace(state, versions=_with_entry(state.versions, self.index, ring))
        return state, aggregator.joined(metrics, reduced.metrics), reduced.refused

    def _whole(self, lanes: PyTree) -> Any:
        """What is kept of each client, [N, ...] a leaf, for every process: in one message for each dtype."""
        if not self.parts.mesh.is_multi_process:
            return lanes

        whole = lambda message: jax.lax.with_sharding_constraint(message, everywhere(self.parts.mesh))
        return by_dtype(whole, lanes, keep=1)


def _with_entry(entries: tuple[Any, ...], i: int, entry: PyTree) -> tuple[Any, ...]:
    return (*entries[:i], entry, *entries[i + 1 :])


def _with(metrics: dict[str, Metric], more: dict[str, Metric]) -> dict[str, Metric]:
    """A later phase's metrics over an earlier one's; what is sent adds up."""
    both = {name: metrics[name].merge(more[name]) for name in BITS if name in metrics and name in more}
    return {**metrics, **more, **both}


_PURPOSES = (
    *(Purpose.CLIENT, Purpose.ENCODE, Purpose.SHARED, Purpose.RECEIVE, Purpose.DECODE, Purpose.SERVER),
    *rng.NOISES,
)


def _by_lane(tree: PyTree) -> Any:
    """One axis for the three of lane order, [D, T, L, ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(math.prod(leaf.shape[:3]), *leaf.shape[3:]), tree)  # of any size


def _by_slot(metrics: dict[str, Metric], slots: jax.Array, capacity: int) -> dict[str, Metric]:
    """From lane order to places in the cohort; empty lanes point past the end."""
    return _scattered(metrics, slots, metrics_lib.zero(_empty(metrics, capacity)))


def _empty(tree: PyTree, capacity: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape[1:]), leaf.dtype), tree)


def _scattered(tree: PyTree, slots: jax.Array, empty: PyTree) -> Any:
    return jax.tree.map(lambda out, leaf: out.at[slots].set(leaf, mode="drop"), empty, tree)
