"""How far clients differ: their sizes, their classes, and the distance of their class frequencies from everybody's."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_sim.core import html
from fedjax_sim.core.errors import ArgumentError, check
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.partition.owners import check_column

QUANTILES = (0, 10, 50, 90, 100)  # percent


@dataclasses.dataclass(frozen=True, repr=False)
class Statistics:
    """What `statistics` found. Clients without a row have NaN for what needs one.

    Attributes:
        sizes: [K] int64, rows of each client.
        classes: [C] the classes among the clients' rows, sorted.
        frequencies: [C] float64, each class's share of the rows of all clients together, the pool.
        classes_per_client: [K] int64, how many different classes a client holds.
        divergence: [K] float64, Jensen-Shannon divergence, in bits, of a client's class frequencies from the pool's:
            0 where they are the same, below 1 where they differ.
        effective_classes: [K] float64, the exponential of the entropy of a client's class frequencies: n for n
            classes in equal numbers, less where some are rare.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> data = fs.data.FederatedData({"y": np.array([0, 0, 1, 1])}, offsets=[0, 2, 4])
        >>> fs.data.statistics(data).classes_per_client
        array([1, 1])
    """

    sizes: np.ndarray
    classes: np.ndarray
    frequencies: np.ndarray
    classes_per_client: np.ndarray
    divergence: np.ndarray
    effective_classes: np.ndarray

    @property
    def mean_divergence(self) -> float:
        """Mean of the divergences, in bits, clients weighted by their rows: what a row's client tells of its class."""
        held = self.sizes > 0
        return float(np.average(self.divergence[held], weights=self.sizes[held]))

    @property
    def size_quantiles(self) -> dict[int, float]:
        """Percent to the quantile of the sizes: 0, 10, 50, 90 and 100 %."""
        return dict(zip(QUANTILES, np.percentile(self.sizes, QUANTILES).tolist(), strict=True))

    def _facts(self) -> dict[str, str]:
        def spread(values: np.ndarray) -> str:
            low, middle, high = np.percentile(values[self.sizes > 0], [0, 50, 100])
            return f"min {low:.3g}, median {middle:.3g}, max {high:.3g}"

        sizes = ", ".join(f"{value:g}" for value in self.size_quantiles.values())
        empty = int(np.count_nonzero(self.sizes == 0))
        return {
            "clients": f"{len(self.sizes)}" + (f", {empty} without a row" if empty else ""),
            "examples of a client": f"{sizes} (0, 10, 50, 90, 100 %)",
            "classes": f"{len(self.classes)}",
            "classes of a client": spread(self.classes_per_client),
            "effective classes of a client": spread(self.effective_classes),
            "divergence from the pool": f"{spread(self.divergence)}, mean {self.mean_divergence:.3g} bits",
        }

    def __repr__(self) -> str:
        return "Statistics(\n" + "".join(f"    {name}: {value}\n" for name, value in self._facts().items()) + ")"

    def _repr_html_(self) -> str:
        return html.facts("Statistics", self._facts())


def statistics(data: FederatedData, labels: str = "y") -> Statistics:
    r"""Sizes, classes and label skew of a federation.

    With client k's class frequencies :math:`p_k`, the pool's p and their mean :math:`m = (p_k + p) / 2`, the
    divergence is :math:`\frac12 \sum p_k \log_2 (p_k / m) + \frac12 \sum p \log_2 (p / m)`.

    Args:
        data: the federation; its arrays are a dict.
        labels: the entry that holds the classes, [N].

    Returns:
        `Statistics`, which notebooks show as a table.

    Raises:
        ArgumentError: no such entry, labels missing, no client with a row.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> data = fs.data.FederatedData({"y": np.array([0, 1, 1, 0, 1, 1])}, offsets=[0, 3, 6, 6])
        >>> fs.data.statistics(data)
        Statistics(
            clients: 3, 1 without a row
            examples of a client: 0, 0.6, 3, 3, 3 (0, 10, 50, 90, 100 %)
            classes: 2
            classes of a client: min 2, median 2, max 2
            effective classes of a client: min 1.89, median 1.89, max 1.89
            divergence from the pool: min 0, median 0, max 0, mean 0 bits
        )
    """
    column = data.arrays.get(labels) if isinstance(data.arrays, Mapping) else None
    if column is None:
        raise ArgumentError(f"labels={labels!r}: the arrays have no entry of that name; pass labels=NAME.")
    check(data.num_examples > 0, "data", data, "no client has a row; there is nothing to count.")
    held: Any = column[: data.num_examples] if data.index is None else column[data.index]
    held = check_column(np.asarray(held), labels, "label")
    classes, row_class, pooled = np.unique(held, return_inverse=True, return_counts=True)
    pool = pooled / pooled.sum()

    # One entry for each pair of a client and a class of its own: there may be far fewer than K x C.
    K, C, sizes = data.num_clients, len(classes), data.sizes
    pair, count = np.unique(np.repeat(np.arange(K), sizes) * C + row_class, return_counts=True)
    owner = pair // C
    p, q = count / sizes[owner], pool[pair % C]
    m = (p + q) / 2
    shared = p * np.log2(p / m) + q * np.log2(q / m)
    # A class that the client lacks has m = q / 2 and adds q; these add up to 1 less those it has.
    divergence = (np.bincount(owner, shared, K) + 1 - np.bincount(owner, q, K)) / 2
    entropy = -np.bincount(owner, p * np.log(p), K)
    empty = sizes == 0
    return Statistics(
        sizes,
        classes,
        pool,
        np.bincount(owner, minlength=K),
        np.where(empty, np.nan, np.where(divergence < 1e-12, 0.0, divergence)),  # rounding may leave less than 0
        np.where(empty, np.nan, np.exp(entropy)),
    )
