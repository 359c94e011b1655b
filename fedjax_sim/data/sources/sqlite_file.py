"""SQLite files from strangers: opened as they are, for reading only, where all of their rows are in the file itself."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.data.sources.limits import growth

JOURNAL = bytes.fromhex("d9d505f920a163d7")
STEPS = 1_000_000
"""Instructions of SQLite's between two looks at whether it goes on for ever."""


def check_alone(path: Path) -> None:
    """Refuse a file whose last transactions are in another file beside it.

    A write-ahead log holds rows that the file lacks, and a rollback journal what a transaction that was cut off has
    overwritten. SQLite would write both into the file, which is not ours to change.

    Raises:
        ArgumentError: there is such a file.

    Example:
        >>> check_alone(Path("no.sqlite"))
    """
    whole = path.expanduser().resolve()
    for suffix, what, holds in (
        ("-wal", "write-ahead log", lambda file: len(file.read(33)) > 32),  # 32 bytes are a log without rows
        ("-journal", "rollback journal", lambda file: file.read(8) == JOURNAL),
    ):
        beside = whole.with_name(whole.name + suffix)
        try:
            with open(beside, "rb") as file:
                found = holds(file)
        except OSError:
            continue
        if found:
            raise ArgumentError(
                f"{path}: has a {what} beside it, {beside.name}: without that, rows are missing or half written. Let "
                f'SQLite join them (sqlite3 {path.name} "PRAGMA wal_checkpoint(TRUNCATE)"), or fetch the file again.'
            )


@contextmanager
def opened(path: Path, kind: str, tables: dict[str, tuple[str, ...]], where: Path) -> Iterator[sqlite3.Connection]:
    """The file's connection, if these are tables of it with these columns, and nothing is computed.

    A view, a virtual table or a generated column can make rows without end out of nothing. What SQLite does is bounded
    by the file's size, for damaged files whose pages form a circle.

    Args:
        path: the file.
        kind: whose layout it has, for errors.
        tables: name to its columns.
        where: the file that the user named, for errors.
    """
    held = path.stat().st_size
    with closing(_connect(path, where)) as database:
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, min(max(held, 1 << 20), 2**31 - 1))
        database.set_progress_handler(_stops(growth(held)), STEPS)
        try:
            for name, columns in tables.items():
                _check_table(database, name, columns, f"{where}: is no {kind} SQLite file")
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise ArgumentError(f"{where}: is no {kind} SQLite file, or a damaged one ({error}).") from error
        yield database


def _check_table(database: sqlite3.Connection, name: str, columns: tuple[str, ...], where: str) -> None:
    there = {row[1]: row[6] for row in database.execute(f"PRAGMA table_xinfo({name})")}
    if missing := sorted(set(columns) - set(there)):
        raise ArgumentError(f"{where}: its table {name!r} has no column {missing[0]!r}.")
    stored = "SELECT count(*) FROM sqlite_master WHERE name = ? AND type = 'table' AND rootpage > 0"
    virtual = "SELECT count(*) FROM sqlite_master WHERE name = ? AND sql LIKE '%virtual%table%'"
    counts = [database.execute(query, (name,)).fetchone()[0] for query in (stored, virtual)]
    if counts != [1, 0] or any(there[column] for column in columns):
        raise ArgumentError(
            f"{where}: {name!r} is no table whose rows are stored in the file; views, virtual tables and generated "
            "columns are not read."
        )


def _connect(path: Path, where: Path) -> sqlite3.Connection:
    check_alone(path)
    address = path.resolve().as_uri() + "?mode=ro&immutable=1"
    try:
        database = sqlite3.connect(address, uri=True)
    except sqlite3.Error as error:
        raise ArgumentError(f"{where}: cannot be opened ({error}).") from error
    database.execute("PRAGMA trusted_schema = OFF")  # a stranger's file runs no functions of its own
    return database


def _stops(most: int) -> Callable[[], int]:
    """Whether SQLite has done more than any file of that size needs: some hundred instructions a byte."""
    steps = 0

    def stops() -> int:
        nonlocal steps
        steps += STEPS
        return int(steps > most)

    return stops
