"""Labels: which are classes, by a plain loop over them; what the loss makes of those that are none."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.client.cross_entropy import label_loss
from fedjax_sim.client.labels import check_labels

TYPES = ("int8", "int32", "int64", "uint8", "float32", "float64", "bool")


def fits(values, classes, tokens, ignored):
    """The rule, number by number: a class, or one that does not count."""
    good = {float(c) for c in range(classes)}
    return all(v in good or (tokens and v < 0) or v == ignored for v in values)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([-100, -1, 0, 1, 2, 3, 7, 100, 0.5, np.nan, np.inf]), max_size=5),
    st.sampled_from(TYPES),
    st.integers(1, 8),
    st.booleans(),
    st.sampled_from([None, 0, 100]),
)
def test_labels_are_classes_or_refused(values, dtype, classes, tokens, ignored):
    with np.errstate(invalid="ignore"):
        y = np.array(values, np.float64).astype(dtype)
    given = y[:, None] if tokens else y
    if fits(y.tolist(), classes, tokens, ignored):
        check_labels("y", given, classes, ignored)
        return
    with pytest.raises(fs.FedSimError, match=r"^labels 'y'"):
        check_labels("y", given, classes, ignored)


@pytest.mark.parametrize(
    "y, message",
    [
        ([1, 2, 3], "run from 1 to 3: must be 0 to 2 for 3 classes. Subtract 1, or give the model 4 classes"),
        ([0, 10, 20], r"run from 0 to 20: .* Number them anew \(np.unique\(y, return_inverse=True\)\[1\]\)"),
        ([-1, 1], "run from -1 to 1: must be 0 to 2 .*negative in preprocess="),
        ([0.0, 0.5], "0.5 is no class.*fs.flax_task"),
        ([0.0, np.nan], "nan is no class"),
    ],
    ids=str,
)
def test_what_is_said(y, message):
    with pytest.raises(fs.FedSimError, match=message):
        check_labels("y", np.array(y), 3)


@pytest.mark.parametrize("dtype", ["float32", "uint8", "bool", "int32"])
def test_labels_of_any_type_are_the_same_labels(dtype):
    logits = jnp.array([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]])
    y = np.array([1, 0, 1])
    loss = label_loss(logits, jnp.asarray(y.astype(dtype)))
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(y))
    np.testing.assert_array_equal(loss.value, expected)
    np.testing.assert_array_equal(loss.metrics["accuracy"][0], [1, 1, 0])


@pytest.mark.parametrize("bad", [2, 300, 0.5, np.nan, np.inf])
def test_the_loss_of_what_is_no_class_is_nan(bad):
    logits = jnp.array([[0.0, 1.0], [2.0, -1.0]])
    y = jnp.asarray(np.array([1, bad]))
    loss = label_loss(logits, y)
    assert np.isnan(loss.value).tolist() == [False, True]
    assert np.asarray(loss.weight).tolist() == [1, 1]
