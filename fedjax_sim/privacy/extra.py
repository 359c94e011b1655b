"""The packages of the extra `privacy`."""

from typing import Any

from fedjax_sim.core import extras


def needed(module: str, what: str) -> Any:
    """A module of the extra."""
    return extras.needed(module, what, extra="privacy")
