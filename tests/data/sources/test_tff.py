"""TFF's SQLite and HDF5 files, written here by sqlite3, protobuf's wire format by hand, and h5py."""

import lzma
import os
import sqlite3
import struct
import subprocess
import sys
import tempfile
import textwrap
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.sources.example_proto import aligned, decode

ROOT = Path(__file__).parents[3]
FUZZ = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

SCHEMA = """
CREATE TABLE examples (split_name TEXT NOT NULL, client_id TEXT NOT NULL, serialized_example_proto BLOB NOT NULL);
CREATE INDEX idx_examples_client_id ON examples (client_id);
CREATE INDEX idx_examples_client_id_split ON examples (split_name, client_id);
CREATE TABLE client_metadata (client_id TEXT NOT NULL, split_name TEXT NOT NULL, num_examples INTEGER NOT NULL);
CREATE INDEX idx_metadata_client_id ON client_metadata (client_id);
"""


def varint(value):
    value &= (1 << 64) - 1
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def floats(*values):
    return field(2, field(1, struct.pack(f"<{len(values)}f", *values)))


def integers(*values):
    return field(3, field(1, b"".join(map(varint, values))))


def texts(*values):
    return field(1, b"".join(field(1, value) for value in values))


def example(**features):
    return field(1, b"".join(field(1, field(1, k.encode()) + field(2, v)) for k, v in features.items()))


def emnist(pixel, label):
    return example(pixels=floats(*[pixel] * 4), label=integers(label))


ROWS = [  # in the file's order, clients mixed
    ("train", "f2", emnist(0.5, 61)),
    ("train", "f1", emnist(1.0, 7)),
    ("test", "f1", emnist(0.25, 3)),
    ("train", "f2", example(label=integers(0), pixels=floats(0, 1, 2, 3))),  # a map has no order
]


def write(path, rows=ROWS, counts=None):
    if counts is None:
        pairs = sorted({(client, split) for split, client, _ in rows})
        counts = [(c, s, sum(row[:2] == (s, c) for row in rows)) for c, s in pairs]
    with sqlite3.connect(path) as database:
        database.executescript(SCHEMA)
        database.executemany("INSERT INTO examples VALUES (?, ?, ?)", rows)
        database.executemany("INSERT INTO client_metadata VALUES (?, ?, ?)", counts)
    database.close()
    return path


def read(path, split="train", **options):
    return fs.data.sources.tff_sqlite(path, split, cache_dir=path.parent / "cache", **options)


# tf.train.Example


def test_an_example_by_hand():
    """Bytes written out from the format's definition, not by this file's helpers."""
    blob = bytes.fromhex(
        "0a1f 0a0d 0a0178 1208 1206 0a04 0000803f 0a0e 0a0179 1209 1a07 0a05 07 ac02 8001".replace(" ", "")
    )
    features = decode(blob)
    assert features["x"].dtype == np.float32
    assert features["x"].tolist() == [1.0]
    assert features["y"].dtype == np.int64
    assert features["y"].tolist() == [7, 300, 128]


NUMBERS = st.integers(-(2**63), 2**63 - 1)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(NUMBERS, max_size=9),
    st.lists(st.floats(width=32, allow_nan=False), max_size=5),
    st.lists(st.binary(max_size=200), max_size=3),
)
def test_any_values_are_read(numbers, values, strings):
    blob = example(n=integers(*numbers), f=floats(*values), s=texts(*strings))
    features = decode(blob)
    assert list(features["n"]) == numbers
    assert list(features["f"]) == values
    assert features["s"] == strings


def test_every_way_to_write_it_is_read():
    apart = field(3, b"".join(varint(1 << 3) + varint(v) for v in (5, 300)))  # not packed
    parts = field(2, field(1, struct.pack("<f", 1)) + varint(1 << 3 | 5) + struct.pack("<f", 2))
    unknown = (
        field(9, b"?") + varint(8 << 3) + varint(3) + varint(7 << 3 | 1) + bytes(8) + varint(6 << 3 | 5) + bytes(4)
    )
    entry = field(1, unknown + field(2, apart) + field(1, b"n"))  # the value before the name
    blob = field(1, entry) + unknown + field(1, field(1, field(1, b"f") + field(2, parts)))  # two Features: merged
    features = decode(blob)
    assert features["n"].tolist() == [5, 300]
    assert features["f"].tolist() == [1.0, 2.0]


def test_empty_features_and_none():
    assert decode(b"") == {}
    assert decode(field(1, b"")) == {}
    assert decode(example(a=b"", b=field(1, b""))) == {"a": [], "b": []}


def test_protobufs_own_parser_agrees():
    from tensorflow_datasets.proto import tf_example_generated_pb2

    made = getattr(tf_example_generated_pb2, "Example")()  # noqa: B009 # made at run time
    made.features.feature["pixels"].float_list.value.extend([0.5, -1.5, 3e38])
    made.features.feature["label"].int64_list.value.extend([-1, 2**62])
    made.features.feature["text"].bytes_list.value.append(b"\x00long" * 100)
    made.features.feature["none"].int64_list.value.extend([])
    features = decode(made.SerializeToString())
    assert features["pixels"].tolist() == np.float32([0.5, -1.5, 3e38]).tolist()
    assert features["label"].tolist() == [-1, 2**62]
    assert features["text"] == [b"\x00long" * 100]
    assert len(features["none"]) == 0


@settings(deadline=None, max_examples=300, derandomize=True)
@given(st.data())
def test_damaged_examples_are_an_error_or_an_example(data):
    blob = bytearray(example(pixels=floats(1, 2, 3), label=integers(300, 2), text=texts(b"abc")))
    for _ in range(data.draw(st.integers(1, 3))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    try:
        features = decode(bytes(blob[: data.draw(st.integers(0, len(blob)))]))
    except ArgumentError as error:
        assert "bytes are no tf.train.Example" in str(error)  # noqa: PT017 # either way is right
    else:
        assert all(isinstance(value, list | np.ndarray) for value in features.values())


def test_examples_of_one_layout_are_read_at_once():
    blobs = [example(x=floats(0.5, k, -3), y=integers(k, 7), none=integers()) for k in range(4)]
    columns = aligned(blobs)
    assert columns["x"].tolist() == [[0.5, k, -3] for k in range(4)]
    assert columns["y"].tolist() == [[k, 7] for k in range(4)]
    assert (columns["x"].dtype, columns["y"].dtype, columns["none"].shape) == (np.float32, np.int64, (4, 0))


@pytest.mark.parametrize(
    "other",
    [
        example(y=integers(200, 7), x=floats(1, 2)),  # two bytes for a number, which shifts what follows
        example(y=integers(200), x=floats(1, 2)),  # as long as the first
        example(y=integers(1, 7), z=floats(1, 2)),
        example(x=floats(1, 2), y=integers(1, 7)),
        example(y=integers(1, 7), x=texts(bytes(6))),
        b"",
    ],
)
def test_examples_of_other_layouts_are_read_one_by_one(other):
    assert aligned([example(y=integers(1, 7), x=floats(1, 2)), other]) is None


@pytest.mark.parametrize("blob", [b"", b"\x0a", example(y=texts(b"a")), field(1, field(1, b"")), example(a=b"")])
def test_what_is_no_layout_of_numbers_is_left_to_the_other_reader(blob):
    assert aligned([blob, blob]) in (None, {})


@settings(deadline=None, max_examples=400, derandomize=True)
@given(st.data())
def test_what_is_read_at_once_is_what_is_read_one_by_one(data):
    numbers = st.integers(0, 140)
    first = example(y=integers(data.draw(numbers), 7), x=floats(1, 2))
    blobs = [bytearray(example(y=integers(data.draw(numbers), 7), x=floats(1, k))) for k in range(3)]
    for _ in range(data.draw(st.integers(0, 3))):
        blob = blobs[data.draw(st.integers(0, 2))]
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255) | st.sampled_from(first))
    blobs = [bytes(blob) for blob in blobs]
    columns = aligned(blobs)
    if columns is None:
        return
    each = [decode(blob) for blob in blobs]
    assert all(found.keys() == columns.keys() for found in each)
    for name, column in columns.items():
        assert column.dtype == each[0][name].dtype
        np.testing.assert_array_equal(column, np.stack([found[name] for found in each]))


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_cut_number_is_no_number(cut):
    with pytest.raises(ArgumentError, match="bytes are no tf"):
        decode(example(n=field(3, field(1, b"\x80" * cut))))


# SQLite


def test_clients_are_sorted_and_examples_keep_their_order(tmp_path):
    data = read(write(tmp_path / "emnist.sqlite"))
    assert list(data.client_ids) == ["f1", "f2"]
    assert data.sizes.tolist() == [1, 2]
    assert data.arrays["pixels"].dtype == np.float32
    assert data.arrays["pixels"].tolist() == [[1] * 4, [0.5] * 4, [0, 1, 2, 3]]
    assert data.arrays["label"].dtype == np.int64
    assert data.arrays["label"].tolist() == [7, 61, 0]
    assert read(tmp_path / "emnist.sqlite", "test").arrays["label"].tolist() == [3]


def test_shapes_and_dtypes_are_as_asked(tmp_path):
    data = read(
        write(tmp_path / "a.sqlite"), shapes={"pixels": (2, 2)}, dtypes={"label": np.uint8, "pixels": "float16"}
    )
    assert data.arrays["pixels"].shape == (3, 2, 2)
    assert data.arrays["pixels"].dtype == np.float16
    assert data.client(1)["label"].tolist() == [61, 0]
    assert data.client(1)["label"].dtype == np.uint8


def test_text_becomes_strings(tmp_path):
    rows = [("train", "KING", example(snippets=texts(line))) for line in (b"Nothing will come", b"", b"of \xff")]
    data = read(write(tmp_path / "shakespeare.sqlite", rows))
    assert isinstance(data.arrays["snippets"], fs.data.Strings)
    assert data.client(0)["snippets"].tolist() == [b"Nothing will come", b"", b"of \xff"]


def test_a_compressed_file_is_unpacked_and_the_copy_removed(tmp_path):
    plain = write(tmp_path / "emnist.sqlite")
    packed = tmp_path / "emnist.sqlite.lzma"
    packed.write_bytes(lzma.compress(plain.read_bytes(), format=lzma.FORMAT_ALONE))
    plain.unlink()
    assert read(packed).arrays["label"].tolist() == [7, 61, 0]
    assert not list((tmp_path / "cache" / "unpacked").iterdir())


def test_the_cache_answers_once_the_file_is_read(tmp_path):
    path = write(tmp_path / "a.sqlite")
    read(path)
    stamp = path.stat().st_mtime_ns
    database = sqlite3.connect(path)
    database.execute("UPDATE examples SET client_id = 'f9' WHERE client_id = 'f1'")
    database.commit()
    database.close()
    os.utime(path, ns=(stamp, stamp))  # the same size and time, but other bytes
    with pytest.raises(ArgumentError, match=r"client 'f1' .* has 0 examples"):
        read(path)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: p.write_bytes(b""), "is no TFF SQLite file"),
        (lambda p: p.write_bytes(b"SQLite format 3\0" + bytes(200)), "is no TFF SQLite file"),
        (lambda p: p.write_text("pixels,label"), "is no TFF SQLite file"),
        (
            lambda p: write(p, counts=[("f1", "train", 2), ("f2", "train", 2)]),
            "client 'f1' .* has 1 examples, .* says 2",
        ),
        (lambda p: write(p, counts=[("f1", "train", 1)]), "holds 3 examples of 'train', but lists clients of 1 only"),
        (lambda p: write(p, [("train", "f", b"\xff\xff")]), "client 'f': 2 bytes are no tf.train.Example"),
        (lambda p: write(p, [("train", "f", "text")]), "a.sqlite: client 'f': "),
        (lambda p: write(p, [("train", "f", example())]), "client 'f': it has no examples, or examples of no features"),
        (
            lambda p: write(p, [("train", "f", emnist(1, 2)), ("train", "f", example(pixels=floats(1)))]),
            "client 'f': an example has the features",
        ),
        (
            lambda p: write(p, [("train", "f", example(x=floats(1, 2))), ("train", "f", example(x=floats(1)))]),
            "'x' has 1 values in one example and 2 in another",
        ),
        (
            lambda p: write(p, [("train", "f", example(x=floats(1))), ("train", "f", example(x=integers(1)))]),
            "'x' is of different kinds",
        ),
        (lambda p: write(p, [("train", "f", example(x=texts(b"a", b"b")))]), "'x' has not one byte string"),
        (lambda p: write(p, [("dev", "f", emnist(1, 1))]), r"split='train' has no clients; there are \['dev'\]"),
    ],
)
def test_bad_files_are_refused(make, message, tmp_path):
    path = tmp_path / "a.sqlite"
    make(path)
    with pytest.raises(ArgumentError, match=message):
        read(path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"shapes": {"pixels": (3, 2)}}, r"'pixels' has 4 values an example, which do not make the shape \(3, 2\)"),
        ({"dtypes": {"label": np.int8, "pixels": np.int32}}, "'pixels' does not fit into int32: from 0.0 to 3.0"),
        ({"shapes": {"image": (2, 2)}}, r"name \['image'\], which its features \['label', 'pixels'\] lack"),
    ],
)
def test_shapes_and_dtypes_that_do_not_fit(options, message, tmp_path):
    rows = [row for row in ROWS if row[1] == "f2"]
    with pytest.raises(ArgumentError, match=message):
        read(write(tmp_path / "a.sqlite", rows), **options)


@pytest.mark.parametrize("content", [b"", b"no lzma", lzma.compress(bytes(10**5))[:-20]], ids=["empty", "other", "cut"])
def test_bad_compressed_files_are_refused(content, tmp_path):
    path = tmp_path / "a.sqlite.lzma"
    path.write_bytes(content)
    with pytest.raises(ArgumentError, match=r"(cannot be unpacked|is no TFF SQLite file)"):
        read(path)


def test_a_decompression_bomb_is_refused(tmp_path):
    path = tmp_path / "a.sqlite.lzma"
    path.write_bytes(lzma.compress(bytes(65 << 20)))
    with pytest.raises(ArgumentError, match="which is more than 200 times their number"):
        read(path)
    assert not [p for p in (tmp_path / "cache" / "unpacked").rglob("*") if p.is_file()]


@FUZZ
@given(data=st.data())
def test_a_damaged_sqlite_file_is_an_error_or_whole(data, tmp_path):
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
    assert found.num_examples == 3
    assert sorted(found.sizes) in ([1, 2], [3])  # an id of one letter changed may join the two


MEMORY = """
    import resource, sys
    import numpy as np
    import fedjax_sim as fs
    import sqlite3, lzma
    virtual = int(open("/proc/self/statm").read().split()[0]) * 4096
    limit = virtual + (220 << 20)  # the mapped result alone takes 120 MiB; a copy of it would not fit
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        np.ones(30 << 20)
    except MemoryError:
        print("limited")
    data = fs.data.sources.tff_sqlite(sys.argv[1], "train", cache_dir=sys.argv[2])
    print(data.num_examples, data.num_clients, int(data.client(99)["label"].sum()))
"""


def test_a_file_larger_than_memory_is_converted(tmp_path):
    """120 MiB of pixels under a limit of the address space that has no room for them twice."""
    rows = 100
    blob = example(pixels=floats(*[0.5] * 3932), label=integers(1))  # 100 clients of 80 examples of 15 KiB
    path = tmp_path / "large.sqlite"
    write(
        path,
        (("train", f"c{k:03d}", blob) for k in range(rows) for _ in range(80)),
        [(f"c{k:03d}", "train", 80) for k in range(rows)],
    )
    assert path.stat().st_size > 120 << 20
    command = [sys.executable, "-c", textwrap.dedent(MEMORY), path, tmp_path / "cache"]
    env = {**os.environ, "MALLOC_ARENA_MAX": "1"}  # else each thread reserves 64 MiB of addresses
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout == "limited\n8000 100 80\n", done.stderr[-2000:]


@pytest.mark.parametrize("packed", [False, True])
def test_a_write_ahead_log_beside_it_is_refused(packed, tmp_path):
    path = write(tmp_path / "a.sqlite")
    assert read(path).num_clients == 2
    log = tmp_path / "a.sqlite-wal"
    log.write_bytes(bytes(100))
    with pytest.raises(ArgumentError, match="has a write-ahead log beside it"):
        read(path)  # though the cache has it
    if packed:
        path.with_name("b.sqlite.lzma").write_bytes(lzma.compress(path.read_bytes()))
        assert read(path.with_name("b.sqlite.lzma")).num_clients == 2


def test_a_file_that_is_written_to_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "a.sqlite")
    from fedjax_sim.data.sources import tff

    def writes(blobs, shapes, dtypes, columns=tff._columns):
        os.utime(path)
        return columns(blobs, shapes, dtypes)

    monkeypatch.setattr(tff, "_columns", writes)
    with pytest.raises(ArgumentError, match="was changed while it was read"):
        read(path)


# HDF5


def write_hdf5(path):
    with h5py.File(path, "w") as file:
        for client, labels in (("f1", [3]), ("f0", [1, 2])):
            group = file.create_group(f"examples/{client}")
            group["pixels"] = np.stack([np.full((28, 28), label / 8, np.float32) for label in labels])
            group["label"] = np.array(labels, np.int32)
            texts = group.create_dataset("snippets", (len(labels),), h5py.string_dtype("utf-8"))
            texts[:] = [f"line {label} ä" for label in labels]
    return path


def read_hdf5(path):
    return fs.data.sources.tff_hdf5(path, cache_dir=path.parent / "cache")


def test_hdf5_clients_are_sorted_with_all_features(tmp_path):
    data = read_hdf5(write_hdf5(tmp_path / "fed_emnist_train.h5"))
    assert list(data.client_ids) == ["f0", "f1"]
    assert data.arrays["label"].dtype == np.int32
    assert data.arrays["label"].tolist() == [1, 2, 3]
    assert data.arrays["pixels"].shape == (3, 28, 28)
    assert data.arrays["pixels"].dtype == np.float32
    assert data.arrays["pixels"][:, 27, 0].tolist() == [0.125, 0.25, 0.375]
    assert data.client(0)["snippets"].tolist() == ["line 1 ä".encode(), "line 2 ä".encode()]
    assert isinstance(data.arrays["pixels"], np.memmap)


def test_hdf5_byte_strings_of_a_fixed_length(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["examples/KING/snippets"] = np.array([b"ab", b"c"])
    assert read_hdf5(tmp_path / "a.h5").arrays["snippets"][:].tolist() == [b"ab", b"c"]


def other_hdf5(path, name, value):
    with h5py.File(path, "w") as file:
        file[name] = value


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: p.write_bytes(b""), "is no HDF5 file, or a damaged one"),
        (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)), "is no HDF5 file, or a damaged one"),
        (lambda p: other_hdf5(p, "user_data/u/x", [1]), r"has no group 'examples', but \['user_data'\]"),
        (lambda p: other_hdf5(p, "examples", [1]), "has no group 'examples'"),
        (lambda p: other_hdf5(p, "examples/u", [1]), "client 'u'"),
        (lambda p: other_hdf5(p, "examples/u/label", 3), "client 'u' is no group of arrays"),
        (lambda p: other_hdf5(p, "examples/u/deep/label", [3]), "client 'u' is no group of arrays"),
    ],
)
def test_bad_hdf5_files_are_refused(make, message, tmp_path):
    make(tmp_path / "a.h5")
    with pytest.raises(ArgumentError, match=message):
        read_hdf5(tmp_path / "a.h5")


def test_hdf5_features_of_other_lengths_are_refused(tmp_path):
    write_hdf5(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["examples/f0/label"]
        file["examples/f0/label"] = np.zeros(5, np.int32)
    with pytest.raises(ArgumentError, match="client 'f0': its columns have other numbers of rows"):
        read_hdf5(tmp_path / "a.h5")


@pytest.mark.parametrize("chunks", [None, (2,)])
@pytest.mark.parametrize("heap", ["size", "address", "length"])
def test_a_text_in_a_heap_that_is_none_is_refused_before_it_is_made(heap, chunks, tmp_path, peak):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("examples/c/t", data=["one", "two", "three"], dtype=h5py.string_dtype(), chunks=chunks)
    assert read_hdf5(path).client(0)["t"].tolist() == [b"one", b"two", b"three"]
    content = bytearray(path.read_bytes())
    at = content.index(b"GCOL")
    if heap == "size":
        content[at + 8 : at + 16] = (1 << 30).to_bytes(8, "little")
    elif heap == "address":
        content = content.replace(at.to_bytes(8, "little"), (at + 8).to_bytes(8, "little"))
    else:
        first = content.index(at.to_bytes(8, "little")) - 4
        content[first : first + 4] = (1 << 30).to_bytes(4, "little")
    path.write_bytes(content)
    peak.again()
    with pytest.raises(ArgumentError, match=r"has a text (at byte .*, where there is none|of 1\d+ bytes in a file of)"):
        read_hdf5(path)
    assert peak() < 64 << 20


def hdf5_bomb(path, kind):
    with h5py.File(path, "w") as file:
        group = file.create_group("examples/u")
        if kind == "sparse":
            group.create_dataset("x", (375_000_000,), np.float64)
        elif kind == "a chunk":
            group.create_dataset("x", (1,), np.float64, chunks=(1 << 28,), maxshape=(None,), compression="gzip")
        elif kind == "filled":
            group.create_dataset("x", (1 << 24, 8), np.int64, chunks=(1 << 14, 8), compression="gzip", fillvalue=7)
        elif kind == "texts":
            texts = group.create_dataset("x", (1000,), h5py.string_dtype())
            texts[0] = b"x" * 2_000_000
        elif kind == "in sum":
            group.create_dataset("x", (1 << 22,), np.uint8)
            for k in range(20):
                file[f"examples/v{k}"] = group
        else:
            group.create_dataset("x", data=np.zeros(9), chunks=(9,), scaleoffset=2)
    return path


@pytest.mark.parametrize("kind", ["sparse", "a chunk", "filled", "in sum"])
def test_an_hdf5_file_that_says_to_hold_far_more_than_it_does_is_refused(kind, tmp_path, peak):
    path = hdf5_bomb(tmp_path / "a.h5", kind)
    with pytest.raises(ArgumentError, match=r"a\.h5: .*its \d+ bytes say to hold \d\.\d GB, which is more than 200"):
        read_hdf5(path)
    assert peak() < 128 << 20


def test_hdf5_texts_that_are_one_long_text_each_are_refused(tmp_path, peak):
    path = hdf5_bomb(tmp_path / "a.h5", "texts")
    blob = path.read_bytes()
    with h5py.File(path) as file:
        data = file["examples/u/x"]
        start, size = data.id.get_offset(), 16 * len(data)
    path.write_bytes(blob[:start] + blob[start : start + 16] * 1000 + blob[start + size :])
    with pytest.raises(ArgumentError, match=r"'x': its \d+ bytes say to hold .* GB"):
        read_hdf5(path)
    assert peak() < 1 << 30


def test_a_deflated_chunk_of_more_than_a_chunk_is_refused(tmp_path, peak):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("examples/u/x", (8,), np.float64, chunks=(8,), compression="gzip")
        data.id.write_direct_chunk((0,), zlib.compress(bytes(100 << 20), 9))
    with pytest.raises(ArgumentError, match="a chunk unpacks to more than a chunk"):
        read_hdf5(path)
    assert peak() < 64 << 20


def test_hdf5_filters_that_take_lengths_from_the_file_are_not_run(tmp_path):
    with pytest.raises(
        ArgumentError, match=r"went through the filters \[6\]; \['fletcher32', 'gzip', 'lzf', 'shuffle'\]"
    ):
        read_hdf5(hdf5_bomb(tmp_path / "a.h5", "scaled"))


@pytest.mark.parametrize(
    "options", [{"compression": "gzip", "shuffle": True, "fletcher32": True}, {"compression": "lzf"}]
)
def test_packed_hdf5_arrays_are_read(options, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("examples/u/x", data=np.arange(1000) % 7, chunks=(300,), **options)
    assert read_hdf5(tmp_path / "a.h5").arrays["x"].tolist() == [i % 7 for i in range(1000)]


SECRET = b"another file's bytes, as eight-byte numbers!"


@pytest.mark.parametrize(
    "kind", ["external storage", "an external link", "a link to an external link", "a virtual array"]
)
@pytest.mark.parametrize("level", ["examples", "examples/u", "examples/u/x"])
def test_what_lies_in_other_files_is_not_read(kind, level, tmp_path):
    (tmp_path / "secret").write_bytes(SECRET)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["examples/u/x"] = np.frombuffer(SECRET, np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["examples/v/x"] = np.zeros(3, np.uint8)
        if kind == "external storage":
            file.create_dataset("examples/u/x", (40,), np.uint8, external=[(str(tmp_path / "secret"), 0, 40)])
        elif kind == "a virtual array":
            layout = h5py.VirtualLayout((len(SECRET),), np.uint8)
            layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "examples/u/x", (len(SECRET),))
            file.create_virtual_dataset("examples/u/x", layout)
        else:
            if level == "examples":
                del file["examples"]
            link = h5py.ExternalLink(str(tmp_path / "other.h5"), level)
            file["elsewhere" if kind.startswith("a link") else level] = link
            if kind.startswith("a link"):
                file[level] = h5py.SoftLink("/elsewhere")
        seen = file["examples/u/x"][()].tobytes()
        assert seen == SECRET[: len(seen)]  # the library does return it
    with pytest.raises(ArgumentError, match=r"is a link to another place|takes its values from other files"):
        read_hdf5(tmp_path / "a.h5")


@FUZZ
@given(data=st.data())
def test_a_cut_hdf5_file_is_refused(data, tmp_path):
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    path = write_hdf5(folder / "a.h5")
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ArgumentError):
        read_hdf5(path)


@FUZZ
@given(data=st.data())
def test_a_damaged_hdf5_file_is_an_error_or_reads_in_the_declared_lengths(data, tmp_path):
    """The library below, in C, is neither crashed nor hung; a changed value of an array nobody can see."""
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    path = write_hdf5(folder / "a.h5")
    whole = read_hdf5(path)
    blob = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(blob)
    try:
        found = read_hdf5(path)
    except ArgumentError:
        return
    for k in range(found.num_clients):
        assert len({len(column) for column in found.client(k).values()}) == 1
    assert found.num_clients <= whole.num_clients
