"""How a cohort's numbers are added: in floating point, or exactly, in fixed point, whatever the order.

Addition in floating point depends on its order, and so on lanes, devices and the cohort's order, by roundings. In fixed
point a number x is cut into limbs, whole numbers l_0, l_1, ... of b bits with

    x = sum_k l_k 2^(b k - 48),

which are added as 32-bit integers and joined once, at the end. b = 30 - log2(clients) leaves room for all clients.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.arrays import PyTree

RANGE = 2.0**24
"""What an exact sum takes of one client, weighted: numbers of a smaller absolute value."""

RESOLUTION = 2.0**-48
"""The unit of exact sums: float32 numbers of at least 2^-24 are multiples of it, smaller ones are rounded to one."""

_UNROLLED = 16


class Sums(NamedTuple):
    """A way to add.

    Attributes:
        zero: `shapes -> total`.
        add: `(total, values [L, ...], factors [L]) -> total`, which adds factors x values.
        result: `total -> sums`; totals of several devices are added before.
    """

    zero: Callable[[PyTree], PyTree]
    add: Callable[[PyTree, PyTree, jax.Array], PyTree]
    result: Callable[[PyTree], PyTree]


def floating(own_type: bool = False) -> Sums:
    """In float32 at least; or in the values' own type, in which integers wrap."""

    def zero(shapes: PyTree) -> PyTree:
        dtype = lambda leaf: leaf.dtype if own_type else jnp.promote_types(leaf.dtype, jnp.float32)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype(leaf)), shapes)

    def add(total: PyTree, values: PyTree, factors: jax.Array) -> PyTree:
        """A product, as XLA's CPU sums over a leading axis are slow."""

        def leaf(total: jax.Array, values: jax.Array) -> jax.Array:
            scale, values = factors.astype(total.dtype), values.astype(total.dtype)
            if values.shape[0] == 1:
                return total + scale[0] * values[0]
            return total + jnp.tensordot(scale, values, 1)

        return jax.tree.map(leaf, total, values)

    return Sums(zero, add, lambda total: total)


def exact(clients: int) -> Sums:
    """In fixed point, for values x factors below `RANGE` of that many clients."""
    bits = min(24, 30 - (clients - 1).bit_length())
    count = -(-int(math.log2(RANGE / RESOLUTION)) // bits)
    units = [RESOLUTION * 2.0 ** (bits * k) for k in reversed(range(count))]

    def zero(shapes: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), jnp.int32), shapes)

    def add(total: PyTree, values: PyTree, factors: jax.Array) -> PyTree:
        def leaf(total: jax.Array, values: jax.Array) -> jax.Array:
            scale = factors.astype(jnp.float32).reshape(-1, *[1] * (values.ndim - 1))
            # The barrier keeps the product from being joined, unrounded, with what is subtracted from it.
            rest = jax.lax.optimization_barrier(scale * values.astype(jnp.float32))
            limbs = []
            for unit in units[:-1]:
                limb = jnp.trunc(rest * (1 / unit))
                rest = rest - limb * unit  # exact: the digits that are left
                limbs.append(limb)
            limbs.append(jnp.round(rest * (1 / units[-1])))
            return total + jnp.stack([_over_lanes(limb.astype(jnp.int32)) for limb in limbs])

        return jax.tree.map(leaf, total, values)

    def result(total: PyTree) -> PyTree:
        def leaf(limbs: jax.Array) -> jax.Array:
            """Carries first, so that all limbs but the first are exact in float32; then from the smallest on."""
            terms, carry = [], jnp.zeros_like(limbs[0])
            for limb, unit in zip(limbs[:0:-1], units[:0:-1], strict=True):
                limb = limb + carry
                carry = (limb + (1 << (bits - 1))) >> bits
                terms.append((limb - (carry << bits)).astype(jnp.float32) * unit)
            terms.append((limbs[0] + carry).astype(jnp.float32) * units[0])
            return functools.reduce(jnp.add, terms)

        return jax.tree.map(leaf, total)

    return Sums(zero, add, result)


def add_by_group(sums: Sums, total: PyTree, values: PyTree, factors: jax.Array, groups: jax.Array) -> PyTree:
    """`sums.add` to totals [E, ...], each lane's to that of its group, [L] int32; in place, lane by lane."""

    def one(lane: Any, total: PyTree) -> PyTree:
        mine = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, lane, 1), (values, factors))
        group = groups[lane]
        added = sums.add(jax.tree.map(lambda leaf: leaf[group], total), *mine)
        return jax.tree.map(lambda leaf, new: leaf.at[group].set(new), total, added)

    return jax.lax.fori_loop(0, len(factors), one, total)


def fits(values: PyTree, factor: jax.Array) -> jax.Array:
    """Whether all of factor x values can be added exactly."""
    largest = lambda leaf: jnp.max(jnp.abs(leaf.astype(jnp.float32) * factor), initial=0.0)
    inside = [largest(leaf) < RANGE for leaf in jax.tree.leaves(values)]
    return functools.reduce(jnp.logical_and, inside, jnp.asarray(True))


def _over_lanes(limb: jax.Array) -> jax.Array:
    if len(limb) <= _UNROLLED:
        return functools.reduce(jnp.add, [limb[i] for i in range(len(limb))])
    return jnp.sum(limb, axis=0)
