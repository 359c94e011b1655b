"""TensorFlow Federated's files: SQLite (since 2021) and HDF5 (before), read without TensorFlow."""

import lzma
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.sources.example_proto import aligned, decode, shaped, stack
from fedjax_sim.data.sources.hdf5_file import columns_of, groups_of
from fedjax_sim.data.sources.limits import check_growth
from fedjax_sim.data.sources.sqlite_file import check_alone, opened
from fedjax_sim.data.store.cache import Client, cache_folder, cached, file_fingerprint

Shapes = Mapping[str, tuple[int, ...]]
Dtypes = Mapping[str, npt.DTypeLike]

TABLES = {
    "examples": ("split_name", "client_id", "serialized_example_proto"),
    "client_metadata": ("split_name", "client_id", "num_examples"),
}


def tff_sqlite(
    path: str | Path,
    split: str,
    *,
    shapes: Shapes | None = None,
    dtypes: Dtypes | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> FederatedData:
    """One split of a TFF SQLite file: emnist_all, cifar100, shakespeare, stackoverflow, celeba.

    The first call converts it, streaming, into the cache (`fs.data.cached`); later ones map that. A client's examples
    keep the file's order; clients are sorted by id. Features of `bytes` become `fs.data.Strings`.

    Args:
        path: the file, `.sqlite` or `.sqlite.lzma`; the latter is unpacked into the cache folder for the conversion.
        split: its name in the file: "train", "test", "heldout"; EMNIST's "all_train", "digits_only_train" ...
        shapes: feature to the shape of one example, where the file's flat lists want one: {"pixels": (28, 28)}.
        dtypes: feature to a dtype that holds its values exactly: {"image": np.uint8}; else float32 and int64.
        cache_dir: folder of caches; None for the user's.
        progress: show a bar where standard error is a terminal.

    Returns:
        A memory-mapped federation with client ids.

    Raises:
        ArgumentError: no such file or split, a file that is damaged or holds fewer examples than it says.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.data.sources.tff_sqlite("no.sqlite", "train")
        Traceback (most recent call last):
        ...
        fedjax_sim.core.errors.ArgumentError: no.sqlite: cannot be read (No such file or directory).
    """
    path = Path(path).expanduser()
    check_alone(path)
    shapes, dtypes = dict(shapes or {}), {name: np.dtype(dtype) for name, dtype in (dtypes or {}).items()}
    fingerprint = {
        "format": "tff_sqlite",
        "file": file_fingerprint(path),
        "split": split,
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "dtypes": {name: dtype.str for name, dtype in dtypes.items()},
    }
    unpacked: list[Path] = []

    def clients(start: int) -> Iterator[Client]:
        plain = path
        if path.suffix in (".lzma", ".xz"):
            plain = _unpack(path, cache_folder(cache_dir) / "unpacked")
            unpacked.append(plain)
        yield from _sqlite_clients(plain, path, split, start, shapes, dtypes)
        check_unchanged(path, fingerprint["file"])

    data = cached(f"{path.name.split('.')[0]}-{split}", fingerprint, clients, cache_dir=cache_dir, progress=progress)
    for copy in unpacked:  # kept until then, so that a killed conversion need not unpack again
        shutil.rmtree(copy.parent, ignore_errors=True)
    return data


def _sqlite_clients(
    plain: Path, path: Path, split: str, start: int, shapes: Shapes, dtypes: Dtypes
) -> Iterator[Client]:
    with opened(plain, "TFF", TABLES, path) as database:
        held, made = plain.stat().st_size, 0
        try:
            there, listed = (
                database.execute(query, (split,)).fetchone()[0]
                for query in (
                    "SELECT count(*) FROM examples WHERE split_name = ?",
                    "SELECT sum(num_examples) FROM client_metadata WHERE split_name = ?",
                )
            )
            counts = database.execute(
                "SELECT client_id, sum(num_examples) FROM client_metadata WHERE split_name = ? GROUP BY client_id "
                "ORDER BY client_id LIMIT -1 OFFSET ?",
                (split, start),
            ).fetchall()
            if not counts and start == 0:
                splits = [row[0] for row in database.execute("SELECT DISTINCT split_name FROM client_metadata")]
                raise ArgumentError(f"{path}: split={split!r} has no clients; there are {splits}.")
            for client_id, count in counts:
                rows = database.execute(
                    "SELECT serialized_example_proto FROM examples WHERE split_name = ? AND client_id = ? "
                    "ORDER BY rowid",
                    (split, client_id),
                ).fetchall()
                if not isinstance(client_id, str) or len(rows) != count:
                    raise ArgumentError(
                        f"{path}: client {client_id!r} of split {split!r} has {len(rows)} examples, but the file says "
                        f"{count!r}. It is cut off or damaged; fetch it again."
                    )
                try:
                    columns = _columns([row[0] for row in rows], shapes, dtypes)
                except (ArgumentError, TypeError) as error:
                    raise ArgumentError(f"{path}: client {client_id!r}: {error}") from error
                made += sum(column.nbytes for column in columns.values())
                check_growth(f"{path}", made, held, "store it in another format, such as .npz.")
                yield client_id, columns
            if listed != there:
                raise ArgumentError(f"{path}: holds {there} examples of {split!r}, but lists clients of {listed} only.")
        except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
            raise ArgumentError(f"{path}: is no TFF SQLite file, or a damaged one ({error}).") from error


def _columns(blobs: list[bytes], shapes: Shapes, dtypes: Dtypes) -> dict[str, np.ndarray]:
    columns = aligned(blobs) if blobs else None
    examples = [decode(blob) for blob in blobs] if columns is None else []
    names = sorted(columns) if columns is not None else sorted(examples[0]) if examples else []
    if not names:
        raise ArgumentError("it has no examples, or examples of no features.")
    for example in examples:
        if example.keys() != examples[0].keys():
            raise ArgumentError(f"an example has the features {sorted(example)}, the first {names}.")
    for given in (shapes, dtypes):
        if missing := sorted(set(given) - set(names)):
            raise ArgumentError(f"shapes= or dtypes= name {missing}, which its features {names} lack.")
    if columns is not None:
        return {name: shaped(name, columns[name], shapes.get(name), dtypes.get(name)) for name in names}
    return {
        name: stack(name, [example[name] for example in examples], shapes.get(name), dtypes.get(name)) for name in names
    }


def check_unchanged(path: Path, fingerprint: Mapping[str, object]) -> None:
    """Refuse a file that was written to while it was read.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     check_unchanged(Path(file.name), file_fingerprint(file.name))
    """
    if file_fingerprint(path) != fingerprint:
        raise ArgumentError(f"{path}: was changed while it was read; wait until it is whole, and read it again.")


def _unpack(path: Path, folder: Path) -> Path:
    """The file without its LZMA compression, in a folder of its own; found there if an earlier call left it whole."""
    source = file_fingerprint(path)
    target = folder / f"{source['sha256_of_ends'][:16]}-{source['modified_ns']}" / path.stem
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + f".{os.getpid()}")
    written = 0
    try:
        with lzma.open(path) as packed, open(partial, "wb") as out:
            while block := packed.read(1 << 20):
                written += len(block)
                check_growth(f"{path}", written, source["size"], "unpack it yourself.")
                out.write(block)
        os.replace(partial, target)
    except (lzma.LZMAError, EOFError) as error:
        raise ArgumentError(f"{path}: cannot be unpacked ({error}). It is cut off or damaged.") from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def tff_hdf5(path: str | Path, *, cache_dir: str | Path | None = None, progress: bool = True) -> FederatedData:
    """A TFF HDF5 file: fed_emnist_train.h5, shakespeare_test.h5, fed_cifar100_train.h5 ...

    Group `examples`, a group a client, a data set a feature, examples along the first axis. The first call converts it,
    streaming, into the cache; later ones map that. Needs the extra `data` (h5py).

    Args:
        path: the file.
        cache_dir: folder of caches; None for the user's.
        progress: show a bar where standard error is a terminal.

    Returns:
        A memory-mapped federation, clients sorted by id; features of `bytes` are `fs.data.Strings`.

    Raises:
        ArgumentError: no such file, or another layout; features of other lengths.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.data.sources.tff_hdf5("no.h5")
        Traceback (most recent call last):
        ...
        fedjax_sim.core.errors.ArgumentError: no.h5: cannot be read (No such file or directory).
    """
    path = Path(path).expanduser()
    fingerprint = {"format": "tff_hdf5", "file": file_fingerprint(path)}
    try:
        import h5py
    except ImportError as error:
        raise ArgumentError(f"TFF's HDF5 files need h5py ({error}): pip install 'fedjax-sim[data]'.") from error

    def clients(start: int) -> Iterator[Client]:
        client_id, made = None, 0
        try:
            with h5py.File(path, "r") as file:
                examples = groups_of(file, path)
                for client_id in sorted(examples)[start:]:
                    columns = columns_of(examples, client_id, path, fingerprint["file"]["size"])
                    made += sum(column.nbytes for column in columns.values())
                    check_growth(f"{path}", made, fingerprint["file"]["size"], "write it without compression.")
                    yield client_id, columns
            check_unchanged(path, fingerprint["file"])
        except ArgumentError:
            raise
        except (OSError, RuntimeError, LookupError, ValueError, TypeError, MemoryError) as error:  # what h5py raises
            where = "" if client_id is None else f" at client {client_id!r}"
            said = f"{type(error).__name__}: {error}"
            raise ArgumentError(f"{path}: is no HDF5 file, or a damaged one{where} ({said}).") from error

    return cached(path.name.split(".")[0], fingerprint, clients, cache_dir=cache_dir, progress=progress)
