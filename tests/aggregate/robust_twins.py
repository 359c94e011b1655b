"""The robust rules in float64 NumPy, from their papers, on a matrix [n, d] of who contributes, in order of ids."""

import numpy as np


def trimmed_mean(x, f):
    n = len(x)
    return np.stack([sorted(column)[f : n - f] for column in x.T]).mean(axis=1)


def squared_distance(a, b):
    return float(((a - b) ** 2).sum())


def krum_score(x, i, others, neighbours):
    """Blanchard et al. 2017."""
    return sum(sorted(squared_distance(x[i], x[j]) for j in others if j != i)[:neighbours])


def krum_order(x, f):
    n = len(x)
    return sorted(range(n), key=lambda i: (krum_score(x, i, range(n), n - f - 2), i))


def krum(x, f):
    return x[krum_order(x, f)[0]]


def multi_krum(x, f, m=None):
    return x[krum_order(x, f)[: len(x) - f if m is None else m]].mean(axis=0)


def bulyan_chosen(x, f):
    """El Mhamdi et al. 2018, by Krum again and again."""
    left, chosen = list(range(len(x))), []
    for _ in range(len(x) - 2 * f):
        neighbours = max(len(left) - f - 2, 1)
        best = min(left, key=lambda i: (krum_score(x, i, left, neighbours), i))
        left.remove(best)
        chosen.append(best)
    return chosen


def bulyan(x, f):
    chosen = x[sorted(bulyan_chosen(x, f))]
    nearest = lambda column: sorted(column, key=lambda v: abs(v - np.median(column)))[: len(x) - 4 * f]
    return np.array([np.mean(nearest(column)) for column in chosen.T])


def geometric_median(x, iterations=3, nu=1e-6, weights=None):
    """Pillutla et al. 2022, Algorithm 2."""
    alpha = np.ones(len(x)) if weights is None else np.asarray(weights, float)
    v = np.average(x, axis=0, weights=alpha)
    for _ in range(iterations):
        beta = [a / max(nu, np.linalg.norm(row - v)) for a, row in zip(alpha, x, strict=True)]
        v = np.average(x, axis=0, weights=beta)
    return v


def centered_clipping(x, tau, iterations=1, start=0.0):
    """Karimireddy et al. 2021, Algorithm 2."""
    v = np.zeros(x.shape[1]) + start
    for _ in range(iterations):
        moves = [(row - v) * min(1.0, tau / max(np.linalg.norm(row - v), 1e-300)) for row in x]
        v = v + np.mean(moves, axis=0)
    return v


def norm_bound(x, bound):
    norms = np.linalg.norm(x, axis=1)
    bound = np.median(norms) if bound == "median" else bound
    return np.mean([row * min(1.0, bound / norm) if norm else row for row, norm in zip(x, norms, strict=True)], axis=0)


def dnc(x, f, c=1.0):
    """Shejwalkar and Houmansadr 2021, Algorithm 2, with all coordinates."""
    centred = x - x.mean(axis=0)
    v = np.linalg.svd(centred)[2][0]
    outlying = sorted(range(len(x)), key=lambda i: (-((centred[i] @ v) ** 2), i))
    return x[sorted(outlying[int(c * f) :])].mean(axis=0)


def nnm_mixed(x, f):
    """Allouah et al. 2023, Algorithm 2."""
    n = len(x)
    rows = []
    for i in range(n):
        near = sorted(range(n), key=lambda j: (-1.0 if j == i else squared_distance(x[i], x[j]), j))[: n - f]
        rows.append(x[near].mean(axis=0))
    return np.array(rows)


def buckets(x, order, s):
    """Karimireddy et al. 2022, Algorithm 1, of a given order."""
    return np.array([x[order[i : i + s]].mean(axis=0) for i in range(0, len(order), s)])
