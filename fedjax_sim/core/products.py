"""One convolution as slices and one product of matrices, in the cheapest of three forms.

.. math:: y[n, p, o] = \\sum_{w, i} \\bar x[n, s p + d w, i] \\, k[w, i, o]

for stride s, kernel dilation d and the input :math:`\\bar x` dilated and padded: a forward convolution. A derivative by
the input has a stride's dilated input, one by the kernel a window as large as an image and the images as channels.

- *Gathered*: patches of the input as the rows of a matrix, a slice for each window position (or for each output, if
  these are fewer), times the kernel.
- *Summed*: patches as columns, for images that are summed over: no layout changes in a gradient by the kernel.
- *Spread*: the input times the kernel at each window position, each product added at its place: fewer numbers where
  there are fewer output channels, or holes in the input, as in a gradient by the input.

What a form makes is made for as many images at a time as fit a core's cache, and made again backwards.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import JaxprEqn
from jax.typing import DTypeLike

Ints = tuple[int, ...]

_MAX_SLICES = 256  # one operation a slice: above this, compilation would be slow
_BLOCK = 2**20  # bytes of patches that are made, multiplied and forgotten together: they stay in a core's cache


class Convolution(NamedTuple):
    """Parameters of `conv_general_dilated` that say what is computed."""

    window_strides: Ints
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: Ints
    rhs_dilation: Ints
    dimension_numbers: jax.lax.ConvDimensionNumbers
    feature_group_count: int
    batch_group_count: int
    precision: jax.lax.PrecisionLike
    preferred_element_type: DTypeLike | None


def product_of(eqn: JaxprEqn) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
    """A jitted function of the input and the kernel for a `conv_general_dilated`; None for what is left to XLA."""
    params = eqn.params
    x, kernel, y = (cast(ShapedArray, v.aval) for v in (*eqn.invars, *eqn.outvars))
    spec = params["dimension_numbers"]
    window = math.prod(kernel.shape[i] for i in spec.rhs_spec[2:])
    output = math.prod(y.shape[i] for i in spec.out_spec[2:])
    if _sharded(params.get("out_sharding")) or min(x.size, kernel.size, y.size) == 0:
        return None
    if min(window, output) > _MAX_SLICES:
        return None
    return _as_product(Convolution(**{name: params[name] for name in Convolution._fields}))


def _sharded(sharding: Any) -> bool:
    """Whether a result's axes are cut. Inside `shard_map` derivatives are given a sharding that cuts none."""
    return sharding is not None and any(axis is not None for axis in getattr(sharding, "spec", sharding))


@functools.cache  # equal convolutions share one jitted function, hence one compilation
def _as_product(c: Convolution) -> Callable[[jax.Array, jax.Array], jax.Array]:
    lhs, rhs, out = c.dimension_numbers  # each: batch (or output channels), channels, *space

    @jax.jit
    def conv_as_matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
        groups = max(c.feature_group_count, c.batch_group_count)
        if groups == 1:
            return _one_group(x, kernel, c)
        # Each group has its own output channels, and its own input channels or images: a batch of products.
        mine = lhs[1] if c.feature_group_count > 1 else lhs[0]
        x, kernel = _split(x, mine, groups), _split(kernel, rhs[0], groups)
        each = jax.vmap(lambda x, kernel: _one_group(x, kernel, c), in_axes=(mine, rhs[0]), out_axes=out[1])
        return _merge(each(x, kernel), out[1])

    return conv_as_matmul


def _split(x: jax.Array, axis: int, groups: int) -> jax.Array:
    return x.reshape(*x.shape[:axis], groups, -1, *x.shape[axis + 1 :])


def _merge(x: jax.Array, axis: int) -> jax.Array:
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _one_group(x: jax.Array, kernel: jax.Array, c: Convolution) -> jax.Array:
    """The convolution without its groups, in the form that makes the fewest numbers."""
    lhs, rhs, out = c.dimension_numbers
    window, space = (tuple(a.shape[i] for i in spec[2:]) for a, spec in ((kernel, rhs), (x, lhs)))
    padded = [(n - 1) * d + 1 + sum(p) for n, d, p in zip(space, c.lhs_dilation, c.padding, strict=True)]
    sizes = zip(padded, window, c.rhs_dilation, c.window_strides, strict=True)
    output = tuple((n - (k - 1) * d - 1) // s + 1 for n, k, d, s in sizes)
    few = math.prod(output) < math.prod(window)
    if few and lhs[1] < lhs[0]:
        y, axes = _summed(x, kernel, c, output), (*out[2:], *out[:2])
    else:
        fewer = math.prod(space) * kernel.shape[rhs[0]] < math.prod(output) * x.shape[lhs[1]]
        spread = fewer and not few and all(s == 1 for s in c.window_strides)
        y, axes = (_spread if spread else _gathered)(x, kernel, c, output), (out[0], *out[2:], out[1])
    return jnp.transpose(y.astype(c.preferred_element_type or x.dtype), np.argsort(axes).tolist())


def _gathered(x: jax.Array, kernel: jax.Array, c: Convolution, output: Ints) -> jax.Array:
    """[N, *output, O] from an input as [N, *space, I] and a kernel as [*window, I, O]."""
    lhs, rhs, _ = c.dimension_numbers
    x = _padded(jnp.transpose(x, (lhs[0], *lhs[2:], lhs[1])), c)
    kernel = jnp.transpose(kernel, (*rhs[2:], rhs[1], rhs[0]))
    window = kernel.shape[:-2]
    matrix = kernel.reshape(-1, kernel.shape[-1])  # plain matrices, as backward products of more axes are slower

    def product(x: jax.Array) -> jax.Array:
        if math.prod(window) <= math.prod(output):
            rows = _joined(_slices(x, window, c.rhs_dilation, output, c.window_strides))
        else:
            rows = jnp.stack(list(_slices(x, output, c.window_strides, window, c.rhs_dilation)), axis=1)
        return _dot(rows.reshape(-1, matrix.shape[0]), matrix, 1, 0, c)

    y = _by_blocks(product, x, math.prod(output) * matrix.shape[0] * x.dtype.itemsize)
    return y.reshape(x.shape[0], *output, matrix.shape[1])


def _spread(x: jax.Array, kernel: jax.Array, c: Convolution, output: Ints) -> jax.Array:
    """[N, *output, O] from an input as [N, *space, I] and a kernel as [*window, O, I]; for strides of 1."""
    lhs, rhs, _ = c.dimension_numbers
    x = jnp.transpose(x, (lhs[0], *lhs[2:], lhs[1]))
    kernel = jnp.transpose(kernel, (*rhs[2:], rhs[0], rhs[1]))
    *window, channels, _ = kernel.shape
    matrix = kernel.reshape(-1, kernel.shape[-1])

    def product(x: jax.Array) -> jax.Array:
        images, *space, _ = x.shape
        products = _dot(x.reshape(-1, x.shape[-1]), matrix, 1, 1, c)
        products = products.reshape(images, *space, -1)
        total: Any = None
        for i, place in enumerate(np.ndindex(*window)):
            part = jax.lax.slice_in_dim(products, i * channels, (i + 1) * channels, axis=-1)
            borders = []
            sizes = zip(place, c.rhs_dilation, c.padding, space, c.lhs_dilation, output, strict=True)
            for w, step, (low, _), n, dilation, size in sizes:
                begin = low - w * step
                borders.append((begin, size - begin - (n - 1) * dilation - 1, dilation - 1))
            part = jax.lax.pad(part, jnp.zeros((), part.dtype), ((0, 0, 0), *borders, (0, 0, 0)))
            total = part if total is None else total + part
        return total

    itemsize = jnp.dtype(_sum_type(x, c)).itemsize
    y = _by_blocks(product, x, math.prod(x.shape[1:-1]) * matrix.shape[0] * itemsize)
    return y.reshape(x.shape[0], *output, channels)


def _summed(x: jax.Array, kernel: jax.Array, c: Convolution, output: Ints) -> jax.Array:
    """[*output, N, O] from an input as [I, *space, N] and a kernel as [I, *window, O]."""
    lhs, rhs, _ = c.dimension_numbers
    x = _padded(jnp.transpose(x, (lhs[1], *lhs[2:], lhs[0])), c)
    kernel = jnp.transpose(kernel, (rhs[1], *rhs[2:], rhs[0]))
    _, *window, channels = kernel.shape

    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        columns = _joined(_slices(x, output, c.window_strides, tuple(window), c.rhs_dilation))
        return _dot(columns.reshape(-1, columns.shape[-1]), kernel.reshape(-1, channels), 0, 0, c)

    images, width = x.shape[0], math.prod(output) * x.shape[-1]
    block = _divisor(images, _BLOCK // (width * math.prod(window) * x.dtype.itemsize))
    if block == images:
        y = product(x, kernel)
    else:
        add = jax.checkpoint(lambda total, block: (total + product(*block), None), prevent_cse=False)
        blocks = [a.reshape(-1, block, *a.shape[1:]) for a in (x, kernel)]
        y = jax.lax.scan(add, jnp.zeros((width, channels), _sum_type(x, c)), blocks)[0]
    return y.reshape(*output, x.shape[-1], channels)


def _padded(x: jax.Array, c: Convolution) -> jax.Array:
    """x with its space between the first axis and the last dilated and padded."""
    borders = [(low, high, dilation - 1) for (low, high), dilation in zip(c.padding, c.lhs_dilation, strict=True)]
    if all(border == (0, 0, 0) for border in borders):
        return x
    return jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *borders, (0, 0, 0)))


def _slices(x: jax.Array, corners: Ints, steps: Ints, sizes: Ints, strides: Ints) -> Iterator[jax.Array]:
    """For each c in the grid `corners`, the strided box of x [., *space, .] from c * steps on."""
    for corner in np.ndindex(*corners):
        start = [c * step for c, step in zip(corner, steps, strict=True)]
        limit = [a + (n - 1) * s + 1 for a, n, s in zip(start, sizes, strides, strict=True)]
        yield jax.lax.slice(x, (0, *start, 0), (x.shape[0], *limit, x.shape[-1]), (1, *strides, 1))


def _joined(slices: Iterator[jax.Array]) -> jax.Array:
    found = list(slices)
    return found[0] if len(found) == 1 else jnp.concatenate(found, axis=-1)


def _dot(a: jax.Array, b: jax.Array, axis: int, other: int, c: Convolution) -> jax.Array:
    """The product of two matrices over one axis of each."""
    over = (((axis,), (other,)), ((), ()))
    return jax.lax.dot_general(a, b, over, precision=c.precision, preferred_element_type=_sum_type(a, c))


def _sum_type(x: jax.Array, c: Convolution) -> DTypeLike:
    """What sums are held in: at least float32, as XLA's convolutions do; integers as they are."""
    dtype = c.preferred_element_type or x.dtype
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.inexact) else dtype


def _by_blocks(fn: Callable[[jax.Array], jax.Array], x: jax.Array, bytes_of_one: int) -> jax.Array:
    """fn(x), for a block of images at a time; backwards what it makes is made again, rather than kept."""
    block = _divisor(x.shape[0], _BLOCK // bytes_of_one)
    if block == x.shape[0]:
        return fn(x)
    return jax.lax.map(jax.checkpoint(fn, prevent_cse=False), x.reshape(-1, block, *x.shape[1:]))


def _divisor(n: int, most: int) -> int:
    """The largest divisor of n up to `most`, at least 1."""
    return next(d for d in range(max(1, min(n, most)), 0, -1) if n % d == 0)
