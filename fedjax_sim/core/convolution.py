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
gradient gained nothing. Grouped and depthwise convolutions gain too: 20 images of 16x16x32 and 3x3 kernels took 641 ms
a loop's step depthwise by XLA and 62 ms rewritten, and 268 and 57 ms in 4 groups, on a busy core of another CPU.

Since then two things are done besides, which the table is without. Patches are made for as many images at a time as fit
a core's cache, and made again backwards. Maxima over windows that lie side by side have a derivative that selects,
where XLA's scatters. A step of the EMNIST CNN takes 0.69, 0.64 and 0.64 of the time before for 1, 2 and 4 lanes (35.3,
71.9 and 150.5 ms before, on one core of another CPU; the maxima alone: 0.77, 0.76 and 0.74).
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar, get_args

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun

from fedjax_sim.core.arrays import PyTree, Shapes
from fedjax_sim.core.errors import check
from fedjax_sim.core.maxima import maximum_of
from fedjax_sim.core.products import product_of

Fn = TypeVar("Fn", bound=Callable[..., PyTree])
Convolutions = Literal["auto", "matmul", "xla"]
"""As products of matrices, as XLA's own, or as is faster on the platform."""

# Primitives that mean the same when convolutions in their parameters' jaxprs are replaced, by name,
# as `jax.extend.core.primitives` lacks some in some versions.
_CONTAINERS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2", "scan", "while", "cond", "shard_map"}
_CUSTOM_RULES = {"custom_jvp_call", "custom_vjp_call"}
_REPLACED = {
    "conv_general_dilated": product_of,
    "reduce_window_max": maximum_of,
    "select_and_gather_add": maximum_of,
    "select_and_scatter_add": maximum_of,
}


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


def rewritten(convolutions: Convolutions, platform: str) -> bool:
    """Whether a task's choice means products on a platform.

    Example:
        >>> rewritten("auto", "cpu"), rewritten("auto", "gpu"), rewritten("xla", "cpu")
        (True, False, False)
    """
    check_convolutions(convolutions)
    return convolutions == "matmul" or (convolutions == "auto" and pays_on(platform))


def check_convolutions(convolutions: object) -> None:
    """One of the three choices."""
    choices = get_args(Convolutions)
    check(convolutions in choices, "convolutions", convolutions, 'must be "auto", "matmul" or "xla".')


def traced(fn: Callable[..., PyTree], args: tuple[PyTree, ...], rewrite: bool) -> tuple[Callable[..., PyTree], Shapes]:
    """`fn` traced once, its convolutions rewritten if wanted: a function of arguments like `args`, and result shapes.

    What the engine calls: it computes derivatives too, which are rewritten as they are.
    """
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    run = jaxpr_as_fun(_rewrite(closed) if rewrite else closed)
    structure = jax.tree.structure(shapes)
    return lambda *args: jax.tree.unflatten(structure, run(*jax.tree.leaves(args))), shapes


def matmul_convolutions(fn: Fn) -> Fn:
    r"""Make `fn` compute its convolutions as slices and matrix products.

    With an image's patches as the rows of :math:`P`, one column for each window position and input
    channel,

    .. math:: y[n, o, :] = \sum_{w, i} x[n, s o + d w, i] \, k[w, i, :] = (P K)[(n, o), :]

    for stride s and dilation d. Any stride, padding (negative too), dilation (of the input too), groups
    (depthwise too), dimension order and number of dimensions, also inside `jit`, `remat`, `scan`,
    `while_loop`, `cond`, `shard_map` and functions with custom derivatives, whose rules stay in force
    and are rewritten too. Left to XLA: convolutions with more than 256 positions both in the window
    and in the output; also whatever is inside other primitives, and custom rules around a function
    without convolutions. A simulation does this by itself to what its clients compute
    (`fs.Task.convolutions`): this function is for your own loops.

    The patches take window-size times the input's memory, or 1 MiB where that is less. Maxima over
    windows side by side (max pooling) keep their values and derivatives; these are computed by
    selecting. `fn` may compute derivatives, and the result may be differentiated. Call it under
    `jit`, as it traces `fn` anew at each call.

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
        >>> import jax.numpy as jnp
        >>> def fn(x, kernel):
        ...     return jax.lax.conv(x, kernel, window_strides=(1, 1), padding="SAME")
        >>> x, kernel = jnp.ones((2, 3, 8, 8)), jnp.ones((5, 3, 3, 3))
        >>> matmul_convolutions(fn)(x, kernel).shape
        (2, 5, 8, 8)
        >>> "conv_general_dilated" in str(jax.make_jaxpr(matmul_convolutions(fn))(x, kernel))
        False
    """

    @functools.wraps(fn)
    def wrapped(*args: PyTree, **kwargs: PyTree) -> PyTree:
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


def _split(tree: PyTree) -> tuple[list[jax.Array], Callable[[Iterable[jax.Array]], PyTree]]:
    """The tree's arrays, and a function that puts others in their places."""
    leaves, treedef = jax.tree.flatten(tree)
    is_array = [isinstance(leaf, jax.Array) for leaf in leaves]
    arrays = [leaf for leaf, array in zip(leaves, is_array, strict=True) if array]
    rest = [None if array else leaf for leaf, array in zip(leaves, is_array, strict=True)]

    def merge(arrays: Iterable[jax.Array]) -> PyTree:
        left = iter(arrays)
        merged = [next(left) if array else leaf for leaf, array in zip(rest, is_array, strict=True)]
        return jax.tree.unflatten(treedef, merged)

    return arrays, merge


def _rewrite(value: Any) -> Any:
    """A jaxpr, or a parameter that may hold some, rewritten; the same object if nothing changed."""
    if isinstance(value, Jaxpr):  # asked first, as JAX 0.12's is its own `ClosedJaxpr` and its own `.jaxpr`
        eqns = [_rewrite_equation(eqn) for eqn in value.eqns]
        return value if _same(eqns, value.eqns) else value.replace(eqns=eqns)
    if isinstance(value, ClosedJaxpr):
        jaxpr = _rewrite(value.jaxpr)
        return value if jaxpr is value.jaxpr else value.replace(jaxpr=jaxpr)
    if type(value) is tuple:  # the branches of a `cond`
        values = tuple(_rewrite(v) for v in value)
        return value if _same(values, value) else values
    return value


def _same(new: Iterable[object], old: Iterable[object]) -> bool:
    return all(a is b for a, b in zip(new, old, strict=True))


def _rewrite_equation(eqn: JaxprEqn) -> JaxprEqn:
    name = eqn.primitive.name
    if name in _REPLACED:
        fn = _REPLACED[name](eqn)
        return eqn if fn is None else _replace(eqn, fn)
    if name in _CONTAINERS:
        params = {key: _rewrite(value) for key, value in eqn.params.items()}
        return eqn if _same(params.values(), eqn.params.values()) else eqn.replace(params=params)
    if name in _CUSTOM_RULES:
        return _rewrite_custom_rule(eqn)
    return eqn


def _replace(eqn: JaxprEqn, fn: Callable[..., PyTree]) -> JaxprEqn:
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
