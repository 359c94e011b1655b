"""Fine-tuning for each client, against the same in NumPy."""

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.simulation import client_metrics
from fedjax_sim.simulation.personalise import Personalised
from tests.algorithms.problems import SIZES, START, flat, least_squares

TASK, DATA, _ = least_squares()
TRAIN, TEST = fs.data.split(DATA, 0.4)
LR, STEPS = 0.1, 3


def examples(data, k):
    rows = data.rows(k)
    x, t = data.arrays["x"][rows].astype(np.float64), data.arrays["t"][rows].astype(np.float64)
    return np.concatenate([x, np.ones((len(x), 1))], axis=1), t


def loss(params, A, t):
    return np.mean((A @ params - t) ** 2) / 2 if len(t) else np.nan


def twin(train, test):
    """Losses before and after steps of gradient descent on all of a client's examples, [K] each."""
    before, after = [], []
    for k in range(len(SIZES)):
        params, (A, t) = flat(START), examples(train, k)
        for _ in range(STEPS if len(t) else 0):
            params = params - LR * A.T @ (A @ params - t) / len(t)
        before.append(loss(flat(START), *examples(test, k)))
        after.append(loss(params, *examples(test, k)))
    return np.array(before), np.array(after)


def personalise(train, test=None, batch_size=8, **options):
    options = {"devices": jax.devices()[:1], "lanes": 2, **options}
    return fs.personalise(TASK, START, train, STEPS, optax.sgd(LR), test=test, batch_size=batch_size, **options)


def test_each_client_descends_on_its_own_examples():
    """Held out, or the same; of one set of arrays, or of two; and some have nothing to tune on, or nothing held out."""
    apart = fs.data.FederatedData({n: a.copy() for n, a in TEST.arrays.items()}, TEST.offsets, TEST.index)
    for train, test in ((TRAIN, TEST), (TRAIN, apart), (TRAIN, None)):
        before, after = twin(train, train if test is None else test)
        tuned = personalise(train, test)
        np.testing.assert_allclose(tuned.before["loss"], before, rtol=1e-5)
        np.testing.assert_allclose(tuned.after["loss"], after, rtol=1e-4)
        assert tuned.harmed("loss") == pytest.approx(np.mean((after > before)[~np.isnan(before)]))
    assert 0 in TRAIN.sizes[TEST.sizes > 0] or 0 in TEST.sizes[TRAIN.sizes > 0]
    assert "loss harmed: 0 % of clients" in repr(tuned)


def test_orders_come_from_the_seed_and_lanes_change_nothing():
    small = personalise(TRAIN, TEST, batch_size=2)
    np.testing.assert_allclose(small.before["loss"], twin(TRAIN, TEST)[0], rtol=1e-5)
    other = personalise(TRAIN, TEST, batch_size=2, devices=jax.devices()[:2], lanes=3)
    np.testing.assert_allclose(small.after["loss"], other.after["loss"], rtol=1e-5)
    reseeded = personalise(TRAIN, TEST, batch_size=2, seed=1)
    assert np.nanmax(np.abs(reseeded.after["loss"] - small.after["loss"])) > 1e-3


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(steps=0), "steps=0: must be a whole number"),
        (dict(optimizer=0.1), "optimizer=0.1: must be an optax transformation"),
        (dict(test=fs.data.FederatedData(DATA.arrays, [0, 2])), "test: has 1 clients, and 6 are tuned"),
    ],
)
def test_what_does_not_fit_is_refused(given, message):
    with pytest.raises(fs.FedSimError, match=message):
        fs.personalise(TASK, START, DATA, **{"steps": 1, "optimizer": optax.sgd(LR), **given})


def test_who_has_no_number_any_more_is_harmed():
    loss = lambda values: {"loss": fs.metrics.Mean(np.array(values), np.ones(4))}
    of = lambda *values: client_metrics.ClientMetrics(loss(values), np.ones(4))
    tuned = Personalised(of(1.0, 1.0, np.nan, 1.0), of(0.5, np.nan, np.nan, 2.0))
    assert tuned.harmed("loss") == pytest.approx(2 / 3)
