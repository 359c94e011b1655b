"""Correlated noise against its matrices: what is added round by round is the difference of the sums' noise."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import fedjax_sim as fs
from fedjax_sim.aggregate.privacy.correlated_noise import banded_sensitivity

SHAPES = {"a": jnp.zeros((4000,)), "b": jnp.zeros(())}


def added(transform, rounds, seeds=1, shapes=SHAPES, bound=1.0):
    """What the server side adds to a sum of zeros: [rounds, numbers] over all leaves, for each seed."""
    state, row = transform.init(shapes)
    assert row is None
    zero = jax.tree.map(jnp.zeros_like, shapes)

    @jax.jit
    def run(seed):
        def body(state, round):
            key = jax.random.fold_in(jax.random.key(seed), round)
            out = fs.Aggregate(zero, jnp.ones(()), jnp.ones(()), bound=jnp.asarray(bound, jnp.float32))
            out, state, _ = transform.server(key, state, out)
            return state, jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(out.value)])

        return jax.lax.scan(body, state, jnp.arange(rounds))[1]

    return np.concatenate([np.asarray(run(seed)) for seed in range(seeds)], axis=1).astype(np.float64)


def accepts(sample, sigma):
    """A Kolmogorov-Smirnov test that the sample is N(0, sigma^2)."""
    return stats.kstest(sample / sigma, "norm").pvalue > 1e-4


@pytest.mark.parametrize("efficient", [False, True])
def test_the_trees_sums_have_the_nodes_noise(efficient):
    noise = added(fs.aggregate.tree_noise(2.0, separation=8, efficient=efficient), 11, bound=0.5)
    height = np.arange(4)
    node = 1 / (2 - 0.5**height) if efficient else np.ones(4)
    sums = np.cumsum(noise[:8], axis=0)
    for t in range(1, 9):
        expected = sum(node[h] for h in range(4) if t >> h & 1) ** 0.5  # popcount(t) nodes
        assert accepts(sums[t - 1], expected)
        assert not accepts(sums[t - 1], expected * 1.5)
        assert not accepts(sums[t - 1], expected / 1.5)
    if not efficient:
        np.testing.assert_allclose(sums[7].var(), 1, rtol=0.1)
        assert [bin(t).count("1") for t in range(1, 9)] == np.round(sums.var(axis=1), 0).astype(int).tolist()
    # A new tree knows nothing of the old one.
    again = np.cumsum(noise[8:], axis=0)
    assert accepts(again[0], 1.0)
    assert abs(np.corrcoef(again[0], sums[7])[0, 1]) < 0.06


def test_honakers_estimate_is_the_best_one():
    # By least squares on a whole tree: the top node from its own noise and from the leaves' side.
    for height in range(5):
        precision = 1.0
        for _ in range(height):
            precision = 1 + precision / 2  # its own observation, and two children together
        np.testing.assert_allclose(1 / precision, 1 / (2 - 0.5**height))


def test_the_tree_resumes_from_its_state():
    transform = fs.aggregate.tree_noise(1.0, separation=4)
    state, _ = transform.init({"w": jnp.zeros(3)})
    out = fs.Aggregate({"w": jnp.zeros(3)}, jnp.ones(()), jnp.ones(()), bound=jnp.ones(()))
    for round in range(3):
        _, state, _ = transform.server(jax.random.key(round), state, out)
    stored = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), state)
    straight, resumed = (transform.server(jax.random.key(3), s, out)[0].value["w"] for s in (state, stored))
    np.testing.assert_array_equal(straight, resumed)
    assert not any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(state))


COLUMN = [1.0, 0.5, 0.375]


def toeplitz(column, n):
    return sum(np.diag(np.full(n - k, c), -k) for k, c in enumerate(column[:n]))


def test_banded_noise_is_the_inverse_of_its_matrix():
    """In rounds past those that are planned, too, whose noise stays that of the plan."""
    pytest.importorskip("jax_privacy")
    n, planned, bound, z = 7, 5, 0.5, 0.8
    transform = fs.aggregate.banded_noise(z, bands=3, rounds=planned, coefficients=COLUMN)
    noise = added(transform, n, bound=bound)
    sigma = z * bound * banded_sensitivity(COLUMN, 3, planned)
    inverse = np.linalg.inv(toeplitz(COLUMN, n))
    np.testing.assert_allclose(noise @ noise.T / noise.shape[1] / sigma**2, inverse @ inverse.T, atol=0.12)
    white = toeplitz(COLUMN, n) @ noise
    for row in white:
        assert accepts(row, sigma)
        assert not accepts(row, sigma * 1.5)
        assert not accepts(row, sigma / 1.5)
    for t, row in enumerate(noise):
        assert accepts(row, sigma * np.linalg.norm(inverse[t]))


def test_one_band_is_independent_noise():
    pytest.importorskip("jax_privacy")
    transform = fs.aggregate.banded_noise(2.0, bands=1, rounds=4, separation=4, coefficients=[3.0])
    noise = added(transform, 4)
    np.testing.assert_allclose(noise @ noise.T / noise.shape[1], 4 * np.eye(4), atol=0.4)


@pytest.mark.parametrize("rounds, separation", [(7, 3), (6, 3), (8, 4), (3, 3), (1, 3), (5, 9)])
def test_the_sensitivity_is_the_worst_participation(rounds, separation):
    worst = 0.0
    for pattern in itertools.product([0, 1], repeat=rounds):
        at = np.flatnonzero(pattern)
        if (np.diff(at) >= separation).all():
            worst = max(worst, np.linalg.norm(toeplitz(COLUMN, rounds)[:, at].sum(axis=1)))
    np.testing.assert_allclose(banded_sensitivity(COLUMN, separation, rounds), worst, rtol=1e-12)


def test_the_sensitivity_is_jax_privacys():
    package = pytest.importorskip("jax_privacy.matrix_factorization")
    for rounds, separation in ((7, 3), (12, 4), (6, 6)):
        matrix = jnp.asarray(toeplitz(COLUMN, rounds), jnp.float32)
        theirs = package.sensitivity.get_sensitivity_banded(matrix, separation)
        np.testing.assert_allclose(banded_sensitivity(COLUMN, separation, rounds), theirs, rtol=1e-6)
        column = jnp.asarray(COLUMN)
        squared = package.toeplitz.minsep_sensitivity_squared(column, separation, n=rounds)
        np.testing.assert_allclose(banded_sensitivity(COLUMN, separation, rounds) ** 2, squared, rtol=1e-6)


def test_the_strategy_is_better_than_independent_noise():
    package = pytest.importorskip("jax_privacy.matrix_factorization")
    transform = fs.aggregate.banded_noise(1.0, bands=4, rounds=16)
    column = np.asarray(transform.facts(fs.aggregate.Facts(clipped=True)).noise[0].details["sensitivity"].args[0])
    assert column.shape == (4,)
    error = lambda c: float(package.toeplitz.per_query_error(strategy_coef=jnp.asarray(c), n=16).mean())
    assert error(column / np.linalg.norm(column)) < 0.8 * error([1.0])


def test_the_bound_that_clipped_scales_the_noise():
    small, large = (added(fs.aggregate.tree_noise(1.0, 4), 2, bound=bound) for bound in (1.0, 3.0))
    np.testing.assert_allclose(3 * small, large, rtol=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: fs.aggregate.tree_noise(0.0, 4), r"multiplier=0\.0: must be positive"),
        (lambda: fs.aggregate.tree_noise(1.0, 0), r"separation=0: must be a whole number"),
        (lambda: fs.aggregate.banded_noise(1.0, 5, 4), r"bands=5: must be at most rounds=4"),
        (lambda: fs.aggregate.banded_noise(1.0, 3, 9, separation=2), r"separation=2: must be at least bands=3"),
        (lambda: fs.aggregate.banded_noise(1.0, 2, 9, coefficients=[1.0]), r"must be 2 finite numbers"),
        (lambda: fs.aggregate.chain(fs.aggregate.tree_noise(1.0, 4)), r"tree_noise.* needs a bound"),
    ],
)
def test_what_is_wrong_is_refused(make, message):
    pytest.importorskip("jax_privacy")
    with pytest.raises(fs.FedSimError, match=message):
        make()


def test_the_value_of_other_fields_is_kept():
    transform = fs.aggregate.tree_noise(1.0, 2)
    state, _ = transform.init({"w": jnp.zeros(2, jnp.bfloat16)})
    given = fs.Aggregate({"w": jnp.ones(2, jnp.bfloat16)}, jnp.ones(()), jnp.full((), 3.0), bound=jnp.ones(()))
    after, _, metrics = transform.server(jax.random.key(0), state, given)
    assert after.value["w"].dtype == jnp.float32  # noise is not rounded to a shorter type
    assert dataclasses.replace(after, value=None) == dataclasses.replace(given, value=None)
    assert float(metrics["noise_std"].compute()) == 1.0
