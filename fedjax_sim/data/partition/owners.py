"""What partitioners share: from each row's owner to a `Partition`, Dirichlet draws, checks of labels and counts."""

import warnings

import numpy as np

from fedjax_sim.core.errors import ArgumentError, check
from fedjax_sim.data.federated import Partition

MANY = 20
"""So many different labels may be classes whatever they look like."""


def by_owner(owner: np.ndarray, num_clients: int) -> Partition:
    """Each client's rows in their order; rows whose owner is -1 belong to nobody.

    Args:
        owner: [N] integers, the client of each row.
        num_clients: K.

    Example:
        >>> import numpy as np
        >>> from fedjax_sim.data.partition.owners import by_owner
        >>> by_owner(np.array([1, 0, -1, 1]), 2)
        Partition(offsets=array([0, 1, 3]), index=array([1, 0, 3]))
    """
    order = np.argsort(owner, kind="stable")
    held = order[np.count_nonzero(owner < 0) :]
    return Partition(offsets(np.bincount(owner[held], minlength=num_clients)), held)


def offsets(sizes: np.ndarray) -> np.ndarray:
    """[K + 1] where each client begins and ends, from [K] sizes.

    Example:
        >>> import numpy as np
        >>> from fedjax_sim.data.partition.owners import offsets
        >>> offsets(np.array([2, 0, 3]))
        array([0, 2, 2, 5])
    """
    return np.concatenate([[0], np.cumsum(sizes)])


def log_dirichlet(generator: np.random.Generator, alpha: float | np.ndarray, size: int) -> np.ndarray:
    """Logarithms of the weights of one Dirichlet draw, up to a constant; finite at any alpha.

    If G ~ Gamma(alpha + 1) and U is uniform then G U^(1/alpha) ~ Gamma(alpha). As logarithms these neither underflow
    nor give NaN at tiny alpha, also where only some of the coordinates are looked at.

    Args:
        generator: where the draw comes from.
        alpha: concentration of each coordinate, a number or [size].
        size: number of coordinates.

    Returns:
        [size] float64.

    Example:
        >>> import numpy as np
        >>> from fedjax_sim.data.partition.owners import log_dirichlet, normalised
        >>> round(float(normalised(log_dirichlet(np.random.default_rng(0), 1e-9, 3)).max()), 6)
        1.0
    """
    log_gamma = np.log(generator.standard_gamma(alpha + 1, size))
    return log_gamma + np.log(generator.random(size)) / alpha


def normalised(log_weights: np.ndarray) -> np.ndarray:
    """Weights that sum to 1, from their logarithms.

    Example:
        >>> import numpy as np
        >>> from fedjax_sim.data.partition.owners import normalised
        >>> normalised(np.array([-5000.0, -5000.0]))
        array([0.5, 0.5])
    """
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


def check_enough(num_clients: int, num_rows: int, min_size: int = 0) -> None:
    """There are rows for `num_clients` of at least one, and of at least `min_size`."""
    check(
        num_clients <= num_rows,
        "num_clients",
        num_clients,
        f"there are only {num_rows} examples; ask for fewer clients.",
    )
    check(
        num_clients * min_size <= num_rows,
        "min_size",
        min_size,
        f"{num_clients} clients of that size need {num_clients * min_size} examples, there are {num_rows}; lower it.",
    )


def check_labels(labels: np.ndarray | None, name: str, classes: bool = True) -> np.ndarray:
    """Labels are there, [N], and none is missing; `name` is the partitioner's. Say it if they are not `classes`."""
    if labels is None:
        raise ArgumentError(
            f"fs.partition.{name} needs labels, and the arrays have none under that name: "
            'pass a dict with an entry "y", or federate(..., labels=NAME).'
        )
    labels = check_column(labels, "labels", "label")
    different = len(np.unique(labels)) if classes and labels.dtype.kind in "iuf" else 0
    fractions = labels.dtype.kind == "f" and bool(np.any(labels % 1 != 0))
    if different > MANY and (fractions or 2 * different > len(labels)):
        warnings.warn(
            f"fs.partition.{name} deals rows class by class, and the {len(labels)} labels have {different} different "
            "values: they are no classes. Cut them into ranges (np.digitize), and name these by labels=.",
            stacklevel=4,
        )
    return labels


def check_column(column: np.ndarray, name: str, what: str) -> np.ndarray:
    """A column is [N] and no entry is missing; `what` is the word for one entry."""
    check(column.ndim == 1, f"{name}.shape", column.shape, f"must be [N], one {what} a row.")
    gaps = column != column if column.dtype != object else np.array([_is_gap(value) for value in column], bool)
    if np.any(gaps):
        row = int(np.argmax(gaps))
        raise ArgumentError(
            f"{name}, row {row}: {column[row]!s:.20}: a {what} is missing; drop or fill those rows first."
        )
    return column


def _is_gap(value: object) -> bool:
    """None, NaN, and pandas' NA and NaT, of which NA cannot be compared."""
    try:
        return value is None or bool(value != value)
    except (TypeError, ValueError):
        return type(value).__name__ == "NAType"
