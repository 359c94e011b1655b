"""What a round asks of a client, for clocks: steps, what a step costs, and the bytes that its chain sends."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

from fedjax_sim.aggregate import Context
from fedjax_sim.aggregate.folded import empty_columns
from fedjax_sim.algorithms.base import Algorithm, Pass
from fedjax_sim.client import Task
from fedjax_sim.client.bound import bound
from fedjax_sim.core import pytree
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.types import Columns, Lane
from fedjax_sim.data.batching import Batching
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.engine.parts import Sent
from fedjax_sim.engine.round.cohort_map import client_batches
from fedjax_sim.engine.round.returned import checked_update
from fedjax_sim.engine.store.residency import Constants
from fedjax_sim.population.timing import Fleet, Hierarchy, Timing, Work
from fedjax_sim.simulation.edges import of_round


def timing(
    fleet: Fleet | None,
    seed: int,
    phases: tuple[Pass, ...],
    sent: tuple[Sent, ...],
    server: PyTree,
    row: PyTree,
    algorithm: Algorithm,
    data: FederatedData,
    batching: Batching,
    columns: Columns,
) -> Timing:
    """What a sampler may know of a simulation's work, and its fleet.

    Raises:
        ArgumentError: a message whose length depends on what it says, and a fleet that was not told of it.
    """
    batching = of_round(batching, algorithm.edges)
    steps = lambda ids: batching.count_steps(data.sizes_of(ids))
    work = Work(steps, batching.batch_size, population=data.num_clients, hierarchy=_hierarchy(algorithm, server))
    if fleet is None:
        return Timing(work)
    flops = fleet.flops
    if flops is None and fleet.counts_flops:
        flops = sum(_flops(phase, server, row, algorithm.task, data, batching, columns) for phase in phases)
    up = fleet.bytes_up
    if up is None:
        up = sum(_uplink(phase, of.payload) for phase, of in zip(phases, sent, strict=True)) / 8
    down = sum(_downlink(phase, of, server) for phase, of in zip(phases, sent, strict=True)) / 8
    return Timing(work._replace(flops=np.nan if flops is None else flops, bytes_down=down, bytes_up=up), fleet, seed)


def _hierarchy(algorithm: Algorithm, server: PyTree) -> Hierarchy | None:
    edges = algorithm.edges
    return None if edges is None else Hierarchy(edges.places, edges.rounds, pytree.bits(server) / 8)


def _flops(
    phase: Pass, server: PyTree, row: PyTree, task: Task, data: FederatedData, batching: Batching, columns: Columns
) -> float:
    """Floating-point operations of a client's program, whose loop over steps the compiler counts once: one step's."""
    whole = jax.ShapeDtypeStruct((), jnp.int32)
    arrays = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), data.arrays)
    frozen = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), task.frozen)
    longest = batching.most_steps(data.kinds()[0])

    def update(key: jax.Array, server: PyTree, row: PyTree, arrays: PyTree, frozen: PyTree, zero: jax.Array):
        lane = Lane.of(lambda dtype, shape: jnp.broadcast_to(zero.astype(dtype), shape), columns)
        of = Constants(arrays, frozen)
        batches = client_batches(lane, zero, zero[None], of, batching, bound=zero, longest=longest, alone=True)
        with bound(task.frozen, batches.frozen, zero):
            made = checked_update(phase.client(key, server, row, batches), row)
        return made.payload, made.state, made.metrics

    key = jax.eval_shape(lambda: jax.random.key(0))
    costs = jax.jit(update).lower(key, server, row, arrays, frozen, whole).compile().cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs
    flops = float((costs or {}).get("flops", 0.0))
    if not flops > 0:
        raise ArgumentError(
            f"flops={flops}: the compiler does not say what a local step costs on this platform: give the fleet flops=."
        )
    return flops


def _uplink(phase: Pass, payload: PyTree) -> float:
    """Bits of a client's message."""
    aggregator = phase.aggregator
    key = jax.eval_shape(lambda: jax.random.key(0))
    states, rows = jax.eval_shape(lambda: aggregator.init(payload))

    def bits(key: jax.Array, states: PyTree, rows: PyTree, payload: PyTree) -> Any:
        zero, one, unbounded = jnp.zeros((), jnp.int32), jnp.ones(()), jnp.asarray(jnp.inf, jnp.float32)
        context = Context(zero, zero, key, unbounded, zero, weight=one, expected=one, step=one, receive_key=key)
        context = context._replace(columns=empty_columns(aggregator.host))
        return aggregator.encode(key, states, rows, payload, context, key).metrics["uplink_bits"].compute()

    return _constant(bits, f"{aggregator.name}'s message", key, states, rows, payload)


def _downlink(phase: Pass, sent: Sent, server: PyTree) -> float:
    """Bits that a client is sent."""
    if phase.downlink is None:
        return sent.downlink
    downlink = phase.downlink
    return _constant(lambda server: jnp.asarray(downlink(server), jnp.float32), "what the server sends", server)


def _constant(function: Any, what: str, *shapes: Any) -> float:
    """A number that depends on no argument."""
    program = jax.make_jaxpr(function)(*shapes)
    needed, used = partial_eval.dce_jaxpr(program.jaxpr, [True])
    if any(used):
        raise ArgumentError(
            f"{what} is as long as what it says: a clock cannot know before the round. Give the fleet bytes_up=, of an "
            "update on the average."
        )
    (value,) = core.jaxpr_as_fun(core.ClosedJaxpr(needed, program.consts))()
    return float(value)
