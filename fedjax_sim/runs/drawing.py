"""What all figures share: the figure itself, its colours, its dress."""

import base64
import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#222222",
)  # Okabe and Ito's: told apart by all
DPI = 150
INK, GRID, FILL = "#333333", "#e3e3e3", "#8fbfe0"
BLUES = ("#d3e6f4", "#4a98c9", "#08306b")


def png(figure: "Figure") -> bytes:
    """A figure as a PNG file's bytes.

    Example:
        >>> from fedjax_sim.runs import plots
        >>> plots.png(plots.clients([1.0, 2.0], "loss"))[1:4]
        b'PNG'
    """
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def alternative(figure: "Figure") -> str:
    """A figure in words, for those who do not see it: its titles, what is drawn, and over what.

    Example:
        >>> from fedjax_sim.runs import drawing, plots
        >>> drawing.alternative(plots.curves({"round": [0, 1], "client/loss": [2.0, 1.0]}))
        'Figure of client/loss, over rounds completed'
    """
    every = figure.axes
    titles = [title for axes in every if (title := axes.get_title(loc="left"))]
    drawn = [label for axes in every if (label := axes.get_ylabel())]
    over = list(dict.fromkeys(label for axes in every if (label := axes.get_xlabel())))
    words = "; ".join([", ".join(part) for part in (titles, drawn) if part])
    return f"Figure of {words}" + (f", over {' and '.join(over)}" if over else "")


def svg(figure: "Figure") -> bytes:
    """A figure as an SVG file's bytes, the same for the same figure.

    Example:
        >>> from fedjax_sim.runs import drawing, plots
        >>> b"<svg" in drawing.svg(plots.clients([1.0, 2.0], "loss"))
        True
    """
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "fedjax_sim"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def new_figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # type: ignore[union-attr]
    # IPython shows bare Figures only once pyplot has told it how, and then without words; this tells it of this one.
    figure._repr_png_ = lambda: (png(figure), {"alt": alternative(figure)})  # type: ignore[attr-defined]
    figure._ipython_display_ = lambda: _display(figure)  # type: ignore[attr-defined]
    return figure


def _display(figure: "Figure") -> None:
    """Show a figure with its words in IPython, whatever pyplot registered for figures there."""
    from IPython.display import display

    picture = {"image/png": base64.b64encode(png(figure)).decode(), "text/plain": repr(figure)}
    display(picture, metadata={"image/png": {"alt": alternative(figure)}}, raw=True)


def dress(axes: "Axes", title: str) -> None:
    """Light lines, dark words."""
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def bins(values: np.ndarray) -> np.ndarray:
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


def people(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"
