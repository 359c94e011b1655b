"""Convolutions as matrix products, and maxima without scatters: a function transform for local training on a CPU.

XLA's CPU convolution is over ten times slower inside a `fori_loop` or `scan` than outside, and
vmapping it over per-client kernels makes a grouped convolution, slower still. `matmul_convolutions`
replaces every convolution by slices and one matrix product, which vmap turns into a batched
product.

Milliseconds for one SGD step on 20 images, on one of two XLA devices of a 2-core CPU (JAX 0.10.2).
Lanes are clients under vmap, each with its own kernels:

==================================  =====  ============  ===============  ================
network                             lanes  XLA, no loop  XLA, fori_loop   rewrite, in loop
==================================  =====  ============  ===============  ================
EMNIST CNN, 3x3: 1-32-64 on 28x28     1              22             338                21
EMNIST CNN                            2              96             833                44
EMNIST CNN                            4             277            2238                95
two 3x3: 32-32-32 on 8x8              1             1.7              41               1.6
two 3x3: 32-32-32 on 8x8              4              14             176               5.0
two 3x3: 64-64-64 on 32x32            1             120            3073                78
residual network, 16-64 on 32x32      1              27             557                36
residual network, 16-64 on 32x32      4             369            2471               129
==================================  =====  ============  ===============  ================

So on a CPU it pays inside any loop, and for several lanes anywhere; XLA's own is faster for one lane
outside a loop. Of the forms tried, a product of plain matrices was the fastest forward and backward:
a sum of products over window positions took 1.2 to 3 times as long, and a hand-written weight
gradient gained nothing.

Since then two things are done besides, which the table is without. Patches are made for as many images at a time as fit
a core's cache, and made again backwards. Maxima over windows that lie side by side have a derivative that selects,
where XLA's scatters. A step of the EMNIST CNN takes 0.69, 0.64 and 0.64 of the time before for 1, 2 and 4 lanes (35.3,
71.9 and 150.5 ms before, on one core of another CPU; the maxima alone: 0.77, 0.76 and 0.74).
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun

Fn = TypeVar("Fn", bound=Callable[..., Any])
Ints = tuple[int, ...]

# Primitives that mean the same when convolutions in their parameters' jaxprs are replaced, by name,
# as `jax.extend.core.primitives` lacks some in some versions.
_CONTAINERS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2", "scan", "while", "cond"}
_CUSTOM_RULES = {"custom_jvp_call", "custom_vjp_call"}
_MAX_SLICES = 256  # one operation a slice: above this, compilation would be slow
_BLOCK = 2**20  # bytes of patches that are made, multiplied and forgotten together: they stay in a core's cache


def pays_on(platform: str) -> bool:
    """Whether `matmul_convolutions` should be the default on a `jax.Device.platform`.

    True for `"cpu"` alone. GPUs and TPUs have fast convolutions and no such loss inside loops;
    there the columns cost memory traffic. Vmapped per-client kernels are grouped convolutions on
    them too, so it may pay for several lanes: that is unmeasured, so callers should leave users a
    switch.

    Example:
        >>> pays_on("cpu"), pays_on("gpu")
        (True, False)
    """
    return platform == "cpu"


def matmul_convolutions(fn: Fn) -> Fn:
    r"""Make `fn` compute its convolutions as slices and matrix products.

    With an image's patches as the rows of :math:`P`, one column for each window position and input
    channel,

    .. math:: y[n, o, :] = \sum_{w, i} x[n, s o + d w, i] \, k[w, i, :] = (P K)[(n, o), :]

    for stride s and dilation d. Any stride, padding (negative too), kernel dilation, dimension
    order and number of dimensions, also inside `jit`, `remat`, `scan`, `while_loop`, `cond` and
    functions with custom derivatives, whose rules stay in force and are rewritten too. Left to XLA:
    grouped, depthwise and transposed (input-dilated) convolutions, and those with more than 256
    positions both in the window and in the output; also whatever is inside other primitives, and
    custom rules around a function without convolutions.

    The patches take window-size times the input's memory, or 1 MiB where that is less. Maxima over
    windows side by side (max pooling) keep their values and derivatives; these are computed by
    selecting. Differentiate the result rather than rewrite a gradient, which takes up to 1.6 times
    as long and, with strides, holds transposed convolutions. Call it under `jit`, as it traces `fn`
    anew at each call.

    Args:
        fn: a pure function of any pytrees. Leaves that are no `jax.Array` (flags, None, NumPy
            arrays) reach it, and come back, as they are.

    Returns:
        A function with the signature and, up to rounding, the results of `fn`: `fn` itself is
        called where it holds no such convolution. It can be jitted, vmapped, and differentiated in
        both modes wherever `fn` can.

    Raises:
        Whatever `fn` raises.

    Example:
        >>> def fn(x, kernel):
        ...     return jax.lax.conv(x, kernel, window_strides=(1, 1), padding="SAME")
        >>> x, kernel = jnp.ones((2, 3, 8, 8)), jnp.ones((5, 3, 3, 3))
        >>> matmul_convolutions(fn)(x, kernel).shape
        (2, 5, 8, 8)
        >>> "conv_general_dilated" in str(jax.make_jaxpr(matmul_convolutions(fn))(x, kernel))
        False
    """

    @functools.wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        arrays, merge_inputs = _split((args, kwargs))
        merge_outputs: Any = None

        def flat(*arrays: jax.Array) -> list[jax.Array]:
            nonlocal merge_outputs
            args, kwargs = merge_inputs(arrays)
            outputs, merge_outputs = _split(fn(*args, **kwargs))
            return outputs

        closed = jax.make_jaxpr(flat)(*arrays)
        rewritten = _rewrite(closed)
        if rewritten is closed:
            return fn(*args, **kwargs)
        return merge_outputs(jaxpr_as_fun(rewritten)(*arrays))

    return wrapped  # type: ignore[return-value]


def _split(tree: Any) -> tuple[list[jax.Array], Callable[[Any], Any]]:
    """The tree's arrays, and a function that puts others in their places."""
    leaves, treedef = jax.tree.flatten(tree)
    is_array = [isinstance(leaf, jax.Array) for leaf in leaves]
    arrays = [leaf for leaf, array in zip(leaves, is_array, strict=True) if array]
    rest = [None if array else leaf for leaf, array in zip(leaves, is_array, strict=True)]

    def merge(arrays: Any) -> Any:
        arrays = iter(arrays)
        merged = [next(arrays) if array else leaf for leaf, array in zip(rest, is_array, strict=True)]
        return jax.tree.unflatten(treedef, merged)

    return arrays, merge


def _rewrite(value: Any) -> Any:
    """A jaxpr, or a parameter that may hold some, rewritten; the same object if nothing changed."""
    if isinstance(value, ClosedJaxpr):
        jaxpr = _rewrite(value.jaxpr)
        return value if jaxpr is value.jaxpr else value.replace(jaxpr=jaxpr)
    if isinstance(value, Jaxpr):
        eqns = [_rewrite_equation(eqn) for eqn in value.eqns]
        return value if _same(eqns, value.eqns) else value.replace(eqns=eqns)
    if type(value) is tuple:  # the branches of a `cond`
        values = tuple(_rewrite(v) for v in value)
        return value if _same(values, value) else values
    return value


def _same(new: Any, old: Any) -> bool:
    return all(a is b for a, b in zip(new, old, strict=True))


def _rewrite_equation(eqn: JaxprEqn) -> JaxprEqn:
    name = eqn.primitive.name
    if name == "conv_general_dilated" and _eligible(eqn):
        keep = ("window_strides", "padding", "rhs_dilation", "dimension_numbers", "precision", "preferred_element_type")
        return _replace(eqn, _conv_as_matmul(**{name: eqn.params[name] for name in keep}))
    if name == "reduce_window_max" and _tiles(eqn):
        return _replace(eqn, functools.partial(_max_pool, eqn.params["window_dimensions"]))
    if name in _CONTAINERS:
        params = {key: _rewrite(value) for key, value in eqn.params.items()}
        return eqn if _same(params.values(), eqn.params.values()) else eqn.replace(params=params)
    if name in _CUSTOM_RULES:
        return _rewrite_custom_rule(eqn)
    return eqn


def _replace(eqn: JaxprEqn, fn: Callable[..., Any]) -> JaxprEqn:
    """The equation with the same inputs, outputs and source location that calls the jitted `fn`."""
    (call,) = jax.make_jaxpr(fn)(*(v.aval for v in eqn.invars)).eqns
    return eqn.replace(primitive=call.primitive, params=call.params)


def _rewrite_custom_rule(eqn: JaxprEqn) -> JaxprEqn:
    """The rewritten function; its rule is the original's derivative by its own rule, rewritten."""
    closed: ClosedJaxpr = eqn.params["call_jaxpr"]
    rewritten = _rewrite(closed)
    if rewritten is closed:
        return eqn
    inner = closed.jaxpr
    alone = inner.replace(eqns=[eqn.replace(invars=inner.invars)], outvars=eqn.outvars)
    original = jaxpr_as_fun(closed.replace(jaxpr=alone))

    if eqn.primitive.name == "custom_jvp_call":
        fn = jax.custom_jvp(jaxpr_as_fun(rewritten))
        fn.defjvp(matmul_convolutions(functools.partial(jax.jvp, original)))
    else:
        fn = jax.custom_vjp(jaxpr_as_fun(rewritten))
        forward = matmul_convolutions(functools.partial(jax.vjp, original))
        fn.defvjp(forward, matmul_convolutions(lambda pullback, cotangents: pullback(cotangents)))
    return _replace(eqn, jax.jit(lambda *args: fn(*args)))


def _eligible(eqn: JaxprEqn) -> bool:
    params = eqn.params
    x, kernel, y = (cast(ShapedArray, v.aval) for v in (*eqn.invars, *eqn.outvars))
    spec = params["dimension_numbers"]
    window = math.prod(kernel.shape[i] for i in spec.rhs_spec[2:])
    output = math.prod(y.shape[i] for i in spec.out_spec[2:])
    return (
        params["feature_group_count"] == params["batch_group_count"] == 1
        and all(d == 1 for d in params["lhs_dilation"])
        and params.get("out_sharding") is None
        and min(x.size, kernel.size, y.size) > 0
        and min(window, output) <= _MAX_SLICES
    )


@functools.cache  # equal convolutions share one jitted function, hence one compilation
def _conv_as_matmul(
    window_strides: Ints,
    padding: tuple[tuple[int, int], ...],
    rhs_dilation: Ints,
    dimension_numbers: jax.lax.ConvDimensionNumbers,
    precision: Any,
    preferred_element_type: Any,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The convolution of these parameters as a jitted function of the input and the kernel."""
    lhs, rhs, out = dimension_numbers  # each: batch (or output channels), channels, *space

    @jax.jit
    def conv_as_matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
        x = jnp.transpose(x, (lhs[0], *lhs[2:], lhs[1]))  # [N, *space, I]
        kernel = jnp.transpose(kernel, (*rhs[2:], rhs[1], rhs[0]))  # [*window, I, O]
        if any(p != (0, 0) for p in padding):
            borders = ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0))
            x = jax.lax.pad(x, jnp.zeros((), x.dtype), borders)
        window = kernel.shape[:-2]
        sizes = zip(x.shape[1:-1], window, rhs_dilation, window_strides, strict=True)
        output = tuple((n - (k - 1) * d - 1) // s + 1 for n, k, d, s in sizes)

        # A slice for each window position, with all outputs' values there, or for each output
        # position, with its whole window. Whichever are fewer: in a weight gradient the window is
        # as large as an image.
        def patches_of(x: jax.Array) -> jax.Array:
            if math.prod(window) <= math.prod(output):
                slices = list(_slices(x, window, rhs_dilation, output, window_strides))
                return slices[0] if len(slices) == 1 else jnp.concatenate(slices, axis=-1)
            return jnp.stack(list(_slices(x, output, window_strides, window, rhs_dilation)), axis=1)

        # Plain matrices, as backward products of [N, *space, I] arrays are slower on a CPU.
        matrix = kernel.reshape(-1, kernel.shape[-1])

        def product(x: jax.Array) -> jax.Array:
            rows = patches_of(x).reshape(-1, matrix.shape[0])
            return jax.lax.dot(rows, matrix, precision=precision, preferred_element_type=preferred_element_type)

        images, bytes_of_one = x.shape[0], math.prod(output) * matrix.shape[0] * x.dtype.itemsize
        block = _divisor(images, _BLOCK // bytes_of_one)
        if block == images:
            y = product(x)
        else:
            # Backwards the patches are made again, rather than kept.
            y = jax.lax.map(jax.checkpoint(product, prevent_cse=False), x.reshape(-1, block, *x.shape[1:]))
        y = y.reshape(images, *output, matrix.shape[1])
        return jnp.transpose(y, np.argsort((out[0], *out[2:], out[1])).tolist())

    return conv_as_matmul


def _divisor(n: int, most: int) -> int:
    """The largest divisor of n up to `most`, at least 1."""
    return next(d for d in range(max(1, min(n, most)), 0, -1) if n % d == 0)


def _tiles(eqn: JaxprEqn) -> bool:
    """Whether the windows lie side by side, and begin at the first element."""
    params = eqn.params
    return (
        params["window_dimensions"] == params["window_strides"]
        and all(low == 0 and high <= 0 for low, high in params["padding"])
        and all(d == 1 for d in (*params["base_dilation"], *params["window_dilation"]))
        and jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.floating)  # type: ignore[union-attr]
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _max_pool(window: Ints, x: jax.Array) -> jax.Array:
    r"""The maximum of each window; what is left over at the end is left out.

    Its derivative is that of the first element that is the maximum, as of XLA's, whose scatter on a CPU takes as long
    as a convolution: with :math:`p` an element's place in its window, :math:`\dot y = \sum_i [p_i = \min \{p_j :
    x_j = y\}] \, \dot x_i`.
    """
    return jnp.max(_windows(window, x), axis=_inner(x))


@_max_pool.defjvp
def _max_pool_jvp(window: Ints, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    y, inner = _max_pool(window, x), _inner(x)
    windows = _windows(window, x)
    size = math.prod(window)
    shape = [n for w in window for n in (1, w)]
    place = jnp.arange(size, dtype=jnp.int32).reshape(shape)
    first = jnp.min(jnp.where(windows == jnp.expand_dims(y, inner), place, size), axis=inner, keepdims=True)
    return y, jnp.sum(jnp.where(place == first, _windows(window, tangent), 0), axis=inner)


def _windows(window: Ints, x: jax.Array) -> jax.Array:
    """[windows, window, windows, window, ...]: a pair of axes for each of x."""
    x = x[tuple(slice(n // w * w) for n, w in zip(x.shape, window, strict=True))]
    return x.reshape([n for size, w in zip(x.shape, window, strict=True) for n in (size // w, w)])


def _inner(x: jax.Array) -> Ints:
    return tuple(range(1, 2 * x.ndim, 2))


def _slices(x: jax.Array, corners: Ints, steps: Ints, sizes: Ints, strides: Ints) -> Iterator[jax.Array]:
    """For each c in the grid `corners`, the strided box of x [N, *space, I] from c * steps on."""
    for corner in np.ndindex(*corners):
        start = [c * step for c, step in zip(corner, steps, strict=True)]
        limit = [a + (n - 1) * s + 1 for a, n, s in zip(start, sizes, strides, strict=True)]
        yield jax.lax.slice(x, (0, *start, 0), (x.shape[0], *limit, x.shape[-1]), (1, *strides, 1))
