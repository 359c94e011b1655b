"""The Shakespeare experiment, on a small stand-in: presets, what it builds, what its evaluation says; and its sizes."""

import dataclasses
import os

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from experiments.shakespeare import config as experiment

ALGORITHMS = ["fedavg", "fedadam", "fedyogi"]
SMALL = experiment.Config(rounds=2, cohort_size=3, max_windows=2, width=4, layers=1, client_lr=0.5, eval_every=1)
LINES = [b"To be, or not to be: that is the question;", b"O!" * 60, b"Never, never, never, never, never.", b"Ay~"]
LETTERS = "dhlptx@DHLPTX $(,048cgkoswCGKOSW[_#'/37;?bfjnrvzBFJNRVZ\"&*.26:\naeimquyAEIMQUY]!%)-159\r"
real_load = fs.data.load


@pytest.fixture
def stand_in(monkeypatch):
    """Six roles of one to six speeches; for testing, one speech each."""
    train = [LINES[k % 4] for n in range(1, 7) for k in range(n)]
    test = [LINES[(k + 1) % 4] for k in range(6)]
    ends = [np.cumsum([0, *range(1, 7)]), np.arange(7)]
    parts = [
        fs.data.FederatedData({"snippets": fs.data.strings(t)}, e) for t, e in zip((train, test), ends, strict=True)
    ]
    monkeypatch.setattr(fs.data, "load", lambda name: fs.data.FederatedSet(*parts, name, {}))
    return test


def window_rows(text):
    """[n, 81] bos, the numbers of the text's letters, eos, and pads: as the paper's code has them."""
    numbers = [88, *(LETTERS.index(c) + 1 if c in LETTERS else 87 for c in text.decode()), 89]
    return np.array(numbers + [0] * (-len(numbers) % 81)).reshape(-1, 81)


def test_the_presets_differ_in_algorithm_and_rates_alone():
    presets = experiment.PRESETS
    assert presets["default"] == presets["fedavg"]
    assert [presets[name].algorithm for name in ALGORITHMS] == ALGORITHMS
    plain, *others = (dataclasses.asdict(presets[name]) for name in ALGORITHMS)
    for other in others:
        assert {name for name in plain if plain[name] != other[name]} <= {"algorithm", "client_lr", "server_lr"}


def test_the_network_is_the_papers_at_half_the_width():
    """Embedding, two LSTM layers with one bias each, and the logits."""
    config = experiment.PRESETS["default"]
    model = fs.models.LSTM(90, width=config.width, layers=config.layers)
    params = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, experiment.WINDOW), np.int32))
    expected = 90 * 8 + 4 * 128 * (8 + 128 + 1) + 4 * 128 * (128 + 128 + 1) + 90 * (128 + 1)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected == 214_058


def test_test_windows_are_drawn_without_replacement_and_by_the_seed():
    data = fs.data.FederatedData({"x": np.arange(50), "y": -np.arange(50)}, np.array([0, 1, 50]))
    drawn = [experiment.sample(data, 20, seed)["x"].tolist() for seed in range(300)]
    assert drawn[3] == experiment.sample(data, 20, 3)["x"].tolist() != drawn[4]
    assert all(len(set(rows)) == 20 for rows in drawn)
    often = np.bincount(np.concatenate(drawn), minlength=50)  # of mean 120 and deviation 8.5
    assert np.all(abs(often - 120) < 5 * 8.5)
    for count in (80, None):
        whole = experiment.sample(data, count, 0)
        assert np.array_equal(whole["x"], np.arange(50))
        assert np.array_equal(whole["y"], -np.arange(50))


def test_one_round_of_every_algorithm_is_the_papers(stand_in):
    """The same roles, windows and first model; FedAvg adds the mean delta, Adam and Yogi divide by their own root."""
    rates = {"fedavg": 0.5, "fedadam": 0.1, "fedyogi": 0.1}
    configs = {name: dataclasses.replace(SMALL, algorithm=name, server_lr=rates[name], seed=1) for name in ALGORITHMS}
    sims = {name: experiment.build(config) for name, config in configs.items()}
    before = jax.tree.leaves(jax.device_get(sims["fedavg"].params(sims["fedavg"].init())))
    after, seen = {}, set()
    for name, sim in sims.items():
        state, metrics = sim.step(sim.init())
        after[name] = jax.tree.leaves(jax.device_get(sim.params(state)))
        seen.add((metrics["client/loss"], metrics["cohort/examples"]))
    assert len(seen) == 1
    for i, x in enumerate(before):
        delta = (np.float64(after["fedavg"][i]) - x) / 0.5
        roots = {
            "fedadam": 0.99e-6 + 0.01 * delta**2,
            "fedyogi": 1e-6 - 0.01 * delta**2 * np.sign(1e-6 - delta**2),
        }
        for name, v in roots.items():
            expected = x + 0.1 * 0.1 * delta / (np.sqrt(v) + 1e-3)
            np.testing.assert_allclose(after[name][i], expected, rtol=1e-3, atol=2e-4)


def test_a_role_trains_on_its_first_windows_and_counts_by_them(stand_in):
    sim = experiment.build(dataclasses.replace(SMALL, cohort_size=6))
    windows = [sum(len(window_rows(LINES[k % 4])) for k in range(n)) for n in range(1, 7)]
    assert sim.data.sizes.tolist() == windows
    _, metrics = sim.step(sim.init())
    assert metrics["cohort/examples"] == sum(min(n, SMALL.max_windows) for n in windows)


def test_the_figures_are_those_of_the_models_predictions(stand_in):
    """Over all characters but pads, each counting once."""
    sim = experiment.build(SMALL)
    params = jax.device_get(sim.params(sim.init()))
    rows = np.concatenate([window_rows(text) for text in stand_in])
    x, y = rows[:, :-1], rows[:, 1:]
    logits = np.asarray(fs.models.LSTM(90, width=4, layers=1).apply(params, x))
    losses = np.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, y))
    figures = sim.evaluate(params)
    assert sorted(figures) == ["test/accuracy", "test/loss"]
    assert figures["test/loss"] == pytest.approx(losses[y > 0].mean(), rel=1e-5)
    assert figures["test/accuracy"] == pytest.approx((np.argmax(logits, -1) == y)[y > 0].mean(), abs=1e-6)


def test_the_plays_have_the_sizes_that_the_help_states(monkeypatch, tmp_path):
    monkeypatch.setattr(fs.data, "load", lambda name: real_load(name, cache_dir=tmp_path))
    try:
        sim = experiment.build(experiment.PRESETS["smoke"])
        plays = fs.data.load("shakespeare")
    except fs.FedSimError as error:
        if "cannot be fetched" not in str(error) or os.environ.get("CI"):
            raise
        pytest.skip(f"no network: {error}")
    assert (sim.data.num_clients, sim.data.sizes.max()) == (1154, 785)
    text = plays.test.arrays["snippets"]
    assert sum(-(-(len(line) + 2) // 81) for line in text[:]) == 14_817
