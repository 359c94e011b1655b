"""Random places: distinct, each with the same chance, each pair too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim.aggregate.compress.sparsify import random_places

DRAWS = 6000


@pytest.mark.parametrize("size, count", [(1, 1), (2, 1), (11, 4), (17, 17), (64, 5), (65, 20)])
def test_places_are_distinct_and_any_set_as_likely(size, count):
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(8), i))(jnp.arange(DRAWS))
    places = np.asarray(jax.jit(jax.vmap(lambda key: random_places(key, size, count)))(keys))
    assert places.min() >= 0
    assert places.max() < size
    chosen = np.zeros((DRAWS, size))
    np.put_along_axis(chosen, places, 1, axis=1)
    assert np.all(chosen.sum(1) == count)
    share = count / size
    assert np.abs(chosen.mean(0) - share).max() <= 4.5 * np.sqrt(share * (1 - share) / DRAWS)
    if 1 < count < size:
        both = share * (count - 1) / (size - 1)
        pairs = (chosen.T @ chosen / DRAWS)[~np.eye(size, dtype=bool)]
        assert np.abs(pairs - both).max() <= 5 * np.sqrt(both * (1 - both) / DRAWS)
        first = np.bincount(places[:, 0], minlength=size) / DRAWS
        assert np.abs(first - 1 / size).max() <= 4.5 * np.sqrt(1 / size / DRAWS)
