"""Partitioners: functions that deal the rows of a central data set to clients.

Each maker validates its arguments and returns `(labels [N] or None, N, generator) -> Partition`.
"""

import numpy as np

from fedjax_sim.core.errors import ArgumentError, check, check_count, check_positive
from fedjax_sim.data.federated import Partition, Partitioner


def iid(num_clients: int) -> Partitioner:
    """Every client gets an equal share, drawn without replacement; shares differ by one row at most.

    Args:
        num_clients: K, at most the number of rows.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> fs.data.federate({"x": np.arange(7)}, fs.partition.iid(3)).sizes
        array([3, 2, 2])
    """
    check_count("num_clients", num_clients)

    def partition(labels: np.ndarray | None, num_rows: int, generator: np.random.Generator):
        del labels
        _check_enough(num_clients, num_rows)
        sizes = np.full(num_clients, num_rows // num_clients)
        sizes[: num_rows % num_clients] += 1
        return Partition(_offsets(sizes), generator.permutation(num_rows))

    return partition


def dirichlet(alpha: float, num_clients: int) -> Partitioner:
    r"""Class by class, split the class's rows over the clients in Dirichlet proportions.

    For each class independently :math:`p \sim \mathrm{Dir}_K(\alpha)`; the class's rows, shuffled, are cut at
    :math:`\mathrm{round}(n \cdot \mathrm{cumsum}(p))`. A client's share of a class has mean 1/K and variance
    :math:`(K-1) / (K^2 (K\alpha + 1))`. Small alpha: few clients hold most of a class. A client may end up
    empty; it then has weight 0. No draw is repeated to avoid that, as this would condition the law.

    This is the law of Yurochkin et al. (2019) and of NIID-Bench (Li et al. 2022). It is not Hsu et al.'s (2019),
    where each client draws its label distribution.

    Args:
        alpha: concentration for each client, positive.
        num_clients: K, at most the number of rows.

    Raises:
        ArgumentError: alpha <= 0, more clients than rows, no labels.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> y = np.arange(1000) % 10
        >>> data = fs.data.federate({"y": y}, fs.partition.dirichlet(alpha=0.1, num_clients=10))
        >>> int(data.sizes.sum())
        1000
    """
    check_positive("alpha", alpha, "Small values give skewed clients, large ones even.")
    check_count("num_clients", num_clients)

    def partition(labels: np.ndarray | None, num_rows: int, generator: np.random.Generator):
        labels = _check_labels(labels, "dirichlet")
        _check_enough(num_clients, num_rows)
        owner = np.empty(num_rows, np.int64)
        for label in np.unique(labels):
            rows = generator.permutation(np.flatnonzero(labels == label))
            cuts = np.rint(np.cumsum(_dirichlet(generator, alpha, num_clients)) * len(rows))
            cuts = np.concatenate([[0], cuts[:-1], [len(rows)]]).astype(np.int64)
            owner[rows] = np.repeat(np.arange(num_clients), np.diff(cuts))
        return _by_owner(owner, num_clients)

    return partition


def shards(num_clients: int, shards_per_client: int = 2) -> Partitioner:
    """Sort by label, cut into equal shards, give each client some: the pathological split of McMahan et al. (2017).

    Shards differ by one row at most. A shard may straddle two labels, so that a client of two shards sees up to
    four.

    Args:
        num_clients: K; K x shards_per_client is at most the number of rows.
        shards_per_client: shards of each client.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> data = fs.data.federate({"y": np.arange(1000) % 10}, fs.partition.shards(50))
        >>> max(len(np.unique(data.client(k)["y"])) for k in range(50))
        2
    """
    check_count("num_clients", num_clients)
    check_count("shards_per_client", shards_per_client)

    def partition(labels: np.ndarray | None, num_rows: int, generator: np.random.Generator):
        labels = _check_labels(labels, "shards")
        total = num_clients * shards_per_client
        check(
            total <= num_rows,
            "num_clients * shards_per_client",
            total,
            f"there are only {num_rows} rows; ask for fewer clients or shards.",
        )
        shard = np.empty(num_rows, np.int64)
        shard[np.argsort(labels, kind="stable")] = np.arange(num_rows) * total // num_rows
        return _by_owner(generator.permutation(total)[shard] // shards_per_client, num_clients)

    return partition


def _dirichlet(generator: np.random.Generator, alpha: float, size: int) -> np.ndarray:
    """One symmetric Dirichlet draw through log-gammas, which neither underflow nor give NaN at tiny alpha.

    If G ~ Gamma(alpha + 1) and U is uniform then G U^(1/alpha) ~ Gamma(alpha).
    """
    log_gamma = np.log(generator.standard_gamma(alpha + 1, size))
    log_gamma += np.log(generator.random(size)) / alpha
    weights = np.exp(log_gamma - log_gamma.max())
    return weights / weights.sum()


def _by_owner(owner: np.ndarray, num_clients: int) -> Partition:
    sizes = np.bincount(owner, minlength=num_clients)
    return Partition(_offsets(sizes), np.argsort(owner, kind="stable"))


def _offsets(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)])


def _check_enough(num_clients: int, num_rows: int) -> None:
    check(
        num_clients <= num_rows,
        "num_clients",
        num_clients,
        f"there are only {num_rows} examples; ask for fewer clients.",
    )


def _check_labels(labels: np.ndarray | None, name: str) -> np.ndarray:
    if labels is None:
        raise ArgumentError(
            f"fs.partition.{name} needs labels, and the arrays have none under that name: "
            'pass a dict with an entry "y", or federate(..., labels=NAME).'
        )
    check(labels.ndim == 1, "labels.shape", labels.shape, "must be [N], one label a row.")
    check(
        not np.any(labels != labels),  # NaN among objects and NaT too
        "labels",
        "NaN",
        "a label is missing; drop or fill those rows first.",
    )
    return labels
