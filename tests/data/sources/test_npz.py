"""One .npz file: what np.savez writes, as clients, and every way in which it can be wrong."""

import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.sources import limits

X = np.arange(12, dtype=np.float32).reshape(6, 2)
Y = np.array([0, 1, 0, 1, 1, 0], np.int32)
npz = fs.data.sources.npz


def saved(tmp_path, save=np.savez, **arrays):
    path = tmp_path / "clients.npz"
    save(path, **arrays)
    return path


def fails(path, match, **options):
    with pytest.raises(ArgumentError, match=match) as caught:
        npz(path, **options)
    assert str(path) in str(caught.value)


def test_stored_arrays_are_mapped_where_they_lie(tmp_path):
    path = saved(tmp_path, x=X, y=Y, offsets=[0, 2, 6], client_ids=["anne", "bob"])
    data = npz(path)
    assert data.client(1)["x"].tolist() == [[4, 5], [6, 7], [8, 9], [10, 11]]
    assert data.client(0)["y"].tolist() == [0, 1]
    assert data.name(1) == "bob"
    assert isinstance(data.arrays["x"], np.memmap)
    assert Path(data.arrays["x"].filename) == path
    assert path.read_bytes()[data.arrays["x"].offset :].startswith(X.tobytes())


def test_compressed_arrays_are_read(tmp_path):
    data = npz(saved(tmp_path, np.savez_compressed, x=X, offsets=[0, 2, 6]))
    assert not isinstance(data.arrays["x"], np.memmap)
    assert np.array_equal(data.arrays["x"], X)
    assert data.arrays["x"].dtype == np.float32


def test_an_index_gives_rows_in_any_order(tmp_path):
    data = npz(saved(tmp_path, x=X, offsets=[0, 1, 3], index=[5, 0, 3]))
    assert data.client(0)["x"].tolist() == [[10, 11]]
    assert data.client(1)["x"].tolist() == [[0, 1], [6, 7]]


def test_arrays_in_fortran_order_keep_their_rows(tmp_path):
    data = npz(saved(tmp_path, x=np.asfortranarray(X), offsets=[0, 2, 6]))
    assert np.array_equal(data.client(1)["x"], X[2:])


@pytest.mark.parametrize(
    "who", [np.array(["bob", "anne", "bob", "cé", "anne", "bob"]), np.array([7, -1, 7, 20, -1, 7], np.int16)]
)
def test_a_column_names_each_rows_client(tmp_path, who):
    data = npz(saved(tmp_path, x=X, who=who), client="who")
    assert list(data.client_ids) == (["anne", "bob", "cé"] if who.dtype.kind == "U" else ["-1", "7", "20"])
    assert [data.client(k)["x"][:, 0].tolist() for k in range(3)] == [[2, 8], [0, 4, 10], [6]]
    assert set(data.arrays) == {"x"}


def test_texts_become_bytes(tmp_path):
    data = npz(saved(tmp_path, t=np.array(["a", "", "éa"]), s=np.array([b"x", b"y", b"z"]), offsets=[0, 1, 3]))
    assert data.client(1)["t"].tolist() == [b"", "éa".encode()]
    assert data.client(1)["s"].tolist() == [b"y", b"z"]


def test_an_array_of_objects_is_refused(tmp_path):
    fails(saved(tmp_path, x=np.array([{}, 1], object), offsets=[0, 2]), "'x'.*Objects are not loaded")


@pytest.mark.parametrize("value", [np.zeros(2, "datetime64[s]"), np.zeros(2, [("a", "f4")])])
def test_dates_and_records_are_refused(tmp_path, value):
    fails(saved(tmp_path, x=value, offsets=[0, 2]), "'x': holds")


def test_what_is_missing_is_named(tmp_path):
    fails(tmp_path / "no.npz", "No such file")
    fails(saved(tmp_path, x=X), r"has no array 'offsets', but \['x'\]")
    fails(saved(tmp_path, x=X), "client='who': there is no such array", client="who")
    fails(saved(tmp_path, offsets=[0, 1]), "no array besides 'offsets'")
    fails(saved(tmp_path, who=Y), "no column besides the client's", client="who")


def test_offsets_ids_and_clients_that_do_not_fit_are_refused(tmp_path):
    fails(saved(tmp_path, x=X, offsets=[0, 9]), "runs past the arrays' 6 rows")
    fails(saved(tmp_path, x=X, offsets=[0, 1, 6], client_ids=["a", "a"]), "unique")
    fails(saved(tmp_path, x=X, offsets=[0, 6], client_ids=["a", "b"]), "client_ids")
    fails(saved(tmp_path, x=X, y=Y[:3], offsets=[0, 3]), "clients.npz")
    fails(saved(tmp_path, x=X, who=Y[:3]), "'x' has 6 rows, but the clients' column 3", client="who")
    fails(saved(tmp_path, x=X, who=X), "text or a whole number", client="who")
    fails(saved(tmp_path, x=np.float32(1), offsets=[0, 1]), "'x' is a single value")


def npy(header_shape, data, dtype="<f4"):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": header_shape})
    return out.getvalue() + data


def test_an_array_of_fewer_bytes_than_its_header_says_is_refused(tmp_path):
    path = tmp_path / "short.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy((1000,), X.tobytes()))
    fails(path, r"should hold \[1000\] of float32, but has 48 bytes")


def test_other_members_and_other_compressions_are_refused(tmp_path):
    path = tmp_path / "other.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", b"")
    fails(path, "'readme.txt' is no .npy")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", npy((12,), X.tobytes()))
    fails(path, "compressed in a way that numpy does not use")


def test_a_file_that_unpacks_to_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    path = saved(tmp_path, np.savez_compressed, x=X, offsets=[0, 2, 6])
    monkeypatch.setattr(limits, "memory", lambda: 2 * (X.nbytes + 128) - 1)
    fails(path, r"says to take \d+ bytes of memory, and there are \d+ bytes; store it by np\.savez")
    plain = saved(tmp_path, x=X, offsets=[0, 2, 6])  # is mapped
    assert fs.data.sources.npz(plain).sizes.tolist() == [2, 4]


def test_a_bomb_is_refused_before_it_is_read(tmp_path, peak):
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as out,
    ):
        out.write(npy((100 << 20,), b"", "|u1"))
        for _ in range(100):
            out.write(bytes(1 << 20))
    assert (tmp_path / "bomb.npz").stat().st_size < 200_000
    fails(tmp_path / "bomb.npz", r"bytes say to hold 0\.1 GB, which is more than 200 times their number")
    assert peak() < 64 << 20


def test_checksums_of_mapped_arrays_are_compared_when_asked_for(tmp_path):
    large = np.arange(100_000)
    path = saved(tmp_path, x=large, offsets=[0, 2, 6])
    content = path.read_bytes()
    assert npz(path, verify=True).num_clients == 2
    path.write_bytes(content.replace(np.int64(77777).tobytes(), np.int64(7).tobytes()))
    fails(path, "Bad CRC-32 for file 'x.npy'", verify=True)
    assert npz(path).arrays["x"][77777] == 7  # else nothing but the headers is read


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_file_is_an_error_or_reads_in_the_declared_lengths(save, data):
    with tempfile.TemporaryDirectory() as folder:
        path = saved(Path(folder), save, x=X, y=Y, offsets=[0, 2, 6], client_ids=["anne", "bob"])
        content = bytearray(path.read_bytes())
        if data.draw(st.booleans(), "truncate"):
            content = content[: data.draw(st.integers(0, len(content) - 1))]
        else:
            for _ in range(data.draw(st.integers(1, 3))):
                content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        try:
            read = npz(path)
        except ArgumentError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:
            for array in read.arrays.values():
                assert len(np.array(array[:])) >= read.num_examples


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\x03\x04", b"SQLite format 3\0"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "clients.npz"
    path.write_bytes(content)
    fails(path, "is no .npz file, or a damaged one")
