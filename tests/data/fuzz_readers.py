"""Damaged files for every reader: `python -m tests.data.fuzz_readers 5000 [seed]`.

Small valid files of every format are damaged and read, in a process of its own. What may come of it: the same data,
other data where the format has no checksum, or one of our errors. A crash, a hang, another exception, more memory than
`MEMORY`, and other data where there is a checksum are failures, each with what repeats it.
"""

import contextlib
import gzip
import hashlib
import io
import json
import lzma
import os
import pickle
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parents[2]
SECONDS = 20
MEMORY = 512 << 20
"""Bytes that the process may grow by while it reads a file of some kilobytes."""


class Format(NamedTuple):
    """A kind of file: `make(folder) -> file to damage`, `read(file, folder for caches) -> data`."""

    make: Any
    read: Any
    checked: bool = False  # whether all of the file is under checksums


def arrays():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(40, 3)).astype(np.float32)
    return {"x": x, "y": generator.integers(0, 9, 40), "who": np.array([f"client {i % 4}" for i in range(40)])}


def npz(save):
    def make(folder):
        save(folder / "a.npz", **arrays())
        return folder / "a.npz"

    return make


def read_npz(path, cache):
    import fedjax_sim as fs

    return fs.data.sources.npz(path, client="who", verify=True)


def npy(folder):
    np.save(folder / "a.npy", arrays()["x"])
    return folder / "a.npy"


def read_npy(path, cache):
    import fedjax_sim as fs

    return np.asarray(fs.data.on_disk(path))


def pickled(content, pack=bytes, suffix=""):
    def make(folder):
        path = folder / f"a.pickle{suffix}"
        path.write_bytes(pack(pickle.dumps(content())))
        return path

    return make


def frame():
    import pandas as pd

    texts = pd.array(["a", None, "né"] * 5, "string[pyarrow]")
    gaps, kinds = pd.array([1, None, 3] * 5, "Int32"), pd.Categorical(["u", "v", "u"] * 5)
    return pd.DataFrame({"n": np.arange(15.0), "c": kinds, "i": gaps, "s": texts, "o": np.array([b"x"] * 15, object)})


def unpickle(compression):
    def read(path, cache):
        from fedjax_sim.data.fetch.pickles import unpickle

        found = unpickle(path, compression=compression)
        if not hasattr(found, "columns") and not isinstance(found, dict):
            return {"": np.array([repr(found)], object)}
        return {str(name): np.asarray(found[name]) for name in found}

    return read


def rows():
    import pyarrow as pa

    return pa.table({name: pa.array(list(column)) for name, column in arrays().items()})


def parquet(**options):
    def make(folder):
        import pyarrow.parquet

        pyarrow.parquet.write_table(rows(), folder / "a.parquet", row_group_size=16, **options)
        return folder / "a.parquet"

    return make


BEGINNINGS = {"x.list.element": "PLAIN", "y": "DELTA_BINARY_PACKED", "who": "DELTA_BYTE_ARRAY"}


def csv(suffix, pack):
    def make(folder):
        import pyarrow as pa
        import pyarrow.csv

        pa.csv.write_csv(rows().drop_columns(["x"]), out := pa.BufferOutputStream())
        path = folder / f"a.csv{suffix}"
        path.write_bytes(pack(out.getvalue().to_pybytes()))
        return path

    return make


def read_table(path, cache):
    import fedjax_sim as fs

    return fs.data.sources.table(path, client="who")


def saved(name):
    def make(folder):
        import pyarrow as pa

        with pa.OSFile(str(folder / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, rows().schema) as writer:
            writer.write_table(rows(), max_chunksize=16)
        state = {"_data_files": [{"filename": "a.arrow"}], "_split": "train", "_indices_data_files": None}
        (folder / "state.json").write_text(json.dumps(state))
        return folder / name

    return make


def read_saved(path, cache):
    import fedjax_sim as fs

    return fs.data.sources.hugging_face(path.parent, group_by="who")


def sqlite(kind, pack=None):
    def make(folder):
        from tests.data.sources import test_fedjax_files, test_tff

        path = (test_tff if kind == "tff" else test_fedjax_files).write(folder / "a.sqlite")
        if pack:
            (folder / "a.sqlite.xz").write_bytes(pack(path.read_bytes()))
            path.unlink()
            return folder / "a.sqlite.xz"
        return path

    return make


def read_tff(path, cache):
    import fedjax_sim as fs

    return fs.data.sources.tff_sqlite(path, "train", cache_dir=cache)


def read_fedjax(path, cache):
    import fedjax_sim as fs

    return fs.data.sources.fedjax_sqlite(path, cache_dir=cache)


def hdf5(folder):
    import h5py

    with h5py.File(folder / "a.h5", "w") as file:
        for k in range(3):
            group = file.create_group(f"examples/c{k}")
            group["x"] = arrays()["x"][k : 2 * k + 1]
            group.create_dataset("y", data=np.arange(k + 1), chunks=(1,), compression="gzip")
            group.create_dataset("text", data=["né"] * (k + 1), dtype=h5py.string_dtype())
    return folder / "a.h5"


def read_hdf5(path, cache):
    import fedjax_sim as fs

    return fs.data.sources.tff_hdf5(path, cache_dir=cache)


def leaf(folder):
    users = {f"u{k}": {"x": [[0.5, k]] * (k + 1), "y": list(range(k + 1))} for k in range(4)}
    content = {"users": [*users], "num_samples": [k + 1 for k in range(4)], "user_data": users}
    (folder / "a.json").write_text(json.dumps(content))
    return folder / "a.json"


def read_leaf(path, cache):
    import fedjax_sim as fs

    return fs.data.sources.leaf(path.parent, cache_dir=cache)


def tfds(which):
    def make(folder):
        from tests.data.sources.test_tfds import prepare

        path = prepare(folder)
        return next(path.glob(which))

    return make


def read_tfds(path, cache):
    import fedjax_sim as fs

    return fs.data.sources.tfds(path.parent, group_by="user")


def idx(folder):
    from fedjax_sim.data.sources.mnist import MNIST_FILES

    for file, shape in zip(MNIST_FILES, [(5, 28, 28), (5,)] * 2, strict=True):
        header = bytes([0, 0, 8, len(shape)]) + b"".join(length.to_bytes(4, "big") for length in shape)
        pixels = (np.arange(np.prod(shape)) % 251).astype(np.uint8)
        (folder / file.name).write_bytes(gzip.compress(header + pixels.tobytes()))
    return folder / MNIST_FILES[0].name


def read_idx(path, cache):
    from fedjax_sim.data.sources.mnist import mnist

    train, test = mnist(path.parent)
    return {f"{name} {i}": part[name] for i, part in enumerate((train, test)) for name in part}


def cache_file(name):
    def make(folder):
        read_cache(None, folder)
        for thread in threading.enumerate():  # which bring it to the disk
            if thread.name == "cache":
                thread.join(30)
        (path,) = (folder / "converted").iterdir()
        return path / name

    return make


def read_cache(path, cache):
    import fedjax_sim as fs

    def clients(start):
        for k in range(start, 3):
            yield f"c{k}", {"x": arrays()["x"][: k + 1], "t": np.array([b"w" * k] * (k + 1), object)}

    return fs.data.cached("a", {"made": "here"}, clients, cache_dir=cache if path is None else path.parents[2])


FORMATS = {
    "npz": Format(npz(np.savez), read_npz, True),
    "npz, compressed": Format(npz(np.savez_compressed), read_npz, True),
    "npy": Format(npy, read_npy),
    "pickle of arrays": Format(pickled(lambda: dict(arrays(), o=np.array([b"x", None], object))), unpickle(None)),
    "pickle of a table": Format(pickled(frame), unpickle(None)),
    "pickle, xz": Format(pickled(frame, lzma.compress, ".xz"), unpickle("xz"), True),
    "pickle, gzip": Format(pickled(frame, gzip.compress, ".gz"), unpickle("gzip"), True),
    "parquet": Format(parquet(write_page_checksum=True), read_table),
    "parquet, zstd": Format(parquet(compression="zstd", data_page_version="2.0"), read_table),
    "parquet, delta": Format(parquet(use_dictionary=False, column_encoding=BEGINNINGS), read_table),
    "csv": Format(csv("", bytes), read_table),
    "csv, gzip": Format(csv(".gz", gzip.compress), read_table, True),
    "arrow stream": Format(saved("a.arrow"), read_saved),
    "state.json": Format(saved("state.json"), read_saved),
    "TFF SQLite": Format(sqlite("tff"), read_tff),
    "TFF SQLite, xz": Format(sqlite("tff", lzma.compress), read_tff, True),
    "FedJAX SQLite": Format(sqlite("fedjax"), read_fedjax),
    "HDF5": Format(hdf5, read_hdf5),
    "LEAF": Format(leaf, read_leaf),
    "array record": Format(tfds("*.array_record*"), read_tfds, True),
    "features.json": Format(tfds("features.json"), read_tfds),
    "dataset_info.json": Format(tfds("dataset_info.json"), read_tfds),
    "idx, gzip": Format(idx, read_idx, True),
    "cache: data.json": Format(cache_file("data.json"), read_cache, True),
    "cache: a column": Format(cache_file("1"), read_cache, True),
}


def damaged(content: bytes, generator: np.random.Generator) -> bytes:
    """The content with one to three changes of the kinds that files suffer, and that strangers make."""
    out = bytearray(content)
    for _ in range(generator.integers(1, 4)):
        at = int(generator.integers(0, max(len(out), 1)))
        length = int(generator.integers(1, 1 + min(64, max(1, len(out) - at))))
        kind = generator.integers(0, 8)
        if not out or kind == 0:
            out[at:at] = generator.bytes(length)
        elif kind == 1:
            del out[at : at + length]
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            out[at : at + length] = generator.bytes(length)
        elif kind == 4:  # a length or an offset
            number = int(generator.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 10**9]))
            out[at : at + 8] = number.to_bytes(8, generator.choice(["little", "big"]))
        elif kind == 5:
            other = int(generator.integers(0, len(out)))
            out[at : at + length] = out[other : other + length]
        else:
            out[at] ^= 1 << generator.integers(0, 8)
    return bytes(out)


def digest(data: Any) -> str:
    """What was read, as a name: clients, sizes, columns with dtypes, shapes and values."""
    parts = dict(data.arrays) if hasattr(data, "offsets") else dict(data) if isinstance(data, dict) else {"": data}
    found = hashlib.sha256()
    if hasattr(data, "offsets"):
        found.update(repr((list(map(str, data.client_ids)), data.sizes.tolist())).encode())
        parts = {k: v[data.index] if data.index is not None else v for k, v in parts.items()}
    for name, column in sorted(parts.items()):
        column = np.asarray(column[:]) if column.shape else np.asarray(column)
        values = repr(column.tolist()).encode() if column.dtype == object else column.tobytes()
        found.update(repr((name, column.dtype.str, column.shape)).encode() + values)
    return found.hexdigest()


def one(name: str, number: int, seed: int, good: dict[str, Any], root: Path) -> str:
    """Damage and read one file: "same", "other", "error", or what is wrong."""
    from fedjax_sim.core.errors import FedSimError

    form = FORMATS[name]
    folder = root / f"case {number}"
    if name not in good:
        whole = root / f"whole {len(good)}"
        whole.mkdir()
        file = form.make(whole)
        good[name] = (whole, file.relative_to(whole), file.read_bytes(), digest(form.read(file, root / "cache")))
        copy = root / f"copy {len(good)}"
        shutil.copytree(whole, copy)
        if digest(form.read(copy / good[name][1], copy / "a cache")) != good[name][-1]:
            return "WRONG: other data from a copy"
    whole, file, content, wanted = good[name]
    shutil.copytree(whole, folder)
    (folder / file).write_bytes(damaged(content, np.random.default_rng([seed, number])))
    Path("/proc/self/clear_refs").write_text("5")
    begin = memory("VmRSS")
    try:
        outcome = "same" if digest(form.read(folder / file, folder / "a cache")) == wanted else "other"
    except FedSimError:
        outcome = "error"
    except Exception as error:
        outcome = f"WRONG: {type(error).__name__}: {error}".replace("\n", " ")
    if outcome == "other" and form.checked:
        outcome = "WRONG: other data, in silence"
    if (grown := memory("VmHWM") - begin) > MEMORY:
        outcome = f"WRONG: grew by {grown >> 20} MiB, after {outcome}"
    shutil.rmtree(folder, ignore_errors=True)
    return outcome


def memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def worker(first: int, last: int, seed: int) -> None:
    """Read the cases from `first` to `last` and say of each what came of it."""
    import fedjax_sim  # noqa: F401

    warnings.simplefilter("ignore")
    own = memory("VmSize") + 8 * MEMORY  # addresses, of which Arrow and threads reserve many
    resource.setrlimit(resource.RLIMIT_AS, (own, own))
    good: dict[str, Any] = {}
    names = [*FORMATS]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as root:
        for number in range(first, last):
            name = names[number % len(names)]
            with contextlib.redirect_stdout(io.StringIO()):
                if name not in good:
                    print(f"{number}\tmaking\t{name}", file=sys.__stdout__, flush=True)
                outcome = one(name, number, seed, good, Path(root))
            print(f"{number}\t{outcome}\t{name}", flush=True)


def fuzz(count: int, seed: int = 0) -> tuple[Counter[tuple[str, str]], list[str]]:
    """(How often each format had each outcome, the failures)."""
    outcomes: Counter[tuple[str, str]] = Counter()
    failures: list[str] = []
    first = 0
    while first < count:
        with tempfile.TemporaryFile() as said:
            command = [sys.executable, "-m", "tests.data.fuzz_readers", "--worker", str(first), str(count), str(seed)]
            pipes: Any = {"stdout": subprocess.PIPE, "stderr": said}
            environment = {**os.environ, "MALLOC_ARENA_MAX": "2"}  # else each thread reserves 64 MiB of addresses
            with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
                assert process.stdout is not None
                limit = 120.0  # imports
                while True:
                    ready, _, _ = select.select([process.stdout], [], [], limit)
                    line = process.stdout.readline().decode() if ready else None
                    if not line:
                        break
                    number, outcome, name = line.rstrip("\n").split("\t")
                    first = int(number)
                    limit = 120.0 if outcome == "making" else SECONDS
                    if outcome == "making":
                        continue
                    first += 1
                    outcomes[name, outcome[:5]] += 1
                    if outcome.startswith("WRONG"):
                        failures.append(f"case {number} of seed {seed}, {name}: {outcome}")
                process.kill()
                if first < count:
                    name = [*FORMATS][first % len(FORMATS)]
                    said.seek(max(0, said.seek(0, 2) - 1000))
                    what = (
                        "a hang"
                        if line is None
                        else f"a crash ({process.wait()}): {said.read().decode(errors='replace')}"
                    )
                    failures.append(f"case {first} of seed {seed}, {name}: {what}")
                    first += 1
    return outcomes, failures


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        worker(*map(int, sys.argv[2:5]))
    else:
        counts, wrong = fuzz(*map(int, sys.argv[1:3]))
        for kind in FORMATS:
            print(f"{kind:20}", {outcome: n for (name, outcome), n in sorted(counts.items()) if name == kind})
        print(*wrong, f"{sum(counts.values())} damaged files, {len(wrong)} failures", sep="\n")
        sys.exit(bool(wrong))
