"""The cache of converted sets: what went in comes out, whatever stops it, and damage is noticed."""

import errno
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.store import cache

ROOT = Path(__file__).parents[2]
CLIENTS = [
    ("b", {"x": np.arange(6, dtype=np.uint8).reshape(2, 3), "text": np.array([b"to", b"be"], object)}),
    ("ä", {"x": np.zeros((0, 3), np.uint8), "text": np.array([], object)}),
    ("c", {"x": np.full((1, 3), 255, np.uint8), "text": np.array([b""], object)}),
]


class Source:
    """Counts what is asked of it; may stop with an error."""

    def __init__(self, clients=CLIENTS, stop=None, error=None):
        self.clients, self.stop, self.starts, self.given = clients, stop, [], 0
        self.error = error or OSError(errno.ENOSPC, "no space left")

    def __call__(self, start):
        self.starts.append(start)
        for k, client in enumerate(self.clients[start:], start):
            if k == self.stop:
                raise self.error
            self.given += 1
            yield client


def keep(source, folder, **options):
    return fs.data.cached("a set", {"made": "here"}, source, cache_dir=folder, **options)


def folder_of(root):
    return next((root / "converted").iterdir())


def settle():
    """Wait until the cache is on the disk."""
    for thread in threading.enumerate():
        if thread.name == "cache":
            thread.join(30)


def check_whole(data):
    assert data.sizes.tolist() == [2, 0, 1]
    assert list(data.client_ids) == ["b", "ä", "c"]
    assert data.arrays["x"].dtype == np.uint8
    assert data.arrays["x"].tolist() == [[0, 1, 2], [3, 4, 5], [255] * 3]
    assert data.arrays["text"][:].tolist() == [b"to", b"be", b""]
    assert data.client(2)["text"].tolist() == [b""]


def test_what_goes_in_comes_out_memory_mapped(tmp_path):
    data = keep(Source(), tmp_path)
    check_whole(data)
    assert isinstance(data.arrays["x"], np.memmap)
    assert not data.arrays["x"].flags.writeable
    assert isinstance(data.arrays["text"], fs.data.Strings)


def test_the_second_time_the_source_is_not_read(tmp_path):
    keep(Source(), tmp_path)
    source = Source()
    check_whole(keep(source, tmp_path))
    assert source.starts == []


def test_another_fingerprint_is_another_set(tmp_path):
    keep(Source(), tmp_path)
    other = [("z", {"y": np.ones(4)})]
    data = fs.data.cached("a set", {"made": "there"}, Source(other), cache_dir=tmp_path)
    assert data.client(0)["y"].tolist() == [1.0] * 4
    check_whole(keep(Source([]), tmp_path))


def test_a_files_fingerprint_changes_with_the_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    first = fs.data.file_fingerprint(path)
    assert (first["size"], first["path"]) == (3, str(path.resolve()))
    os.utime(path, ns=(1, 1))
    assert fs.data.file_fingerprint(path) != first
    path.write_bytes(b"abd")
    os.utime(path, ns=(first["modified_ns"],) * 2)
    assert fs.data.file_fingerprint(path) != first


@pytest.mark.parametrize("place", ["argument", "FEDJAX_SIM_CACHE", "XDG_CACHE_HOME", "HOME"])
def test_the_cache_folder(place, tmp_path, monkeypatch):
    monkeypatch.delenv("FEDJAX_SIM_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    expected = tmp_path / "home" / ".cache" / "fedjax_sim"
    if place == "XDG_CACHE_HOME":
        monkeypatch.setenv(place, str(tmp_path / "xdg"))
        expected = tmp_path / "xdg" / "fedjax_sim"
    if place == "FEDJAX_SIM_CACHE":
        monkeypatch.setenv(place, str(tmp_path / "ours"))
        expected = tmp_path / "ours"
    assert fs.data.cache_folder(tmp_path / "given" if place == "argument" else None) == (
        tmp_path / "given" if place == "argument" else expected
    )


# Stopped conversions


def test_a_stopped_conversion_goes_on_where_it_was_committed(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "COMMIT_SECONDS", -1.0)  # each client is committed
    with pytest.raises(ArgumentError, match="the disk is full; free some space, or name another folder by cache_dir"):
        keep(Source(stop=2), tmp_path)
    source = Source()
    check_whole(keep(source, tmp_path))
    assert source.starts == [2]
    assert source.given == 1


def test_what_was_not_committed_is_converted_again(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "COMMIT_SECONDS", math.inf)
    with pytest.raises(ArgumentError, match="disk is full"):
        keep(Source(stop=2), tmp_path)
    source = Source()
    check_whole(keep(source, tmp_path))
    assert source.starts == [0]


KILLED = """
import sys, time
import numpy as np
import fedjax_sim as fs
from fedjax_sim.data.store import cache
cache.COMMIT_SECONDS = -1.0

def clients(start):
    for k in range(start, 300):
        print(k, flush=True)
        if k - start == int(sys.argv[2]):
            time.sleep(600)
        yield f"{k:03d}", {"x": np.full((k % 5, 2), k), "t": np.array([b"w" * k] * (k % 5) + [None], object)[:-1]}

fs.data.cached("killed", {}, clients, cache_dir=sys.argv[1])
print("whole", flush=True)
"""


def test_kills_at_random_instants_lose_nothing(tmp_path):
    """A thread writes, with four jobs waiting at most: of the clients before the one asked for, all but four stay."""
    generator, committed, ahead = np.random.default_rng(0), 0, 60  # clients after which it waits for a slow killer
    begin: Any = lambda last: subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path, str(last)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    for _ in range(4):
        with begin(ahead) as process:
            asked = int(process.stdout.readline())
            assert committed <= asked <= committed + 4 + ahead
            for _ in range(generator.integers(5, 40)):
                asked = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
        committed = asked - 4
    with begin(300) as process:
        first, *_, last = process.stdout.read().split()
    assert committed <= int(first) <= committed + 4 + ahead
    assert last == "whole"
    data = fs.data.cached("killed", {}, lambda start: iter(()), cache_dir=tmp_path)
    assert list(data.client_ids) == [f"{k:03d}" for k in range(300)]
    assert data.sizes.tolist() == [k % 5 for k in range(300)]
    assert data.arrays["x"][:, 1].tolist() == [k for k in range(300) for _ in range(k % 5)]
    assert data.arrays["t"][:].tolist() == [b"w" * k for k in range(300) for _ in range(k % 5)]


def test_two_at_once_convert_once(tmp_path):
    begun = threading.Event()

    class Slow(Source):
        def __call__(self, start):
            begun.set()
            time.sleep(0.2)
            yield from super().__call__(start)

    slow, quick, results = Slow(), Source(), []
    thread = threading.Thread(target=lambda: results.append(keep(slow, tmp_path)))
    thread.start()
    assert begun.wait(100)
    check_whole(keep(quick, tmp_path))
    thread.join(100)
    check_whole(results[0])
    assert (slow.starts, quick.starts) == ([0], [])


# Damage


def test_a_damaged_progress_record_starts_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "COMMIT_SECONDS", -1.0)
    for damage in ("truncate a file", "flip a bit", "no json", "[]"):
        with pytest.raises(ArgumentError, match="disk is full"):
            keep(Source(stop=2), tmp_path / damage)
        folder = folder_of(tmp_path / damage)
        if damage == "truncate a file":
            os.truncate(folder / "1", 2)
        elif damage == "flip a bit":
            (folder / "1").write_bytes(b"\x01" + (folder / "1").read_bytes()[1:])
        else:
            (folder / "progress.json").write_text(damage)
        source = Source()
        check_whole(keep(source, tmp_path / damage))
        assert source.starts == [0]


FILES = ["0.bytes", "0.ends", "1", "sizes", "ids.bytes", "ids.ends"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "remove"])
def test_damage_is_noticed_and_the_set_converted_again(name, damage, tmp_path):
    keep(Source(), tmp_path)
    path = folder_of(tmp_path) / name
    whole = path.read_bytes()
    settle()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes({"flip": bytes([whole[0] ^ 1]) + whole[1:], "cut": whole[:-1], "grow": whole + b"x"}[damage])
    source = Source()
    with pytest.warns(UserWarning, match="the set is converted again"):
        data = keep(source, tmp_path)
    check_whole(data)
    assert source.starts == [0]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 1}', "null"])
def test_a_damaged_record_is_noticed(text, tmp_path):
    keep(Source(), tmp_path)
    (folder_of(tmp_path) / "data.json").write_text(text)
    with pytest.warns(UserWarning, match="converted again"):
        check_whole(keep(Source(), tmp_path))


def test_what_says_how_bytes_are_read_is_under_a_checksum(tmp_path):
    """Big-endian instead of little-endian would read 1 as 4.6e-41, and the sizes of all files would fit."""
    floats = [("a", {"x": np.ones(3, np.float32)})]
    keep(Source(floats), tmp_path)
    path = folder_of(tmp_path) / "data.json"
    assert path.read_text().count('"<f4"') == 1
    path.write_text(path.read_text().replace('"<f4"', '">f4"'))
    with pytest.warns(UserWarning, match=r"data\.json has another checksum than when it was written.*converted again"):
        assert keep(Source(floats), tmp_path).arrays["x"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", ["data.json", "checked.json"])
def test_any_byte_of_what_says_how_bytes_are_read_may_change(name, tmp_path):
    keep(Source(), tmp_path)
    settle()
    path = folder_of(tmp_path) / name
    good = path.read_bytes()
    generator = np.random.default_rng(0)
    for place in generator.integers(0, len(good), 60):
        content = bytearray(good)
        content[place] ^= 1 << generator.integers(0, 8)
        path.write_bytes(content)
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            check_whole(keep(Source(), tmp_path))
        settle()


def test_any_byte_of_what_a_conversion_goes_on_from_may_change(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "COMMIT_SECONDS", -1.0)
    generator = np.random.default_rng(0)
    for trial in range(40):
        with pytest.raises(ArgumentError, match="disk is full"):
            keep(Source(stop=2), tmp_path / f"{trial}")
        path = folder_of(tmp_path / f"{trial}") / "progress.json"
        content = bytearray(path.read_bytes())
        content[generator.integers(0, len(content))] ^= 1 << generator.integers(0, 8)
        path.write_bytes(content)
        check_whole(keep(Source(), tmp_path / f"{trial}"))


def test_the_cache_of_another_source_is_converted_again(tmp_path):
    keep(Source(), tmp_path)
    mine = folder_of(tmp_path)
    fs.data.cached("a set", {"made": "there"}, Source([("z", {"y": np.ones(4)})]), cache_dir=tmp_path)
    other = next(path for path in mine.parent.iterdir() if path != mine)
    settle()
    shutil.copytree(other, mine, dirs_exist_ok=True)
    with pytest.warns(UserWarning, match="it is of another source; the set is converted again"):
        check_whole(keep(Source(), tmp_path))


def test_a_cache_of_another_version_is_converted_again(tmp_path):
    keep(Source(), tmp_path)
    path = folder_of(tmp_path) / "data.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 0}))
    with pytest.warns(UserWarning, match="it is of version 0, not 2; the set is converted again"):
        check_whole(keep(Source(), tmp_path))


def test_a_copied_cache_is_checked_whole_once_and_good(tmp_path):
    keep(Source(), tmp_path)
    settle()
    folder = folder_of(tmp_path)
    for name in FILES:
        os.utime(folder / name, ns=(1, 1))
    source = Source()
    check_whole(keep(source, tmp_path))
    assert source.starts == []
    settle()
    assert json.loads((folder / "checked.json").read_text())["1"][1] == 1


# Bad clients


@pytest.mark.parametrize(
    "clients, message",
    [
        ([], "there is no client in it"),
        ([CLIENTS[0], CLIENTS[0]], "client 'b' comes twice"),
        (
            [CLIENTS[0], ("d", {"x": np.zeros((1, 3), np.int8), "text": np.array([b""], object)})],
            r"client 'd': columns ",
        ),
        (
            [CLIENTS[0], ("d", {"x": np.zeros((1, 4), np.uint8), "text": np.array([b""], object)})],
            r"x: \|u1\[4\] differ",
        ),
        ([CLIENTS[0], ("d", {"x": np.zeros((1, 3), np.uint8)})], "differ from those of client 'b'"),
        ([("d", {"x": np.zeros(2), "y": np.zeros(3)})], r"other numbers of rows, \{'x': 2, 'y': 3\}"),
        ([("d", {"x": np.float32(1)})], "client 'd': 'x' has no rows"),
        ([("d", {"x": np.array(["a"])})], "column 'x' has dtype <U1"),
        ([("d", {"x": np.array([b"a", "b"], object)})], "only `bytes` can be kept"),
    ],
)
def test_bad_clients_are_refused(clients, message, tmp_path):
    with pytest.raises(ArgumentError, match=message):
        keep(Source(clients), tmp_path)


def test_fewer_clients_than_said_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match="3 clients came out of it, but it says to hold 4"):
        keep(Source(), tmp_path, total=4)


def test_an_error_of_the_source_passes(tmp_path):
    with pytest.raises(ZeroDivisionError):
        keep(Source(stop=1, error=ZeroDivisionError()), tmp_path)


def test_a_duplicate_is_noticed_after_a_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "COMMIT_SECONDS", -1.0)
    with pytest.raises(ArgumentError, match="disk is full"):
        keep(Source(stop=2), tmp_path)
    with pytest.raises(ArgumentError, match="client 'b' comes twice"):
        keep(Source([*CLIENTS[:2], CLIENTS[0]]), tmp_path)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("total", [3, None])
def test_a_terminal_is_shown_how_far_a_conversion_is(total, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    fs.data.cached("a set", {}, Source(), total=total, cache_dir=tmp_path)
    assert "converting a set" in screen.getvalue()
    assert total is None or "3/3" in screen.getvalue()
    shown = screen.getvalue()
    fs.data.cached("a set", {}, Source(), total=total, cache_dir=tmp_path)  # is there
    fs.data.cached("another", {}, Source(), cache_dir=tmp_path, progress=False)
    assert screen.getvalue() == shown


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((ArgumentError, NotADirectoryError)):
        keep(Source(), tmp_path / "file")


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_to(error, tmp_path):
    with pytest.raises(ArgumentError, match=r"cannot be written to .* name another folder by cache_dir="):
        keep(Source(stop=1, error=OSError(error, os.strerror(error))), tmp_path)


def test_a_real_full_disk(tmp_path):
    """A process whose files may not grow over 64 KiB, which is as near to a full disk as a test gets without root."""
    script = textwrap.dedent("""
        import resource, signal, sys
        import numpy as np, fedjax_sim as fs
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        def clients(start):
            for k in range(start, 40):
                yield str(k), {"x": np.zeros(1000)}
        def convert():
            return fs.data.cached("big", {}, clients, cache_dir=sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
        try:
            convert()
        except (fs.FedSimError, OSError) as error:
            print("stopped:", error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(convert().num_examples)
    """)
    out = subprocess.run([sys.executable, "-c", script, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.search(r"stopped: .*\n40000\n", out.stdout), out
