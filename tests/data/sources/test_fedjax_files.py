"""FedJAX's SQLite files, written here by sqlite3, zlib and msgpack."""

import sqlite3
import tempfile
import zlib
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError

SCHEMA = """
CREATE TABLE federated_data (
  client_id BLOB NOT NULL PRIMARY KEY, data BLOB NOT NULL, num_examples INTEGER NOT NULL
)"""


def array(value):
    return msgpack.ExtType(1, msgpack.packb((value.shape, value.dtype.name, value.tobytes("C"))))


def texts(*values):
    return msgpack.ExtType(4, msgpack.packb(((len(values),), list(values))))


def packed(**features):
    return zlib.compress(msgpack.packb(features))


def packed_ext(inner):
    """A map of one feature, an array by FedJAX's type 1."""
    return b"\x81\xa1x" + b"\xc9" + len(inner).to_bytes(4, "big") + b"\x01" + inner


def emnist(*labels):
    pixels = np.stack([np.full((2, 2), label / 4, np.float32) for label in labels])
    return packed(
        pixels=array(pixels), label=array(np.array(labels, np.int32)), text=texts(*[b"w" * n for n in labels])
    )


ROWS = [(b"0a1b:f0002_01", emnist(3), 1), (b"f0001_14", emnist(1, 2), 2)]


def write(path, rows=ROWS):
    with sqlite3.connect(path) as database:
        database.execute(SCHEMA)
        database.executemany("INSERT INTO federated_data VALUES (?, ?, ?)", rows)
    database.close()
    return path


def read(path):
    return fs.data.sources.fedjax_sqlite(path, cache_dir=path.parent / "cache")


def test_every_feature_is_read_in_the_files_order(tmp_path):
    data = read(write(tmp_path / "federated_emnist_train.sqlite"))
    assert list(data.client_ids) == ["0a1b:f0002_01", "f0001_14"]
    assert data.sizes.tolist() == [1, 2]
    assert data.arrays["label"].dtype == np.int32
    assert data.arrays["label"].tolist() == [3, 1, 2]
    assert data.arrays["pixels"].dtype == np.float32
    assert data.arrays["pixels"].tolist() == [[[0.75] * 2] * 2, [[0.25] * 2] * 2, [[0.5] * 2] * 2]
    assert data.arrays["text"][:].tolist() == [b"www", b"w", b"ww"]


@pytest.mark.parametrize(
    "rows, message",
    [
        ([(b"a", emnist(1, 2), 3)], "client 'a' is damaged .* is not an array of the 3 examples"),
        ([(b"a", emnist(1)[:-3], 1)], "client 'a' is damaged .*cut off"),
        ([(b"a", emnist(1) + b"x", 1)], "client 'a' is damaged .*cut off"),
        ([(b"a", b"", 1)], "client 'a' is damaged"),
        ([(b"a", zlib.compress(b"\xc1"), 1)], "client 'a' is damaged"),
        ([(b"a", packed(), 0)], "it holds no features"),
        ([(b"a", packed(x=[1, 2]), 2)], "'x' is not an array"),
        ([(b"a", packed(x=msgpack.ExtType(9, b"")), 1)], "msgpack extension type 9"),
        (
            [(b"a", packed(x=msgpack.ExtType(1, msgpack.packb(((1,), "object", b"8bytes..")))), 1)],
            "an array of dtype object",
        ),
        ([(b"a", packed(x=msgpack.ExtType(1, msgpack.packb(((3,), "int32", b"4byt")))), 3)], "client 'a' is damaged"),
        ([(b"a", packed(x=texts("no bytes")), 1)], None),
        ([(b"\xff\xfe", emnist(1), 1)], "is no FedJAX SQLite file, or a damaged one"),
        ([(7, emnist(1), 1)], "client id 7 is neither bytes nor text"),
        ([(b"a", emnist(1), 1), (b"b", packed(label=array(np.zeros(1))), 1)], "client 'b': columns"),
        ([(b"a", emnist(1), 1), ("a", emnist(1), 1)], "client 'a' comes twice"),
        ([], "there is no client in it"),
    ],
)
def test_bad_files_are_refused(rows, message, tmp_path):
    path = write(tmp_path / "a.sqlite", rows)
    if message is None:  # msgpack's old format has no text, only bytes: the same
        assert read(path).arrays["x"][0] == b"no bytes"
        return
    with pytest.raises(ArgumentError, match=message):
        read(path)


@pytest.mark.parametrize(
    "plain, message",
    [
        (bytes(65 << 20), r"bytes say to hold 0\.1 GB, which is more than 200 times"),
        (b"\x91" * 200 + b"\xc0", "a list within others"),
        (packed_ext(b"\xdd" + (1 << 20).to_bytes(4, "big") + b"\x90" * (1 << 20)), "a list within others"),
        (b"\x81\xa1x\x81\xa1x\xc0", "a dict within others"),
    ],
)
def test_a_client_that_becomes_far_more_than_it_is_is_refused(plain, message, tmp_path, peak):
    path = write(tmp_path / "a.sqlite", [(b"a", zlib.compress(plain, 1), 1)])
    with pytest.raises(ArgumentError, match=message):
        read(path)
    assert peak() < 300 << 20


@pytest.mark.parametrize(
    "what",
    [
        "VIEW federated_data AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
        "SELECT CAST(i AS BLOB) AS client_id, zeroblob(1000000000) AS data, 1 AS num_examples FROM n",
        "TABLE federated_data (client_id, num_examples, data AS (zeroblob(1000000000)))",
    ],
)
def test_a_view_or_a_computed_column_is_refused(what, tmp_path):
    with sqlite3.connect(tmp_path / "a.sqlite") as database:
        database.execute(f"CREATE {what}")
    database.close()
    with pytest.raises(ArgumentError, match="'federated_data' is no table whose rows are stored in the file"):
        read(tmp_path / "a.sqlite")


def test_a_write_ahead_log_or_a_journal_beside_it_is_refused(tmp_path):
    path = write(tmp_path / "a.sqlite", ROWS[:1])
    assert read(path).num_clients == 1
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("INSERT INTO federated_data VALUES (?, ?, ?)", ROWS[1])
    database.commit()
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("a.sqlite", "a.sqlite-wal"):
        (folder / name).write_bytes((tmp_path / name).read_bytes())
    with pytest.raises(ArgumentError, match=r"has a write-ahead log beside it, a\.sqlite-wal: without that, rows are"):
        read(folder / "a.sqlite")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert (tmp_path / "a.sqlite-wal").stat().st_size == 0
    assert read(path).num_clients == 2  # an empty log holds nothing
    database.close()
    (tmp_path / "a.sqlite-journal").write_bytes(bytes.fromhex("d9d505f920a163d7") + bytes(504))
    with pytest.raises(ArgumentError, match="has a rollback journal beside it"):
        read(path)
    (tmp_path / "a.sqlite-journal").write_bytes(bytes(512))  # a journal that is done with, in a mode that keeps it
    assert read(path).num_clients == 2


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_an_error_or_whole(data, tmp_path):
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    path = write(folder / "a.sqlite")
    blob = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(blob[: data.draw(st.integers(0, len(blob)) | st.just(len(blob)))])
    try:
        found = read(path)
    except ArgumentError:
        return
    assert found.sizes.tolist() == [1, 2]
    assert found.arrays["label"].tolist() == [3, 1, 2]  # zlib's checksum sees to that
