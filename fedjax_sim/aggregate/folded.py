"""What is folded along a chain as it runs: parts of the payload, bounds, steps and bits.

Bounds and bits are kept for the whole payload, under the name None, and for each part that a transform was applied to.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate.base import Context, Message, Metrics, Row, State, Transform
from fedjax_sim.aggregate.host import HostStage, declared_columns
from fedjax_sim.core import pytree
from fedjax_sim.core.arrays import PyTree, Scalar, Shapes
from fedjax_sim.core.errors import ArgumentError

Folded = dict[str | None, Scalar]
"""A number of the whole payload, under None, and of each part."""


def part(t: Transform, tree: PyTree) -> PyTree:
    """The part of a payload that a transform applies to."""
    if t.part is None:
        return tree
    if not isinstance(tree, Mapping) or t.part not in tree:
        has = f"the parts {sorted(tree)}" if isinstance(tree, Mapping) else f"a {type(tree).__name__}, without parts"
        raise ArgumentError(f"{t.name}: the payload has no part {t.part!r}; it is {has}.")
    return tree[t.part]


def put(t: Transform, tree: PyTree, new: PyTree) -> PyTree:
    """The payload with a transform's part of it replaced."""
    return new if t.part is None else {**tree, t.part: new}


def no_row(t: Transform, mine: Shapes) -> Row:
    """A row without leaves, which is kept nowhere: its structure may say something all the same."""
    return jax.eval_shape(lambda payload: t.init(payload)[1], mine)


def shapes(t: Transform, state: State, row: Row, payload_shapes: Shapes) -> tuple[Shapes, Metrics]:
    """Shapes of what a transform sends, and of its metrics."""
    message, _, metrics = jax.eval_shape(
        lambda row, payload: t.client(jax.random.key(0), state, row, payload, _context_like(t)),
        row,
        part(t, payload_shapes),
    )
    return put(t, payload_shapes, message), metrics


def whole(bound: Scalar) -> Folded:
    """A bound of the whole payload."""
    return {None: bound}


def incoming(t: Transform, bounds: Folded) -> Scalar:
    """The bound of what a transform gets: a part's norm is at most the whole's."""
    if t.part is None:
        return bounds[None]
    return jnp.minimum(bounds[None], bounds.get(t.part, jnp.inf))


def bound(t: Transform, state: State, bounds: Folded, step: Scalar, payload: PyTree) -> tuple[Folded, Scalar]:
    """`(bounds, step)` after a transform, given its incoming payload (or shapes)."""
    if t.part is None:
        before, dim = total(bounds, payload), pytree.size(payload)
        return whole(t.bound(state, before, dim)), t.step(state, step, before, dim)
    before = incoming(t, bounds)
    after = t.bound(state, before, pytree.size(part(t, payload)))
    everything = jnp.where(after <= before, bounds[None], jnp.hypot(bounds[None], after))
    return {**bounds, None: everything, t.part: after}, step


def total(bounds: Folded, payload: PyTree) -> Scalar:
    """The bound of the whole payload: also from its parts' where each has one."""
    parts = [b for name, b in bounds.items() if name is not None]
    if not parts or not isinstance(payload, Mapping) or set(bounds) - {None} != set(payload):
        return bounds[None]
    return jnp.minimum(bounds[None], jnp.sqrt(sum(jnp.square(b) for b in parts)))


def first_bits(payload: PyTree) -> Folded:
    """Bits of a payload as it is."""
    if isinstance(payload, Mapping):
        return {name: float(pytree.bits(tree)) for name, tree in payload.items()}
    return {None: float(pytree.bits(payload))}


def bits(t: Transform, before: Folded, payload: PyTree, message: Message) -> Folded:
    """Bits after a transform that made `message` of (its part of) the payload."""
    if t.part is None:
        return {None: t.bits(message, total_bits(before))}
    if t.part not in before:  # a transform of the whole came before: share out what it sends
        sizes = first_bits(payload)
        before = {name: before[None] * size / math.fsum(sizes.values()) for name, size in sizes.items()}
    return {**before, t.part: t.bits(message, before[t.part])}


def total_bits(bits: Folded) -> Scalar:
    """Of all parts."""
    return sum(bits.values())


def _context_like(t: Transform) -> Context:
    zero, one = jnp.zeros((), jnp.int32), jnp.ones(())
    key, unbounded, own = jax.random.key(0), jnp.asarray(jnp.inf, jnp.float32), empty_columns(t.host)
    return Context(zero, zero, key, unbounded, zero, one, 1.0, one, key, own)


def empty_columns(host: HostStage | None) -> dict[str, jax.Array]:
    """A host stage's columns, as an empty place has them."""
    return {name: jnp.asarray(value) for name, value in declared_columns(host).items()}
