"""What Arrow holds: tables in Parquet and CSV files, and data sets of Hugging Face's library on disk and in memory."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.sources import arrow_columns, csv_text
from fedjax_sim.data.sources.arrow_columns import Rules
from fedjax_sim.data.sources.grouping import group
from fedjax_sim.data.sources.limits import check_memory

WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "BYTE_ARRAY": 4, "FIXED_LEN_BYTE_ARRAY": 4, "INT96": 8}
"""Bytes that a value of Parquet takes in memory, at least; 8 for other types."""
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def table(
    path: str | Path,
    *,
    client: str,
    entries: Iterable[str] | None = None,
    nulls: Literal["error", "nan"] = "error",
    missing: Sequence[str] | None = None,
    texts: Sequence[str] = (),
    dates: Sequence[str] = (),
    categories: bool | Mapping[str, Sequence[Any]] | FederatedData = False,
    delimiter: str | None = None,
    decimal: Literal[".", ","] = ".",
    encoding: str = "utf-8",
) -> FederatedData:
    """A Parquet or CSV file with a column that names each row's client.

    Numbers keep their dtype, lists of equal lengths become arrays [N, n], texts objects that are `bytes` (UTF-8),
    decimals float64. Needs the extra `data` (pyarrow).

    The cells of a CSV file are texts, of which this makes columns by these rules:

    - A cell that is one of `missing`, spaces and quotes aside, holds no value.
    - A column whose values are all numbers is int64 where all are whole, and else float64; one of true and false is
      bool; one without a number holds texts, as written. Numbers *among* texts, or a text among numbers, are an error.
    - Clients are texts as written, "007" stays so, and sorted as texts; only where all are written as whole numbers
      with a ".0", as pandas does where one is missing, that is dropped.

    Args:
        path: the file: `.parquet`, `.pq`, `.csv`, `.csv.gz`, or `.tsv` with tabs.
        client: name of the column. A row without a client is an error.
        entries: columns to keep; None for all others.
        nulls: what a missing number is, NaN among them: an error, or NaN (whole numbers and truths become float64
            where any is missing). A missing text is an error.
        missing: texts that stand for no value. None for "", "NA", "N/A", "NaN", "nan", "NULL", "null" and "?" in CSV,
            and for none in Parquet, where only nulls do.
        texts: columns of a CSV file that are texts even where they look like numbers: ZIP codes.
        dates: columns of dates ("2024-01-31", "2024-01-31 12:30:00"), which become days since the beginning of 1970,
            float64, in UTC where a zone is given. Other columns of dates are texts in CSV, an error in Parquet.
        categories: turn values into int32 codes: a federation, to have those of its columns, by which a test file gets
            the codes of the training file; a dict of column to the values in the order of their codes; or True for
            all columns of texts, by the sorted values of *this* file. A listed value holds, even if `missing` has it.
            The values are kept as JSON in `about["categories of COLUMN"]`.
        delimiter: between cells of a CSV file; None for a tab in `.tsv`, else a comma.
        decimal: between whole part and fraction of a CSV file's numbers.
        encoding: of a CSV file.

    Returns:
        A federation; clients are sorted, a client's rows keep the file's order.

    Raises:
        ArgumentError: no such file or column; a damaged file; missing values; mixed columns; columns that are no
            numbers, texts or lists of equal lengths; a value that `categories` lacks. Where it is about a cell, it
            names the column and the row, counted from 0.

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
    written = kind in (".csv", ".tsv")
    if missing is None:
        missing = csv_text.MISSING if written else ()
    fixed = arrow_columns.fixed_categories(categories)
    rules = Rules(
        nulls, _names(missing, "missing"), _names(texts, "texts"), _names(dates, "dates"), decimal, fixed, written
    )
    reader: Callable[[], Any]
    if kind in (".parquet", ".pq"):
        reader = lambda: _parquet(path)  # noqa: E731
    elif written:
        reader = lambda: _csv(path, delimiter or ("\t" if kind == ".tsv" else ","), encoding)  # noqa: E731
    else:
        raise ArgumentError(f"{path}: must end in .parquet, .pq, .csv, .csv.gz or .tsv.")
    return _federation(reader, str(path), client, entries, rules)


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
    rules = Rules(nulls)
    if isinstance(dataset, str | Path):
        folder = Path(dataset).expanduser()
        return _federation(lambda: _saved(folder, split), str(folder), group_by, entries, rules)
    where = type(dataset).__name__
    if isinstance(dataset, Mapping):
        if split not in dataset:
            raise ArgumentError(f"split={split!r}: the {where} has {sorted(map(str, dataset))}.")
        dataset, split = dataset[split], None
    if not hasattr(dataset, "with_format") or not hasattr(dataset, "__len__"):
        raise ArgumentError(f"dataset={where}: must be a folder, a datasets.Dataset or a DatasetDict.")
    if split is not None and split != str(dataset.split):
        raise ArgumentError(f"split={split!r}: the {where} is of split {dataset.split}; leave split= out.")
    return _federation(lambda: dataset.with_format("arrow")[:], where, group_by, entries, rules)


def _check_nulls(nulls: str) -> None:
    if nulls not in ("error", "nan"):
        raise ArgumentError(f"nulls={nulls!r}: must be 'error' or 'nan'.")


def _parquet(path: Path) -> Any:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path, memory_map=True)
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    needed = sum(chunk.num_values * WIDTHS.get(chunk.physical_type, 8) for chunk in chunks)
    check_memory(f"{path}", needed, "take some of its rows or columns.")
    return file.read()


def _csv(path: Path, delimiter: str, encoding: str) -> Any:
    if path.suffix == ".gz":
        return csv_text.read(lambda: csv_text.Unpacked(path), str(path), delimiter, encoding)
    return csv_text.read(lambda: path.open("rb"), str(path), delimiter, encoding)


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
        return rows.take(order)
    return rows


def _stream(folder: Path, name: str) -> Any:
    import pyarrow

    if Path(name).name != name:
        raise ArgumentError(f"{folder}: state.json names the file {name!r}, outside the folder.")
    file = pyarrow.memory_map(str(folder / name))
    # A stream that is cut off between two batches reads as a shorter one; only this mark tells.
    file.seek(max(0, file.size() - len(END_OF_STREAM)))
    if file.read() != END_OF_STREAM:
        raise ArgumentError(f"{folder / name}: does not end as an Arrow stream does. It is cut off; save it again.")
    file.seek(0)
    rows = pyarrow.ipc.open_stream(file).read_all()
    rows.validate(full=True)  # offsets beyond a damaged file's buffers would crash the interpreter
    return rows


def _federation(
    reader: Callable[[], Any], where: str, client: str, entries: Iterable[str] | None, rules: Rules
) -> FederatedData:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ArgumentError(f"{where}: needs pyarrow ({error}): pip install 'fedjax-sim[data]'.") from error
    about: dict[str, str] = {}
    arrays: dict[str, Any] = {}
    try:
        rows = reader()
        rows.validate(full=True)
        names: list[str] = rows.column_names
        if len(set(names)) != len(names):
            raise ArgumentError(f"{where}: two columns have the same name: {names}.")
        coded = rules.categories if isinstance(rules.categories, Mapping) else ()
        wanted = [name for name in names if name != client] if entries is None else list(dict.fromkeys(entries))
        if lacking := sorted({*wanted, client, *coded, *rules.texts, *rules.dates} - {*names}):
            raise ArgumentError(f"{where}: there is no column {', '.join(map(repr, lacking))}; there are {names}.")
        clients = arrow_columns.client_column(rows[client], f"{where}: column {client!r}", rules)
        for name in wanted:
            arrays[name], values = arrow_columns.column(rows[name], name, f"{where}: column {name!r}", rules)
            if values is not None:
                about[arrow_columns.CATEGORIES + name] = json.dumps(values)
    except ArgumentError as error:
        if where in str(error):
            raise
        raise ArgumentError(f"{where}: {error}") from error
    except Exception as error:  # pyarrow raises many kinds
        raise ArgumentError(f"{where}: cannot be read ({type(error).__name__}: {error}).") from error
    return group(arrays, clients, f"{where}: {client!r}", about)


def _names(given: Sequence[str], argument: str) -> list[str]:
    if isinstance(given, str) or not all(isinstance(name, str) for name in given):
        raise ArgumentError(f"{argument}={given!r}: must be a list of texts.")
    return list(given)
