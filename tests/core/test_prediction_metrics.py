"""Metrics of classes, calibration and rankings: against scikit-learn and NumPy, merged from parts, and poisoned."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as published

import fedjax_sim as fs

N, C = 400, 4
GENERATOR = np.random.default_rng(0)
LOGITS = (2 * GENERATOR.standard_normal((N, C))).astype(np.float32)
RIGHT = (GENERATOR.random(N) < 0.5) & (LOGITS.argmax(1) < C - 1)  # the last class is a prediction, and never a label
LABELS = np.where(RIGHT, LOGITS.argmax(1), GENERATOR.integers(0, C - 1, N)).astype(np.int32)
WEIGHTS = GENERATOR.integers(0, 3, N).astype(np.float32)
PREDICTED = LOGITS.argmax(1)
PROBABILITIES = np.exp(LOGITS.astype(np.float64)) / np.exp(LOGITS.astype(np.float64)).sum(1, keepdims=True)
SURE = PROBABILITIES.max(1)
KINDS = {
    "confusion": fs.metrics.Confusion.of,
    "f1": fs.metrics.MacroF1.of,
    "balanced": fs.metrics.BalancedAccuracy.of,
    "ece": fs.metrics.CalibrationError.of,
    "auc": functools.partial(fs.metrics.AUC.of, label=2),
    "ap": functools.partial(fs.metrics.AveragePrecision.of, label=2, bins=4096),
}


@jax.jit
def every(logits, labels, weight):
    return {name: of(logits, labels, weight) for name, of in KINDS.items()}


@pytest.fixture(scope="module")
def merged():
    """Of four parts of 100, as clients are merged."""
    parts = [every(*(a[i : i + 100] for a in (LOGITS, LABELS, WEIGHTS))) for i in range(0, N, 100)]
    return jax.device_get(functools.reduce(fs.metrics.merge, parts, fs.metrics.zero(parts[0])))


def calibration_error(bins):
    total = 0.0
    for b in range(bins):
        inside = np.ceil(SURE * bins) == b + 1
        gap = WEIGHTS[inside] @ ((PREDICTED == LABELS)[inside] - SURE[inside])
        total += abs(gap) / WEIGHTS.sum()
    return total


def test_values_are_scikit_learns(merged):
    expected = published.confusion_matrix(LABELS, PREDICTED, sample_weight=WEIGHTS)
    np.testing.assert_array_equal(merged["confusion"].compute(), expected)
    given = dict(y_true=LABELS, y_pred=PREDICTED, sample_weight=WEIGHTS)
    f1 = published.f1_score(**given, average="macro")
    assert merged["f1"].compute() == pytest.approx(f1, rel=1e-9)
    recall = published.recall_score(**given, average=None, zero_division=np.nan)
    assert np.isnan(recall[-1])
    np.testing.assert_allclose(merged["confusion"].recall(), recall)
    np.testing.assert_allclose(merged["confusion"].precision(), published.precision_score(**given, average=None))
    np.testing.assert_allclose(merged["confusion"].f1(), published.f1_score(**given, average=None))
    assert merged["balanced"].compute() == pytest.approx(np.nanmean(recall), rel=1e-9)
    assert merged["ece"].compute() == pytest.approx(calibration_error(15), rel=1e-4)


def test_areas_are_scikit_learns_within_their_bounds(merged):
    odds = np.log(PROBABILITIES[:, 2] / (1 - PROBABILITIES[:, 2]))
    for name, score in ("auc", published.roc_auc_score), ("ap", published.average_precision_score):
        exact = score(LABELS == 2, odds, sample_weight=WEIGHTS)
        assert abs(merged[name].compute() - exact) <= merged[name].bound() + 1e-6 < 0.02
        assert merged[name].compute() == pytest.approx(exact, abs=2e-3)


@pytest.mark.parametrize("bins", [1, 3, 40])
def test_bounds_hold_for_coarse_bins_and_ties(bins):
    """Scores in steps of 0.05, which are ties themselves."""
    scores = np.round(PROBABILITIES[:, 2] * 20) / 20
    truths = LABELS == 2
    for kind, score in (
        (fs.metrics.AUC, published.roc_auc_score),
        (fs.metrics.AveragePrecision, published.average_precision_score),
    ):
        metric = kind.of_scores(scores, truths, WEIGHTS, bins=bins, low=0.0, high=1.0)
        exact = score(truths, scores, sample_weight=WEIGHTS)
        assert abs(metric.compute() - exact) <= metric.bound() + 1e-6
        if bins == 1:  # all are ties
            share = WEIGHTS @ truths / WEIGHTS.sum()
            assert metric.compute() == pytest.approx(0.5 if kind is fs.metrics.AUC else share)


def test_what_weighs_nothing_is_nothing_and_what_cannot_be_is_nan():
    clean = jax.device_get(every(LOGITS, LABELS, WEIGHTS))
    idle = int(np.flatnonzero(WEIGHTS == 0)[0])
    logits, labels = LOGITS.copy(), LABELS.copy()
    logits[idle], labels[idle] = np.nan, C + 5
    labels[1], weights = -1, WEIGHTS.copy()  # a label that does not count
    weights[1] = 1.0
    without = np.where(np.arange(N) == 1, 0, WEIGHTS).astype(np.float32)
    silent, same = every(logits, labels, weights), every(LOGITS, LABELS, without)
    for a, b in zip(jax.tree.leaves(silent), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    busy = int(np.flatnonzero(WEIGHTS)[0])
    for spoilt in "logits", "labels":
        logits, labels = LOGITS.copy(), LABELS.copy()
        if spoilt == "logits":
            logits[busy, 0] = np.nan
        else:
            labels[busy] = C
        for name, metric in jax.device_get(every(logits, labels, WEIGHTS)).items():
            assert np.isnan(metric.compute()).any(), (spoilt, name)
            assert not np.isnan(clean[name].compute()).any(), name


def test_nothing_observed_has_no_value(merged):
    for name, metric in fs.metrics.zero(merged).items():
        value = metric.compute()
        assert np.all(value == 0) if name == "confusion" else np.isnan(value), name
    one_sided = fs.metrics.AUC.of_scores([0.5, 1.0], [1, 1])
    assert np.isnan(one_sided.compute())
    assert np.isnan(one_sided.bound())


def test_values_are_the_same_when_traced(merged):
    traced = jax.jit(lambda metrics: {name: metric.compute() for name, metric in metrics.items()})(merged)
    for name, value in traced.items():
        np.testing.assert_allclose(value, merged[name].compute(), rtol=1e-4)


def test_bad_arguments():
    for wrong in (LABELS[:3], LABELS[:, None]):
        with pytest.raises(fs.FedSimError, match=r"logits \(400, 4\) for labels"):
            fs.metrics.MacroF1.of(LOGITS, wrong)
    with pytest.raises(fs.FedSimError, match=r"label=4: must be one of the 4 classes"):
        fs.metrics.AUC.of(LOGITS, LABELS, label=4)
    with pytest.raises(fs.FedSimError, match=r"low=1.0: must be below"):
        fs.metrics.AUC.of_scores(jnp.zeros(2), jnp.zeros(2), low=1.0, high=1.0)
    with pytest.raises(fs.FedSimError, match="bins=0"):
        fs.metrics.CalibrationError.of(LOGITS, LABELS, bins=0)
