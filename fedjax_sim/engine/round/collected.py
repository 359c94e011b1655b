"""A cohort's messages before a reducer that collects them: whole, or some coordinates at a time.

They lie where their clients trained, [D, T, L, ...] in the order of lanes. A reducer by client finds them there.
Another wants all clients of a coordinate beside each other, and cares little where the coordinates are: so they are
dealt over the devices by coordinates, and sorting is each device's own work. A reducer by coordinate gets blocks of
them, which are exchanged one by one, so that nothing of the size of all messages is made beside them.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_sim.aggregate import Aggregator, Collected, Reduced, Reducer
from fedjax_sim.aggregate.collecting import made, of_no_coordinates
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.engine.device.placement import AXIS, REPLICATED, SHARDED, everywhere

BLOCK = 2**18
"""Numbers of a block of coordinates on a device, all clients': 1 MiB, which a core's cache holds."""

NOBODY = jnp.iinfo(jnp.int32).max
"""The id in places that do not contribute."""


def reduce_collected(
    aggregator: Aggregator,
    states: PyTree,
    collected: Collected,
    mesh: Mesh,
    in_order: int | None,
    most: int | None = None,
) -> tuple[Reduced, PyTree]:
    """What the chain's reducer makes of a cohort, and the chain's states after it.

    Args:
        aggregator: its chain.
        states: its states before.
        collected: messages and columns of lanes, [D, T, L, ...].
        mesh: the devices.
        in_order: the most clients of a cohort, to hand them over in the order of ids, the same in all layouts; or None.
        most: those, to leave out places beyond so many, which are empty: each device has room for the whole cohort.
    """
    lanes = lambda leaf: leaf.reshape(math.prod(leaf.shape[:3]), *leaf.shape[3:])
    ids = jnp.where(collected.contributes, collected.ids, NOBODY)
    weights, contributes, ids = (lanes(leaf) for leaf in (collected.weights, collected.contributes, ids))
    messages, take, by_client = collected.messages, None, aggregator.reducer.by_client
    if in_order is not None or (most is not None and mesh.size > 1 and not by_client):
        (ids,) = jax.lax.with_sharding_constraint((ids,), everywhere(mesh))
        take = jnp.argsort(ids)[: most if in_order is None else in_order]
        weights, contributes, ids = (leaf[take] for leaf in (weights, contributes, ids))
    collected = collected._replace(weights=weights, contributes=contributes, ids=ids)
    if aggregator.reducer.by_coordinate:
        return _in_blocks(aggregator.reducer, collected, mesh, take), states
    messages = jax.tree.map(lanes, messages)
    if in_order is not None:
        messages = jax.lax.with_sharding_constraint(messages, everywhere(mesh))
    elif mesh.size > 1 and not by_client:
        messages = jax.tree.map(lambda leaf: _by_coordinates(leaf, mesh), messages)
    if take is not None:
        messages = jax.tree.map(lambda leaf: leaf[take], messages)
    return aggregator.reduce(states, collected._replace(messages=messages))


def _by_coordinates(leaf: jax.Array, mesh: Mesh) -> jax.Array:
    """[n, ...] with an axis of the coordinates dealt over the devices: the first that divides, or the longest."""
    if leaf.ndim == 1 or not leaf.size:
        return leaf
    sizes = leaf.shape[1:]
    even = [i for i, size in enumerate(sizes) if size % mesh.size == 0]
    axis = 1 + (even[0] if even else max(range(len(sizes)), key=sizes.__getitem__))
    spec = PartitionSpec(*[None] * axis, AXIS)
    return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))


def _in_blocks(reducer: Reducer, collected: Collected, mesh: Mesh, take: jax.Array | None) -> Reduced:
    """By coordinates: the rule for blocks of each leaf, and once for none, which says what does not depend on them."""
    rest = collected._replace(messages=(), server=None, train=None)
    said = of_no_coordinates(reducer, rest)
    row = None if take is None else jax.lax.with_sharding_constraint(take, everywhere(mesh))

    def share(messages: PyTree, row: jax.Array | None, rest: Collected) -> PyTree:
        leaves, structure = jax.tree.flatten(messages)
        flat = [leaf.reshape(math.prod(leaf.shape[:3]), math.prod(leaf.shape[3:])) for leaf in leaves]
        by_id = lambda block: block if row is None else block[row]
        rule = lambda block: made(reducer, rest._replace(messages=by_id(block))).value
        values = zip(_blockwise(flat, rule, mesh.size), leaves, strict=True)
        return jax.tree.unflatten(structure, [value.reshape(leaf.shape[3:]) for value, leaf in values])

    specs: Any = (SHARDED, REPLICATED, REPLICATED)
    run = jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=REPLICATED, check_vma=False)
    return said._replace(value=run(collected.messages, row, rest))


def _blockwise(leaves: list[jax.Array], rule: Callable[[jax.Array], jax.Array], devices: int) -> list[jax.Array]:
    """[s], the rule's value of each coordinate, of a device's own messages [n / D, s]; inside the devices' map.

    A block is D pieces of b coordinates, of which each device takes one. One loop goes through the blocks of all
    leaves, so that the rule is compiled once: of small leaves joined, and of each other leaf, whose last block
    overlaps the one before it.
    """
    count, sizes = len(leaves[0]) if leaves else 0, [leaf.shape[1] for leaf in leaves]
    step = devices * max(1, min(BLOCK // max(count * devices, 1), -(-sum(sizes) // devices)))
    small = [i for i, size in enumerate(sizes) if size < step]
    together = sum(sizes[i] for i in small)
    sources = [leaf for i, leaf in enumerate(leaves) if i not in small]
    if together:
        joined = jnp.concatenate([leaves[i].astype(jnp.result_type(jnp.float32, *leaves)) for i in small], axis=1)
        sources.append(jnp.pad(joined, ((0, 0), (0, max(step - together, 0)))))
    found = iter(_sources_blockwise(sources, rule, devices, step))
    values = {i: next(found) for i in range(len(leaves)) if i not in small}
    ends = np.cumsum([sizes[i] for i in small])
    apart = jnp.split(next(found)[:together], ends[:-1].tolist()) if together else [jnp.zeros(0)] * len(small)
    values |= dict(zip(small, apart, strict=True))
    return [values[i] for i in range(len(leaves))]


def _sources_blockwise(
    sources: list[jax.Array], rule: Callable[[jax.Array], jax.Array], devices: int, step: int
) -> list[jax.Array]:
    """The rule's value of arrays [n / D, s] that hold a block at least, each of `step` coordinates."""
    starts_of = lambda size: [min(i * step, size - step) for i in range(-(-size // step))]
    blocks = [(i, start) for i, leaf in enumerate(sources) for start in starts_of(leaf.shape[1])]
    dtype = jnp.result_type(jnp.float32, *sources)

    def one(source: Any, start: Any) -> jax.Array:
        piece = lambda leaf: lambda at: jax.lax.dynamic_slice_in_dim(leaf, at, step, axis=1).astype(dtype)
        block = jax.lax.switch(source, [piece(leaf) for leaf in sources], start)
        if devices == 1:
            return rule(block)
        return jax.lax.all_gather(
            rule(jax.lax.all_to_all(block, AXIS, split_axis=1, concat_axis=0, tiled=True)), AXIS, tiled=True
        )

    if not blocks:
        return []
    where, starts = (jnp.asarray(column, jnp.int32) for column in zip(*blocks, strict=True))
    like = jax.eval_shape(one, where[0], starts[0])
    body = lambda i, values: values.at[i].set(one(where[i], starts[i]))
    values = jax.lax.fori_loop(0, len(blocks), body, jnp.zeros((len(blocks), *like.shape), like.dtype))
    found, first = [], 0
    for leaf in sources:
        mine = values[first : first + -(-leaf.shape[1] // step)]
        first += len(mine)
        found.append(jnp.concatenate([mine[:-1].reshape(-1), mine[-1, len(mine) * step - leaf.shape[1] :]]))
    return found
