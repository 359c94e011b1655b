"""Tables with gaps: categories as zeros and ones, gaps filled from training rows."""

from collections.abc import Sequence

import numpy as np

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.federated import FederatedData


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


def filled(train: FederatedData, test: FederatedData, entry: str = "x") -> tuple[FederatedData, FederatedData]:
    """Gaps (NaN) become the client's mean over its training rows; where it knows none, that of all training rows.

    A column "missing", [N, F] uint8, says where the gaps were. Both federations share their arrays.

    Example:
        >>> x = np.array([[1.0], [3.0], [np.nan]])
        >>> whole = FederatedData({"x": x}, [0, 3])
        >>> made, _ = filled(FederatedData({"x": x}, [0, 2]), whole)
        >>> made.arrays["x"].tolist(), made.arrays["missing"].tolist()
        ([[1.0], [3.0], [2.0]], [[0], [0], [1]])
    """
    x = np.array(train.arrays[entry], np.float64)
    gap = np.isnan(x)
    rows = np.arange(train.num_examples) if train.index is None else train.index
    pooled = _means(x[rows], np.zeros(x.shape[1]))
    for k in range(train.num_clients):
        mean = _means(x[train.rows(k)], pooled)
        own = np.concatenate([train.rows(k), test.rows(k)])
        x[own] = np.where(gap[own], mean[None, :], x[own])
    arrays = {**train.arrays, entry: x.astype(np.float32), "missing": gap.astype(np.uint8)}
    make = lambda data: FederatedData(arrays, data.offsets, data.index, data.client_ids, data.about)  # noqa: E731
    return make(train), make(test)


def _means(x: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    known = ~np.isnan(x)
    return np.where(known.any(0), np.where(known, x, 0).sum(0) / np.maximum(known.sum(0), 1), otherwise)
