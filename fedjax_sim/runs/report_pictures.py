"""A report's curves, as data for its script and as a picture without one, and its pictures of clients."""

import base64
import json
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.runs import plots
from fedjax_sim.runs.drawing import svg
from fedjax_sim.runs.metric_words import meaning
from fedjax_sim.runs.picture_data import columns_of, csv_link, joined

if TYPE_CHECKING:
    from fedjax_sim.runs.reading import Run


POINTS = 2000  # of a curve: longer ones are thinned evenly


def curves_section(runs: Sequence["Run"], names: list[str]) -> str:
    drawable = {
        name.replace("$", r"\$"): run.metrics for name, run in zip(names, runs, strict=True) if curve_names(run)
    }
    main = [name for name in plots.main_names(drawable.values()) if any(_finite(run, name) for run in runs)]
    still = _image(svg(plots.curves(drawable, main)), "Curves of the main metrics over rounds.") if main else ""
    long = any(len(values) > POINTS for run in runs for _, values in _columns(run).values())
    note = f'<p class="note">Curves of more than {POINTS} points are thinned evenly.</p>' if long else ""
    return f"""<section>
<h2>Curves</h2>
<div class="controls choice"><label>metric <select id="metric"></select></label>
<label><input type="checkbox" id="log"> logarithmic</label></div>
<div class="controls" id="legend"></div>
<div id="panels"></div>
<p class="unseen" aria-live="polite" id="said"></p>
{note}<noscript>{still}</noscript>
</section>"""


def clock_section(runs: Sequence["Run"], names: list[str]) -> str:
    """Runs that have a clock, on one: a score over simulated hours and gigabytes."""
    clocked = {
        name.replace("$", r"\$"): run.metrics
        for name, run in zip(names, runs, strict=True)
        if plots.TIME in run.metrics and curve_names(run)
    }
    if not clocked:
        return ""
    try:
        figure = plots.timed(clocked)
    except ArgumentError:  # they were not evaluated alike
        return ""
    image = _image(svg(figure), "What runs reach, over simulated hours and gigabytes.")
    link = csv_link(
        "clock", joined({name: run for name, run in zip(names, runs, strict=True) if plots.TIME in run.metrics})
    )
    caption = f"<figcaption>What runs reach, over simulated hours and gigabytes{link}</figcaption>"
    return f'<section>\n<h2>Time and bytes</h2>\n<figure class="wide">{caption}{image}</figure>\n</section>'


def pictures_section(runs: Sequence["Run"], names: list[str]) -> str:
    """Clients' histograms and partitions; runs that share a picture share it."""
    shared: dict[tuple[str, bytes], list[str]] = {}
    owner: dict[tuple[str, bytes], Run] = {}
    for run, name in zip(runs, names, strict=True):
        for kind, figure in plots.pictures(run).items():
            if kind not in ("curves", "clock"):
                shared.setdefault((kind, drawn := svg(figure)), []).append(name)
                owner.setdefault((kind, drawn), run)
    if not shared:
        return ""
    said = {
        "clients": "Each client's latest training metric",
        "partition": "Who holds which examples",
        "traffic": "What clients have sent and received, and what for",
    }
    figures = []
    for (kind, data), owners in sorted(shared.items(), key=lambda item: item[0][0]):
        whose = ", ".join(owners) if len(owners) < len(runs) else f"all {len(runs)} runs" if len(runs) > 1 else ""
        caption = said[kind] + (f": {whose}" if whose else "")
        alone = sum(each == kind for each, _ in shared) == 1
        wide = ' class="wide"' if kind == "traffic" or (kind == "partition" and alone) else ""
        link = csv_link(kind, columns_of(owner[kind, data], kind))
        figures.append(
            f"<figure{wide}><figcaption>{escape(caption)}{link}</figcaption>{_image(data, caption)}</figure>\n"
        )
    return f'<section>\n<h2>Clients</h2>\n<div class="pictures">\n{"".join(figures)}</div>\n</section>'


def _image(data: bytes, alt: str) -> str:
    return f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{base64.b64encode(data).decode()}">'


def _columns(run: "Run") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each column of numbers: after which rounds it has a value, counted from 1 on, and the values."""
    columns = {}
    for name, column in run.metrics.items():
        if name != "round" and plots.is_scalar(column):
            values = np.asarray(column, float)
            has = ~np.isnan(values)
            columns[name] = (np.asarray(run.metrics["round"])[has] + 1, values[has])
    return columns


def curve_names(run: "Run") -> list[str]:
    """The columns that have a value in some round, the main ones first."""
    main = plots.main_names([run.metrics])
    found = [name for name, (_, values) in _columns(run).items() if len(values)]
    return sorted(found, key=lambda name: (name not in main, main.index(name) if name in main else 0))


def _finite(run: "Run", name: str) -> bool:
    return name in run.metrics and bool(np.isfinite(np.asarray(run.metrics[name], float)).any())


def embedded(runs: Sequence["Run"], names: list[str], metrics: list[str]) -> str:
    """The curves as JSON that can stand in HTML: no `<`, infinities as words (NaN is left out with its round)."""

    def curve(rounds: np.ndarray, values: np.ndarray) -> list[list[Any]]:
        kept = np.unique(np.linspace(0, len(values) - 1, min(len(values), POINTS)).round().astype(int))
        short = [float(f"{value:.6g}") for value in values[kept].tolist()]
        words = {np.inf: "Infinity", -np.inf: "-Infinity"}
        return [rounds[kept].astype(int).tolist(), [words.get(value, value) for value in short]]

    made = []
    for run, name in zip(runs, names, strict=True):
        made.append(
            {"name": name, "curves": {key: curve(*column) for key, column in _columns(run).items() if len(column[0])}}
        )
    main = [name for name in plots.main_names([run.metrics for run in runs]) if any(_finite(run, name) for run in runs)]
    panels = plots.families(main or metrics[:1])
    words = {name: said for name in (*metrics, *panels) if (said := meaning(name))}
    data = {"runs": made, "metrics": metrics, "main": list(panels.items()), "words": words}
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
