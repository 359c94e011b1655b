"""The report of a run, or of several side by side: one HTML file that needs no other and no network.

Whatever comes out of a run's folder is escaped, and the page's security policy allows no script but `report.js`.
"""

import base64
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedjax_sim.core.errors import RunFolderError, check
from fedjax_sim.runs import plots
from fedjax_sim.runs.metric_words import meaning
from fedjax_sim.runs.modes import lower_is_better
from fedjax_sim.runs.profile import PARTS, split
from fedjax_sim.runs.writing import rewrite, writing

if TYPE_CHECKING:
    from fedjax_sim.runs.reading import Run
from fedjax_sim.runs.report_pictures import clock_section, curve_names, curves_section, embedded, pictures_section
from fedjax_sim.runs.report_words import (
    NONE,
    cohort,
    commands,
    commit,
    count,
    devices,
    duration,
    get,
    number,
    plain,
    rounds_done,
    started,
)


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
    rewrite(path, page(runs))
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
    metrics = list(dict.fromkeys(name for run in runs for name in curve_names(run)))
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
{_differences_section(runs, names)}
{curves_section(runs, names) if metrics else ""}
{clock_section(runs, names)}
{pictures_section(runs, names)}
{_profile_section(runs, names)}
{_config_section(runs, names)}
<section>
<h2>Software</h2>
{_table(names, _software(runs), compare=len(runs) > 1)}
</section>
<section>
<h2>Run it again</h2>
{"".join(commands(run, name, len(runs) > 1) for run, name in zip(runs, names, strict=True))}
</section>
</main>
<footer>Written by fedjax-sim. Rounds: how many are completed. Point at a name to see what it means.</footer>
<script type="application/json" id="data">{embedded(runs, names, metrics)}</script>
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
    experiments = list(dict.fromkeys(str(get(run, "experiment", "name") or "") for run in runs))
    experiment = experiments[0] if len(experiments) == 1 else ""
    if len(runs) == 1:
        begun = started(runs[0])
        return experiment or names[0], f"Federated run {names[0]}" + (f", started {begun}" if begun != NONE else "")
    return (f"{experiment}: " if experiment else "") + f"{len(runs)} runs", "Federated runs " + ", ".join(names)


# The tables: rows of (what, a cell a run). A cell is a text; or a text, a note, and whether it is the best of its row.

Cell = str | tuple[str, str, bool]
Row = tuple[str, list[Cell]]


def _table(names: list[str], rows: list[Row], compare: bool, attributes: str = "", explain: bool = False) -> str:
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
        f"<tr{' class=differs' if compare and len(set(cells)) > 1 else ''}>"
        f'<th scope="row"{_title_of(what) if explain else ""}>{escape(what)}</th>'
        f"{''.join(map(cell, cells))}</tr>\n"
        for what, cells in rows
    )
    return f'<div class="scroll" tabindex="0"><table{attributes}>{head}<tbody>\n{body}</tbody></table></div>'


def _title_of(what: str) -> str:
    """What a name means, where the pointer is on it."""
    return f' title="{escape(meaning(what))}"' if meaning(what) else ""


def _summary_section(runs: Sequence["Run"], names: list[str]) -> str:
    """The scores and the facts; of one run beside each other, of several one table."""
    facts, scores = _facts(runs), _score_rows(runs)
    if len(runs) > 1 or not scores:
        return _table(names, facts[:4] + scores + facts[4:], compare=False, explain=True)
    tables = [
        _table(names, scores, compare=False, attributes=' class="scores"', explain=True),
        _table(names, facts, compare=False, explain=True),
    ]
    return f'<div class="summary">\n{"".join(tables)}</div>'


def _score_rows(runs: Sequence["Run"]) -> list[Row]:
    rows: list[Row] = [(name, _scores(runs, name)) for name in plots.main_names([run.metrics for run in runs])]
    return [row for row in rows if any(cell != NONE for cell in row[1])]


def _facts(runs: Sequence["Run"]) -> list[Row]:
    facts: list[tuple[str, Callable[[Run], Cell]]] = [
        ("experiment", lambda run: str(get(run, "experiment", "name") or "from Python")),
        ("preset", lambda run: plain(get(run, "experiment", "preset"))),
        ("started", started),
        ("rounds", rounds_done),
        ("training", lambda run: duration(run.seconds)),
        ("seed", lambda run: plain(get(run, "simulation", "seed"))),
        ("clients", lambda run: count(get(run, "simulation", "clients"))),
        ("examples", lambda run: count(get(run, "simulation", "examples"))),
        ("cohort", cohort),
        ("sampler", lambda run: plain(get(run, "simulation", "sampler"))),
        ("parameters", lambda run: count(get(run, "simulation", "parameters"))),
        ("devices", devices),
    ]
    rows: list[Row] = [(what, [fact(run) for run in runs]) for what, fact in facts]
    about = dict.fromkeys(key for run in runs for key in get(run, "data") or {})
    for key in about:
        rows.append((f"data: {key}", [plain(get(run, "data", key)) for run in runs]))
    return [row for row in rows if any(cell != NONE for cell in row[1])]


def _scores(runs: Sequence["Run"], name: str) -> list[Cell]:
    """The last value of a metric, and the best one with its round."""
    lower = lower_is_better(name)
    pick = np.argmin if lower else np.argmax
    found = []
    for run in runs:
        values = np.asarray(run.metrics.get(name, []), float)
        at = np.flatnonzero(~np.isnan(values))
        found.append((np.asarray(run.metrics["round"])[at] + 1, values[at]) if len(at) else None)
    finals = [values[-1] for _, values in filter(None, found)]
    winner = (min if lower else max)(finals) if len(finals) > 1 else None
    cells: list[Cell] = []
    for each in found:
        if each is None:
            cells.append(NONE)
            continue
        rounds, values = each
        best = int(pick(values))
        note = f"after round {rounds[-1]:.0f}; best {number(values[best])} after round {rounds[best]:.0f}"
        cells.append((number(values[-1]), note, values[-1] == winner))
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


def _config_rows(runs: Sequence["Run"]) -> list[Row]:
    """Every field of config.json, but for what has a section of its own."""
    rows: list[Row] = []
    others = dict.fromkeys(key for run in runs for key in run.config if key not in ("config", "versions", "git"))
    for part in ("config", *others):
        found = [get(run, part) for run in runs]
        if not any(isinstance(each, Mapping) for each in found):
            if part in others and any(each is not None for each in found):
                rows.append((f"run: {part}", [plain(each) for each in found]))
            continue
        for field in dict.fromkeys(field for each in found if isinstance(each, Mapping) for field in each):
            what = field if part == "config" else f"{part}: {field}"
            rows.append((what, [plain(get(run, part, field)) for run in runs]))
    return rows


def _differences_section(runs: Sequence["Run"], names: list[str]) -> str:
    """What the runs were told that differs, and with what software; of several runs."""
    apart = ("run: created", "experiment: sha256")  # differ always, or say nothing
    rows = [row for row in _config_rows(runs) + _software(runs) if len(set(row[1])) > 1 and row[0] not in apart]
    if len(runs) == 1:
        return ""
    said = (
        _table(names, rows, compare=False, attributes=' id="differences"')
        if rows
        else "<p>Nothing that was configured.</p>"
    )
    return f"<section>\n<h2>What differs</h2>\n{said}\n</section>"


def _config_section(runs: Sequence["Run"], names: list[str]) -> str:
    rows = _config_rows(runs)
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
    packages = list(dict.fromkeys(name for run in runs for name in get(run, "versions") or {}))
    rows: list[Row] = [(name, [plain(get(run, "versions", name)) for run in runs]) for name in packages]
    return [("commit", [commit(run) or NONE for run in runs]), *rows]
