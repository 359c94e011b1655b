"""What a Parquet file says to hold, read from its footer.

Arrow's own records of a footer end the process where a damaged one does not fit together (its C++ exceptions pass
through functions that may not throw); its reader of data does not. The footer is Thrift's compact protocol.
"""

import struct
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_sim.core.errors import ArgumentError

TEXT = 6
WIDTHS = {0: 1, 1: 4, 4: 4, TEXT: 4, 7: 4}
"""Bytes that a value of a type takes in memory, at least: truths, INT32, FLOAT, texts and fixed texts; else 8."""


class Chunk(NamedTuple):
    """A column's values in one group of rows: name, type, number of values, bytes unpacked."""

    name: str
    type: int
    values: int
    unpacked: int

    @property
    def width(self) -> int:
        """Bytes of a value in memory, at least."""
        return WIDTHS.get(self.type, 8)


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
        groups = footer.struct()[4]
        columns = [column[3] for group in groups for column in group[1]]
        return [Chunk(b".".join(c[3]).decode(), c[1], c[5], c[6]) for c in columns]
    except (IndexError, KeyError, TypeError, ValueError, RecursionError, struct.error) as error:
        raise ArgumentError(f"{path}: its footer is damaged ({type(error).__name__}: {error}).") from error


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
