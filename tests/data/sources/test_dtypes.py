"""Every dtype of NumPy's in every reader: its values are read, in a form that devices take, or refused in words."""

import warnings

import h5py
import jax.numpy as jnp
import msgpack
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.kinds import check_computable
from tests.data.sources import test_fedjax_files, test_tff

NAMES = (*"?bBhHiIqQlLefdgFDGO", "S3", "U3", "V4", "M8[s]", "m8[ms]")
NATIVE = list(dict.fromkeys(np.dtype(name).str for name in NAMES))
DTYPES = [*NATIVE, *(f">{name[1:]}" for name in NATIVE if name[0] == "<"), "f4,i2", ">f4,i2"]


def values(dtype):
    """[4] small values that every dtype holds exactly."""
    dtype = np.dtype(dtype)
    if dtype.names or dtype.kind == "V":
        return np.zeros(4, dtype)
    return np.array([0, 1, 1, 0]).astype(dtype)


def npz(save):
    def read(x, folder):
        save(folder / "a.npz", x=x, offsets=[0, 1, 4])
        return fs.data.sources.npz(folder / "a.npz").arrays["x"]

    return read


def npy(x, folder):
    np.save(folder / "a.npy", x)
    return fs.data.on_disk(folder / "a.npy")


def hdf5(x, folder):
    with h5py.File(folder / "a.h5", "w") as file:
        try:
            file["examples/c/x"] = x
        except TypeError:
            pytest.skip("HDF5 has no such type")
    return fs.data.sources.tff_hdf5(folder / "a.h5", cache_dir=folder / "cache").arrays["x"]


def fedjax(x, folder):
    try:
        packed = msgpack.ExtType(1, msgpack.packb((x.shape, x.dtype.str, x.tobytes())))
    except ValueError:
        pytest.skip("msgpack has no such type")
    path = test_fedjax_files.write(folder / "a.sqlite", [(b"c", test_fedjax_files.packed(x=packed), len(x))])
    return test_fedjax_files.read(path).arrays["x"]


def tff(x, folder):
    rows = [("train", "c", test_tff.example(x=test_tff.integers(value))) for value in (0, 1, 1, 0)]
    path, options = test_tff.write(folder / "a.sqlite", rows), {"dtypes": {"x": x.dtype}}
    return fs.data.sources.tff_sqlite(path, "train", cache_dir=folder / "cache", **options).arrays["x"]


def cached(x, folder):
    return fs.data.cached("a", {}, lambda start: iter([("c", {"x": x})]), cache_dir=folder).arrays["x"]


def memory(x, folder):
    return x


READERS = {
    "npz": npz(np.savez),
    "npz, compressed": npz(np.savez_compressed),
    "npy": npy,
    "HDF5": hdf5,
    "FedJAX SQLite": fedjax,
    "TFF SQLite": tff,
    "cache": cached,
    "memory": memory,
}


BATCHING = fs.Batching(2)
COMPLEX = [("FedJAX SQLite", "c")]
"""Numbers that a format of a reader has, and no set."""


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
def test_a_dtype_is_read_rightly_or_refused(dtype, reader, tmp_path):
    x = values(dtype)
    try:
        found = READERS[reader](x, tmp_path)
        if x.dtype.kind not in "SUO":
            check_computable({"x": found})
    except ArgumentError:
        foreign = reader == "memory" and not x.dtype.isnative
        assert x.dtype.kind in "OVMmSU" or x.dtype.char in "gG" or foreign or (reader, x.dtype.kind) in COMPLEX
        return
    if x.dtype.kind in "SUO":
        texts = [v if isinstance(v, bytes) else str(v).encode() for v in x.tolist()]
        assert reader == "memory" or [*found[:]] == texts
        return
    on_host = np.asarray(found)
    assert on_host.dtype == x.dtype.newbyteorder("=")
    np.testing.assert_array_equal(on_host, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of 64 bits that become 32
        np.testing.assert_array_equal(jnp.asarray(found[:]), x.astype(complex if x.dtype.kind == "c" else float))


def test_a_simulation_says_what_to_do_with_data_in_memory():
    task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
    for dtype, words in ((">f4", r"\(>f4\), which.*newbyteorder"), ("g", r"long doubles.*astype\(np.float64\)")):
        data = fs.FederatedData({"x": np.zeros(3, dtype)}, [0, 1, 3])
        for meet in (
            lambda data=data: fs.evaluate(task, jnp.zeros(()), data),
            lambda data=data: fs.Simulation(fs.fedavg(task, optax.sgd(0.1)), data, fs.sampler.uniform(1), BATCHING),
        ):
            with pytest.raises(ArgumentError, match=f"column 'x' holds .*{words}"):
                meet()
