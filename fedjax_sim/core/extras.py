"""Packages of extras, imported where they are used."""

import importlib
from typing import Any

from fedjax_sim.core.errors import ArgumentError


def needed(module: str, what: str, extra: str) -> Any:
    """A module of an extra; where it is not installed, an error that says what to install.

    Args:
        module: its name, with dots.
        what: needs it.
        extra: holds its package.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise ArgumentError(f'{what} needs {package}: pip install "fedjax-sim[{extra}]".') from error
