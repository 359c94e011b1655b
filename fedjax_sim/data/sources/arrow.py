"""What Arrow holds: tables in Parquet and CSV files, and data sets of Hugging Face's library on disk and in memory."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fedjax_sim.core.errors import ArgumentError, check
from fedjax_sim.data.federated import FederatedData, Partitioner, federate
from fedjax_sim.data.sources import arrow_columns, arrow_files, csv_text, table_files
from fedjax_sim.data.sources.arrow_columns import Rules
from fedjax_sim.data.sources.grouping import group
from fedjax_sim.data.sources.limits import check_memory, check_room

if TYPE_CHECKING:
    import pyarrow as pa


def table(
    path: str | Path,
    split: str | None = None,
    *,
    client: str | None = None,
    partition: Partitioner | None = None,
    seed: int = 0,
    entries: Iterable[str] | None = None,
    columns: Mapping[str, str | Sequence[str]] | None = None,
    nulls: Literal["error", "nan"] = "error",
    missing: Sequence[str] | None = None,
    texts: Sequence[str] = (),
    dates: Sequence[str] = (),
    categories: bool | Mapping[str, Sequence[arrow_columns.Category]] | FederatedData = False,
    delimiter: str | None = None,
    decimal: Literal[".", ","] = ".",
    encoding: str = "utf-8",
) -> FederatedData:
    """A table in Parquet or CSV, whose clients are named by a column or made by a partitioner.

    Numbers keep their dtype, lists of equal lengths become arrays [N, n], texts objects that are `bytes` (UTF-8),
    decimals float64. Needs the extra `data` (pyarrow).

    A folder is one table, in the order of the numbers in its files' names; of `train-00000-of-00002.parquet` none may
    be missing.

    The cells of a CSV file are texts, of which this makes columns by these rules:

    - A cell that is one of `missing`, spaces and quotes aside, holds no value.
    - A column whose values are all numbers is int64 where all are whole, and else float64; one of true and false is
      bool; one without a number holds texts, as written. Numbers *among* texts, or a text among numbers, are an error.
    - Clients are texts as written, "007" stays so, and sorted as texts; only where all are written as whole numbers
      with a ".0", as pandas does where one is missing, that is dropped.

    Args:
        path: a file or a folder of files: `.parquet`, `.pq`, `.csv`, `.tsv`, or `.txt`, `.dat` and `.data` with a
            `delimiter`. Text may be packed as `.gz`, `.bz2`, `.xz`, or `.zip` with one such file in it.
        split: in a folder with several tables, what the names of one's files begin with: "train".
        client: name of the column. A row without a client is an error.
        partition: a partitioner (`fs.partition`) instead, which gets the entry "label", or "y", as labels.
        seed: of the partitioner.
        entries: columns to keep; None for all others.
        columns: instead, an entry's name to its column, or to a list of columns of numbers, which are laid side by
            side, [N, F]: `{"x": ["age", "bp"], "y": "outcome"}`.
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
        delimiter: between cells of a text file; None for a comma in `.csv` and a tab in `.tsv`.
        decimal: between whole part and fraction of a CSV file's numbers.
        encoding: of a CSV file.

    Returns:
        A federation; clients are sorted, a client's rows keep the file's order.

    Raises:
        ArgumentError: both or neither of client and partition; no such file or column; a damaged file, a missing
            shard; missing values; mixed columns; columns that are no numbers, texts or lists of equal lengths; a value
            that `categories` lacks. Where it is about a cell, it names the column and the row, counted from 0.

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
    made = _Made(str(path), client, partition, seed, entries, columns)
    files = table_files.find(path, split)
    written = files.kind in table_files.TEXT
    if missing is None:
        missing = csv_text.MISSING if written else ()
    fixed = arrow_columns.fixed_categories(categories)
    names = (_names(missing, "missing"), _names(texts, "texts"), _names(dates, "dates"))
    check(nulls in ("error", "nan"), "nulls", nulls, "must be 'error' or 'nan'.")
    check(decimal in (".", ","), "decimal", decimal, "must be '.' or ','.")
    rules = Rules(nulls, *names, decimal, fixed, written)
    if not written:
        return _federation(lambda: _parquet(files.paths), made, rules)
    between = delimiter or table_files.TEXT[files.kind]
    if between is None or len(between) != 1:
        raise ArgumentError(f"{path}: delimiter={delimiter!r}: must be what lies between cells, one character.")
    return _federation(lambda: _text(files.paths, between, encoding), made, rules)


def hugging_face(
    dataset: Any,
    split: str | None = None,
    *,
    group_by: str | None = None,
    partition: Partitioner | None = None,
    seed: int = 0,
    entries: Iterable[str] | None = None,
    columns: Mapping[str, str | Sequence[str]] | None = None,
    nulls: Literal["error", "nan"] = "error",
    dates: Sequence[str] = (),
) -> FederatedData:
    """A data set of Hugging Face's `datasets`, whose clients are named by a column or made by a partitioner.

    A folder that `save_to_disk` wrote is read without that library (by pyarrow, of the extra `data`), and numbers stay
    on disk where they lie in one piece. Texts become objects that are `bytes`, lists of equal lengths arrays, pictures
    arrays of uint8 (by Pillow). The names of a `ClassLabel` are kept in `about["categories of COLUMN"]`, as JSON; its
    -1, for no label, is an error. Parquet files of the Hub are read by `table`.

    Args:
        dataset: the folder, or a `datasets.Dataset` or `DatasetDict`.
        split: which of a `DatasetDict`'s; None for a `Dataset`.
        group_by: name of the column that names each row's client.
        partition: a partitioner (`fs.partition`) instead, which gets the entry "label", or "y", as labels.
        seed: of the partitioner.
        entries: columns to keep; None for all others.
        columns: as in `table`.
        nulls: what a missing number is, NaN among them: an error, or NaN.
        dates: columns of dates, which become days since 1970, as in `table`.

    Returns:
        A federation; clients are sorted, a client's rows keep the data set's order.

    Raises:
        ArgumentError: both or neither of group_by and partition; no such folder, split or column; a damaged folder;
            missing values; columns that are no numbers, texts, pictures of one size, or lists of equal lengths.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.data.sources.hugging_face("no folder", group_by="user")
        Traceback (most recent call last):
        ...
        fedjax_sim.core.errors.ArgumentError: no folder: has no state.json; is it a folder of save_to_disk?
    """
    check(nulls in ("error", "nan"), "nulls", nulls, "must be 'error' or 'nan'.")
    rules = Rules(nulls, dates=_names(dates, "dates"))
    where = str(Path(dataset).expanduser()) if isinstance(dataset, str | Path) else type(dataset).__name__
    made = _Made(where, group_by, partition, seed, entries, columns, "group_by")
    if isinstance(dataset, str | Path):
        return _federation(lambda: _saved(Path(where), split), made, rules)
    if isinstance(dataset, Mapping):
        if split not in dataset:
            raise ArgumentError(f"split={split!r}: the {where} has {sorted(map(str, dataset))}.")
        dataset, split = dataset[split], None
    if not hasattr(dataset, "with_format") or not hasattr(dataset, "__len__"):
        raise ArgumentError(f"dataset={where}: must be a folder, a datasets.Dataset or a DatasetDict.")
    if split is not None and split != str(dataset.split):
        raise ArgumentError(f"split={split!r}: the {where} is of split {dataset.split}; leave split= out.")
    return _federation(lambda: dataset.with_format("arrow")[:], made, rules)


def _parquet(paths: list[Path]) -> "pa.Table":
    return _joined(paths, [arrow_files.parquet(path) for path in paths])


def _text(paths: list[Path], delimiter: str, encoding: str) -> "pa.Table":
    check_memory(f"{paths[0]}", sum(path.stat().st_size for path in paths), "take some of its rows or columns.")
    read = lambda path: csv_text.read(lambda: table_files.opened(path), str(path), delimiter, encoding)
    return _joined(paths, [read(path) for path in paths])


def _joined(paths: list[Path], tables: list["pa.Table"]) -> "pa.Table":
    """The rows of all shards, which must have the same columns."""
    import pyarrow

    for path, rows in zip(paths, tables, strict=True):
        if rows.schema != tables[0].schema:
            unlike = {str(field) for field in rows.schema} ^ {str(field) for field in tables[0].schema}
            raise ArgumentError(
                f"{path}: its columns are not those of {paths[0].name}: {sorted(unlike) or 'their order differs'}."
            )
    return pyarrow.concat_tables(tables)


def _saved(folder: Path, split: str | None) -> "pa.Table":
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


def _stream(folder: Path, name: str) -> "pa.Table":
    if Path(name).name != name:
        raise ArgumentError(f"{folder}: state.json names the file {name!r}, outside the folder.")
    return arrow_files.stream(folder / name)


class _Made(NamedTuple):
    """What is to be made of a table.

    Attributes:
        where: the file, for errors.
        client: the column that names clients; or None.
        partition: the partitioner that makes them; or None.
        seed: of the partitioner.
        entries: columns to keep; or None.
        columns: entry to column or columns; or None.
        argument: what `client` is called.
    """

    where: str
    client: str | None
    partition: Partitioner | None
    seed: int
    entries: Iterable[str] | None
    columns: Mapping[str, str | Sequence[str]] | None
    argument: str = "client"

    def layout(self, names: list[str]) -> dict[str, str | list[str]]:
        """Entry to its column, or to the columns that are stacked in it."""
        if (self.client is None) == (self.partition is None):
            raise ArgumentError(
                f"{self.where}: pass one of {self.argument}= (one of the columns {names}) and partition=."
            )
        if self.entries is not None and self.columns is not None:
            raise ArgumentError(f"{self.where}: pass one of entries= and columns=.")
        if self.columns is None:
            kept = [name for name in names if name != self.client] if self.entries is None else list(self.entries)
            if not all(isinstance(name, str) for name in kept):
                raise ArgumentError(f"{self.where}: entries={kept}: must be names; columns= puts several into one.")
            return {name: name for name in kept}
        if not isinstance(self.columns, Mapping) or not self.columns:
            raise ArgumentError(
                f"{self.where}: columns={self.columns!r}: must be a dict of entry to column or columns."
            )
        return {
            entry: column if isinstance(column, str) else _names(column, f"columns[{entry!r}]")
            for entry, column in self.columns.items()
        }


def _federation(reader: Callable[[], "pa.Table"], made: _Made, rules: Rules) -> FederatedData:
    where, client = made.where, made.client
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ArgumentError(f"{where}: needs pyarrow ({error}): pip install 'fedjax-sim[data]'.") from error
    clients = None
    try:
        rows = reader()
        rows.validate(full=True)
        names: list[str] = rows.column_names
        if len(set(names)) != len(names):
            raise ArgumentError(f"{where}: two columns have the same name: {names}.")
        layout = made.layout(names)
        coded = rules.categories if isinstance(rules.categories, Mapping) else ()
        wanted = [name for names in layout.values() for name in ([names] if isinstance(names, str) else names)]
        if lacking := sorted({*wanted, *([client] if client else []), *coded, *rules.texts, *rules.dates} - {*names}):
            raise ArgumentError(f"{where}: there is no column {', '.join(map(repr, lacking))}; there are {names}.")
        if client is not None:
            clients = arrow_columns.client_column(rows[client], f"{where}: column {client!r}", rules)
        arrays, about = arrow_columns.read(rows, layout, where, rules)
    except ArgumentError as error:
        if where in str(error):
            raise
        raise ArgumentError(f"{where}: {error}") from error
    except Exception as error:  # pyarrow raises many kinds
        raise ArgumentError(f"{where}: cannot be read ({type(error).__name__}: {error}).") from error
    if clients is not None:
        return group(arrays, clients, f"{where}: {client!r}", about)
    if not rows.num_rows:
        raise ArgumentError(f"{where}: there are no rows.")
    assert made.partition is not None
    return federate(arrays, made.partition, made.seed, "label" if "label" in arrays else "y", about)


def _names(given: Sequence[str], argument: str) -> list[str]:
    is_list = isinstance(given, Iterable) and not isinstance(given, str)
    if not is_list or not all(isinstance(name, str) for name in given):
        raise ArgumentError(f"{argument}={given!r}: must be a list of texts.")
    return list(given)
