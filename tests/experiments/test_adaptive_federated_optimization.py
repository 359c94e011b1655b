"""The study of server optimizers and drift, on a small stand-in: its methods, presets, and a study of two trials."""

import dataclasses
import inspect

import jax
import numpy as np
import pytest

import fedjax_sim as fs
from experiments.adaptive_federated_optimization import config as experiment
from fedjax_sim.data.fetch.sets import CentralData

SMALL = experiment.Config(rounds=2, num_clients=12, cohort_size=3, batch_size=5, eval_every=1)
MODEL = 784 * 32 + 32 + 32 * 10 + 10


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """Pictures as bright as their label; the real set's shapes and dtypes."""

    def split(rows):
        y = (np.arange(rows) % 10).astype(np.int32)
        return {"x": np.broadcast_to(25 * y[:, None, None, None], (rows, 28, 28, 1)).astype(np.uint8), "y": y}

    monkeypatch.setattr(fs.data, "load", lambda name: CentralData(split(120), split(20), name))


def test_every_method_is_what_its_name_says():
    """By what its clients send and keep, and by the number of its own that it looks at."""
    found = {}
    for method in experiment.METHODS["fashion_mnist"]:
        parts = experiment.build(dataclasses.replace(SMALL, method=method)).parts
        sent = sum(leaf.size for each in parts.sent for leaf in jax.tree.leaves(each.payload))
        found[method] = (sent, parts.row_bytes // 4)
    servers = dict.fromkeys(experiment.SERVERS, (MODEL, 0))
    others = {
        "fedprox": (MODEL, 0),
        "fednova": (MODEL + 1, 0),
        "scaffold": (2 * MODEL, MODEL),
        "feddyn": (MODEL, MODEL),
    }
    assert found == servers | others


def test_grids_have_the_numbers_that_a_method_has():
    """Three client rates each, and three of the method's own number where there is one: no method is tuned more."""
    for data, methods in experiment.METHODS.items():
        for method in methods:
            grid = experiment.grid(data, method)
            own = {"fedprox": {"strength"}, "feddyn": {"strength"}, "fednova": set(), "scaffold": set()}
            assert set(grid) == {"client_lr"} | own.get(method, {"server_lr"})
            assert {len(values) for values in grid.values()} == {3}


def test_presets_are_the_best_of_their_grids():
    fields = set(inspect.signature(experiment.Config).parameters)
    for data, methods in experiment.CHOSEN.items():
        assert set(methods) == set(experiment.METHODS[data])
        for method, numbers in methods.items():
            preset = experiment.PRESETS[f"{data}_{method}"]
            assert (preset.data, preset.method) == (data, method)
            changed = {name for name in fields if getattr(preset, name) != getattr(experiment.SETTINGS[data], name)}
            assert changed <= {"method", *experiment.grid(data, method)}
            for name, value in numbers.items():
                assert value in experiment.grid(data, method)[name]


def test_a_study_tunes_on_held_out_examples_and_compares_over_seeds(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(experiment, "grid", lambda data, method: {"client_lr": (1e-6, 0.05)})
    result = experiment.study(SMALL, ("fedavg",), seeds=2, tuning_rounds=1, folder=tmp_path / "study")
    assert [setting["client_lr"] for setting in result.settings] == [0.05], "which learns anything in a round"
    assert result["test/accuracy"].shape == (1, 2, 2)
    assert not np.allclose(result["test/loss"][0, 0], result["test/loss"][0, 1]), "seeds change the first model"
    assert "chosen" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "study").iterdir()} == {"sweep.parquet", "fashion_mnist.png"}


def test_a_tenth_of_each_clients_examples_is_held_out():
    sim = experiment.build(SMALL)
    assert sim.data.num_examples == pytest.approx(108, abs=6)
    values = sim.evaluate(sim.params(sim.init()))
    assert set(values) == {f"{part}/{name}" for part in ("validation", "test") for name in ("accuracy", "loss")}
