"""Grids of hyperparameters: settings, and the groups of them that one program can train."""

import inspect
import itertools
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import ArgumentError, check

Setting = dict[str, Any]
"""Hyperparameter name to value."""


class Group(NamedTuple):
    """Settings that differ in traced numbers alone.

    Attributes:
        places: [S] their places in the grid.
        fixed: name to value, those that all of them share and that may shape a program.
        traced: name to [S] values.
    """

    places: np.ndarray
    fixed: Setting
    traced: dict[str, np.ndarray]


def settings_of(grid: Mapping[str, Sequence[Any]] | Sequence[Setting]) -> list[Setting]:
    """All combinations of a dict of lists, the last name's values changing fastest; or the settings of a list.

    Example:
        >>> from fedjax_sim.sweeps.grid import settings_of
        >>> settings_of({"lr": [0.1, 0.2], "mu": [0.0]})
        [{'lr': 0.1, 'mu': 0.0}, {'lr': 0.2, 'mu': 0.0}]
    """
    if isinstance(grid, Mapping):
        for name, values in grid.items():
            listed = not isinstance(values, str | bytes) and isinstance(values, Sequence | np.ndarray)
            check(listed, f"grid[{name!r}]", values, "must be a list of values.")
            check(len(values) > 0, f"grid[{name!r}]", values, "must hold at least one value.")
        settings = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    else:
        settings = [dict(setting) for setting in grid]
    if not settings or not settings[0]:
        raise ArgumentError(
            f"grid={grid!r}: names no hyperparameter; give some, as {{'server_lr': [0.01, 0.1]}}. A list of one value "
            "is enough for a sweep over seeds."
        )
    for setting in settings:
        if list(setting) != list(settings[0]):
            raise ArgumentError(f"grid: {setting} must name {list(settings[0])}, as the first setting does.")
    settings = [{name: _plain(value) for name, value in setting.items()} for setting in settings]
    twice = [setting for i, setting in enumerate(settings) if setting in settings[:i]]
    check(not twice, "grid", twice[:1], "stands there more than once: give each setting once.")
    return settings


def check_accepts(build: Callable[..., Any], setting: Setting) -> None:
    """`build` must take the grid's names, and need no others."""
    check(callable(build), "build", build, "must be a function of hyperparameters that returns a fs.Simulation.")
    try:
        parameters = inspect.signature(build).parameters
    except (TypeError, ValueError):  # a builtin, which does not tell
        return
    by_name = {p.name: p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        unknown = [name for name in setting if name not in by_name]
        if unknown:
            raise ArgumentError(f"grid names {unknown}, which build does not take: it takes {list(by_name)}.")
    missing = [name for name, p in by_name.items() if p.default is p.empty and name not in setting]
    if missing:
        raise ArgumentError(f"build needs {missing}, which the grid does not name: add them, or give them defaults.")


def groups_of(settings: list[Setting], static: Sequence[str] = ()) -> list[Group]:
    """Groups of settings that agree in all that is not a number, and in the fields named `static`.

    Example:
        >>> from fedjax_sim.sweeps.grid import groups_of, settings_of
        >>> for group in groups_of(settings_of({"model": ["cnn", "mlp"], "lr": [0.1, 0.2]})):
        ...     print(group.fixed, list(group.traced), group.places)
        {'model': 'cnn'} ['lr'] [0 1]
        {'model': 'mlp'} ['lr'] [2 3]
    """
    names = list(settings[0])
    for name in static:
        check(name in names, "static", name, f"is no hyperparameter of the grid: it has {names}.")
    numeric = [name for name in names if name not in static and all(_is_number(setting[name]) for setting in settings)]
    places: list[tuple[Setting, list[int]]] = []
    for i, setting in enumerate(settings):
        fixed = {name: value for name, value in setting.items() if name not in numeric}
        for known, members in places:
            if known == fixed:
                members.append(i)
                break
        else:
            places.append((fixed, [i]))
    return [
        Group(np.asarray(members), fixed, {name: _column([settings[i][name] for i in members]) for name in numeric})
        for fixed, members in places
    ]


def text(setting: Setting) -> str:
    """A setting in a few words.

    Example:
        >>> from fedjax_sim.sweeps.grid import text
        >>> text({"server_lr": 0.01, "model": "cnn"})
        'server_lr=0.01, model=cnn'
    """
    return ", ".join(
        f"{name}={value:.6g}" if _is_number(value) else f"{name}={value}" for name, value in setting.items()
    )


def _column(values: list[Any]) -> np.ndarray:
    whole = all(isinstance(value, numbers.Integral) for value in values)
    return np.asarray(values, np.int32 if whole else np.float32)


def _plain(value: PyTree) -> Any:
    """NumPy's scalars as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _is_number(value: PyTree) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
