"""A program run again with low-rank products beside a kernel's own: x W becomes x W + (x a) b, never x (W + a b)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.lora.views import Reading, View, axes_of, moved

Values = list[Any]
"""Arrays, and views of kernels, in the order of a program's variables."""


def run(closed: ClosedJaxpr, values: Sequence[Any], reading: Reading) -> Values:
    """A program's results where some of its arguments are views.

    Products of a view with an array get the low-rank product added. What is inside `jit`, `remat`, `scan`, `while`,
    `cond` and functions with custom derivatives is run likewise; of the last, those that read a kernel are
    differentiated as what they compute.

    Args:
        closed: the program.
        values: its arguments.
        reading: is told of each product; of views with factors, it says how they must be read.

    Raises:
        ArgumentError: a kernel is read otherwise than by products.
    """
    return _run(closed.jaxpr, closed.consts, values, reading)


def _run(jaxpr: Jaxpr, consts: Sequence[Any], values: Sequence[Any], reading: Reading) -> Values:
    known: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *values), strict=True))
    read = lambda variable: variable.val if isinstance(variable, Literal) else known[variable]
    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        results = _equation(equation, inputs, reading) if any(map(_is_view, inputs)) else plain(equation, inputs)
        known.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _is_view(value: object) -> bool:
    return isinstance(value, View)


def plain(equation: JaxprEqn, inputs: Sequence[Any]) -> Values:
    """An equation's results, of arrays."""
    given: Any = equation.primitive.get_bind_params(equation.params)
    functions, params = given if isinstance(given, tuple) else ((), given)  # JAX 0.12 has no functions apart
    results = equation.primitive.bind(*functions, *inputs, **params)
    return list(results) if equation.primitive.multiple_results else [results]


def _equation(equation: JaxprEqn, inputs: Values, reading: Reading) -> Values:
    name = equation.primitive.name
    if name in _WITHIN:
        return _WITHIN[name](equation, inputs, reading)
    view = next(filter(_is_view, inputs))
    if len(inputs) == 1:
        made = moved(view, equation)
        if made is not None:
            return [made]
    if sum(map(_is_view, inputs)) == 1:
        if name == "dot_general":
            return [_product(equation, inputs, reading)]
        if name == "gather" and _is_view(inputs[0]) and _is_lookup(equation):
            return [_lookup(equation, inputs, reading)]
    raise ArgumentError(
        f"target {view.path!r} is read by {name!r}: low-rank corrections are of kernels that products of matrices and "
        "lookups read, and nothing else. Leave it out of targets=, or train it whole with fs.freeze."
    )


def _product(equation: JaxprEqn, inputs: Values, reading: Reading) -> jax.Array:
    second = _is_view(inputs[1])
    view, x = inputs[second], inputs[not second]
    (y,) = plain(equation, [each.value if _is_view(each) else each for each in inputs])
    contracted, shared = equation.params["dimension_numbers"]
    reading.read(view.path, *axes_of(view, contracted[second], shared[second]))
    if view.down is None or view.up is None:
        return y
    kept = lambda gone: [i for i in range(len(view.origins)) if i not in gone]
    axes, batch = kept(contracted[second]), shared[second]
    free = [i for i in axes if i not in batch]
    down, up = (factor.astype(x.dtype) for factor in (view.down, view.up))
    down = jnp.squeeze(down, tuple(free))  # [shared and summed ..., r]
    up = jnp.squeeze(up, tuple(contracted[second]))  # [shared and free ..., r]
    within = kept(free)
    place = lambda axes, among: tuple(among.index(i) for i in axes)
    precision = equation.params["precision"]
    over = (contracted[not second], place(contracted[second], within)), (shared[not second], place(batch, within))
    h = jax.lax.dot_general(x, down, over, precision=precision)  # [shared, free of x, r]
    n = len(batch)
    last = ((h.ndim - 1,), (up.ndim - 1,)), (tuple(range(n)), place(batch, axes))
    added = jax.lax.dot_general(h, up, last, precision=precision)  # [shared, free of x, free of the kernel]
    if not second:
        mine = h.ndim - 1 - n
        order = (*range(n), *range(n + mine, added.ndim), *range(n, n + mine))
        added = jnp.transpose(added, order)
    return y + added.astype(y.dtype)


def _is_lookup(equation: JaxprEqn) -> bool:
    """Rows of a table by their numbers, as an embedding's."""
    numbers = equation.params["dimension_numbers"]
    operand, result = (variable.aval.shape for variable in (equation.invars[0], equation.outvars[0]))  # type: ignore[attr-defined]
    return (
        len(operand) == 2
        and tuple(numbers.collapsed_slice_dims) == tuple(numbers.start_index_map) == (0,)
        and tuple(equation.params["slice_sizes"]) == (1, operand[1])
        and tuple(numbers.offset_dims) == (len(result) - 1,)
        and not numbers.operand_batching_dims
    )


def _lookup(equation: JaxprEqn, inputs: Values, reading: Reading) -> jax.Array:
    view, indices = inputs
    (y,) = plain(equation, [view.value, indices])
    reading.read(view.path, *axes_of(view, (0,), ()))
    reading.lookups.add(view.path)
    if view.down is None or view.up is None:
        return y
    down = jnp.squeeze(view.down, 1)
    params = {name: equation.params[name] for name in ("dimension_numbers", "mode", "fill_value")}
    rows = jax.lax.gather(down, indices, slice_sizes=(1, down.shape[1]), **params)
    return y + (rows @ jnp.squeeze(view.up, 0).T).astype(y.dtype)


def _call(equation: JaxprEqn, inputs: Values, reading: Reading) -> Values:
    inner = equation.params["jaxpr" if "jaxpr" in equation.params else "call_jaxpr"]
    return run(inner, inputs, reading)


def _remat(equation: JaxprEqn, inputs: Values, reading: Reading) -> Values:
    params = equation.params
    jaxpr = params["jaxpr"]
    inside = lambda *inputs: _no_views(_run(jaxpr, getattr(jaxpr, "consts", ()), inputs, reading))
    return jax.checkpoint(inside, prevent_cse=params["prevent_cse"], policy=params["policy"])(*inputs)


def _scan(equation: JaxprEqn, inputs: Values, reading: Reading) -> Values:
    params = equation.params
    consts, carry, xs = _parts(inputs, params["num_consts"], params["num_carry"])
    _no_carried(carry)

    def body(carry: Values, xs: Values) -> tuple[Values, Values]:
        rows = [each.row() if _is_view(each) else each for each in xs]
        results = _no_views(run(params["jaxpr"], [*consts, *carry, *rows], reading))
        return results[: len(carry)], results[len(carry) :]

    how = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, ys = jax.lax.scan(body, carry, xs, **how)
    return [*carry, *ys]


def _while(equation: JaxprEqn, inputs: Values, reading: Reading) -> Values:
    params = equation.params
    of_condition, of_body, carry = _parts(inputs, params["cond_nconsts"], params["body_nconsts"])
    _no_carried(carry)
    condition = lambda carry: run(params["cond_jaxpr"], [*of_condition, *carry], reading)[0]
    body = lambda carry: _no_views(run(params["body_jaxpr"], [*of_body, *carry], reading))
    return list(jax.lax.while_loop(condition, body, carry))


def _cond(equation: JaxprEqn, inputs: Values, reading: Reading) -> Values:
    def of(branch: ClosedJaxpr) -> Callable[..., Values]:
        return lambda *inputs: _no_views(run(branch, inputs, reading))

    index, *operands = inputs
    return list(jax.lax.switch(index, [of(branch) for branch in equation.params["branches"]], *operands))


def _parts(inputs: Values, first: int, second: int) -> tuple[Values, Values, Values]:
    return inputs[:first], inputs[first : first + second], inputs[first + second :]


def _no_carried(carry: Values) -> Values:
    return _no_views(carry, "carried through a loop")


def _no_views(values: Values, where: str = "a result of a loop's body or a branch") -> Values:
    for each in values:
        if isinstance(each, View):
            raise ArgumentError(f"target {each.path!r} is {where}: leave it out of targets=.")
    return values


_WITHIN: dict[str, Callable[[JaxprEqn, Values, Reading], Values]] = {
    "checkpoint": _remat,
    "closed_call": _call,
    "cond": _cond,
    "core_call": _call,
    "custom_jvp_call": _call,
    "custom_vjp_call": _call,
    "jit": _call,
    "pjit": _call,
    "remat2": _remat,
    "scan": _scan,
    "while": _while,
}
