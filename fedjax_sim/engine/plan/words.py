"""Plans as 32-bit words: one transfer to the devices a block, and there plans again."""

import math

import jax
import numpy as np
from jax.sharding import Mesh

from fedjax_sim.core.arrays import Array
from fedjax_sim.core.types import Lane, RoundPlan
from fedjax_sim.engine.device.placement import dealt, put
from fedjax_sim.engine.plan.planner import PlanShape


def pack_plans(plans: list[RoundPlan]) -> np.ndarray:
    """Plans as one array of 32-bit words, [R, D, W]: one transfer instead of ten."""
    words = [[_words(leaf) for leaf in jax.tree.leaves(plan)] for plan in plans]
    return np.stack([np.concatenate(parts, axis=1) for parts in words])


def _words(leaf: np.ndarray) -> np.ndarray:
    """[D, words] int32: a leaf's bytes, with zeros after those of shorter numbers that do not fill a word."""
    rows = np.ascontiguousarray(leaf).reshape(len(leaf), -1)
    if rows.itemsize != 4:
        rows = np.pad(rows.view(np.uint8), [(0, 0), (0, -rows.shape[1] * rows.itemsize % 4)])
    return rows.view(np.int32)


def place_plans(mesh: Mesh, words: Array) -> jax.Array:
    """Packed plans, [..., D, W], each device's part on it."""
    return put(words, dealt(mesh, words.ndim - 2))


def plan_like(shape: PlanShape) -> RoundPlan:
    """Shapes and dtypes of a plan's arrays."""
    devices, chunks, lanes, rows = shape[:4]
    of = lambda dtype, *shape: jax.ShapeDtypeStruct((devices, *shape), dtype)
    each = Lane.of(lambda dtype, own: of(dtype, chunks, lanes, *own), shape.columns, shape.repeats)
    number = of(np.int32)
    return RoundPlan(order=of(np.int32, rows), lanes=each, chunks=number, round=number, abandoned=number)


def unpack_plan(words: jax.Array, shape: PlanShape) -> RoundPlan:
    """The plan of one round from its words, [D, W], inside the compiled program."""
    like, structure = jax.tree.flatten(plan_like(shape))
    at, leaves = 0, []
    for leaf in like:
        count = math.prod(leaf.shape[1:])
        end = at + -(-count * leaf.dtype.itemsize // 4)
        leaves.append(_numbers(words[:, at:end], leaf))
        at = end
    return jax.tree.unflatten(structure, leaves)


def _numbers(words: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
    """A leaf from its words, [D, words]."""
    if like.dtype == np.int32:
        return words.reshape(like.shape)
    if like.dtype.itemsize == 4:
        return jax.lax.bitcast_convert_type(words.reshape(like.shape), like.dtype)
    if like.dtype.itemsize == 8:
        return jax.lax.bitcast_convert_type(words.reshape(*like.shape, 2), like.dtype)
    short = np.uint8 if like.dtype == bool else like.dtype
    numbers = jax.lax.bitcast_convert_type(words, short).reshape(len(words), -1)
    numbers = numbers[:, : math.prod(like.shape[1:])].reshape(like.shape)
    return numbers != 0 if like.dtype == bool else numbers
