"""What a small file may become in memory: a file of a few kilobytes can say to hold terabytes."""

import os

from fedjax_sim.core.errors import ArgumentError

RATIO = 200
"""A compressed text may grow by this factor at most."""


def memory() -> int:
    """Bytes of the machine's memory.

    Example:
        >>> memory() > 1 << 20
        True
    """
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_memory(where: str, needed: int, advice: str) -> None:
    """Refuse what cannot fit into the machine's memory.

    Example:
        >>> try:
        ...     check_memory("a file", 1 << 60, "convert it.")
        ... except ArgumentError as error:
        ...     print(str(error)[:49])
        a file: says to take 1152921504.6 GB of memory, a
    """
    if needed > memory():
        raise ArgumentError(
            f"{where}: says to take {needed / 1e9:.1f} GB of memory, and there are {memory() / 1e9:.1f} GB; {advice}"
        )
