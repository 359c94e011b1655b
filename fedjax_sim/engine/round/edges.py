"""A round with edges between clients and server: so many rounds of each edge among its clients, then their mean.

The edges' states are an axis of their own, [E, ...] a leaf, for the time of the round: a client reads its edge's, sums
are kept apart, and the server's side runs for all edges at once. Memory is of E server states and E sums a device.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core import metrics as metrics_lib
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.types import RoundPlan
from fedjax_sim.data.batching import Batching
from fedjax_sim.engine.parts import Parts
from fedjax_sim.engine.round.cohort_map import FIRST
from fedjax_sim.engine.round.device_state import DeviceState
from fedjax_sim.engine.store.residency import Constants


def make_round(parts: Parts, phases: Sequence[Any], nothing: Any) -> Callable[..., tuple[DeviceState, Any]]:
    """The function of one round, as `phase.make_round` has it.

    Args:
        parts: of a simulation whose algorithm has edges.
        phases: of an edge's round, `phase.PhaseRound` each.
        nothing: the output of a round that has not begun.
    """
    edges = parts.algorithm.edges
    assert edges is not None

    def one_round(seeds: jax.Array, state: DeviceState, plan: RoundPlan, constants: Constants):
        def edge_round(turn: Any, state: DeviceState) -> tuple[DeviceState, Any]:
            mine, output = of_turn(plan, turn, parts.batching), nothing
            for phase in phases:
                broadcast = phase.broadcast(seeds, state, mine, turn)
                result = phase.train(broadcast, phase.rows(state.rows), mine, constants)
                state = replace(state, rows=phase.with_rows(state.rows, result.rows))
                state, output = phase.finish(broadcast, state, mine, result, output, constants.frozen)
            return state, output

        edge_round = jax.jit(edge_round, inline=True)  # traced once, for the shapes and for the loop
        first = replace(state, server=spread(state.server, edges.number))
        like = jax.eval_shape(lambda: edge_round(jnp.zeros((), jnp.int32), first)[1])

        def body(turn: Any, carry: tuple[DeviceState, Any]) -> tuple[DeviceState, Any]:
            state, output = edge_round(turn, carry[0])
            return state, _merged(carry[1], output)

        after, output = jax.lax.fori_loop(0, edges.rounds, body, (first, _neutral(like)))
        server = joined(after.server, output.weight)
        output = replace(output, count=jnp.sum(output.count), weight=jnp.sum(output.weight) / edges.rounds)
        return replace(after, server=server), output

    return one_round


def of_turn(plan: RoundPlan, turn: jax.Array | int, batching: Batching) -> RoundPlan:
    """An edge round's part of a plan, whose lanes have the steps of all edge rounds, one after another.

    A client that is stopped on the way trains no more after its last step.
    """
    size, batch = plan.lanes.size, batching.batch_size
    each = size // batch if batching.drop_remainder else -(-size // batch)
    own = each * batching.epochs if batching.steps is None else jnp.where(each > 0, batching.steps, 0)
    done = turn * own
    steps = jnp.clip(plan.lanes.steps - done, 0, own)
    lanes = replace(plan.lanes, steps=steps, columns={**plan.lanes.columns, FIRST: done})
    return replace(plan, lanes=lanes)


def spread(server: PyTree, count: int) -> PyTree:
    """A server state for each edge, [E, ...] a leaf."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *jnp.shape(leaf))), server)


def joined(servers: PyTree, weights: jax.Array) -> Any:
    """The mean of the edges' states by their weights, [E]; of whole numbers, which count rounds, the largest.

    Edges without weight are as the round began, and all are where none has weight.
    """
    total = jnp.sum(weights)
    shares = weights / jnp.where(total > 0, total, 1.0)

    def mean(leaf: jax.Array) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jnp.max(leaf, axis=0)
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        moved = jnp.tensordot(shares.astype(wide.dtype), wide - wide[:1], 1)  # so that what is alike stays as it is
        return (wide[0] + moved).astype(leaf.dtype)

    return jax.tree.map(mean, servers)


def _neutral(like: Any) -> Any:
    """A round's output to begin with, of these shapes."""
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    none = {"merged": metrics_lib.zero(zeros.merged), "per_client": metrics_lib.zero(zeros.per_client)}
    return replace(zeros, **none, finite=jnp.ones_like(zeros.finite))


def _merged(a: Any, b: Any) -> Any:
    """Of two edge rounds."""
    return replace(
        a,
        merged=metrics_lib.merge(a.merged, b.merged),
        per_client=metrics_lib.merge(a.per_client, b.per_client),
        finite=a.finite & b.finite,
        count=jnp.maximum(a.count, b.count),
        weight=a.weight + b.weight,
    )
