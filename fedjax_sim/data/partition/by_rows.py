"""Partitioners: functions that deal the rows of a central data set to clients.

Each maker validates its arguments and returns `(labels [N] or None, N, generator) -> Partition`. Here are those that
go by rows, labels or a column; `mixtures` has those by which every client has its own mixture of classes, and `sizes`
those by which only the sizes differ. All are `fs.partition.NAME`.
"""

from collections.abc import Iterable

import numpy as np

from fedjax_sim.core.errors import ArgumentError, check, check_count, check_positive
from fedjax_sim.data.federated import Partition, Partitioner
from fedjax_sim.data.partition.owners import (
    by_owner,
    check_column,
    check_enough,
    check_labels,
    log_dirichlet,
    normalised,
    offsets,
)

TRIES = 100  # of a law that is drawn again until every client is large enough


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
        check_enough(num_clients, num_rows)
        sizes = np.full(num_clients, num_rows // num_clients)
        sizes[: num_rows % num_clients] += 1
        return Partition(offsets(sizes), generator.permutation(num_rows))

    return partition


def dirichlet(alpha: float, num_clients: int, min_size: int = 0) -> Partitioner:
    r"""Class by class, split the class's rows over the clients in Dirichlet proportions.

    For each class independently :math:`p \sim \mathrm{Dir}_K(\alpha)`; the class's rows, shuffled, are cut at
    :math:`\mathrm{round}(n \cdot \mathrm{cumsum}(p))`. A client's share of a class has mean 1/K and variance
    :math:`(K-1) / (K^2 (K\alpha + 1))`. Small alpha: few clients hold most of a class. A client may end up
    empty; it then has weight 0.

    With `min_size`, the whole partition is drawn again until every client has that many rows. This conditions the
    law: skewed partitions are dropped more often, so that shares vary less than by the formula. At 0 nothing is
    drawn again, and the law is as it stands.

    This is the law of Yurochkin et al. (2019) and of NIID-Bench (Li et al. 2022). It is not Hsu et al.'s (2019),
    where each client draws its label distribution: see `dirichlet_labels`.

    Args:
        alpha: concentration for each client, positive.
        num_clients: K, at most the number of rows.
        min_size: rows that every client must have; NIID-Bench and Flower take 10.

    Labels that are no classes, as continuous targets are, make a `UserWarning`: each value would be a class of a row or
    two, and alpha would say nothing of skew.

    Raises:
        ArgumentError: alpha <= 0, more clients than rows, no labels, or 100 draws none of which had `min_size`
            rows for every client.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> y = np.arange(1000) % 10
        >>> data = fs.data.federate({"y": y}, fs.partition.dirichlet(alpha=0.1, num_clients=10))
        >>> int(data.sizes.sum())
        1000
        >>> data = fs.data.federate({"y": y}, fs.partition.dirichlet(alpha=0.5, num_clients=10, min_size=10))
        >>> bool(data.sizes.min() >= 10)
        True
    """
    check_positive("alpha", alpha, "Small values give skewed clients, large ones even.")
    check_count("num_clients", num_clients)
    check_count("min_size", min_size, minimum=0)

    def draw(labels: np.ndarray, num_rows: int, generator: np.random.Generator):
        owner = np.empty(num_rows, np.int64)
        for label in np.unique(labels):
            rows = generator.permutation(np.flatnonzero(labels == label))
            shares = normalised(log_dirichlet(generator, alpha, num_clients))
            cuts = np.rint(np.cumsum(shares) * len(rows))
            cuts = np.concatenate([[0], cuts[:-1], [len(rows)]]).astype(np.int64)
            owner[rows] = np.repeat(np.arange(num_clients), np.diff(cuts))
        return by_owner(owner, num_clients)

    def partition(labels: np.ndarray | None, num_rows: int, generator: np.random.Generator):
        labels = check_labels(labels, "dirichlet")
        check_enough(num_clients, num_rows, min_size)
        largest = 0  # of the smallest clients
        for _ in range(TRIES):
            made = draw(labels, num_rows, generator)
            smallest = int(np.diff(made.offsets).min())
            if smallest >= min_size:
                return made
            largest = max(largest, smallest)
        raise ArgumentError(
            f"min_size={min_size}: in {TRIES} draws the smallest client had at most {largest} rows; "
            f"lower min_size or num_clients={num_clients}, or raise alpha={alpha}."
        )

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
        labels = check_labels(labels, "shards", classes=False)
        total = num_clients * shards_per_client
        check(
            total <= num_rows,
            "num_clients * shards_per_client",
            total,
            f"there are only {num_rows} rows; ask for fewer clients or shards.",
        )
        shard = np.empty(num_rows, np.int64)
        shard[np.argsort(labels, kind="stable")] = np.arange(num_rows) * total // num_rows
        return by_owner(generator.permutation(total)[shard] // shards_per_client, num_clients)

    return partition


def pathological(classes_per_client: int, num_clients: int, assign: str = "random") -> Partitioner:
    """Every client holds exactly c classes, and every row belongs to a client.

    First the classes are assigned. "random": they are dealt like cards, c to a client after another, from a shuffled
    deck that is shuffled anew whenever it runs out; a client that meets the end of a deck gets no class twice. So the
    numbers of clients that hold a class differ by one at most. "deterministic": client k holds the sorted classes
    k, k + 1, ..., k + c - 1 modulo C, Flower's mode of that name. (Flower's "random" lets each client draw by itself,
    and may leave classes, with all their rows, to nobody.) Then each class's rows, shuffled, are split evenly over
    the clients that hold it; shares differ by one row at most.

    The split of NIID-Bench (Li et al. 2022, "#C = c"), and in spirit of McMahan et al. (2017), whose own is `shards`.

    Args:
        classes_per_client: c, at most the number C of classes.
        num_clients: K; large enough that every class gets a client, and small enough that each of a class's clients
            gets a row of it.
        assign: "random" or "deterministic".

    Raises:
        ArgumentError: no labels, c above C, classes without a client, classes with fewer rows than clients.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> data = fs.data.federate({"y": np.arange(1000) % 10}, fs.partition.pathological(3, num_clients=20))
        >>> {len(np.unique(data.client(k)["y"])) for k in range(20)}, data.num_examples
        ({3}, 1000)
    """
    check_count("classes_per_client", classes_per_client)
    check_count("num_clients", num_clients)
    check(assign in ("random", "deterministic"), "assign", assign, 'must be "random" or "deterministic".')
    c, K = classes_per_client, num_clients

    def partition(labels: np.ndarray | None, num_rows: int, generator: np.random.Generator):
        labels = check_labels(labels, "pathological")
        classes, row_class = np.unique(labels, return_inverse=True)
        C = len(classes)
        check(c <= C, "classes_per_client", c, f"there are only {C} classes.")
        reached = K * c if assign == "random" else K + c - 1
        check(reached >= C, "num_clients", K, f"{C - reached} of {C} classes would go to nobody; ask for more clients.")
        held, dealt = np.zeros((K, C), bool), np.zeros(C, np.int64)
        for k in range(K):
            own = (k + np.arange(c)) % C
            if assign == "random":  # those dealt the fewest times are what is left of the deck
                own = np.lexsort((generator.random(C), dealt))[:c]
            held[k, own] = True
            dealt[own] += 1
        owner = np.empty(num_rows, np.int64)
        for label in range(C):
            rows = generator.permutation(np.flatnonzero(row_class == label))
            takers = generator.permutation(np.flatnonzero(held[:, label]))
            if len(rows) < len(takers):
                raise ArgumentError(
                    f"num_clients={K}: {len(takers)} clients are to hold class {classes[label]}, which has only "
                    f"{len(rows)} rows; ask for fewer clients or classes_per_client."
                )
            owner[rows] = takers[np.arange(len(rows)) % len(takers)]
        return by_owner(owner, K)

    return partition


def by_column(values: Iterable[object]) -> Partitioner:
    """One client for each value of a column: the natural partition of data that say whose each row is.

    Clients are in the order of the sorted values, as in Flower's NaturalIdPartitioner. Nothing is drawn. A partition
    has no names; to keep them give `client_ids=np.unique(values)` to a `FederatedData` of the same offsets and index.

    Args:
        values: [N] integers, strings or other values that can be sorted: the writer, speaker or hospital of each row.

    Raises:
        ArgumentError: not one value a row; a value that is missing (None, NaN, an empty text), with its row; values
            that cannot be sorted.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> hospital = np.array(["Zurich", "Basel", "Zurich", "Basel", "Zurich"])
        >>> data = fs.data.federate({"x": np.arange(5)}, fs.partition.by_column(hospital))
        >>> data.sizes, data.client(0)["x"]
        (array([2, 3]), array([1, 3]))
    """
    if not isinstance(values, np.ndarray) and not hasattr(values, "__array__"):
        values = _as_they_are(values)  # NumPy would write NaN among texts as "nan", and 1 as "1"
    column = check_column(np.asarray(values), "values", "value")
    if column.dtype.kind in "OSU" and (empty := np.flatnonzero((column == "") | (column == b"")).tolist()):
        raise ArgumentError(f"values, row {empty[0]}: is an empty text; name the client, or drop the row.")
    try:
        clients, owner = np.unique(column, return_inverse=True)
    except TypeError as error:
        raise ArgumentError(f"values: cannot be sorted ({error}); make them all strings or all numbers.") from None

    def partition(labels: np.ndarray | None, num_rows: int, generator: np.random.Generator):
        del labels, generator
        check(len(owner) == num_rows, "len(values)", len(owner), f"must be the number of rows, {num_rows}.")
        return by_owner(owner, len(clients))

    return partition


def _as_they_are(values: Iterable[object]) -> np.ndarray:
    values = list(values)
    column = np.empty(len(values), object)
    column[:] = values
    kinds = {type(value) for value in values}
    return np.asarray(values) if len(kinds) == 1 else column
