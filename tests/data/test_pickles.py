"""Pickles: arrays and tables come through, and what a stranger hides in one does nothing."""

import gzip
import lzma
import os
import pickle
import sys
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.data.fetch.pickles import unpickle

ZEROS = bytes(65 << 20)


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


def texts_of(table):
    """The columns with gaps or texts that pandas has, in the two ways in which it keeps texts."""
    import pandas as pd

    table["s"] = ["x", None, "né"]
    table["python"] = pd.array(["a", None, ""], "string[python]")
    table["arrow"] = pd.array(["a", None, ""], "string[pyarrow]")
    table["f"] = pd.array([1.5, None, 2], "Float64")
    table["b"] = pd.array([True, None, False], "boolean")
    return table


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("part", [slice(None), slice(0), slice(None, None, -1)], ids=["all", "none", "backwards"])
def test_texts_and_gaps_come_through(protocol, part, tmp_path):
    import pandas as pd

    table = texts_of(pd.DataFrame({"a": [1, 2, 3], "c": pd.Categorical(["u", "v", "u"])}))[part]
    for made in (table, table.set_index("s"), pd.concat([table, table])):
        pd.testing.assert_frame_equal(unpickle(saved(tmp_path, pickle.dumps(made, protocol))), made)


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
    yield "changes <class", b"cnumpy\nndarray\n(N}VT\nI1\nstb."
    yield "changes <class", b"cpandas.core.frame\nDataFrame\n(N}V__len__\ncnumpy\ndtype\nstb."
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
    yield "changes <bound method", b"cnumpy.core.numeric\n_frombuffer\n}V__defaults__\n(I1\ntsb."


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


HUGE = 10**9


def call(module, name, *arguments, state=None):
    """A pickle of protocol 2 that calls a function."""
    content = f"c{module}\n{name}\n".encode() + inside(arguments) + b"R"
    return content + (inside(state) + b"b" if state is not None else b"")


def inside(value):
    """The opcodes of a value; of `bytes` as they are."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(inside, value)) + b"t"
    if isinstance(value, dict):
        return b"(" + b"".join(inside(part) for item in value.items() for part in item) + b"d"
    return pickle.dumps(value, 2)[2:-1]


ARRAY, DTYPE = b"cnumpy\nndarray\n", call("numpy", "dtype", "i8", 0, 1)
NUMPY, PANDAS = "numpy._core.multiarray", "pandas.core.indexes.base"
ROWS = {"start": 0, "stop": HUGE, "step": 1, "name": None}
EMPTY = call(NUMPY, "_reconstruct", ARRAY, (0,), "b")
RANGE = call(PANDAS, "_new_Index", b"cpandas.core.indexes.range\nRangeIndex\n", ROWS)
PLACES = call("builtins", "slice", 0, HUGE, 1)
BOMBS = {
    "an array": call("numpy", "ndarray", (HUGE,), DTYPE),
    "an array of nothing": call(NUMPY, "_reconstruct", ARRAY, (HUGE,), "d"),
    "an array's state": EMPTY + inside((1, (HUGE,), DTYPE, False, b"C\x00")) + b"b",
    "an array of objects": EMPTY + inside((1, (HUGE,), call("numpy", "dtype", "O8", 0, 1), False, [])) + b"b",
    "texts of no length": EMPTY + inside((1, (HUGE,), call("numpy", "dtype", "S0", 0, 1), False, b"C\x00")) + b"b",
    "an index of a range": call("pandas", "Index", RANGE),
    "an index of an index": call(PANDAS, "_new_Index", b"cpandas\nIndex\n", {"data": RANGE, "name": None}),
    "objects of a range": call(PANDAS, "_new_Index", b"cpandas\nIndex\n", {"data": RANGE, "dtype": "object"}),
    "a table of rows": call("pandas", "DataFrame", 1.0, RANGE, RANGE),
    "categories": call("pandas", "Categorical", RANGE),
    "places": call("pandas._libs.internals", "_unpickle_block", EMPTY, PLACES, 2),
    "a manager": call("pandas.core.internals.managers", "BlockManager", (), (RANGE, RANGE)),
    "a bytearray": b"\x96" + (1 << 40).to_bytes(8, "little"),
    "a bytearray of a number": call("builtins", "bytearray", HUGE),
    "sets": b"(" + b"\x8f" * 500_000 + b"t",
    "copies": b"\x80\x04"
    + inside("x" * 100_000)
    + b"\x94("
    + b"c_codecs\nencode\n(h\x00X\x06\x00\x00\x00latin1tR" * 2000
    + b"t",
    "texts of Arrow's": call(
        "pyarrow.lib",
        "_restore_array",
        (call("pyarrow.lib", "type_for_alias", "string"), HUGE, 0, 0, b"(NNNl", b"]", None),
    ),
}


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space, and /proc")
@pytest.mark.parametrize("name", [*BOMBS])
def test_a_pickled_bomb_is_refused_before_anything_is_made(name, tmp_path, peak):
    with pytest.raises(fs.FedSimError, match=r"some\.pickle: "):
        unpickle(saved(tmp_path, BOMBS[name] + b"."))
    assert peak() < 160 << 20


def test_an_array_that_is_whole_is_not_changed(tmp_path):
    again = (
        b"qc"
        + inside((1, (1,), DTYPE, False, b"C\x08" + bytes(8)))
        + b"bhc"
        + inside((1, (0,), DTYPE, False, b"C\x00"))
    )
    with pytest.raises(fs.FedSimError, match="changes an array that is whole"):
        unpickle(saved(tmp_path, b"\x80\x04" + EMPTY + again + b"b."))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda t: t._mgr.blocks[0].values[:, :2], "column 0 has 2 rows, and there are 3"),
        (lambda t: np.zeros((3, 3)), "3 columns at 1 places"),
    ],
)
def test_tables_whose_parts_do_not_fit_are_refused(spoil, message, tmp_path):
    import pandas as pd
    from pandas._libs.internals import BlockPlacement
    from pandas.core.internals.blocks import new_block_2d
    from pandas.core.internals.managers import BlockManager

    table = pd.DataFrame({"a": np.arange(3.0)})
    block = new_block_2d(spoil(table), BlockPlacement(slice(0, 1)))
    table._mgr = BlockManager((block,), [table.columns, table.index], verify_integrity=False)
    with pytest.raises(fs.FedSimError, match=message):
        unpickle(saved(tmp_path, pickle.dumps(table)))


def test_codes_beyond_the_categories_are_refused(tmp_path):
    import pandas as pd

    content = pickle.dumps(pd.DataFrame({"c": pd.Categorical(["u", "v", "u"])}))
    codes = pd.Categorical(["u", "v", "u"]).codes.tobytes()
    assert content.count(b"C\x03" + codes) == 1
    with pytest.raises(fs.FedSimError, match="codes need to be between -1 and len"):
        unpickle(saved(tmp_path, content.replace(b"C\x03" + codes, b"C\x03\x00\x63\x00")))


def test_an_npy_file_whose_two_shapes_differ_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}, 1], object), allow_pickle=True)
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content.replace(b"(2,)", b"(3,)"))
    with pytest.raises(fs.FedSimError, match=r"its header says \(3,\), and it holds \(2,\)"):
        unpickle(tmp_path / "a.npy")


def test_a_compressed_bomb_is_refused(tmp_path):
    path = saved(tmp_path, lzma.compress(ZEROS))
    with pytest.raises(
        fs.FedSimError, match=r"its \d+ bytes say to hold 0\.1 GB, which is more than 200 times their number"
    ):
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
