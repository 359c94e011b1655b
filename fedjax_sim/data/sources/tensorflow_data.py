"""Data sets of TensorFlow Datasets, by client; TensorFlow itself is not needed where they are array records."""

import contextlib
import io
import json
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.kinds import with_categories
from fedjax_sim.data.federated import CATEGORIES, FederatedData, Partitioner, federate
from fedjax_sim.data.sources.array_record_file import check_chunks
from fedjax_sim.data.sources.arrow_columns import check_classes
from fedjax_sim.data.sources.grouping import group, text_of
from fedjax_sim.data.sources.limits import check_room


def tfds(
    name: str | Path,
    split: str = "train",
    *,
    group_by: str | None = None,
    partition: Partitioner | None = None,
    seed: int = 0,
    entries: Iterable[str] | None = None,
    data_dir: str | Path | None = None,
    manual_dir: str | Path | None = None,
) -> FederatedData:
    """A data set of TensorFlow Datasets, whose clients are named by a feature or made by a partitioner.

    Where `group_by` is a single value and all other features have a first axis of any length, as in `Tensor(shape=
    (None, 28, 28))`, a record is a client and that axis its examples; else a record is an example. Records are read
    into memory. The names of a `ClassLabel` are kept in `about["categories of FEATURE"]`, as JSON; its -1, for no
    label, is an error. Needs the extra `data`; sets prepared as tfrecord, and most sets' preparation, need `tensorflow`
    too.

    Args:
        name: a set's name ("sentiment140", "mnist:3.0.1"), which is prepared first if it is not yet, or the folder of
            a prepared one (it holds dataset_info.json).
        split: as TensorFlow Datasets has them: "train", "test[:10%]".
        group_by: the feature that names the client.
        partition: a partitioner (`fs.partition`), which gets the feature "label", or "y", as labels.
        seed: of the partitioner.
        entries: features to keep; None for all others.
        data_dir: TensorFlow Datasets' folder; None for its default, ~/tensorflow_datasets.
        manual_dir: folder of raw files, for a set that is not downloaded.

    Returns:
        A federation: clients sorted, or in the order of the records where a record is a client. Texts become objects
        that are `bytes`.

    Raises:
        ArgumentError: both or neither of group_by and partition; no such set, split or feature; a set that cannot be
            prepared, needs TensorFlow, or is damaged; features of different shapes.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.data.sources.tfds("mnist")
        Traceback (most recent call last):
        ...
        fedjax_sim.core.errors.ArgumentError: mnist: pass one of group_by= (a feature) and partition= (a partitioner).
    """
    where = f"{name}"
    if (group_by is None) == (partition is None):
        raise ArgumentError(f"{where}: pass one of group_by= (a feature) and partition= (a partitioner).")
    try:
        import array_record  # noqa: F401 # TensorFlow Datasets needs these two, and does not always ask for them
        import importlib_resources  # noqa: F401
        import tensorflow_datasets
    except ImportError as error:
        raise ArgumentError(
            f"{where}: needs TensorFlow Datasets ({error}): pip install 'fedjax-sim[data]'. TensorFlow itself is "
            "needed for tfrecord files only."
        ) from error
    builder = _builder(name, data_dir, manual_dir)
    where = f"{builder.data_path}"
    features = builder.info.features
    names = sorted(features)
    wanted = [entry for entry in names if entry != group_by] if entries is None else list(dict.fromkeys(entries))
    needed = wanted if group_by is None else list(dict.fromkeys([*wanted, group_by]))
    if missing := sorted(set(needed) - set(names)):
        raise ArgumentError(f"{where}: there is no feature {', '.join(map(repr, missing))}; there are {names}.")
    wanted = [entry for entry in wanted if entry != group_by]
    if not wanted:
        raise ArgumentError(f"{where}: there is no feature besides {group_by!r}.")
    per_client = (
        group_by is not None
        and features[group_by].shape == ()
        and all(_axes(features[entry])[:1] == (None,) for entry in wanted)
    )
    records = _records(builder, split, needed, where)
    columns = {entry: [record[entry] for record in records] for entry in needed}
    about: dict[str, str] = {}
    _check_whole(columns, where)
    for entry in wanted:
        if isinstance(features[entry], tensorflow_datasets.features.ClassLabel) and features[entry].num_classes:
            check_classes(np.asarray(columns[entry]), features[entry].names, f"{where}: {entry!r}")
            about[CATEGORIES + entry] = json.dumps(features[entry].names)
    if group_by is None:
        assert partition is not None
        arrays = _examples(columns, about, where)
        return federate(arrays, partition, seed, "label" if "label" in arrays else "y", about)
    ids = columns.pop(group_by)
    if not per_client:
        return group(
            _examples(columns, about, where), _stack(ids, f"{where}: {group_by!r}"), f"{where}: {group_by!r}", about
        )
    return _clients([_id(value, where) for value in ids], columns, where)


Feature = Any
"""Of a record: an array, a number, a text, or a dict of these."""
Builder = Any
"""A `tfds.core.DatasetBuilder`."""


def _builder(name: str | Path, data_dir: str | Path | None, manual_dir: str | Path | None) -> Builder:
    import tensorflow_datasets as tfds

    folder = Path(name).expanduser()
    try:
        if isinstance(name, Path) or (folder / "dataset_info.json").exists() or folder.is_absolute():
            if not (folder / "dataset_info.json").exists():
                raise ArgumentError(f"{name}: has no dataset_info.json; is it the folder of a prepared set's version?")
            return tfds.builder_from_directory(folder)
        builder = tfds.builder(name, data_dir=data_dir)
        if not Path(builder.data_path).exists():
            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
            config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare(download_config=config)
        return builder
    except ArgumentError:
        raise
    except ImportError as error:
        raise ArgumentError(
            f"{name}: its preparation needs what is not installed ({error}). Install it (pip install tensorflow, most "
            "often), or prepare the set on another machine with file_format='array_record' and pass its folder."
        ) from error
    except (Exception, SystemExit, AssertionError) as error:  # any builder may raise anything
        first = str(error).strip().splitlines()[:1] or [""]
        raise ArgumentError(
            f"{name}: cannot be opened or prepared ({type(error).__name__}: {first[0]}). Check the name and "
            "the folder, or pass manual_dir=, a folder of its raw files, where the network is missing."
        ) from error


def _check_whole(columns: dict[str, list[Any]], where: str) -> None:
    """Every record has a value in every column."""
    for entry, values in columns.items():
        if any(value is None for value in values):
            raise ArgumentError(
                f"{where}: a record holds no {entry!r}: it is optional there, which no array is, or features.json is "
                "of other records. Leave that entry out, or mend the files."
            )


def _records(builder: Builder, split: str, needed: list[str], where: str) -> list[dict[str, Feature]]:
    try:
        declared = builder.info.splits[split].num_examples
    except Exception as error:
        raise ArgumentError(f"{where}: split={split!r}: there are {sorted(builder.info.splits)}.") from error
    try:
        files = [path for path in Path(builder.data_path).iterdir() if path.is_file()]
        held = sum(path.stat().st_size for path in files)
        for path in files:
            if ".array_record" in path.name:
                check_chunks(path, held)
        records, made = [], 0
        with warnings.catch_warnings():
            warnings.filterwarnings("error", category=_bomb_warning())  # of pictures that unpack to far more
            for record in _iterate(builder, split, where):
                records.append({entry: record[entry] for entry in needed})
                made += sum(_size(value) for value in records[-1].values())
                check_room(where, made, held, "it is damaged; prepare it again.")
    except ArgumentError:
        raise
    except Exception as error:  # readers and decoders raise many kinds
        first = str(error).strip().splitlines()[:1] or [""]
        raise ArgumentError(
            f"{where}: cannot be read ({type(error).__name__}: {first[0]}). It is cut off or damaged; prepare it again."
        ) from error
    if len(records) != declared or not records:
        raise ArgumentError(f"{where}: {split!r} has {len(records)} records, but dataset_info.json says {declared}.")
    return records


def _size(value: object) -> int:
    """Bytes of a feature, about."""
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return int(getattr(value, "nbytes", 0)) or (len(value) if isinstance(value, str | bytes) else 8)


def _bomb_warning() -> type[Warning]:
    try:
        from PIL.Image import DecompressionBombWarning
    except ImportError:
        return ImportWarning
    return DecompressionBombWarning


def _iterate(builder: Builder, split: str, where: str) -> Iterator[dict[str, Feature]]:
    import tensorflow_datasets as tfds

    kind = builder.info.file_format.value
    if kind != "tfrecord":
        source = builder.as_data_source(split)
        for i in range(len(source)):
            yield source[i]
        return
    try:
        import tensorflow  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ArgumentError(
            f"{where}: is of {kind} files, which need TensorFlow ({error}): pip install tensorflow, or prepare the set "
            "again with file_format='array_record'."
        ) from error
    yield from tfds.as_numpy(builder.as_dataset(split, shuffle_files=False))  # pyright: ignore[reportReturnType]


def _axes(feature: Any) -> tuple[int | None, ...]:
    shape = feature.shape
    return shape if isinstance(shape, tuple) else ()  # a dict of features has a dict of shapes


def _id(value: object, where: str) -> str:
    value = value.item() if isinstance(value, np.ndarray | np.generic) else value
    return str(value) if isinstance(value, int) else text_of(value, where)


def _clients(ids: list[str], columns: dict[str, list[Feature]], where: str) -> FederatedData:
    """Records that are clients."""
    if len(set(ids)) != len(ids):
        twice = next(name for i, name in enumerate(ids) if name in ids[:i])
        raise ArgumentError(f"{where}: client {twice!r} has two records; ids must be unique.")
    arrays: dict[str, np.ndarray] = {}
    sizes = None
    for entry, values in columns.items():
        parts = [np.asarray(value) for value in values]
        lengths = [len(part) for part in parts]
        for name, length, other in zip(ids, lengths, sizes or lengths, strict=True):
            if length != other:
                raise ArgumentError(
                    f"{where}: client {name!r} has {length} of {entry!r}, but {other} of another feature."
                )
        sizes = lengths
        shapes = {part.shape[1:] for part in parts if len(part)}
        if len(shapes) > 1:
            raise ArgumentError(f"{where}: {entry!r} has examples of the shapes {sorted(shapes)}; one shape is wanted.")
        filled = [part for part in parts if len(part)] or parts[:1]
        arrays[entry] = _texts(np.concatenate(filled))
    return FederatedData(
        arrays, np.concatenate([[0], np.cumsum(sizes or [], dtype=np.int64)]), client_ids=np.array(ids)
    )


def _examples(columns: dict[str, list[Feature]], about: dict[str, str], where: str) -> dict[str, np.ndarray]:
    """Columns [N, ...], of which those that hold codes know what they stand for."""
    arrays = {entry: _stack(values, f"{where}: {entry!r}") for entry, values in columns.items()}
    coded = {entry: {entry: about[CATEGORIES + entry]} for entry in arrays if CATEGORIES + entry in about}
    return {entry: with_categories(array, coded.get(entry, {})) for entry, array in arrays.items()}


def _stack(values: list[Feature], where: str) -> np.ndarray:
    """Examples [N, ...] of values of one shape."""
    if isinstance(values[0], dict):
        raise ArgumentError(f"{where}: is a group of features; leave it out by entries=.")
    if isinstance(values[0], str | bytes):
        out = np.empty(len(values), object)
        out[:] = [value.encode() if isinstance(value, str) else value for value in values]
        return out
    first = np.asarray(values[0])
    out = np.empty((len(values), *first.shape), first.dtype)
    for row, value in enumerate(values):
        if np.shape(value) != first.shape:
            raise ArgumentError(
                f"{where}, record {row}: has shape {np.shape(value)}, the first {first.shape}; one shape is wanted. "
                "Leave the feature out by entries=, or bring it to one size before."
            )
        out[row] = value
    return _texts(out)


def _texts(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "U":
        return np.char.encode(array, "utf-8").astype(object)
    return array.astype(object) if array.dtype.kind == "S" else array
