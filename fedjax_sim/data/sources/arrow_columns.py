"""Columns of Arrow as NumPy arrays: numbers, texts, dates, lists and pictures, what is missing, and categories."""

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.kinds import with_categories
from fedjax_sim.data.federated import CATEGORIES, FederatedData
from fedjax_sim.data.sources import csv_text
from fedjax_sim.data.sources.limits import check_room

if TYPE_CHECKING:
    import pyarrow as pa

Category = Any
"""A value that a cell may have: a text, or what NumPy's arrays hold."""

TICKS = {"s": 86400, "ms": 86400 * 10**3, "us": 86400 * 10**6, "ns": 86400 * 10**9}
"""Units in a day."""


class Rules(NamedTuple):
    """How cells become numbers: the arguments of `table` of the same names.

    Attributes:
        nulls: "error" or "nan".
        missing: texts that stand for no value.
        texts: columns that are texts whatever they hold.
        dates: columns of dates.
        decimal: between a number's whole part and its fraction.
        categories: column to values, or True.
        written: whether cells are texts that may be numbers, as in CSV.
    """

    nulls: Literal["error", "nan"] = "error"
    missing: Sequence[str] = ()
    texts: Sequence[str] = ()
    dates: Sequence[str] = ()
    decimal: str = "."
    categories: bool | Mapping[str, Sequence[Category]] = False
    written: bool = False


def fixed_categories(categories: object) -> bool | Mapping[str, Sequence[Category]]:
    """The argument `categories` as a bool or as column to values; a federation gives those it was made with.

    Example:
        >>> train = FederatedData({"y": np.zeros(1)}, [0, 1], about={"categories of y": '["a", "b"]'})
        >>> fixed_categories(train)
        {'y': ['a', 'b']}
    """
    if isinstance(categories, FederatedData):
        about = categories.about
        found = {key.removeprefix(CATEGORIES): json.loads(about[key]) for key in about if key.startswith(CATEGORIES)}
        if not found:
            raise ArgumentError("categories: the federation has none; read it with categories= itself.")
        return found
    if isinstance(categories, bool):
        return categories
    if not isinstance(categories, Mapping):
        raise ArgumentError(
            f"categories={categories!r}: must be True, a dict of column to values, or a federation that has them."
        )
    lists = {
        name: values if isinstance(values, str) else np.asarray(values).tolist() for name, values in categories.items()
    }
    for name, values in lists.items():
        if not isinstance(values, list) or len(set(values)) != len(values):
            raise ArgumentError(f"categories[{name!r}]={values!r}: must be a list of different values.")
    return lists


def client_column(column: "pa.Array | pa.ChunkedArray", where: str, rules: Rules) -> np.ndarray:
    """[N] whose each row is: whole numbers, or objects that are `bytes`."""
    import pyarrow as pa

    array = _array_of(column)
    if _is_text(array.type):
        array = csv_text.marked(array, [*rules.missing, ""])
    if array.null_count:
        raise ArgumentError(f"{where}, row {_first_null(array)}: there is no client; name it, or take the row out.")
    if rules.written:
        array = csv_text.names(array)
    if pa.types.is_floating(array.type):
        numbers = array.to_numpy(zero_copy_only=False)
        if rows := np.flatnonzero(~(np.abs(numbers) < csv_text.EXACT) | (numbers % 1 != 0)).tolist():
            raise ArgumentError(f"{where}, row {rows[0]}: {numbers[rows[0]]} is no whole number, and names no client.")
        return numbers.astype(np.int64)
    return _values(array, where, Rules(), 1)


def read(
    rows: "pa.Table", layout: Mapping[str, str | list[str]], where: str, rules: Rules
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """A table's entries, and the categories of its columns as `about` has them.

    Args:
        rows: a table of Arrow.
        layout: entry to its column, or to the columns that are laid side by side in it.
        where: the file, for errors.
        rules: how cells become numbers.
    """
    about: dict[str, str] = {}
    labels = label_names(rows.schema)

    def one(name: str) -> np.ndarray:
        said = f"{where}: column {name!r}"
        made, values = _column(rows[name], name, said, rules, labels.get(name))
        if values is not None:
            about[CATEGORIES + name] = json.dumps(values)
        return made

    def entry(columns: str | list[str]) -> np.ndarray:
        names = [columns] if isinstance(columns, str) else columns
        made = one(columns) if isinstance(columns, str) else stacked({name: one(name) for name in columns}, where)
        coded = {name: about[CATEGORIES + name] for name in names if CATEGORIES + name in about}
        return with_categories(made, coded)

    return {name: entry(columns) for name, columns in layout.items()}, about


def stacked(parts: Mapping[str, np.ndarray], where: str) -> np.ndarray:
    """Columns [N] or [N, n] side by side, [N, F].

    Example:
        >>> stacked({"age": np.array([61, 47]), "bp": np.array([1.5, 2.0])}, "here").tolist()
        [[61.0, 1.5], [47.0, 2.0]]
    """
    if not parts:
        raise ArgumentError(f"{where}: columns= has an entry of no column.")
    for name, part in parts.items():
        if part.dtype == object or part.ndim > 2:
            kind = "texts" if part.dtype == object else f"arrays {list(part.shape[1:])}"
            raise ArgumentError(
                f"{where}: column {name!r} holds {kind}; numbers can be stacked. categories= makes codes of texts."
            )
    out = np.concatenate([part.reshape(len(part), -1) for part in parts.values()], axis=1)
    for name, part in parts.items():
        if (
            part.dtype.kind in "iu"
            and out.dtype.kind == "f"
            and np.any(np.abs(part.astype(out.dtype)) >= csv_text.EXACT)
        ):
            raise ArgumentError(f"{where}: column {name!r} holds whole numbers too large to lie beside fractions.")
    return out


def label_names(schema: "pa.Schema") -> dict[str, list[str]]:
    """Column to the names of its classes, where Hugging Face's library says that it is a `ClassLabel`."""
    said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = said.get("info", {}).get("features", {})
    kinds = {name: kind for name, kind in features.items() if isinstance(kind, dict)}  # a list is a feature, too
    return {name: kind["names"] for name, kind in kinds.items() if kind.get("_type") == "ClassLabel"}


def _column(
    column: "pa.Array | pa.ChunkedArray", name: str, where: str, rules: Rules, labels: list[str] | None
) -> tuple[np.ndarray, list[Category] | None]:
    """A column, [N, ...], and its categories where it is of codes."""
    array = _array_of(column)
    values = rules.categories.get(name) if isinstance(rules.categories, Mapping) else None
    as_texts = name in rules.texts or (values is not None and all(isinstance(value, str) for value in values))
    if _is_text(array.type):
        array = csv_text.marked(array, [mark for mark in rules.missing if mark not in (values or ())])
        if name in rules.dates:
            array = _parsed_dates(array, where)
        elif rules.written and not as_texts:
            array = csv_text.typed(array, where, rules.decimal)
    elif name in rules.dates and not _is_date(array.type):
        raise ArgumentError(f"{where}: holds {array.type}, and dates= names it; it is no date.")
    elif name in rules.texts:
        raise ArgumentError(f"{where}: holds {array.type}, and texts= names it; it is no text.")
    if name in rules.dates:
        array = _days(array)
    made = _values(array, where, rules, 1)
    if labels is not None:
        made = check_classes(made, labels, where)
        if values is None:
            return made, labels
        made = _objects([labels[label].encode() for label in made])
    if values is not None or (rules.categories is True and made.dtype == object and made.ndim == 1):
        return _codes(made, values, where)
    return made, None


def check_classes(labels: np.ndarray, names: Sequence[str], where: str) -> np.ndarray:
    """Labels [N], each the number of one of the classes.

    Example:
        >>> check_classes(np.array([1, 0]), ["no", "yes"], "here")
        array([1, 0])
    """
    wrong = ~((labels >= 0) & (labels < len(names)))
    if np.any(wrong):
        row = int(np.argmax(wrong))
        advice = (
            "there is no label; leave the column out by entries=" if labels[row] == -1 else "there is no such class"
        )
        raise ArgumentError(f"{where}, row {row}: {labels[row]} of {len(names)} classes: {advice}.")
    return labels


def _array_of(column: "pa.Array | pa.ChunkedArray") -> "pa.Array":
    import pyarrow as pa

    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    chunks = [chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk for chunk in chunks]
    array = pa.concat_arrays(chunks) if chunks else pa.array([], column.type)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _is_text(kind: "pa.DataType") -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_date(kind: "pa.DataType") -> bool:
    from pyarrow import types

    return types.is_date(kind) or types.is_timestamp(kind)


def _first_null(array: "pa.Array") -> int:
    import pyarrow.compute as pc

    return pc.index(pc.is_null(array), True).as_py()  # pyright: ignore[reportAttributeAccessIssue]


def _parsed_dates(texts: "pa.Array", where: str) -> "pa.Array":
    import pyarrow as pa

    kind = pa.timestamp("us")
    try:
        return texts.cast(kind)
    except pa.ArrowInvalid:
        for row, text in enumerate(texts):
            try:
                text.cast(kind)
            except pa.ArrowInvalid:
                raise ArgumentError(
                    f"{where}, row {row}: {text.as_py()!r:.60} is no date; 2024-01-31 or 2024-01-31 12:30:00 are."
                ) from None
        raise


def _days(array: "pa.Array") -> "pa.Array":
    """Days since the beginning of 1970 (in UTC where the column has a zone), with fractions."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_date(array.type):
        array = array.cast(pa.timestamp("s"))
    whole = array.cast(pa.int64()).cast(pa.float64(), safe=False)
    return pc.divide(whole, float(TICKS[array.type.unit]))  # pyright: ignore[reportAttributeAccessIssue]


def _values(array: "pa.Array", where: str, rules: Rules, rows_of: int) -> np.ndarray:
    """An array of Arrow, [N, ...]; `rows_of` of its values make one row of the table."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if pa.types.is_decimal(kind):
        array = array.cast(pa.float64())
        kind = array.type
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if array.null_count:
        if not (is_number and rules.nulls == "nan"):
            raise _no_value(where, _first_null(array) // rows_of, is_number, rules.written)
        array = array.cast(kind if pa.types.is_floating(kind) else pa.float64())
    if is_number:
        numbers = array.to_numpy(zero_copy_only=False)
        if rules.nulls == "error" and numbers.dtype.kind == "f" and np.isnan(numbers).any():
            raise _no_value(where, int(np.argmax(np.isnan(numbers))) // rows_of, True, rules.written)
        return numbers
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
        values = _values(array.flatten(), where, rules, rows_of * max(width, 1))
        return values.reshape(len(array), width, *values.shape[1:])
    if pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}:
        return _pictures(array.field("bytes").to_pylist(), where)
    if _is_date(kind):
        name = where.rpartition("column ")[2]
        raise ArgumentError(
            f"{where}: holds {kind}; dates=[{name}] makes it days since 1970, or leave it out by entries=."
        )
    raise ArgumentError(
        f"{where}: holds {kind}; numbers, texts, dates, pictures and lists of equal lengths can be read. "
        "Convert the column, or leave it out by entries=."
    )


def _no_value(where: str, row: int, is_number: bool, written: bool) -> ArgumentError:
    advice = "nulls='nan' makes it NaN" if is_number else "fill it, or leave the column out by entries="
    if written and not is_number:
        advice += "; if the cell does mean something, list its text in categories=, or leave it out of missing="
    return ArgumentError(f"{where}, row {row}: there is no value; {advice}.")


def _codes(found: np.ndarray, values: Sequence[Category] | None, where: str) -> tuple[np.ndarray, list[Category]]:
    """[N] int32, each value's place among `values`, or among the values there are, sorted."""
    if found.ndim != 1:
        raise ArgumentError(f"{where}: holds arrays {list(found.shape[1:])}; categories= is for single values.")
    if values is None:
        values = sorted({_decoded(text, where) for text in found})
    codes = {value.encode() if isinstance(value, str) else value: code for code, value in enumerate(values)}
    cells = found.tolist()
    for row, value in enumerate(cells):
        if value not in codes:
            raise ArgumentError(
                f"{where}, row {row}: {value!r} is not one of its {len(values)} categories {list(values)[:9]}."
            )
    return np.array([codes[value] for value in cells], np.int32), list(values)


def _decoded(text: bytes, where: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{where}: {text!r:.60} is not UTF-8 ({error.reason}), and no category.") from None


def _objects(values: list[bytes | None]) -> np.ndarray:
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
