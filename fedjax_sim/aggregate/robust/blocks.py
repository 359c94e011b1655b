"""Passes over messages in blocks of coordinates, so that what is computed of them stays small beside them.

A leaf is cut into parts, of which each block takes a piece: messages whose coordinates are dealt over devices, whose
number divides the parts, are then read where they are.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core.arrays import PyTree

PARTS = 16
BLOCK = 2**20
"""Numbers of a block at most, all clients': 4 MiB."""


def fold(add: Callable[..., PyTree], total: PyTree, *trees: PyTree) -> PyTree:
    """`total = add(total, *blocks)` for blocks [n, b] of the trees' coordinates; each tree has its own n."""
    for leaves in _leaves(trees):
        parts, width, full = _cut(leaves)

        def step(i: Any, total: PyTree, parts: list[jax.Array] = parts, width: int = width) -> PyTree:
            return add(total, *(_block(part, i * width, width) for part in parts))

        total = jax.lax.fori_loop(0, full, step, total) if full > 1 else step(0, total)
        rest = parts[0].shape[2] - full * width
        if rest:
            total = add(total, *(_block(part, full * width, rest) for part in parts))
    return total


def each(rule: Callable[..., jax.Array], *trees: PyTree) -> PyTree:
    """A tree of the rule's values, `rule(*blocks) -> [b]` of blocks [n, b]; float32 at least.

    Leaves of less than a block share one, so that a program holds the rule once for them, which may be long.
    """
    together, alone = [], {}
    room = BLOCK // max((leaf.shape[0] for tree in trees for leaf in jax.tree.leaves(tree)), default=1)
    for i, leaves in enumerate(_leaves(trees)):
        size = math.prod(leaves[0].shape[1:])
        if size > room or jnp.result_type(jnp.float32, *leaves) != jnp.float32:
            alone[i] = _each_block(rule, leaves)
            continue
        if not together or together[-1][0] < size:
            together.append([room, []])
        together[-1][0] -= size
        together[-1][1].append((i, leaves))
    for _, group in together:
        flat = [
            jnp.concatenate([_flat(leaf) for leaf in column], axis=1)
            for column in zip(*(leaves for _, leaves in group), strict=True)
        ]
        values, at = rule(*flat).astype(jnp.float32), 0
        for i, leaves in group:
            size = math.prod(leaves[0].shape[1:])
            alone[i], at = values[at : at + size].reshape(leaves[0].shape[1:]), at + size
    return jax.tree.unflatten(jax.tree.structure(trees[0]), [alone[i] for i in range(len(alone))])


def _each_block(rule: Callable[..., jax.Array], leaves: tuple[jax.Array, ...]) -> jax.Array:
    """One leaf's values; blocks of one width, of which the last begins earlier and makes some values again."""
    parts, width, _ = _cut(leaves)
    pieces, size = parts[0].shape[1:]
    full = -(-size // width)
    width = -(-size // full)

    def put(i: Any, values: jax.Array) -> jax.Array:
        at = jnp.minimum(i * width, size - width)
        value = rule(*(_block(part, at, width) for part in parts)).astype(values.dtype)
        return jax.lax.dynamic_update_slice_in_dim(values, value.reshape(pieces, width), at, axis=1)

    values = jnp.zeros((pieces, size), jnp.result_type(jnp.float32, *leaves))
    values = jax.lax.fori_loop(0, full, put, values) if full > 1 else put(0, values)
    return values.reshape(leaves[0].shape[1:])


def _flat(leaf: jax.Array) -> jax.Array:
    return leaf.reshape(leaf.shape[0], -1).astype(jnp.float32)


def _leaves(trees: tuple[PyTree, ...]) -> Iterator[tuple[jax.Array, ...]]:
    """The trees' leaves beside each other."""
    return zip(*(jax.tree.leaves(tree) for tree in trees), strict=True)


def _cut(leaves: tuple[jax.Array, ...]) -> tuple[list[jax.Array], int, int]:
    """The leaves as [n, parts, s / parts], how much of a part is in a block, and how many blocks are whole."""
    size = math.prod(leaves[0].shape[1:])
    count = PARTS if size % PARTS == 0 and size else 1
    parts = [leaf.reshape(leaf.shape[0], count, size // count) for leaf in leaves]
    width = max(1, min(size // count, BLOCK // (count * max(leaf.shape[0] for leaf in leaves))))
    return parts, min(width, size // count), max(size // count // width, 1) if size else 1


def _block(part: jax.Array, at: Any, width: int) -> jax.Array:
    block = jax.lax.dynamic_slice_in_dim(part, at, width, axis=2) if width < part.shape[2] else part
    return block.reshape(part.shape[0], part.shape[1] * width).astype(jnp.result_type(jnp.float32, part))
