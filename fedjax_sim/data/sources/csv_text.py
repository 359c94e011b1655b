"""Text tables: how their files are opened, and what their cells are. The rules are those of `table`'s docstring."""

import codecs
import re
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Any

from fedjax_sim.core.errors import ArgumentError

if TYPE_CHECKING:
    import pyarrow as pa

MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "?")
"""Cells that stand for no value, unless `missing=` says otherwise."""

NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
WHOLE = r"^[+-]?[0-9]+$"
EXACT = 2.0**53  # from here on float64 skips whole numbers


def read(open_file: Callable[[], IO[bytes]], where: str, delimiter: str, encoding: str) -> "pa.Table":
    """The table of a text file, every cell as the text that is written.

    Args:
        open_file: gives the file's bytes, as often as it is asked.
        where: the file, for errors.
        delimiter: between cells.
        encoding: of the file.
    """
    import pyarrow
    import pyarrow.csv

    try:
        codecs.lookup(encoding)
    except LookupError:
        raise ArgumentError(f"{where}: encoding={encoding!r}: Python knows no such encoding.") from None
    try:
        with open_file() as source:
            header = source.read(1 << 16).split(b"\n")[0].decode(encoding, errors="replace")
        if delimiter not in header and (other := [mark for mark in ",;\t|" if mark in header]):
            raise ArgumentError(
                f"{where}: begins with {header!r:.60}, without a {delimiter!r}; pass delimiter={other[0]!r}."
            )
        options = {
            "parse_options": pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            "read_options": pyarrow.csv.ReadOptions(encoding=encoding),
        }
        with open_file() as source, pyarrow.csv.open_csv(source, **options) as opened:
            names = opened.schema.names
        convert = pyarrow.csv.ConvertOptions(column_types={name: pyarrow.binary() for name in names})
        with open_file() as source:
            rows = pyarrow.csv.read_csv(source, convert_options=convert, **options)
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{where}: is not {encoding} ({error}); pass encoding=, 'latin-1' for example.") from error
    _check_closed(open_file, rows, where)
    return pyarrow.table({name: _decoded(column, f"{where}: column {name!r}") for name, column in _columns(rows)})


def _columns(rows: "pa.Table") -> list[tuple[str, "pa.ChunkedArray"]]:
    if len(set(rows.column_names)) != len(rows.column_names):
        raise ArgumentError(f"two columns have the same name: {rows.column_names}.")
    return list(zip(rows.column_names, rows.columns, strict=True))


def _check_closed(open_file: Callable[[], IO[bytes]], rows: "pa.Table", where: str) -> None:
    """A quote that is opened and never closed makes one cell of all rows after it."""
    if not rows.num_rows or not rows.num_columns or b"\n" not in (rows.columns[-1][-1].as_py() or b""):
        return
    with open_file() as source:
        quotes = sum(block.count(b'"') for block in iter(lambda: source.read(1 << 20), b""))
    if quotes % 2:
        raise ArgumentError(f"{where}, row {rows.num_rows - 1}: a quote is opened and never closed.")


def _decoded(column: "pa.ChunkedArray", where: str) -> "pa.ChunkedArray":
    import pyarrow

    try:
        return column.cast(pyarrow.large_string())
    except pyarrow.ArrowInvalid:
        for row, value in enumerate(column):
            try:
                value.as_py().decode()
            except UnicodeDecodeError as error:
                raise ArgumentError(
                    f"{where}, row {row}: {value.as_py()!r:.60} is not UTF-8 ({error.reason}); pass encoding=, "
                    "'latin-1' for example."
                ) from None
        raise


def marked(texts: "pa.Array", missing: Sequence[str]) -> "pa.Array":
    """Texts with null for those that stand for no value, spaces around them aside.

    Example:
        >>> import pyarrow
        >>> marked(pyarrow.array(["a", " ?", ""]), ["?"]).to_pylist()
        ['a', None, '']
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    gone = pc.is_in(pc.utf8_trim_whitespace(texts), pa.array(missing, texts.type))  # pyright: ignore[reportAttributeAccessIssue]
    return pc.if_else(gone, pa.scalar(None, texts.type), texts)  # pyright: ignore[reportAttributeAccessIssue]


def typed(texts: "pa.Array", where: str, decimal: str) -> "pa.Array":
    """What a column of cells is: whole numbers, numbers, truths, or the texts that are written.

    Example:
        >>> import pyarrow
        >>> typed(pyarrow.array(["1,5", None, "2"]), "here", ",").to_pylist()
        [1.5, None, 2.0]
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    compute: Any = pc
    plain = compute.utf8_trim_whitespace(texts)
    if decimal != ".":
        plain = compute.replace_substring(compute.replace_substring(plain, ".", "?"), decimal, ".")
    first = next((text.as_py() for text in plain if text.is_valid), "0")
    for kind in (pa.int64(), pa.float64()) if re.match(WHOLE, first) else (pa.float64(),):  # a cast that fails is slow
        try:
            numbers = plain.cast(kind)
        except pa.ArrowInvalid:
            continue
        if compute.all(compute.is_finite(numbers)).as_py() is not False:
            return numbers if kind == pa.int64() else _exact(numbers, plain, where)
    is_number = compute.match_substring_regex(plain, NUMBER)
    count, known = compute.sum(is_number).as_py() or 0, len(texts) - texts.null_count
    if not count:
        is_truth = compute.match_substring_regex(plain, "^(true|false)$", ignore_case=True)
        return compute.equal(compute.utf8_lower(plain), "true") if compute.all(is_truth).as_py() else texts
    row = compute.index(is_number, 2 * count <= known).as_py()  # of the rarer kind
    name = where.rpartition("column ")[2]
    if count == known:
        row = compute.index(compute.is_finite(plain.cast(pa.float64())), False).as_py()
        raise ArgumentError(f"{where}, row {row}: {texts[row].as_py()!r:.60} is beyond the numbers of 64 bits.")
    if 2 * count > known:
        raise ArgumentError(
            f"{where}, row {row}: {texts[row].as_py()!r:.60} is no number, and {count} of {known} values are. If it "
            f"stands for no value, name it in missing=; texts=[{name}] reads all as texts."
        )
    raise ArgumentError(
        f"{where}, row {row}: {texts[row].as_py()!r:.60} is a number, and {known - count} of {known} values are none. "
        f"texts=[{name}] reads all as texts."
    )


def _exact(numbers: "pa.Array", plain: "pa.Array", where: str) -> "pa.Array":
    """The numbers, unless a whole one is too large to be told from its neighbours."""
    import pyarrow.compute as pc

    compute: Any = pc
    large = compute.greater_equal(compute.abs(numbers), EXACT)
    if compute.any(large).as_py():
        row = compute.index(compute.and_(large, compute.match_substring_regex(plain, WHOLE)), True).as_py()
        if row >= 0:
            raise ArgumentError(
                f"{where}, row {row}: {plain[row].as_py()} is too large for a whole number of 64 bits, or for one "
                f"among fractions. texts=[{where.rpartition('column ')[2]}] reads all as texts."
            )
    return numbers


def names(texts: "pa.Array") -> "pa.Array":
    """Clients as written; whole numbers that all are written as 1.0, as pandas does beside a gap, without the .0.

    Example:
        >>> import pyarrow
        >>> names(pyarrow.array(["7.0", "10.0"])).to_pylist()
        ['7', '10']
    """
    import pyarrow.compute as pc

    compute: Any = pc
    if compute.all(compute.match_substring_regex(texts, r"^-?[0-9]+\.0+$")).as_py():
        return compute.replace_substring_regex(texts, r"\.0+$", "")
    return texts
