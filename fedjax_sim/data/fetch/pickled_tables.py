"""What pickles of pandas' tables name, made here from parts that were looked at.

A pickled table is a tree of parts: blocks of columns, indices, categories, columns with gaps, texts. Each name in it
stands for a `Part`, which keeps what the pickle says; the table is built of them by pandas' public constructors.
"""

from collections.abc import Callable
from types import UnionType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from pandas.api.extensions import ExtensionArray

Said = Any
"""What a pickle says: anything; whoever takes it looks at it."""


class Refused(Exception):
    """A pickle that asks for more than data."""


class Part:
    """A part of a table: made empty, told its state, and then once given its value."""

    weight = 64
    value: Said

    def build(self, state: object) -> None:
        """Take the state that the pickle says, once."""
        if hasattr(self, "value"):
            raise Refused(f"changes a {type(self).__name__.lower()} that is whole.")
        self.value = self.made(state)
        self.weight = int(getattr(self.value, "nbytes", None) or 64) if not isinstance(self.value, str) else 64

    def made(self, state: object) -> object:
        """What it is by this state."""
        raise NotImplementedError


def unfold(part: object) -> Said:
    """The value of a part; anything else as it is."""
    if isinstance(part, Part):
        if not hasattr(part, "value"):
            raise ValueError(f"a {type(part).__name__.lower()} without content")
        return part.value
    return part


def _fields(state: object, **kinds: type | UnionType) -> list[Said]:
    """Those entries of a dict, of these types."""
    if not isinstance(state, dict):
        raise ValueError(f"a state of {type(state).__name__}")
    values = [unfold(state.get(name)) for name in kinds]
    for (name, kind), value in zip(kinds.items(), values, strict=True):
        if not isinstance(value, kind):
            raise ValueError(f"{name!r} is {type(value).__name__}")
    return values


class Ignored(Part):
    """A type of pandas' that its values tell as well."""

    def __init__(self, *arguments: object):
        self.value = None

    def build(self, state: object) -> None:
        """Its state is not needed."""


class Gaps(Part):
    """A column of numbers or truths with gaps."""

    def made(self, state: object) -> object:
        """By `_data` and `_mask`."""
        import pandas as pd

        data, mask = _fields(state, _data=np.ndarray, _mask=np.ndarray)
        kinds = {"b": pd.arrays.BooleanArray, "f": pd.arrays.FloatingArray}  # pyright: ignore[reportAttributeAccessIssue]
        if data.dtype.kind not in "biuf" or mask.dtype != bool or data.shape != mask.shape or data.ndim != 1:
            raise ValueError(f"a column of {data.dtype} {data.shape} with gaps of {mask.dtype} {mask.shape}")
        return kinds.get(data.dtype.kind, pd.arrays.IntegerArray)(data, mask)


class CategoryType(Part):
    """Which categories there are."""

    def made(self, state: object) -> object:
        """By `categories` and `ordered`."""
        import pandas as pd

        categories, ordered = _fields(state, categories=pd.Index, ordered=bool | None)
        return pd.CategoricalDtype(categories, ordered)


class Categorical(Part):
    """A column of categories, as codes."""

    def made(self, state: object) -> object:
        """By (type, codes)."""
        import pandas as pd

        kind, codes = _pair(state)
        if not isinstance(kind, pd.CategoricalDtype) or codes.dtype.kind != "i" or codes.ndim != 1:
            raise ValueError(f"codes of {codes.dtype} {codes.shape} for {kind!r:.80}")
        return pd.Categorical.from_codes(codes, dtype=kind)  # pyright: ignore[reportArgumentType] # checks their range


class Texts(Part):
    """A column of texts, as Python objects."""

    def made(self, state: object) -> object:
        """By (type, texts)."""
        kind, values = _pair(state)
        if values.dtype != object or values.ndim != 1:
            raise ValueError(f"texts of {values.dtype} {values.shape}")
        return _texts(values.tolist(), kind)


class ArrowTexts(Part):
    """A column of texts, as Arrow keeps them."""

    def made(self, state: object) -> object:
        """By `_pa_array` and `_dtype`."""
        values, kind = _fields(state, _pa_array=list, _dtype=object)
        return _texts(values, kind)


class TextType(Part):
    """How pandas keeps texts, and what a gap is."""

    def __init__(self, storage: object = "python", gap: object = None):
        self.value = (storage, isinstance(gap, float))

    def build(self, state: object) -> None:
        """Its arguments say all."""


class Values(Part):
    """A list that Arrow's buffers hold."""

    def __init__(self, values: list[str | bytes | None]):
        self.value = values
        self.weight = 64 * len(values) + sum(len(value) for value in values if value)


class Block(Part):
    """Columns of one type, and which they are."""

    def __init__(self, columns: "list[np.ndarray | ExtensionArray]", places: list[int]):
        self.value = list(zip(places, columns, strict=True))


class Blocks(Part):
    """All columns in their order, and the two indices."""

    def __init__(self, columns: "list[np.ndarray | ExtensionArray]", names: "pd.Index", rows: "pd.Index"):
        self.value = (columns, names, rows)
        self.weight = sum(max(getattr(column, "nbytes", 0), 8 * len(column)) for column in columns)


class Labels(Part):
    """The names of rows or columns."""


class Range(Part):
    """Rows that are numbered."""


class Frame(Part):
    """A table."""

    def made(self, state: object) -> object:
        """By `_mgr`, which older versions call `_data`."""
        import pandas as pd

        state = dict(state, _mgr=state.get("_mgr", state.get("_data"))) if isinstance(state, dict) else state
        ((columns, names, rows),) = _fields(state, _mgr=tuple)
        series = {i: pd.Series(column, index=rows, dtype=column.dtype) for i, column in enumerate(columns)}
        table = pd.DataFrame(series, index=rows)
        table.columns = names
        return table


def _pair(state: object) -> tuple[Said, np.ndarray]:
    """(type, values), in any order, with or without further attributes."""
    if not isinstance(state, tuple) or len(state) not in (2, 3):
        raise ValueError(f"a state of {type(state).__name__}")
    kind, values = (unfold(part) for part in state[:2])
    if isinstance(kind, np.ndarray):
        kind, values = values, kind
    if not isinstance(values, np.ndarray):
        raise ValueError("a column without values")
    return kind, values


def _texts(values: list[Said], kind: object) -> "ExtensionArray":
    import pandas as pd

    storage, is_nan = kind if isinstance(kind, tuple) else ("python", True)
    gaps = [value is None or (isinstance(value, float) and value != value) or value is pd.NA for value in values]
    if not all(gap or type(value) is str for gap, value in zip(gaps, values, strict=True)):
        raise ValueError("a column of texts that holds others")
    try:
        dtype = pd.StringDtype(storage, na_value=np.nan if is_nan else pd.NA)
    except TypeError:  # before pandas 2.3
        dtype = pd.StringDtype(storage)
    return pd.array([pd.NA if gap else value for gap, value in zip(gaps, values, strict=True)], dtype=dtype)


def _array_of(kind: object, checksum: object, state: object = None) -> Part:
    """`__pyx_unpickle_NDArrayBacked`: an empty column of a kind."""
    if kind not in (Categorical, Texts):
        raise Refused(f"asks for an array of {kind!r:.80}.")
    part = kind()
    if state is not None:
        part.build(state)
    return part


def _index(kind: object, state: object) -> Labels:
    """`_new_Index`: an index by its values, or by its beginning and end."""
    import pandas as pd

    if kind is Range:
        start, stop, step = _fields(state, start=int, stop=int, step=int)
        return _labels(pd.RangeIndex(start, stop, step, name=_name(state)))
    if kind is not Labels:
        raise Refused(f"asks for an index of {kind!r:.80}.")
    values = unfold(state.get("data")) if isinstance(state, dict) else None
    if not isinstance(values, np.ndarray | pd.api.extensions.ExtensionArray) or values.ndim != 1:
        raise ValueError(f"an index of {type(values).__name__}")
    return _labels(pd.Index(values, dtype=values.dtype, name=_name(state)))


def _labels(index: "pd.Index") -> Labels:
    made = Labels()
    made.value, made.weight = index, 64 + 8 * len(index)
    return made


def _name(state: Said) -> str | int | float | None:
    name = state.get("name")
    if not isinstance(name, str | int | float | None):
        raise ValueError(f"an index with the name {name!r:.80}")
    return name


def _block(values: Said, placement: object, ndim: object = 2) -> Block:
    """`_unpickle_block`: columns [C, N], or one of pandas' own [N]."""
    values = unfold(values)
    if isinstance(placement, np.ndarray) and placement.dtype.kind == "i" and placement.ndim == 1:
        places = placement.tolist()
    elif isinstance(placement, slice):
        places = list(range(placement.start, placement.stop, placement.step))
    else:
        raise ValueError(f"columns at {type(placement).__name__}")
    columns = list(values) if isinstance(values, np.ndarray) and values.ndim == 2 else [values]
    if any(getattr(column, "ndim", None) != 1 for column in columns) or len(columns) != len(places):
        raise ValueError(f"{len(columns)} columns at {len(places)} places")
    return Block(columns, places)


def _blocks(blocks: Said, axes: Said, *_: object) -> Blocks:
    """`BlockManager`: every place has one column, every column as many rows as there are."""
    import pandas as pd

    names, rows = (unfold(axis) for axis in axes)
    if not all(isinstance(axis, pd.Index) for axis in (names, rows)) or isinstance(blocks, str | bytes):
        raise ValueError("a table without indices")
    found = [place for block in blocks for place in unfold(block)]
    columns = dict(found)
    if len(columns) != len(found) or sorted(columns) != list(range(len(names))):
        raise ValueError(f"columns at {sorted(columns)[:9]}, and {len(names)} names")
    if not columns and len(rows):
        raise Refused(f"asks for a table of {len(rows)} rows of nothing.")
    for place, column in columns.items():
        if len(column) != len(rows):
            raise ValueError(f"column {place} has {len(column)} rows, and there are {len(rows)}")
    return Blocks([columns[place] for place in range(len(names))], names, rows)


def _buffer(data: object) -> bytes | bytearray:
    """`py_buffer`: bytes as they are."""
    if not isinstance(data, bytes | bytearray):
        raise Refused(f"asks for a buffer of {type(data).__name__}.")
    return data


def _arrow_array(state: Said) -> Values:
    """`_restore_array` of texts: their values, once Arrow has looked at all of its buffers."""
    import pyarrow as pa

    kind, length, _, offset, buffers, children, dictionary = state
    if unfold(kind) not in ("string", "large_string") or children or dictionary is not None:
        raise Refused(f"asks for an array of Arrow's of {unfold(kind)!r:.80}.")
    made = [None if buffer is None else pa.py_buffer(buffer) for buffer in buffers]
    if not all(type(number) is int and number >= 0 for number in (length, offset)) or len(made) != 3:
        raise ValueError("an array of Arrow's of other parts")
    # Each text has its end in the second buffer: no more than that holds are made.
    if made[1] is None or (length + offset + 1) * (4 if unfold(kind) == "string" else 8) > made[1].size:
        if length:
            raise ValueError(f"an array of {length} texts in {0 if made[1] is None else made[1].size} bytes")
        return Values([])
    array = pa.Array.from_buffers(pa.type_for_alias(unfold(kind)), length, made, offset=offset)
    array.validate(full=True)
    return Values(array.to_pylist())


def _arrow_chunks(chunks: Said, kind: object = None) -> Values:
    """`chunked_array`: lists one after another."""
    return Values([value for chunk in chunks for value in unfold(chunk)])


class ArrowType(Part):
    """A type of Arrow's, by its name."""

    def __init__(self, name: object):
        self.value = str(name)


def _both(modules: tuple[str, ...], name: str, made: type[Part]) -> dict[tuple[str, str], type[Part]]:
    return {(module, name): made for module in modules}


TYPES = tuple(f"{kind}{bits}Dtype" for kind in ("Int", "UInt") for bits in (8, 16, 32, 64))
# Whole modules would be too many: pandas holds functions that evaluate text, import and open files.
NAMES: dict[tuple[str, str], Callable[..., object] | None] = {
    **_both(("pandas", "pandas.core.frame"), "DataFrame", Frame),
    **_both(("pandas", "pandas.core.indexes.base"), "Index", Labels),
    **_both(("pandas", "pandas.core.indexes.range"), "RangeIndex", Range),
    **_both(("pandas", "pandas.core.dtypes.dtypes"), "CategoricalDtype", CategoryType),
    **_both(("pandas", "pandas.core.arrays.categorical"), "Categorical", Categorical),
    **_both(("pandas", "pandas.core.arrays.string_"), "StringDtype", TextType),
    **_both(("pandas.arrays", "pandas.core.arrays.string_"), "StringArray", Texts),
    **_both(("pandas.arrays", "pandas.core.arrays.string_arrow"), "ArrowStringArray", ArrowTexts),
    **_both(("pandas.core.arrays.string_arrow",), "ArrowStringArrayNumpySemantics", ArrowTexts),
    **_both(("pandas.arrays", "pandas.core.arrays.integer"), "IntegerArray", Gaps),
    **_both(("pandas.arrays", "pandas.core.arrays.floating"), "FloatingArray", Gaps),
    **_both(("pandas.arrays", "pandas.core.arrays.boolean"), "BooleanArray", Gaps),
    **{("pandas", name): Ignored for name in (*TYPES, "Float32Dtype", "Float64Dtype", "BooleanDtype")},
    **{("pandas.core.arrays.integer", name): Ignored for name in TYPES},
    **{("pandas.core.arrays.floating", name): Ignored for name in ("Float32Dtype", "Float64Dtype")},
    ("pandas.core.arrays.boolean", "BooleanDtype"): Ignored,
    ("pandas.core.indexes.base", "_new_Index"): _index,
    ("pandas._libs.arrays", "__pyx_unpickle_NDArrayBacked"): _array_of,
    ("pandas._libs.internals", "_unpickle_block"): _block,
    ("pandas.core.internals.managers", "BlockManager"): _blocks,
    ("pandas._libs.missing", "NA"): None,
    ("pandas", "NA"): None,
    ("pyarrow.lib", "_restore_array"): _arrow_array,
    ("pyarrow.lib", "chunked_array"): _arrow_chunks,
    ("pyarrow.lib", "type_for_alias"): ArrowType,
    ("pyarrow.lib", "py_buffer"): _buffer,
}
"""(module, name) to what it stands for."""
