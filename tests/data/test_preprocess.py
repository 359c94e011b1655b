"""Federation to federation, against NumPy on each client's own rows."""

import numpy as np
import pytest

import fedjax_sim as fs

RNG = np.random.default_rng(0)
X = RNG.normal(3.0, 2.0, (40, 4, 3))
TRAIN = fs.data.FederatedData({"x": X, "y": np.arange(40)}, [0, 10, 10, 25], RNG.permutation(40)[:25])
TEST = fs.data.FederatedData({"x": X, "y": np.arange(40)}, [0, 2, 7, 9], np.setdiff1d(np.arange(40), TRAIN.index)[:9])


def test_each_feature_has_mean_0_and_deviation_1_over_the_training_rows_alone():
    made = fs.data.normalise(TRAIN, TEST)
    rows = X[TRAIN.index]
    np.testing.assert_allclose(made.mean, rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(made.deviation, rows.std(0), rtol=1e-6)
    for before, after in zip((TRAIN, TEST), made.data, strict=True):
        want = (X[before.index] - rows.mean(0)) / rows.std(0)
        np.testing.assert_allclose(after.arrays["x"], want, rtol=1e-4, atol=1e-5)
        assert after.arrays["x"].dtype == np.float32
        np.testing.assert_array_equal(after.arrays["y"], before.index)
        np.testing.assert_array_equal(after.offsets, before.offsets)


def test_test_rows_change_no_figure():
    wild = fs.data.FederatedData({"x": np.full_like(X, 1e6), "y": np.arange(40)}, TEST.offsets, TEST.index)
    np.testing.assert_array_equal(fs.data.normalise(TRAIN, wild).mean, fs.data.normalise(TRAIN).mean)


def test_a_client_without_training_rows_takes_the_figures_of_all():
    made = fs.data.normalise(TRAIN, TEST, by="client")
    own = [X[TRAIN.rows(0)], X[TRAIN.index], X[TRAIN.rows(2)]]
    for k in range(3):
        np.testing.assert_allclose(made.mean[k], own[k].mean(0), rtol=1e-6)
        np.testing.assert_allclose(made.deviation[k], own[k].std(0), rtol=1e-6)
        want = (X[TEST.rows(k)] - own[k].mean(0)) / own[k].std(0)
        np.testing.assert_allclose(made.data[1].client(k)["x"], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("features", "over"), [((1,), (0, 1)), ((-1,), (0, 1)), ((), (0, 1, 2)), ((0,), (0, 2))])
def test_axes_share_figures(features, over):
    made = fs.data.normalise(TRAIN, features=features)
    rows = X[TRAIN.index]
    np.testing.assert_allclose(made.mean, rows.mean(over), rtol=1e-6)
    np.testing.assert_allclose(made.deviation, rows.std(over), rtol=1e-6)
    kept = np.expand_dims(rows.mean(over), [axis - 1 for axis in over if axis])
    spread = np.expand_dims(rows.std(over), [axis - 1 for axis in over if axis])
    np.testing.assert_allclose(made.data[0].arrays["x"], (rows - kept) / spread, rtol=1e-4, atol=1e-5)


def test_constants_are_shifted_only_and_bytes_are_exact():
    x = np.full((5000, 2), 0.1)
    x[:, 1] = 1e9
    made = fs.data.normalise(fs.data.FederatedData({"x": x}, [0, 5000]))
    np.testing.assert_array_equal(made.deviation, [1, 1])
    np.testing.assert_allclose(made.data[0].arrays["x"], 0, atol=1e-6)
    x = np.arange(256, dtype=np.uint8).repeat(100)  # sums that uint8 cannot hold, over several blocks
    made = fs.data.normalise(fs.data.FederatedData({"x": x}, [0, len(x)]))
    assert made.mean == 127.5
    np.testing.assert_allclose(made.deviation, ((256**2 - 1) / 12) ** 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fs.data.normalise(TRAIN, entry="z"), "entry='z': must be a column of numbers"),
        (lambda: fs.data.normalise(TRAIN, by="row"), "by='row'"),
        (lambda: fs.data.normalise(fs.data.FederatedData({"x": X}, [0, 0])), "has no example"),
        (lambda: fs.data.normalise(fs.data.FederatedData({"x": np.array([1, np.nan])}, [0, 2])), "NaN or infinity"),
        (lambda: fs.data.normalise(TRAIN, fs.data.FederatedData({"x": X}, [0, 40]), by="client"), "1 clients, but 3"),
    ],
)
def test_what_cannot_be_normalised(call, message):
    with pytest.raises(fs.FedSimError, match=message):
        call()


GAPS = np.where(RNG.random((40, 3)) < 0.5, np.nan, RNG.normal(3.0, 2.0, (40, 3))).astype(np.float32)
NAMED = fs.data.FederatedData({"x": GAPS}, [0, 10, 10, 25], TRAIN.index, ["anne", "bob", "cy"])
OTHER = fs.data.FederatedData({"x": GAPS}, [0, 4, 9], TEST.index, ["cy", "dora"])


def mean_of(rows, otherwise):
    """Column by column, the mean of what is known."""
    known = [[x for x in column if not np.isnan(x)] for column in rows.T.astype(np.float64)]
    return np.array(
        [sum(column) / len(column) if column else other for column, other in zip(known, otherwise, strict=True)]
    )


@pytest.mark.parametrize("by", ["all", "client"])
def test_gaps_become_means_of_training_rows_of_the_client_of_the_same_name(by):
    everybody = mean_of(GAPS[NAMED.index], [np.nan] * 3)
    own = {name: mean_of(GAPS[NAMED.rows(k)], everybody) for k, name in enumerate(NAMED.client_ids)}
    made = fs.data.preprocess.fill(NAMED, OTHER, by=by, mark="gap")
    for before, after in zip((NAMED, OTHER), made.data, strict=True):
        for k in range(before.num_clients):
            rows = GAPS[before.rows(k)]
            mean = own.get(before.name(k), everybody) if by == "client" else everybody
            np.testing.assert_allclose(after.client(k)["x"], np.where(np.isnan(rows), mean, rows), rtol=1e-6)
            np.testing.assert_array_equal(after.client(k)["gap"], np.isnan(rows))
        assert after.arrays["x"].dtype == np.float32
        assert list(after.client_ids) == list(before.client_ids)
    np.testing.assert_allclose(made.mean, everybody if by == "all" else [own[name] for name in NAMED.client_ids])


def test_one_known_value_is_a_mean_and_none_is_that_of_all():
    x = np.array([8.0, np.nan, np.nan, 1.0, 3.0])
    made = fs.data.fill(fs.data.FederatedData({"x": x}, [0, 2, 3, 5]))
    assert made.mean.tolist() == [8.0, 4.0, 2.0]
    assert made.data[0].arrays["x"].tolist() == [8.0, 8.0, 4.0, 1.0, 3.0]


def test_gaps_filled_by_test_rows_would_show():
    wild = fs.data.FederatedData({"x": np.where(np.isnan(GAPS), np.nan, 1e6)}, OTHER.offsets, OTHER.index)
    np.testing.assert_array_equal(fs.data.fill(NAMED, wild, by="all").mean, fs.data.fill(NAMED, by="all").mean)


def test_numbers_without_gaps_stay_and_many_rows_are_summed_in_blocks():
    whole = fs.data.FederatedData({"x": np.arange(5)}, [0, 2, 5])
    assert fs.data.fill(whole).data[0].arrays["x"].dtype == np.int64
    x = np.r_[np.arange(9999.0), np.nan]
    assert fs.data.fill(fs.data.FederatedData({"x": x}, [0, 10000])).data[0].arrays["x"][-1] == 4999.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fs.data.fill(NAMED, entry="z"), "entry='z': must be a column of numbers"),
        (lambda: fs.data.fill(NAMED, by="row"), "by='row'"),
        (lambda: fs.data.fill(NAMED, mark="x"), "mark='x': is a column already"),
        (lambda: fs.data.fill(fs.data.FederatedData({"x": GAPS}, [0, 0])), "has no example"),
        (lambda: fs.data.fill(fs.data.FederatedData({"x": np.array([1, np.inf])}, [0, 2])), "hold infinity"),
        (
            lambda: fs.data.fill(fs.data.FederatedData({"x": np.array([[1, np.nan], [2, np.nan]])}, [0, 2])),
            "no training example knows feature 1",
        ),
        (lambda: fs.data.fill(NAMED, fs.data.FederatedData({"x": GAPS[:, :2]}, [0, 3])), r"shape \(2,\), but \(3,\)"),
        (lambda: fs.data.fill(NAMED, fs.data.FederatedData({"x": GAPS}, [0, 3])), "1 clients, but 3 in the training"),
    ],
)
def test_what_cannot_be_filled(call, message):
    with pytest.raises(fs.FedSimError, match=message):
        call()


def test_clients_are_normalised_by_the_figures_of_their_name():
    made = fs.data.normalise(
        fs.data.FederatedData({"x": X}, NAMED.offsets, NAMED.index, NAMED.client_ids),
        fs.data.FederatedData({"x": X}, OTHER.offsets, OTHER.index, OTHER.client_ids),
        by="client",
    )
    cy, everybody = X[NAMED.rows(2)], X[NAMED.index]
    for k, rows in enumerate([cy, everybody]):
        want = (X[OTHER.rows(k)] - rows.mean(0)) / rows.std(0)
        np.testing.assert_allclose(made.data[1].client(k)["x"], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("function", [fs.data.normalise, fs.data.fill, fs.data.check_categories])
def test_codes_of_different_categories_are_never_joined(function):
    make = lambda said: fs.data.FederatedData({"x": np.ones(2)}, [0, 2], about={"categories of x": said})
    with pytest.raises(
        fs.FedSimError, match=r'categories of x: \["a", "b"\], but \["b", "c"\] in the other; read that'
    ):
        function(make('["a", "b"]'), make('["b", "c"]'))
    function(make('["a", "b"]'), make('["a", "b"]'))


def test_a_map_may_change_the_number_of_rows_and_keeps_who_they_are():
    data = fs.data.FederatedData({"x": np.arange(6)}, [0, 4, 6], client_ids=["a", "b"], about={"title": "six"})
    made = fs.data.map_clients(data, lambda c: {"z": np.repeat(c["x"], c["x"])})
    assert made.client(0)["z"].tolist() == [1, 2, 2, 3, 3, 3]
    assert made.sizes.tolist() == [6, 9]
    assert made.client_ids == ["a", "b"]
    assert made.about == {"title": "six"}
    with pytest.raises(fs.FedSimError, match="client b: entries"):
        fs.data.map_clients(data, lambda c: {"z": c["x"].astype(float) if len(c["x"]) < 4 else c["x"]})


def test_limits_draw_without_replacement_and_by_the_clients_number_alone():
    data = fs.data.FederatedData({"x": np.arange(1000)}, [0, 3, 503, 1000])
    made = fs.data.limit(data, minimum=4, maximum=100, seed=1)
    assert made.sizes.tolist() == [100, 100]
    assert made.client_ids.tolist() == ["1", "2"]
    rows = made.client(0)["x"]
    assert np.all(np.diff(rows) > 0)
    assert rows.min() >= 3
    assert rows.max() < 503
    # Uniform over 3..502: the mean's deviation is 500 / sqrt(12 x 100) x sqrt(0.8), about 12.9.
    assert abs(rows.mean() - 252.5) < 5 * 12.9
    again = fs.data.limit(data, maximum=100, seed=1)
    np.testing.assert_array_equal(again.client(1)["x"], rows)
    assert again.sizes.tolist() == [3, 100, 100]
    assert fs.data.limit(data, maximum=100, seed=2).client(1)["x"].tolist() != rows.tolist()
    # Not the draw of a split by the same seed.
    assert set(fs.data.split(data, 0.2, seed=1)[1].client(1)["x"].tolist()) != set(rows.tolist())
    with pytest.raises(fs.FedSimError, match="minimum=501: no client has so many examples; the largest has 500"):
        fs.data.limit(data, minimum=501)
    with pytest.raises(fs.FedSimError, match="maximum=2: must not be below minimum=3"):
        fs.data.limit(data, minimum=3, maximum=2)


def test_rows_are_numbered():
    data = fs.data.FederatedData({"x": np.arange(5.0)}, [0, 1, 3], [4, 0, 2])
    made = fs.data.numbered(data)
    assert made.arrays["client"].tolist() == [1, -1, 1, -1, 0]
    assert made.client(1)["example"].tolist() == [0, 2]
    with pytest.raises(fs.FedSimError, match="is a column already"):
        fs.data.numbered(made)
    with pytest.raises(fs.FedSimError, match="belongs to two clients"):
        fs.data.numbered(fs.data.FederatedData({"x": np.arange(5.0)}, [0, 1, 2], [3, 3]))
