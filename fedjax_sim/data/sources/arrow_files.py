"""Parquet files and Arrow streams from strangers: no more rows and bytes than such files hold, read by Arrow."""

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.sources import parquet_footer
from fedjax_sim.data.sources.limits import FLOOR, check_growth, check_memory, check_room

if TYPE_CHECKING:
    import pyarrow as pa

TEXT = 50
"""Bytes that a text takes besides its letters, about."""
ADVICE = "take some of its rows or columns, or write them without dictionary and compression."
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def parquet(path: Path) -> "pa.Table":
    """The table of a Parquet file. Texts stay packed until they are counted; pages' checksums are compared, if any.

    Raises:
        ArgumentError: it says to hold far more than it does, or than the memory.
    """
    import pyarrow.parquet

    held = path.stat().st_size
    chunks = parquet_footer.chunks_of(path)
    needed = sum(chunk.values * chunk.width for chunk in chunks)
    check_growth(f"{path}", max(needed, sum(chunk.unpacked for chunk in chunks)), held, ADVICE)
    check_memory(f"{path}", needed, "take some of its rows or columns.")
    counted, repeating = _check_pages(path, chunks, held)
    texts = {chunk.name for chunk in chunks if chunk.type == parquet_footer.TEXT} - repeating.keys()
    inner, texts = ({name for name in texts if ("." in name) == nested} for nested in (True, False))
    _check_inner(path, sorted(inner & counted), held)
    options: Any = {"read_dictionary": sorted(texts), "page_checksum_verification": True}
    file = pyarrow.parquet.ParquetFile(path, memory_map=True, **options)
    rows = _in_parts(file, FLOOR // (8 * max(repeating.values())), f"{path}", held) if repeating else file.read()
    rows.validate(full=True)
    check_unpacked(rows, f"{path}", held)
    for place, field in enumerate(rows.schema):
        if field.name in texts and pyarrow.types.is_dictionary(field.type):
            rows = rows.set_column(place, field.name, rows.column(place).cast(field.type.value_type))
    return rows


def _check_pages(path: Path, chunks: list[parquet_footer.Chunk], held: int) -> tuple[set[str], dict[str, int]]:
    """Refuse pages that say to hold more than their chunk, or than any file does.

    Returns:
        Columns whose values are counted up in a dictionary; and those whose texts repeat what others begin with, with
        the bytes that one text may have.
    """
    counted: set[str] = set()
    repeating: dict[str, int] = {}
    unpacked = largest = 0
    for chunk in chunks:
        where, values, longest, repeats = f"{path}: column {chunk.name!r}", 0, 1, False
        for page in parquet_footer.pages_of(path, chunk):
            unpacked, longest = unpacked + page.unpacked, max(longest, page.unpacked)
            if page.type == parquet_footer.DICTIONARY:
                counted.add(chunk.name)
                check_growth(where, max(chunk.width, 16) * page.values, held, ADVICE)
            else:
                values += page.values
            repeats |= page.encoding == parquet_footer.DELTA_BYTE_ARRAY
            check_growth(where, unpacked, held, ADVICE)
        largest = max(largest, longest)
        if repeats:
            repeating[chunk.name] = max(longest, repeating.get(chunk.name, 0))
        if values > chunk.values:
            raise ArgumentError(f"{where} says to hold {chunk.values} values, and its pages {values}. It is damaged.")
    check_memory(f"{path}", largest, ADVICE)
    return counted, repeating


def _check_inner(path: Path, names: list[str], held: int) -> None:
    """Refuse texts within lists and records that are far more than the file once each is there as often as it says.

    They are read packed, a group of rows at a time, and dropped: Arrow does not join such columns.
    """
    import pyarrow.parquet

    needed = 0
    file = pyarrow.parquet.ParquetFile(path, memory_map=True, read_dictionary=names)
    for group in range(file.num_row_groups if names else 0):
        rows = file.read_row_group(group, columns=names)
        needed += sum(_unpacked(chunk) for column in rows.columns for chunk in column.chunks)
        check_room(f"{path}", needed, held, ADVICE)


def _in_parts(file: Any, size: int, where: str, held: int) -> "pa.Table":
    """All rows of a Parquet file, so many at a time, counted as they come."""
    import pyarrow

    parts: list[Any] = []
    needed = 0
    for part in file.iter_batches(batch_size=max(size, 1), use_threads=False):
        parts.append(part)
        needed += sum(_unpacked(column) for column in part.columns)
        check_room(where, needed, held, ADVICE)
    return pyarrow.Table.from_batches(parts, file.schema_arrow if not parts else parts[0].schema)


def stream(path: Path) -> "pa.Table":
    """The table of an Arrow stream, as `save_to_disk` writes it, where it lies.

    Raises:
        ArgumentError: it is cut off, goes on after its end, or is compressed.
    """
    import pyarrow

    file = pyarrow.memory_map(str(path))
    # A stream that is cut off between two batches reads as a shorter one; only this mark tells.
    file.seek(max(0, file.size() - len(END_OF_STREAM)))
    if file.read() != END_OF_STREAM:
        raise ArgumentError(f"{path}: does not end as an Arrow stream does. It is cut off; save it again.")
    file.seek(0)
    for message in pyarrow.ipc.MessageReader.open_stream(file):
        if _compressed(message.metadata.to_pybytes()):
            raise ArgumentError(f"{path}: is compressed, as save_to_disk writes no file. Save it again.")
    if file.tell() != file.size():
        raise ArgumentError(f"{path}: goes on after its end, at byte {file.tell()} of {file.size()}. Save it again.")
    file.seek(0)
    rows = pyarrow.ipc.open_stream(file).read_all()
    check_growth(f"{path}", 8 * rows.num_rows, file.size(), "save it again.")  # rows of no bytes
    rows.validate(full=True)  # offsets beyond a damaged file's buffers would crash the interpreter
    check_unpacked(rows, f"{path}", file.size())
    return rows


def _compressed(message: bytes) -> bool:
    """Whether a message of a stream (Arrow's Message.fbs) names a compression of its buffers."""
    root = struct.unpack_from("<I", message)[0]
    header = _field(message, root, 2)
    if header is None or message[_field(message, root, 1) or 0] not in (2, 3):  # a dictionary or a record batch
        return False
    table = header + struct.unpack_from("<I", message, header)[0]
    if message[_field(message, root, 1) or 0] == 2:
        data = _field(message, table, 1)
        if data is None:
            return False
        table = data + struct.unpack_from("<I", message, data)[0]
    return _field(message, table, 3) is not None


def _field(message: bytes, table: int, number: int) -> int | None:
    """Where a field of a flatbuffer's table lies, if it is there."""
    entries = table - struct.unpack_from("<i", message, table)[0]
    size = struct.unpack_from("<H", message, entries)[0]
    if 4 + 2 * number + 2 > size:
        return None
    offset = struct.unpack_from("<H", message, entries + 4 + 2 * number)[0]
    return table + offset if offset else None


def check_unpacked(rows: "pa.Table", where: str, held: int) -> None:
    """Refuse a table whose texts, each made an object of its own, are far more than the file.

    Args:
        rows: a table.
        where: the file, for errors.
        held: its bytes.
    """
    needed = sum(_unpacked(chunk) for column in rows.columns for chunk in column.chunks)
    check_room(where, needed, held, ADVICE)


def _unpacked(array: "pa.Array") -> int:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return 8 * len(array) + _unpacked(array.flatten())
    if pa.types.is_struct(kind):
        return sum(_unpacked(array.field(place)) for place in range(kind.num_fields))
    if pa.types.is_dictionary(kind):
        lengths = _lengths(array.dictionary)
        if lengths is None:
            return array.nbytes + 8 * len(array)
        taken = pc.sum(lengths.take(array.indices)).as_py() or 0  # pyright: ignore[reportAttributeAccessIssue]
        return taken + TEXT * len(array)
    return array.nbytes + (TEXT * len(array) if _lengths(array[:0]) is not None else 0)


def _lengths(array: "pa.Array") -> "pa.Array | None":
    import pyarrow as pa
    import pyarrow.compute as pc

    kinds = (pa.types.is_string, pa.types.is_binary, pa.types.is_large_string, pa.types.is_large_binary)
    if not any(kind(array.type) for kind in kinds):
        return None
    return pc.binary_length(array).cast(pa.int64())  # pyright: ignore[reportAttributeAccessIssue]
