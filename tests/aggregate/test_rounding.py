"""Stochastic rounding: the probabilities between the steps of a byte, retries, and the last resort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim.aggregate.compress.rotate import spread
from fedjax_sim.aggregate.numerics.hadamard import rotate_randomly
from fedjax_sim.aggregate.numerics.rounding import norm_bound, round_up_or_down, round_within

KEYS = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(5), i))(jnp.arange(20_000))


def test_rounding_is_unbiased_between_the_steps_of_a_byte():
    """A probability of 1/1000 is none of the 256 that a byte alone can give."""
    x = np.array([0.001, 0.3, 0.9985, -0.001, -2.25, 7.0, 0.0], np.float32)
    rounded = np.asarray(jax.jit(jax.vmap(lambda key: round_up_or_down(key, jnp.asarray(x))))(KEYS))
    f = x % 1
    np.testing.assert_array_equal(rounded[:, 5:], np.tile(x[5:], (len(KEYS), 1)))
    assert np.all((rounded == np.floor(x)) | (rounded == np.floor(x) + 1))
    assert np.all(np.abs(rounded.mean(0) - x) <= 5 * np.sqrt(f * (1 - f) / len(KEYS)) + 1e-6)


@pytest.mark.parametrize("norm, dim", [(127.0, 1), (5.0, 100), (0.0, 64), (1000.0, 2**18)])
def test_the_bound_is_the_papers(norm, dim):
    slack = np.sqrt(2 * np.log(1 / np.exp(-0.5))) * (norm + np.sqrt(dim) / 2)
    expected = min(norm + np.sqrt(dim), np.sqrt(norm**2 + dim / 4 + slack))
    np.testing.assert_allclose(norm_bound(norm, dim), expected, rtol=1e-6)


def test_conditional_rounding_retries_until_it_is_within():
    x, limit = jnp.full(64, 0.5), 5.7  # of norm 4, and 5.7 after rounding, give or take
    rounded, tries = jax.jit(jax.vmap(lambda key: round_within(key, x, limit)))(KEYS[:500])
    assert np.linalg.norm(rounded, axis=1).max() <= limit
    plain = jax.jit(jax.vmap(lambda key: round_up_or_down(key, x)))(KEYS[:500])
    assert np.linalg.norm(plain, axis=1).max() > limit
    assert 1.3 < tries.mean() < 3
    assert tries.max() > 3


def test_when_no_try_is_within_the_last_resort_is():
    x = {"a": jnp.array([0.5, -1.5, 2.0]), "b": jnp.full(500, 0.9)}
    rounded, tries = jax.jit(round_within)(KEYS[0], x, 3.0)
    assert tries == 30
    np.testing.assert_array_equal(rounded["a"], [0, -1, 2])
    assert not rounded["b"].any()


def test_a_rotation_spreads_as_promised():
    x = jax.random.normal(KEYS[0], (512,))
    x = x / jnp.linalg.norm(x)
    peaks = jax.jit(jax.vmap(lambda key: jnp.abs(rotate_randomly(key, x)).max()))(KEYS[:2000])
    assert peaks.max() < spread(512)  # of a million rotations one may pass
    assert np.median(peaks) > spread(512) / 3
