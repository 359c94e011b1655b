"""A sweep's table for a paper, a page or a spreadsheet: a row a setting, means over seeds and their intervals."""

import csv
import io
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.core import latex
from fedjax_sim.runs.spread import SAID
from fedjax_sim.sweeps.grid import Setting


class Scores(NamedTuple):
    """What a table shows.

    Attributes:
        settings: [S].
        seeds: how many.
        columns: metric to [S] `fs.sweeps.Score`.
    """

    settings: list[Setting]
    seeds: int
    columns: dict[str, list[Any]]

    def rows(self) -> list[tuple[list[Any], list[Any]]]:
        """A setting's values, and its scores."""
        columns = self.columns.values()
        return [(list(each.values()), [column[i] for column in columns]) for i, each in enumerate(self.settings)]

    def caption(self) -> str:
        """What the numbers are."""
        return f"Mean ± {SAID} over {self.seeds} seeds" if self.seeds > 1 else "One seed"


def as_csv(found: Scores) -> str:
    """Plain numbers: of each metric the mean, the interval's half and how many seeds diverged."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [f"{name} {what}" for name in found.columns for what in ("mean", f"half of the {SAID}", "diverged")]
    writer.writerow([*found.settings[0], "seeds", *names])
    for setting, scores in found.rows():
        numbers = [each for score in scores for each in (score.mean, score.interval, score.diverged)]
        writer.writerow([*setting, found.seeds, *numbers])
    return out.getvalue()


def as_markdown(found: Scores) -> str:
    """A table for a page."""
    escaped = lambda cell: cell.replace("|", r"\|")
    line = lambda cells: f"| {' | '.join(map(escaped, cells))} |"
    rule = line([*["---"] * len(found.settings[0]), *["---:"] * len(found.columns)])
    body = [line([*map(str, setting), *map(cell, scores)]) for setting, scores in found.rows()]
    return "\n".join([line([*found.settings[0], *found.columns]), rule, *body, "", f"{found.caption()}.", ""])


def as_latex(found: Scores) -> str:
    """A `tabular` with booktabs, under a comment that says what its errors are."""
    rows = [[*map(str, setting), *map(cell, scores)] for setting, scores in found.rows()]
    return f"% {found.caption()}\n{latex.table([*found.settings[0], *found.columns], rows)}"


def cell(score: Any) -> str:
    """A mean with as many digits as its interval has two of, and the interval."""
    if not np.isfinite(score.mean):
        return "diverged" if score.diverged else "--"
    if not np.isfinite(score.interval) or score.interval == 0:
        return f"{score.mean:.4g}"
    digits = min(max(1 - int(np.floor(np.log10(score.interval))), 0), 8)
    return f"{score.mean:.{digits}f} ± {score.interval:.{digits}f}"
