"""What a file may become in memory: a file of a few kilobytes can say to hold terabytes.

One limit for all readers, asked before anything of that size is made: `RATIO` times the file's size, or `FLOOR` where
that is more, and never more than the memory that is free.
"""

import os
import resource
from pathlib import Path

from fedjax_sim.core.errors import ArgumentError

RATIO = 200
"""What a file holds may be this many times as large as the file."""

FLOOR = 1 << 26
"""Bytes that any file may become, however small it is."""


def memory() -> int:
    """Bytes of memory that this process can still get: of the machine, its control group, and its own limit.

    Example:
        >>> memory() > 1 << 20
        True
    """
    free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free.append(1024 * int(line.split()[1]))
    group = [int(line) for line in _lines("/sys/fs/cgroup/memory.max") if line.isdigit()]
    used = [int(line) for line in _lines("/sys/fs/cgroup/memory.current") if line.isdigit()]
    cache = [int(line.split()[1]) for line in _lines("/sys/fs/cgroup/memory.stat") if line.startswith("inactive_file ")]
    if group:
        free.append(group[0] - sum(used) + sum(cache))
    own, _ = resource.getrlimit(resource.RLIMIT_AS)
    if own != resource.RLIM_INFINITY:
        pages = [int(line.split()[0]) for line in _lines("/proc/self/statm")]
        free.append(own - sum(pages) * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(free))


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def growth(held: int) -> int:
    """Bytes that a file of `held` bytes may become, wherever they are kept.

    Example:
        >>> growth(3000) == FLOOR, growth(1 << 30) == RATIO << 30
        (True, True)
    """
    return max(FLOOR, RATIO * held)


def check_growth(where: str, needed: int, held: int, advice: str) -> None:
    """Refuse a file of `held` bytes that becomes more than any data set does.

    Example:
        >>> try:
        ...     check_growth("a file", 3 << 30, 3000, "store it without compression.")
        ... except ArgumentError as error:
        ...     print(str(error)[:73])
        a file: its 3000 bytes say to hold 3.2 GB, which is more than 200 times t
    """
    if needed > growth(held):
        raise ArgumentError(
            f"{where}: its {held} bytes say to hold {_said(needed)}, which is more than {RATIO} times their number and "
            f"more than {_said(FLOOR)}: no data set does. If it is one, {advice}"
        )


def check_memory(where: str, needed: int, advice: str) -> None:
    """Refuse what cannot fit into the memory.

    Example:
        >>> try:
        ...     check_memory("a file", 1 << 60, "convert it.")
        ... except ArgumentError as error:
        ...     print(str(error)[:49])
        a file: says to take 1152921504.6 GB of memory, a
    """
    if needed > memory():
        raise ArgumentError(
            f"{where}: says to take {_said(needed)} of memory, and there are {_said(memory())}; {advice}"
        )


def check_room(where: str, needed: int, held: int, advice: str) -> None:
    """Refuse what is too large for its file, or for the memory.

    Args:
        where: the file, and what of it.
        needed: bytes of memory that it says to take.
        held: bytes of the file.
        advice: what to do if it is a data set after all.

    Raises:
        ArgumentError: it is.

    Example:
        >>> check_room("a file", 1000, 100, "")
    """
    check_growth(where, needed, held, advice)
    if needed > FLOOR:  # what is free is not asked for each small client
        check_memory(where, needed, advice)


def _said(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size} bytes"
