"""Functions in a word, the quickstart that is made of them, and experiments that are kept with what was typed."""

import dataclasses

import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim import algorithms
from fedjax_sim.cli import main
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.runs.choices import chosen, names


def test_names_are_the_public_functions():
    assert {"fedavg", "scaffold", "fednova"} <= set(names(algorithms))
    assert {"fedadam", "fedyogi", "fedavgm"} <= set(names(fs.server))
    assert {"drive", "quantize", "top_k"} <= set(names(fs.aggregate))
    assert not {"check", "Callable", "jax"} & set(names(fs.server))


def test_arguments_by_order_and_by_name():
    labels = np.arange(60) % 3
    draw = lambda law: law(labels, 60, np.random.default_rng(0)).offsets.tolist()
    assert draw(chosen(fs.partition, "dirichlet:0.5", num_clients=6)) == draw(fs.partition.dirichlet(0.5, 6))
    assert draw(chosen(fs.partition, "shards:shards_per_client=1", num_clients=6)) == draw(fs.partition.shards(6, 1))
    assert draw(chosen(fs.partition, "iid:4", num_clients=6)) == draw(fs.partition.iid(4))
    assert chosen(fs.aggregate, "quantize:8").name == fs.aggregate.quantize(8).name


@pytest.mark.parametrize(
    "word, words",
    [
        ("dirchlet:0.1", "there is no fedjax_sim.data.partition.dirchlet; there are .*dirichlet"),
        ("dirichlet", "missing a required argument: 'alpha'.* takes alpha"),
        ("iid:1:2", "too many positional arguments"),
        ("iid:beta=1", "unexpected keyword argument 'beta'"),
    ],
)
def test_words_that_mean_nothing(word, words):
    with pytest.raises(ArgumentError, match=words):
        chosen(fs.partition, word, num_clients=5)


@pytest.fixture(scope="module")
def quickstart():
    return fs.runs.load_experiment("quickstart")


@pytest.mark.parametrize(
    "fields, name",
    [
        ({"algorithm": "scaffold", "model": "mlp"}, "mean"),
        ({"algorithm": "fedprox:mu=0.1", "server": "fedyogi:0.01", "clip": 1.0}, "clip_by_l2"),
        ({"clip": 1.0, "noise": 0.8}, "gaussian_noise"),
        ({"compress": "drive", "partition": "shards", "model": "logistic_regression"}, "drive"),
    ],
)
def test_the_quickstart_is_what_is_typed(quickstart, fields, name):
    config = dataclasses.replace(quickstart.presets["smoke"], **fields)
    sim = quickstart.build(config)
    assert name in sim.parts.phases[0].aggregator.name
    assert sim.parts.noisy == ("noise" in fields)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"algorithm": "scaffold", "server": "fedadam:0.1"}, "scaffold has no server_optimizer"),
        ({"algorithm": "fedprox"}, "missing a required argument: 'mu'"),
        ({"noise": 1.0}, "clip"),
        ({"data": "no"}, "no"),
    ],
)
def test_what_does_not_fit_is_told(quickstart, fields, words):
    with pytest.raises(ArgumentError, match=words):
        quickstart.build(dataclasses.replace(quickstart.presets["smoke"], **fields))


def test_an_experiment_is_kept_with_what_was_typed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fedjax_sim.cli.words.prepare", lambda: None)  # the tests' own devices stay
    assert main(["new", "mine", "--from", "quickstart", "--algorithm", "feddyn", "--client-lr", "0.05"]) == 0
    assert "fedjax-sim run mine" in capsys.readouterr().out
    experiment = fs.runs.load_experiment("mine")
    assert (experiment.presets["default"].algorithm, experiment.presets["default"].client_lr) == ("feddyn", 0.05)
    assert experiment.presets["smoke"].algorithm == "fedavg"
    assert main(["new", "mine"]) == 2
    assert main(["new", "no/name"]) == 2
    assert main(["new", "other", "--from", "nothing"]) == 2
