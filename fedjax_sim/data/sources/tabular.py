"""Tables with gaps: categories as zeros and ones."""

from collections.abc import Sequence

import numpy as np

from fedjax_sim.core.errors import ArgumentError


def one_hot(values: Sequence[str], categories: Sequence[str], where: str, gaps: Sequence[str] = ("",)) -> np.ndarray:
    """[N, C] float32: 1 at each value's category; NaN in the rows of gaps.

    Example:
        >>> one_hot(["b", "", "a"], ["a", "b"], "column").tolist()
        [[0.0, 1.0], [nan, nan], [1.0, 0.0]]
    """
    column = np.asarray(values, str)
    unknown = sorted(set(column.tolist()) - set(categories) - set(gaps))
    if unknown:
        raise ArgumentError(f"{where}: holds {unknown[:3]}; must be of {list(categories)}.")
    marked = (column[:, None] == np.asarray(categories, str)[None, :]).astype(np.float32)
    marked[np.isin(column, gaps)] = np.nan
    return marked
