"""Rows on the host in a run's folder: one file beside the checkpoints, each of which lists the slots that it needs.

A checkpoint's rows are written before it, to slots that no kept checkpoint needs, and only those that are new since the
last: so no checkpoint sees a later round's rows, and a process that dies in between harms none.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fedjax_sim.core.types import ClientRows
from fedjax_sim.engine.store.row_file import HostRows, Row, RowFile, crc


class RowArchive:
    """The file of a folder's rows.

    Args:
        path: the file; made when first written to.
    """

    def __init__(self, path: Path):
        self.path = path
        self._last: dict[Row, int] = {}
        self._needed: dict[int, set[int]] = {}

    def know(self, round: int, slots: Iterable[int]) -> None:
        """A checkpoint of that round needs those slots."""
        self._needed[round] = set(slots)

    def same(self, rows: HostRows, slots: Sequence[int]) -> None:
        """Those rows are in those slots."""
        self._last = dict(zip(rows.used().values(), slots, strict=True))

    def forget(self, kept: Iterable[int]) -> None:
        """Only checkpoints of those rounds are there still."""
        kept = set(kept)
        self._needed = {round: slots for round, slots in self._needed.items() if round in kept}

    def save(self, round: int, rows: HostRows) -> list[int]:
        """Write a round's rows where no other checkpoint has its own: their slots, in the order of the clients.

        Raises:
            OSError: they could not be written.
        """
        used = rows.used()
        taken = set().union(*self._needed.values(), *[self._last.values()])
        at, free = {}, 0
        with open(self.path, "r+b" if self.path.exists() else "x+b", buffering=0) as file:
            target = RowFile(rows.first, file)
            for row in used.values():
                if row in self._last:
                    at[row] = self._last[row]
                    continue
                while free in taken:
                    free += 1
                at[row] = free
                free += 1
                target.write(at[row], [row.bytes()])
            os.fsync(file.fileno())
        self._last = at
        self.know(round, at.values())
        return list(at.values())

    def check(self, size: int, slots: Sequence[int], crcs: np.ndarray) -> None:
        """The slots hold rows of that size with those CRCs.

        Raises:
            ValueError: they do not.
        """
        for _ in self._read(size, slots, crcs):
            pass

    def load(
        self, first: ClientRows, num_clients: int, clients: np.ndarray, slots: Sequence[int], crcs: np.ndarray
    ) -> HostRows:
        """Those clients' rows, copied to a file of their own, in which later rounds go on."""
        rows, made = HostRows(first, num_clients), {}
        for client, found in zip(clients.tolist(), self._read(rows.file.size, slots, crcs), strict=True):
            row = made[client] = rows.file.new()
            rows.file.write(row.slot, [found])
        return rows.updated(made)

    def _read(self, size: int, slots: Sequence[int], crcs: np.ndarray) -> Iterable[np.ndarray]:
        """The bytes of the slots' rows."""
        if not len(slots):
            return
        found = np.empty(size, np.uint8)
        with open(self.path, "rb", buffering=0) as file:
            source = RowFile(found, file)
            for slot, expected in zip(slots, crcs.tolist(), strict=True):
                source.read(slot, [found])
                if crc(found) != expected:
                    raise ValueError(f"{self.path} does not hold what was saved")
                yield found
