"""The report of a run, or of several side by side: one HTML file that needs no other and no network.

Whatever comes out of a run's folder is escaped, and the page's security policy allows no script but `report.js`.
"""

import base64
import hashlib
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_sim.core.errors import RunFolderError, check
from fedjax_sim.runs import plots
from fedjax_sim.runs.profile import PARTS, split
from fedjax_sim.runs.writing import replace, writing

if TYPE_CHECKING:
    from fedjax_sim.runs.reading import Run

POINTS = 2000  # of a curve: longer ones are thinned evenly
LOWER_IS_BETTER = ("loss", "error", "perplexity", "mse", "mae", "rmse")
NONE = "–"


def write(runs: Sequence["Run"], path: str | os.PathLike[str]) -> Path:
    """Write the report of one run, or of several to compare.

    Args:
        runs: what `fs.runs.read` gave, at least one.
        path: the HTML file; replaced if it exists.

    Returns:
        The path.

    Raises:
        ArgumentError: no run.
        RunFolderError: the file cannot be written.

    Example:
        >>> import pathlib, tempfile, fedjax_sim as fs
        >>> from fedjax_sim.runs import report
        >>> run = fs.runs.Run(pathlib.Path("run-1"), {}, {"round": [0, 1], "client/loss": [2.0, 1.0]})
        >>> path = report.write([run], pathlib.Path(tempfile.mkdtemp()) / "report.html")
        >>> "<h1>run-1</h1>" in path.read_text()
        True
    """
    check(len(runs) > 0, "runs", runs, "must hold at least one run.")
    for run in runs:
        if run.config.get("sweep"):
            raise RunFolderError(f"{run.path} holds a sweep, and reports are of runs: `fedjax-sim show` tells of it.")
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, page(runs))
    return path


def page(runs: Sequence["Run"]) -> str:
    """The report's HTML; arguments as in `write`.

    Example:
        >>> import pathlib, fedjax_sim as fs
        >>> from fedjax_sim.runs import report
        >>> report.page([fs.runs.Run(pathlib.Path("run-1"), {}, {})]).splitlines()[0]
        '<!doctype html>'
    """
    names = _names(runs)
    title, subtitle = _title(runs, names)
    style, script = (
        resources.files("fedjax_sim.runs").joinpath(f"report.{kind}").read_text() for kind in ("css", "js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    policy += "; base-uri 'none'; form-action 'none'"
    metrics = list(dict.fromkeys(name for run in runs for name in _curve_names(run)))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p>{escape(subtitle)}</p>
</header>
<main>
<section>
<h2>Summary</h2>
{_summary_section(runs, names)}
</section>
{_curves_section(runs, names) if metrics else ""}
{_pictures_section(runs, names)}
{_profile_section(runs, names)}
{_config_section(runs, names)}
<section>
<h2>Software</h2>
{_table(names, _software(runs), compare=len(runs) > 1)}
</section>
<section>
<h2>Run it again</h2>
{"".join(_commands(run, name, len(runs) > 1) for run, name in zip(runs, names, strict=True))}
</section>
</main>
<footer>Written by fedjax-sim. Rounds count from 0.</footer>
<script type="application/json" id="data">{_embedded(runs, names, metrics)}</script>
<script>{script}</script>
</body>
</html>
"""


def _names(runs: Sequence["Run"]) -> list[str]:
    """The folders' names, with as many parents as tell them apart; a run given twice is numbered."""
    parts = [Path(run.path).absolute().parts for run in runs]
    names = [""] * len(runs)
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(set(parts)):
            break
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})" for i, name in enumerate(names)
    ]


def _title(runs: Sequence["Run"], names: list[str]) -> tuple[str, str]:
    experiments = list(dict.fromkeys(str(_get(run, "experiment", "name") or "") for run in runs))
    experiment = experiments[0] if len(experiments) == 1 else ""
    if len(runs) == 1:
        started = _when(runs[0])
        return experiment or names[0], f"Federated run {names[0]}" + (f", started {started}" if started != NONE else "")
    return (f"{experiment}: " if experiment else "") + f"{len(runs)} runs", "Federated runs " + ", ".join(names)


# The tables: rows of (what, a cell a run). A cell is a text; or a text, a note, and whether it is the best of its row.

Cell = str | tuple[str, str, bool]
Row = tuple[str, list[Cell]]


def _table(names: list[str], rows: list[Row], compare: bool, attributes: str = "") -> str:
    def cell(content: Cell) -> str:
        text, note, best = content if isinstance(content, tuple) else (content, "", False)
        shown = f"<strong>{escape(text)}</strong>" if best else escape(text)
        return f"<td>{shown}{f'<small>{escape(note)}</small>' if note else ''}</td>"

    head = "".join(
        f'<th scope="col"><span class="swatch" style="border-color: var(--c{i % 7})"></span>{escape(name)}</th>'
        for i, name in enumerate(names)
    )
    head = f'<thead><tr><th><span class="unseen">what</span></th>{head}</tr></thead>' if len(names) > 1 else ""
    body = "".join(
        f'<tr{" class=differs" if compare and len(set(cells)) > 1 else ""}><th scope="row">{escape(what)}</th>'
        f"{''.join(map(cell, cells))}</tr>\n"
        for what, cells in rows
    )
    return f'<div class="scroll" tabindex="0"><table{attributes}>{head}<tbody>\n{body}</tbody></table></div>'


def _summary_section(runs: Sequence["Run"], names: list[str]) -> str:
    """The scores and the facts; of one run beside each other, of several one table."""
    facts, scores = _facts(runs), _score_rows(runs)
    if len(runs) > 1 or not scores:
        return _table(names, facts[:4] + scores + facts[4:], compare=False)
    tables = [_table(names, scores, compare=False, attributes=' class="scores"'), _table(names, facts, compare=False)]
    return f'<div class="summary">\n{"".join(tables)}</div>'


def _score_rows(runs: Sequence["Run"]) -> list[Row]:
    rows: list[Row] = [(name, _scores(runs, name)) for name in plots.main_names([run.metrics for run in runs])]
    return [row for row in rows if any(cell != NONE for cell in row[1])]


def _facts(runs: Sequence["Run"]) -> list[Row]:
    facts: list[tuple[str, Callable[[Run], Cell]]] = [
        ("experiment", lambda run: str(_get(run, "experiment", "name") or "from Python")),
        ("preset", lambda run: _plain(_get(run, "experiment", "preset"))),
        ("started", _when),
        ("rounds", _rounds),
        ("time", lambda run: _duration(run.seconds)),
        ("seed", lambda run: _plain(_get(run, "simulation", "seed"))),
        ("clients", lambda run: _count(_get(run, "simulation", "clients"))),
        ("examples", lambda run: _count(_get(run, "simulation", "examples"))),
        ("cohort", _cohort),
        ("sampler", lambda run: _plain(_get(run, "simulation", "sampler"))),
        ("parameters", lambda run: _count(_get(run, "simulation", "parameters"))),
        ("devices", _devices),
    ]
    rows: list[Row] = [(what, [fact(run) for run in runs]) for what, fact in facts]
    about = dict.fromkeys(key for run in runs for key in _get(run, "data") or {})
    for key in about:
        rows.append((f"data: {key}", [_plain(_get(run, "data", key)) for run in runs]))
    return [row for row in rows if any(cell != NONE for cell in row[1])]


def lower_is_better(name: str) -> bool:
    """Whether a metric of that name is best at its least value; accuracies and what is unknown, at their greatest.

    Example:
        >>> from fedjax_sim.runs.report import lower_is_better
        >>> lower_is_better("test/loss"), lower_is_better("test/accuracy")
        (True, False)
    """
    return any(word in LOWER_IS_BETTER for word in name.lower().replace("/", "_").split("_"))


def _scores(runs: Sequence["Run"], name: str) -> list[Cell]:
    """The last value of a metric, and the best one with its round."""
    lower = lower_is_better(name)
    pick = np.argmin if lower else np.argmax
    found = []
    for run in runs:
        values = np.asarray(run.metrics.get(name, []), float)
        at = np.flatnonzero(~np.isnan(values))
        found.append((np.asarray(run.metrics["round"])[at], values[at]) if len(at) else None)
    finals = [values[-1] for _, values in filter(None, found)]
    winner = (min if lower else max)(finals) if len(finals) > 1 else None
    cells: list[Cell] = []
    for each in found:
        if each is None:
            cells.append(NONE)
            continue
        rounds, values = each
        best = int(pick(values))
        note = f"round {rounds[-1]:.0f}; best {_number(values[best])} in round {rounds[best]:.0f}"
        cells.append((_number(values[-1]), note, values[-1] == winner))
    return cells


def _profile_section(runs: Sequence["Run"], names: list[str]) -> str:
    """Milliseconds of each part of a round, of the runs that were profiled."""
    found = [split(run.profile)[0].rows() if run.profile and run.profile["blocks"] else None for run in runs]
    if not any(found):
        return ""
    cells = [
        {part: (f"{ms:.4g} ms", f"{100 * share:.1f} %", False) for part, ms, share in each or ()} for each in found
    ]
    rows: list[Row] = [(f"{part}: {what}", [each.get(part, NONE) for each in cells]) for part, what in PARTS.items()]
    return f"<section>\n<h2>Time of a round</h2>\n{_table(names, rows, compare=False)}\n</section>"


def _config_section(runs: Sequence["Run"], names: list[str]) -> str:
    rows: list[Row] = []
    for part in ("config", "simulation"):
        fields = list(dict.fromkeys(field for run in runs for field in _get(run, part) or {}))
        for field in fields:
            what = field if part == "config" else f"simulation: {field}"
            rows.append((what, [_plain(_get(run, part, field)) for run in runs]))
    if not rows:
        return ""
    choice = ""
    if len(runs) > 1:
        count = sum(len(set(cells)) > 1 for _, cells in rows)
        choice = (
            f'<p class="choice"><label><input type="checkbox" id="differing"> only the {count} that differ</label></p>'
        )
    table = _table(names, rows, compare=len(runs) > 1, attributes=' id="config"')
    return f"<section>\n<h2>Configuration</h2>\n{choice}\n{table}\n</section>"


def _software(runs: Sequence["Run"]) -> list[Row]:
    packages = list(dict.fromkeys(name for run in runs for name in _get(run, "versions") or {}))
    rows: list[Row] = [(name, [_plain(_get(run, "versions", name)) for run in runs]) for name in packages]
    return [("commit", [_commit(run) or NONE for run in runs]), *rows]


# The pictures and the curves.


def _curves_section(runs: Sequence["Run"], names: list[str]) -> str:
    drawable = {
        name.replace("$", r"\$"): run.metrics for name, run in zip(names, runs, strict=True) if _curve_names(run)
    }
    main = [name for name in plots.main_names(drawable.values()) if any(_finite(run, name) for run in runs)]
    still = _image(plots.png(plots.curves(drawable, main)), "Curves of the main metrics over rounds.") if main else ""
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


def _pictures_section(runs: Sequence["Run"], names: list[str]) -> str:
    """Clients' histograms and partitions; runs that share a picture share it."""
    shared: dict[tuple[str, bytes], list[str]] = {}
    for run, name in zip(runs, names, strict=True):
        for kind, figure in plots.pictures(run).items():
            if kind != "curves":
                shared.setdefault((kind, plots.png(figure)), []).append(name)
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
        figures.append(f"<figure{wide}><figcaption>{escape(caption)}</figcaption>{_image(data, caption)}</figure>\n")
    return f'<section>\n<h2>Clients</h2>\n<div class="pictures">\n{"".join(figures)}</div>\n</section>'


def _image(data: bytes, alt: str) -> str:
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'


def _columns(run: "Run") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each column of numbers: the rounds in which it has a value, and the values."""
    columns = {}
    for name, column in run.metrics.items():
        if name != "round" and plots.is_scalar(column):
            values = np.asarray(column, float)
            has = ~np.isnan(values)
            columns[name] = (np.asarray(run.metrics["round"])[has], values[has])
    return columns


def _curve_names(run: "Run") -> list[str]:
    """The columns that have a value in some round, the main ones first."""
    main = plots.main_names([run.metrics])
    found = [name for name, (_, values) in _columns(run).items() if len(values)]
    return sorted(found, key=lambda name: (name not in main, main.index(name) if name in main else 0))


def _finite(run: "Run", name: str) -> bool:
    return name in run.metrics and bool(np.isfinite(np.asarray(run.metrics[name], float)).any())


def _embedded(runs: Sequence["Run"], names: list[str], metrics: list[str]) -> str:
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
    data = {"runs": made, "metrics": metrics, "main": list(panels.items())}
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# The facts of a run, in words.


def _get(run: "Run", *keys: str) -> Any:
    """A value of config.json; None where there is none."""
    found: Any = run.config
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _plain(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else _plain(value)


def _number(value: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else str(value)


def _when(run: "Run") -> str:
    return _plain(_get(run, "created"))[:16].replace("T", " ")


def _rounds(run: "Run") -> str:
    done, wanted = len(run.metrics.get("round", ())), _get(run, "rounds")
    return str(done) if wanted in (None, done) else f"{done} of {wanted}"


def _duration(seconds: np.ndarray | None) -> str:
    """The time of all processes that ran rounds: each one's seconds start again."""
    if seconds is None or not len(seconds):
        return NONE
    last = np.append(np.diff(seconds) < 0, True)
    total = float(np.asarray(seconds)[last].sum())
    if total < 100:
        return f"{total:.1f} s"
    hours, rest = divmod(round(total), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def _cohort(run: "Run") -> str:
    sizes = np.asarray(run.metrics.get("cohort/clients", []), float)
    sizes = sizes[~np.isnan(sizes)]
    if not len(sizes):
        return NONE
    if sizes.min() == sizes.max():
        return f"{sizes[0]:.0f}"
    return f"{sizes.mean():.1f} on average, {sizes.min():.0f} to {sizes.max():.0f}"


def _devices(run: "Run") -> str:
    count, platform, kind = (_get(run, "devices", key) for key in ("count", "platform", "kind"))
    if count is None:
        return NONE
    return f"{count} × {platform}" + (f" ({kind})" if kind and kind != platform else "")


def _commit(run: "Run") -> str:
    commit = _get(run, "git", "commit")
    return f"{commit}{', with changes' if _get(run, 'git', 'dirty') else ''}" if commit else ""


def _commands(run: "Run", name: str, several: bool) -> str:
    experiment, folder, wanted = _get(run, "experiment", "name"), str(run.path), _get(run, "rounds")
    heading = f"<h3>{escape(name)}</h3>\n" if several else ""
    if not experiment:
        code = f"state = sim.restore({folder!r})"
        said = "Started from Python. With the same simulation, go on from its last checkpoint:"
        return f"{heading}<p>{said}</p>\n<pre>{escape(code)}</pre>\n"
    source = Path(str(_get(run, "experiment", "path") or ""))
    by_name = not source.name or source.parent.parent.name == "experiments"  # where the command line looks for names
    words = ["fedjax-sim", "run", str(experiment) if by_name else str(source)]
    if _get(run, "experiment", "preset"):
        words += ["--preset", str(_get(run, "experiment", "preset"))]
    words += _flags(_get(run, "config") or {})
    done = len(run.metrics.get("round", ()))
    further = ["--rounds", str(2 * wanted)] if isinstance(wanted, int) and done >= wanted else []
    at = f" at commit {_commit(run)}" if _commit(run) else ""
    resume = "Go on, for more rounds in all:" if further else "Go on from the last checkpoint:"
    return (
        f"{heading}<p>Reproduce{escape(at)}:</p>\n<pre>{escape(shlex.join(words))}</pre>\n"
        f"<p>{resume}</p>\n<pre>{escape(shlex.join(['fedjax-sim', 'resume', folder, *further]))}</pre>\n"
    )


def _flags(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Every field as a flag of the command line, so that no preset's default matters."""
    words = []
    for field, value in config.items():
        name = f"{prefix}{field}".replace("_", "-")
        if isinstance(value, Mapping):
            words += _flags(value, f"{prefix}{field}.")
        elif isinstance(value, bool):
            base, _, leaf = name.rpartition(".")
            words.append(f"--{name}" if value else f"--{base}{'.' if base else ''}no-{leaf}")
        else:
            words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return words
