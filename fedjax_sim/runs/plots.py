"""Figures of runs: curves over rounds, the partition, one value a client.

They are `matplotlib.figure.Figure`s that pyplot knows nothing of: no global state, no backend, nothing to close. A
notebook shows them; `figure.savefig("curves.pdf")` keeps them.
"""

import functools
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.runs.folder import writing

if TYPE_CHECKING:
    from fedjax_sim.runs.folder import Run

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#222222",
)  # Okabe and Ito's: told apart by all
DASHES = ("-", "--", ":", "-.")
TRAINING = ("client", "aggregate", "cohort", "plan")  # where a training round's own columns come from
PERCENTILES = (10, 50, 90)
DPI = 150
INK, GRID, FILL = "#333333", "#e3e3e3", "#8fbfe0"
BLUES = ("#d3e6f4", "#4a98c9", "#08306b")

Columns = Mapping[str, Any]
"""Column name to [rounds] array, "round" among them: an `fs.History`, or the `metrics` of an `fs.runs.Run`."""


def curves(histories: Columns | Mapping[str, Columns | Sequence[Columns]], names: Sequence[str] | None = None) -> Any:
    """Metrics over rounds, a panel each.

    Args:
        histories: the columns of one run; or label to a run's columns; or label to those of several runs that differ
            in their seed, drawn as their mean and a band of one (sample) standard deviation on either side, over the
            rounds in which all of them have a value.
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

    across = min(len(names), 2 if len(names) < 5 else 3)
    down = -(-len(names) // across)
    figure = _figure(5.2 * across if across < 3 else 4.2 * across, 2.9 * down + 0.5)
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat[len(names) :]:
        axes.remove()
    for axes, name in zip(grid.flat, names, strict=False):
        for i, label in enumerate(groups):
            _line(axes, *drawn[name, label], label, i)
        _dress(axes, name)
        axes.set_xlabel("round")
        axes.xaxis.get_major_locator().set_params(integer=True)
        rounds = np.concatenate([drawn[name, label][0] for label in groups])
        if rounds.min() == rounds.max():
            axes.set_xlim(rounds[0] - 1, rounds[0] + 1)
    if list(groups) != [""]:
        handles = [_legend_line(label, len(group), i) for i, (label, group) in enumerate(groups.items())]
        longest = max(len(handle.get_label()) for handle in handles)
        room = max(1, int(figure.get_figwidth() * 11 / (longest + 6)))
        figure.legend(handles=handles, loc="outside lower center", ncols=room, frameon=False, labelcolor=INK)
    return figure


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


def is_scalar(column: Any) -> bool:
    """Whether a column holds a number a round; a histogram is none.

    Example:
        >>> from fedjax_sim.runs import plots
        >>> plots.is_scalar([0.5, float("nan")]), plots.is_scalar([[1, 2], [3, 4]])
        (True, False)
    """
    array = np.asarray(column)
    return array.ndim == 1 and array.dtype.kind in "fiub"


def partition(data: FederatedData | Mapping[str, np.ndarray], labels: str = "y", max_clients: int = 200) -> Any:
    """Who holds what: clients' sizes above their examples of each class; without classes, a histogram of the sizes.

    Args:
        data: a federation, or what `label_counts` made of one, such as a run's `partition`.
        labels: as in `label_counts`.
        max_clients: as in `label_counts`.

    Returns:
        A `matplotlib.figure.Figure`.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> from fedjax_sim.runs import plots
        >>> data = fs.data.federate({"y": np.arange(90) % 3}, fs.partition.dirichlet(alpha=0.3, num_clients=8))
        >>> [axes.get_ylabel() for axes in plots.partition(data).axes]
        ['examples', 'class', 'examples of the class']
    """
    counted = label_counts(data, labels, max_clients) if isinstance(data, FederatedData) else data
    check("sizes" in counted, "data", sorted(counted), "must be a FederatedData, or hold `sizes` as label_counts does.")
    sizes = np.asarray(counted["sizes"])
    if "counts" not in counted:
        return clients(sizes, "examples of a client")
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    shown, classes, counts = (np.asarray(counted[name]) for name in ("clients", "labels", "counts"))
    height = float(np.clip(0.24 * len(classes), 1.6, 4.8))
    figure = _figure(9.0, height + 2.3)
    above, map_ = figure.subplots(2, 1, sharex=True, height_ratios=[1.3, height])
    above.bar(np.arange(len(shown)), sizes[shown], width=0.8 if len(shown) < 60 else 1.0, color=FILL)
    people = _people(len(sizes)) if len(shown) == len(sizes) else f"{len(shown)} of {len(sizes)} clients, evenly spread"
    each = f"{sizes.min()} to {sizes.max()}" if sizes.min() < sizes.max() else f"{sizes.max()}"
    _dress(above, f"{people}; {sizes.sum()} examples, {each} each")
    above.set_ylabel("examples", color=INK)
    above.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    above.tick_params(bottom=False, labelbottom=False)

    colours = LinearSegmentedColormap.from_list("counts", BLUES)
    some = np.ma.masked_equal(counts.T, 0)  # none is white
    image = map_.imshow(some, aspect="auto", interpolation="nearest", cmap=colours, vmin=0, origin="lower")
    _dress(map_, "")
    map_.grid(False)
    map_.set_xlabel("client", color=INK)
    map_.set_ylabel("class", color=INK)
    for axis, entries in ((map_.xaxis, shown), (map_.yaxis, classes)):
        axis.set_major_locator(MaxNLocator(10, integer=True))
        if len(entries) <= 12:
            axis.set_ticks(range(len(entries)))
        axis.set_major_formatter(FuncFormatter(functools.partial(_entry, entries)))
    bar = figure.colorbar(image, ax=map_, pad=0.01, aspect=25)
    bar.set_label("examples of the class", color=INK)
    bar.ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    bar.ax.tick_params(colors=INK, labelsize=9)
    bar.outline.set_visible(False)
    return figure


def label_counts(data: FederatedData, labels: str = "y", max_clients: int = 200) -> dict[str, np.ndarray]:
    """How many examples each client holds, in all and of each class: what a run keeps in partition.npz.

    Args:
        data: the federation.
        labels: the entry of its arrays that holds the classes: [N] integers, at most 1000 different ones among the
            clients' examples. Other entries count as no classes.
        max_clients: classes are counted for so many clients at most, spread evenly over all.

    Returns:
        dict: `sizes` [K] int64; with classes also `clients` [k] int64, `labels` [l], and `counts` [k, l] int64.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> from fedjax_sim.runs import plots
        >>> data = fs.data.FederatedData({"y": np.array([7, 7, 9, 9, 9])}, offsets=[0, 3, 5])
        >>> plots.label_counts(data)["counts"]
        array([[2, 1],
               [0, 2]])
    """
    check_count("max_clients", max_clients)
    sizes = data.sizes
    column = data.arrays.get(labels) if isinstance(data.arrays, Mapping) else None
    if column is None or np.ndim(column) != 1 or not np.issubdtype(column.dtype, np.integer):
        return {"sizes": sizes}
    column = np.asarray(column)
    held = column[: data.num_examples] if data.index is None else column[data.index]
    classes = np.unique(held)
    if not 0 < len(classes) <= 1000:
        return {"sizes": sizes}
    shown = np.unique(np.linspace(0, data.num_clients - 1, min(max_clients, data.num_clients)).round().astype(np.int64))
    n = sizes[shown]
    owner = np.repeat(np.arange(len(shown)), n)
    place = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n) + np.repeat(data.offsets[shown], n)
    cell = owner * len(classes) + np.searchsorted(classes, held[place])
    counts = np.bincount(cell, minlength=len(shown) * len(classes)).reshape(len(shown), len(classes))
    return {"sizes": sizes, "clients": shown, "labels": classes, "counts": counts.astype(np.int64)}


def clients(values: Any, name: str) -> Any:
    """Histogram of one value a client, with the 10th, 50th and 90th percentile marked.

    Args:
        values: [K] numbers; those that are not finite are left out, and the title says how many.
        name: what they are.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ArgumentError: not one number a client, or none that is finite.

    Example:
        >>> from fedjax_sim.runs import plots
        >>> plots.clients([0.5, 0.7, 0.8, float("nan")], "accuracy").axes[0].get_title(loc="left")
        '3 clients (1 without a value left out)'
    """
    array = np.asarray(values)
    check(array.ndim == 1 and array.dtype.kind in "fiub", "values", values, "must be one number a client, [K].")
    array = array.astype(float)
    finite = array[np.isfinite(array)]
    check(len(finite) > 0, "values", values, "no client has a finite value: nothing to draw.")
    left_out = len(array) - len(finite)

    figure = _figure(6.4, 3.4)
    axes = figure.subplots()
    axes.hist(finite, bins=_bins(finite), color=FILL, edgecolor="white", linewidth=0.6)
    for p, style, colour in zip(PERCENTILES, ("--", "-", ":"), (COLOURS[1], INK, COLOURS[2]), strict=True):
        at = float(np.percentile(finite, p))
        axes.axvline(at, linestyle=style, color=colour, linewidth=1.8, label=f"{p}th percentile {at:.4g}")
    _dress(axes, _people(len(finite)) + (f" ({left_out} without a value left out)" if left_out else ""))
    axes.set_xlabel(name, color=INK)
    axes.set_ylabel("clients", color=INK)
    axes.yaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=INK, fontsize=9)
    return figure


def pictures(run: "Run") -> dict[str, Any]:
    """The figures that a run has data for, by name: "curves", "partition", "clients".

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
    if run.partition is not None:
        found["partition"] = partition(run.partition)
    table = run.clients()
    for name in ("client/accuracy", "client/loss"):
        values = latest(table, name) if name in table else np.zeros(0)
        if np.isfinite(values).any():
            everybody = int((run.config.get("simulation") or {}).get("clients", 0))
            never = np.full(max(0, everybody - len(values)), np.nan)
            found["clients"] = clients(np.concatenate([values, never]), f"{name}, each client's latest")
            break
    return found


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
        The files written: of curves.png, partition.png and clients.png those that the run has data for.

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


def png(figure: Any) -> bytes:
    """A figure as a PNG file's bytes.

    Example:
        >>> from fedjax_sim.runs import plots
        >>> plots.png(plots.clients([1.0, 2.0], "loss"))[1:4]
        b'PNG'
    """
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    # IPython shows bare Figures only once pyplot has told it how; this tells it of this one.
    figure._repr_png_ = functools.partial(png, figure)  # type: ignore[attr-defined]
    return figure


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
    """The rounds that have a finite value, in order, and the values."""
    column = np.asarray(history[name])
    check(is_scalar(column), "names", name, f"is no column of numbers: it has shape {column.shape}, {column.dtype}.")
    rounds, values = np.asarray(history["round"]), column.astype(float)
    check(len(rounds) == len(values), f"len({name!r})", len(values), f"there are {len(rounds)} rounds.")
    rounds, first = np.unique(rounds[np.isfinite(values)], return_index=True)
    return rounds, values[np.isfinite(values)][first]


def _joined(histories: Sequence[Columns], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Rounds, values, and of several runs the standard deviation of these."""
    points = [_points(history, name) for history in histories]
    if not points:
        return np.zeros(0), np.zeros(0), None
    common = functools.reduce(np.intersect1d, [rounds for rounds, _ in points])
    values = np.stack([values[np.isin(rounds, common)] for rounds, values in points])
    return common, values.mean(0), values.std(0, ddof=1) if len(values) > 1 else None


def _line(axes: Any, rounds: np.ndarray, values: np.ndarray, spread: np.ndarray | None, label: str, i: int) -> None:
    marker = {"marker": "o", "markersize": 3.5} if len(rounds) <= 40 else {}
    width = 1.8 if len(rounds) <= 500 else 1.0
    axes.plot(rounds, values, linestyle=_dash(i), color=_colour(i), linewidth=width, label=label, **marker)
    if spread is not None:
        axes.fill_between(rounds, values - spread, values + spread, color=_colour(i), alpha=0.2, linewidth=0)


def _legend_line(label: str, runs: int, i: int) -> Any:
    from matplotlib.lines import Line2D

    said = label if runs == 1 else f"{label}: mean of {runs}, band ± standard deviation"
    return Line2D([], [], linestyle=_dash(i), color=_colour(i), linewidth=1.8, label=said)


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _dash(i: int) -> Any:
    return DASHES[i // len(COLOURS) % len(DASHES)]


def _dress(axes: Any, title: str) -> None:
    """Light lines, dark words."""
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def _bins(values: np.ndarray) -> np.ndarray:
    """Edges of 5 to 50 equal bins, over whole numbers as many in each; one bin where all values are nearly the same."""
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        half = max(abs(low), 1.0) / 20
        return np.array([low - half, high + half])
    count = int(np.clip(np.ceil(2 * np.cbrt(len(values))), 5, 50))  # Rice's rule
    if np.all(values == np.round(values)):
        width = np.ceil((high - low + 1) / count)
        return np.arange(low - 0.5, high + width, width)
    return np.linspace(low, high, count + 1)


def _entry(entries: np.ndarray, at: float, _: Any) -> str:
    """The tick label at a column or row of the map."""
    return str(entries[int(at)]) if at == round(at) and 0 <= at < len(entries) else ""


def _people(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"
