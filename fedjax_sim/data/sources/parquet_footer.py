"""What a Parquet file says to hold, read from its footer, and from the headers of its pages.

The footer's sizes are a stranger's word, and Arrow takes those of each page, of which it makes as many bytes and values
before it looks at the data. Arrow's own records of a footer end the process where a damaged one does not fit together
(its C++ exceptions pass through functions that may not throw); its reader of data does not. All headers are Thrift's
compact protocol.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from fedjax_sim.core.errors import ArgumentError

TEXT = 6
FIXED = 7
WIDTHS = {0: 1, 1: 4, 3: 12, 4: 4, TEXT: 4}
"""Bytes that a value of a type takes in memory, at least: truths, INT32, INT96, FLOAT and texts; else 8."""
DELTA_BYTE_ARRAY = 7
"""The encoding whose texts repeat what the text before begins with: a few bytes can stand for any number."""
DICTIONARY = 2
"""The type of a page whose values others count up; 0 and 3 hold data."""
HEADER = 16 << 20
"""Bytes of a page's header at most, as in Arrow."""


class Chunk(NamedTuple):
    """A column's values in one group of rows.

    Attributes:
        name: the column's path, with dots.
        type: physical, by number.
        values: how many.
        unpacked: bytes of its pages, unpacked.
        packed: bytes of its pages.
        start: of its first page in the file.
        length: bytes of a value of the type FIXED.
    """

    name: str
    type: int
    values: int
    unpacked: int
    packed: int
    start: int
    length: int

    @property
    def width(self) -> int:
        """Bytes of a value in memory, at least."""
        return max(self.length, 4) if self.type == FIXED else WIDTHS.get(self.type, 8)


class Page(NamedTuple):
    """A page: its type and encoding by number, how many values, and bytes unpacked."""

    type: int
    encoding: int
    values: int
    unpacked: int


def chunks_of(path: Path) -> list[Chunk]:
    """All columns' chunks that a Parquet file says to hold.

    Raises:
        ArgumentError: it is no Parquet file, or a damaged one.
    """
    with open(path, "rb") as file:
        held = file.seek(0, 2)
        file.seek(max(0, held - 8))
        end = file.read(8)
        length = int.from_bytes(end[:4], "little")
        if end[4:] != b"PAR1" or length + 12 > held:
            raise ArgumentError(
                f"{path}: cannot be read: it does not end as a Parquet file does. It is cut off, damaged or encrypted."
            )
        file.seek(held - 8 - length)
        footer = _Compact(file.read(length))
    try:
        said = footer.struct()
        lengths = [int(element.get(2, 0)) for element in said[2] if not element.get(5)]  # of the leaves of its schema
        return [
            Chunk(b".".join(c[3]).decode(), c[1], c[5], c[6], c[7], min(c[9], c.get(11) or c[9]), length)
            for group in said[4]
            for c, length in zip((column[3] for column in group[1]), lengths, strict=True)
        ]
    except _DAMAGED as error:
        raise ArgumentError(f"{path}: its footer is damaged ({type(error).__name__}: {error}).") from error


def pages_of(path: Path, chunk: Chunk) -> Iterator[Page]:
    """The pages of a chunk, as their headers say, without a look at what they hold.

    Raises:
        ArgumentError: a header that is none, or pages that do not fill the chunk.
    """
    with open(path, "rb") as file:
        at, end, left = chunk.start, chunk.start + chunk.packed, chunk.values
        if not 0 <= at <= end <= file.seek(0, 2):
            raise ArgumentError(f"{path}: column {chunk.name!r} lies beyond its end. It is cut off or damaged.")
        while at < end and left > 0:
            try:
                said, length = _page_header(file, at, min(end - at, HEADER))
                kind, unpacked, packed = said[1], said[2], said[3]
                about = said[{0: 5, DICTIONARY: 7, 3: 8}[kind]] if kind in (0, DICTIONARY, 3) else {1: 0, 2: 0}
                page = Page(kind, about[4 if kind == 3 else 2], about[1], unpacked)
                if packed < 0 or unpacked < 0 or page.values < 0 or at + length + packed > end:
                    raise ValueError(f"a page of {packed} bytes, {unpacked} unpacked, with {page.values} values")
            except _DAMAGED as error:
                words = f"{type(error).__name__}: {error}"
                raise ArgumentError(
                    f"{path}: column {chunk.name!r} has a damaged page at byte {at} ({words})."
                ) from error
            yield page
            at, left = at + length + packed, left - (page.values if kind in (0, 3) else 0)


def _page_header(file: IO[bytes], at: int, most: int) -> tuple[dict[int, "Value"], int]:
    """A page's header, and its length."""
    size = min(1024, most)
    while True:
        file.seek(at)
        header = _Compact(file.read(size))
        try:
            return header.struct(), header.at
        except (IndexError, ValueError, struct.error):
            if size >= most:
                raise
        size = min(16 * size, most)


_DAMAGED = (IndexError, KeyError, TypeError, ValueError, AttributeError, RecursionError, struct.error)


Value = Any
"""Of a field: a truth, a number, bytes, a list, or a structure."""


class _Compact:
    """A reader of Thrift's compact protocol: structs become dicts by their fields' numbers.

    Example:
        >>> _Compact(bytes.fromhex("1504191c15020000")).struct()
        {1: 2, 2: [{1: 1}]}
    """

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def struct(self) -> dict[int, Value]:
        found: dict[int, Value] = {}
        number = 0
        while head := self.byte():
            number = number + (head >> 4) if head >> 4 else self.signed()
            kind = head & 15
            found[number] = kind == 1 if kind in (1, 2) else self.value(kind)
        return found

    def value(self, kind: int) -> Value:
        if kind in (1, 2):  # in a list
            return self.byte() == 1
        if kind == 3:
            return self.byte()
        if kind in (4, 5, 6):
            return self.signed()
        if kind == 7:
            return struct.unpack("<d", self.bytes(8))[0]
        if kind == 8:
            return self.bytes(self.varint())
        if kind in (9, 10):
            head = self.byte()
            count = self.varint() if head >> 4 == 15 else head >> 4
            if count > len(self.data):
                raise ValueError(f"a list of {count} in {len(self.data)} bytes")
            return [self.struct() if head & 15 == 12 else self.value(head & 15) for _ in range(count)]
        if kind == 12:
            return self.struct()
        raise ValueError(f"a field of kind {kind}")

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def bytes(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise ValueError(f"{count} bytes, of which {len(self.data) - self.at} are there")
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise ValueError("a number of more than ten bytes")

    def signed(self) -> int:
        value = self.varint()
        return value >> 1 ^ -(value & 1)
