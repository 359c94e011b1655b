"""The hospitals, on a small stand-in: moments by a secure sum, what is standardised by them, and a secure round."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from experiments.hospitals import config as experiment

SMALL = experiment.Config(rounds=1, eval_every=1, batch_size=8)
SIZES = np.array([9, 14, 6, 11])


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """Four hospitals whose patients differ; the second never measures the fifth feature."""
    draw = np.random.default_rng(0)
    site = np.repeat(np.arange(4), SIZES)
    x = draw.uniform(0, 1, (SIZES.sum(), 8)).astype(np.float32) * [80, 180, 400, 200, 8, 3, 1, 1]
    x[:, 0] += 4 * site
    x[site == 1, 4] = np.nan
    x[::5, 3] = np.nan
    whole = {"x": x.astype(np.float32), "y": (np.arange(len(x)) % 2).astype(np.int32)}
    data = fs.FederatedData(whole, np.concatenate([[0], np.cumsum(SIZES)]))
    train, test = fs.data.split(data, 0.2)
    monkeypatch.setattr(fs.data, "load", lambda name, impute: SimpleNamespace(train=train, test=test))


def test_moments_are_those_of_all_patients_together():
    train, _ = experiment.patients(SMALL)
    x = np.concatenate([train.client(k)["x"] for k in range(4)]).astype(np.float64)
    expected = np.stack([np.isfinite(x).sum(0), np.nansum(x, 0), np.nansum(x * x, 0)])
    made = experiment.moments(train, seed=0)
    step = 2 * (3 * 8) ** 0.5 / (2**16 - 1) * experiment.MOST  # of the quantiser, in patients
    np.testing.assert_allclose(made, expected, atol=4 * step)

    scaled, test = experiment.standardised(SMALL)
    assert scaled.arrays["x"].shape[1] == 16
    known = scaled.arrays["x"][:, 8:] == 0
    np.testing.assert_allclose(scaled.arrays["x"][:, :8].sum(0) / known.sum(0), 0, atol=0.05)
    assert (scaled.client(1)["x"][:, [4, 12]] == [0, 1]).all()
    own, _ = experiment.standardised(dataclasses.replace(SMALL, statistics="site"))
    for k in range(4):  # by its own moments each hospital's patients are of age 0 on average, the same as all others
        np.testing.assert_allclose(own.client(k)["x"][:, 0].mean(), 0, atol=1e-5)
    assert scaled.client(0)["x"][:, 0].mean() < scaled.client(3)["x"][:, 0].mean()
    assert test.num_clients == 4


def test_a_secure_round_is_the_federated_one_in_words(monkeypatch):
    """Up to the quantiser's steps; and it reports areas and what crossed the wire."""
    monkeypatch.setattr(experiment, "moments", lambda train, seed: np.array([[40], [20], [15]]) * np.ones((3, 8)))
    made = {}
    for how in ("federated", "secure"):
        sim = experiment.build(dataclasses.replace(SMALL, how=how))
        state, history = sim.run(sim.init(), 1)
        made[how] = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(sim.params(state))])
    np.testing.assert_allclose(made["secure"], made["federated"], atol=2e-3)
    assert history["secure/survivors"].tolist() == [4]
    assert 0 <= history["test/auc"][-1] <= 1


def test_alone_is_a_federation_of_one():
    """As many epochs: the model of one hospital alone is that of a federated run that has no other hospital."""
    config = dataclasses.replace(SMALL, rounds=2, statistics="site")
    found = experiment.alone(config)
    train, test = experiment.standardised(config)
    task = experiment.task_of(train)
    others = fs.Simulation(
        fs.fedavg(task, optax.sgd(config.lr)), train, fs.sampler.fixed([[2]] * 2), fs.Batching(8), seed=config.seed
    )
    state, _ = others.run(others.init(), 2, progress=False)
    expected = fs.evaluate_clients(task, others.params(state), test)["loss"][2]
    np.testing.assert_allclose(found["loss"][2], expected, rtol=1e-5)
