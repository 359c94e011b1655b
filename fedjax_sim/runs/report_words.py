"""What a report says of a run: its facts, and the commands that run it again."""

import json
import shlex
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedjax_sim.runs.metric_words import ABANDONED
from fedjax_sim.runs.writing import Json

if TYPE_CHECKING:
    from fedjax_sim.runs.reading import Run


NONE = "–"


def get(run: "Run", *keys: str) -> Json:
    """A value of config.json; None where there is none."""
    found: Json = run.config
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def plain(value: Json) -> str:
    if value is None:
        return NONE
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(each)}" for key, each in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def count(value: Json) -> str:
    return f"{value:,}" if isinstance(value, int) else plain(value)


def number(value: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else str(value)


def started(run: "Run") -> str:
    return plain(get(run, "created"))[:16].replace("T", " ")


def rounds_done(run: "Run") -> str:
    done, wanted = len(run.metrics.get("round", ())), get(run, "rounds")
    said = [np.asarray(run.metrics[name], float) for name in ABANDONED if name in run.metrics]
    lost = int(np.any(np.nan_to_num(said), axis=0).sum())
    return (str(done) if wanted in (None, done) else f"{done} of {wanted}") + (f", {lost} abandoned" if lost else "")


def duration(seconds: np.ndarray | None) -> str:
    """The time of all processes that ran rounds: each one's seconds start again."""
    if seconds is None or not len(seconds):
        return NONE
    last = np.append(np.diff(seconds) < 0, True)
    total = float(np.asarray(seconds)[last].sum())
    if total < 100:
        return f"{total:.1f} s"
    hours, rest = divmod(round(total), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def cohort(run: "Run") -> str:
    sizes = np.asarray(run.metrics.get("cohort/clients", []), float)
    sizes = sizes[~np.isnan(sizes)]
    if not len(sizes):
        return NONE
    if sizes.min() == sizes.max():
        return f"{sizes[0]:.0f}"
    return f"{sizes.mean():.1f} on average, {sizes.min():.0f} to {sizes.max():.0f}"


def devices(run: "Run") -> str:
    count, platform, kind = (get(run, "devices", key) for key in ("count", "platform", "kind"))
    if count is None:
        return NONE
    return f"{count} × {platform}" + (f" ({kind})" if kind and kind != platform else "")


def commit(run: "Run") -> str:
    found = get(run, "git", "commit")
    return f"{found}{', with changes' if get(run, 'git', 'dirty') else ''}" if found else ""


def commands(run: "Run", name: str, several: bool) -> str:
    experiment, folder, wanted = get(run, "experiment", "name"), str(run.path), get(run, "rounds")
    heading = f"<h3>{escape(name)}</h3>\n" if several else ""
    if not experiment:
        code = f"state = sim.restore({folder!r})"
        said = "Started from Python. With the same simulation, go on from its last checkpoint:"
        return f"{heading}<p>{said}</p>\n<pre>{escape(code)}</pre>\n"
    source = Path(str(get(run, "experiment", "path") or ""))
    by_name = not source.name or source.parent.parent.name == "experiments"  # where the command line looks for names
    words = ["fedjax-sim", "run", str(experiment) if by_name else str(source)]
    if get(run, "experiment", "preset"):
        words += ["--preset", str(get(run, "experiment", "preset"))]
    words += _flags(get(run, "config") or {})
    done = len(run.metrics.get("round", ()))
    further = ["--rounds", str(2 * wanted)] if isinstance(wanted, int) and done >= wanted else []
    at = f" at commit {commit(run)}" if commit(run) else ""
    resume = "Go on, for more rounds in all:" if further else "Go on from the last checkpoint:"
    return (
        f"{heading}<p>Reproduce{escape(at)}:</p>\n<pre>{escape(shlex.join(words))}</pre>\n"
        f"<p>{resume}</p>\n<pre>{escape(shlex.join(['fedjax-sim', 'resume', folder, *further]))}</pre>\n"
    )


def _flags(config: Mapping[str, Json], prefix: str = "") -> list[str]:
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
