"""Zero-out neighbours with a noisy bit: what a client moves, measured on the chain, against what is claimed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize, stats

import fedjax_sim as fs

pytest.importorskip("dp_accounting")
ROUNDS, APART, CLIENTS, DELTA = 50, 5, 8, 1e-5
TASK = fs.Task(lambda key: jnp.zeros(1), lambda w, batch, key: jnp.sum((w[None] - batch["x"]) ** 2, axis=-1))
DATA = fs.FederatedData({"x": np.ones((40, 1), np.float32)}, np.arange(41))


def chain(z, z_bit):
    adaptive = fs.aggregate.adaptive_clip(0.5, bit_noise=z_bit / 2 / CLIENTS)
    return fs.aggregate.chain(adaptive, fs.aggregate.gaussian_noise(z), reduce=fs.aggregate.mean("uniform"))


def exact(times, multipliers, moves) -> float:
    """Epsilon of independent Gaussians, each released so many times: they are one, of the distance in all."""
    mu = (times * sum((move / z) ** 2 for z, move in zip(multipliers, moves, strict=True))) ** 0.5
    norm = stats.norm

    def delta(epsilon):
        tail = norm.logcdf(-mu / 2 - epsilon / mu)
        return norm.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon + tail)

    return float(optimize.brentq(lambda epsilon: delta(epsilon) - DELTA, 0, 500))  # type: ignore[arg-type]


def what_is_sent(aggregator, value):
    """One client's part of the value and of the bit, in units of the clip and in bits."""
    states, _ = aggregator.init(jnp.zeros(1))
    context = fs.aggregate.Context(jnp.int32(0), jnp.int32(0), jax.random.key(0), jnp.float32(jnp.inf))
    encoded = aggregator.encode(jax.random.key(1), states, None, jnp.full(1, value), context)
    return np.array([float(encoded.message[0]) / float(states[0]), float(encoded.sums[0])])


@pytest.mark.parametrize("z, z_bit", [(1.0, 2.0), (3.0, 1.0)])
def test_the_claim_bounds_a_client_that_sends_zeros_and_one_that_sends_nothing(z, z_bit):
    aggregator = chain(z, z_bit)
    sampler = fs.sampler.min_separation(CLIENTS, APART)
    sim = fs.Simulation(fs.fedavg(TASK, optax.sgd(0.1), aggregator=aggregator), DATA, sampler, fs.Batching(1))
    claim = sim.epsilon(rounds=ROUNDS, delta=DELTA)
    assert claim.adjacency == "zero-out"
    multipliers = (z, z_bit / 2)  # of the bit, the standard deviation of its noise
    nothing, zeros = np.zeros(2), what_is_sent(aggregator, 0.0)
    for value in (1e-6, 0.3, 0.5, 0.6, -100.0):
        sent = what_is_sent(aggregator, value)
        for neighbour in (nothing, zeros):
            below = exact(ROUNDS // APART, multipliers, np.abs(sent - neighbour))
            assert below <= claim.epsilon * (1 + 1e-3)
    worst = exact(ROUNDS // APART, multipliers, np.abs(what_is_sent(aggregator, -100.0) - zeros))
    np.testing.assert_allclose(claim.epsilon, worst, rtol=1e-3)  # and no less: it is reached


def test_both_readings_of_zeros():
    """A bit that is 0 for zeros moves by 1/2; were it 1/2, it would move by 1, and cost more than is claimed."""
    np.testing.assert_allclose(exact(10, (1.0, 1.0), (1.0, 0.5)), 20.68, atol=0.01)
    np.testing.assert_allclose(exact(10, (1.0, 1.0), (1.0, 1.0)), 28.37, atol=0.01)
    noise = chain(1.0, 2.0).mechanisms(CLIENTS)
    event = fs.sampler.min_separation(CLIENTS, APART).event
    assert event is not None
    claim = fs.privacy.epsilon(noise, event(40), ROUNDS, DELTA)
    np.testing.assert_allclose(claim.epsilon, 20.68, atol=0.01)
    bits = [what_is_sent(chain(1.0, 2.0), value)[1] for value in (0.0, 0.4, 0.6)]
    assert bits == [0.0, 0.5, -0.5]


def test_zeros_count_as_small_where_no_privacy_is_claimed():
    aggregator = fs.aggregate.chain(fs.aggregate.adaptive_clip(0.5, bit_noise=0))
    assert what_is_sent(aggregator, 0.0)[1] == 0.5
