"""Noise: the right scale and no other, the right law, the right place in a chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import fedjax_sim as fs
from fedjax_sim.aggregate import chain, clip_by_l2, mean
from fedjax_sim.aggregate.privacy import distributed_noise as discrete
from fedjax_sim.aggregate.privacy.distributed_noise import discrete_gaussian, skellam

D = 4000
UNIFORM = mean("uniform")
KEY = jax.random.key(3)


def context(**changes):
    start = fs.aggregate.Context(jnp.int32(1), jnp.int32(0), KEY, jnp.float32(jnp.inf))
    return start._replace(**changes)


def release(aggregator, count=3.0, key=KEY, total=None, **options):
    """The server's side for a sum of zeros: the noise over the expected cohort, and the metrics."""
    shapes = jnp.zeros(D)
    states, _ = aggregator.init(shapes)
    bound, step = aggregator.bound_and_step(states, shapes)
    total = jnp.zeros(D) if total is None else total
    aggregate = fs.Aggregate(total, jnp.float32(count), jnp.float32(count), bound=bound, step=step, **options)
    out, states, metrics = aggregator.server(key, states, aggregate, 10.0)
    return np.asarray(out.value), metrics, states


def only(draws, law, sigma):
    """KS accepts the right sigma and rejects 2/3 and 3/2 of it."""
    assert stats.kstest(draws, law(scale=sigma).cdf).pvalue > 1e-3
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(draws, law(scale=wrong * sigma).cdf).pvalue < 1e-6


def test_central_noise_has_the_scale_of_the_clip_over_the_expected_cohort():
    for count in (3.0, 0.0):  # an empty cohort's noise is released too
        drawn, metrics, _ = release(chain(clip_by_l2(2.0), fs.aggregate.gaussian_noise(0.7), reduce=UNIFORM), count)
        only(drawn, stats.norm, 0.7 * 2.0 / 10)
        assert metrics["signal_to_noise"].compute() == 0


def test_noise_is_scaled_by_the_bound_at_the_chains_end_wherever_it_stands():
    coarse = fs.aggregate.Transform("coarse", bound=lambda state, incoming, dim: incoming + 0.5 * dim**0.5)
    after = 2.0 + 0.5 * D**0.5
    for transforms in (
        (clip_by_l2(2.0), fs.aggregate.gaussian_noise(0.7), coarse),
        (clip_by_l2(2.0), coarse, fs.aggregate.gaussian_noise(0.7)),
    ):
        drawn, _, _ = release(chain(*transforms, reduce=UNIFORM))
        only(drawn, stats.norm, 0.7 * after / 10)


def test_noise_is_drawn_in_float32_and_follows_the_key_alone():
    aggregator = chain(clip_by_l2(1.0), fs.aggregate.gaussian_noise(1.0), reduce=UNIFORM)
    a, b, c = (release(aggregator, key=k)[0] for k in (KEY, KEY, jax.random.key(4)))
    assert a.dtype == np.float32
    assert (a == b).all()
    assert np.abs(np.corrcoef(a, c)[0, 1]) < 0.1
    coarse, _, _ = release(aggregator, total=jnp.zeros(D, jnp.bfloat16))
    assert coarse.dtype == np.float32
    np.testing.assert_array_equal(coarse, a)


def test_signal_to_noise_is_the_sums_norm_over_the_noises():
    aggregator = chain(clip_by_l2(1.0), fs.aggregate.gaussian_noise(0.5), reduce=UNIFORM)
    _, metrics, _ = release(aggregator, total=jnp.full(D, 0.25))
    np.testing.assert_allclose(metrics["signal_to_noise"].compute(), 0.25 / 0.5, rtol=1e-5)


def encode(aggregator, payload, **changes):
    states, rows = aggregator.init(payload)
    return aggregator.encode(jax.random.key(9), states, rows, payload, context(**changes))


def test_local_noise_is_each_clients_own():
    aggregator = chain(clip_by_l2(2.0), fs.aggregate.local_gaussian_noise(3.0), reduce=UNIFORM)
    encoded = encode(aggregator, jnp.zeros(D))
    only(np.asarray(encoded.message), stats.norm, 6.0)
    np.testing.assert_allclose(encoded.sums[1], 36.0)
    total = 10.0 + 6.0 * np.sqrt(4) * np.random.default_rng(0).normal(size=D)
    _, metrics, _ = release(aggregator, 4.0, total=jnp.asarray(total, jnp.float32), sums=(None, jnp.float32(4 * 36)))
    np.testing.assert_allclose(metrics["signal_to_noise"].compute(), 10 / 12, rtol=0.1)
    assert not aggregator.facts.clipped


def test_local_laplace_noise_clips_in_l1():
    aggregator = chain(fs.aggregate.local_laplace_noise(0.5, 4.0), reduce=UNIFORM)
    only(np.asarray(encode(aggregator, jnp.zeros(D)).message), stats.laplace, 2.0)
    one = jnp.zeros(D).at[0].set(100.0)
    shift = np.asarray(encode(aggregator, one).message - encode(aggregator, jnp.zeros(D)).message)
    np.testing.assert_allclose(np.abs(shift).sum(), 0.5, atol=1e-4)


# Integers


def discrete_pmf(k, sigma):
    reach = np.arange(-int(60 * sigma) - 60, int(60 * sigma) + 61)
    return np.exp(-(k**2) / (2 * sigma**2)) / np.exp(-(reach**2) / (2 * sigma**2)).sum()


def skellam_pmf(k, sigma):
    return special.ive(np.abs(k), sigma**2)


def fit(drawn, pmf, sigma):
    """The p-value of a chi-square test of draws against the probabilities of the integers."""
    edge, n = max(int(4 * sigma), 1), len(drawn)
    k = np.arange(-edge, edge + 1)
    found, expected = np.array([(drawn == j).sum() for j in k]), n * pmf(k)
    found, expected = np.append(found, n - found.sum()), np.append(expected, n - expected.sum())
    rare = expected < 5  # together, with a number that the expectation of nothing still allows
    found, expected = np.append(found[~rare], found[rare].sum()), np.append(expected[~rare], expected[rare].sum())
    return stats.chi2.sf(((found - expected) ** 2 / np.maximum(expected, 1)).sum(), len(found) - 1)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 5.5, 6.5, 40.0])
@pytest.mark.parametrize("law, pmf", [(discrete_gaussian, discrete_pmf), (skellam, skellam_pmf)])
def test_integer_noise_has_the_exact_law(law, pmf, sigma):
    """Chi-square against the exact probabilities, which rejects 2/3 and 3/2 of sigma, and a rounded Gaussian's."""
    n = 200_000
    drawn = np.asarray(jax.jit(law, static_argnums=2)(jax.random.key(11), sigma, (n,)))
    assert drawn.dtype == np.int32

    p_value = lambda wrong: fit(drawn, lambda k: pmf(k, wrong * sigma), sigma)
    assert p_value(1.0) > 1e-4
    assert p_value(2 / 3) < 1e-9
    assert p_value(3 / 2) < 1e-9
    np.testing.assert_allclose(drawn.mean(), 0, atol=5 * sigma / n**0.5)


def test_rejection_makes_a_discrete_gaussian_of_rounded_ones():
    """At sigma 1, where rounding shows, and where rejection has work to do."""
    n, sigma = 200_000, 1.0
    drawn = np.asarray(discrete._by_rejection(jax.random.key(0), jnp.float32(sigma), jnp.zeros(n, jnp.int32)))
    assert fit(drawn, lambda k: discrete_pmf(k, sigma), sigma) > 1e-4
    rounded = np.round(np.random.default_rng(0).normal(0, sigma, n))
    assert fit(rounded, lambda k: discrete_pmf(k, sigma), sigma) < 1e-9


@pytest.mark.parametrize("kind", ["discrete_gaussian_noise", "skellam_noise"])
def test_a_client_adds_its_share_and_survivors_are_counted(kind):
    """sigma in units of the step; fewer contributors than expected add less noise, and the metric says so."""
    step = 0.01
    whole = fs.aggregate.Transform(
        "whole",
        client=lambda key, state, row, payload, context: (jnp.round(payload / step).astype(jnp.int32), row, {}),
        facts=lambda facts: facts._replace(integers=True, largest=200.0),
        step=lambda state, incoming, bound, dim: step,
    )
    noise = getattr(fs.aggregate, kind)
    for survivors in (None, 4.0):
        stages = clip_by_l2(2.0), whole, noise(0.5, survivors=survivors), fs.aggregate.secure_sum()
        aggregator = chain(*stages, reduce=UNIFORM)
        bare = context(expected=10.0, bound=jnp.float32(2.0), step=jnp.float32(step))
        message, _, _ = stages[2].client(KEY, None, None, jnp.zeros(D, jnp.int32), bare)
        np.testing.assert_allclose(np.std(message), 0.5 * 2 / step / (survivors or 10) ** 0.5, rtol=0.05)
        total = jnp.zeros(D, jnp.uint32)
        _, metrics, _ = release(aggregator, count=5.0, total=total)
        np.testing.assert_allclose(metrics["noise_multiplier"].compute(), 0.5 * (5 / (survivors or 10)) ** 0.5)
        assert aggregator.mechanisms(10.0)[0].details == {"survivors": survivors}
