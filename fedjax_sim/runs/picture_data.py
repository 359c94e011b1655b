"""The numbers behind a report's pictures, as CSV."""

import base64
import csv
import io
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_sim.runs import plots

if TYPE_CHECKING:
    from fedjax_sim.runs.reading import Run


def columns_of(run: "Run", kind: str) -> dict[str, np.ndarray]:
    """What a picture of `fs.plots.pictures` shows, column by column.

    Args:
        run: whose picture.
        kind: "clients", "partition" or "traffic".

    Example:
        >>> import pathlib, fedjax_sim as fs
        >>> from fedjax_sim.runs.picture_data import columns_of
        >>> run = fs.runs.Run(pathlib.Path("run"), {}, {}, partition={"sizes": np.array([3, 5])})
        >>> columns_of(run, "partition")
        {'client': array([0, 1]), 'examples': array([3, 5])}
    """
    if kind == "traffic":
        done = np.asarray(run.metrics["round"]) + 1
        return {"rounds completed": done} | {
            name.partition("/")[2]: np.asarray(run.metrics[name]) for name in (plots.UPLINK, plots.DOWNLINK)
        }
    if kind == "partition":
        held = run.partition or {}
        sizes = np.asarray(held["sizes"])
        if "counts" not in held:
            return {"client": np.arange(len(sizes)), "examples": sizes}
        shown, counts = np.asarray(held["clients"]), np.asarray(held["counts"])
        classes = {f"class {label}": column for label, column in zip(held["labels"], counts.T, strict=True)}
        return {"client": shown, "examples": sizes[shown], **classes}
    table = run.clients()
    name = next(name for name in ("client/accuracy", "client/loss") if np.isfinite(_latest(table, name)).any())
    return {"client": np.unique(table["client"]), name: _latest(table, name)}


def joined(runs: Mapping[str, "Run"]) -> dict[str, list[Any]]:
    """All numbers of several runs' rounds below each other, with the run's name in the first column."""
    named = dict.fromkeys(name for run in runs.values() for name, each in run.metrics.items() if plots.is_scalar(each))
    names = [name for name in named if name != "round"]
    found: dict[str, list[Any]] = {"run": [], "rounds completed": [], **{name: [] for name in names}}
    for label, run in runs.items():
        done = (np.asarray(run.metrics["round"]) + 1).tolist()
        found["run"] += [label] * len(done)
        found["rounds completed"] += done
        for name in names:
            found[name] += list(run.metrics.get(name, [""] * len(done)))
    return found


def _latest(table: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    return plots.latest(table, name) if name in table else np.zeros(0)


def csv_link(name: str, columns: Mapping[str, Any]) -> str:
    """A link that holds the columns as a file, in HTML.

    Args:
        name: of the file, without its ending.
        columns: heading to numbers, of one length.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*(np.asarray(column).tolist() for column in columns.values()), strict=True))
    data = base64.b64encode(text.getvalue().encode()).decode()
    return f' <a class="data" download="{escape(name)}.csv" href="data:text/csv;base64,{data}">CSV</a>'
