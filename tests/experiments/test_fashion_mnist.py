"""The Fashion-MNIST experiment: its presets, what it builds, and what its evaluation says, on a small stand-in."""

import dataclasses
import math

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from experiments.fashion_mnist import config as experiment
from fedjax_sim.data.fetch.sets import CentralData

KEYS = ["clients/accuracy_p10", "clients/accuracy_p50", "clients/accuracy_p90", "test/accuracy", "test/loss"]
SMALL = {"num_clients": 12, "cohort_size": 3, "rounds": 2, "eval_every": 1}


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """Pictures as bright as their label; the real set's shapes and dtypes."""

    def split(rows):
        y = (np.arange(rows) % 10).astype(np.int32)
        return {"x": np.broadcast_to(25 * y[:, None, None, None], (rows, 28, 28, 1)).astype(np.uint8), "y": y}

    monkeypatch.setattr(fs.data, "load", lambda name: CentralData(split(300), split(50), name))


def test_the_presets_differ_in_algorithm_and_rates_alone():
    presets = experiment.PRESETS
    assert presets["default"] == presets["fedavg"]
    assert [presets[name].algorithm for name in ("fedavg", "fedyogi")] == ["fedavg", "fedyogi"]
    allowed = {"algorithm", "client_lr", "server_lr"}
    fedavg, fedyogi = (dataclasses.asdict(presets[name]) for name in ("fedavg", "fedyogi"))
    assert {name for name in fedavg if fedavg[name] != fedyogi[name]} <= allowed


@pytest.mark.parametrize("algorithm, model", [("fedavg", "mlp"), ("fedyogi", "cnn")])
def test_a_short_run_gives_every_figure(algorithm, model):
    sim = experiment.build(experiment.Config(**SMALL, algorithm=algorithm, model=model, server_lr=0.1))
    state, history = sim.run(sim.init(), 2)
    figures = sim.evaluate(sim.params(state))
    assert sorted(figures) == KEYS
    assert all(isinstance(value, float) and math.isfinite(value) for value in figures.values())
    assert np.isfinite(history["client/loss"]).all()


def test_the_figures_are_those_of_the_models_predictions():
    sim = experiment.build(experiment.Config(**SMALL, model="mlp"))
    params = jax.device_get(sim.params(sim.init()))
    fashion = fs.data.load("fashion_mnist")

    def right(split):
        logits = np.asarray(fs.models.MLP(10).apply(params, np.float32(split["x"]) / np.float32(255)))
        return np.argmax(logits, -1) == split["y"], logits

    test, logits = right(fashion.test)
    figures = sim.evaluate(params)
    assert figures["test/accuracy"] == pytest.approx(test.mean(), abs=1e-6)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, fashion.test["y"])
    assert figures["test/loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    train, _ = right(fashion.train)
    accuracy = [train[sim.data.rows(k)].mean() for k in range(12) if sim.data.sizes[k]]
    expected = np.quantile(accuracy, [0.1, 0.5, 0.9])
    assert [figures[f"clients/accuracy_p{p}"] for p in (10, 50, 90)] == pytest.approx(expected.tolist(), abs=1e-6)


def test_both_algorithms_see_the_same_clients_cohorts_and_first_model():
    configs = [experiment.Config(**SMALL, algorithm=name, model="mlp", seed=3) for name in ("fedavg", "fedyogi")]
    a, b = sims = [experiment.build(config) for config in configs]
    assert all(np.array_equal(a.data.rows(k), b.data.rows(k)) for k in range(12))
    first = [jax.tree.leaves(jax.device_get(sim.params(sim.init()))) for sim in sims]
    assert all(np.array_equal(p, q) for p, q in zip(*first, strict=True))
    steps = [sim.step(sim.init())[1] for sim in sims]
    assert steps[0]["client/loss"] == pytest.approx(steps[1]["client/loss"], rel=1e-6)
    assert steps[0]["cohort/examples"] == steps[1]["cohort/examples"]


@pytest.mark.parametrize("algorithm", ["fedavg", "fedyogi"])
def test_the_algorithm_is_the_papers(algorithm):
    """One round: FedAvg adds the mean delta times the rate; Yogi moves each coordinate by its own rule."""
    settings = {**SMALL, "model": "mlp", "client_lr": 0.1, "seed": 1}
    plain = experiment.build(experiment.Config(**settings, algorithm="fedavg", server_lr=1.0))
    sim = experiment.build(experiment.Config(**settings, algorithm=algorithm, server_lr=0.05))
    before = jax.device_get(plain.params(plain.init()))
    mean, after = (jax.device_get(s.params(s.step(s.init())[0])) for s in (plain, sim))
    for x, y, z in zip(*map(jax.tree.leaves, (before, mean, after)), strict=True):
        delta = np.float64(y) - x
        if algorithm == "fedyogi":
            v = 1e-6 - 0.01 * delta**2 * np.sign(1e-6 - delta**2)
            expected = x + 0.05 * 0.1 * delta / (np.sqrt(v) + 1e-3)
        else:
            expected = x + 0.05 * delta
        np.testing.assert_allclose(z, expected, rtol=1e-4, atol=2e-6)


def test_the_network_has_the_size_that_its_config_states():
    params = jax.eval_shape(experiment.SmallCNN().init, jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 56714


def test_the_options_are_flags_with_help(capsys):
    import tyro

    config = tyro.cli(experiment.Config, args=["--rounds", "3", "--algorithm", "fedyogi", "--lanes", "2"])
    assert (config.rounds, config.algorithm, config.lanes) == (3, "fedyogi", 2)
    assert tyro.cli(experiment.Config, args=[]).lanes == "auto"
    with pytest.raises(SystemExit):
        tyro.cli(experiment.Config, args=["--help"])
    assert "Learning rate of the clients' SGD." in capsys.readouterr().out
