"""Federations: construction, one client's view, joining, splitting, and the set that is ready to load."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import fedjax_sim as fs
from fedjax_sim.data import FederatedData, from_clients, split

X = {"x": np.arange(6.0), "y": np.arange(12).reshape(6, 2)}


def owned(data):
    return [data.rows(k).tolist() for k in range(data.num_clients)]


# Construction


@pytest.mark.parametrize(
    "offsets, index, rows",
    [
        ([0, 2, 2, 6], None, [[0, 1], [], [2, 3, 4, 5]]),
        ([0, 2, 5], None, [[0, 1], [2, 3, 4]]),  # row 5 is nobody's
        (np.array([0, 2, 5], np.int32), [5, 0, 3, 1, 2], [[5, 0], [3, 1, 2]]),
        ([0, 1], np.array([4], np.uint8), [[4]]),
        ([0, 0], np.zeros(0, int), [[]]),
    ],
)
def test_clients_hold_their_rows(offsets, index, rows):
    data = FederatedData(X, offsets, index)
    assert owned(data) == rows
    assert data.num_clients == len(rows)
    assert data.sizes.tolist() == [len(own) for own in rows]
    assert data.num_examples == sum(map(len, rows))
    for k, own in enumerate(rows):
        client = data.client(k)
        np.testing.assert_array_equal(client["x"], X["x"][own])
        np.testing.assert_array_equal(client["y"], X["y"][own])
    assert f"{len(rows)} clients, {data.num_examples} examples" in repr(data)


def test_nothing_is_copied_to_regroup_rows():
    data = FederatedData(X, [0, 2, 4], [3, 2, 1, 0])
    assert data.arrays is X
    assert all(part.arrays is X for part in split(data, 0.5))


@pytest.mark.parametrize("arrays", [np.arange(6.0), (np.arange(6.0), X), jnp.arange(6.0)])
def test_arrays_are_any_pytree(arrays):
    client = FederatedData(arrays, [0, 2, 6]).client(1)
    first = client[0] if isinstance(client, tuple) else client
    assert isinstance(first, np.ndarray)
    assert first.tolist() == [2, 3, 4, 5]


def test_names():
    assert FederatedData(X, [0, 2, 6]).name(1) == "1"
    assert FederatedData(X, [0, 2, 6], client_ids=["ann", "bob"]).name(1) == "bob"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"offsets": [1, 6]}, "offsets=.*start at 0"),
        ({"offsets": [0, 4, 2, 6]}, "offsets=.*never decrease"),
        ({"offsets": [0]}, "offsets=.*at least one client"),
        ({"offsets": [[0, 6]]}, "offsets="),
        ({"offsets": [0, 1.5, 6]}, "offsets"),
        ({"offsets": [0, 7]}, r"offsets\[-1\]=7.*6 rows"),
        ({"index": [0, 1, 2]}, r"len\(index\)=3.*6"),
        ({"index": [0, 1, 2, 3, 4, 6]}, r"index=\(0, 6\).*0\.\.5"),
        ({"index": [0, 1, 2, 3, 4, -1]}, r"index=\(-1, 4\)"),
        ({"index": [0.0, 1, 2, 3, 4, 5]}, "index.dtype"),
        ({"index": np.ones(6, bool)}, "index.dtype"),
        ({"index": [[0, 1, 2, 3, 4, 5]]}, "index.shape"),
        ({"client_ids": ["a", "b"]}, r"len\(client_ids\)=2"),
        ({"offsets": [0, 1, 2, 6], "client_ids": ["a", "b", "a"]}, r"client_ids: 'a' comes twice"),
        ({"offsets": [0, 1, 6], "client_ids": np.array(["b", "b"])}, r"client_ids: 'b' comes twice"),
        ({"arrays": {}}, "arrays="),
        ({"arrays": {"x": np.zeros(6), "y": np.zeros(5)}}, r"6, .*y.*5}"),
        ({"arrays": {"x": np.zeros(6), "y": np.zeros(())}}, r"arrays\['y'\]"),
        ({"arrays": {"x": [1, 2, 3]}}, r"arrays\['x'\]\[0\]"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_federations_that_cannot_be(changes, message):
    with pytest.raises(fs.FedSimError, match=message):
        FederatedData(**{"arrays": X, "offsets": [0, 6], **changes})


@pytest.mark.parametrize("client", [-1, 2, 0.5, True, "0"], ids=repr)
@pytest.mark.parametrize("method", ["client", "rows", "name"])
def test_clients_that_do_not_exist(method, client):
    with pytest.raises(fs.FedSimError, match=f"client={client!r}"):
        getattr(FederatedData(X, [0, 2, 6]), method)(client)


# Joining clients


def test_from_clients_keeps_every_client():
    clients = [{"x": np.full((n, 2), n, np.uint8), "y": np.arange(n)} for n in (2, 0, 3)]
    data = from_clients(clients, ["a", "b", "c"])
    assert data.arrays["x"].dtype == np.uint8
    for k, client in enumerate(clients):
        for name in client:
            np.testing.assert_array_equal(data.client(k)[name], client[name])


@pytest.mark.parametrize("names, who", [(None, "client 1"), (["ann", "bob"], "client bob")])
@pytest.mark.parametrize(
    "odd",
    [{"x": np.zeros((2, 4))}, {"x": np.zeros((2, 3), np.float32)}, {"z": np.zeros((2, 3))}],
    ids=["shape", "dtype", "entry"],
)
def test_from_clients_names_the_odd_one(odd, names, who):
    with pytest.raises(fs.FedSimError, match=f"{who}: .* differ from the first client's"):
        from_clients([{"x": np.zeros((2, 3))}, odd], names)


def test_from_clients_wants_different_names():
    with pytest.raises(fs.FedSimError, match="'ann' comes twice; clients must have different names"):
        from_clients([{"x": np.zeros(2)}] * 2, ["ann", "ann"])


@pytest.mark.parametrize("clients", [[], [{"x": np.zeros(2), "y": np.zeros(3)}]])
def test_from_clients_needs_whole_clients(clients):
    with pytest.raises(fs.FedSimError):
        from_clients(clients)


# Splitting

FEDERATION = FederatedData(
    {"x": np.arange(100.0)},
    np.cumsum([0, 0, 1, 2, 3, 25, 30, 10]),
    np.random.default_rng(0).permutation(100)[:71],
    [*"abcdefg"],
)


@pytest.mark.parametrize("test", [0, 0.1, 0.2, 0.5, 1])
def test_split_by_example(test):
    train, held = split(FEDERATION, test, seed=1)
    assert held.sizes.tolist() == [round(test * n) for n in FEDERATION.sizes]
    for ours, theirs, both in zip(owned(train), owned(held), owned(FEDERATION), strict=True):
        assert sorted(ours + theirs) == sorted(both)  # disjoint, and nothing lost
        assert ours == [row for row in both if row in ours]  # in the stored order
    assert train.name(4) == held.name(4) == "e"


@pytest.mark.parametrize("data", [FEDERATION, FederatedData(X, np.arange(7))], ids=["named", ""])
@pytest.mark.parametrize("test", [0.2, 0.5])
def test_split_by_client(data, test):
    train, held = split(data, test, by="client", seed=1)
    assert held.num_clients == round(test * data.num_clients)
    found = {part.name(k): owned(part)[k] for part in (train, held) for k in range(len(part.sizes))}
    assert found == {data.name(k): owned(data)[k] for k in range(data.num_clients)}


@pytest.mark.parametrize("by", ["example", "client"])
def test_split_is_decided_by_the_seed(by):
    first, again, other = (owned(split(FEDERATION, 0.4, by=by, seed=seed)[0]) for seed in (0, 0, 1))
    assert first == again != other


def test_a_clients_split_does_not_depend_on_the_others():
    def held_out(sizes):
        data = FederatedData(np.zeros(sum(sizes)), np.cumsum([0, *sizes]))
        return split(data, 0.3, seed=5)[1].rows(2) - data.offsets[2]

    np.testing.assert_array_equal(held_out([4, 9, 20, 7]), held_out([0, 50, 20]))


def test_split_holds_out_every_example_equally_often():
    clients, n = 4000, 5
    data = FederatedData(np.zeros(clients * n), n * np.arange(clients + 1))
    held = split(data, 0.4)[1].index.reshape(clients, 2) % n
    pairs = np.bincount(held[:, 0] * n + held[:, 1], minlength=n * n).reshape(n, n)
    assert stats.chisquare(pairs[np.triu_indices(n, 1)]).pvalue > 1e-3
    assert pairs[np.triu_indices(n, 1)].sum() == clients


@pytest.mark.parametrize(
    "options, message",
    [
        ({"test": -0.1}, "test=-0.1"),
        ({"test": 1.1}, "test=1.1"),
        ({"test": float("nan")}, "test=nan"),
        ({"test": 0.5, "by": "row"}, "by='row'"),
        ({"test": 0, "by": "client"}, "test=0"),
        ({"test": 1, "by": "client"}, "test=1"),
        ({"test": 0.01, "by": "client"}, "test=0.01"),
        ({"test": 0.5, "seed": -1}, "seed=-1"),
        ({"test": 0.5, "seed": 2**32}, "seed=4294967296"),
        ({"test": 0.5, "seed": 0.5}, "seed=0.5"),
    ],
    ids=str,
)
def test_splits_that_cannot_be(options, message):
    with pytest.raises(fs.FedSimError, match=re.escape(message)):
        split(FEDERATION, **options)


# Data by name


def test_digits():
    from sklearn.datasets import load_digits

    digits = fs.data.load("digits")
    for part, rows in (digits.train, 1437), (digits.test, 360):
        assert part["x"].shape == (rows, 8, 8, 1)
        assert part["y"].shape == (rows,)
        assert (part["x"].dtype, part["y"].dtype) == (np.float32, np.int32)
        assert (np.bincount(part["y"], minlength=10) > rows / 20).all()
    x = np.concatenate([digits.train["x"], digits.test["x"]]).reshape(-1, 64)
    y = np.concatenate([digits.train["y"], digits.test["y"]])
    assert (x.min(), x.max()) == (0, 1)
    pictures, labels = load_digits(return_X_y=True)
    ours, theirs = np.c_[x * 16, y], np.c_[pictures, labels]
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])
    np.testing.assert_array_equal(fs.data.load("digits").train["x"], digits.train["x"])


def test_unknown_data():
    with pytest.raises(fs.FedSimError, match=r"name='emnist5': unknown data set; there are digits"):
        fs.data.load("emnist5")


def test_empty_clients_are_counted_where_data_are_shown():
    data = fs.data.federate({"y": np.zeros(6, int)}, fs.partition.exponential(4))
    empty = int(sum(size == 0 for size in data.sizes))
    assert empty == 1
    assert data.about["partition"] == "synthetic: exponential, 1 of 4 clients without an example"
    assert "max 4 a client; 1 without any)" in repr(data)
    assert "max 4; 1 without any" in data._repr_html_()
    assert "without" not in repr(fs.data.FederatedData({"y": np.zeros(2)}, [0, 1, 2]))


def test_what_is_said_about_the_data_stays_with_them():
    about = {"title": "Ten", "licence": "CC0", "client": "none: partition it", "partition": "none"}
    data = fs.data.federate({"y": np.arange(10) % 2}, fs.partition.iid(5), about=about)
    assert data.about == {"title": "Ten", "licence": "CC0", "partition": "synthetic: iid"}
    assert about["partition"] == "none"
    for by in ("example", "client"):
        assert [part.about for part in fs.data.split(data, 0.4, by=by)] == [data.about] * 2
    assert "CC0" in data._repr_html_()


def test_a_clients_arrays_are_copies():
    x = np.arange(5)
    for index in (None, np.arange(5)):
        fs.data.FederatedData({"x": x}, [0, 5], index).client(0)["x"][:] = 9
    assert x.tolist() == [0, 1, 2, 3, 4]
