"""A sweep's words on the command line, and its config.json."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_sim.core.errors import ArgumentError, RunFolderError
from fedjax_sim.runs.folder import git_commit, versions
from fedjax_sim.runs.reading import FORMAT
from fedjax_sim.runs.spread import SAID, half_width
from fedjax_sim.runs.writing import Json, rewrite, writing

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from rich.table import Table

    from fedjax_sim.runs.reading import Run

Value = bool | int | float | str | None
"""What a word can say."""


def grid_of_words(
    config: "DataclassInstance", words: Sequence[str], static: Sequence[str]
) -> tuple[dict[str, list[Value]], tuple[str, ...]]:
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
    grid: dict[str, list[Value]] = {}
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
    folder: Path, experiment: Mapping[str, Json], config: Mapping[str, Json], sweep: Mapping[str, Json]
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
        rewrite(folder / "config.json", json.dumps(made, indent=2) + "\n")


def score_table(names: Sequence[str], metric: str, scores: Sequence[Any]) -> "Table":
    """A sweep's scores, a row a setting, for the terminal."""
    from rich.table import Table

    table = Table(*names, metric, f"± {SAID}", "diverged")
    for score in scores:
        error = "" if score.interval != score.interval else f"{score.interval:.2g}"
        table.add_row(*map(str, score.setting.values()), f"{score.mean:.4f}", error, str(score.diverged or ""))
    return table


def saved_table(run: "Run") -> "Table":
    """A sweep's folder for the terminal: each setting, and its main metric's last value, averaged over the seeds.

    Raises:
        RunFolderError: it holds no table that can be read.
    """
    from pyarrow import ArrowException, parquet
    from rich.table import Table

    path = run.path / "sweep.parquet"
    try:
        columns = parquet.read_table(path).to_pydict()
        settings = list(run.config["sweep"]["grid"])
        names = [name for name in columns if name not in ("seed", "diverged", *settings)]
        main = [each for word in ("accuracy", "loss") for each in names if word in each]
        name = min(main, key=lambda each: each.startswith("client/"), default=names[0])
        found: dict[tuple[str, ...], list[float]] = {}
        for i in range(len(columns["seed"])):
            seen = [value for value in columns[name][i] or [] if value is not None and value == value]
            values = found.setdefault(tuple(str(columns[each][i]) for each in settings), [])
            if columns["diverged"][i] is None and seen:
                values.append(float(seen[-1]))
        about = f"sweep of {(run.config.get('experiment') or {}).get('name')}: {len(found)} settings"
        table = Table(*settings, f"{name}, the last", f"± {SAID}", "seeds", title=about, title_justify="left")
        for setting, values in found.items():
            mean = f"{sum(values) / len(values):.4f}" if values else "diverged"
            error = f"{half_width(np.asarray(values)):.2g}" if len(values) > 1 else ""
            table.add_row(*setting, mean, error, str(len(values)))
        return table
    except (OSError, ValueError, TypeError, LookupError, MemoryError, ArrowException) as error:
        raise RunFolderError(f"{path} cannot be read: {error}.") from error


def _value(name: str, text: str, like: object) -> Value:
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
