"""Figures of runs: curves over rounds, the partition, one value a client.

They are `matplotlib.figure.Figure`s that pyplot knows nothing of: no global state, no backend, nothing to close. A
notebook shows them; `figure.savefig("curves.pdf")` keeps them.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from fedjax_sim.core.errors import ArgumentError, check
from fedjax_sim.runs.client_plots import class_bars as class_bars
from fedjax_sim.runs.client_plots import clients as clients
from fedjax_sim.runs.client_plots import label_counts as label_counts
from fedjax_sim.runs.client_plots import partition as partition
from fedjax_sim.runs.client_plots import sizes as sizes
from fedjax_sim.runs.clock_plots import DOWN, TIME, UP
from fedjax_sim.runs.clock_plots import timed as timed
from fedjax_sim.runs.drawing import COLOURS, INK, dress, new_figure
from fedjax_sim.runs.drawing import png as png
from fedjax_sim.runs.spread import SAID, half_width
from fedjax_sim.runs.writing import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from fedjax_sim.runs.reading import Run

DASHES: Final = ("-", "--", ":", "-.")
TRAINING = (
    "client",
    "aggregate",
    "cohort",
    "plan",
    "population",
    "clock",
)  # where a training round's own columns come from

Columns = Mapping[str, npt.ArrayLike]
"""Column name to [rounds] array, "round" among them: an `fs.History`, or the `metrics` of an `fs.runs.Run`."""


def curves(
    histories: Columns | Mapping[str, Columns | Sequence[Columns]], names: Sequence[str] | None = None
) -> "Figure":
    """Metrics over rounds, a panel each; quantiles of one thing (`families`) share a panel. All show the same rounds.

    A value stands over the number of rounds completed when it was measured: that of round 0 over 1.

    Args:
        histories: the columns of one run; or label to a run's columns; or label to those of several runs that differ
            in their seed, drawn as their mean and a band, its 95 % t-interval, over the rounds in which all of them
            have a value.
        names: columns of numbers; by default those of `main_names`. Rounds without a finite value are skipped, and the
            points joined.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ArgumentError: no such column, or none that has a value.

    Example:
        >>> from fedjax_sim.runs import plots
        >>> one, other = {"round": [0, 1], "client/loss": [2.0, 1.0]}, {"round": [0, 1], "client/loss": [2.0, 1.4]}
        >>> figure = plots.curves({"FedAvg": [one, other], "FedYogi": one})
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['client/loss']
    """
    groups = _groups(histories)
    runs = [run for group in groups.values() for run in group]
    known = list(dict.fromkeys(name for run in runs for name in run))
    names = main_names(runs) if names is None else list(names)
    for name in names:
        check(name in known, "names", name, f"no history has that column; they have {known}.")
    check(len(names) > 0, "names", names, f"no column to draw; the histories have {known}.")
    drawn = {
        (name, label): _joined([run for run in group if name in run], name)
        for name in names
        for label, group in groups.items()
    }
    for name in names:
        points = sum(len(drawn[name, label][0]) for label in groups)
        check(points > 0, "names", name, "no round has a finite value of it (of several seeds: no round of all).")

    panels = families(names)
    across = min(len(panels), 2 if len(panels) < 5 else 3)
    down = -(-len(panels) // across)
    figure = new_figure(5.2 * across if across < 3 else 4.2 * across, 2.9 * down + 0.5)
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    rounds = np.concatenate([points[0] for points in drawn.values()])
    first, last = rounds.min(), rounds.max()
    margin = 0.02 * (last - first) or 1
    for axes, (title, members) in zip(grid.flat, panels.items(), strict=False):
        for i, label in enumerate(groups):
            if len(members) == 1:
                _line(axes, *drawn[members[0], label], label, i)
            else:
                _family(axes, [drawn[name, label][:2] for name in members], label, i)
        dress(axes, title if len(members) == 1 else f"{title}, {' '.join(name.split('_')[-1] for name in members)}")
        axes.set_xlabel("rounds completed", color=INK)
        axes.set_xlim(first - margin, last + margin)
        axes.xaxis.get_major_locator().set_params(integer=True)
    if list(groups) != [""]:
        handles = [_legend_line(label, len(group), i) for i, (label, group) in enumerate(groups.items())]
        longest = max(len(handle.get_label()) for handle in handles)  # pyright: ignore[reportArgumentType]
        room = max(1, int(figure.get_figwidth() * 11 / (longest + 6)))
        figure.legend(handles=handles, loc="outside lower center", ncols=room, frameon=False, labelcolor=INK)
    return figure


UPLINK, DOWNLINK = "aggregate/uplink_bits", "aggregate/downlink_bits"
"""Columns of what a round's clients sent and received together, in bits."""


def traffic(histories: Columns | Mapping[str, Columns | Sequence[Columns]], score: str | None = None) -> "Figure":
    """What clients sent, above, and received, below: megabytes a round, of all rounds so far, and for which score.

    Args:
        histories: as in `curves`, with `aggregate/uplink_bits` and `aggregate/downlink_bits` among the columns.
        score: a column; by default the first accuracy of `main_names` that was evaluated, else the first of them.

    Returns:
        A `matplotlib.figure.Figure` of six panels; of four where there is no score.

    Raises:
        ArgumentError: a history without these columns.

    Example:
        >>> from fedjax_sim.runs import plots
        >>> bits = {"aggregate/uplink_bits": [8e6, 8e6], "aggregate/downlink_bits": [8e6, 8e6]}
        >>> figure = plots.traffic({"round": [0, 1], "test/accuracy": [0.5, 0.7], **bits})
        >>> [axes.get_title(loc="left") for axes in figure.axes[:3]]
        ['sent a round, MB', 'sent so far, MB', 'test/accuracy']
    """
    groups = _groups(histories)
    runs = [run for group in groups.values() for run in group]
    for name in (UPLINK, DOWNLINK):
        check(all(name in run for run in runs), "histories", name, "a history lacks that column.")
    if score is None:
        names = [name for run in runs for name in evaluated_names(run)] or main_names(runs)
        score = next((name for name in names if "accuracy" in name), names[0] if names else None)
    figure = new_figure(12.6 if score else 8.4, 6.0)
    grid = figure.subplots(2, 3 if score else 2)
    for row, column, what in zip(grid, (UPLINK, DOWNLINK), ("sent", "received"), strict=True):
        for i, (label, group) in enumerate(groups.items()):
            sums = [_megabytes(run, column, score) for run in group]
            _line(row[0], *_joined(sums, "each"), label, i)
            rounds, so_far, spread = _joined(sums, "so far")
            _line(row[1], rounds, so_far, spread, label, i)
            if score:
                at, values, spread = _joined(sums, "score")
                _line(row[2], so_far[np.isin(rounds, at)], values, spread, label, i)
        for axes, title in zip(row, (f"{what} a round, MB", f"{what} so far, MB", str(score)), strict=False):
            dress(axes, title)
            axes.set_xlabel("rounds completed" if title != score else f"MB {what}", color=INK)
            axes.set_ylim(bottom=0 if title != score else None)
    if list(groups) != [""]:
        handles = [_legend_line(label, len(group), i) for i, (label, group) in enumerate(groups.items())]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, labelcolor=INK)
    return figure


def _megabytes(run: Columns, column: str, score: str | None) -> Columns:
    """Megabytes of each round, of all so far, and the score."""
    each = np.asarray(run[column], float) / 8e6
    values = run[score] if score is not None and score in run else np.full(len(each), np.nan)
    return {"round": run["round"], "each": each, "so far": np.cumsum(each), "score": values}


def families(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by panel: what is called `NAME_p10`, `NAME_p50` and so on are quantiles of one thing, from low to high.

    Example:
        >>> from fedjax_sim.runs import plots
        >>> plots.families(["test/loss", "accuracy_p90", "accuracy_p10"])
        {'test/loss': ['test/loss'], 'accuracy': ['accuracy_p10', 'accuracy_p90']}
    """
    names = list(names)
    found: dict[str, list[str]] = {}
    for name in names:
        stem = _stem(name)
        several = stem not in names and sum(_stem(each) == stem for each in names) > 1
        found.setdefault(stem if several else name, []).append(name)
    quantile = lambda name: float(name.rpartition("_p")[2])
    return {title: sorted(group, key=quantile) if len(group) > 1 else group for title, group in found.items()}


def _stem(name: str) -> str:
    return re.sub(r"_p\d+(\.\d+)?$", "", name)


def main_names(histories: Iterable[Columns]) -> list[str]:
    """The columns that `curves` draws unless told: the clients' loss and accuracy, and what evaluation reported.

    Example:
        >>> from fedjax_sim.runs import plots
        >>> plots.main_names([{"round": [0], "plan/steps": [5], "test/accuracy": [0.1], "client/loss": [2.0]}])
        ['client/loss', 'test/accuracy']
    """
    found = list(dict.fromkeys(name for history in histories for name in evaluated_names(history)))
    training = [name for name in ("client/loss", "client/accuracy") if any(name in history for history in histories)]
    return training + found


def evaluated_names(history: Columns) -> list[str]:
    """The columns of numbers that evaluation reported, and no training round by itself.

    Example:
        >>> from fedjax_sim.runs import plots
        >>> plots.evaluated_names({"round": [0], "client/loss": [2.0], "test/loss": [2.1], "test/seen": [[1, 2]]})
        ['test/loss']
    """
    names = [name for name in history if name != "round" and name.split("/")[0] not in TRAINING]
    return [name for name in names if is_scalar(history[name])]


def is_scalar(column: npt.ArrayLike) -> bool:
    """Whether a column holds a number a round; a histogram is none.

    Example:
        >>> from fedjax_sim.runs import plots
        >>> plots.is_scalar([0.5, float("nan")]), plots.is_scalar([[1, 2], [3, 4]])
        (True, False)
    """
    array = np.asarray(column)
    return array.ndim == 1 and array.dtype.kind in "fiub"


def pictures(run: "Run") -> dict[str, "Figure"]:
    """The figures that a run has data for, by name: "curves", "traffic", "clock", "partition", "clients".

    The last shows each client's latest accuracy in training, or loss.

    Example:
        >>> import pathlib, fedjax_sim as fs
        >>> from fedjax_sim.runs import plots
        >>> run = fs.runs.Run(pathlib.Path("run"), {}, {"round": [0, 1], "client/loss": [2.0, 1.0]})
        >>> list(plots.pictures(run))
        ['curves']
    """
    found = {}
    drawable = [name for name in main_names([run.metrics]) if len(_points(run.metrics, name)[0])]
    if drawable:
        found["curves"] = curves(run.metrics, drawable)
    if all(name in run.metrics and is_scalar(run.metrics[name]) for name in (UPLINK, DOWNLINK)):
        found["traffic"] = traffic(run.metrics)
    if drawable and all(name in run.metrics for name in (TIME, UP, DOWN)):
        found["clock"] = timed(run.metrics)
    if run.partition is not None:
        found["partition"] = partition(run.partition)
    table = run.clients()
    for name in ("client/accuracy", "client/loss"):
        values = latest(table, name) if name in table else np.zeros(0)
        if np.isfinite(values).any():
            everybody = _population(run)
            never = np.full(max(0, everybody - len(values)), np.nan)
            found["clients"] = clients(np.concatenate([values, never]), f"{name}, each client's latest")
            break
    return found


def _population(run: "Run") -> int:
    """Clients of the federation, by the partition or else by what config.json says, unless that is absurd."""
    if run.partition is not None:
        return len(run.partition["sizes"])
    said = (run.config.get("simulation") or {}).get("clients", 0)
    return said if isinstance(said, int) and said < 10**7 else 0


def latest(table: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Each client's value in the last round in which it has one, in order of clients; NaN if it never has.

    Example:
        >>> import numpy as np
        >>> from fedjax_sim.runs import plots
        >>> table = {"round": np.array([0, 1, 1]), "client": np.array([4, 4, 2]), "loss": np.array([3.0, 1.0, 2.0])}
        >>> plots.latest(table, "loss")
        array([2., 1.])
    """
    everyone, owner = np.unique(table["client"], return_inverse=True)
    values = np.asarray(table[name], float)
    order = np.argsort(table["round"], kind="stable")
    order = order[~np.isnan(values[order])]
    found = np.full(len(everyone), np.nan)
    found[owner[order]] = values[order]  # of several values for one place, the last stays
    return found


def save_all(run: "Run") -> list[Path]:
    """Write the `pictures` of a run to the folder `plots/` in its own.

    Returns:
        The files written: of curves.png, traffic.png, clock.png, partition.png and clients.png those that the run has
            data for.

    Raises:
        RunFolderError: the folder cannot be written.

    Example:
        >>> import pathlib, tempfile, fedjax_sim as fs
        >>> from fedjax_sim.runs import plots
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> run = fs.runs.Run(folder, {}, {"round": [0, 1], "client/loss": [2.0, 1.0]})
        >>> [path.name for path in plots.save_all(run)]
        ['curves.png']
    """
    folder = Path(run.path) / "plots"
    files = []
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in pictures(run).items():
            files.append(folder / f"{name}.png")
            files[-1].write_bytes(png(figure))
    return files


def _groups(histories: Any) -> dict[str, list[Columns]]:
    """Label to the runs under it; the label of a single run is empty."""
    check(isinstance(histories, Mapping), "histories", histories, "must be a run's columns, or label to those.")
    if "round" in histories:
        return {"": [histories]}
    check(len(histories) > 0, "histories", histories, "holds no run.")
    groups = {}
    for label, group in histories.items():
        groups[str(label)] = [group] if isinstance(group, Mapping) else list(group)
        check(len(groups[str(label)]) > 0, f"histories[{label!r}]", group, "holds no run.")
        for run in groups[str(label)]:
            if not isinstance(run, Mapping) or "round" not in run:
                raise ArgumentError(
                    f"histories[{label!r}]: must be a run's columns with 'round' among them, or a list of such; got "
                    f"{sorted(run) if isinstance(run, Mapping) else run!r}."
                )
    return groups


def _points(history: Columns, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rounds completed when there was a finite value, in order, and the values."""
    column = np.asarray(history[name])
    check(is_scalar(column), "names", name, f"is no column of numbers: it has shape {column.shape}, {column.dtype}.")
    rounds, values = np.asarray(history["round"]), column.astype(float)
    check(len(rounds) == len(values), f"len({name!r})", len(values), f"there are {len(rounds)} rounds.")
    rounds, first = np.unique(rounds[np.isfinite(values)], return_index=True)
    return rounds + 1, values[np.isfinite(values)][first]


def _joined(histories: Sequence[Columns], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Rounds, values, and of several runs half of the interval of their mean."""
    points = [_points(history, name) for history in histories]
    if not points:
        return np.zeros(0), np.zeros(0), None
    common = functools.reduce(np.intersect1d, [rounds for rounds, _ in points])
    values = np.stack([values[np.isin(rounds, common)] for rounds, values in points])
    return common, values.mean(0), half_width(values) if len(values) > 1 else None


def _line(axes: "Axes", rounds: np.ndarray, values: np.ndarray, spread: np.ndarray | None, label: str, i: int) -> None:
    marker = {"marker": "o", "markersize": 3.5} if len(rounds) <= 40 else {}
    width = 1.8 if len(rounds) <= 500 else 1.0
    axes.plot(rounds, values, linestyle=_dash(i), color=_colour(i), linewidth=width, label=label, **marker)
    if spread is not None:
        axes.fill_between(rounds, values - spread, values + spread, color=_colour(i), alpha=0.2, linewidth=0)


def _family(axes: "Axes", members: list[tuple[np.ndarray, np.ndarray]], label: str, i: int) -> None:
    """Quantiles, from low to high: the middle one is a line as any other, the band between the outer ones is filled."""
    for j, (rounds, values) in enumerate(members):
        if j != len(members) // 2:
            marker = {"marker": "o", "markersize": 2} if len(rounds) <= 40 else {}
            axes.plot(rounds, values, linestyle=_dash(i), color=_colour(i), linewidth=0.9, alpha=0.6, **marker)
    common = functools.reduce(np.intersect1d, [rounds for rounds, _ in members])
    low, high = (values[np.isin(rounds, common)] for rounds, values in (members[0], members[-1]))
    axes.fill_between(common, low, high, color=_colour(i), alpha=0.12, linewidth=0)
    _line(axes, *members[len(members) // 2], None, label, i)


def _legend_line(label: str, runs: int, i: int) -> "Line2D":
    from matplotlib.lines import Line2D

    said = label if runs == 1 else f"{label}: mean of {runs}, {SAID}"
    return Line2D([], [], linestyle=_dash(i), color=_colour(i), linewidth=1.8, label=said)


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _dash(i: int) -> Literal["-", "--", ":", "-."]:
    return DASHES[i // len(COLOURS) % len(DASHES)]
