"""What a client with some examples of the server's would send: for reducers that compare clients with it."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate import Context
from fedjax_sim.core.arrays import Key, PyTree
from fedjax_sim.core.rng import Purpose
from fedjax_sim.core.types import Lane
from fedjax_sim.engine.parts import Parts
from fedjax_sim.engine.round.cohort_map import client_batches
from fedjax_sim.engine.round.returned import checked_update
from fedjax_sim.engine.store.residency import Constants


def own_message(parts: Parts, index: int, broadcast: PyTree, frozen: PyTree, examples: PyTree, steps: int) -> PyTree:
    """The message of a client that takes part for the first time, as the server receives it.

    Args:
        parts: of the simulation.
        index: of the phase.
        broadcast: what all clients see; draws come from its key for the reducer.
        frozen: the task's constants, which are bound already.
        examples: pytree of [m, ...].
        steps: local steps, each epoch in a new order.
    """
    server, states, keys, this_round, _ = broadcast
    phase, batching = parts.phases[index], parts.batching
    order_key, client_key, encode_key, receive_key = jax.random.split(_beside(keys[Purpose.REDUCE]), 4)
    size = len(jax.tree.leaves(examples)[0])
    stride = size // batching.batch_size * batching.batch_size if batching.drop_remainder else size
    epochs = -(-steps // max(-(-stride // batching.batch_size), 1))
    shuffled = lambda epoch: jax.random.permutation(jax.random.fold_in(order_key, epoch), size)[:stride]
    order = jax.vmap(shuffled)(jnp.arange(epochs)).reshape(-1)
    whole = lambda number: jnp.asarray(number, jnp.int32)
    lane = Lane.of(lambda dtype, shape: jnp.zeros(shape, dtype))
    own = {"size": whole(size), "steps": whole(steps), "client_id": whole(-1), "neighbour": whole(-1)}
    columns = {name: jnp.asarray(empty) for name, empty in parts.planner.columns.items()}
    lane = replace(lane, **own, weight=jnp.ones(()), version=this_round, columns=columns)
    constants = Constants(examples, frozen)
    batches = client_batches(lane, this_round, order, constants, batching, bound=steps, longest=steps, alone=True)
    row = parts.algorithm.init(parts.algorithm.params(server))[1]
    update = checked_update(phase.client(client_key, server, row, batches), row)
    rows = phase.aggregator.init(parts.sent[index].payload)[1]
    shared, unbounded = keys[Purpose.SHARED], jnp.asarray(jnp.inf, jnp.float32)
    told = {"neighbour": whole(-1), "weight": jnp.ones(()), "expected": parts.expected, "receive_key": receive_key}
    context = Context(whole(-1), this_round, shared, unbounded, **told, columns=columns)
    encoded = phase.aggregator.encode(encode_key, states, rows, update.payload, context)
    return phase.aggregator.receive(receive_key, states, encoded.message)


def _beside(key: Key) -> Key:
    """A key that no client's id is folded into."""
    return jax.random.fold_in(key, jnp.iinfo(jnp.int32).max)
