"""Figures of clients: who holds what, how large they are, one value each."""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.runs.drawing import BLUES, COLOURS, FILL, INK, bins, dress, new_figure, people

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PERCENTILES = (10, 50, 90)


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


def partition(data: FederatedData | Mapping[str, np.ndarray], labels: str = "y", max_clients: int = 200) -> "Figure":
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
    figure = new_figure(9.0, height + 2.3)
    above, map_ = figure.subplots(2, 1, sharex=True, height_ratios=[1.3, height])
    if len(shown) < 60:
        above.bar(np.arange(len(shown)), sizes[shown], color=FILL)
    else:  # one outline is drawn sooner than two hundred bars
        above.stairs(sizes[shown], np.arange(len(shown) + 1) - 0.5, fill=True, color=FILL)
    who = people(len(sizes)) if len(shown) == len(sizes) else f"{len(shown)} of {len(sizes)} clients, evenly spread"
    each = f"{sizes.min()} to {sizes.max()}" if sizes.min() < sizes.max() else f"{sizes.max()}"
    dress(above, f"{who}; {sizes.sum()} examples, {each} each")
    above.set_ylabel("examples", color=INK)
    above.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    above.tick_params(bottom=False, labelbottom=False)

    colours = LinearSegmentedColormap.from_list("counts", BLUES)
    some = np.ma.masked_equal(counts.T, 0)  # none is white
    image = map_.imshow(some, aspect="auto", interpolation="none", cmap=colours, vmin=0, origin="lower")
    dress(map_, "")
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


def class_bars(data: FederatedData, labels: str = "y", max_clients: int = 50) -> "Figure":
    """A bar for each client, stacked by its examples of each class.

    Args:
        data: the federation.
        labels: the entry of its arrays that holds the classes, [N] integers.
        max_clients: as many clients are shown at most, evenly spread; the title says of how many.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ArgumentError: no such classes.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> from fedjax_sim.runs import plots
        >>> data = fs.data.federate({"y": np.arange(90) % 3}, fs.partition.dirichlet(alpha=0.3, num_clients=8))
        >>> plots.class_bars(data).axes[0].get_title(loc="left")
        '8 clients; 3 classes'
    """
    from matplotlib.colors import LinearSegmentedColormap

    counted = label_counts(data, labels, max_clients)
    if "counts" not in counted:
        raise ArgumentError(f"labels={labels!r}: the arrays have no [N] integers, of 1000 classes at most, there.")
    shown, classes, counts = counted["clients"], counted["labels"], counted["counts"]
    many = len(classes) > len(COLOURS)
    blend = LinearSegmentedColormap.from_list("classes", COLOURS)
    colours = blend(np.linspace(0, 1, len(classes))) if many else COLOURS
    figure = new_figure(9.0, 3.6)
    axes = figure.subplots()
    floor = np.zeros(len(shown))
    for i, label in enumerate(classes):
        axes.bar(np.arange(len(shown)), counts[:, i], 0.8, bottom=floor, color=colours[i], label=str(label))
        floor = floor + counts[:, i]
    K = data.num_clients
    who = people(K) if len(shown) == K else f"{len(shown)} of {K} clients, evenly spread"
    dress(axes, f"{who}; {len(classes)} classes")
    axes.set_xticks(np.arange(len(shown)), [str(k) for k in shown], rotation=90 if len(shown) > 25 else 0)
    axes.set_xlabel("client", color=INK)
    axes.set_ylabel("examples", color=INK)
    if len(classes) <= 20:
        figure.legend(loc="outside right center", title="class", frameon=False, labelcolor=INK, fontsize=9)
    return figure


def sizes(data: FederatedData) -> "Figure":
    """Histogram of clients' sizes on a logarithmic axis; the title says how many clients have no example.

    Args:
        data: the federation.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ArgumentError: no client has an example.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> from fedjax_sim.runs import plots
        >>> data = fs.data.FederatedData({"x": np.zeros(1000)}, offsets=[0, 10, 10, 1000])
        >>> plots.sizes(data).axes[0].get_title(loc="left")
        '3 clients (1 without an example left out)'
    """
    held = data.sizes[data.sizes > 0]
    check(len(held) > 0, "data", data, "no client has an example; there is nothing to draw.")
    empty = data.num_clients - len(held)
    figure = new_figure(6.4, 3.4)
    axes = figure.subplots()
    count = int(np.clip(np.ceil(2 * np.cbrt(len(held))), 5, 50))  # Rice's rule
    edges = np.geomspace(held.min() / 1.1, held.max() * 1.1, count + 1)
    axes.hist(held, bins=edges, color=FILL, edgecolor="white", linewidth=0.6)
    axes.set_xscale("log")
    dress(axes, people(data.num_clients) + (f" ({empty} without an example left out)" if empty else ""))
    axes.set_xlabel("examples of a client", color=INK)
    axes.set_ylabel("clients", color=INK)
    axes.yaxis.get_major_locator().set_params(integer=True)  # pyright: ignore[reportCallIssue]
    return figure


def clients(values: npt.ArrayLike, name: str) -> "Figure":
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

    figure = new_figure(6.4, 3.4)
    axes = figure.subplots()
    axes.hist(finite, bins=bins(finite), color=FILL, edgecolor="white", linewidth=0.6)  # pyright: ignore[reportArgumentType]
    for p, style, colour in zip(PERCENTILES, ("--", "-", ":"), (COLOURS[1], INK, COLOURS[2]), strict=True):
        at = float(np.percentile(finite, p))
        axes.axvline(at, linestyle=style, color=colour, linewidth=1.8, label=f"{p}th percentile {at:.4g}")
    dress(axes, people(len(finite)) + (f" ({left_out} without a value left out)" if left_out else ""))
    axes.set_xlabel(name, color=INK)
    axes.set_ylabel("clients", color=INK)
    axes.yaxis.get_major_locator().set_params(integer=True)  # pyright: ignore[reportCallIssue]
    figure.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=INK, fontsize=9)
    return figure


def _entry(entries: np.ndarray, at: float, _: object) -> str:
    """The tick label at a column or row of the map."""
    return str(entries[int(at)]) if at == round(at) and 0 <= at < len(entries) else ""
