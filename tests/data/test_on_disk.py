"""Arrays that stay in their file, against NumPy's own reading; populations made on demand, against a loop."""

import os

import jax
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError

SHAPES = [((37,), np.int32), ((20, 3), np.float32), ((11, 2, 5), np.uint8), ((6, 0), np.float64), ((0, 4), np.float32)]


@pytest.mark.parametrize(("shape", "dtype"), SHAPES, ids=str)
def test_rows_are_those_of_numpy(shape, dtype, tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).integers(0, 200, shape).astype(dtype))
    whole, disk = np.load(path), fs.data.on_disk(path)
    assert (disk.shape, disk.dtype, len(disk), disk.nbytes) == (whole.shape, whole.dtype, len(whole), whole.nbytes)
    np.testing.assert_array_equal(np.asarray(disk), whole)
    rows = [slice(None), slice(1, None, 2), slice(4, 1, -1), np.array([], np.int64)]
    if len(whole):
        rows += [0, -1, np.array([3, 4, 5, 1, 1, -2, 0], np.int32), [2, 1]]
    for taken in rows:
        np.testing.assert_array_equal(disk[taken], whole[taken])
    for bad in ([len(whole)], -len(whole) - 1):
        with pytest.raises(IndexError):
            disk[bad]
    with pytest.raises(ArgumentError, match="row numbers"):
        disk[np.ones(len(whole), bool)]


def test_a_part_of_a_memory_map_starts_where_the_part_does(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(60.0).reshape(20, 3))
    part = np.load(tmp_path / "x.npy", mmap_mode="r")[7:15]
    np.testing.assert_array_equal(np.asarray(fs.data.on_disk(part)), part)


def test_files_that_cannot_be_read_row_by_row(tmp_path):
    np.save(tmp_path / "fortran.npy", np.asfortranarray(np.ones((4, 3))))
    with pytest.raises(ArgumentError, match="not in C order"):
        fs.data.on_disk(tmp_path / "fortran.npy")
    np.save(tmp_path / "x.npy", np.ones((1000, 3)))
    disk = fs.data.on_disk(tmp_path / "x.npy")
    os.truncate(tmp_path / "x.npy", 12000)
    np.testing.assert_array_equal(disk[:400], np.ones((400, 3)))
    with pytest.raises(OSError, match="cut while in use"):
        disk[600:]
    with pytest.raises(ArgumentError, match=r"holds 12000 bytes; .* needs"):
        fs.data.DiskArray(tmp_path / "x.npy", np.float64, (1000, 3))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda path: path.unlink(), "cannot be read .No such file"),
        (lambda path: path.write_bytes(b""), "is no .npy file of numbers, or a damaged one"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"(4, 3)", b"(4, 9)")), "is no .npy file of numbers"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"'<f8'", b"'|O8'")), "is no .npy file of numbers"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"'<f8'", b"'<M8'")), "holds datetime64.*: numbers"),
        (lambda path: np.save(path, np.float32(1)), "holds one value"),
    ],
)
def test_files_that_are_no_arrays_of_numbers(spoil, message, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((4, 3)))
    spoil(tmp_path / "x.npy")
    with pytest.raises(ArgumentError, match=message):
        fs.data.on_disk(tmp_path / "x.npy")


def test_procedural_clients_are_those_of_a_loop():
    sizes = np.array([2, 0, 5, 1])
    data = fs.data.procedural(4, sizes, lambda client, example: {"x": (10 * client + example).astype(np.float32)})
    for client, size in enumerate(sizes):
        np.testing.assert_array_equal(data.client(client)["x"], [10 * client + i for i in range(size)])
    read = data.read(np.array([2, 0]), np.array([3, 2]))["x"]
    np.testing.assert_array_equal(read, [20, 21, 22, 0, 1])
    assert data.num_examples == 8
    assert not data.resident


def test_what_a_function_of_clients_may_not_give():
    def generate(client, example):
        extra = 1 if (client == 3).any() else 0
        return {"x": np.ones(len(client) + extra, np.float32)}

    data = fs.data.procedural(5, 2, generate)
    assert jax.tree.map(np.shape, data.client(1)) == {"x": (2,)}
    with pytest.raises(ArgumentError, match="generate gave"):
        data.client(3)
