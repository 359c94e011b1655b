"""Neighbours and thresholds, by other tails, other graphs, and by playing."""

import itertools

import numpy as np
import pytest
from scipy import stats
from scipy.sparse.csgraph import connected_components

import fedjax_sim as fs
from fedjax_sim.core import rng
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.rng import Purpose
from fedjax_sim.secure.graph import neighbourhoods


def fails(n, k, t, dropout, corrupt):
    """The three chances by scipy's hypergeometric law."""
    bad, gone = int(np.ceil(corrupt * n)), int(np.ceil(dropout * n))
    many = n * stats.hypergeom.sf(t - 1, n - 1, bad, k)
    few = n * stats.hypergeom.cdf(t - 1, n - 1, n - 1 - gone, k)
    return many, few, n * (dropout + corrupt) ** (k / 2)


@pytest.mark.parametrize("n, dropout, corrupt, failure", [(1000, 0.05, 0.05, 2**-40), (400, 0.1, 0.2, 1e-6)])
def test_the_fewest_that_hold(n, dropout, corrupt, failure):
    made = fs.secure.choose(n, dropout, corrupt, failure)
    np.testing.assert_allclose(made[2:], fails(n, *made[:2], dropout, corrupt), rtol=1e-6, atol=1e-30)
    assert max(made[2:]) <= failure
    assert made.threshold > made.neighbours / 2
    for t in range(made.neighbours // 2, made.neighbours - 1):
        assert max(fails(n, made.neighbours - 2, t, dropout, corrupt)) > failure or 2 * t <= made.neighbours - 2


def test_a_part_is_cut_off_only_by_a_run_of_half_the_neighbours():
    """All sets of clients that may be missing, of 9 with 4 neighbours each."""
    n, k = 9, 4
    near = neighbourhoods(list(range(n)), k, seed=0, round=0)
    circle = rng.generator(0, Purpose.SECURE, 0).permutation(n)
    adjacent = np.array([[v in near[u] for v in circle] for u in circle])
    cut = 0
    for missing in itertools.product([False, True], repeat=n):
        there = ~np.asarray(missing)
        parts = connected_components(adjacent[np.ix_(there, there)])[0] if there.any() else 1
        cut += parts > 1
        assert parts == 1 or any(all(missing[(i + j) % n] for j in range(k // 2)) for i in range(n))
    assert cut > 0


@pytest.mark.parametrize(
    "given, message",
    [
        ((20, 0.2, 0.2), "n=20: no k below 19 .* use fs.secure.bonawitz"),
        ((2, 0.1, 0.1), "n=2"),
        ((100, 1.5, 0.1), "dropout=1.5"),
        ((100, 0.1, -0.1), "corrupt=-0.1"),
        ((100, 0.6, 0.5), "leaves nobody honest"),
        ((100, 0.1, 0.1, 0.0), "failure=0.0"),
    ],
)
def test_what_cannot_be_chosen(given, message):
    with pytest.raises(ArgumentError, match=message):
        fs.secure.choose(*given)
