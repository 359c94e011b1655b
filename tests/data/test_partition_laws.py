"""Partitioners by mixtures, sizes, classes and columns: literal cases, and the moments of every random law.

Moments are compared within 5 standard errors of the sample (a chance of 6e-7 a comparison, at a fixed seed), and the
same test must refuse the neighbouring law.
"""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs

ROWS = 1003
LABELS = np.random.default_rng(0).integers(0, 10, ROWS)
SIZED = {
    "quantity_dirichlet": lambda K, **kw: fs.partition.quantity_dirichlet(0.3, K, **kw),
    "lognormal": lambda K, **kw: fs.partition.lognormal(1.5, K, **kw),
    "power_law": lambda K, **kw: fs.partition.power_law(1.2, K, **kw),
    "linear": fs.partition.linear,
    "square": fs.partition.square,
    "exponential": fs.partition.exponential,
}
MIXED = {
    "dirichlet_labels": lambda K, **kw: fs.partition.dirichlet_labels(0.5, K, **kw),
    "pachinko": lambda K, **kw: fs.partition.pachinko(0.1, 10.0, K, LABELS // 4, **kw),
}
WHOLE = {**SIZED, "pathological": lambda K: fs.partition.pathological(3, K)}
EVERY = {**WHOLE, **MIXED}


def deal(partitioner, labels: Any = LABELS, seed=0):
    return partitioner(labels, len(labels), np.random.default_rng(seed))


def counts(made, labels):
    """[K, C] rows of each class."""
    parts = np.split(made.index, made.offsets[1:-1])
    return np.stack([np.bincount(labels[part], minlength=labels.max() + 1) for part in parts])


def near(sample, mean, sigmas=5):
    """Whether the mean of [draws] independent numbers is within standard errors of `mean`."""
    sample = np.asarray(sample, float)
    return bool(np.abs(sample.mean() - mean) <= sigmas * sample.std(ddof=1) / len(sample) ** 0.5)


# What all keep


@pytest.mark.parametrize("make", WHOLE.values(), ids=WHOLE)
def test_every_row_belongs_to_one_client(make):
    made = deal(make(17))
    assert len(made.offsets) == 18
    assert made.offsets[0] == 0
    assert made.offsets[-1] == ROWS
    np.testing.assert_array_equal(np.sort(made.index), np.arange(ROWS))


@pytest.mark.parametrize("make", MIXED.values(), ids=MIXED)
def test_clients_of_mixtures_are_equal_and_share_no_row(make):
    made = deal(make(17))
    assert np.diff(made.offsets).tolist() == [59] * 17  # 1003 = 17 x 59
    assert len(set(made.index.tolist())) == ROWS
    sizes = [*range(16), 3]
    made = deal(make(17, sizes=sizes))
    assert np.diff(made.offsets).tolist() == sizes
    assert len(set(made.index.tolist())) == sum(sizes)


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_the_seed_decides(make):
    one, same, other = (deal(make(17), seed=seed).index.tolist() for seed in (3, 3, 4))
    assert one == same != other


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_num_clients_is_a_count(make):
    with pytest.raises(fs.FedSimError, match="num_clients=0"):
        make(0)


@pytest.mark.parametrize("make", {**SIZED, "dirichlet_labels": MIXED["dirichlet_labels"]}.values())
def test_more_clients_than_examples(make):
    with pytest.raises(fs.FedSimError, match="num_clients=17: there are only 16 "):
        deal(make(17), LABELS[:16])


@pytest.mark.parametrize("name", ["dirichlet_labels", "pachinko", "pathological"])
def test_laws_of_classes_need_labels(name):
    with pytest.raises(fs.FedSimError, match=rf"fs\.partition\.{name} needs labels"):
        EVERY[name](5)(None, ROWS, np.random.default_rng(0))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_rows_are_dealt_once_whatever_the_classes(data):
    labels = np.array(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=40)))
    K = data.draw(st.integers(1, len(labels)))
    alpha = data.draw(st.sampled_from([1e-100, 1e-3, 1.0, 1e6]))
    makers = [
        fs.partition.dirichlet_labels(alpha, K),
        fs.partition.dirichlet_labels(alpha, K, per_coordinate=True),
        fs.partition.pachinko(alpha, alpha, K, labels // 2),
        fs.partition.quantity_dirichlet(alpha, K),
        fs.partition.exponential(K),
    ]
    for i, partitioner in enumerate(makers):
        made = deal(partitioner, labels, seed=data.draw(st.integers(0, 9)))
        assert len(np.unique(made.index)) == len(made.index) == made.offsets[-1]
        assert len(made.index) == (len(labels) if i > 2 else len(labels) // K * K)
        if i < 3:
            assert set(np.diff(made.offsets).tolist()) == {len(labels) // K}


# Mixtures: laws, as long as no class runs out


def mixtures(partitioner, clients, classes=5, rows=200, **kw):
    """[clients, C] class frequencies of clients of `rows` rows; classes are far too large to run out."""
    labels = np.arange(clients * classes * rows) % classes
    return counts(deal(partitioner(clients, sizes=rows, **kw), labels), labels) / rows


def has_moments(q, prior, alpha, rows=200):
    """Mean p and variance p (1 - p) (1 + (rows - 1) / (alpha + 1)) / rows: Dirichlet-multinomial, alpha in total."""
    variance = prior * (1 - prior) * (1 / (alpha + 1) + (1 - 1 / (alpha + 1)) / rows)
    squares = (q - prior) ** 2
    each = all(near(q[:, c], prior[c]) and near(squares[:, c], variance[c]) for c in range(len(prior)))
    return each and near(squares.sum(1), variance.sum())


@pytest.mark.parametrize("alpha", [0.3, 1.0, 10.0])
def test_dirichlet_labels_has_the_moments_of_the_total_concentration(alpha):
    even = np.full(5, 0.2)
    total = mixtures(lambda K, **kw: fs.partition.dirichlet_labels(alpha, K, **kw), 2000)
    each = mixtures(lambda K, **kw: fs.partition.dirichlet_labels(alpha, K, per_coordinate=True, **kw), 2000)
    assert has_moments(total, even, alpha)
    assert has_moments(each, even, 5 * alpha)
    for wrong in 2 / 3 * alpha, 3 / 2 * alpha, 5 * alpha, alpha / 5:
        assert not has_moments(total, even, wrong)
    assert not has_moments(each, even, alpha)


def test_a_prior_is_the_mean_of_the_mixtures_and_by_default_the_classes_frequencies():
    prior = np.array([0.4, 0.3, 0.1, 0.1, 0.1])
    q = mixtures(lambda K, **kw: fs.partition.dirichlet_labels(1.0, K, prior=10 * prior, **kw), 2000)
    assert has_moments(q, prior, 1.0)
    assert not has_moments(q, np.full(5, 0.2), 1.0)
    labels = np.repeat([0, 1], [900_000, 300_000])
    q = counts(deal(fs.partition.dirichlet_labels(1.0, 2000, sizes=200), labels), labels) / 200
    assert has_moments(q, np.array([0.75, 0.25]), 1.0)


def test_pachinko_has_the_moments_of_both_levels():
    labels = np.arange(2000 * 6 * 200) % 6
    made = deal(fs.partition.pachinko(0.5, 3.0, 2000, labels // 2, sizes=200), labels)
    q = counts(made, labels) / 200
    coarse = q.reshape(-1, 3, 2).sum(2)
    third = np.full(3, 1 / 3)
    assert has_moments(coarse, third, 3 * 0.5)
    assert not has_moments(coarse, third, 0.5)
    assert not has_moments(coarse, third, 3.0)
    # Within a coarse class: E(q_f^2) = E(coarse^2) E(share^2), where n (n - 1) takes the multinomial's own part away.
    n = counts(made, labels)
    pairs = (n * (n - 1)).mean(1) / (200 * 199)
    of_coarse, of_fine = (2 / 3 / 2.5 + 1 / 3) / 3, lambda b: (0.5 / (2 * b + 1) + 0.5) / 2
    assert near(pairs, of_coarse * of_fine(3.0))
    assert not near(pairs, of_coarse * of_fine(0.5))
    assert not near(pairs, of_coarse * of_fine(50.0))


def test_a_class_that_runs_out_is_passed_over_in_the_old_proportions():
    """Of the classes a (1 row), b and c, two rows at 1/3 each and then renormalised: enumerated by hand."""
    from fedjax_sim.data.partition.mixtures import _draw

    generator, log = np.random.default_rng(0), np.log(np.array([0.5, 0.3, 0.2]))
    drawn = np.array([_draw(generator, log, np.array([1, 5, 5]), 2) for _ in range(20000)])
    # a then b, c: 0.5; b or c, then a: 0.5 x 0.5; never more than one a
    assert drawn[:, 0].max() == 1
    assert (drawn.sum(1) == 2).all()
    assert near(drawn[:, 0], 0.75)
    assert near(drawn[:, 1], 0.5 * 0.6 + 0.3 * (1 + 0.3) + 0.2 * 0.3)


def test_errors_of_mixtures():
    for kw, message in [
        ({"prior": [0.5, -1.0]}, "prior=.*positive"),
        ({"prior": [1.0], "per_coordinate": True}, "prior: per_coordinate"),
        ({"sizes": [1, 2]}, "sizes=.*each of 3 clients"),
        ({"sizes": 1.5}, "sizes=1.5"),
    ]:
        with pytest.raises(fs.FedSimError, match=message):
            fs.partition.dirichlet_labels(1.0, 3, **kw)
    with pytest.raises(fs.FedSimError, match=r"len\(prior\)=2: there are 10 classes"):
        deal(fs.partition.dirichlet_labels(1.0, 3, prior=[1.0, 1.0]))
    with pytest.raises(fs.FedSimError, match=r"sum\(sizes\)=1200: there are only 1003"):
        deal(fs.partition.dirichlet_labels(1.0, 3, sizes=400))
    with pytest.raises(fs.FedSimError, match="class 7 lies in two coarse"):
        deal(fs.partition.pachinko(1.0, 1.0, 2, [0, 0, 1]), np.array([5, 7, 7]))
    with pytest.raises(fs.FedSimError, match=r"len\(coarse_labels\)=2: must be the number of rows, 1003"):
        deal(fs.partition.pachinko(1.0, 1.0, 2, [0, 0]))


# Sizes


@pytest.mark.parametrize(
    "partitioner, rows, sizes",
    [
        (fs.partition.linear(3), 8, [1, 3, 4]),  # 1.33, 2.67, 4
        (fs.partition.linear(3, min_size=1), 9, [2, 3, 4]),
        (fs.partition.square(3), 15, [1, 4, 10]),  # 1.07, 4.29, 9.64
        (fs.partition.exponential(3), 100, [9, 24, 67]),  # 9.003, 24.473, 66.524
        (fs.partition.exponential(800), 800, None),
        (fs.partition.power_law(2.0, 3), 49, [36, 9, 4]),
        (fs.partition.power_law(0.0, 3), 7, [3, 2, 2]),
    ],
)
def test_sizes_of_fixed_laws(partitioner, rows, sizes):
    made = np.diff(deal(partitioner, np.zeros(rows, int)).offsets)
    assert made.sum() == rows
    assert sizes is None or made.tolist() == sizes


@pytest.mark.parametrize("make", SIZED.values(), ids=SIZED)
def test_min_size_comes_first_and_too_much_of_it_is_refused(make):
    assert np.diff(deal(make(17, min_size=50)).offsets).min() >= 50
    assert np.diff(deal(make(17, min_size=59)).offsets).tolist() == [59] * 17
    with pytest.raises(fs.FedSimError, match="min_size=60: 17 clients of that size need 1020 examples, there are 1003"):
        deal(make(17, min_size=60))


def test_quantity_dirichlet_has_the_moments_of_its_law():
    K, alpha, rows = 4, 0.5, 4000
    draws = [np.diff(deal(fs.partition.quantity_dirichlet(alpha, K), np.zeros(rows), s).offsets) for s in range(3000)]
    share = np.array(draws)[:, 2] / rows
    assert near(share, 1 / K)
    for a in alpha, alpha / K, alpha * K, 1.3 * alpha:
        assert near((share - 1 / K) ** 2, (K - 1) / (K**2 * (K * a + 1))) == (a == alpha)


def test_lognormal_sizes_have_logarithms_of_that_standard_deviation():
    sizes = np.diff(deal(fs.partition.lognormal(0.7, 3000), np.zeros(3_000_000)).offsets)
    z = np.log(sizes)
    z = z - z.mean()
    assert near(z**2, 0.49)
    assert not near(z**2, 0.7)
    assert not near(z**2, 0.36)


def test_dirichlet_with_a_min_size_draws_until_it_is_met_or_says_why_not():
    made = deal(fs.partition.dirichlet(0.3, 10, min_size=40))
    assert np.diff(made.offsets).min() >= 40
    plain = [deal(fs.partition.dirichlet(5.0, 5, min_size=n)).index.tolist() for n in (0, 1)]
    assert plain[0] == plain[1]  # a first draw that is good enough stays
    with pytest.raises(fs.FedSimError, match=r"min_size=90: in 100 draws the smallest client had at most \d+ rows"):
        deal(fs.partition.dirichlet(0.01, 10, min_size=90))


# Classes and columns


@pytest.mark.parametrize("c, K", [(2, 5), (3, 20), (7, 11), (10, 3), (1, 10)])
def test_pathological_clients_hold_so_many_classes_in_even_shares(c, K):
    labels = np.arange(1000) % 10
    held = counts(deal(fs.partition.pathological(c, K), labels), labels)
    assert ((held > 0).sum(1) == c).all()
    takers = (held > 0).sum(0)
    assert takers.max() - takers.min() <= 1
    for of_class in held.T:
        of_class = of_class[of_class > 0]
        assert of_class.sum() == 100
        assert of_class.max() - of_class.min() <= 1


def test_pathological_deterministic_is_a_ring_of_classes():
    labels = np.repeat([0, 1, 2, 3], 4)
    held = counts(deal(fs.partition.pathological(2, 4, assign="deterministic"), labels), labels)
    assert held.tolist() == [[2, 2, 0, 0], [0, 2, 2, 0], [0, 0, 2, 2], [2, 0, 0, 2]]


def test_errors_of_pathological():
    with pytest.raises(fs.FedSimError, match="assign='ring'"):
        fs.partition.pathological(2, 5, assign="ring")
    with pytest.raises(fs.FedSimError, match="classes_per_client=11: there are only 10"):
        deal(fs.partition.pathological(11, 5))
    with pytest.raises(fs.FedSimError, match="num_clients=4: 2 of 10 classes would go to nobody"):
        deal(fs.partition.pathological(2, 4))
    with pytest.raises(fs.FedSimError, match="num_clients=3: 3 clients are to hold class 0, which has only 2 rows"):
        deal(fs.partition.pathological(1, 3), np.zeros(2, int))


def test_by_column_gives_each_value_its_rows_in_order_of_values():
    for column in (np.array(["b", "a", "b", "c"]), np.array([b"b", b"a", b"b", b"c"], object), [7, -1, 7, 9]):
        made = deal(fs.partition.by_column(column), np.zeros(4))
        assert made.offsets.tolist() == [0, 1, 3, 4]
        assert made.index.tolist() == [1, 0, 2, 3]


def test_errors_of_by_column():
    with pytest.raises(fs.FedSimError, match=r"len\(values\)=2: must be the number of rows, 1003"):
        deal(fs.partition.by_column([1, 2]))
    with pytest.raises(fs.FedSimError, match="values, row 1: nan: a value is missing"):
        fs.partition.by_column([1.0, np.nan])
    with pytest.raises(fs.FedSimError, match="values: cannot be sorted"):
        fs.partition.by_column(np.array([1, "a"], object))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (["a", None, "b"], "values, row 1: None: a value is missing"),
        (np.array([3, 4, None], object), "values, row 2: None: a value is missing"),
        (["a", "b", float("nan")], "values, row 2: nan: a value is missing"),
        (pd.Series(["a", pd.NA]), "values, row 1: .*: a value is missing"),
        (pd.array([1, None], "Int64"), "values, row 1: .*: a value is missing"),
        (np.array(["2020-01-01", "NaT"], "M8[D]"), "values, row 1: NaT: a value is missing"),
        (["a", ""], "values, row 1: is an empty text"),
        (np.array([b"a", b""]), "values, row 1: is an empty text"),
        ([1, "1"], "values: cannot be sorted"),
    ],
)
def test_by_column_names_the_row_without_a_value(values, match):
    with pytest.raises(fs.FedSimError, match=match):
        fs.partition.by_column(values)


CLASSWISE = {
    "dirichlet": lambda: fs.partition.dirichlet(1.0, 3),
    "dirichlet_labels": lambda: fs.partition.dirichlet_labels(1.0, 3),
    "pachinko": lambda: fs.partition.pachinko(1.0, 1.0, 3, np.zeros(300, int)),
}


@pytest.mark.parametrize("name", CLASSWISE)
def test_labels_that_are_no_classes_are_said(name):
    targets = np.random.default_rng(0).normal(size=300)
    for labels in (targets, np.round(targets, 1), np.arange(300)):
        with pytest.warns(UserWarning, match=f"fs.partition.{name} deals rows class by class, and the 300 labels have"):
            fs.data.federate({"y": labels}, CLASSWISE[name]())
    for labels in (np.arange(300) % 100, np.arange(300) % 10 / 2, (np.arange(300) % 100).astype(float)):
        fs.data.federate({"y": labels}, CLASSWISE[name]())  # a warning would be an error
    fs.data.federate({"y": targets}, fs.partition.shards(3))  # which sorts them


def test_labels_that_are_none_are_missing():
    with pytest.raises(fs.FedSimError, match="labels, row 1: None: a label is missing"):
        deal(fs.partition.dirichlet(1.0, 2), np.array(["a", None, "a"], object))


def test_a_partition_by_column_is_called_natural_and_others_synthetic():
    arrays = {"y": LABELS}
    assert fs.data.federate(arrays, fs.partition.by_column(LABELS)).about["partition"] == "natural: by_column"
    assert fs.data.federate(arrays, fs.partition.linear(3)).about["partition"] == "synthetic: linear"
