"""Robust rules where too few clients come, and rules for each leaf alone."""

import numpy as np
import pytest

import fedjax_sim as fs
from tests.aggregate.test_robust import CONDITIONS, TWINS, A, X, apply


def metric(made, name):
    return float(made.metrics[name].compute())


# What a round of too few clients is

AVERAGED = {
    "trimmed_mean": A.trimmed_mean(2, on_few="mean"),
    "krum": A.krum(2, on_few="mean"),
    "bulyan": A.bulyan(2, on_few="mean"),
    "dnc": A.dnc(2, on_few="mean"),
    "nnm": A.nnm(2, A.median(), on_few="mean"),
}


@pytest.mark.parametrize("name", AVERAGED)
def test_too_few_clients_are_averaged_and_told_of(name):
    """Of as many as the rule needs it is the rule; of one fewer the mean, on the same program."""
    needed = CONDITIONS[name][1] + 1
    x = X[:needed]
    found, made = apply(AVERAGED[name], x, padding=12 - needed)
    np.testing.assert_array_equal(found, apply(CONDITIONS[name][0], x, padding=12 - needed)[0])
    assert ((metric(made, "averaged")), bool(made.refused)) == (0, False)
    for n in (needed - 1, 1):
        found, made = apply(AVERAGED[name], X[:n], padding=12 - n)
        np.testing.assert_allclose(found, X[:n].mean(axis=0), rtol=1e-5, atol=1e-6)
        assert ((metric(made, "averaged")), bool(made.refused)) == (1, False)
    assert np.isfinite(apply(AVERAGED[name], X[:0], padding=12)[0]).all()


def test_errors_pass_through_the_rules_around():
    strict = A.krum(2, on_few="error")
    assert (strict.on_refused, strict.name) == ("error", "krum(2, on_few=error)")
    for reducer in (A.bucketing(2, strict), A.nnm(2, strict), A.nnm(2, strict, on_few="mean")):
        assert reducer.on_refused == "error"
    with pytest.raises(fs.FedSimError, match="on_few='skip'"):
        A.trimmed_mean(2, on_few="skip")  # type: ignore[arg-type]


# A rule for each leaf

LEAVES = {
    "krum": (A.krum(2, by="leaf"), TWINS["krum"]),
    "bulyan": (A.bulyan(2, by="leaf"), TWINS["bulyan"]),
    "geometric_median": (A.geometric_median(by="leaf"), TWINS["geometric_median"]),
    "centered_clipping": (A.centered_clipping(1.5, by="leaf"), TWINS["centered_clipping"]),
    "norm_bound": (A.norm_bound("median", by="leaf"), TWINS["norm_bound"]),
    "dnc": (A.dnc(2, by="leaf"), TWINS["dnc"]),
    "nnm": (A.nnm(2, A.trimmed_mean(2), by="leaf"), TWINS["nnm, trimmed mean"]),
}


@pytest.mark.parametrize("name", LEAVES)
def test_a_rule_by_leaf_is_the_rule_of_each_leaf(name):
    reducer, twin = LEAVES[name]
    x = np.random.default_rng(3).normal(size=(11, 6)).astype(np.float32).astype(np.float64)
    x[4, :3] += 50  # bad in the first leaf alone
    found, made = apply(reducer, x)
    expected = np.concatenate([twin(x[:, :3]), twin(x[:, 3:])])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert made.refused is False or not bool(made.refused)
    assert reducer.name.endswith("by=leaf)")


def test_what_leaves_say_is_merged():
    reducer = A.norm_bound(1.0, by="leaf")
    x = np.array([[3.0, 0.0, 0.1, 0.1], [0.1, 0.1, 0.2, 0.2]])
    assert (metric(apply(reducer, x)[1], "clipped_fraction")) == 0.25
    for n in (6, 7):
        few = np.random.default_rng(3).normal(size=(n, 6))
        assert bool(apply(LEAVES["krum"][0], few, padding=13 - n)[1].refused) == (n == 6)
    with pytest.raises(fs.FedSimError, match="by='layer'"):
        A.krum(2, by="layer")  # type: ignore[arg-type]
