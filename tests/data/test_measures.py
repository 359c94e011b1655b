"""The figures of a federation, against sums written out over dense tables."""

import math

import numpy as np
import pytest

import fedjax_sim as fs


def test_figures_of_a_small_federation():
    y = np.array([5, 5, 7, 7, 5, 9, 7, 5])
    data = fs.data.FederatedData({"y": y}, offsets=[0, 2, 2, 4, 8])
    made = fs.data.statistics(data)
    assert made.sizes.tolist() == [2, 0, 2, 4]
    assert made.classes.tolist() == [5, 7, 9]
    assert made.frequencies.tolist() == [4 / 8, 3 / 8, 1 / 8]
    assert made.classes_per_client.tolist() == [1, 0, 1, 3]
    np.testing.assert_allclose(made.effective_classes, [1, np.nan, 1, 2 * math.sqrt(2)])
    pool = [4 / 8, 3 / 8, 1 / 8]
    want = [divergence(p, pool) for p in ([1, 0, 0], [0, 1, 0], [0.5, 0.25, 0.25])]
    np.testing.assert_allclose(made.divergence[[0, 2, 3]], want)
    assert np.isnan(made.divergence[1])
    assert made.mean_divergence == pytest.approx((2 * want[0] + 2 * want[1] + 4 * want[2]) / 8)
    assert made.size_quantiles == pytest.approx({0: 0, 10: 0.6, 50: 2, 90: 3.4, 100: 4})


def divergence(p, q):
    """Jensen-Shannon, in bits, term by term."""
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    half = lambda x: sum(a * math.log2(a / b) for a, b in zip(x, m, strict=True) if a > 0)
    return (half(p) + half(q)) / 2


def test_an_index_decides_whose_the_labels_are():
    y = np.array(["a", "b", "a", "b"])
    data = fs.data.FederatedData({"kind": y}, offsets=[0, 2, 4], index=[0, 2, 1, 3])
    made = fs.data.statistics(data, labels="kind")
    assert made.classes_per_client.tolist() == [1, 1]
    np.testing.assert_allclose(made.divergence, divergence([1, 0], [0.5, 0.5]))


def test_it_is_shown_as_text_and_as_a_table():
    data = fs.data.FederatedData({"y": np.array([0, 1, 0, 1])}, offsets=[0, 2, 4])
    made = fs.data.statistics(data)
    assert "classes of a client: min 2, median 2, max 2" in repr(made)
    assert "<td>min 2, median 2, max 2</td>" in made._repr_html_()


def test_errors_say_what_is_missing():
    data = fs.data.FederatedData({"y": np.array([0.0, np.nan])}, offsets=[0, 2])
    with pytest.raises(fs.FedSimError, match="labels='z': the arrays have no entry"):
        fs.data.statistics(data, labels="z")
    with pytest.raises(fs.FedSimError, match="y, row 1: nan: a label is missing"):
        fs.data.statistics(data)
    with pytest.raises(fs.FedSimError, match="no client has a row"):
        fs.data.statistics(fs.data.FederatedData({"y": np.zeros(2)}, offsets=[0, 0]))
