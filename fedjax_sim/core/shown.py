"""How values are shown in one line: what they are and their arguments, without addresses and without their arrays."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import is_traced

MOST = 160  # characters of a tree, beyond which it is counted
_FEW = 6  # numbers of an array that are shown

P = ParamSpec("P")
R = TypeVar("R")


def shown(value: object) -> str:
    """A value in one line.

    Example:
        >>> import numpy as np, optax
        >>> from fedjax_sim.core.shown import shown
        >>> print(shown({"x": np.zeros((3, 4)), "ids": [1, 2], "of": np.mean}))
        {x: float64[3,4], ids: [1, 2], of: mean}
        >>> print(shown(optax.sgd(0.1)))
        chain(identity, scale(step_size=-0.1))
    """
    if isinstance(value, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        return _array(value)
    if value is None or isinstance(value, bool | int | str | bytes):
        return repr(value)
    if isinstance(value, float):
        return repr(value) if len(repr(value)) <= 8 else f"{value:.6g}"
    if hasattr(value, "_fields") and tuple(value._fields) == ("init", "update"):  # type: ignore[attr-defined]
        return _optimizer(value.update)  # type: ignore[attr-defined]
    if isinstance(value, functools.partial):
        return shown(value.func)
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__.replace("<locals>.", "").replace("<lambda>", "lambda")
    if isinstance(value, Mapping):
        return _brief(f"{{{', '.join(f'{name}: {shown(each)}' for name, each in value.items())}}}", value)
    if isinstance(value, list | tuple | set | frozenset) and not hasattr(value, "_fields"):
        left, right = "[]" if isinstance(value, list) else "()" if isinstance(value, tuple) else "{}"
        return _brief(f"{left}{', '.join(map(shown, value))}{right}", value)
    return _record(value)


def record(value: Any, **first: object) -> str:
    """A NamedTuple or dataclass: its type, what `first` says, and those fields that are not as they are by default.

    Example:
        >>> import typing
        >>> from fedjax_sim.core.shown import record
        >>> Point = typing.NamedTuple("Point", [("x", float), ("of", object)])
        >>> record(Point(0.5, max), unit="m")
        "Point(unit='m', x=0.5, of=max)"
    """
    said = {name: shown(each) for name, each in first.items()} | facts(value)
    return f"{type(value).__name__}({', '.join(f'{name}={text}' for name, text in said.items())})"


def facts(value: Any) -> dict[str, str]:
    """The fields of a NamedTuple or dataclass that are not as they are by default, each in one line."""
    if hasattr(value, "_fields"):
        defaults = [(name, value._field_defaults.get(name, inspect.Parameter.empty)) for name in value._fields]
    else:
        defaults = [(f.name, f.default) for f in dataclasses.fields(value) if f.repr]
    pairs = [(name, getattr(value, name), default) for name, default in defaults]
    return {name: shown(each) for name, each, default in pairs if not _same(each, default)}


def call(name: str, arguments: Mapping[str, object], without: tuple[str, ...] = ()) -> str:
    """A call as it could have been written, each argument by its name."""
    kept = {key: shown(each) for key, each in arguments.items() if each is not None and key not in without}
    return f"{name}({', '.join(f'{key}={text}' for key, text in kept.items())})"


def named(*without: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have what a function makes, a NamedTuple with a field `name`, say by which function and arguments it was made.

    Args:
        *without: arguments that are left out, as the record itself has them.
    """

    def decorate(make: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(make)

        @functools.wraps(make)
        def made(*args: P.args, **kwargs: P.kwargs) -> R:
            result: Any = make(*args, **kwargs)
            given = signature.bind(*args, **kwargs).arguments
            return result._replace(name=call(make.__name__, given, without))

        return made

    return decorate


def _array(value: Any) -> str:
    kind = f"{value.dtype}[{','.join(map(str, value.shape))}]"
    concrete = isinstance(value, np.ndarray | np.generic) or (
        isinstance(value, jax.Array) and not is_traced(value) and not value.is_deleted()
    )
    few = concrete and value.size <= _FEW and value.ndim <= 1 and getattr(value.dtype, "kind", "V") in "biuf"
    if not few or not getattr(value, "is_fully_addressable", True):
        return kind
    return shown(np.asarray(value).tolist())


def _optimizer(update: Any) -> str:
    """An optax transformation, by its function's name and the numbers and transformations that it closes over."""
    update = inspect.unwrap(update)
    cells = inspect.getclosurevars(update).nonlocals if inspect.isfunction(update) else {}
    if hasattr(cells.get("tx"), "update"):  # optax's with_extra_args_support
        return _optimizer(cells["tx"].update)
    inner = cells.get("update_fns", ())
    said = [_optimizer(each) for each in inner if callable(each)] if isinstance(inner, list | tuple) else []
    said += [f"{name}={shown(each)}" for name, each in cells.items() if isinstance(each, int | float | jax.Array)]
    name = getattr(update, "__qualname__", type(update).__name__).partition(".<locals>")[0].lstrip("_")
    return f"{name}({', '.join(said)})" if said else name


def _record(value: Any) -> str:
    if isinstance(value, np.dtype | type):
        return getattr(value, "__name__", str(value))
    if (hasattr(value, "_fields") or dataclasses.is_dataclass(value)) and not _has_own_words(value):
        return _brief(record(value), value)
    text = repr(value)
    return type(value).__name__ if "\n" in text or " at 0x" in text or len(text) > MOST else text


def _has_own_words(value: object) -> bool:
    """Its class says how it is shown; of NamedTuple, dataclass and Flax's modules nobody did."""
    method = type(value).__repr__
    return not hasattr(method, "__wrapped__") and method.__module__.partition(".")[0] not in ("collections", "flax")


def _brief(text: str, value: PyTree) -> str:
    if len(text) <= MOST:
        return text
    leaves = [leaf for leaf in jax.tree.leaves(value) if hasattr(leaf, "shape")]
    if not leaves:
        return f"{text[: MOST - 4]} ..."
    numbers = sum(int(np.prod(leaf.shape)) for leaf in leaves)
    return f"<{len(leaves)} array{'s' if len(leaves) > 1 else ''} of {numbers:,} numbers>"


def _same(value: Any, default: Any) -> bool:
    return value is default or (isinstance(default, bool | int | float | str | tuple) and value == default)
