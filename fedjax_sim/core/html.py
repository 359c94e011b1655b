"""Small HTML tables, for what notebooks show of a value.

There are no scripts in them, and no colours but the text's own: they are as readable on dark as on light.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT, POINTS = 90, 18, 90  # of a sparkline: pixels, and points at most


class Markup(str):
    """HTML that goes into a table as it is; everything else is escaped."""


def facts(title: str, values: Mapping[str, object]) -> str:
    """A table with a row a name.

    Example:
        >>> from fedjax_sim.core import html
        >>> "&lt;b&gt;" in html.facts("Data", {"name": "<b>"})
        True
    """
    return _table(title, "".join(_row(_head(name, "row"), [value]) for name, value in values.items()))


def table(title: str, head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table with a row of names above the others; the first cell of each row is its name.

    Example:
        >>> from fedjax_sim.core import html
        >>> html.table("Rounds", ["round", "loss"], [[0, 2.5], [1, 1.5]]).count("<tr>")
        3
    """
    names = "".join(_head(name, "col") for name in head)
    body = "".join(_row(_head(first, "row"), rest) for first, *rest in rows)
    return _table(title, f"<tr>{names}</tr>{body}")


def sparkline(values: np.ndarray | Sequence[float]) -> Markup:
    """A small curve through the finite ones of [n] values; nothing where there are fewer than two.

    Example:
        >>> from fedjax_sim.core import html
        >>> html.sparkline([2.0, 1.0]).count("polyline"), html.sparkline([2.0])
        (1, '')
    """
    values = np.asarray(values, float)
    at = np.flatnonzero(np.isfinite(values))
    if len(at) < 2:
        return Markup("")
    at = at[np.unique(np.linspace(0, len(at) - 1, POINTS).round().astype(int))]
    low, high = values[at].min(), values[at].max()
    share = (values[at] - low) / (high - low) if high > low else np.full(len(at), 0.5)
    x = 1 + at / (len(values) - 1) * (WIDTH - 2)
    y = HEIGHT - 1 - share * (HEIGHT - 2)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return Markup(
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="curve">'
        f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="1.2"/></svg>'
    )


def _table(title: str, rows: str) -> str:
    return f"<table><caption>{_inner(title)}</caption>{rows}</table>"


def _row(head: str, cells: Sequence[object]) -> str:
    return f"<tr>{head}{''.join(f'<td>{_inner(cell)}</td>' for cell in cells)}</tr>"


def _head(name: object, scope: str) -> str:
    return f'<th scope="{scope}">{_inner(name)}</th>'


def _inner(cell: object) -> str:
    return cell if isinstance(cell, Markup) else escape(str(cell))
