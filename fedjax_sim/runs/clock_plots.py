"""Figures over simulated time and bytes: what a method reaches, and what that takes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedjax_sim.core.errors import check
from fedjax_sim.runs.drawing import COLOURS, INK, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Columns = Mapping[str, npt.ArrayLike]
TIME, UP, DOWN = "clock/time", "clock/bytes_up", "clock/bytes_down"
"""Columns of all rounds so far."""
OWN = ("round", "client", "aggregate", "cohort", "plan", "population", "clock", "privacy")
"""Where a round's own columns come from, before the slash; all others were evaluated after it."""
HOUR, GIGABYTE = 3600.0, 1e9


def timed(histories: Columns | Mapping[str, Columns | Sequence[Columns]], score: str | None = None) -> "Figure":
    """A score over simulated hours, and over gigabytes that all clients received and sent together.

    Args:
        histories: the columns of one run; or label to a run's columns, or to those of several seeds, drawn alike. Each
            has the `clock/` columns of a simulation with a fleet.
        score: a column; by default the first accuracy that was evaluated, else the first score, else `client/loss`.

    Returns:
        A `matplotlib.figure.Figure` of two panels.

    Raises:
        ArgumentError: a history without a clock, or without the score.

    Example:
        >>> from fedjax_sim.runs import plots
        >>> clock = {"clock/time": [60.0, 130.0], "clock/bytes_up": [1e6, 2e6], "clock/bytes_down": [1e6, 2e6]}
        >>> figure = plots.timed({"round": [0, 1], "test/accuracy": [0.5, 0.7], **clock})
        >>> [axes.get_xlabel() for axes in figure.axes]
        ['simulated hours', 'gigabytes, both ways']
    """
    check(
        isinstance(histories, Mapping) and len(histories) > 0, "histories", histories, "must be columns, or label to."
    )
    labelled: Any = {"": histories} if "round" in histories else histories
    groups = {label: [runs] if isinstance(runs, Mapping) else list(runs) for label, runs in labelled.items()}
    every = [run for runs in groups.values() for run in runs]
    for name in (TIME, UP, DOWN):
        check(all(name in run for run in every), "histories", name, "a history lacks that column: give a fleet.")
    score = _score(every) if score is None else score
    check(all(score in run for run in every), "score", score, "a history lacks that column.")
    figure = new_figure(8.4, 3.4)
    left, right = figure.subplots(1, 2)
    for i, (label, runs) in enumerate(groups.items()):
        for j, run in enumerate(runs):
            column = {name: np.asarray(run[name], float) for name in (TIME, UP, DOWN, score)}
            has = np.isfinite(column[score])
            style: dict[str, Any] = {
                "color": COLOURS[i % len(COLOURS)],
                "linewidth": 1.6,
                "marker": "o",
                "markersize": 2.5,
            }
            style["label"] = label if not j else "_" + str(label)
            left.plot(column[TIME][has] / HOUR, column[score][has], **style)
            right.plot((column[UP] + column[DOWN])[has] / GIGABYTE, column[score][has], **style)
    for axes, unit in ((left, "simulated hours"), (right, "gigabytes, both ways")):
        dress(axes, score)
        axes.set_xlabel(unit, color=INK)
        axes.set_xlim(left=0)
    if list(groups) != [""]:
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, labelcolor=INK)
    return figure


def _score(runs: list[Columns]) -> str:
    names = [name for name in runs[0] if name.split("/")[0] not in OWN and np.ndim(runs[0][name]) == 1]
    return next((name for name in names if "accuracy" in name), names[0] if names else "client/loss")
