"""Tables of several files, packed or not, with other delimiters, stacked columns, dates and decimals."""

import bz2
import datetime
import decimal
import gzip
import json
import lzma
import zipfile
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.sources import limits


def table(path, split=None, **options):
    arguments: dict[str, Any] = {"client": "who"} | options
    return fs.data.sources.table(path, split, **arguments)


def fails(path, match, *arguments, **options):
    with pytest.raises(ArgumentError, match=match) as caught:
        table(path, *arguments, **options)
    assert str(path) in str(caught.value)


def shard(folder, name, ys, who="a"):
    folder.mkdir(exist_ok=True)
    pa.parquet.write_table(pa.table({"who": [who] * len(ys), "y": ys}), folder / name)
    return folder


def hub(folder, number=3):
    """A folder as the Hub has them: training shards of 5 rows, and one of test rows."""
    for place in range(number):
        shard(folder, f"train-{place:05}-of-{number:05}.parquet", list(range(5 * place, 5 * place + 5)))
    return shard(folder, "test-00000-of-00001.parquet", [99])


def test_shards_are_read_in_the_order_of_their_numbers(tmp_path):
    folder = hub(tmp_path / "set")
    assert table(folder, "train").client(0)["y"].tolist() == list(range(15))
    assert table(folder, "test").client(0)["y"].tolist() == [99]
    for place in (10, 9, 1):
        shard(tmp_path / "parts", f"part-{place}.parquet", [place])
    assert table(tmp_path / "parts").client(0)["y"].tolist() == [1, 9, 10]


@pytest.mark.parametrize("missing", [[0], [1], [2], [0, 2]])
def test_a_missing_shard_is_an_error(tmp_path, missing):
    folder = hub(tmp_path / "set")
    for place in missing:
        (folder / f"train-{place:05}-of-00003.parquet").unlink()
    fails(folder, f"these are missing: {', '.join(map(str, missing))}", "train")


def test_files_of_several_tables_are_never_joined(tmp_path):
    folder = hub(tmp_path / "set")
    fails(folder, r"must hold one table, but holds \['test-#-of-#.parquet', 'train-#-of-#.parquet'\]")
    fails(folder, "split='valid': must name one of the tables", "valid")
    shard(folder, "train-00001-of-00002.parquet", [1])
    fails(folder, "are shards of several tables", "train")
    for name in ("heart2020_train.parquet", "heart2020_test.parquet"):
        shard(tmp_path / "heart", name, [1])
    fails(tmp_path / "heart", "must hold one table")
    fails(tmp_path / "heart", "split='heart': must name one", "heart")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "must hold one table, but holds none")
    shard(tmp_path / "two", "a-0.parquet", [1])
    pa.parquet.write_table(pa.table({"who": ["a"], "y": [1.5]}), tmp_path / "two" / "a-1.parquet")
    with pytest.raises(ArgumentError, match=r"a-1\.parquet: its columns are not those of a-0\.parquet: .*y: double"):
        table(tmp_path / "two")


def test_one_shard_of_several_is_said(tmp_path):
    folder = hub(tmp_path / "set")
    with pytest.warns(UserWarning, match="is one of 3 files; pass the folder"):
        assert table(folder / "train-00001-of-00003.parquet").num_examples == 5
    assert table(folder / "test-00000-of-00001.parquet").num_examples == 1
    fails(folder / "test-00000-of-00001.parquet", "split='test' is for folders", "test")


def test_text_shards_are_typed_together(tmp_path):
    (tmp_path / "a-1.csv").write_text("who,y\nx,1\n")
    (tmp_path / "a-2.csv").write_text("who,y\nx,2.5\n")
    (tmp_path / ".hidden-3.csv").write_text("nothing")
    (tmp_path / "_SUCCESS").write_text("")
    assert table(tmp_path).arrays["y"].tolist() == [1.0, 2.5]
    (tmp_path / "a-2.csv").write_text("who,y\nx,no\nx,no\n")
    fails(tmp_path, "column 'y', row 0: '1' is a number, and 2 of 3 values are none")


CONTENT = b"who,y\nx,1\ny,2\n"


def zipped(members):
    def write(path):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return write


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.csv.gz", lambda path: path.write_bytes(gzip.compress(CONTENT))),
        ("rows.csv.bz2", lambda path: path.write_bytes(bz2.compress(CONTENT))),
        ("rows.csv.xz", lambda path: path.write_bytes(lzma.compress(CONTENT))),
        ("rows.csv.zip", zipped({"rows.csv": CONTENT})),
        ("rows.zip", zipped({"rows.csv": CONTENT, "__MACOSX/._rows.csv": b"", "readme.md": b""})),
        ("rows.zip", zipped({"folder/rows.tsv": CONTENT.replace(b",", b"\t")})),
    ],
)
def test_packed_files_are_read_and_damaged_ones_are_not(tmp_path, name, write):
    path = tmp_path / name
    write(path)
    assert table(path).arrays["y"].tolist() == [1, 2]
    content = path.read_bytes()
    for cut in (len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        fails(path, "cannot be read")


@pytest.mark.parametrize("pack", ["gz", "bz2", "xz", "zip"])
def test_packed_bombs_are_refused(tmp_path, pack, monkeypatch):
    monkeypatch.setattr(limits, "FLOOR", 1 << 20)
    bomb = b"who,y\n" + b"a,1\n" * (1 << 22)
    path = tmp_path / f"rows.csv.{pack}"
    if pack == "zip":
        zipped({"rows.csv": bomb})(path)
    else:
        path.write_bytes({"gz": gzip, "bz2": bz2, "xz": lzma}[pack].compress(bomb))
    fails(path, "more than 200 times their number.*unpack it yourself")


def test_zip_files_of_several_tables_are_refused(tmp_path):
    zipped({"a.csv": CONTENT, "b.csv": CONTENT})(tmp_path / "rows.zip")
    fails(tmp_path / "rows.zip", r"must hold one text table, but holds \['a.csv', 'b.csv'\]; unpack")
    fails(tmp_path / "no.zip", "cannot be read")
    fails(tmp_path / "rows.parquet.gz", "must be a folder, or end in")


def test_delimiters(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("who;y\nx;1,5\n")
    fails(path, "begins with 'who;y', without a ','; pass delimiter=';'")
    assert table(path, delimiter=";", decimal=",").arrays["y"].tolist() == [1.5]
    path.rename(tmp_path / "rows.data")
    fails(tmp_path / "rows.data", "delimiter=None: must be what lies between cells")
    assert table(tmp_path / "rows.data", delimiter=";", decimal=",").num_examples == 1
    fails(tmp_path / "rows.data", "delimiter='; ': must be what lies", delimiter="; ")


def test_columns_are_renamed_and_stacked(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("who,age,bp,sex,out,note\na,61,1.5,m,yes,x\nb,47,,f,no,y\n")
    columns = {"x": ["bp", "age"], "y": "out", "one": ["age"]}
    data = table(path, columns=columns, nulls="nan", categories={"out": ["no", "yes"], "sex": ["f", "m"]})
    np.testing.assert_array_equal(data.arrays["x"], [[1.5, 61], [np.nan, 47]])
    assert (data.arrays["y"].tolist(), data.arrays["one"].tolist()) == ([1, 0], [[61], [47]])
    assert sorted(data.arrays) == ["one", "x", "y"]
    assert json.loads(data.about["categories of out"]) == ["no", "yes"]
    coded = table(path, columns={"x": ["age", "sex"]}, categories={"sex": ["f", "m"]})
    assert coded.arrays["x"].tolist() == [[61, 1], [47, 0]]
    fails(path, "column 'note' holds texts; numbers can be stacked", columns={"x": ["age", "note"]})
    fails(path, "no column 'weight'", columns={"x": ["age", "weight"]})
    fails(path, "pass one of entries= and columns=", columns=columns, entries=["age"])
    fails(path, r"entries=\[\['age'\]\]: must be names; columns=", entries=[["age"]])
    fails(path, r"columns=\[\]: must be a dict", columns=[])
    fails(path, r"columns\['x'\]=3: must be a list of texts", columns={"x": 3})


def test_lists_and_numbers_lie_side_by_side_without_loss(tmp_path):
    path = tmp_path / "rows.parquet"
    rows = {"who": ["a"], "v": [[1.0, 2.0]], "n": [3], "big": [2**53 + 1], "f": [0.5]}
    pa.parquet.write_table(pa.table(rows), path)
    assert table(path, columns={"x": ["n", "v"]}).arrays["x"].tolist() == [[3, 1, 2]]
    assert table(path, columns={"x": ["n", "big"]}).arrays["x"].tolist() == [[3, 2**53 + 1]]
    fails(path, "column 'big' holds whole numbers too large", columns={"x": ["big", "f"]})


def test_a_partitioner_may_make_the_clients(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("v,label\n" + "1,a\n2,b\n" * 10)
    data = table(path, client=None, partition=fs.partition.pathological(1, 4), categories=True, seed=3)
    assert data.num_clients == 4
    assert all(len(set(data.client(k)["label"])) == 1 for k in range(4))
    twin = fs.data.federate(data.arrays, fs.partition.pathological(1, 4), 3, labels="label")
    np.testing.assert_array_equal(data.index, twin.index)
    assert data.about == {"categories of label": '["a", "b"]', "partition": "synthetic: pathological"}
    for options in ({"client": None}, {"partition": fs.partition.iid(2)}):
        fails(path, r"pass one of client= \(one of the columns \['v', 'label'\]\) and partition=", **options)


def test_dates_and_decimals_have_stated_conversions(tmp_path):
    path = tmp_path / "rows.parquet"
    noon = datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC)
    rows = {
        "who": ["a", "b"],
        "price": pa.array([decimal.Decimal("1.25"), decimal.Decimal("-3.50")], pa.decimal128(9, 2)),
        "day": pa.array([datetime.date(1970, 1, 3), datetime.date(1969, 12, 31)]),
        **{unit: pa.array([noon, None], pa.timestamp(unit, "Europe/Rome")) for unit in ("s", "ms", "us", "ns")},
        "clock": pa.array([1, 2], pa.time32("s")),
    }
    pa.parquet.write_table(pa.table(rows), path)
    read = lambda name, **options: table(path, entries=[name], **options).arrays[name]
    assert (read("price").tolist(), read("price").dtype) == ([1.25, -3.5], np.float64)
    assert read("day", dates=["day"]).tolist() == [2.0, -1.0]
    for unit in ("s", "ms", "us", "ns"):
        np.testing.assert_array_equal(read(unit, dates=[unit], nulls="nan"), [19782.5, np.nan])
    fails(path, "column 's', row 1: there is no value", entries=["s"], dates=["s"])
    fails(path, r"column 'day': holds date32\[day\]; dates=\['day'\] makes it days since 1970", entries=["day"])
    fails(path, r"column 'clock': holds time32\[ms\]; numbers, texts", entries=["clock"])
    fails(path, r"column 'price': holds decimal.*, and dates= names it; it is no date", dates=["price"])
    fails(path, r"column 'price': holds decimal.*, and texts= names it", texts=["price"])


def test_fractions_name_clients_only_where_they_are_whole(tmp_path):
    path = tmp_path / "rows.parquet"
    pa.parquet.write_table(pa.table({"who": [10.0, 9.0], "y": [1, 2]}), path)
    assert list(table(path).client_ids) == ["9", "10"]
    for wrong, match in ((1.5, "row 1: 1.5 is no whole number"), (None, "row 1: there is no client")):
        pa.parquet.write_table(pa.table({"who": [10.0, wrong], "y": [1, 2]}), path)
        fails(path, match)


def test_nan_is_a_missing_number(tmp_path):
    path = tmp_path / "rows.parquet"
    pa.parquet.write_table(pa.table({"who": ["a", "b"], "v": [[1.0, 2.0], [3.0, float("nan")]]}), path)
    fails(path, "column 'v', row 1: there is no value; nulls='nan'")
    assert np.isnan(table(path, nulls="nan").arrays["v"][1, 1])


FEATURES = datasets.Features(
    {"who": datasets.Value("string"), "v": datasets.Value("float32"), "label": datasets.ClassLabel(names=["no", "yes"])}
)


def test_hugging_faces_class_names_are_kept_and_partitioners_deal(tmp_path):
    rows = {"who": ["b", "a"] * 10, "v": list(range(20)), "label": [0, 1] * 10}
    live = datasets.Dataset.from_dict(rows, features=FEATURES)
    live.save_to_disk(tmp_path / "set")
    live.to_parquet(tmp_path / "rows.parquet")
    read = fs.data.sources.hugging_face
    for data in (read(live, group_by="who"), read(tmp_path / "set", group_by="who"), table(tmp_path / "rows.parquet")):
        assert json.loads(data.about["categories of label"]) == ["no", "yes"]
        assert data.client(0)["label"].tolist() == [1] * 10
    for source in (live, tmp_path / "set"):
        data = read(source, partition=fs.partition.pathological(1, 4), columns={"x": ["v"], "label": "label"})
        assert (data.num_clients, data.arrays["x"].shape) == (4, (20, 1))
        assert all(len(set(data.client(k)["label"])) == 1 for k in range(4))
        with pytest.raises(ArgumentError, match="pass one of group_by="):
            read(source)
    names = {"label": ["yes", "no"]}
    assert table(tmp_path / "rows.parquet", categories=names).client(0)["label"].tolist() == [0] * 10
    unlabelled = datasets.Dataset.from_dict(rows | {"label": [0] * 7 + [-1] * 13}, features=FEATURES)
    with pytest.raises(ArgumentError, match="column 'label', row 7: -1 of 2 classes: there is no label"):
        read(unlabelled, group_by="who")
    assert read(unlabelled, group_by="who", entries=["v"]).num_examples == 20
