"""tf.train.Example without TensorFlow: a serialised example's features, read by the wire format's own rules.

Example {1: Features {1: map<string, Feature>}}; Feature {1: BytesList | 2: FloatList | 3: Int64List}; each list's
values are its field 1, packed or one by one. See developers.google.com/protocol-buffers/docs/encoding.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from fedjax_sim.core.errors import ArgumentError

Feature = list[bytes] | np.ndarray
"""A list of `bytes`, or an array [n] float32 or int64."""


def decode(blob: bytes) -> dict[str, Feature]:
    """The features of one serialised tf.train.Example.

    Raises:
        ArgumentError: the bytes are no such message.

    Example:
        >>> decode(bytes.fromhex("0a0d0a0b0a01791206 1a040a020703".replace(" ", "")))
        {'y': array([7, 3])}
    """
    try:
        features = _plain(blob)
        return _any(blob) if features is None else features
    except (ValueError, IndexError) as error:
        raise ArgumentError(f"{len(blob)} bytes are no tf.train.Example ({error}).") from error


def aligned(blobs: list[bytes]) -> dict[str, np.ndarray] | None:
    """The features of many examples at once, [n, values] each, where all are laid out as the first, byte for byte.

    Pictures and other numbers of one length are: then only the values differ. They are cut out of a table of bytes.

    Args:
        blobs: one serialised example each, at least one.

    Returns:
        What `decode` gives for each of them, as columns; None where the layouts differ, or hold texts.

    Example:
        >>> aligned([bytes.fromhex("0a0d0a0b0a017912061a040a020703"), bytes.fromhex("0a0d0a0b0a017912061a040a020905")])
        {'y': array([[7, 3],
               [9, 5]])}
    """
    size = len(blobs[0])
    layout = _layout(blobs[0])
    if not layout or any(len(blob) != size for blob in blobs):
        return None
    table = np.frombuffer(b"".join(blobs), np.uint8).reshape(len(blobs), size)
    frame = np.ones(size, bool)
    for _, start, end in layout.values():
        frame[start:end] = False
    if not np.array_equal(table[:, frame], np.broadcast_to(table[0, frame], (len(blobs), int(frame.sum())))):
        return None
    columns = {}
    for name, (kind, start, end) in layout.items():
        part = table[:, start:end]
        if kind == 0x12:
            columns[name] = np.ascontiguousarray(part).view("<f4")
        elif (part < 0x80).all():  # numbers of a byte each
            columns[name] = part.astype(np.int64)
        else:
            return None
    return columns


def _layout(blob: bytes) -> dict[str, tuple[int, int, int]] | None:
    """Feature to (kind, start and end of its packed values), where all are numbers in one piece."""
    found: dict[str, tuple[int, int, int]] = {}
    try:
        for features in _messages(blob, 0, len(blob), 1):
            for start, end in _messages(blob, *features, 1):
                tag, a, b, position = _field(blob, start, end)
                name = blob[a:b].decode()
                pieces = [tag]
                for _ in range(3):  # the feature, its list, its values: each to the end of what holds it
                    tag, a, b, stop = _field(blob, position, end)
                    if stop != end:
                        return None
                    pieces.append(tag)
                    position, end = a, b
                if pieces not in ([0x0A, 0x12, 0x12, 0x0A], [0x0A, 0x12, 0x1A, 0x0A]) or name in found:
                    return None
                if pieces[2] == 0x12 and (b - a) % 4:
                    return None
                found[name] = (pieces[2], a, b)
    except (ValueError, IndexError):
        return None
    return found


def _plain(blob: bytes) -> dict[str, Feature] | None:
    """The way all known writers lay an example out, in a third of the time; None for any other way."""
    features: dict[str, Feature] = {}
    size = len(blob)
    if size < 2 or blob[0] != 0x0A:
        return None
    length, p = (blob[1], 2) if blob[1] < 0x80 else _varint(blob, 1)
    if p + length != size:
        return None
    while p < size:  # an entry: 0A, its length, 0A, length, name, 12, length, kind, length, 0A, length, values
        if blob[p] != 0x0A:
            return None
        length, p = (blob[p + 1], p + 2) if blob[p + 1] < 0x80 else _varint(blob, p + 1)
        end = p + length
        length = blob[p + 1]
        if end > size or blob[p] != 0x0A or length >= 0x80:
            return None
        name = blob[p + 2 : p + 2 + length]
        p += 2 + length
        if p + 2 >= end or blob[p] != 0x12:
            return None
        length, p = (blob[p + 1], p + 2) if blob[p + 1] < 0x80 else _varint(blob, p + 1)
        if length < 4 or p + length != end:
            return None
        kind = blob[p]
        length, p = (blob[p + 1], p + 2) if blob[p + 1] < 0x80 else _varint(blob, p + 1)
        if length < 2 or p + length != end or blob[p] != 0x0A:
            return None
        length, p = (blob[p + 1], p + 2) if blob[p + 1] < 0x80 else _varint(blob, p + 1)
        if p + length != end:
            return None
        if kind == 0x0A:
            value = [blob[p:end]]
        elif kind == 0x12 and length % 4 == 0:
            value = np.frombuffer(blob, "<f4", length // 4, p)
        elif kind == 0x1A:
            value = _varints(blob, p, end)
        else:
            return None
        features[name.decode()] = value
        p = end
    return features


def _any(blob: bytes) -> dict[str, Feature]:
    features: dict[str, Feature] = {}
    for start, end in _messages(blob, 0, len(blob), 1):
        for entry_start, entry_end in _messages(blob, start, end, 1):
            name, value = b"", None
            position = entry_start
            while position < entry_end:
                tag, a, b, position = _field(blob, position, entry_end)
                if tag == 0x0A:
                    name = blob[a:b]
                elif tag == 0x12:
                    value = _feature(blob, a, b)
            features[name.decode()] = [] if value is None else value
    return features


def _feature(blob: bytes, start: int, end: int) -> Feature:
    result: Feature = []
    while start < end:
        tag, a, b, start = _field(blob, start, end)
        if tag == 0x0A:
            result = [blob[p:q] for p, q in _messages(blob, a, b, 1)]
        elif tag == 0x12:
            result = _floats(blob, a, b)
        elif tag == 0x1A:
            result = _integers(blob, a, b)
    return result


def _floats(blob: bytes, start: int, end: int) -> np.ndarray:
    parts = []
    while start < end:
        tag, a, b, start = _field(blob, start, end)
        if tag in (0x0A, 0x0D):  # packed; or one value of 32 bits
            parts.append(np.frombuffer(blob, "<f4", (b - a) // 4, a))
            if (b - a) % 4:
                raise ValueError("floats of a length that four does not divide")
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.float32), *parts])


def _integers(blob: bytes, start: int, end: int) -> np.ndarray:
    parts = []
    while start < end:
        tag, a, b, start = _field(blob, start, end)
        if tag in (0x08, 0x0A):  # one value; or packed
            parts.append(_varints(blob, a, b))
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.int64), *parts])


def _varints(blob: bytes, start: int, end: int) -> np.ndarray:
    """All varints of a piece: seven bits a byte, the lowest first, the eighth bit set in all bytes but the last."""
    if end - start == 1 and blob[start] < 0x80:  # a label, most of the time
        return np.array([blob[start]], np.int64)
    data = np.frombuffer(blob, np.uint8, end - start, start)
    last = data < 0x80
    if last.all():
        return data.astype(np.int64)
    if not last[-1]:
        raise ValueError("a number is cut off")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    longest = int((ends - starts).max()) + 1
    if longest > 10:
        raise ValueError("a number of more than ten bytes")
    values = np.zeros(len(ends), np.uint64)
    for i in range(longest):
        has = starts + i <= ends
        bits = (data[np.minimum(starts + i, ends)] & 0x7F).astype(np.uint64) << np.uint64(7 * i)
        values |= np.where(has, bits, np.uint64(0))
    return values.astype(np.int64)


def _messages(blob: bytes, start: int, end: int, field: int) -> list[tuple[int, int]]:
    """The pieces of a field of length-delimited values."""
    wanted, pieces = field << 3 | 2, []
    while start < end:
        tag, a, b, start = _field(blob, start, end)
        if tag == wanted:
            pieces.append((a, b))
    return pieces


def _field(blob: bytes, position: int, end: int) -> tuple[int, int, int, int]:
    """(tag, start and end of the value, start of the next field)."""
    tag, position = _varint(blob, position)
    kind = tag & 7
    if kind == 2:
        length, start = _varint(blob, position)
        stop = start + length
    elif kind == 0:
        start = position
        _, stop = _varint(blob, position)
    elif kind == 5:
        start, stop = position, position + 4
    elif kind == 1:
        start, stop = position, position + 8
    else:
        raise ValueError(f"wire type {kind} at byte {position}")
    if stop > end:
        raise ValueError(f"a field at byte {start} runs past the end")
    return tag, start, stop, stop


def _varint(blob: bytes, position: int) -> tuple[int, int]:
    byte = blob[position]
    if byte < 0x80:
        return byte, position + 1
    value, shift = byte & 0x7F, 7
    while True:
        position += 1
        byte = blob[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than ten bytes")


def stack(name: str, values: list[Any], shape: tuple[int, ...] | None, dtype: npt.DTypeLike | None) -> np.ndarray:
    """One feature of many examples as a column [n, ...], of objects where it holds `bytes`.

    Args:
        name: the feature's, for errors.
        values: one `Feature` an example, of one example at least.
        shape: of one example; None takes the number of values as it is, and () where that is one.
        dtype: to cast to, exactly; None keeps float32 and int64.
    """
    kinds = set(map(type, values))
    if kinds == {list}:
        if set(map(len, values)) != {1} or shape not in (None, ()):
            raise ArgumentError(f"{name!r} has not one byte string in each example, which is what can be kept.")
        column = np.empty(len(values), object)
        column[:] = [value[0] for value in values]
        return column
    if len(kinds) > 1 or len({value.dtype for value in values}) > 1:
        raise ArgumentError(f"{name!r} is of different kinds in different examples.")
    lengths = set(map(len, values))
    if len(lengths) > 1:
        raise ArgumentError(f"{name!r} has {min(lengths)} values in one example and {max(lengths)} in another.")
    return shaped(name, np.concatenate(values).reshape(len(values), lengths.pop()), shape, dtype)


def shaped(name: str, column: np.ndarray, shape: tuple[int, ...] | None, dtype: npt.DTypeLike | None) -> np.ndarray:
    """A column [n, values] of numbers, in the shape and dtype that `stack` gives it.

    Example:
        >>> shaped("y", np.array([[7], [3]]), None, np.int32)
        array([7, 3], dtype=int32)
    """
    length = column.shape[1]
    if shape is None:
        shape = () if length == 1 else (length,)
    if length != int(np.prod(shape)):
        raise ArgumentError(f"{name!r} has {length} values an example, which do not make the shape {shape}.")
    column = column.reshape((len(column), *shape))
    if dtype is None or column.dtype == dtype:
        return column
    cast = column.astype(dtype)
    if not np.array_equal(cast, column):
        raise ArgumentError(f"{name!r} does not fit into {np.dtype(dtype)}: from {column.min()} to {column.max()}.")
    return cast
