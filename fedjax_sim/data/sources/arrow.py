"""What Arrow holds: tables in Parquet and CSV files, and data sets of Hugging Face's library on disk and in memory."""

import gzip
import io
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.sources import arrow_files
from fedjax_sim.data.sources.grouping import group
from fedjax_sim.data.sources.limits import check_growth, check_room


def table(
    path: str | Path,
    *,
    client: str,
    entries: Iterable[str] | None = None,
    nulls: Literal["error", "nan"] = "error",
    categories: bool | Mapping[str, Sequence[str]] = False,
) -> FederatedData:
    """A Parquet or CSV file with a column that names each row's client.

    Numbers keep their dtype, lists of equal lengths become arrays [N, n], texts objects that are `bytes` (UTF-8). In a
    CSV file clients are texts as written, "007" stays so; in Parquet, whole numbers are sorted as numbers. Needs the
    extra `data` (pyarrow).

    Args:
        path: the file: `.parquet`, `.pq`, `.csv`, `.csv.gz`, or `.tsv` with tabs.
        client: name of the column.
        entries: columns to keep; None for all others.
        nulls: what a missing number is: an error, or NaN (whole numbers become float64 where any is missing).
        categories: turn texts into int32 codes: True for all columns of texts, by their sorted values, or column to
            the values in the order of their codes, which gives train and test files the same ones. The values are kept
            as JSON in `about["categories of COLUMN"]`.

    Returns:
        A federation; clients are sorted, a client's rows keep the file's order.

    Raises:
        ArgumentError: no such file or column; a damaged file; missing values; columns that are no numbers, texts or
            lists of equal lengths; a value that `categories` lacks.

    Example:
        >>> import tempfile, pathlib, fedjax_sim as fs
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "stays.csv"
        ...     _ = path.write_text("ward,days\\nb,3\\na,1\\nb,2\\n")
        ...     data = fs.data.sources.table(path, client="ward")
        >>> data.name(1), data.client(1)["days"]
        ('b', array([3, 2]))
    """
    path = Path(path).expanduser()
    _check_nulls(nulls)
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    kind = suffixes[-1].lower() if suffixes else ""
    wanted = None if entries is None else list(dict.fromkeys([*entries, client]))
    reader: Callable[[], Any]
    if kind in (".parquet", ".pq"):
        reader = lambda: arrow_files.parquet(path)  # noqa: E731
    elif kind in (".csv", ".tsv"):
        reader = lambda: _csv(path, client, "\t" if kind == ".tsv" else ",")  # noqa: E731
    else:
        raise ArgumentError(f"{path}: must end in .parquet, .pq, .csv, .csv.gz or .tsv.")
    return _federation(reader, str(path), client, wanted, nulls, categories)


def hugging_face(
    dataset: Any,
    split: str | None = None,
    *,
    group_by: str,
    entries: Iterable[str] | None = None,
    nulls: Literal["error", "nan"] = "error",
) -> FederatedData:
    """A data set of Hugging Face's `datasets`, by a column that names each row's client.

    A folder that `save_to_disk` wrote is read without that library (by pyarrow, of the extra `data`), and numbers stay
    on disk where they lie in one piece. Texts become objects that are `bytes`, lists of equal lengths arrays, pictures
    arrays of uint8 (by Pillow).

    Args:
        dataset: the folder, or a `datasets.Dataset` or `DatasetDict`.
        split: which of a `DatasetDict`'s; None for a `Dataset`.
        group_by: name of the column.
        entries: columns to keep; None for all others.
        nulls: what a missing number is: an error, or NaN.

    Returns:
        A federation; clients are sorted, a client's rows keep the data set's order.

    Raises:
        ArgumentError: no such folder, split or column; a damaged folder; missing values; columns that are no numbers,
            texts, pictures of one size, or lists of equal lengths.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.data.sources.hugging_face("no folder", group_by="user")
        Traceback (most recent call last):
        ...
        fedjax_sim.core.errors.ArgumentError: no folder: has no state.json; is it a folder of save_to_disk?
    """
    _check_nulls(nulls)
    wanted = None if entries is None else list(dict.fromkeys([*entries, group_by]))
    if isinstance(dataset, str | Path):
        folder = Path(dataset).expanduser()
        return _federation(lambda: _saved(folder, split), str(folder), group_by, wanted, nulls, False)
    where = type(dataset).__name__
    if isinstance(dataset, Mapping):
        if split not in dataset:
            raise ArgumentError(f"split={split!r}: the {where} has {sorted(map(str, dataset))}.")
        dataset, split = dataset[split], None
    if not hasattr(dataset, "with_format") or not hasattr(dataset, "__len__"):
        raise ArgumentError(f"dataset={where}: must be a folder, a datasets.Dataset or a DatasetDict.")
    if split is not None and split != str(dataset.split):
        raise ArgumentError(f"split={split!r}: the {where} is of split {dataset.split}; leave split= out.")
    return _federation(lambda: dataset.with_format("arrow")[:], where, group_by, wanted, nulls, False)


def _check_nulls(nulls: str) -> None:
    if nulls not in ("error", "nan"):
        raise ArgumentError(f"nulls={nulls!r}: must be 'error' or 'nan'.")


def _csv(path: Path, client: str, delimiter: str) -> Any:
    import pyarrow.csv

    source = _Unpacked(path) if path.suffix == ".gz" else path
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter)
    convert = pyarrow.csv.ConvertOptions(column_types={client: pyarrow.string()})
    return pyarrow.csv.read_csv(source, parse_options=parse, convert_options=convert)


class _Unpacked(io.RawIOBase):
    """What a gzip file holds, as long as that is not absurdly more than the file."""

    def __init__(self, path: Path):
        self._file = gzip.open(path)  # noqa: SIM115 # closed with this
        self._path, self._held, self._made = path, path.stat().st_size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._made += count
        check_growth(f"{self._path}", self._made, self._held, "unpack it yourself.")
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _saved(folder: Path, split: str | None) -> Any:
    """The table of a folder that `save_to_disk` wrote."""
    import pyarrow

    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_bytes())["splits"]
        if split is None or split not in splits or Path(split).name != split:
            raise ArgumentError(f"{folder}: split={split!r}: there are {splits}.")
        folder, split = folder / split, None
    if not (folder / "state.json").is_file():
        raise ArgumentError(f"{folder}: has no state.json; is it a folder of save_to_disk?")
    state = json.loads((folder / "state.json").read_bytes())
    if split is not None and split != state["_split"]:
        raise ArgumentError(f"{folder}: split={split!r}: it holds one split, {state['_split']}; leave split= out.")
    rows = pyarrow.concat_tables([_stream(folder, file["filename"]) for file in state["_data_files"]])
    if files := state.get("_indices_data_files"):
        order = pyarrow.concat_tables([_stream(folder, file["filename"]) for file in files])["indices"]
        if len(order):
            most = int(order.value_counts().field("counts").to_numpy().max())
            check_room(f"{folder}", most * rows.nbytes, rows.nbytes + order.nbytes, "save it without select().")
        return rows.take(order)
    return rows


def _stream(folder: Path, name: str) -> Any:
    if Path(name).name != name:
        raise ArgumentError(f"{folder}: state.json names the file {name!r}, outside the folder.")
    return arrow_files.stream(folder / name)


def _federation(
    reader: Callable[[], Any],
    where: str,
    client: str,
    wanted: list[str] | None,
    nulls: str,
    categories: bool | Mapping[str, Sequence[str]],
) -> FederatedData:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ArgumentError(f"{where}: needs pyarrow ({error}): pip install 'fedjax-sim[data]'.") from error
    try:
        rows = reader()
        rows.validate(full=True)
        if (path := Path(where)).is_file():
            arrow_files.check_unpacked(rows, where, path.stat().st_size)
        names: list[str] = rows.column_names
        if len(set(names)) != len(names):
            raise ArgumentError(f"{where}: two columns have the same name: {names}.")
        if missing := sorted(
            {*(wanted or ()), client, *(categories if isinstance(categories, Mapping) else ())} - {*names}
        ):
            raise ArgumentError(f"{where}: there is no column {', '.join(map(repr, missing))}; there are {names}.")
        arrays = {
            name: _array(rows[name], f"{where}: column {name!r}", nulls if name != client else "error")
            for name in wanted or names
        }
    except ArgumentError as error:
        if where in str(error):
            raise
        raise ArgumentError(f"{where}: {error}") from error
    except Exception as error:  # pyarrow raises many kinds
        raise ArgumentError(f"{where}: cannot be read ({type(error).__name__}: {error}).") from error
    clients = arrays.pop(client)
    about = {}
    for name in arrays:
        values = categories.get(name) if isinstance(categories, Mapping) else None
        if values is not None or (categories is True and arrays[name].dtype == object and arrays[name].ndim == 1):
            arrays[name], values = _codes(arrays[name], values, f"{where}: column {name!r}")
            about[f"categories of {name}"] = json.dumps(values)
    return group(arrays, clients, f"{where}: {client!r}", about)


def _codes(texts: np.ndarray, values: Sequence[str] | None, where: str) -> tuple[np.ndarray, list[str]]:
    found = texts.tolist()
    values = list(values) if values is not None else sorted({text.decode(errors="replace") for text in found})
    codes = {value.encode(): code for code, value in enumerate(values)}
    for row, text in enumerate(found):
        if text not in codes:
            raise ArgumentError(
                f"{where}, row {row}: {text!r} is not one of its {len(values)} categories {values[:9]}."
            )
    return np.array([codes[text] for text in found], np.int32), values


def _array(column: Any, where: str, nulls: str, rows_of: int = 1) -> np.ndarray:
    """A column, [N, ...]; `rows_of` of its values make one row of the table."""
    import pyarrow as pa
    import pyarrow.compute as pc

    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    chunks = [chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk for chunk in chunks]
    array = pa.concat_arrays(chunks) if chunks else pa.array([], column.type)
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if array.null_count:
        if not (is_number and nulls == "nan"):
            row = pc.index(pc.is_null(array), True).as_py() // rows_of  # pyright: ignore[reportAttributeAccessIssue]
            advice = "nulls='nan' makes it NaN" if is_number else "fill it, or leave the column out by entries="
            raise ArgumentError(f"{where}, row {row}: there is no value; {advice}.")
        array = array.cast(kind if pa.types.is_floating(kind) else pa.float64())
    if is_number:
        return array.to_numpy(zero_copy_only=False)
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return _objects(array.cast(pa.binary()).to_pylist())
    if any(is_text(kind) for is_text in (pa.types.is_large_string, pa.types.is_large_binary, pa.types.is_string_view)):
        return _objects(array.cast(pa.large_binary()).to_pylist())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = np.unique(pc.list_value_length(array).to_numpy())  # pyright: ignore[reportAttributeAccessIssue]
        if len(lengths) > 1:
            raise ArgumentError(
                f"{where}: holds lists of {lengths[0]} to {lengths[-1]} values; cut or pad them to one length before."
            )
        width = int(lengths[0]) if len(lengths) else 0
        values = _array(array.flatten(), where, nulls, rows_of * max(width, 1))
        return values.reshape(len(array), width, *values.shape[1:])
    if pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}:
        return _pictures(array.field("bytes").to_pylist(), where)
    raise ArgumentError(
        f"{where}: holds {kind}; numbers, texts, pictures and lists of equal lengths can be read. "
        "Convert the column, or leave it out by entries=."
    )


def _objects(values: list[Any]) -> np.ndarray:
    out = np.empty(len(values), object)
    out[:] = values
    return out


def _pictures(encoded: list[bytes | None], where: str) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise ArgumentError(f"{where}: pictures need Pillow ({error}): pip install pillow.") from error
    pictures: list[np.ndarray] = []
    held = sum(len(data) for data in encoded if data is not None)
    for row, data in enumerate(encoded):
        if data is None:
            raise ArgumentError(f"{where}, row {row}: the picture is a path only; save the set with the files in it.")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # Pillow warns of decompression bombs
                with Image.open(io.BytesIO(data)) as picture:
                    check_room(
                        "pictures", len(encoded) * picture.width * picture.height * 3, held, "make them smaller."
                    )
                    pictures.append(np.asarray(picture.convert("RGB") if picture.mode == "P" else picture))
        except Exception as error:  # Pillow raises many kinds
            raise ArgumentError(f"{where}, row {row}: is no picture that Pillow can read ({error}).") from error
        if pictures[-1].shape != pictures[0].shape:
            raise ArgumentError(
                f"{where}, row {row}: the picture has shape {pictures[-1].shape}, the first {pictures[0].shape}; bring "
                "them to one size before."
            )
    return np.stack(pictures) if pictures else np.zeros((0, 0, 0), np.uint8)
