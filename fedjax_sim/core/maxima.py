r"""Maxima over windows that lie side by side (max pooling), whose derivative selects.

The derivative is that of the first element that is the maximum, as of XLA's, whose scatter on a CPU takes as long as a
convolution: with :math:`p` an element's place in its window, :math:`\dot y = \sum_i [p_i = \min \{p_j : x_j = y\}] \,
\dot x_i`.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import JaxprEqn

Ints = tuple[int, ...]


def maximum_of(eqn: JaxprEqn) -> Callable[..., jax.Array] | None:
    """A function of the inputs of a maximum over windows, or of its derivative; None for what is left to XLA."""
    params, name = eqn.params, eqn.primitive.name
    if not _tiles(params, cast(ShapedArray, eqn.invars[-1].aval)):
        return None
    window = params["window_dimensions"]
    if name == "reduce_window_max":
        return functools.partial(max_pool, window)
    if getattr(params.get("select_prim"), "name", None) != "ge":
        return None
    return functools.partial(_spread if name == "select_and_scatter_add" else _selected, window)


def _tiles(params: Mapping[str, Any], x: ShapedArray) -> bool:
    """Whether the windows lie side by side, and begin at the first element."""
    dilations = (*params.get("base_dilation", ()), *params.get("window_dilation", ()))
    return (
        params["window_dimensions"] == params["window_strides"]
        and all(borders == (0, 0) for borders in params["padding"])
        and all(d == 1 for d in dilations)
        and jnp.issubdtype(x.dtype, jnp.floating)
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def max_pool(window: Ints, x: jax.Array) -> jax.Array:
    """The maximum of each window; what is left over at the end is left out."""
    return jnp.max(_windows(window, x), axis=_inner(x))


@max_pool.defjvp
def _max_pool_jvp(window: Ints, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    return max_pool(window, x), _selected(window, tangent, x)


@functools.partial(jax.jit, static_argnums=0)
def _selected(window: Ints, tangent: jax.Array, x: jax.Array) -> jax.Array:
    """Of each window the tangent of its first maximum."""
    return jnp.sum(jnp.where(_first(window, x), _windows(window, tangent), 0), axis=_inner(x))


@functools.partial(jax.jit, static_argnums=0)
def _spread(window: Ints, cotangent: jax.Array, x: jax.Array) -> jax.Array:
    """The transpose of `_selected`: each window's cotangent at its first maximum, like x."""
    each = jnp.where(_first(window, x), jnp.expand_dims(cotangent, _inner(x)), 0)
    sizes = [n // w * w for n, w in zip(x.shape, window, strict=True)]
    borders = [(0, n - size, 0) for n, size in zip(x.shape, sizes, strict=True)]
    return jax.lax.pad(each.reshape(sizes), jnp.zeros((), each.dtype), borders)


def _first(window: Ints, x: jax.Array) -> jax.Array:
    """Where in its window, as in `_windows`, an element is the first maximum."""
    windows = _windows(window, x)
    size, shape = math.prod(window), [n for w in window for n in (1, w)]
    place = jnp.arange(size, dtype=jnp.int32).reshape(shape)
    y = jnp.max(windows, axis=_inner(x), keepdims=True)
    return place == jnp.min(jnp.where(windows == y, place, size), axis=_inner(x), keepdims=True)


def _windows(window: Ints, x: jax.Array) -> jax.Array:
    """[windows, window, windows, window, ...]: a pair of axes for each of x."""
    x = x[tuple(slice(n // w * w) for n, w in zip(x.shape, window, strict=True))]
    return x.reshape([n for size, w in zip(x.shape, window, strict=True) for n in (size // w, w)])


def _inner(x: jax.Array) -> Ints:
    return tuple(range(1, 2 * x.ndim, 2))
