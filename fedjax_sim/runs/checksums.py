"""Checksums of a run's files, as they were at its last checkpoint: a digit that changed since is found.

Files that grow are checked as far as they went then. What is not covered: profile.json, and all that is drawn from
the others. Per-client tables have checksums of their own, a page of values each.
"""

import contextlib
import json
import warnings
import zlib
from pathlib import Path

from fedjax_sim.runs.writing import rewrite, writing

FILE = "checksums.json"
NAMES = ("config.json", "metrics.jsonl", "timing.jsonl", "partition.npz")


class Checksums:
    """Of a folder that one process writes; of files that grow only what is new is read.

    Args:
        folder: the run's.

    Example:
        >>> import pathlib, tempfile
        >>> from fedjax_sim.runs.checksums import Checksums, damaged
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "metrics.jsonl").write_text("12")
        >>> Checksums(folder).keep()
        >>> _ = (folder / "metrics.jsonl").write_text("13")
        >>> damaged(folder)
        ['metrics.jsonl']
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._known: dict[str, tuple[int, int]] = {}

    def keep(self) -> None:
        """Write those of the files as they are now.

        Raises:
            RunFolderError: they could not be written.
        """
        with writing(self._folder):
            for name in NAMES:
                if (self._folder / name).exists():
                    known = self._known.get(name, (0, 0)) if name.endswith(".jsonl") else (0, 0)
                    self._known[name] = _crc(self._folder / name, *known)
            rewrite(self._folder / FILE, json.dumps(self._known) + "\n")


def forget(folder: Path) -> None:
    """Before files are changed that were checked as a whole."""
    with writing(folder):
        (folder / FILE).unlink(missing_ok=True)


def damaged(folder: Path) -> list[str]:
    """Names of files that are not what they were; of the checksums' own, where these cannot be read."""
    path = folder / FILE
    if not path.exists():
        return []
    try:
        said = json.loads(path.read_bytes())
        known = {name: (int(said[name][0]), int(said[name][1])) for name in said}
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
        return [FILE]
    wrong = [FILE] if set(known) - set(NAMES) else []
    for name, (size, crc) in known.items():
        if name in NAMES:
            found = (-1, 0)
            with contextlib.suppress(OSError):
                found = _crc(folder / name, 0, 0, size)
            wrong += [name] * (found != (size, crc))
    return wrong


def warn_of_damage(folder: Path) -> None:
    """A warning that names them."""
    if names := damaged(folder):
        warnings.warn(
            f"{folder} was changed since its last checkpoint, in {' and '.join(names)}: numbers may be wrong. "
            f"If you know why, delete {FILE}.",
            stacklevel=3,
        )


def _crc(path: Path, at: int, crc: int, to: int | None = None) -> tuple[int, int]:
    """How far a file goes, and the CRC-32 of its bytes so far, from where that was known."""
    with open(path, "rb") as file:
        file.seek(at)
        while to is None or at < to:
            part = file.read(1 << 20 if to is None else min(1 << 20, to - at))
            if not part:
                break
            at, crc = at + len(part), zlib.crc32(part, crc)
    return at, crc
