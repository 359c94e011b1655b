"""What a command writes to the terminal; a reader that goes away ends nothing."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from fedjax_sim.core.errors import FedSimError

if TYPE_CHECKING:
    from rich.table import Table


def say(text: str) -> None:
    with reader():
        print(text, flush=True)


def complain(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def told(part: str, note: str) -> Iterator[None]:
    """A note on errors whose message has that part."""
    try:
        yield
    except FedSimError as error:
        if part in str(error):
            error.add_note(note)
        raise


@contextlib.contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal, moved by (done, total)."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def draw(table: "Table") -> None:
    from rich.console import Console

    console = Console()
    with console.capture() as drawn:
        console.print(table)
    say(drawn.get().rstrip("\n"))


@contextlib.contextmanager
def reader() -> Iterator[None]:
    """A reader that goes away, as in `| head`, ends no run: what is written from then on is dropped."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
