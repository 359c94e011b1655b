"""Who talks to whom without a server: doubly stochastic matrices [N, N] for `fs.gossip`."""

import math

import numpy as np

from fedjax_sim.core.errors import ArgumentError, check, check_count


def complete(n: int) -> np.ndarray:
    """Everybody with everybody, each 1/n: one round is a mean.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.mixing.complete(2)
        array([[0.5, 0.5],
               [0.5, 0.5]])
    """
    check_count("n", n)
    return np.full((n, n), 1 / n)


def ring(n: int) -> np.ndarray:
    """Each with its two neighbours and itself, a third each.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.mixing.ring(5)[0].round(3)
        array([0.333, 0.333, 0.   , 0.   , 0.333])
    """
    check_count("n", n, minimum=3)
    return sum(np.roll(np.eye(n), shift, axis=1) for shift in (-1, 0, 1)) / 3  # type: ignore[return-value]


def torus(rows: int, columns: int) -> np.ndarray:
    """A grid whose ends meet: each with its four neighbours and itself, a fifth each.

    Example:
        >>> import fedjax_sim as fs
        >>> float(fs.mixing.torus(3, 4)[0].max())
        0.2
    """
    check_count("rows", rows, minimum=3)
    check_count("columns", columns, minimum=3)
    line = lambda n: np.roll(np.eye(n), 1, axis=1) + np.roll(np.eye(n), -1, axis=1)
    beside = np.kron(np.eye(rows), line(columns)) + np.kron(line(rows), np.eye(columns))
    return (np.eye(rows * columns) + beside) / 5


def exponential(n: int) -> np.ndarray:
    """Each hears itself and those 1, 2, 4, ... places on, in equal parts (Ying et al. 2021): few, and soon everybody.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.mixing.exponential(8)[0]
        array([0.25, 0.25, 0.25, 0.  , 0.25, 0.  , 0.  , 0.  ])
    """
    check_count("n", n, minimum=2)
    shifts = [0, *(2**i for i in range(math.ceil(math.log2(n))))]
    return sum(np.roll(np.eye(n), shift, axis=1) for shift in shifts) / len(shifts)  # type: ignore[return-value]


def erdos_renyi(n: int, probability: float, seed: int = 0) -> np.ndarray:
    """Each pair is joined with that probability; Metropolis weights, 1 / (1 + the larger degree) a pair.

    Raises:
        ArgumentError: the graph drawn is not connected: take a larger probability, or another seed.

    Example:
        >>> import fedjax_sim as fs
        >>> weights = fs.mixing.erdos_renyi(10, 0.5, seed=0)
        >>> bool((weights == weights.T).all())
        True
    """
    check_count("n", n, minimum=2)
    check(0 < probability <= 1, "probability", probability, "must lie in (0, 1].")
    upper = np.triu(np.random.default_rng(seed).random((n, n)) < probability, 1)
    joined = upper | upper.T
    if not is_connected(joined):
        raise ArgumentError(f"probability={probability}: the graph of seed={seed} is not connected: raise it.")
    degree = joined.sum(axis=1)
    weights = np.where(joined, 1 / (1 + np.maximum(degree[:, None], degree[None])), 0.0)
    return weights + np.diag(1 - weights.sum(axis=1))


def is_connected(joined: np.ndarray) -> bool:
    """Whether of [N, N] booleans a way leads from the first to everybody.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> fs.mixing.is_connected(np.eye(2) > 0)
        False
    """
    reached = np.zeros(len(joined), bool)
    reached[0], new = True, np.array([0])
    while len(new):
        new = np.flatnonzero(joined[new].any(axis=0) & ~reached)
        reached[new] = True
    return bool(reached.all())
