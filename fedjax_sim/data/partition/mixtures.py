"""Label skew by mixtures: every client has its own distribution over classes and draws its rows by it.

Rows are drawn without replacement. A class that has no row left is passed over, and the draw falls on the others in
the proportions they had.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedjax_sim.core.errors import ArgumentError, check, check_count, check_positive
from fedjax_sim.data.federated import Partitioner
from fedjax_sim.data.partition.owners import by_owner, check_column, check_enough, check_labels, log_dirichlet


def dirichlet_labels(
    alpha: float,
    num_clients: int,
    prior: Sequence[float] | np.ndarray | None = None,
    sizes: int | Sequence[int] | np.ndarray | None = None,
    per_coordinate: bool = False,
) -> Partitioner:
    r"""Every client draws a distribution over classes from a Dirichlet law, and its rows by it.

    Client k draws :math:`q_k \sim \mathrm{Dir}(\alpha p)`, with p the prior over C classes; then each of its rows
    takes a class from :math:`q_k` and, of that class, a row that nobody has, without replacement. A class that has
    run out is passed over, the others renormalised. Clients draw one after another, in a random order: none is
    worse off for its number, but the last ones take what is left, and are less skewed than the law when all rows
    are given out. As long as no class runs out, :math:`q_k` has mean p and variance
    :math:`p_c (1 - p_c) / (\alpha + 1)`.

    This is the law of Hsu et al. (2019, arXiv 1909.06335); their alpha is the *total* concentration. Much code takes
    alpha for each class instead: `per_coordinate=True` is :math:`\mathrm{Dir}(\alpha, \ldots, \alpha)`, which is the
    total C alpha under an even prior. So Hsu's 1 over 10 classes is 0.1 for each class. There is no exact conversion
    to the alpha of `dirichlet`, which splits classes over clients: neither the sizes nor the mixtures of its clients
    follow this law.

    Args:
        alpha: concentration, positive: in total, or for each class.
        num_clients: K, at most the number of rows.
        prior: [C] positive weights of the sorted classes, by default the classes' frequencies.
        sizes: rows of every client, or [K]; by default N // K each, which leaves N mod K rows to nobody.
        per_coordinate: alpha is the concentration of every class.

    Raises:
        ArgumentError: alpha <= 0, no labels, a prior that does not fit the classes or goes with `per_coordinate`,
            more rows asked for than there are.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> y = np.arange(1000) % 10
        >>> fs.data.federate({"y": y}, fs.partition.dirichlet_labels(alpha=0.1, num_clients=8)).sizes
        array([125, 125, 125, 125, 125, 125, 125, 125])
    """
    check_positive("alpha", alpha, "Small values give clients of few classes, large ones of all.")
    check_count("num_clients", num_clients)
    sizes = _check_sizes(sizes, num_clients)
    if prior is not None:
        if per_coordinate:
            raise ArgumentError("prior: per_coordinate=True has no prior, as every class has alpha; leave one away.")
        prior = np.asarray(prior, float)
        good = prior.ndim == 1 and bool(np.all(np.isfinite(prior) & (prior > 0)))
        check(good, "prior", prior, "must be [C] positive numbers, one for each class.")

    def partition(labels: np.ndarray | None, num_rows: int, generator: np.random.Generator):
        labels = check_labels(labels, "dirichlet_labels")
        wanted = _sizes(sizes, num_clients, num_rows)
        classes, row_class, left = np.unique(labels, return_inverse=True, return_counts=True)
        weights = left if prior is None else prior
        check(len(weights) == len(classes), "len(prior)", len(weights), f"there are {len(classes)} classes.")
        concentration = np.full(len(classes), alpha) if per_coordinate else alpha * weights / weights.sum()
        drawn = np.zeros((num_clients, len(classes)), np.int64)
        for k in generator.permutation(num_clients):
            drawn[k] = _draw(generator, log_dirichlet(generator, concentration, len(classes)), left, int(wanted[k]))
            left = left - drawn[k]
        return by_owner(_deal(generator, drawn, row_class), num_clients)

    return partition


def pachinko(
    alpha: float,
    beta: float,
    num_clients: int,
    coarse_labels: npt.ArrayLike,
    sizes: int | Sequence[int] | np.ndarray | None = None,
) -> Partitioner:
    r"""Pachinko allocation: every client has a mixture of coarse classes, and within each a mixture of its classes.

    Client k draws :math:`\theta \sim \mathrm{Dir}(\alpha, \ldots, \alpha)` over the coarse classes, and for each of
    these :math:`\theta_g \sim \mathrm{Dir}(\beta, \ldots, \beta)` over the classes in it. Each of its rows takes a
    coarse class, then a class, then a row that nobody has, without replacement. A class that has run out is passed
    over within its coarse class; a coarse class, once all of its classes have. Clients draw one after another, in a
    random order; the last take what is left.

    The law of Reddi et al. (2021, arXiv 2003.00295, appendix) after Li and McCallum (2006): CIFAR-100 in TensorFlow
    Federated is alpha 0.1 and beta 10 over 20 coarse classes of 5, 500 clients of 100 rows.

    Args:
        alpha: concentration of each coarse class, positive.
        beta: concentration of each class within its coarse class, positive.
        num_clients: K, at most the number of rows.
        coarse_labels: [N] the coarse class of each row; with a table by class, `table[labels]`.
        sizes: rows of every client, or [K]; by default N // K each, which leaves N mod K rows to nobody.

    Raises:
        ArgumentError: alpha or beta <= 0, no labels, a class in two coarse classes, more rows asked for than there
            are.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> y = np.arange(1200) % 12
        >>> partitioner = fs.partition.pachinko(0.1, 10.0, num_clients=6, coarse_labels=y // 4)
        >>> fs.data.federate({"y": y}, partitioner).sizes
        array([200, 200, 200, 200, 200, 200])
    """
    check_positive("alpha", alpha, "Small values give clients of few coarse classes.")
    check_positive("beta", beta, "Small values give few classes within a coarse class.")
    check_count("num_clients", num_clients)
    sizes = _check_sizes(sizes, num_clients)
    coarse = check_column(np.asarray(coarse_labels), "coarse_labels", "coarse label")

    def partition(labels: np.ndarray | None, num_rows: int, generator: np.random.Generator):
        labels = check_labels(labels, "pachinko")
        check(len(coarse) == num_rows, "len(coarse_labels)", len(coarse), f"must be the number of rows, {num_rows}.")
        wanted = _sizes(sizes, num_clients, num_rows)
        classes, row_class, left = np.unique(labels, return_inverse=True, return_counts=True)
        groups, row_group = np.unique(coarse, return_inverse=True)
        group = np.empty(len(classes), np.int64)  # of each class
        group[row_class] = row_group
        if np.any(group[row_class] != row_group):
            label = classes[row_class[np.argmax(group[row_class] != row_group)]]
            raise ArgumentError(f"coarse_labels: class {label} lies in two coarse classes; each class belongs to one.")
        members = [np.flatnonzero(group == g) for g in range(len(groups))]
        drawn = np.zeros((num_clients, len(classes)), np.int64)
        for k in generator.permutation(num_clients):
            left_in_group = np.bincount(group, left, len(groups)).astype(np.int64)
            counts = _draw(generator, log_dirichlet(generator, alpha, len(groups)), left_in_group, int(wanted[k]))
            for g in np.flatnonzero(counts):
                own = members[g]
                drawn[k, own] = _draw(generator, log_dirichlet(generator, beta, len(own)), left[own], int(counts[g]))
            left = left - drawn[k]
        return by_owner(_deal(generator, drawn, row_class), num_clients)

    return partition


def _draw(generator: np.random.Generator, log_weights: np.ndarray, left: np.ndarray, number: int) -> np.ndarray:
    """How many of `number` single draws, renormalised whenever a class runs out, fall on each class.

    Draws of a class that has run out are as good as never made. So all are made at once, those above what is left
    are thrown away, and as many made anew among the other classes: the same law, in one step for each such time.
    """
    counts = np.zeros(len(left), np.int64)
    while number > 0:
        there = np.flatnonzero(left > counts)
        weights = np.exp(log_weights[there] - log_weights[there].max())
        taken = np.minimum(generator.multinomial(number, weights / weights.sum()), (left - counts)[there])
        counts[there] += taken
        number -= int(taken.sum())
    return counts


def _deal(generator: np.random.Generator, drawn: np.ndarray, row_class: np.ndarray) -> np.ndarray:
    """[N] the owner of each row, -1 for nobody's: random ones of class c go to client k, `drawn[k, c]` of them."""
    owner = np.full(len(row_class), -1, np.int64)
    for label, numbers in enumerate(drawn.T):
        rows = generator.permutation(np.flatnonzero(row_class == label))
        owner[rows[: numbers.sum()]] = np.repeat(np.arange(len(numbers)), numbers)
    return owner


def _check_sizes(sizes: npt.ArrayLike | None, num_clients: int) -> np.ndarray | None:
    if sizes is None:
        return None
    array = np.asarray(sizes)
    good = array.dtype.kind in "iu" and array.shape in ((), (num_clients,)) and bool(np.all(array >= 0))
    check(good, "sizes", sizes, f"must be a whole number of rows, or one for each of {num_clients} clients.")
    return np.broadcast_to(array.astype(np.int64), (num_clients,))


def _sizes(sizes: np.ndarray | None, num_clients: int, num_rows: int) -> np.ndarray:
    check_enough(num_clients, num_rows)
    if sizes is None:
        return np.full(num_clients, num_rows // num_clients)
    total = int(sizes.sum())
    check(total <= num_rows, "sum(sizes)", total, f"there are only {num_rows} rows; ask for fewer.")
    return sizes
