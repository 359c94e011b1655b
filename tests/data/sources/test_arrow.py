"""Parquet, CSV and Hugging Face's folders, written by pyarrow, and its live data sets."""

import bz2
import gc
import gzip
import io
import json
import sys
import tempfile
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.sources import limits, parquet_footer

COLUMNS = {
    "who": pa.array(["bob", "anne", "bob"]),
    "x": pa.array([[0.5, 1], [2, 3], [4, 5]], pa.list_(pa.float32(), 2)),
    "ids": pa.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], pa.list_(pa.int64())),
    "y": pa.array([0, 1, 2], pa.int8()),
    "text": pa.array(["né", "", "z"], pa.large_string()),
}


def write(path, columns=COLUMNS):
    rows = pa.table(columns)
    if path.suffix == ".csv":
        pa.csv.write_csv(rows, path)
    elif path.suffix in (".gz", ".bz2", ".zip"):
        pa.csv.write_csv(rows, out := pa.BufferOutputStream())
        if path.suffix == ".zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("rows.csv", out.getvalue().to_pybytes())
        else:
            path.write_bytes((gzip if path.suffix == ".gz" else bz2).compress(out.getvalue()))
    else:
        pa.parquet.write_table(rows, path, row_group_size=2)
    return path


def stream(path, columns):
    rows = pa.table(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=2)


def saved(folder, columns=COLUMNS, indices=None, files=("data-00000-of-00001.arrow",)):
    """A folder of `save_to_disk`, of one split, by its definition."""
    folder.mkdir(parents=True)
    stream(folder / "data-00000-of-00001.arrow", columns)
    state = {"_data_files": [{"filename": name} for name in files], "_split": "train", "_indices_data_files": None}
    if indices is not None:
        stream(folder / "indices.arrow", {"indices": pa.array(indices, pa.uint64())})
        state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def table(path, **options):
    return fs.data.sources.table(path, **{"client": "who", "missing": ()} | options)


def hugging_face(dataset, split=None, **options):
    return fs.data.sources.hugging_face(dataset, split, **{"group_by": "who"} | options)


def fails(read, path, match, *arguments, **options):
    with pytest.raises(ArgumentError, match=match) as caught:
        read(path, *arguments, **options)
    assert isinstance(path, dict) or str(path) in str(caught.value)


def is_the_set(data):
    assert list(data.client_ids) == ["anne", "bob"]
    assert data.client(1)["x"].tolist() == [[0.5, 1], [4, 5]]
    assert data.client(0)["ids"].tolist() == [[4, 5, 6]]
    assert data.client(1)["y"].tolist() == [0, 2]
    assert data.client(1)["text"].tolist() == ["né".encode(), b"z"]
    assert (data.arrays["x"].dtype, data.arrays["ids"].dtype, data.arrays["y"].dtype) == (np.float32, np.int64, np.int8)


def test_a_parquet_file_is_grouped_by_its_column(tmp_path):
    is_the_set(table(write(tmp_path / "rows.parquet")))


def test_whole_numbers_as_clients_are_sorted_as_numbers(tmp_path):
    path = write(tmp_path / "rows.parquet", {"who": pa.array([10, 9, 10]), "y": pa.array([0, 1, 2])})
    assert list(table(path).client_ids) == ["9", "10"]


def test_a_csv_files_clients_are_texts_as_written(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("who,y,z,t,b\n007,1,0.5,hé,true\n7,2,1,,false\n007,3,2,x,true\n")
    data = table(path)
    assert list(data.client_ids) == ["007", "7"]
    assert data.client(0)["y"].tolist() == [1, 3]
    assert data.client(0)["z"].tolist() == [0.5, 2.0]
    assert data.client(0)["b"].tolist() == [True, True]
    assert [data.client(k)["t"].tolist() for k in range(2)] == [["hé".encode(), b"x"], [b""]]
    path.rename(tmp_path / "rows.tsv").write_text("who\ty\n1\t5\n")
    assert table(tmp_path / "rows.tsv").client(0)["y"].tolist() == [5]


def test_a_compressed_csv_file_is_read_and_a_bomb_is_not(tmp_path):
    columns = {name: COLUMNS[name] for name in ("who", "y", "text")}
    plain, packed = (table(write(tmp_path / name, columns)) for name in ("rows.csv", "rows.csv.gz"))
    assert packed.client(1)["text"].tolist() == plain.client(1)["text"].tolist() == ["né".encode(), b"z"]
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(b"who,y\n" + b"a,1\n" * (17 << 20)))
    assert (tmp_path / "rows.csv.gz").stat().st_size < 1 << 18
    fails(table, tmp_path / "rows.csv.gz", r"say to hold 0\.1 GB, which is more than 200 times")


def test_a_parquet_file_of_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.parquet", {"who": pa.array([0] * 1000), "y": pa.array([1.0] * 1000)})
    monkeypatch.setattr(limits, "memory", lambda: 15_999)
    fails(table, path, r"says to take 16000 bytes of memory, .*; take some of its rows or columns")
    monkeypatch.setattr(limits, "memory", lambda: 16_000)
    assert table(path).num_examples == 1000


def texts_bomb(path, column, **options):
    options = {"compression": "none", "write_statistics": False, "store_schema": False, **options}
    pa.parquet.write_table(pa.table({"who": pa.array([0] * len(column)), "x": column}), path / "x.parquet", **options)
    return table, path / "x.parquet"


def rows_bomb(path):
    column = pa.concat_arrays([pa.nulls(1 << 24, pa.int64()).fill_null(7)])
    pa.parquet.write_table(pa.table({"who": column}), path / "rows.parquet", compression="zstd")
    return table, path / "rows.parquet"


def lists_bomb(path):
    return texts_bomb(path, pa.ListArray.from_arrays(range(0, 1001, 2), long_texts()))


def fixed_bomb(path):
    return texts_bomb(path, pa.array([b"x" * 200_000] * 1000, pa.binary(200_000)))


def beginnings_bomb(path):
    how = {"who": "PLAIN", "x": "DELTA_BYTE_ARRAY"}
    return texts_bomb(path, pa.array(["x" * 200_000] * 1000), use_dictionary=False, column_encoding=how)


def pages_bomb(path):
    """Whose footer says that they are few bytes."""
    read, path = texts_bomb(path, pa.array(["x" * 1_000_000] * 200), compression="zstd", use_dictionary=False)
    group = pa.parquet.read_metadata(path).row_group(0)
    return read, patched(path, {group.column(1).total_uncompressed_size: 1000, group.total_byte_size: 2000})


def stream_bomb(path):
    with pa.OSFile(str(saved(path / "packed") / "data-00000-of-00001.arrow"), "wb") as file:
        rows = pa.table({"who": pa.array([0] * (1 << 20))})
        with pa.ipc.new_stream(file, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(rows)
    return hugging_face, path / "packed"


def pictures_bomb(path):
    picture = io.BytesIO()
    Image.new("L", (8000, 8000)).save(picture, "PNG")
    struct = pa.array([{"bytes": picture.getvalue(), "path": None}] * 9)
    return hugging_face, saved(path / "pictures", {"who": ["a"] * 9, "x": struct})


def often_bomb(path):
    return hugging_face, saved(path / "often", {"who": ["a"], "x": ["x" * 200_000]}, indices=[0] * 1000)


def long_texts():
    return pa.DictionaryArray.from_arrays([0] * 1000, ["x" * 200_000])


BOMBS = {
    "texts": lambda path: texts_bomb(path, long_texts()),
    "rows": rows_bomb,
    "lists": lists_bomb,
    "fixed lengths": fixed_bomb,
    "beginnings": beginnings_bomb,
    "pages": pages_bomb,
    "a stream": stream_bomb,
    "often": often_bomb,
    "pictures": pictures_bomb,
}
"""Files of some kilobytes that become some hundred megabytes: `(folder) -> (reader, path)`."""


def patched(path, numbers):
    """A Parquet file with other numbers in its footer, of as many bytes: a varint may be longer than need be."""

    def varint(value, length=0):
        value, out = value << 1, b""
        while value > 127 or len(out) + 1 < length:
            out, value = out + bytes([value & 127 | 128]), value >> 7
        return out + bytes([value])

    content = path.read_bytes()
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    footer = content[start:]
    for old, new in numbers.items():
        assert varint(old) in footer
        footer = footer.replace(varint(old), varint(new, len(varint(old))))
    path.write_bytes(content[:start] + footer)
    return path


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_is_read(name, tmp_path, peak):
    read, path = BOMBS[name](tmp_path)
    assert (path.stat().st_size if path.is_file() else 0) < 1 << 20
    gc.collect()
    pa.default_memory_pool().release_unused()  # else what made the file is room for what reads it
    peak.again()
    fails(read, path, "say to hold|is compressed")
    assert peak() < (128 if name == "beginnings" else 64) << 20  # which are counted as they come, up to the limit


def test_pages_of_more_values_than_their_chunk_are_refused(tmp_path):
    """A run of one value takes a few bytes, however long it is."""
    path = tmp_path / "rows.parquet"
    pa.parquet.write_table(pa.table({"who": pa.array([0] * 5000), "y": pa.array([7] * 5000)}), path)
    assert table(path).num_examples == 5000
    fails(table, patched(path, {5000: 4000}), "column 'who' says to hold 4000 values, and its pages 5000")


def test_texts_that_begin_as_others_are_read_in_parts(tmp_path):
    texts = [f"{'x' * 50_000}{i}" for i in range(400)]
    rows = pa.table({"who": pa.array(["a", "b"] * 200), "x": pa.array(texts), "y": pa.array(range(400))})
    how = {"use_dictionary": False, "column_encoding": {"who": "PLAIN", "x": "DELTA_BYTE_ARRAY", "y": "PLAIN"}}
    pa.parquet.write_table(rows, tmp_path / "rows.parquet", row_group_size=300, **how)
    data = table(tmp_path / "rows.parquet")
    assert data.client(1)["x"].tolist() == [text.encode() for text in texts[1::2]]
    assert data.client(1)["y"].tolist() == [*range(1, 400, 2)]


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_pages_are_read_as_arrow_reads_them(tmp_path, version, dictionary):
    """Whatever their version, in several groups and pages, with lists and gaps."""
    texts, lists = [f"t{i % 7}" for i in range(500)], [["a", f"b{i % 3}"] for i in range(500)]
    rows = pa.table({"who": texts, "l": lists, "y": pa.array([None if i % 5 == 0 else i for i in range(500)])})
    how = {"data_page_version": version, "use_dictionary": dictionary, "row_group_size": 200, "data_page_size": 64}
    pa.parquet.write_table(rows, path := tmp_path / "rows.parquet", write_batch_size=16, **how)
    for chunk in parquet_footer.chunks_of(path):
        pages = [*parquet_footer.pages_of(path, chunk)]
        counted = [page for page in pages if page.type == parquet_footer.DICTIONARY]
        assert len(counted) == (1 if dictionary else 0)
        assert sum(page.values for page in pages if page not in counted) == chunk.values
        assert len(pages) > 1
        assert 0 < sum(page.unpacked for page in pages) < chunk.unpacked
    data = table(path, nulls="nan")
    assert data.client(3)["l"].tolist() == [[b"a", f"b{i % 3}".encode()] for i in range(3, 500, 7)]
    np.testing.assert_array_equal(data.client(1)["y"], [np.nan if i % 5 == 0 else i for i in range(1, 500, 7)])


def test_the_checksums_of_parquets_pages_are_compared(tmp_path):
    path = tmp_path / "rows.parquet"
    rows = pa.table({"who": pa.array([1, 1]), "y": pa.array([77777, 5])})
    pa.parquet.write_table(rows, path, compression="none", use_dictionary=False, write_page_checksum=True)
    assert table(path).client(0)["y"].tolist() == [77777, 5]
    content = path.read_bytes()
    path.write_bytes(content.replace(np.int64([77777, 5]).tobytes(), np.int64([7, 5]).tobytes()))
    fails(table, path, "checksum|crc|CRC")


def test_a_footer_is_read_as_arrow_reads_it(tmp_path):
    path = write(tmp_path / "rows.parquet")
    metadata = pa.parquet.read_metadata(path)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    theirs = [group.column(i) for group in groups for i in range(group.num_columns)]
    ours = parquet_footer.chunks_of(path)
    names = ["BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"]
    assert [(c.name, names[c.type], c.values, c.unpacked) for c in ours] == [
        (c.path_in_schema, c.physical_type, c.num_values, c.total_uncompressed_size) for c in theirs
    ]
    assert len(ours) == 10


def test_a_stream_that_goes_on_after_its_end_is_refused(tmp_path):
    folder = saved(tmp_path / "set")
    path = folder / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes() * 2)
    fails(hugging_face, folder, "goes on after its end, at byte")


def test_entries_choose_columns(tmp_path):
    assert sorted(table(write(tmp_path / "rows.parquet"), entries=["y", "x"]).arrays) == ["x", "y"]
    fails(table, tmp_path / "rows.parquet", "no column 'z'; there are", entries=["z"])
    fails(table, tmp_path / "rows.parquet", "no column 'ward'", client="ward")


def test_missing_numbers_are_an_error_with_their_row_or_nan(tmp_path):
    columns = {"who": pa.array(["a", "a"]), "y": pa.array([3, None]), "l": pa.array([[1.0, 2.0], [3.0, None]])}
    path = write(tmp_path / "rows.parquet", columns)
    fails(table, path, "column 'y', row 1: there is no value; nulls='nan'", entries=["y"])
    fails(table, path, "column 'l', row 1: there is no value", entries=["l"])
    with pytest.raises(ArgumentError, match="nulls='zero': must be 'error' or 'nan'"):
        table(path, nulls="zero")
    data = table(path, nulls="nan")
    np.testing.assert_array_equal(data.client(0)["y"], [3.0, np.nan])
    np.testing.assert_array_equal(data.client(0)["l"], [[1, 2], [3, np.nan]])


def test_missing_texts_and_clients_are_an_error(tmp_path):
    text = {"who": pa.array(["a", "b"]), "t": pa.array([None, "x"])}
    fails(table, write(tmp_path / "a.parquet", text), "column 't', row 0: there is no value; fill it", nulls="nan")
    who = {"who": pa.array([1, None]), "y": pa.array([1, 2])}
    fails(table, write(tmp_path / "b.parquet", who), "column 'who', row 1", nulls="nan")


def test_texts_become_codes_with_their_names(tmp_path):
    columns = {"who": pa.array(["a", "b", "a"]), "city": pa.array(["Rome", "Oslo", "Rome"]).dictionary_encode()}
    path = write(tmp_path / "rows.parquet", columns)
    data = table(path, categories=True)
    assert data.arrays["city"].tolist() == [1, 0, 1]
    assert data.arrays["city"].dtype == np.int32
    assert json.loads(data.about["categories of city"]) == ["Oslo", "Rome"]
    assert table(path, categories={"city": ["Rome", "Bern", "Oslo"]}).arrays["city"].tolist() == [0, 2, 0]
    fails(table, path, "column 'city', row 1: b'Oslo' is not one of its 1 categories", categories={"city": ["Rome"]})


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (pa.array([[1], [2, 3]]), "lists of 1 to 2 values; cut or pad"),
        (pa.array([0, 1], pa.timestamp("s")), "holds timestamp"),
        (pa.array([{"a": 1}, {"a": 2}]), "holds struct"),
    ],
)
def test_columns_that_are_no_arrays_are_refused(tmp_path, values, match):
    path = write(tmp_path / "rows.parquet", {"who": pa.array(["a", "b"]), "x": values})
    fails(table, path, f"column 'x': holds {match.removeprefix('holds ')}")


def test_other_files_are_refused(tmp_path):
    fails(table, tmp_path / "no.parquet", "cannot be read")
    fails(table, tmp_path / "rows.xlsx", "must be a folder, or end in .parquet")
    for name in ("rows.parquet", "rows.csv"):
        for content in (b"", b"SQLite format 3\0", b"PAR1PAR1", b"\xff\xfe\0\0"):
            (tmp_path / name).write_bytes(content)
            fails(table, tmp_path / name, "cannot be read|no column 'who'")
    fails(
        table,
        write(tmp_path / "rows.parquet", {"who": pa.array([], pa.int64()), "x": pa.array([], pa.int64())}),
        "no rows",
    )


def test_a_saved_folder_is_read(tmp_path):
    is_the_set(hugging_face(saved(tmp_path / "set")))
    is_the_set(hugging_face(tmp_path / "set", "train"))
    fails(hugging_face, tmp_path / "set", "split='test': it holds one split, train", "test")


def test_a_saved_selection_is_applied(tmp_path):
    data = hugging_face(saved(tmp_path / "set", indices=[2, 0]))
    assert list(data.client_ids) == ["bob"]
    assert data.client(0)["y"].tolist() == [2, 0]


def test_a_saved_dictionary_has_splits(tmp_path):
    saved(tmp_path / "set" / "train")
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    is_the_set(hugging_face(tmp_path / "set", "train"))
    for split in ("test", None):
        fails(hugging_face, tmp_path / "set", r"there are \['train'\]", split)


def test_a_folder_names_no_files_outside_it(tmp_path):
    fails(hugging_face, saved(tmp_path / "set", files=["../data.arrow"]), "outside the folder")


def test_a_stream_cut_off_between_two_batches_is_noticed(tmp_path):
    path = saved(tmp_path / "set") / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:-8])
    fails(hugging_face, tmp_path / "set", "does not end as an Arrow stream does")


def test_texts_beyond_the_file_do_not_crash_the_interpreter(tmp_path):
    path = saved(tmp_path / "set", indices=[2, 0]) / "data-00000-of-00001.arrow"
    ends = np.array([0, 3, 7], np.int32)  # of "bob" and "anne"
    assert ends.tobytes() in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(ends.tobytes(), np.array([0, 3, 2**30], np.int32).tobytes()))
    fails(hugging_face, tmp_path / "set", "cannot be read")


def png(value, size=(3, 2)):
    out = io.BytesIO()
    Image.new("L", size, value).save(out, "png")
    return out.getvalue()


def test_pictures_are_decoded(tmp_path):
    pictures = pa.array([{"bytes": png(7), "path": None}, {"bytes": png(9), "path": "b.png"}])
    data = hugging_face(saved(tmp_path / "set", {"who": pa.array(["a", "b"]), "x": pictures}))
    assert data.client(1)["x"].tolist() == [[[9, 9, 9], [9, 9, 9]]]
    assert data.arrays["x"].dtype == np.uint8


@pytest.mark.parametrize(
    ("second", "match"),
    [
        (png(1, (2, 2)), "row 1: the picture has shape"),
        (b"x", "row 1: is no picture"),
        (None, "row 1: the picture is a path"),
    ],
)
def test_pictures_that_cannot_be_stacked_are_refused(tmp_path, second, match):
    pictures = pa.array([{"bytes": png(7), "path": None}, {"bytes": second, "path": "b.png"}])
    fails(hugging_face, saved(tmp_path / "set", {"who": pa.array(["a", "b"]), "x": pictures}), match)


def test_a_live_data_set_is_read_with_its_selection_and_as_saved(tmp_path):
    features = datasets.Features(
        {
            "who": datasets.Value("string"),
            "a": datasets.Array2D((2, 2), "float32"),
            "y": datasets.ClassLabel(names=["no", "yes"]),
            "x": datasets.Image(),
        }
    )
    rows = {"who": ["b", "a", "b"], "a": [[[i, 1], [2, 3]] for i in range(3)], "y": [0, 1, 0]}
    rows["x"] = [Image.new("L", (3, 2), 10 * i) for i in range(3)]
    live = datasets.Dataset.from_dict(rows, features=features).select([2, 1, 0])
    live.save_to_disk(tmp_path / "set")
    for data in (hugging_face(live), hugging_face(datasets.DatasetDict(t=live), "t"), hugging_face(tmp_path / "set")):
        assert list(data.client_ids) == ["a", "b"]
        assert data.client(1)["a"].tolist() == [[[2, 1], [2, 3]], [[0, 1], [2, 3]]]
        assert data.client(1)["x"][:, 0, 0].tolist() == [20, 0]
        assert data.client(0)["y"].tolist() == [1]
    fails(hugging_face, datasets.DatasetDict(t=live), r"split='train': the DatasetDict has \['t'\]", "train")
    with pytest.raises(ArgumentError, match="dataset=int: must be a folder"):
        hugging_face(7)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    fails(table, tmp_path / "rows.parquet", r"pip install 'fedjax-sim\[data\]'")


TABLES = ("rows.parquet", "rows.csv", "rows.csv.gz", "rows.csv.bz2", "rows.csv.zip")
FUZZ = {name: COLUMNS[name] for name in ("who", "x", "y", "text")}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
@pytest.mark.parametrize(
    "kind", ["rows.parquet", "rows.csv", "rows.csv.gz", "rows.csv.bz2", "rows.csv.zip", "stream", "state"]
)
def test_a_damaged_file_is_an_error_or_reads_in_the_declared_lengths(kind, data):
    with tempfile.TemporaryDirectory() as root:
        if kind in ("stream", "state"):
            where, read = saved(Path(root) / "set", FUZZ, [2, 0, 1]), hugging_face
            path = where / ("data-00000-of-00001.arrow" if kind == "stream" else "state.json")
        else:
            columns = {name: FUZZ[name] for name in ("who", "y", "text")} if "csv" in kind else FUZZ
            where, read = write(Path(root) / kind, columns), table
            path = where
        content = bytearray(path.read_bytes())
        if cut := data.draw(st.booleans(), "truncate"):
            content = content[: data.draw(st.integers(0, len(content) - 1))]
        else:
            for _ in range(data.draw(st.integers(1, 3))):
                content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        try:
            found = read(where)
        except ArgumentError as error:
            assert str(where) in str(error)  # noqa: PT017
        else:
            lengths = {len(array) for array in found.arrays.values()}
            assert len(lengths) == 1
            if kind in ("rows.parquet", "rows.csv.gz", "rows.csv.bz2", "rows.csv.zip"):
                assert not cut
                assert lengths == {3}
