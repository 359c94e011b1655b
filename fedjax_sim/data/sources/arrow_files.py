"""Parquet files and Arrow streams from strangers: no more rows and bytes than such files hold, read by Arrow."""

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.sources import parquet_footer
from fedjax_sim.data.sources.limits import check_growth, check_memory, check_room

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
    texts = {chunk.name for chunk in chunks if chunk.type == parquet_footer.TEXT and "." not in chunk.name}
    options: Any = {"read_dictionary": sorted(texts), "page_checksum_verification": True}
    rows = pyarrow.parquet.ParquetFile(path, memory_map=True, **options).read()
    rows.validate(full=True)
    check_unpacked(rows, f"{path}", held)
    for place, field in enumerate(rows.schema):
        if field.name in texts and pyarrow.types.is_dictionary(field.type):
            rows = rows.set_column(place, field.name, rows.column(place).cast(field.type.value_type))
    return rows


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
