"""A sweep's words on the command line, and its config.json."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.runs.folder import FORMAT, git_commit, replace, versions, writing


def grid_of_words(
    config: Any, words: Sequence[str], static: Sequence[str]
) -> tuple[dict[str, list[Any]], tuple[str, ...]]:
    """The grid of `NAME=VALUE,VALUE` words over a config's fields, and the names whose values are no traced numbers.

    A field that holds a fraction takes numbers, which are traced unless `static` names it. A field of whole numbers is
    a count, which shapes a program: it is static.

    Example:
        >>> import dataclasses
        >>> from fedjax_sim.runs.sweep_words import grid_of_words
        >>> Config = dataclasses.make_dataclass("Config", ["lr", "epochs", "rounds", "seed"])
        >>> grid_of_words(Config(0.1, 1, 10, 0), ["lr=0.1,1", "epochs=1,5"], [])
        ({'lr': [0.1, 1.0], 'epochs': [1, 5]}, ('epochs',))
    """
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    grid: dict[str, list[Any]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not values.strip(","):
            raise ArgumentError(f"grid={word!r}: must be NAME=VALUE,VALUE,... as in --grid server_lr=0.01,0.1")
        if name not in fields:
            raise ArgumentError(f"grid={word!r}: unknown field; there are {', '.join(fields)}.")
        if name in ("rounds", "seed"):
            advice = "use --seeds N." if name == "seed" else "use --rounds N: a history holds all rounds before it."
            raise ArgumentError(f"grid={word!r}: {name} is the same in all of a sweep; {advice}")
        if name in grid:
            raise ArgumentError(f"grid={word!r}: {name} stands there twice; give all its values at once.")
        grid[name] = [_value(name, text.strip(), fields[name]) for text in values.split(",")]
    if not grid:
        raise ArgumentError("grid=(): give at least one, as in --grid server_lr=0.01,0.1")
    names = [name.replace("-", "_") for name in static]
    for name in names:
        if name not in grid:
            raise ArgumentError(f"static={name!r}: is none of the grid's fields, {', '.join(grid)}.")
    counts = [name for name in grid if name not in names and not isinstance(fields[name], float)]
    return grid, (*names, *counts)


def write_config(
    folder: Path, experiment: Mapping[str, Any], config: Mapping[str, Any], sweep: Mapping[str, Any]
) -> None:
    """Write a sweep's config.json.

    Example:
        >>> import json, pathlib, tempfile
        >>> from fedjax_sim.runs.sweep_words import write_config
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> write_config(folder, {"name": "quickstart"}, {"rounds": 3}, {"grid": {"client_lr": [0.1]}})
        >>> json.loads((folder / "config.json").read_text())["sweep"]
        {'grid': {'client_lr': [0.1]}}
    """
    made = {"format": FORMAT, "experiment": experiment, "config": config, "sweep": sweep}
    made |= {"versions": versions(), "git": git_commit()}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        replace(folder / "config.json", json.dumps(made, indent=2) + "\n")


def score_table(names: Sequence[str], metric: str, scores: Sequence[Any]) -> Any:
    """A sweep's scores, a row a setting, for the terminal."""
    from rich.table import Table

    table = Table(*names, metric, "standard error", "diverged")
    for score in scores:
        error = "" if score.standard_error != score.standard_error else f"{score.standard_error:.2g}"
        table.add_row(*map(str, score.setting.values()), f"{score.mean:.4f}", error, str(score.diverged or ""))
    return table


def _value(name: str, text: str, like: Any) -> Any:
    """A word as a value of a field that holds `like`."""
    number = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text)
    if isinstance(like, float):
        if not number:
            raise ArgumentError(f"grid: {name}={text!r} must be a number.")
        return float(text)
    if isinstance(like, bool):
        if text.lower() not in ("true", "false"):
            raise ArgumentError(f"grid: {name}={text!r} must be true or false.")
        return text.lower() == "true"
    if number:
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    if isinstance(like, int):
        raise ArgumentError(f"grid: {name}={text!r} must be a whole number.")
    return None if text == "None" else text
