"""Pickled tables and arrays from strangers: only those types and functions that such files need, by exact name."""

import gzip
import importlib
import io
import lzma
import pickle
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fedjax_sim.core.errors import ArgumentError

RATIO = 200
"""A compressed file may grow by this factor at most."""
OPENERS: dict[str | None, Any] = {None: open, "gzip": gzip.open, "xz": lzma.open}

# Whole modules would be too many: numpy and pandas hold functions that evaluate text, import and open files.
ALLOWED = {
    "builtins": ("slice",),
    "numpy": ("ndarray",),
    "numpy._core.multiarray": ("_reconstruct",),
    "numpy._core.numeric": ("_frombuffer",),
    "pandas": ("Categorical", "CategoricalDtype", "DataFrame", "Index", "Int32Dtype", "RangeIndex"),
    "pandas._libs.arrays": ("__pyx_unpickle_NDArrayBacked",),
    "pandas._libs.internals": ("_unpickle_block",),
    "pandas.arrays": ("IntegerArray",),
    "pandas.core.arrays.categorical": ("Categorical",),
    "pandas.core.arrays.integer": ("Int32Dtype", "IntegerArray"),
    "pandas.core.dtypes.dtypes": ("CategoricalDtype",),
    "pandas.core.frame": ("DataFrame",),
    "pandas.core.indexes.base": ("Index", "_new_Index"),
    "pandas.core.indexes.range": ("RangeIndex",),
    "pandas.core.internals.managers": ("BlockManager",),
}


def unpickle(path: str | Path, *, compression: str | None = None, encoding: str = "ASCII") -> Any:
    """The NumPy arrays or the pandas table in a pickle, or in an .npy file of objects.

    A pickle is a program. This one may call the constructors of arrays and tables that are listed in this module,
    and nothing else; state may be given to what they made, never to a class or a function, and a dtype only its own:
    NumPy would take numbers for addresses if they were called objects.

    Args:
        path: the file; one that begins as .npy files do is read as such.
        compression: None, "gzip" or "xz"; the content may be 200 times the file's size at most.
        encoding: of strings that Python 2 pickled: "ASCII", "latin1" or "bytes".

    Returns:
        What was pickled; of an .npy file of one object, that object.

    Raises:
        ArgumentError: no such file, one that is damaged, or that asks for anything else, which is named; pandas is
            missing.

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
        limit = RATIO * path.stat().st_size + (1 << 20)
        with OPENERS[compression](path, "rb") as file:
            content = io.BytesIO(file.read(limit + 1))
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ArgumentError(f"{path}: cannot be read ({error}).") from error
    if len(content.getbuffer()) > limit:
        raise ArgumentError(f"{path}: grows to more than {RATIO} times its size; it is no data set.")
    try:
        if content.getbuffer()[:6] == b"\x93NUMPY":
            _skip_header(content)
        return _Unpickler(content, encoding=encoding).load()
    except _Refused as error:
        raise ArgumentError(f"{path}: {error} It is refused, and nothing of it was run.") from error
    except ImportError as error:
        raise ArgumentError(f"{path}: needs pandas ({error}): pip install 'fedjax-sim[pandas]'.") from error
    except Exception as error:  # a damaged pickle can call any listed name with anything
        raise ArgumentError(f"{path}: is no pickle, or a damaged one ({type(error).__name__}: {error}).") from error


class _Refused(Exception):
    pass


def _latin1(text: Any, encoding: Any) -> bytes:
    """`_codecs.encode` as Python 2's protocols call it for bytes; other codecs import modules and inflate data."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Refused(f"asks for the codec {encoding!r}, which no array and no table needs.")
    return text.encode("latin1")


def _dtype(kind: Any, align: Any = False, copy: Any = True) -> np.dtype:
    """`numpy.dtype` as pickles of plain arrays call it, with a dtype's short name; a new object each time."""
    made = np.dtype(kind) if isinstance(kind, str) else None
    if made is None or made.kind not in "biufcSUO" or made.subdtype is not None or align:
        raise _Refused(f"asks for the dtype {kind!r}, which no plain array and no table needs.")
    return np.dtype(made.str, False, True)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _check_dtype(target: np.dtype, state: Any) -> None:
    """Its state may name the order of its bytes and repeat what it is; NumPy believes whatever else it says."""
    own = (None, None, None, target.itemsize, target.alignment, target.flags)
    same = isinstance(state, tuple) and len(state) == 8 and state[0] in (3, 4)
    if not same or not all(
        said == mine or (said == -1 and i in (3, 4)) for i, (said, mine) in enumerate(zip(state[2:], own, strict=True))
    ):
        raise _Refused(f"says of the dtype {target} what it is not, {state!r:.80}.")


_Python: Any = getattr(pickle, "_Unpickler")  # noqa: B009 # the one in Python: the other lets nobody see BUILD


class _Unpickler(_Python):
    dispatch: ClassVar[dict[int, Any]] = dict(_Python.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if (module, name) == ("numpy", "dtype"):
            return _dtype
        home = module.replace("numpy.core.", "numpy._core.", 1)
        if name not in ALLOWED.get(home, ()):
            raise _Refused(f"asks for {f'{module}.{name}'!r}, which no array and no table needs.")
        return getattr(importlib.import_module(home), name)

    def load_build(self) -> None:
        target = self.stack[-2]
        if callable(target):
            raise _Refused(f"changes {target!r} itself.")
        if isinstance(target, np.dtype):
            _check_dtype(target, self.stack[-1])
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def _skip_header(content: io.BytesIO) -> None:
    """Go to the pickle in an .npy file of one object."""
    from numpy.lib import format as npy

    version = npy.read_magic(content)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(content)
    if not dtype.hasobject:
        raise ValueError(f"an array of {dtype} {shape} and no objects: read it by numpy.load")
