"""Quantity skew: clients' sizes follow a law, and what they hold is the same for all, drawn without replacement.

A law gives each client its share. Every client first gets `min_size` rows, and the rest are divided by the shares;
fractions of rows go by largest remainder, so that the sizes sum to the number of rows. No draw is repeated.
"""

import numpy as np

from fedjax_sim.core.errors import check_count, check_not_negative, check_positive
from fedjax_sim.data.federated import Partition, Partitioner
from fedjax_sim.data.partition.owners import check_enough, log_dirichlet, normalised, offsets


def quantity_dirichlet(alpha: float, num_clients: int, min_size: int = 0) -> Partitioner:
    r"""Shares of the rows are one Dirichlet draw: :math:`s \sim \mathrm{Dir}_K(\alpha)`.

    A share has mean 1/K and variance :math:`(K-1) / (K^2 (K\alpha + 1))`. The quantity skew of NIID-Bench (Li et al.
    2022); what the clients hold is iid.

    Args:
        alpha: concentration for each client, positive.
        num_clients: K, at most the number of rows.
        min_size: rows that every client gets before the rest are divided. Above 0 sizes are less skewed than the law.

    Raises:
        ArgumentError: alpha <= 0, K or K x min_size above the number of rows.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> data = fs.data.federate({"x": np.arange(100)}, fs.partition.quantity_dirichlet(0.5, 4, min_size=5))
        >>> int(data.sizes.sum()), bool(data.sizes.min() >= 5)
        (100, True)
    """
    check_positive("alpha", alpha, "Small values give skewed sizes, large ones even.")
    _check(num_clients, min_size)

    def partition(labels: np.ndarray | None, num_rows: int, generator: np.random.Generator):
        del labels
        return _divide(generator, normalised(log_dirichlet(generator, alpha, num_clients)), num_rows, min_size)

    return partition


def lognormal(sigma: float, num_clients: int, min_size: int = 0) -> Partitioner:
    r"""Shares are proportional to log-normal draws: :math:`s_k \propto \exp(\sigma z_k)`, :math:`z_k \sim N(0, 1)`.

    The law of the unbalanced sets of Acar et al. (2021, FedDyn); the mean of the normal does not matter to shares.

    Args:
        sigma: standard deviation of the logarithms, zero or more; 0 gives equal sizes.
        num_clients: K, at most the number of rows.
        min_size: rows that every client gets before the rest are divided. Above 0 sizes are less skewed than the law.

    Raises:
        ArgumentError: sigma < 0, K or K x min_size above the number of rows.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> fs.data.federate({"x": np.arange(7)}, fs.partition.lognormal(0.0, 3)).sizes
        array([3, 2, 2])
    """
    check_not_negative("sigma", sigma)
    _check(num_clients, min_size)

    def partition(labels: np.ndarray | None, num_rows: int, generator: np.random.Generator):
        del labels
        return _divide(generator, normalised(sigma * generator.standard_normal(num_clients)), num_rows, min_size)

    return partition


def power_law(exponent: float, num_clients: int, min_size: int = 0) -> Partitioner:
    r"""Client k's share is proportional to :math:`(k + 1)^{-a}`, Zipf's law; the first client is the largest.

    Args:
        exponent: a, zero or more; 0 gives equal sizes.
        num_clients: K, at most the number of rows.
        min_size: rows that every client gets before the rest are divided. Above 0 sizes are less skewed than the law.

    Raises:
        ArgumentError: exponent < 0, K or K x min_size above the number of rows.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> fs.data.federate({"x": np.arange(110)}, fs.partition.power_law(1.0, 3)).sizes
        array([60, 30, 20])
    """
    check_not_negative("exponent", exponent)
    _check(num_clients, min_size)

    def partition(labels: np.ndarray | None, num_rows: int, generator: np.random.Generator):
        del labels
        return _divide(generator, _numbers(num_clients) ** -exponent, num_rows, min_size)

    return partition


def linear(num_clients: int, min_size: int = 0) -> Partitioner:
    """Client k's share is proportional to k + 1: Flower's LinearPartitioner, but for fractions of rows.

    Flower rounds every size down and gives the last client what remains; here it goes by largest remainder, which
    differs by fewer than K rows. The same holds for `square` and `exponential`.

    Args:
        num_clients: K, at most the number of rows.
        min_size: rows that every client gets before the rest are divided. Above 0 sizes are less skewed than the law.

    Raises:
        ArgumentError: K or K x min_size above the number of rows.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> fs.data.federate({"x": np.arange(60)}, fs.partition.linear(3)).sizes
        array([10, 20, 30])
    """
    _check(num_clients, min_size)

    def partition(labels: np.ndarray | None, num_rows: int, generator: np.random.Generator):
        del labels
        return _divide(generator, _numbers(num_clients), num_rows, min_size)

    return partition


def square(num_clients: int, min_size: int = 0) -> Partitioner:
    """Client k's share is proportional to (k + 1) squared: Flower's SquarePartitioner, but for fractions of rows.

    Args:
        num_clients: K, at most the number of rows.
        min_size: rows that every client gets before the rest are divided. Above 0 sizes are less skewed than the law.

    Raises:
        ArgumentError: K or K x min_size above the number of rows.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> fs.data.federate({"x": np.arange(140)}, fs.partition.square(3)).sizes
        array([10, 40, 90])
    """
    _check(num_clients, min_size)

    def partition(labels: np.ndarray | None, num_rows: int, generator: np.random.Generator):
        del labels
        return _divide(generator, _numbers(num_clients) ** 2, num_rows, min_size)

    return partition


def exponential(num_clients: int, min_size: int = 0) -> Partitioner:
    """Client k's share is proportional to exp(k + 1): Flower's ExponentialPartitioner, but for fractions of rows.

    The last client holds 63 % of the rows, and the first of many none, unless there is a `min_size`.

    Args:
        num_clients: K, at most the number of rows.
        min_size: rows that every client gets before the rest are divided. Above 0 sizes are less skewed than the law.

    Raises:
        ArgumentError: K or K x min_size above the number of rows.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> fs.data.federate({"x": np.arange(1000)}, fs.partition.exponential(3)).sizes
        array([ 90, 245, 665])
    """
    _check(num_clients, min_size)

    def partition(labels: np.ndarray | None, num_rows: int, generator: np.random.Generator):
        del labels
        return _divide(generator, normalised(_numbers(num_clients)), num_rows, min_size)

    return partition


def _check(num_clients: int, min_size: int) -> None:
    check_count("num_clients", num_clients)
    check_count("min_size", min_size, minimum=0)


def _numbers(num_clients: int) -> np.ndarray:
    return np.arange(1.0, num_clients + 1)


def _divide(generator: np.random.Generator, weights: np.ndarray, num_rows: int, min_size: int) -> Partition:
    """Random rows, as many to each client as the weights say."""
    num_clients = len(weights)
    check_enough(num_clients, num_rows, min_size)
    rest = num_rows - num_clients * min_size
    quotas = weights * rest / weights.sum()
    sizes = np.floor(quotas).astype(np.int64)
    by_fraction = np.argsort(sizes - quotas, kind="stable")
    sizes[by_fraction[: rest - sizes.sum()]] += 1
    return Partition(offsets(sizes + min_size), generator.permutation(num_rows))
