"""Metrics are commutative monoids, and their values are those of plain NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.core import metrics as lib
from fedjax_sim.core.metrics import Histogram, Max, Mean, Sum

EDGES = (0.0, 1.0, 2.0, 4.0)
KINDS = {
    "Sum": lambda numbers: Sum(numbers[0]),
    "Mean": lambda numbers: Mean(numbers[0], abs(numbers[1])),
    "Max": lambda numbers: Max(numbers[0]),
    "Histogram": lambda numbers: Histogram(numbers[:3], EDGES),
}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
# Whole numbers, so that float addition is exact and the laws hold to the bit.
triples = st.lists(st.integers(-1000, 1000), min_size=3, max_size=3).map(lambda numbers: np.array(numbers, np.float32))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@every_kind
@settings(max_examples=30, deadline=None)
@given(numbers=st.tuples(triples, triples, triples))
def test_monoid_laws(make, numbers):
    a, b, c = map(make, numbers)
    assert_same(a.merge(b.merge(c)), a.merge(b).merge(c))
    assert_same(a.merge(b), b.merge(a))
    assert_same(a.merge(a.zero()), a)
    assert_same(a.zero().merge(a), a)


@every_kind
@settings(max_examples=20, deadline=None)
@given(numbers=st.lists(triples, min_size=1, max_size=5))
def test_reduce_is_the_folded_merge(make, numbers):
    each = [make(n) for n in numbers]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    folded = functools.reduce(type(each[0]).merge, each, each[0].zero())
    assert_same(stacked.reduce(), folded)
    named = {"a": stacked, "b": stacked}
    assert_same(lib.reduce(named), lib.merge({"a": folded, "b": folded}, lib.zero(lib.reduce(named))))


@every_kind
def test_reducing_nothing_is_zero(make):
    metric = make(np.ones(3, np.float32))
    nothing = jax.tree.map(lambda leaf: np.zeros((0, *np.shape(leaf)), np.float32), metric)
    assert_same(nothing.reduce(), metric.zero())


@every_kind
def test_metrics_pass_through_jit_and_scan(make):
    metric = make(np.arange(3, dtype=np.float32))

    @jax.jit
    def three_times(metric):
        return jax.lax.fori_loop(0, 3, lambda _, total: total.merge(metric), metric.zero())

    assert_same(three_times(metric), metric.merge(metric).merge(metric))


@pytest.mark.parametrize(
    "metric, value",
    [
        (Sum(3.0), 3),
        (Sum(np.array([1.0, 2])), [1, 2]),
        (Mean(6.0, 4.0), 1.5),
        (Mean(np.array([6.0, 0, 1]), np.array([4.0, 0, 0])), [1.5, np.nan, np.nan]),
        (Max(3.0), 3),
        (Max(-np.inf), np.nan),
        (Max(np.array([-np.inf, 0])), [np.nan, 0]),
        (Max(np.inf), np.inf),
        (Max(np.nan).merge(Max(1.0)), np.nan),
        (Max(np.array([1, 3], np.int32)).reduce(), 3),
        (Histogram(np.array([1.0, 0, 2]), EDGES), [1, 0, 2]),
        (Sum(2.0).zero(), 0),
        (Mean(2.0, 1.0).zero(), np.nan),
        (Max(2.0).zero(), np.nan),
    ],
    ids=str,
)
def test_values(metric, value):
    computed = metric.compute()
    assert isinstance(computed, np.ndarray)
    np.testing.assert_array_equal(computed, value)


@given(
    st.lists(
        st.tuples(st.sampled_from([-9.0, 0, 0.5, 1, 1.5, 2, 3, 4, 9]), st.integers(0, 5)),
        max_size=20,
    )
)
@settings(max_examples=30, deadline=None)
def test_histogram_counts(pairs):
    values, weights = np.array(pairs, np.float32).reshape(-1, 2).T
    open_edges = [-np.inf, *EDGES[1:-1], np.inf]
    made = Histogram.of(values, EDGES, weights).compute()
    np.testing.assert_array_equal(made, np.histogram(values, open_edges, weights=weights)[0])
    np.testing.assert_array_equal(Histogram.of(values, EDGES).compute(), np.histogram(values, open_edges)[0])


def test_histograms_of_other_edges_do_not_merge():
    with pytest.raises(ValueError, match=r"edges|[Mm]ismatch|structure|metadata"):
        Histogram.of([1.0], (0.0, 1.0, 2.0)).merge(Histogram.of([1.0], (0.0, 1.0, 3.0)))


def test_as_metrics():
    made = lib.as_metrics({"loss": 3.0, "n": Sum(1.0), "traced": jnp.ones(())})
    assert_same(made["loss"], Mean(jnp.float32(3), jnp.ones(())))
    assert made["n"] == Sum(1.0)
    assert isinstance(made["traced"], Mean)
    for wrong in [1.0], None, jnp.ones(()):
        with pytest.raises(fs.FedSimError, match="must be a dict"):
            lib.as_metrics(wrong)


def test_names_must_agree():
    with pytest.raises(KeyError, match="b"):
        lib.merge({"a": Sum(1.0), "b": Sum(1.0)}, {"a": Sum(1.0)})
