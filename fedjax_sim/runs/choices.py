"""Functions of this library in a word: "dirichlet:0.1", "fedyogi:0.01:b1=0.5", for command lines and configs."""

import ast
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from fedjax_sim.core.errors import ArgumentError


def names(module: ModuleType) -> list[str]:
    """The public functions of a module that make something: what a word may begin with.

    Example:
        >>> import fedjax_sim as fs
        >>> from fedjax_sim.runs.choices import names
        >>> "dirichlet" in names(fs.partition)
        True
    """
    functions = {name: value for name, value in vars(module).items() if inspect.isfunction(value) and name[0] != "_"}
    return sorted(name for name, value in functions.items() if value.__module__.startswith(module.__name__))


def chosen(module: ModuleType, word: str, *given: object, asked: Mapping[str, Any] | None = None, **known: Any) -> Any:
    """What a word's function makes: `NAME`, or `NAME:VALUE:...:NAME=VALUE`.

    Args:
        module: whose functions there are.
        word: the function's name, and its arguments after `given`, in order or by name.
        given: its first arguments.
        asked: arguments that it must have.
        known: arguments that are used where the function has them and the word does not.

    Raises:
        ArgumentError: no such function; arguments that it has not, or lacks.

    Example:
        >>> import fedjax_sim as fs
        >>> from fedjax_sim.runs.choices import chosen
        >>> law = chosen(fs.partition, "dirichlet:0.1", num_clients=100)
        >>> fs.data.federate(fs.data.load("digits").train, law).num_clients
        100
    """
    name, *values = word.split(":")
    if name not in names(module):
        raise ArgumentError(f"{word!r}: there is no {module.__name__}.{name}; there are {', '.join(names(module))}.")
    function = getattr(module, name)
    has = inspect.signature(function).parameters
    positional = [_value(each) for each in values if "=" not in each]
    named = {key: _value(value) for key, _, value in (each.partition("=") for each in values if "=" in each)}
    taken = list(has)[: len(given) + len(positional)]
    for key in asked or {}:
        if key not in has or key in taken or key in named:
            raise ArgumentError(f"{word!r}: {name} has no {key} of its own to be set: leave it out.")
    named |= asked or {}
    known = {key: value for key, value in known.items() if key in has and key not in taken and key not in named}
    try:
        inspect.signature(function).bind(*given, *positional, **named, **known)
    except TypeError as error:
        free = [str(parameter) for key, parameter in has.items() if key not in (*known, *list(has)[: len(given)])]
        raise ArgumentError(f"{word!r}: {error}. {name} takes {', '.join(free) or 'no more'}.") from error
    return function(*given, *positional, **named, **known)


def _value(text: str) -> object:
    """A number, a list, a truth value; else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
