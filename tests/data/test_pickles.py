"""Pickles: arrays and tables come through, and what a stranger hides in one does nothing."""

import gzip
import lzma
import os
import pickle
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.data.pickles import unpickle

ZEROS = bytes(64 << 20)


def saved(tmp_path, content):
    path = tmp_path / "some.pickle"
    path.write_bytes(content)
    return path


def same(a, b):
    np.testing.assert_array_equal(a, b)
    assert a.dtype == b.dtype


ARRAYS = [
    np.array([b"a", b"bc"]),
    np.array(["a", "né"]),
    np.array([True, False]),
    np.arange(6).reshape(2, 3),
    np.asfortranarray(np.ones((3, 2), np.float32)),
    np.array([b"a", None, "x"], object),
]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: str(array.dtype))
def test_arrays_come_through(array, protocol, tmp_path):
    same(unpickle(saved(tmp_path, pickle.dumps({"x": [array]}, protocol)))["x"][0], array)


@pytest.mark.parametrize("compression, pack", [("gzip", gzip.compress), ("xz", lzma.compress)])
def test_compressed_arrays_come_through(compression, pack, tmp_path):
    same(unpickle(saved(tmp_path, pack(pickle.dumps(ARRAYS[0]))), compression=compression), ARRAYS[0])


def test_tables_come_through(tmp_path):
    import pandas as pd

    words = np.array(["x", "y"], object)
    categories = pd.Categorical.from_codes([1, 0], pd.Index(words, dtype=object))
    columns = pd.Index(np.array(list("abcd"), object), dtype=object)
    table = pd.DataFrame({"a": [1, 2], "b": [0.5, np.nan], "c": categories, "d": pd.array([1, None], "Int32")})
    table.columns = columns
    back = unpickle(saved(tmp_path, pickle.dumps(table)))
    pd.testing.assert_frame_equal(back, table)


def test_a_python_2_pickle_of_arrays_comes_through(tmp_path):
    # As Python 2 writes np.array([1, 2], np.uint8) by protocol 2: its bytes are a string.
    content = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03(K\x01K\x02\x85"
        b"cnumpy\ndtype\nq\x04U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x02\x01\x02tb."
    )
    same(unpickle(saved(tmp_path, content), encoding="latin1"), np.array([1, 2], np.uint8))


def test_an_npy_file_of_an_object_comes_through(tmp_path):
    np.save(tmp_path / "a.npy", np.array({"X": [np.arange(3)]}, object), allow_pickle=True)
    back = unpickle(tmp_path / "a.npy")
    same(np.asarray(back.item()["X"][0]), np.arange(3))


class Calls:
    """Pickles as a call, and perhaps a state for what it gives."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def attacks(witness):
    """Pickles that would make the file `witness`, or change a class, each with what the refusal must name."""
    touch = f"open({str(witness)!r}, 'w')"
    yield "posix.system", pickle.dumps(Calls(os.system, f"touch {witness}"))
    yield "builtins.eval", pickle.dumps(Calls(eval, touch))
    yield "builtins.exec", pickle.dumps([1, {"a": Calls(exec, touch)}])
    yield "io.open", pickle.dumps(Calls(open, str(witness), "w"))
    yield "builtins.eval", b"cbuiltins\neval\n(V" + touch.encode() + b"\ntR."  # protocol 0
    yield "builtins.eval", b"(ibuiltins\neval\n."  # INST
    yield "builtins.eval", b"(cbuiltins\neval\nV" + touch.encode() + b"\no."  # OBJ
    yield "builtins.getattr", b"cbuiltins\ngetattr\n(cnumpy\nndarray\nVtofile\ntR."
    yield "numpy.load", pickle.dumps(Calls(np.load, str(witness)))
    yield "numpy.os.system", b"\x80\x04\x8c\x05numpy\x8c\tos.system\x93."
    yield "numpy.ndarray.tofile", b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    yield "numpy.testing._private.utils.runstring", b"cnumpy.testing._private.utils\nrunstring\n(Vx\n}tR."
    yield "pandas.core.computation.eval.eval", b"cpandas.core.computation.eval\neval\n(V@x\ntR."
    yield "pandas.io.pickle.read_pickle", b"cpandas.io.pickle\nread_pickle\n(Vx\ntR."
    yield "the codec 'zlib'", b"c_codecs\nencode\n(Vx\nVzlib\ntR."
    # A call inside an array of objects, and as an argument of a function that is allowed
    hidden = np.array([None], object)
    hidden[0] = Calls(os.system, f"touch {witness}")
    yield "posix.system", pickle.dumps(hidden)
    yield "posix.system", b"cnumpy\ndtype\n(cposix\nsystem\n(V" + f"touch {witness}".encode() + b"\ntRtR."
    # State that is given to a class or a function instead of to an array
    yield "changes <class 'numpy.ndarray'>", b"cnumpy\nndarray\n(N}VT\nI1\nstb."
    yield "changes <class 'pandas", b"cpandas.core.frame\nDataFrame\n(N}V__len__\ncnumpy\ndtype\nstb."
    # Dtypes that lie: NumPy would take the eight bytes for the address of an object, and crash or worse
    for kind, state in (
        ("O8", (3, "|", None, None, None, -1, -1, 0)),
        ("i8", (3, "<", None, None, None, -1, -1, 63)),
        ("i8", (3, "<", None, None, None, 1 << 20, -1, 0)),
        ("S8", (3, "|", None, ("a",), {"a": (np.dtype(object), 0)}, 8, 1, 0)),
        ("S8", (3, "|", (np.dtype(object), (1,)), None, None, 8, 1, 0)),
    ):
        yield "what it is not", pickle.dumps(Calls(np.ndarray, (1,), Calls(np.dtype, kind, False, True, state=state)))
    yield "asks for the dtype [('a', 'O')]", pickle.dumps(Calls(np.dtype, [("a", "O")]))
    yield "asks for the dtype 'V8'", pickle.dumps(Calls(np.dtype, "V8"))
    yield "changes <function _frombuffer", b"cnumpy.core.numeric\n_frombuffer\n}V__defaults__\n(I1\ntsb."


@pytest.mark.parametrize("number", range(len(list(attacks("x")))))
def test_a_malicious_pickle_is_refused_and_nothing_of_it_runs(number, tmp_path):
    import pandas as pd

    witness = tmp_path / "it_ran"
    named, content = list(attacks(witness))[number]
    path = saved(tmp_path, content)
    length = pd.DataFrame.__len__
    with pytest.raises(fs.FedSimError) as caught:
        unpickle(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert named in message, message
    assert message.endswith("It is refused, and nothing of it was run.")
    assert not witness.exists()
    assert pd.DataFrame.__len__ is length


def test_the_attacks_would_work_on_pickles_own_reader(tmp_path):
    witness = tmp_path / "it_ran"
    pickle.loads(next(attacks(witness))[1])
    assert witness.exists()


def test_a_compressed_bomb_is_refused(tmp_path):
    path = saved(tmp_path, lzma.compress(ZEROS))
    with pytest.raises(fs.FedSimError, match="grows to more than 200 times its size; it is no data set"):
        unpickle(path, compression="xz")


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\x80\x05", b"\x93NUMPY", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f"]
)
def test_what_is_no_pickle_is_named(content, tmp_path):
    with pytest.raises(fs.FedSimError, match=r"some\.pickle: is no pickle, or a damaged one \("):
        unpickle(saved(tmp_path, content))


def test_an_array_of_numbers_needs_no_unpickling(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3))
    with pytest.raises(fs.FedSimError, match=r"an array of int64 \(3,\) and no objects: read it by numpy\.load"):
        unpickle(tmp_path / "a.npy")


@pytest.mark.parametrize("compression", [None, "gzip", "xz"])
def test_missing_and_mistyped_files_are_named(compression, tmp_path):
    with pytest.raises(fs.FedSimError, match=r"no\.pickle: cannot be read"):
        unpickle(tmp_path / "no.pickle", compression=compression)
    if compression:
        with pytest.raises(fs.FedSimError, match=r"some\.pickle: cannot be read"):
            unpickle(saved(tmp_path, b"plain"), compression=compression)


def test_an_unknown_compression_is_named(tmp_path):
    with pytest.raises(fs.FedSimError, match=r"^compression='zip': must be one of \[None, 'gzip', 'xz'\]\.$"):
        unpickle(saved(tmp_path, b""), compression="zip")


PICKLES = [pickle.dumps({"a": ARRAYS[0], "b": ["x", b"y", 1.5]}, protocol) for protocol in (2, 5)]


@pytest.mark.parametrize("made", PICKLES, ids=len)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_pickle_is_an_error_or_something(made, data, tmp_path):
    content = bytearray(made)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        unpickle(saved(tmp_path, bytes(content)))
    except fs.FedSimError as error:
        assert "some.pickle" in str(error)  # noqa: PT017


def test_zlib_is_what_gzip_members_fail_with(tmp_path):
    packed = bytearray(gzip.compress(pickle.dumps(ARRAYS[0])))
    packed[len(packed) // 2] ^= 255
    with pytest.raises((zlib.error, OSError)):
        gzip.decompress(packed)
    with pytest.raises(fs.FedSimError, match=r"some\.pickle: cannot be read"):
        unpickle(saved(tmp_path, bytes(packed)), compression="gzip")
