"""Plans as 32-bit words: one transfer to the devices a block, and there plans again."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_sim.core.arrays import Array
from fedjax_sim.core.types import RoundPlan
from fedjax_sim.engine.device.placement import dealt, put
from fedjax_sim.engine.plan.planner import PlanShape


def pack_plans(plans: list[RoundPlan]) -> np.ndarray:
    """Plans as one array of 32-bit words, [R, D, W]: one transfer instead of ten."""
    words = [[leaf.reshape(len(leaf), -1).view(np.int32) for leaf in jax.tree.leaves(plan)] for plan in plans]
    return np.stack([np.concatenate(parts, axis=1) for parts in words])


def place_plans(mesh: Mesh, words: Array) -> jax.Array:
    """Packed plans, [..., D, W], each device's part on it."""
    return put(words, dealt(mesh, words.ndim - 2))


def unpack_plan(words: jax.Array, shape: PlanShape) -> RoundPlan:
    """The plan of one round from its words, [D, W], inside the compiled program."""
    devices, chunks, lanes, rows, _ = shape
    each = (devices, chunks, lanes)
    like = RoundPlan(*[(devices, rows), *[each] * 8, (devices,), (devices,)])
    at, leaves = 0, {}
    for field in dataclasses.fields(RoundPlan):
        leaf_shape = getattr(like, field.name)
        size = math.prod(leaf_shape[1:])
        leaf = words[:, at : at + size].reshape(leaf_shape)
        if field.name == "weight":
            leaf = jax.lax.bitcast_convert_type(leaf, jnp.float32)
        leaves[field.name], at = leaf, at + size
    return RoundPlan(**leaves)
