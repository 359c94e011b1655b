"""Lloyd-Max quantisers of the standard normal law: the levels that lose least, computed rather than copied."""

import functools
import math
from typing import NamedTuple

import numpy as np

from fedjax_sim.core.errors import check


class Codebook(NamedTuple):
    """A scalar quantiser.

    Attributes:
        centroids: [2^b], increasing and symmetric.
        thresholds: [2^b - 1], half-way between neighbours.
        distortion: its mean squared error on a standard normal number.

    Example:
        >>> from fedjax_sim.aggregate.numerics.lloyd import gaussian_levels
        >>> gaussian_levels(1).centroids.round(4)
        array([-0.7979,  0.7979])
    """

    centroids: np.ndarray
    thresholds: np.ndarray
    distortion: float


@functools.cache
def gaussian_levels(bits: int) -> Codebook:
    r"""The Lloyd-Max quantiser of N(0, 1) with :math:`2^b` levels (Lloyd 1982, Max 1960).

    Each level is the mean of its cell, and each threshold lies half-way between two levels. The condition on the upper
    half of the levels (the lower one is its mirror image) is solved by Newton's method from Lloyd's own iteration.

    Args:
        bits: b, 1 to 8.

    Example:
        >>> from fedjax_sim.aggregate.numerics.lloyd import gaussian_levels
        >>> [round(gaussian_levels(bits).distortion, 5) for bits in (1, 2, 3, 4)]
        [0.36338, 0.11748, 0.03455, 0.0095]
    """
    check(bits in range(1, 9), "bits", bits, "must be 1 to 8.")
    half = 2 ** (bits - 1)
    levels = np.sqrt(3.0) * _quantiles((np.arange(half) + 0.5) / (2 * half) + 0.5)  # the cube-root law of fine levels
    for _ in range(50):
        levels = _means(levels)[0]
    for _ in range(50):
        means, jacobian = _means(levels)
        step = np.linalg.solve(np.eye(half) - jacobian, means - levels)
        levels = levels + step
        if np.abs(step).max() < 1e-13:
            break
    masses = _masses(levels)[0]
    thresholds = (levels[1:] + levels[:-1]) / 2
    return Codebook(
        np.concatenate([-levels[::-1], levels]),
        np.concatenate([-thresholds[::-1], [0.0], thresholds]),
        float(1 - 2 * masses @ levels**2),
    )


def _masses(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of the cells above zero, their edges, and the density there."""
    edges = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    tails = np.array([math.erfc(edge / math.sqrt(2)) / 2 for edge in edges])
    return tails[:-1] - tails[1:], edges, np.exp(-(edges**2) / 2) / math.sqrt(2 * math.pi)


def _means(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The means of the levels' cells, and their derivative by the levels."""
    masses, edges, density = _masses(levels)
    means = (density[:-1] - density[1:]) / masses
    low = density[:-1] * (means - edges[:-1]) / masses
    high = density[1:-1] * (edges[1:-1] - means[:-1]) / masses[:-1]
    jacobian = np.zeros((len(levels), len(levels)))
    for i in range(len(levels)):
        if i > 0:  # the edge below moves by half of either neighbour
            jacobian[i, i - 1 : i + 1] += low[i] / 2
        if i < len(levels) - 1:
            jacobian[i, i : i + 2] += high[i] / 2
    return means, jacobian


def _quantiles(probabilities: np.ndarray) -> np.ndarray:
    """Of the standard normal law."""
    from statistics import NormalDist

    return np.array([NormalDist().inv_cdf(p) for p in probabilities])
