"""Pickled tables and arrays from strangers: only what such files need, by exact name, each made here.

No function of NumPy's or pandas' is called as a pickle asks for it: they believe what they are told of lengths and
types. The names that pickles of arrays and tables hold stand for functions of this module and of `pickled_tables`,
which make the same from values that were looked at.
"""

import gzip
import io
import lzma
import math
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.fetch.pickled_tables import NAMES, Part, Refused, Said, unfold
from fedjax_sim.data.sources.limits import check_room, growth, memory

OPENERS: dict[str | None, Callable[..., IO[Any]]] = {None: open, "gzip": gzip.open, "xz": lzma.open}
OBJECT = 64
"""Bytes of a Python object, about."""

Made = Callable[..., object] | None
"""What a name in a pickle stands for."""
Load = Callable[[Any], None]
"""What an unpickler does at an operation."""


def unpickle(path: str | Path, *, compression: str | None = None, encoding: str = "ASCII") -> Said:
    """The NumPy arrays or the pandas table in a pickle, or in an .npy file of objects.

    A pickle is a program. This one may ask for the arrays and tables that are listed in this module and in
    `pickled_tables`, which are made here, and for nothing else. A dtype's state may only repeat what it is: NumPy would
    take numbers for addresses if they were called objects.

    Args:
        path: the file; one that begins as .npy files do is read as such.
        compression: None, "gzip" or "xz".
        encoding: of strings that Python 2 pickled: "ASCII", "latin1" or "bytes".

    Returns:
        What was pickled; of an .npy file of one object, that object.

    Raises:
        ArgumentError: no such file, one that is damaged, that becomes far more than it is, or that asks for anything
            else, which is named; pandas is missing.

    Example:
        >>> import tempfile, pathlib, os, pickle, fedjax_sim as fs
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "bad.pickle"
        ...     _ = path.write_bytes(pickle.dumps(os.getcwd))
        ...     try:
        ...         unpickle(path)
        ...     except fs.FedSimError as error:
        ...         print(str(error).split("bad.pickle: ")[1])
        asks for 'posix.getcwd', which no array and no table needs. It is refused, and nothing of it was run.
    """
    path = Path(path).expanduser()
    if compression not in OPENERS:
        raise ArgumentError(f"compression={compression!r}: must be one of {list(OPENERS)}.")
    try:
        held = path.stat().st_size
        most = min(growth(held), memory())
        with OPENERS[compression](path, "rb") as file:
            content = io.BytesIO(file.read(most + 1))
    except (OSError, EOFError, MemoryError, zlib.error, lzma.LZMAError) as error:
        raise ArgumentError(f"{path}: cannot be read ({type(error).__name__}: {error}).") from error
    size = len(content.getbuffer())
    check_room(f"{path}", size, held, "write it without compression.")
    try:
        shape = _npy_shape(content) if content.getbuffer()[:6] == b"\x93NUMPY" else None
        found = unfold(_Unpickler(content, size, most - size, encoding).load())
        if shape is not None and (not isinstance(found, np.ndarray) or found.shape != shape):
            raise ValueError(f"its header says {shape}, and it holds {getattr(found, 'shape', type(found))}")
        return found
    except Refused as error:
        raise ArgumentError(f"{path}: {error} It is refused, and nothing of it was run.") from error
    except ImportError as error:
        raise ArgumentError(f"{path}: needs pandas ({error}): pip install 'fedjax-sim[pandas]'.") from error
    except Exception as error:  # a damaged pickle can call any listed name with anything
        raise ArgumentError(f"{path}: is no pickle, or a damaged one ({type(error).__name__}: {error}).") from error


class _Array:
    """The class of arrays, where a pickle names it; nothing is made of it."""


def _latin1(text: object, encoding: object) -> bytes:
    """`_codecs.encode` as Python 2's protocols call it for bytes; other codecs import modules and inflate data."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused(f"asks for the codec {encoding!r}, which no array and no table needs.")
    return text.encode("latin1")


def _dtype(kind: object, align: object = False, copy: object = True) -> np.dtype:
    """`numpy.dtype` as pickles of plain arrays call it, with a dtype's short name; a new object each time."""
    made = np.dtype(kind) if isinstance(kind, str) else None
    if made is None or made.kind not in "biufcSUO" or made.subdtype is not None or align:
        raise Refused(f"asks for the dtype {kind!r}, which no plain array and no table needs.")
    return np.dtype(made.str, False, True)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _check_dtype(target: np.dtype, state: Said) -> None:
    """Its state may name the order of its bytes and repeat what it is; NumPy believes whatever else it says."""
    own = (None, None, None, target.itemsize, target.alignment, target.flags)
    same = isinstance(state, tuple) and len(state) == 8 and state[0] in (3, 4)
    if not same or not all(
        said == mine or (said == -1 and i in (3, 4)) for i, (said, mine) in enumerate(zip(state[2:], own, strict=True))
    ):
        raise Refused(f"says of the dtype {target} what it is not, {state!r:.80}.")


def _count(shape: object) -> int:
    """How many entries an array of that shape has."""
    if not isinstance(shape, tuple) or not all(type(length) is int and 0 <= length < 1 << 48 for length in shape):
        raise Refused(f"says of an array the shape {shape!r:.80}.")
    return math.prod(shape)


_Python: Any = getattr(pickle, "_Unpickler")  # noqa: B009 # the one in Python: the other lets nobody see BUILD


class _Unpickler(_Python):
    """Python's own reader of pickles, with our functions for the names, and a count of the bytes that it makes."""

    dispatch: ClassVar[dict[int, Load]] = dict(_Python.dispatch)

    def __init__(self, content: io.BytesIO, size: int, left: int, encoding: str):
        super().__init__(content, encoding=encoding)
        self.content, self.size, self.left = content, size, left
        self.blank: dict[int, np.ndarray] = {}
        own: dict[tuple[str, str], Made] = {
            ("_codecs", "encode"): self._spending(_latin1),
            ("builtins", "bytearray"): self._spending(_bytearray),
            ("builtins", "bytes"): lambda: b"",  # as Python 2's protocols write what is empty
            ("builtins", "slice"): self._slice,
            ("numpy", "dtype"): self._spending(_dtype),
            ("numpy", "ndarray"): _Array,
            ("numpy._core.multiarray", "_reconstruct"): self._reconstruct,
            ("numpy._core.numeric", "_frombuffer"): self._frombuffer,
        }
        self.names = own | {name: self._spending(made) for name, made in NAMES.items()}

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise Refused(f"its {self.size} bytes make far more than data do.")

    def _spending(self, function: Made) -> Made:
        """The function, which may copy what it is given; a class or a value as it is."""
        if isinstance(function, type) or not callable(function):
            return function

        def call(*arguments: object) -> object:
            self.spend(OBJECT + sum(_weight(argument) for argument in arguments))
            made = function(*arguments)
            self.spend(_weight(made))
            return made

        return call

    def find_class(self, module: str, name: str) -> Made:
        home = module.replace("numpy.core.", "numpy._core.", 1).replace("__builtin__", "builtins", 1)
        if (home, name) not in self.names:
            raise Refused(f"asks for {f'{module}.{name}'!r}, which no array and no table needs.")
        return self.names[home, name]

    def _slice(self, start: Said, stop: Said, step: Said) -> slice:
        if not all(type(bound) is int and 0 <= bound <= self.size for bound in (start, stop, step)):
            raise Refused(f"asks for the rows {start!r:.20}:{stop!r:.20}:{step!r:.20}.")
        return slice(start, stop, step)

    def _reconstruct(self, kind: object, shape: object, typecode: object) -> np.ndarray:
        if kind is not _Array or shape != (0,):
            raise Refused(f"asks for an array of shape {shape!r:.80} of nothing.")
        self.spend(2 * OBJECT)
        made = np.empty(0, np.uint8)
        self.blank[id(made)] = made
        return made

    def _frombuffer(self, buffer: object, dtype: object, shape: Said, order: object, axes: Said = None) -> np.ndarray:
        if not isinstance(buffer, bytes | bytearray) or not isinstance(dtype, np.dtype) or dtype.hasobject:
            raise Refused(f"asks for an array of {dtype!r:.80} from {type(buffer).__name__}.")
        _count(shape)
        self.spend(2 * OBJECT)
        array = np.frombuffer(buffer, dtype)
        if order == "K" and axes is not None:
            return array.reshape(shape, order="C").transpose(axes)
        return array.reshape(shape, order=order)  # pyright: ignore[reportCallIssue, reportArgumentType]

    def _fill(self, target: np.ndarray, state: object) -> None:
        """An array's state, if its bytes or objects are as many as it says."""
        if self.blank.pop(id(target), None) is not target or not isinstance(state, tuple) or len(state) != 5:
            raise Refused("changes an array that is whole.")
        _, shape, dtype, _, values = state
        if not isinstance(dtype, np.dtype):
            raise Refused(f"asks for an array of {dtype!r:.80}.")
        wanted = _count(shape) * (1 if dtype.hasobject else dtype.itemsize)
        if not isinstance(values, list if dtype.hasobject else bytes | str) or len(values) != wanted:
            raise Refused(f"says of an array the shape {shape!r:.80}, for which its values are too many or too few.")
        if not dtype.hasobject and not dtype.itemsize and _count(shape) > self.size:
            raise Refused(f"says of an array of nothing the shape {shape!r:.80}.")
        self.spend(wanted * (8 if dtype.hasobject else 1))
        target.__setstate__(state)  # pyright: ignore[reportArgumentType]

    def load_build(self) -> None:
        target, state = self.stack[-2:]
        if isinstance(target, Part):
            self.spend(_weight(state))
            target.build(self.stack.pop())
            self.spend(target.weight)
        elif isinstance(target, np.ndarray):
            self._fill(target, self.stack.pop())
        elif isinstance(target, np.dtype):
            _check_dtype(target, state)
            super().load_build()
        else:
            raise Refused(f"changes {target!r:.80} itself.")

    def load_bytearray8(self) -> None:
        count = int.from_bytes(self.read(8), "little")
        if count > self.size:
            raise pickle.UnpicklingError(f"{count} bytes in a file of {self.size}")
        self.spend(count)
        self.append(bytearray(self.read(count)))

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def _counted(load: Load, cost: int) -> Load:
    def counted(self: _Unpickler) -> None:
        self.spend(cost)
        load(self)

    return counted


def _into(load: Load, kind: type, place: Callable[[_Unpickler], object]) -> Load:
    def checked(self: _Unpickler) -> None:
        if type(place(self)) is not kind:
            raise Refused(f"puts something into {place(self)!r:.80}, which is no {kind.__name__}.")
        load(self)

    return checked


# A byte of a pickle can make an object of a hundred.
for _code, _cost in (
    (pickle.EMPTY_LIST, 56), (pickle.EMPTY_DICT, 64), (pickle.EMPTY_SET, 216), (pickle.FROZENSET, 216),
    (pickle.MARK, 56), (pickle.MEMOIZE, 100), (pickle.DICT, 64),
):  # fmt: skip
    _Unpickler.dispatch[_code[0]] = _counted(_Unpickler.dispatch[_code[0]], _cost)
# What is added goes into a list, a dict or a set: arrays and tables have methods of the same names.
for _code, _kind, _place in (
    (pickle.APPEND, list, lambda self: self.stack[-2]),
    (pickle.APPENDS, list, lambda self: self.metastack[-1][-1]),
    (pickle.SETITEM, dict, lambda self: self.stack[-3]),
    (pickle.SETITEMS, dict, lambda self: self.metastack[-1][-1]),
    (pickle.ADDITEMS, set, lambda self: self.metastack[-1][-1]),
):
    _Unpickler.dispatch[_code[0]] = _into(_Unpickler.dispatch[_code[0]], _kind, _place)


def _bytearray(value: object = b"") -> bytearray:
    if not isinstance(value, bytes | bytearray):
        raise Refused(f"asks for a bytearray of {value!r:.80}.")
    return bytearray(value)


def _weight(value: object) -> int:
    """Bytes that a copy of it takes, about."""
    if isinstance(value, np.ndarray):
        return max(value.nbytes, value.size * 8)
    if isinstance(value, bytes | bytearray | str):
        return len(value)
    if isinstance(value, Part):
        return value.weight
    if isinstance(value, dict):
        return sum(
            OBJECT + (_weight(v) if not isinstance(v, dict | list | tuple) else 8 * len(v)) for v in value.values()
        )
    if isinstance(value, list | tuple):
        return sum(OBJECT + (_weight(v) if not isinstance(v, dict | list | tuple) else 8 * len(v)) for v in value)
    return OBJECT


def _npy_shape(content: io.BytesIO) -> tuple[int, ...]:
    """The shape in the header of an .npy file of objects; the content is then at its pickle."""
    from numpy.lib import format as npy

    version = npy.read_magic(content)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an .npy file of version {version}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(content)
    if not dtype.hasobject:
        raise ValueError(f"an array of {dtype} {shape} and no objects: read it by numpy.load")
    return shape
