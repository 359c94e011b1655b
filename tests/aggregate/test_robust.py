"""Robust reducers: the values of their papers, independent twins, and the laws that each obeys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.aggregate.collecting import reduced
from tests.aggregate import robust_twins as twins

A = fs.aggregate
NOBODY = 2**31 - 1
X = np.array(
    [
        (2.22, -3.53, 0.75, -0.34),
        (0.73, -2.13, -0.71, -0.14),
        (0.48, -0.01, 0.64, -0.21),
        (0.83, -2.4, -0.13, -0.23),
        (1.29, -2.14, 1.07, -0.12),
        (1.01, -1.07, 0.83, -0.3),
        (0.89, -1.68, 1.66, -0.16),
        (0.85, -1.4, -0.03, -0.18),
        (1.53, -1.65, 0.55, 0.4),
        (2.29, -0.58, 1.71, 1.06),
        (-1.91, -4.78, -2.49, -3.14),  # the attacker
    ]
)


@functools.partial(jax.jit, static_argnums=0)
def run(reducer, messages, weights, contributes, ids, key, state):
    return reduced(reducer, A.Collected(messages, weights, contributes, ids, key, state))


def split(rows):
    """[n, d] as a tree of two leaves, the first a matrix where it can be."""
    half = rows.shape[1] // 2
    first = rows[:, :half].reshape(len(rows), half // 2, 2) if half and half % 2 == 0 else rows[:, :half]
    return {"a": first, "b": rows[:, half:]}


def flat(tree):
    return np.concatenate([np.asarray(tree["a"], np.float64).ravel(), np.asarray(tree["b"], np.float64).ravel()])


def apply(reducer, x, ids=None, padding=2, order=None, key=0, weights=None, state=None):
    """`(value, Reduced)` of rows in any order, with places between them that hold NaN and do not contribute."""
    n = len(x)
    ids = np.arange(n) if ids is None else np.asarray(ids)
    order = np.arange(n) if order is None else order
    there = np.ones(n + padding, bool)
    there[np.linspace(0, n + padding - 1, padding).astype(int)] = False
    rows = np.full((n + padding, x.shape[1]), np.nan, np.float32)
    names = np.full(n + padding, NOBODY, np.int32)
    counts = np.zeros(n + padding, np.float32)
    rows[there], names[there] = x[order], ids[order]
    counts[there] = 1 if weights is None else np.asarray(weights, np.float32)[order]
    messages = split(rows)
    if state is None and reducer.keeps_state:
        state = reducer.init(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), messages))
    made = run(reducer, messages, counts, there, names, jax.random.key(key), state)
    return flat(made.value), made


MADE = {
    "trimmed_mean": A.trimmed_mean(2),
    "krum": A.krum(2),
    "multi_krum": A.multi_krum(2),
    "bulyan": A.bulyan(2),
    "geometric_median": A.geometric_median(),
    "centered_clipping": A.centered_clipping(1.5),
    "norm_bound": A.norm_bound("median"),
    "dnc": A.dnc(2),
    "nnm, trimmed mean": A.nnm(2, A.trimmed_mean(2)),
    "nnm, median": A.nnm(2, A.median()),
}
VALUES = {
    "trimmed_mean": (1.0185714, -1.7814286, 0.5257143, -0.1914286),
    "krum": X[7],
    "multi_krum": (1.0922222, -1.7788889, 0.5144444, -0.1422222),
    "bulyan": (0.9166667, -1.5766667, 0.71, -0.19),
    "geometric_median": (1.0782368, -1.7333765, 0.4958246, -0.1114674),
    "norm_bound": (0.9052689, -1.5211242, 0.4254909, -0.1350005),
    "dnc": (1.0922222, -1.7788889, 0.5144444, -0.1422222),
    "nnm, trimmed mean": (1.1214286, -1.6696825, 0.5923810, -0.0384127),
    "nnm, median": (1.1, -1.7788889, 0.6211111, -0.0011111),
}
"""Computed elsewhere, of X, with f = 2."""
TWINS = {
    "trimmed_mean": lambda x: twins.trimmed_mean(x, 2),
    "krum": lambda x: twins.krum(x, 2),
    "multi_krum": lambda x: twins.multi_krum(x, 2),
    "bulyan": lambda x: twins.bulyan(x, 2),
    "geometric_median": twins.geometric_median,
    "centered_clipping": lambda x: twins.centered_clipping(x, 1.5),
    "norm_bound": lambda x: twins.norm_bound(x, "median"),
    "dnc": lambda x: twins.dnc(x, 2),
    "nnm, trimmed mean": lambda x: twins.trimmed_mean(twins.nnm_mixed(x, 2), 2),
    "nnm, median": lambda x: np.median(twins.nnm_mixed(x, 2), axis=0),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_of_a_fixed_matrix(name):
    np.testing.assert_allclose(apply(MADE[name], X)[0], VALUES[name], rtol=3e-6, atol=1e-7)


def test_more_values_of_a_fixed_matrix():
    many = apply(A.geometric_median(iterations=200, nu=1e-9), X)[0]
    np.testing.assert_allclose(many, (1.0868623, -1.7237914, 0.5206064, -0.1068657), rtol=1e-5)
    assert float(apply(MADE["norm_bound"], X)[1].metrics["norm_bound"].compute()) == pytest.approx(2.5289721)
    assert twins.bulyan_chosen(X, 2) == [7, 4, 5, 3, 8, 6, 0]
    assert float(apply(MADE["dnc"], X)[1].metrics["kept"].compute()) == 9
    np.testing.assert_allclose(
        np.median(twins.buckets(X, np.arange(11), 2), axis=0), (1.01, -1.5725, 0.535, -0.215), rtol=1e-6
    )


def inputs():
    """Random rows, and adversarial ones: far away, duplicated, all alike, an offset, one coordinate, and huge."""
    draw = np.random.default_rng(5)
    plain = draw.normal(size=(11, 6))
    far = plain.copy()
    far[[3, 8]] = 1e6 * draw.normal(size=(2, 6))
    twice = plain.copy()
    twice[[9, 10]] = plain[4]
    alone = plain.copy()
    alone[2, 5] = 1e8
    scales = plain.copy()
    scales[1], scales[6] = 3e9, -2e4
    return {"plain": plain, "far": far, "twice": twice, "one coordinate": alone, "two scales": scales}


BEYOND_FLOATS = {
    "dnc": {"twice", "one coordinate", "two scales"},
    "nnm, trimmed mean": {"one coordinate"},
    "nnm, median": {"one coordinate"},
}
"""Where a choice among good clients is by their distances from one at 1e8, which float32 cannot tell apart."""


@pytest.mark.parametrize("name", TWINS)
def test_independent_twins(name):
    for what, x in inputs().items():
        x = x.astype(np.float32).astype(np.float64)
        expected = TWINS[name](x)
        if what in BEYOND_FLOATS.get(name, ()):
            continue
        found, made = apply(MADE[name], x)
        scale = max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6 * scale, err_msg=what)
        assert made.refused is False or not bool(made.refused)


@pytest.mark.parametrize("name", ["krum", "multi_krum", "bulyan", "nnm, median", "geometric_median"])
def test_distances_far_from_the_origin(name):
    """Of f32 numbers at 1e4, whose squares leave no digit for distances of 1."""
    x = (X + 1e4).astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(apply(MADE[name], x)[0] - 1e4, TWINS[name](x - 1e4), rtol=0, atol=5e-3)


# Laws

MEAN_AT_ZERO = {
    "trimmed_mean": A.trimmed_mean(0),
    "multi_krum": A.multi_krum(0),
    "bulyan": A.bulyan(0),
    "dnc": A.dnc(0),
    "geometric_median": A.geometric_median(iterations=0),
    "centered_clipping": A.centered_clipping(1e9),
    "norm_bound": A.norm_bound(1e9),
    "nnm, trimmed mean": A.nnm(0, A.trimmed_mean(0)),
    "nnm, median": A.nnm(0, A.median()),
    "bucketing": A.bucketing(1, A.trimmed_mean(0)),
    "all in one bucket": A.bucketing(50, A.median()),
}
"""Where nothing is guarded against, a rule is the mean; Krum is not."""
TRANSLATION = {*MADE} - {"centered_clipping", "norm_bound"}
ORTHOGONAL = {"krum", "multi_krum", "geometric_median", "centered_clipping", "norm_bound", "dnc"}
SCALING = {*MADE} - {"centered_clipping"}


@pytest.mark.parametrize("name", MEAN_AT_ZERO)
def test_without_bad_clients_it_is_the_mean(name):
    np.testing.assert_allclose(apply(MEAN_AT_ZERO[name], X)[0], X.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_krum_is_never_the_mean():
    assert (apply(A.krum(0), X)[0].astype(np.float32) == X.astype(np.float32)).all(axis=1).any()


@pytest.mark.parametrize("name", MADE)
def test_places_and_padding_mean_nothing(name):
    found = apply(MADE[name], X)[0]
    draw = np.random.default_rng(1)
    for padding in (0, 5):
        permuted = apply(MADE[name], X, order=draw.permutation(11), padding=padding)[0]
        np.testing.assert_allclose(permuted, found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MADE)
def test_equivariances(name):
    found, draw = apply(MADE[name], X)[0], np.random.default_rng(2)
    if name in TRANSLATION:
        move = draw.normal(size=4)
        np.testing.assert_allclose(apply(MADE[name], X + move)[0], found + move, rtol=1e-4, atol=1e-5)
    if name in SCALING:
        np.testing.assert_allclose(apply(MADE[name], 3 * X)[0], 3 * found, rtol=1e-5, atol=1e-5)
    turn = np.linalg.qr(draw.normal(size=(4, 4)))[0]
    turned, expected = apply(MADE[name], X @ turn)[0], found @ turn
    if name in ORTHOGONAL:
        np.testing.assert_allclose(turned, expected, rtol=1e-4, atol=1e-5)
    else:  # by coordinate: another basis, another value
        assert np.abs(turned - expected).max() > 1e-3


@pytest.mark.parametrize("name", sorted({*MADE} - {"centered_clipping", "norm_bound"}))
def test_two_bad_clients_of_eleven_do_not_matter_much(name):
    """However far away they are, alike or not; the geometric median's steps need to be many, as they begin with
    the mean."""
    good, reducer = X[:9], A.geometric_median(60) if name == "geometric_median" else MADE[name]
    for bad in (np.full((2, 4), 1e7), np.stack([np.full(4, 1e9), np.full(4, -1e5)])):
        value = apply(reducer, np.concatenate([good, bad]))[0]
        assert np.linalg.norm(value - good.mean(axis=0)) < 2 * np.linalg.norm(good - good.mean(axis=0), axis=1).max()


def test_the_mean_does_not_withstand_one():
    """The law above is one: the mean breaks it."""
    value = apply(A.trimmed_mean(0), np.concatenate([X[:10], np.full((1, 4), 1e7)]))[0]
    assert np.linalg.norm(value) > 1e5


def test_ties_go_by_client_id():
    """Two pairs of duplicates: equal scores, of which the smaller id is chosen, wherever it stands."""
    x = np.array([(0.0, 0.0), (5.0, 0.0), (0.0, 0.0), (5.0, 0.0), (2.5, 9.0), (2.5, -9.0)])
    for ids, expected in (([7, 3, 8, 4, 1, 2], 5.0), ([3, 7, 4, 8, 1, 2], 0.0)):
        for order in (np.arange(6), np.arange(6)[::-1]):
            value = apply(A.krum(1), x, ids=ids, order=order)[0]
            np.testing.assert_array_equal(value, [expected, 0.0])


def test_weights_of_the_geometric_median():
    weights = np.arange(1, 12)
    found = apply(A.geometric_median(weight="examples"), X, weights=weights)[0]
    np.testing.assert_allclose(found, twins.geometric_median(X, weights=weights), rtol=1e-5)
    assert A.geometric_median(weight="examples").weight == "examples"
    assert A.geometric_median().weight == "uniform"


def test_centered_clipping_goes_on_from_its_last_value():
    reducer, value, state = A.centered_clipping(0.7, iterations=2), 0.0, None
    for x in (X, 2 * X, X - 1):
        found, made = apply(reducer, x, state=state)
        value = twins.centered_clipping(x, 0.7, 2, value)
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)
        state = made.state
        np.testing.assert_array_equal(flat(state), found)
    assert float(made.metrics["clipped_fraction"].compute()) == 1.0


@pytest.mark.parametrize("s", [1, 2, 3])
def test_buckets_are_means_of_a_random_order(s):
    """The means are those of one order of the clients; each client is in one; the order is of the key and the ids."""
    identity = A.Reducer("keep", collect=lambda c: A.Reduced({"a": c.messages["a"], "b": c.messages["b"]}))
    counted = A.Reducer("count", collect=lambda c: A.Reduced(jnp.sum(c.contributes), metrics={"ids": jnp.max(c.ids)}))
    places = [A.Collected(split(X.astype(np.float32)), np.ones(11), np.ones(11, bool), np.arange(11), jax.random.key(k))
              for k in range(3)]  # fmt: skip
    seen = []
    for where in places:
        made = reduced(A.bucketing(s, identity), where).value
        rows = np.concatenate([np.asarray(made["a"]).reshape(-(-11 // s), -1), np.asarray(made["b"])], axis=1)
        assert int(reduced(A.bucketing(s, counted), where).value) == -(-11 // s)
        sizes = np.full(len(rows), s)
        sizes[-1] = 11 - s * (len(rows) - 1)
        np.testing.assert_allclose((rows * sizes[:, None]).sum(axis=0), X.sum(axis=0), rtol=1e-4)
        seen.append(rows)
        order = np.random.default_rng(0).permutation(11)
        there = where._replace(messages=split(X[order].astype(np.float32)), ids=order)
        again = reduced(A.bucketing(s, identity), there).value
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), again, made)
    if s > 1:
        assert np.abs(seen[0] - seen[1]).max() > 1e-3


def test_dnc_on_a_sketch_finds_what_stands_out():
    draw = np.random.default_rng(3)
    x = draw.normal(size=(12, 40))
    x[[2, 7]] += 30
    good = np.delete(x, [2, 7], axis=0).mean(axis=0)
    for key in range(3):
        found, made = apply(A.dnc(2, sketch=10), x, key=key)
        np.testing.assert_allclose(found, good, rtol=1e-4, atol=1e-5)
    found, made = apply(A.dnc(2, iterations=4, sketch=10), x)
    assert 6 <= float(made.metrics["kept"].compute()) <= 10
    assert np.linalg.norm(found - good) < 2


# Conditions

CONDITIONS = {
    "trimmed_mean": (A.trimmed_mean(2), 4),
    "krum": (A.krum(2), 6),
    "multi_krum": (A.multi_krum(2, m=3), 6),
    "bulyan": (A.bulyan(2), 10),
    "dnc": (A.dnc(2), 4),
    "nnm": (A.nnm(2, A.median()), 4),
    "a share": (A.trimmed_mean(0.3), 0),
    "buckets": (A.bucketing(2, A.trimmed_mean(1)), 4),
}
"""A rule, and the largest n at which it refuses a round."""


@pytest.mark.parametrize("name", CONDITIONS)
def test_too_few_clients_refuse_the_round(name):
    reducer, largest = CONDITIONS[name]
    for n in range(12):
        made = apply(reducer, X[:n], padding=12 - n)[1]
        assert bool(made.refused) == (n <= largest), n


def test_rules_without_a_condition_refuse_nothing():
    for reducer in (A.median(), A.geometric_median(), A.centered_clipping(1.0), A.norm_bound(1.0)):
        for n in (0, 1):
            value, made = apply(reducer, X[:n], padding=3)
            assert not made.refused
            assert np.isfinite(value).all()


@pytest.mark.parametrize(("share", "n", "f"), [(0.2, 10, 2), (0.1, 30, 3), (0.3, 10, 3), (0.34, 3, 1), (0.49, 11, 5)])
def test_a_share_is_rounded_down_by_counts(share, n, f):
    x = np.random.default_rng(0).normal(size=(n, 3))
    np.testing.assert_allclose(apply(A.trimmed_mean(share), x)[0], twins.trimmed_mean(x, f), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: A.trimmed_mean(-1), "f=-1: must be the number of bad clients"),
        (lambda: A.krum(0.5), r"f=0.5: .*below 0.5"),
        (lambda: A.krum(True), "f=True"),
        (lambda: A.dnc("2"), "f='2'"),
        (lambda: A.multi_krum(1, m=0), "m=0: must be a whole number, at least 1"),
        (lambda: A.geometric_median(iterations=-1), "iterations=-1"),
        (lambda: A.geometric_median(nu=0), "nu=0: must be positive"),
        (lambda: A.geometric_median(weight="all"), "weight='all'"),
        (lambda: A.centered_clipping(0.0), "tau=0.0: must be positive"),
        (lambda: A.centered_clipping(1.0, iterations=0), "iterations=0"),
        (lambda: A.norm_bound("mean"), "bound='mean'"),
        (lambda: A.norm_bound(-1.0), "bound=-1.0"),
        (lambda: A.dnc(1, c=0.0), "c=0.0"),
        (lambda: A.dnc(1, sketch=0), "sketch=0"),
        (lambda: A.fltrust({"x": np.zeros((0, 2))}, 1), r"server_data=\[\(0,\)\]: must be arrays of one"),
        (lambda: A.fltrust({"x": np.zeros(2), "y": np.zeros(3)}, 1), "server_data="),
        (lambda: A.fltrust({"x": np.zeros(2)}, 0), "steps=0"),
        (lambda: A.bucketing(0, A.median()), "s=0"),
        (lambda: A.bucketing(2, A.mean()), r"then='mean\(examples\)': must be a reducer that collects"),
        (lambda: A.nnm(1, None), "then=None"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(fs.FedSimError, match=message):
        make()


def test_neither_noise_nor_a_secure_sum_goes_with_them():
    for reducer in (*MADE.values(), A.bucketing(2, A.median())):
        with pytest.raises(fs.FedSimError, match="not a sum"):
            A.chain(A.clip_by_l2(1.0), A.gaussian_noise(1.0), reduce=reducer)
        with pytest.raises(fs.FedSimError, match="needs each of them"):
            A.chain(A.clip_by_l2(1.0), A.quantize(8), A.secure_sum(), reduce=reducer)
