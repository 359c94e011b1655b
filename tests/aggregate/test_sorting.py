"""Sorting networks against NumPy's sort, written out and layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim.aggregate.numerics import sorting


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 21])
@pytest.mark.parametrize("unrolled", [128, 0])
def test_rows_in_order(count, unrolled, monkeypatch):
    monkeypatch.setattr(sorting, "UNROLLED", unrolled)
    draw = np.random.default_rng(count)
    values = np.round(draw.normal(size=(count, 40)), 1).astype(np.float32)  # ties
    values[draw.random(values.shape) < 0.1] = np.inf
    found = jnp.stack(jax.jit(sorting.in_order)(values))
    np.testing.assert_array_equal(found, np.sort(values, axis=0))


@pytest.mark.parametrize("count", range(2, 14))
def test_a_network_sorts_all_zeros_and_ones(count):
    """Which then sorts everything (Knuth, TAOCP 3, Section 5.3.4, Theorem Z)."""
    rows = [np.array([bits >> i & 1 for bits in range(2**count)]) for i in range(count)]
    for layer in sorting._layers(count):
        assert len({place for pair in layer for place in pair}) == 2 * len(layer)
        for low, high in layer:
            rows[low], rows[high] = np.minimum(rows[low], rows[high]), np.maximum(rows[low], rows[high])
    assert (np.diff(np.array(rows), axis=0) >= 0).all()


def test_means_of_places():
    values = np.random.default_rng(0).normal(size=(9, 30)).astype(np.float32)
    there = np.array([True] * 5 + [False] + [True] * 3)
    ordered = np.sort(values[there], axis=0)
    for first, last in ((0, 7), (2, 2), (3, 4), (1, 6)):
        found = sorting.mean_of_places(jnp.asarray(values), jnp.asarray(there), first, last)
        np.testing.assert_allclose(found, ordered[first : last + 1].mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(sorting.mean_of_places(jnp.asarray(values), jnp.asarray(there), 4, 3), 0)
