"""How a run's progress is shown: a bar in a terminal, lines in a log, an element in a notebook."""

import html
import math
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from fedjax_sim.runs.progress_status import Status, duration

if TYPE_CHECKING:
    from rich.console import RenderableType


class Display(Protocol):
    """Draws a status. All but `note` are called from the main thread."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def said(self, message: str) -> None: ...
    def advanced(self, last: bool) -> None: ...
    def note(self, message: str) -> None: ...


class Bar:
    """Two lines at the foot of a terminal, drawn by a thread of rich's."""

    def __init__(self, status: Status, out: "Stream"):
        from rich.console import Console
        from rich.live import Live

        self._status = status
        self._console = Console(file=out, force_terminal=True, force_jupyter=False)  # type: ignore[arg-type]
        self._live = Live(
            get_renderable=self._drawing,
            console=self._console,
            refresh_per_second=8,
            # What goes to the terminal goes above the bar; what was sent to a file still goes there.
            redirect_stdout=is_terminal(sys.stdout),
            redirect_stderr=is_terminal(sys.stderr),
        )

    def start(self) -> None:
        self._live.start(refresh=True)

    def stop(self) -> None:
        try:
            self._live.stop()
        finally:
            self._console.show_cursor(True)  # also when Ctrl-C was pressed once more

    def said(self, message: str) -> None: ...  # the thread shows it within an eighth of a second

    def advanced(self, last: bool) -> None: ...

    def note(self, message: str) -> None:
        from rich.text import Text

        self._console.print(Text(message), soft_wrap=True)

    def _drawing(self) -> "RenderableType":
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        status, width = self._status, self._console.width
        done, total = status.completed, status.total
        percent = 100 * done // total if total else 100
        count = Text(f" {done}/{total} {percent:3} %  {duration(status.elapsed())}", no_wrap=True)
        title = Text(status.title, no_wrap=True)
        title.truncate(max(width - count.cell_len - 11, 0), overflow="ellipsis")
        title.append(" ")
        length = max(width - count.cell_len - title.cell_len, 1)
        top = Table.grid(padding=0)
        top.add_row(title, ProgressBar(total, done, width=length, pulse=done == status.first < total), count)
        pieces = list(status.pieces())
        while len(pieces) > 1 and len(", ".join(text for _, text in pieces)) > width:
            pieces.remove(max(pieces, key=lambda piece: piece[0]))
        return Group(top, Text(", ".join(text for _, text in pieces), no_wrap=True, overflow="ellipsis"))


class Lines:
    """Lines of a log, printed by a thread."""

    def __init__(self, status: Status, out: "Stream", sparse: bool = False):
        self._status, self._out, self._sparse = status, out, sparse
        self._evaluated = status.first  # rounds completed at the evaluation that was told last
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._printed_at, self._printed = -math.inf, status.first  # when, and rounds completed
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._print_now_and_then, name="progress", daemon=True)

    def start(self) -> None:
        status = self._status
        if status.total > status.first:
            self.note(f"{status.title}: rounds {status.first + 1} to {status.total}".removeprefix(": "))
        self._printed_at = status.clock()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        if self._printed != self._status.completed:
            self._print()

    def said(self, message: str) -> None:
        # At once where it is news; a message that comes back every few rounds waits for its turn.
        pause = self._status.clock() - self._printed_at
        if message and message not in self._said and (pause >= 0.9 or not self._said):
            self._said.add(message)
            self._print()

    def advanced(self, last: bool) -> None:
        if last:
            self._print()

    def note(self, message: str) -> None:
        self._out.line(message)

    def _print(self) -> None:
        with self._lock:
            status, elapsed = self._status, self._status.elapsed()
            known = status.completed == self._printed and bool(status.doing)  # the line before has the numbers
            self._printed_at, self._printed = status.clock(), status.completed
            stamp = f"{elapsed:5.1f} s" if elapsed < 1000 else duration(elapsed)
            self._out.line(f"[{stamp}] {status.line(brief=known, since=self._evaluated)}")
            self._evaluated = self._evaluated if known else status.evaluated_at

    def _wait(self) -> float:
        """Seconds until the next line is due."""
        elapsed = self._status.elapsed()
        period = 10.0 if self._sparse else 0.9 if elapsed < 30 else 5.0
        period = period if elapsed < 300 else 30.0
        return self._printed_at + period - self._status.clock()

    def _print_now_and_then(self) -> None:
        while not self._stop.wait(max(self._wait(), 0.0)):
            if self._wait() <= 0:  # else another line came first
                self._print()


class Notebook:
    """An element in the cell's output, redrawn from the main thread at most four times a second.

    Rounds take two of the four, so that a message before a long silence is shown at once.
    """

    def __init__(self, status: Status, out: "Stream"):
        self._status, self._out = status, out
        self._drawn: deque[float] = deque(maxlen=4)
        self._handle: Any = None

    def start(self) -> None:
        from IPython.display import display

        self._drawn.append(self._status.clock())
        self._handle = display(self._bundle(), raw=True, display_id=True)

    def stop(self) -> None:
        self._draw()

    def said(self, message: str) -> None:
        if len(self._drawn) < 4 or self._status.clock() - self._drawn[0] >= 1.0:
            self._draw()

    def advanced(self, last: bool) -> None:
        if self._status.clock() - self._drawn[-1] >= 0.5:
            self.said("")

    def note(self, message: str) -> None:
        self._out.line(message)

    def _draw(self) -> None:
        self._drawn.append(self._status.clock())
        self._handle.update(self._bundle(), raw=True)

    def _bundle(self) -> dict[str, str]:
        status = self._status
        text = f"{status.line()}; {duration(status.elapsed())} elapsed"
        title = f"{status.title}: ".removeprefix(": ")
        bar = f'<progress value="{status.completed}" max="{max(status.total, 1)}"></progress>'
        return {"text/plain": title + text, "text/html": f"<div>{bar} {html.escape(title + text)}</div>"}


class Stream:
    """A stream that drops what it is given once its reader has gone away."""

    def __init__(self, stream: TextIO | None):
        self._stream, self._gone = stream, stream is None

    def line(self, text: str) -> None:
        """Write a line in one call, and flush it."""
        self.write(f"{text}\n")
        self.flush()

    def write(self, text: str) -> int:
        self._try(lambda stream: stream.write(self._encodable(text)))
        return len(text)

    def flush(self) -> None:
        self._try(lambda stream: stream.flush())

    def _try(self, act: Callable[[TextIO], object]) -> None:
        if self._stream is not None and not self._gone:
            try:
                act(self._stream)
            except (OSError, ValueError):  # a broken pipe, a full disk, a closed file
                self._gone = True

    def _encodable(self, text: str) -> str:
        encoding = getattr(self._stream, "encoding", None)
        return text.encode(encoding, "backslashreplace").decode(encoding) if encoding else text

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # none, or closed
        return False
