"""What functions, numbers and programs are, in words that are the same in every process: no address, no hash seed."""

import collections.abc
import dataclasses
import enum
import functools
import hashlib
import types
from collections.abc import Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from fedjax_sim.core.arrays import Array
from fedjax_sim.core.errors import is_traced

MOST = 64  # entries of a list or a dict that are told one by one
_DEEPEST = 40
_OURS = ("fedjax_sim", "jax", "jaxlib", "optax", "flax", "numpy")  # told by their versions
_Node: TypeAlias = "str | dict[str, _Node]"  # a leaf's words, or a dict of name to node


def constants(value: object, code: bool = False) -> dict[str, str]:
    """The numbers, words and arrays that a value holds, by where they are: of functions, those that they close over.

    Args:
        value: anything: a NamedTuple of closures, say.
        code: tell a user's functions by their bytecode too, which is the same in one version of Python.

    Example:
        >>> import optax
        >>> from fedjax_sim.core.canonical import constants
        >>> [word for name, word in constants(optax.sgd(0.1)).items() if name.endswith("step_size")]
        ['-0.1']
    """
    walk = _Walk(code)
    found: dict[str, str] = {}
    _flatten("", walk.node(value), found, set())
    return found


def digest(array: Array) -> str:
    """Of an array's dtype, shape and bytes, without a pass over its dtype's spelling.

    Example:
        >>> import numpy as np
        >>> from fedjax_sim.core.canonical import digest
        >>> digest(np.arange(3, dtype=np.int8)) == digest(np.array([0, 1, 2], np.int8))
        True
    """
    array = np.ascontiguousarray(array)
    made = hashlib.blake2b(f"{array.dtype}{array.shape}".encode(), digest_size=8)
    made.update(repr(array.tolist()).encode() if array.dtype == object else array.reshape(-1).view(np.uint8).data)
    return made.hexdigest()


class _Walk:
    """Nodes of values, each made once."""

    def __init__(self, code: bool):
        self.code = code
        self._made: dict[int, tuple[object, _Node]] = {}  # with the value, so that no id is given twice
        self._within: set[int] = set()

    def node(self, value: object, depth: int = 0) -> _Node:
        word = _word(value)
        if word is not None:
            return word
        if id(value) in self._made:
            return self._made[id(value)][1]
        if id(value) in self._within or depth > _DEEPEST:
            return "<itself>"
        self._within.add(id(value))
        node = {name: self.node(each, depth + 1) for name, each in self._parts(value)}
        self._within.discard(id(value))
        if isinstance(value, list | tuple | set | frozenset | dict) and not hasattr(value, "_fields"):
            node = _short(node)
        self._made[id(value)] = value, node
        return node

    def _parts(self, value: object) -> Iterator[tuple[str, object]]:
        if isinstance(value, types.FunctionType):
            yield from self._of_function(value)
        elif isinstance(value, types.MethodType):
            yield ".self", value.__self__
            yield "", value.__func__
        elif isinstance(value, functools.partial):
            yield "", value.func
            yield ".args", value.args
            yield ".keywords", value.keywords
        elif isinstance(value, collections.abc.Mapping):
            yield from sorted((f"[{key!r}]" if _word(key) else "[?]", each) for key, each in value.items())
        elif hasattr(value, "_fields") and isinstance(value, tuple):
            yield from ((f".{name}", getattr(value, name)) for name in value._fields)  # type: ignore[attr-defined]
        elif isinstance(value, list | tuple | collections.deque):
            yield from ((f"[{i}]", each) for i, each in enumerate(value))
        elif isinstance(value, set | frozenset):
            yield from ((f"[{i}]", each) for i, each in enumerate(sorted(map(repr, map(_word, value)))))
        elif dataclasses.is_dataclass(value):
            yield from ((f".{f.name}", getattr(value, f.name, None)) for f in dataclasses.fields(value))
        elif callable(value) and hasattr(value, "__wrapped__"):
            yield "", value.__wrapped__  # type: ignore[attr-defined]
        elif not jax.tree_util.all_leaves([value]):
            paths = jax.tree_util.tree_leaves_with_path(value)
            yield from ((jax.tree_util.keystr(path), leaf) for path, leaf in paths)
        else:
            held = getattr(value, "__dict__", None)
            yield from sorted((f".{name}", each) for name, each in (held or {}).items() if not name.startswith("__"))

    def _of_function(self, function: types.FunctionType) -> Iterator[tuple[str, object]]:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                yield f".{name}", cell.cell_contents
            except ValueError:  # not yet filled
                yield f".{name}", None
        defaults = function.__defaults__ or ()
        names = function.__code__.co_varnames[: function.__code__.co_argcount][-len(defaults) :] if defaults else ()
        yield from ((f".{name}", each) for name, each in zip(names, defaults, strict=True))
        yield from ((f".{name}", each) for name, each in (function.__kwdefaults__ or {}).items())
        if not _is_ours(function):
            if self.code:
                yield " code", _Words(f"<code {_code(function.__code__)}>")
            for name in sorted(_names(function.__code__) & function.__globals__.keys()):
                each = function.__globals__[name]
                if _word(each) not in (None, "<>") or (self.code and isinstance(each, types.FunctionType)):
                    yield f".{name}", each


class _Words(str):
    """A leaf that is words already."""


def _word(value: object) -> str | None:
    """A leaf's words; None for what has parts."""
    if isinstance(value, _Words):
        return str(value)
    if isinstance(value, enum.Enum):
        return str(value)
    if value is None or isinstance(value, bool | int | float | complex):
        return repr(value)
    if isinstance(value, str | bytes):
        return repr(value) if len(value) <= MOST else f"{len(value)} long, {_hash(repr(value))}"
    if is_traced(value):
        return "<traced>"
    if isinstance(value, jax.ShapeDtypeStruct):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, np.dtype):
        return str(value)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _array(value)
    if isinstance(value, type | types.ModuleType | types.BuiltinFunctionType | np.ufunc):
        return "<>"
    return None


def _array(value: Array | np.generic) -> str:
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    if array.size <= 4 and array.dtype != object:
        return f"{array.dtype} {array.tolist()}"
    return f"{array.dtype}{list(array.shape)} {digest(array)}"


def _short(node: dict[str, _Node]) -> _Node:
    """A long list's digest instead of its entries."""
    count = sum(1 for _ in _leaves(node, MOST + 1))
    return node if count <= MOST else f"{len(node)} entries, {_hash(_text(node))}"


def _leaves(node: _Node, most: int) -> Iterator[str]:
    if not isinstance(node, dict):
        yield node
        return
    for each in node.values():
        for leaf in _leaves(each, most):
            yield leaf
            most -= 1
            if most <= 0:
                return


def _flatten(path: str, node: _Node, found: dict[str, str], seen: set[int]) -> None:
    """Leaves by path; a large part that stands in several places is told in the first."""
    if not isinstance(node, dict):
        if node != "<>":
            found[path.removeprefix(".")] = node
        return
    if sum(1 for _ in _leaves(node, 16)) == 16:
        if id(node) in seen:
            return
        seen.add(id(node))
    for name, each in node.items():
        _flatten(path + name, each, found, seen)


def _text(node: _Node) -> str:
    if not isinstance(node, dict):
        return node
    return "{" + ",".join(f"{name}:{_text(each)}" for name, each in node.items()) + "}"


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _is_ours(function: types.FunctionType) -> bool:
    return (function.__module__ or "").partition(".")[0] in _OURS


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code and that of the functions within it."""
    yield code
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from _codes(each)


def _names(code: types.CodeType) -> set[str]:
    return {name for each in _codes(code) for name in each.co_names}


def _code(code: types.CodeType) -> str:
    """Of what it does: neither its place in a file nor its variables' names."""
    parts = []
    for each in _codes(code):
        held = [repr(const) for const in each.co_consts[1:] if not isinstance(const, types.CodeType | frozenset)]
        parts.append(f"{each.co_code.hex()} {each.co_names} {held}")
    return _hash("\n".join(parts))


def program(closed: core.ClosedJaxpr) -> str:
    """A digest of a `jax.make_jaxpr`'s result: its equations, and what it closes over.

    Example:
        >>> import jax
        >>> from fedjax_sim.core.canonical import program
        >>> one, same, other = (jax.make_jaxpr(f)(1.0) for f in (lambda x: 2 * x, lambda y: 2 * y, lambda x: 3 * x))
        >>> program(one) == program(same), program(one) == program(other)
        (True, False)
    """
    made = hashlib.blake2b(digest_size=16)
    for line in _lines(closed):
        made.update(line.encode("utf-8", "surrogatepass"))
        made.update(b"\n")
    return made.hexdigest()


_UNSAID = ("name", "debug_info", "ctx_mesh", "inline", "donated_invars", "keep_unused", "layout")


def _lines(program: core.ClosedJaxpr | core.Jaxpr) -> Iterator[str]:
    closed = isinstance(program, core.ClosedJaxpr)
    jaxpr = program.jaxpr if closed else program
    if closed:
        yield from (f"const {_constant(const)}" for const in program.consts)
    numbers: dict[core.Var, int] = {}

    def said(variable: core.Var | core.Literal) -> str:
        if isinstance(variable, core.Literal):
            return f"{_type(variable.aval)}={_constant(variable.val)}"
        return f"v{numbers.setdefault(variable, len(numbers))}:{_type(variable.aval)}"

    yield f"({' '.join(map(said, (*jaxpr.constvars, *jaxpr.invars)))})"
    for equation in jaxpr.eqns:
        yield f"{equation.primitive.name} {' '.join(map(said, equation.invars))}"
        for name, value in sorted(equation.params.items()):
            if name not in _UNSAID:
                yield from (f"  {name} {line}" for line in _parameter(value))
        yield f"  -> {' '.join(map(said, equation.outvars))}"
    yield f"return {' '.join(map(said, jaxpr.outvars))}"


def _constant(value: Any) -> str:
    """A number of a program; JAX has types of its own for some, which are no NumPy arrays in every version."""
    said = _array(value) if hasattr(value, "dtype") else _word(value)
    if said is None:
        raise TypeError(f"{type(value).__name__} in a program")
    return said


def _type(aval: object) -> str:
    shape, weak = getattr(aval, "shape", ()), getattr(aval, "weak_type", False)
    return f"{getattr(aval, 'dtype', type(aval).__name__)}{list(shape)}{'~' if weak else ''}"


def _parameter(value: object) -> Iterator[str]:
    if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
        yield from _lines(value)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from (f"{_word(key)}: {line}" for line in _parameter(each))
    elif isinstance(value, list | tuple):
        yield f"{len(value)}:"
        for each in value:
            yield from _parameter(each)
    else:
        yield _word(value) or type(value).__name__
