"""What an array record says to hold, read from its chunks' headers (Riegeli's records) before any is unpacked.

The library makes as many bytes as a chunk's header says, and holds what it unpacks of a simple chunk against that. What
it does not bound, and nothing outside of it can: the parts of a transposed chunk, which TensorFlow Datasets does not
write, and a chunk that only the file's index knows, hidden in another's data.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from fedjax_sim.data.sources.limits import check_growth, check_memory

BLOCK, BLOCK_HEADER, CHUNK_HEADER = 1 << 16, 24, 40
"""Bytes of a block, of the header at its beginning, which interrupts what lies there, and of a chunk's header."""
KINDS = b"smprt"
"""Of a chunk: the signature, metadata, padding, records, and records turned on their side."""
RECORD = 64
"""Bytes that a record takes besides its own, about."""
ADVICE = "prepare the set again, without compression."


class Chunk(NamedTuple):
    """A chunk: its kind, how many records, and their bytes."""

    kind: bytes
    records: int
    decoded: int


def check_chunks(path: Path, held: int) -> None:
    """Refuse a file whose chunks say to hold far more than its set's files do, or than the memory.

    Args:
        path: the file.
        held: bytes of all files of the set.
    """
    needed = largest = 0
    for chunk in chunks_of(path):
        needed, largest = needed + chunk.decoded + RECORD * chunk.records, max(largest, chunk.decoded)
        check_growth(f"{path}", needed, held, ADVICE)
    check_memory(f"{path}", largest, ADVICE)


def chunks_of(path: Path) -> Iterator[Chunk]:
    """The chunks of a file, one after another."""
    with open(path, "rb") as file:
        end, at = file.seek(0, 2), 0
        while end - at >= CHUNK_HEADER:
            header = _header(file, at)
            data, records, decoded = (int.from_bytes(header[a:b], "little") for a, b in ((8, 16), (25, 32), (32, 40)))
            if header[24] not in KINDS or data > end - at:
                return  # what follows the last chunk, or a damaged one, which the library finds
            yield Chunk(header[24:25], records, decoded)
            at = _end(at, data, records)


def _header(file: IO[bytes], at: int) -> bytes:
    """A chunk's header, without the header of a block that interrupts it."""
    file.seek(at)
    found = file.read(CHUNK_HEADER + BLOCK_HEADER)
    block = -at % BLOCK
    return (found[:block] + found[block + BLOCK_HEADER :] if block < CHUNK_HEADER else found)[:CHUNK_HEADER]


def _end(at: int, data: int, records: int) -> int:
    """Where a chunk ends: its bytes and blocks' headers among them, or as many bytes as it has records.

    Example:
        >>> _end(0, 0, 0), _end(64, 100, 1), _end(64, 65_536, 1)
        (64, 204, 65664)
    """
    usable, size = BLOCK - BLOCK_HEADER, CHUNK_HEADER + data
    blocks = (size + (at + usable - 1) % BLOCK) // usable
    least = at + records
    left = BLOCK - 1 - (least + BLOCK - 1) % BLOCK
    return max(at + size + blocks * BLOCK_HEADER, least + max(left - (usable - 1), 0))
