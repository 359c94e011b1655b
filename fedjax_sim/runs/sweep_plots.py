"""Figures of sweeps: a metric over two hyperparameters, and with its error setting by setting."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fedjax_sim.core.errors import check
from fedjax_sim.runs.drawing import BLUES, COLOURS, INK, dress, new_figure
from fedjax_sim.runs.spread import SAID

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def heatmap(
    settings: Sequence[Mapping[str, object]],
    values: Sequence[float],
    x: str,
    y: str,
    title: str,
    mode: Literal["min", "max"] = "max",
) -> "Figure":
    """A number over two hyperparameters; the best cell is framed, cells without a finite number are blank.

    Args:
        settings: [S] dicts of hyperparameters.
        values: [S].
        x, y: two of their names. Of several settings that share a cell, the best is shown.
        title: what the numbers are.
        mode: which of them are best.

    Returns:
        A `matplotlib.figure.Figure`.

    Example:
        >>> from fedjax_sim.runs import sweep_plots
        >>> settings = [{"lr": lr, "mu": mu} for lr in (0.1, 0.2) for mu in (0.0, 1.0)]
        >>> figure = sweep_plots.heatmap(settings, [0.5, 0.6, 0.7, float("nan")], "mu", "lr", "test/accuracy")
        >>> [word.get_text() for word in figure.axes[0].texts]
        ['0.5', '0.6', '0.7']
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    check(len(settings) == len(values), "values", len(values), f"there are {len(settings)} settings.")
    columns, rows = (_sorted([setting[name] for setting in settings]) for name in (x, y))
    better = np.fmin if mode == "min" else np.fmax
    cells = np.full((len(rows), len(columns)), np.nan)
    for setting, value in zip(settings, values, strict=True):
        at = rows.index(setting[y]), columns.index(setting[x])
        cells[at] = better(cells[at], value if np.isfinite(value) else np.nan)
    figure = new_figure(1.6 + 0.85 * len(columns), 1.3 + 0.55 * len(rows))
    axes = figure.subplots()
    colours = BLUES[::-1] if mode == "min" else BLUES
    image = axes.imshow(cells, cmap=LinearSegmentedColormap.from_list("sweep", colours), aspect="auto", origin="lower")
    low, high = image.get_clim()
    for (i, j), value in np.ndenumerate(cells):
        if np.isfinite(value):
            share = 0.5 if high <= low else (value - low) / (high - low)
            dark = (1 - share if mode == "min" else share) > 0.5
            axes.text(j, i, f"{value:.4g}", ha="center", va="center", fontsize=8.5, color="white" if dark else INK)
    if np.isfinite(cells).any():
        at = np.nanargmin(cells) if mode == "min" else np.nanargmax(cells)
        i, j = np.unravel_index(at, cells.shape)
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=COLOURS[1], linewidth=2.2))
    dress(axes, title)
    axes.grid(False)
    axes.set_xticks(range(len(columns)), [_word(value) for value in columns])
    axes.set_yticks(range(len(rows)), [_word(value) for value in rows])
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure


def error_bars(labels: Sequence[str], means: Sequence[float], errors: Sequence[float], title: str) -> "Figure":
    """A mean and its 95 % t-interval for each label, top down; one without a finite mean is said to have diverged.

    Args:
        labels: [S].
        means: [S].
        errors: [S] half of each interval; NaN for none.
        title: what the numbers are.

    Returns:
        A `matplotlib.figure.Figure`.

    Example:
        >>> from fedjax_sim.runs import sweep_plots
        >>> figure = sweep_plots.error_bars(["lr=0.1", "lr=9"], [0.5, float("nan")], [0.1, float("nan")], "accuracy")
        >>> [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
        ['lr=0.1', 'lr=9 (none)']
    """
    check(len(labels) == len(means) == len(errors), "means", len(means), f"there are {len(labels)} labels.")
    middle, spread = np.asarray(means, float), np.nan_to_num(np.asarray(errors, float))
    places = np.arange(len(labels))
    real = np.isfinite(middle)
    figure = new_figure(6.4, 1.0 + 0.3 * len(labels))
    axes = figure.subplots()
    axes.errorbar(
        middle[real], places[real], xerr=spread[real], fmt="o", color=COLOURS[0], markersize=5, capsize=3, linewidth=1.6
    )
    dress(axes, f"{title}, mean and {SAID}")
    axes.set_yticks(places, [label if ok else f"{label} (none)" for label, ok in zip(labels, real, strict=True)])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    return figure


def _sorted(values: Sequence[Any]) -> list[Any]:
    """The different values, numbers in order, others as they come."""
    found = list(dict.fromkeys(values))
    return sorted(found) if all(isinstance(value, int | float) for value in found) else found


def _word(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
