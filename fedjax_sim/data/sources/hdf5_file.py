"""HDF5 files from strangers: arrays that lie in the file itself, as many bytes as they say to be, and no more."""

import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.sources.limits import check_room, growth

if TYPE_CHECKING:
    import h5py

FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
"""What a chunk may have gone through; others take the lengths of what they unpack from the file."""
DEFLATE = 1032
"""Deflate cannot shrink anything by more than that."""
ADVICE = "write it without compression."


def groups_of(file: "h5py.File", path: Path) -> "h5py.Group":
    """The group `examples` of an open file, whose members are groups and arrays of this file alone.

    Raises:
        ArgumentError: there is none, or one that lies elsewhere.
    """
    import h5py

    if "examples" not in file:
        raise ArgumentError(f"{path}: has no group 'examples', but {sorted(file)}; is it TFF's?")
    _check_link(file, "examples", path)
    examples = file["examples"]
    if not isinstance(examples, h5py.Group):
        raise ArgumentError(f"{path}: has no group 'examples', but {sorted(file)}; is it TFF's?")
    return examples


def columns_of(examples: "h5py.Group", client_id: str, path: Path, held: int) -> dict[str, np.ndarray]:
    """A client's arrays, in memory; byte strings as objects.

    Args:
        examples: the group of clients.
        client_id: the client's name in it.
        path: the file, for errors.
        held: its bytes.

    Raises:
        ArgumentError: no group of arrays; arrays that lie in other files, that say to hold far more than the file does,
            or that are packed in a way that is not read.
    """
    import h5py

    _check_link(examples, client_id, path)
    group = examples[client_id]
    if not isinstance(group, h5py.Group):
        raise ArgumentError(f"{path}: client {client_id!r} is no group of arrays.")
    columns, needed = {}, 0
    for name in sorted(group):
        _check_link(group, name, path)
        data = group[name]
        if not isinstance(data, h5py.Dataset) or not data.ndim:
            raise ArgumentError(f"{path}: client {client_id!r} is no group of arrays.")
        where = f"{path}: client {client_id!r}: {name!r}"
        _check_own(data, where)
        needed += math.prod(data.shape) * max(data.dtype.itemsize, 1)
        check_room(where, max(needed, _chunk(data)), held, ADVICE)
        _check_chunks(data, where, held)
        columns[name] = _read(data, where, held)
    return columns


def _check_link(group: Any, name: str, path: Path) -> None:
    import h5py

    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise ArgumentError(
            f"{path}: {group.name.rstrip('/')}/{name} is a link to another place ({type(link).__name__}), which can be "
            "in another file. Copy what it names into the file (h5py's copy)."
        )


def _check_own(data: "h5py.Dataset", where: str) -> None:
    made = data.id.get_create_plist()
    if made.get_external_count() or data.is_virtual:
        raise ArgumentError(
            f"{where}: takes its values from other files, which the file names. They are not read: copy them into it."
        )
    found = [made.get_filter(i)[0] for i in range(made.get_nfilters())]
    if len(set(found)) != len(found) or not set(found) <= set(FILTERS):
        raise ArgumentError(
            f"{where}: went through the filters {found}; {sorted(FILTERS.values())}, once each, are read. Write it "
            "anew (h5repack -f NONE)."
        )


def _chunk(data: "h5py.Dataset") -> int:
    """Bytes of a chunk, which is made whole however little of it is wanted."""
    return math.prod(data.chunks) * data.dtype.itemsize if data.chunks else 0


def _check_chunks(data: "h5py.Dataset", where: str, held: int) -> None:
    """Refuse a chunk that unpacks to more than a chunk; small ones cannot."""
    stored = data.id.get_storage_size()
    if stored > held:
        raise ArgumentError(f"{where}: {stored} bytes of a file of {held}. It is damaged.")
    if data.compression != "gzip" or stored * DEFLATE <= growth(0):
        return
    large: list[h5py.h5d.StoreInfo] = []
    data.id.chunk_iter(lambda info: large.append(info) if info.size * DEFLATE > growth(0) else None)
    for info in large:
        _, packed = data.id.read_direct_chunk(info.chunk_offset)
        unpacker = zlib.decompressobj()
        unpacker.decompress(packed, _chunk(data) + 8)  # fletcher32 adds four bytes
        if unpacker.unconsumed_tail:
            raise ArgumentError(f"{where}: a chunk unpacks to more than a chunk. It is damaged.")


def _check_places(data: "h5py.Dataset", where: str, held: int) -> None:
    """Refuse texts that lie in no heap of the file, or are longer than it: as many bytes are made as these say.

    A text's place is its length, its heap's address and its number there. Of compressed ones nothing is known before.
    """
    import h5py

    made, base = data.id.get_create_plist(), data.file.userblock_size
    address, _ = data.file.id.get_create_plist().get_sizes()
    if made.get_nfilters() or made.get_layout() == h5py.h5d.COMPACT or address not in (4, 8):
        return
    place = np.dtype([("length", "<u4"), ("heap", f"<u{address}"), ("number", "<u4")])
    parts = [(data.id.get_offset(), math.prod(data.shape) * place.itemsize)]
    if data.chunks:
        parts.clear()
        data.id.chunk_iter(lambda info: parts.append((info.byte_offset, info.size)))
    with open(data.file.filename, "rb") as file:
        for at, count in parts:
            if at is None:  # nothing was written
                continue
            file.seek(at)
            places = np.frombuffer(file.read(count), place)
            longest = int(places["length"].max(initial=0))
            if longest > held:
                raise ArgumentError(f"{where}: has a text of {longest} bytes in a file of {held}. It is damaged.")
            for heap in np.unique(places["heap"][places["heap"] > 0]).tolist():
                file.seek(min(base + heap, held))
                head = file.read(16)
                if head[:4] != b"GCOL" or base + heap + int.from_bytes(head[8:], "little") > held:
                    raise ArgumentError(f"{where}: has a text at byte {heap}, where there is none. It is damaged.")


def _read(data: "h5py.Dataset", where: str, held: int) -> np.ndarray:
    """All of it; texts of any length some at a time, as each may be the same long one."""
    if not data.dtype.hasobject:
        values = data[()]
        return values.astype(object) if values.dtype.kind == "S" else values
    import h5py

    if h5py.check_string_dtype(data.dtype) is None or data.ndim != 1:
        raise ArgumentError(f"{where}: holds {data.dtype} of shape {data.shape}; numbers and texts are read.")
    _check_places(data, where, held)
    out, made, step = np.empty(len(data), object), 0, max(1, min(growth(held) // max(held, 1), 1000))
    for start in range(0, len(data), step):
        part = data[start : start + step]
        made += sum(map(len, part))
        check_room(where, made, held, ADVICE)
        out[start : start + step] = part
    return out
