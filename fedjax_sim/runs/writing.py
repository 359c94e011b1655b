"""Writing files of a run's folder: whole or not at all, and errors that say what is left."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedjax_sim.core.errors import ArgumentError, FedSimError, RunFolderError

if TYPE_CHECKING:
    import pyarrow as pa

Json = Any
"""What JSON's text can say, or can be said in it."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """An `OSError` while a run's folder is written says which, and what is left; so does a name that none can have."""
    try:
        yield
    except FedSimError:
        raise
    except ValueError as error:
        raise RunFolderError(f"{str(path)!r} cannot be written: {error}. Choose another name.") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunFolderError(
            f"{path} cannot be written: {error}. There is no such folder, or no longer: choose another."
        ) from error
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be written: {error}. What was saved there before stays; free some space or choose "
            "another folder."
        ) from error


def check_text(what: str, value: object) -> None:
    """Raise `ArgumentError` for words with half a character, which no file and no screen takes."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        bad = error.object[max(error.start - 20, 0) : error.end + 20]
        raise ArgumentError(f"{what}: {bad!r} is no Unicode: leave out its half characters.") from error


def rewrite(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with writing(path):
        beside = path.with_name(f".{path.name}.new")
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)


def write_table(path: Path, table: "pa.Table") -> None:
    """Write a Parquet file whole or not at all."""
    from pyarrow import parquet

    with writing(path):
        beside = path.with_name(f".{path.name}.new")
        parquet.write_table(table, beside, write_page_checksum=True)
        os.replace(beside, path)
