"""GGUF files: what they say of a model, and where in them its tensors are. Nothing that a file says is trusted.

A file is a header, named values, a table of tensors, and their bytes (the format's description is in ggml's
docs/gguf.md, versions 2 and 3). It is mapped, not read: a tensor's bytes are touched when they are asked for.
"""

import math
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.models.pretrained.blocks import FORMATS, dequantised

STRING, ARRAY = 8, 9
NUMBERS = {
    **dict(enumerate(("<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?"))),
    **{10: "<u8", 11: "<i8", 12: "<f8"},
}
"""Types of values that are numbers, by their number in files."""
DEEPEST = 4
"""Axes of a tensor at most, as in ggml."""


class Entry(NamedTuple):
    """A tensor of a file: shape with the innermost axis last, number of its format, first byte."""

    shape: tuple[int, ...]
    kind: int
    start: int


class GGUF:
    """An open file: `values`, name to number, text or list, and `entries`, name to `Entry`.

    Args:
        path: of the file.

    Raises:
        ArgumentError: no such file; one of another format, truncated, or that says what cannot be.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        try:
            with open(self.path, "rb") as file:
                self._bytes = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise ArgumentError(f"path={str(path)!r}: cannot be read ({error}).") from error
        self._at = 0
        self.values: dict[str, Any] = {}
        self.entries: dict[str, Entry] = {}
        self._read()

    def tensor(self, name: str) -> np.ndarray:
        """A tensor's numbers as float32, whatever its format."""
        entry = self.entries[name]
        held = np.frombuffer(self._bytes, np.uint8, _size(entry), entry.start)
        return dequantised(held, FORMATS[entry.kind]).reshape(entry.shape)

    def _read(self) -> None:
        if bytes(self._bytes[:4]) != b"GGUF":
            raise self._wrong(f"begins with {bytes(self._bytes[:4])!r}, not b'GGUF': it is no GGUF file")
        self._at = 4
        version = self._number("<u4")
        if version not in (2, 3):
            raise self._wrong(f"is of version {version}; 2 and 3 are read (a large number is another byte order)")
        tensors, values = self._number("<u8"), self._number("<u8")
        for _ in range(values):
            name = self._text()
            self._put(self.values, name, self._value(self._number("<u4")))
        infos = [(self._text(), self._info()) for _ in range(tensors)]
        align = self.values.get("general.alignment", 32)
        if not isinstance(align, int) or not 8 <= align <= 1 << 16 or align & (align - 1):
            raise self._wrong(f"has general.alignment={align!r}, which must be a power of two, 8 to 65536")
        first = -(-self._at // align) * align
        for name, (shape, kind, offset) in infos:
            entry = Entry(shape, kind, first + offset)
            if entry.start + _size(entry) > len(self._bytes):
                raise self._wrong(
                    f"is truncated: tensor {name!r} ends at byte {entry.start + _size(entry)} of {len(self._bytes)}"
                )
            self._put(self.entries, name, entry)

    def _info(self) -> tuple[tuple[int, ...], int, int]:
        """(shape, format, offset) of the next tensor of the table."""
        axes = self._number("<u4")
        if axes > DEEPEST:
            raise self._wrong(f"has a tensor of {axes} axes")
        shape = tuple(self._number("<u8") for _ in range(axes))[::-1]
        kind, offset = self._number("<u4"), self._number("<u8")
        if kind not in FORMATS:
            known = ", ".join(form.name for form in FORMATS.values())
            raise self._wrong(f"has a tensor of format {kind}, and {known} are read. Convert it to Q8_0 or F16")
        if not shape or shape[-1] % FORMATS[kind].block:
            raise self._wrong(f"has a tensor of shape {shape} in blocks of {FORMATS[kind].block}")
        return shape, kind, offset

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._text()
        if kind != ARRAY:
            return self._number(self._type(kind))
        kind, count = self._number("<u4"), self._number("<u8")
        if kind == STRING:
            self._room(8 * count)
            return [self._text() for _ in range(count)]
        held = np.dtype(self._type(kind))
        return np.frombuffer(self._take(held.itemsize * count), held).tolist()

    def _type(self, kind: int) -> str:
        if kind not in NUMBERS:
            raise self._wrong(f"has a value of type {kind}, which there is not")
        return NUMBERS[kind]

    def _number(self, kind: str) -> Any:
        held = np.dtype(kind)
        return np.frombuffer(self._take(held.itemsize), held)[0].item()

    def _text(self) -> str:
        (length,) = struct.unpack("<Q", self._take(8))
        try:
            return bytes(self._take(length)).decode()
        except UnicodeDecodeError as error:
            raise self._wrong(f"has a text that is no UTF-8 ({error})") from error

    def _take(self, count: int) -> memoryview:
        self._room(count)
        self._at += count
        return self._bytes[self._at - count : self._at]

    def _room(self, count: int) -> None:
        if count > len(self._bytes) - self._at:
            raise self._wrong(f"is truncated: {count} bytes are to follow byte {self._at} of {len(self._bytes)}")

    def _put(self, into: dict[str, Any], name: str, value: Any) -> None:
        if name in into:
            raise self._wrong(f"names {name!r} twice")
        into[name] = value

    def _wrong(self, what: str) -> ArgumentError:
        return ArgumentError(f"path={str(self.path)!r}: {what}.")


def _size(entry: Entry) -> int:
    """Bytes of a tensor."""
    form = FORMATS[entry.kind]
    return math.prod(entry.shape) // form.block * form.bytes
