"""The private and compressed experiment, on a small stand-in: its chains, what they cost, and what a run reports."""

import dataclasses

import jax
import numpy as np
import pytest

import fedjax_sim as fs
from experiments.private_compressed import config as experiment
from fedjax_sim.data.fetch.sets import CentralData

SMALL = experiment.Config(rounds=2, num_clients=40, probability=0.2, eval_every=1, client_lr=0.05)
NUMBERS = 784 * 32 + 32 + 32 * 10 + 10


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """Pictures as bright as their label; the real set's shapes and dtypes."""

    def split(rows):
        y = (np.arange(rows) % 10).astype(np.int32)
        return {"x": np.broadcast_to(25 * y[:, None, None, None], (rows, 28, 28, 1)).astype(np.uint8), "y": y}

    monkeypatch.setattr(fs.data, "load", lambda name: CentralData(split(300), split(50), name))


def uplink(**changes):
    """Bits that a client sends."""
    sim = experiment.build(dataclasses.replace(SMALL, **changes))
    _, metrics = sim.step(sim.init())
    return metrics["aggregate/uplink_bits"] / metrics["cohort/contributed"]


@pytest.mark.parametrize(
    "changes, bits",
    [
        ({}, 32 * NUMBERS),
        ({"compression": "bfloat16"}, 16 * NUMBERS),
        ({"compression": "quantize", "bits": 4}, 4 * NUMBERS),
        ({"compression": "drive"}, 2**15 + 64),
        ({"compression": "secure"}, (8 + 5) * 2**15),  # a Poisson cohort of 8 from 40 has room for 24
        ({"compression": "top_k"}, (32 + 15) * -(-NUMBERS // 100)),
    ],
    ids=str,
)
def test_what_a_client_sends(changes, bits):
    assert NUMBERS == 25_450
    assert uplink(**changes) == pytest.approx(bits, rel=0.002)


def test_the_private_preset_costs_what_it_says(caplog):
    config = experiment.PRESETS["private"]
    small = dataclasses.replace(config, num_clients=SMALL.num_clients)
    sim = experiment.build(small)
    spent = sim.epsilon(rounds=config.rounds, delta=config.delta)
    assert 0.9 * config.epsilon < spent.epsilon <= config.epsilon
    state, history = sim.run(sim.init(), 2, eval_every=1)
    assert np.isfinite(jax.flatten_util.ravel_pytree(sim.params(state))[0]).all()
    assert {"test/accuracy", "test/loss", "privacy/epsilon", "aggregate/signal_to_noise"} <= set(history)
    assert caplog.text == ""  # the accountant does not speak of orders that it leaves out


def test_noise_falls_as_epsilon_grows():
    def noise(epsilon):
        sim = experiment.build(dataclasses.replace(SMALL, epsilon=epsilon))
        (mechanism,) = sim.algorithm.aggregator.mechanisms(sim.parts.expected)
        return mechanism.multiplier

    assert noise(1.0) > noise(8.0) > 0
    assert not experiment.build(SMALL).algorithm.aggregator.facts.noisy
    assert experiment.build(dataclasses.replace(SMALL, noise_multiplier=0.7)).algorithm.aggregator.facts.noisy
    with pytest.raises(fs.FedSimError, match="give one of them"):
        experiment.build(dataclasses.replace(SMALL, noise_multiplier=0.7, epsilon=3.0))


def test_the_model_on_the_way_down_can_be_compressed():
    sim = experiment.build(dataclasses.replace(SMALL, downlink_levels=256))
    _, metrics = sim.step(sim.init())
    received = metrics["aggregate/downlink_bits"] / metrics["cohort/contributed"]
    assert received == pytest.approx(8 * NUMBERS, rel=0.02)
