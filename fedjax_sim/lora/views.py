"""A kernel as a program sees it: turned, flattened, cast, and with two thin factors beside it that go the same way."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.pytree import pytree, static

Origin = tuple[int, ...]
"""The axes of a leaf that an axis of a view is made of; none for one of length 1."""


@pytree
class View:
    """What a program made of a leaf by moving its numbers.

    Attributes:
        value: [...], the leaf's numbers.
        down, up: [..., r], what is added, as a product over r: `down` has length 1 where an axis is of the kernel's
            outputs, `up` where it is of its inputs; None while kernels are looked for.
        path: the leaf's.
        origins: of each axis.
        shared: axes of the leaf that a scan runs over, so that each step has a kernel of its own.
    """

    value: jax.Array
    down: jax.Array | None
    up: jax.Array | None
    path: str = static()
    origins: tuple[Origin, ...] = static()
    shared: Origin = static(default=())

    def mapped(
        self, value: Callable[[jax.Array], jax.Array], factor: Callable[[jax.Array], jax.Array], origins: Any
    ) -> "View":
        """Moved; `factor` is of a factor, whose last axis stays."""
        down, up = (None if each is None else factor(each) for each in (self.down, self.up))
        return View(value(self.value), down, up, self.path, tuple(origins), self.shared)

    def row(self) -> "View":
        """Of what a scan reads along the first axis, one step's: as it is, without that axis."""
        return View(self.value, self.down, self.up, self.path, self.origins[1:], (*self.shared, *self.origins[0]))


def moved(view: View, equation: JaxprEqn) -> View | None:
    """A view after an equation that moves numbers, or casts them; None for any other equation."""
    move = _MOVES.get(equation.primitive.name)
    return None if move is None else move(view, equation.params, equation.outvars[0].aval)


def _cast(view: View, params: dict[str, Any], aval: Any) -> View:
    return view.mapped(lambda leaf: leaf.astype(aval.dtype), lambda leaf: leaf, view.origins)


def _same(view: View, params: dict[str, Any], aval: Any) -> View:
    return view


def _transpose(view: View, params: dict[str, Any], aval: Any) -> View:
    order = tuple(params["permutation"])
    turn = lambda leaf: jnp.transpose(leaf, (*order, *range(len(order), leaf.ndim)))
    return view.mapped(turn, turn, (view.origins[i] for i in order))


def _squeeze(view: View, params: dict[str, Any], aval: Any) -> View:
    gone = tuple(params["dimensions"])
    drop = lambda leaf: jnp.squeeze(leaf, gone)
    return view.mapped(drop, drop, (each for i, each in enumerate(view.origins) if i not in gone))


def _broadcast(view: View, params: dict[str, Any], aval: Any) -> View | None:
    """New axes of length 1 alone."""
    at = tuple(params["broadcast_dimensions"])
    if math.prod(aval.shape) != view.value.size:
        return None
    new = [i for i in range(len(aval.shape)) if i not in at]
    add = lambda leaf: jnp.expand_dims(leaf, new)
    origins: list[Origin] = [()] * len(aval.shape)
    for i, origin in zip(at, view.origins, strict=True):
        origins[i] = origin
    return view.mapped(add, add, origins)


def _reshape(view: View, params: dict[str, Any], aval: Any) -> View | None:
    """Where no axis is joined with one of the other kind, inputs with outputs say: that, the factors show."""
    if params.get("dimensions") is not None:
        return None
    old, new = view.value.shape, tuple(aval.shape)
    origins: list[Origin] = [()] * len(new)
    to: dict[str, list[int]] = {"down": [1] * len(new), "up": [1] * len(new)}
    for before, after in groups(old, new):
        origin = tuple(dict.fromkeys(axis for i in before for axis in view.origins[i]))
        for i in after:
            origins[i] = origin if new[i] > 1 else ()
        for name, factor in (("down", view.down), ("up", view.up)):
            if factor is None:
                continue
            length = math.prod(factor.shape[i] for i in before)
            if length not in (1, math.prod(old[i] for i in before)):
                return None
            for i in after:
                to[name][i] = new[i] if length > 1 else 1
    down, up = (None if f is None else f.reshape(*to[name], f.shape[-1]) for name, f in _factors(view))
    return View(view.value.reshape(new), down, up, view.path, tuple(origins), view.shared)


def _factors(view: View) -> tuple[tuple[str, jax.Array | None], ...]:
    return ("down", view.down), ("up", view.up)


def groups(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Axes that a reshape makes others of: the finest runs of equal products.

    Example:
        >>> from fedjax_sim.lora.views import groups
        >>> groups((4, 6), (4, 2, 3)), groups((2, 3, 5), (6, 5))
        ([([0], [0]), ([1], [1, 2])], [([0, 1], [0]), ([2], [1])])
    """
    made: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        before, after = ([i] if i < len(old) else []), ([j] if j < len(new) else [])
        a, b = math.prod(old[k] for k in before), math.prod(new[k] for k in after)
        i, j = i + len(before), j + len(after)
        while a != b:
            if a < b:
                before.append(i)
                a, i = a * old[i], i + 1
            else:
                after.append(j)
                b, j = b * new[j], j + 1
        made.append((before, after))
    return made


_MOVES: dict[str, Callable[[View, dict[str, Any], Any], View | None]] = {
    "broadcast_in_dim": _broadcast,
    "convert_element_type": _cast,
    "copy": _same,
    "copy_p": _same,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "stop_gradient": _same,
    "transpose": _transpose,
}


class Reading:
    """How products read kernels: the leaf's axes that are summed over, and those that products share.

    Attributes:
        inputs, shared: by path, axes of the leaf.
        lookups: paths of the tables that are looked up.
    """

    def __init__(self) -> None:
        self.lookups: set[str] = set()
        self.inputs: dict[str, tuple[int, ...]] = {}
        self.shared: dict[str, tuple[int, ...]] = {}

    def read(self, path: str, inputs: tuple[int, ...], shared: tuple[int, ...]) -> None:
        """Note a product; two must read a leaf alike."""
        before = self.inputs.get(path, inputs), self.shared.get(path, shared)
        if before != (inputs, shared):
            raise ArgumentError(
                f"target {path!r} is read in two ways, over its axes {before[0]} and over {inputs}, as a tied "
                "embedding is: leave it out of targets=."
            )
        self.inputs[path], self.shared[path] = inputs, shared


def axes_of(view: View, contracted: tuple[int, ...], shared: tuple[int, ...]) -> tuple[Origin, Origin]:
    """The leaf's axes that a product sums over, and those that its factors share."""
    summed = {axis for i in contracted for axis in view.origins[i]}
    both = {axis for i in shared for axis in view.origins[i]} | set(view.shared)
    free = {axis for i, each in enumerate(view.origins) if i not in (*contracted, *shared) for axis in each}
    if summed & (free | both) or free & both:
        raise ArgumentError(
            f"target {view.path!r} is read by a product over a part of an axis: leave it out of targets=."
        )
    return tuple(sorted(summed)), tuple(sorted(both))
