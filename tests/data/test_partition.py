"""Partitioners: what every one of them keeps, and the law of each."""

import warnings

import numpy as np
import pytest

import fedjax_sim as fs

ROWS = 1003
LABELS = np.random.default_rng(0).integers(0, 10, ROWS)
PARTITIONERS = {
    "iid": fs.partition.iid(17),
    "dirichlet": fs.partition.dirichlet(alpha=0.3, num_clients=17),
    "dirichlet_tiny": fs.partition.dirichlet(alpha=1e-4, num_clients=17),
    "dirichlet_even": fs.partition.dirichlet(alpha=1e6, num_clients=17),
    "shards": fs.partition.shards(17),
}
every_partitioner = pytest.mark.parametrize("partitioner", PARTITIONERS.values(), ids=PARTITIONERS)


def deal(partitioner, labels=LABELS, seed=0):
    return partitioner(labels, len(labels), np.random.default_rng(seed))


# What every partitioner keeps


@every_partitioner
def test_every_row_belongs_to_one_client(partitioner):
    made = deal(partitioner)
    assert made.offsets[0] == 0
    assert made.offsets[-1] == ROWS
    assert len(made.offsets) == 18
    assert (np.diff(made.offsets) >= 0).all()
    np.testing.assert_array_equal(np.sort(made.index), np.arange(ROWS))


@every_partitioner
def test_the_seed_decides(partitioner):
    same, other = (fs.data.federate({"y": LABELS}, partitioner, seed=seed).index.tolist() for seed in (3, 4))
    assert fs.data.federate({"y": LABELS}, partitioner, seed=3).index.tolist() == same
    assert other != same


@every_partitioner
def test_more_clients_than_examples(partitioner):
    with pytest.raises(fs.FedSimError, match=r"=\d+: there are only 16 "):
        deal(partitioner, LABELS[:16])


@pytest.mark.parametrize("num_clients", [0, -1, 1.5, True, "3"])
@pytest.mark.parametrize(
    "make",
    [fs.partition.iid, fs.partition.shards, lambda n: fs.partition.dirichlet(1.0, num_clients=n)],
    ids=["iid", "shards", "dirichlet"],
)
def test_num_clients_is_a_count(make, num_clients):
    with pytest.raises(fs.FedSimError, match=f"num_clients={num_clients!r}"):
        make(num_clients)


@pytest.mark.parametrize("partitioner", ["dirichlet", "shards"])
@pytest.mark.parametrize(
    "labels, message",
    [
        (None, "needs labels"),
        (np.where(np.arange(50) == 7, np.nan, 1.0), "labels, row 7: nan: a label is missing"),
        (np.array([*"ab" * 20, np.nan, "c"], object), "label"),
        (np.array([*[1.0, 2.0] * 20, np.nan], object), "labels, row 40: nan: a label is missing"),
        (np.array([*["2020-01-01"] * 40, "NaT"], "datetime64[D]"), "label"),
        (np.zeros((50, 2)), r"labels.shape=\(50, 2\)"),
    ],
    ids=["none", "nan", "nan among strings", "nan among objects", "NaT", "rank 2"],
)
def test_labels_that_are_missing_or_misshapen(partitioner, labels, message, monkeypatch):
    # A row without an owner must not be read: left as it comes, its number can size a 20 GB array.
    monkeypatch.setattr(np, "empty", lambda shape, dtype=float: np.full(shape, -1, dtype))
    length = 50 if labels is None else len(labels)
    with pytest.raises(fs.FedSimError, match=message):
        PARTITIONERS[partitioner](labels, length, np.random.default_rng(0))


@pytest.mark.parametrize("arrays", [{"x": np.zeros(50)}, np.zeros(50)], ids=["dict", "array"])
def test_federate_without_labels(arrays):
    with pytest.raises(fs.FedSimError, match=r"fs\.partition\.shards needs labels"):
        fs.data.federate(arrays, fs.partition.shards(5))
    assert fs.data.federate(arrays, fs.partition.iid(5)).num_examples == 50


@every_partitioner
def test_labels_of_any_kind_and_name(partitioner):
    words = np.array([f"class {label}" for label in LABELS])
    by_number = fs.data.federate({"y": LABELS}, partitioner, seed=1)
    by_word = fs.data.federate({"word": words}, partitioner, seed=1, labels="word")
    np.testing.assert_array_equal(by_number.index, by_word.index)


# iid


@pytest.mark.parametrize("num_clients", [1, 2, 16, 17])
def test_iid_shares_are_equal(num_clients):
    sizes = np.diff(deal(fs.partition.iid(num_clients), LABELS[:17]).offsets)
    assert sizes.max() - sizes.min() <= 1


# Dirichlet, class by class


def shares(partitioner, classes, clients, rows):
    """[classes, clients] each client's share of each class of `rows` rows."""
    labels = np.repeat(np.arange(classes), rows)
    made = deal(partitioner, labels)
    owner = np.empty(len(labels), int)
    owner[made.index] = np.repeat(np.arange(clients), np.diff(made.offsets))
    return np.stack([np.bincount(part, minlength=clients) for part in owner.reshape(-1, rows)]) / (rows)


def has_moments(shares, alpha, sigmas=5):
    """Mean 1/K and variance (K - 1) / (K^2 (K alpha + 1)), within standard errors over the classes."""
    draws, K = shares.shape
    squares = ((shares - 1 / K) ** 2).mean(axis=1)
    variance = (K - 1) / (K**2 * (K * alpha + 1))

    def near(values, mean):
        return np.abs(values.mean(0) - mean) <= sigmas * values.std(0, ddof=1) / draws**0.5

    return bool(near(shares, 1 / K).all() and near(squares, variance))


def hsu(alpha, draws, K, classes=10):
    """Hsu et al. (2019): each client draws its labels from Dir(alpha x prior); shares of every class."""
    generator = np.random.default_rng(0)
    q = generator.dirichlet(np.full(classes, alpha / classes), size=(draws // classes, K))
    q = np.maximum(q, 1e-12)
    return (q / q.sum(axis=1, keepdims=True)).transpose(0, 2, 1).reshape(-1, K)


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0, 10.0])
def test_dirichlet_moments(alpha):
    draws, K = 2000, 5
    made = shares(fs.partition.dirichlet(alpha, K), draws, K, rows=200)
    assert has_moments(made, alpha)
    # The test has teeth: other concentrations, and other laws of the same name.
    for other in 2 / 3 * alpha, 3 / 2 * alpha, alpha / K, K * alpha:
        assert not has_moments(made, other)
    assert not has_moments(hsu(alpha, draws, K), alpha)


def test_dirichlet_rounding_favours_no_client():
    """With few rows a class, cutting down instead of to the nearest row would feed the last client."""
    made = shares(fs.partition.dirichlet(1.0, 4), 4000, 4, rows=3)
    difference = made - made[:, ::-1]  # 0 in the mean, as the law is the same from either end
    assert (np.abs(difference.mean(0)) <= 5 * difference.std(0) / 4000**0.5).all()


@pytest.mark.parametrize("alpha", [1e-4, 1e-100])
def test_dirichlet_at_a_tiny_alpha_gives_whole_classes(alpha):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = shares(fs.partition.dirichlet(alpha, 5), 500, 5, rows=20)
    assert np.mean(made.max(axis=1) == 1) > 0.95
    winners = np.bincount(made.argmax(axis=1), minlength=5)
    assert (np.abs(winners - 100) < 5 * 80**0.5).all()


@pytest.mark.parametrize("alpha", [0, -1.0, np.nan, np.inf, -np.inf, "a", None, [1.0]], ids=repr)
def test_alpha_is_positive_and_finite(alpha):
    with pytest.raises(fs.FedSimError, match="alpha="):
        fs.partition.dirichlet(alpha, 10)


# Shards


@pytest.mark.parametrize("clients, each, rows", [(50, 2, 1000), (50, 2, 1003), (7, 3, 1003)])
def test_shards_are_equal_whole_and_used_once(clients, each, rows):
    labels = np.random.default_rng(1).permutation(np.arange(rows) % 10)
    made = deal(fs.partition.shards(clients, each), labels)
    place = np.empty(rows, int)  # of a row, after a stable sort by label
    place[np.argsort(labels, kind="stable")] = np.arange(rows)
    total, cuts = clients * each, set()
    for own in np.split(made.index, made.offsets[1:-1]):
        places = np.sort(place[own])
        runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
        assert len(runs) <= each
        assert abs(len(own) - each * rows / total) <= each
        assert len(np.unique(labels[own])) <= 2 * each
        cuts |= {int(run[0]) for run in runs}
    assert len(cuts) > total / 2  # neighbouring shards may meet in one client
    lengths = np.diff([*sorted(cuts), rows]) * total / rows
    np.testing.assert_allclose(lengths, np.rint(lengths), atol=total / rows)  # whole shards only


def test_shards_that_fall_on_class_borders_hold_one_label():
    labels = np.repeat(np.arange(10), 100)
    data = fs.data.federate({"y": labels}, fs.partition.shards(50, 2))
    assert (data.sizes == 20).all()
    assert all(len(np.unique(data.client(k)["y"])) <= 2 for k in range(50))


@pytest.mark.parametrize("each", [0, 1.5, True])
def test_shards_per_client_is_a_count(each):
    with pytest.raises(fs.FedSimError, match=f"shards_per_client={each!r}"):
        fs.partition.shards(3, each)
