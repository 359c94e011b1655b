"""The banks: payments by hour and amount, figures of rare fraud, and a dishonest bank; on made-up payments."""

import dataclasses

import jax
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_curve

import fedjax_sim as fs
from experiments.banks import config as experiment

SMALL = dataclasses.replace(experiment.PRESETS["smoke"], rounds=1, width=2, hours=12)


def test_a_payment_goes_to_the_bank_of_its_hour_and_amount():
    cards = experiment.made_up(0)
    train, test = experiment.banks(SMALL)
    assert train.num_clients == test.num_clients == 8
    assert train.sizes.sum() == len(cards.train["y"])
    assert train.arrays["y"].sum() == cards.train["y"].sum()
    for k in range(8):
        amount = np.expm1(3 * train.client(k)["x"][:, 28].astype(np.float64))
        np.testing.assert_array_equal(np.searchsorted(experiment.BANDS, amount * (1 + 1e-6)), k % 4)
        assert ((train.client(k)["x"][:, 29] >= 0) == (k < 4)).all()  # the sine of the hour: before noon


def test_figures_are_those_of_another_package():
    draw = np.random.default_rng(2)
    y = (draw.random(5000) < 0.02).astype(int)
    scores = np.round(draw.normal(size=5000) + 2.5 * y, 1)  # with ties
    found = experiment.figures(scores, y)
    assert found["average_precision"] == pytest.approx(average_precision_score(y, scores))
    alarms, caught, _ = roc_curve(y, scores, drop_intermediate=False)
    assert found["recall"] == caught[alarms <= 1e-3].max() > 0
    assert np.isnan(experiment.figures(scores, np.zeros(5000, int))["recall"])


def test_rare_fraud_counts_for_more():
    """Losses against their formulas, of logits that a model with one constant feature gives."""
    batch = {"x": np.zeros((2, 31), np.float32), "y": np.array([0, 1], np.int32), "mask": np.ones(2, np.float32)}
    train = fs.FederatedData({name: batch[name] for name in "xy"}, [0, 2])
    dense = lambda inputs, bias: {"kernel": np.zeros((inputs, 2)), "bias": np.array(bias)}
    params, values = {"params": {"Dense_0": dense(31, [0.0, 0.0]), "Dense_1": dense(2, [1.0, 0.0])}}, {}
    for loss in ("plain", "weighted", "focal"):
        config = dataclasses.replace(SMALL, loss=loss)
        task = experiment.task_of(config, train)
        found = task.loss(params, batch, jax.random.key(0))
        values[loss] = np.asarray(getattr(found, "value", found))
    p = np.array([1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(1.0))])
    np.testing.assert_allclose(values["plain"], -np.log(p), rtol=1e-5)
    np.testing.assert_allclose(values["weighted"], [-np.log(p[0]), -20 * np.log(p[1])], rtol=1e-5)
    np.testing.assert_allclose(values["focal"], -((1 - p) ** 2) * np.log(p), rtol=1e-5)


def test_a_private_round_and_each_bank_alone():
    sim = experiment.build(dataclasses.replace(SMALL, how="private", dishonest=True))
    _, history = sim.run(sim.init(), 1, progress=False)
    assert history["client/attackers"].tolist() == [1]
    assert set(history.rounds[-1].evaluation) == {"test/average_precision", "test/recall"}
    assert set(experiment.alone(SMALL)) == {"average_precision", "recall"}
