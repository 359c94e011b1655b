"""What a run says while it runs: a bar in a terminal, lines in a log, an element in a notebook."""

import html
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol, Self, TextIO

import numpy as np

from fedjax_sim.core.errors import check, check_count

_READ_EVERY = 0.1  # seconds; reading a value may wait for a device
_PER_ROUND = ("client/", "aggregate/", "cohort/", "plan/")  # any other name of a round was evaluated after it
_MOST_EVALUATED = 4  # values shown


class Round(Protocol):
    """What a progress display sees of a round: an `fs.RoundMetrics`."""

    round: int

    def __getitem__(self, name: str) -> Any: ...
    def __iter__(self) -> Iterator[str]: ...


class Progress:
    """What a run says while it runs: round, loss, accuracy, clients and examples a second, time left.

    Rates are those of the last half minute, or of the last eight rounds where these took longer. They count all that
    happens between rounds, evaluation too, and nothing before the first round's end: no compilation of the round.
    Of the examples, a client's epochs count. Loss and accuracy are read ten times a second at most.

    Lines come every 0.9 s, after 30 s every 5 s, and after 5 minutes every 30 s, whatever the main thread waits for.
    The last round always has one. A reader that goes away (`| head`) ends the display, not the run.

    Args:
        title: what runs.
        first: the first round of this run; rounds before it count as done.
        rounds: rounds of this run.
        display: "bar" (a terminal), "lines" (a log), "notebook" (an IPython kernel), or "auto": what fits the stream.
        stream: where to write; None for standard output, or a notebook's cell.
        clock: seconds, from any beginning.

    Raises:
        ArgumentError: an unknown display, "notebook" outside of one, or a negative number of rounds.

    Example:
        >>> from fedjax_sim.runs.progress import Progress
        >>> class Metrics(dict):
        ...     round = 0
        >>> with Progress("digits", first=0, rounds=1, display="lines", clock=lambda: 4.5) as progress:
        ...     progress.say("compiling")
        ...     progress.round(Metrics({"client/loss": 0.4123, "client/accuracy": 0.871}))
        digits: rounds 1 to 1
        [  0.0 s] compiling
        [  0.0 s] round 1/1: loss 0.412, accuracy 0.871
    """

    def __init__(
        self,
        title: str,
        first: int,
        rounds: int,
        display: Literal["auto", "bar", "lines", "notebook"] = "auto",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        check_count("first", first, minimum=0)
        check_count("rounds", rounds, minimum=0)
        known = display in ("auto", "bar", "lines", "notebook")
        check(known, "display", display, 'must be "auto", "bar", "lines" or "notebook".')
        if display == "auto":
            display = _fitting(stream)
        elif display == "notebook":
            check(_in_notebook(), "display", display, 'there is no IPython kernel to show it; leave it at "auto".')
        self._status = _Status(title, first, first + rounds, clock)
        out = _Stream(sys.stdout if stream is None else stream)
        self._display: _Display = {"bar": _Bar, "lines": _Lines, "notebook": _Notebook}[display](self._status, out)
        self._latest: Round | None = None  # not read yet
        self._evaluated: Round | None = None  # the same, of the last round that was evaluated
        self._read_at = -math.inf

    def __enter__(self) -> Self:
        self._status.start()
        self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:  # after an error, a value might not be there to be read
                self._read()
        finally:
            self._display.stop()

    def say(self, message: str) -> None:
        """Show what is going on now, until the next round is finished: "compiling", "evaluating", "saving"."""
        self._status.doing = message
        self._display.said(message)

    def note(self, message: str) -> None:
        """Print a line that stays."""
        self._display.note(message)

    def round(self, metrics: Round) -> None:
        """A finished round; only what is shown is read of it, and that from this thread alone."""
        status, now, names = self._status, self._status.clock(), tuple(metrics)
        clients = metrics["cohort/clients"] if "cohort/clients" in names else math.nan
        examples = metrics["plan/examples"] if "plan/examples" in names else math.nan
        status.pace.add(now, clients, examples)
        status.completed, status.doing = metrics.round + 1, ""
        self._latest = metrics
        if not all(name.startswith(_PER_ROUND) for name in names):
            self._evaluated = metrics
        last = status.completed == status.total
        if last or now - self._read_at >= _READ_EVERY:
            self._read()
            self._read_at = now
        self._display.advanced(last)

    def _read(self) -> None:
        status = self._status
        if self._latest is not None:
            names = {name: f"client/{name}" for name in ("loss", "accuracy")}
            there = tuple(self._latest)
            status.trained = _texts({name: self._latest[key] for name, key in names.items() if key in there})
        if self._evaluated is not None:
            keys = [name for name in self._evaluated if not name.startswith(_PER_ROUND)]
            names = {key if "/" in key else f"evaluated {key}": key for key in keys}  # not to be taken for the clients'
            values = {name: self._evaluated[key] for name, key in names.items()}
            status.evaluated = {**status.evaluated, **_texts(values)}
        self._latest = self._evaluated = None


class _Status:
    """Where a run is. The main thread sets one attribute after another, and a drawing thread reads them."""

    def __init__(self, title: str, first: int, total: int, clock: Callable[[], float]):
        self.title, self.first, self.total, self.clock = title, first, total, clock
        self.completed, self.doing = first, ""
        self.trained: dict[str, str] = {}  # name to value; replaced, never changed
        self.evaluated: dict[str, str] = {}
        self.pace = _Pace()
        self.start()

    def start(self) -> None:
        self._begin = self.clock()

    def elapsed(self) -> float:
        return self.clock() - self._begin

    def pieces(self) -> Iterator[tuple[int, str]]:
        """(rank, text) of all there is to say but the round; what has a higher rank is left out sooner."""
        if self.doing:
            yield 0, self.doing
        for rank, (name, text) in zip((1, 4), self.trained.items(), strict=False):
            yield rank, f"{name} {text}"
        for name, text in list(self.evaluated.items())[:_MOST_EVALUATED]:
            yield 5, f"{name} {text}"
        rates = self.pace.rates()
        if rates is not None:
            for rank, rate, unit in ((3, rates.clients, "clients/s"), (6, rates.examples, "examples/s")):
                if not math.isnan(rate):
                    yield rank, f"{_si(rate)} {unit}"
            if self.completed < self.total:
                # The round under way counts as far as it should be by now, and never as done.
                under_way = min((self.clock() - rates.now) * rates.rounds, 1.0)
                yield 2, f"{_duration((self.total - self.completed - under_way) / rates.rounds)} left"

    def line(self, brief: bool = False) -> str:
        """All of it; in brief, the round and what is going on."""
        text = self.doing if brief else ", ".join(text for _, text in self.pieces())
        if self.completed == self.first:
            return text or "starting"
        return f"round {self.completed}/{self.total}" + (f": {text}" if text else "")


# Rates


class _Rates(NamedTuple):
    """Per second, at the time `now` of the last round."""

    now: float
    rounds: float
    clients: float
    examples: float


class _Mark(NamedTuple):
    """The rounds that ended from `begin` to `end`, and what was done until then."""

    begin: float
    end: float
    rounds: int
    clients: float
    examples: float


class _Pace:
    """Rates over a recent window, from marks at rounds' ends.

    A block of rounds that ran in one dispatch is told of in a burst; a burst is one mark.
    """

    _BURST = 0.01  # seconds
    _WINDOW = 30.0  # seconds
    _FEWEST = 9  # marks kept of a window that is too short for slow rounds

    def __init__(self) -> None:
        self._marks: deque[_Mark] = deque()
        self._rounds, self._clients, self._examples = 0, 0.0, 0.0
        self._span: tuple[_Mark, _Mark] | None = None  # replaced as a whole: another thread reads it

    def add(self, now: float, clients: float, examples: float) -> None:
        """A round ended."""
        self._rounds += 1
        self._clients += clients
        self._examples += examples
        marks, begin = self._marks, now
        if marks and now - marks[-1].begin < self._BURST:
            begin = marks.pop().begin
        marks.append(_Mark(begin, now, self._rounds, self._clients, self._examples))
        while len(marks) > self._FEWEST and now - marks[0].end > self._WINDOW:
            marks.popleft()
        self._span = (marks[0], marks[-1]) if len(marks) > 1 else None

    def rates(self) -> _Rates | None:
        """None before there is a round after the first one, or the first burst."""
        if self._span is None:
            return None
        old, new = self._span
        seconds = new.end - old.end
        done = (new.rounds - old.rounds, new.clients - old.clients, new.examples - old.examples)
        return _Rates(new.end, *(each / seconds for each in done))


# Displays


class _Display(Protocol):
    """Draws a status. All but `note` are called from the main thread."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def said(self, message: str) -> None: ...
    def advanced(self, last: bool) -> None: ...
    def note(self, message: str) -> None: ...


class _Bar:
    """Two lines at the foot of a terminal, drawn by a thread of rich's."""

    def __init__(self, status: _Status, out: "_Stream"):
        from rich.console import Console
        from rich.live import Live

        self._status = status
        self._console = Console(file=out, force_terminal=True, force_jupyter=False)  # type: ignore[arg-type]
        self._live = Live(
            get_renderable=self._drawing,
            console=self._console,
            refresh_per_second=8,
            # What goes to the terminal goes above the bar; what was sent to a file still goes there.
            redirect_stdout=_is_terminal(sys.stdout),
            redirect_stderr=_is_terminal(sys.stderr),
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

    def _drawing(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        status, width = self._status, self._console.width
        done, total = status.completed, status.total
        percent = 100 * done // total if total else 100
        count = Text(f" {done}/{total} {percent:3} %  {_duration(status.elapsed())}", no_wrap=True)
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


class _Lines:
    """Lines of a log, printed by a thread."""

    def __init__(self, status: _Status, out: "_Stream"):
        self._status, self._out = status, out
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
            stamp = f"{elapsed:5.1f} s" if elapsed < 1000 else _duration(elapsed)
            self._out.line(f"[{stamp}] {status.line(brief=known)}")

    def _wait(self) -> float:
        """Seconds until the next line is due."""
        elapsed = self._status.elapsed()
        period = 0.9 if elapsed < 30 else 5.0 if elapsed < 300 else 30.0
        return self._printed_at + period - self._status.clock()

    def _print_now_and_then(self) -> None:
        while not self._stop.wait(max(self._wait(), 0.0)):
            if self._wait() <= 0:  # else another line came first
                self._print()


class _Notebook:
    """An element in the cell's output, redrawn from the main thread at most four times a second.

    Rounds take two of the four, so that a message before a long silence is shown at once.
    """

    def __init__(self, status: _Status, out: "_Stream"):
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
        text = f"{status.line()}; {_duration(status.elapsed())} elapsed"
        title = f"{status.title}: ".removeprefix(": ")
        bar = f'<progress value="{status.completed}" max="{max(status.total, 1)}"></progress>'
        return {"text/plain": title + text, "text/html": f"<div>{bar} {html.escape(title + text)}</div>"}


class _Stream:
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

    def _try(self, act: Callable[[TextIO], Any]) -> None:
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


# Which display, and how numbers are written


def _fitting(stream: TextIO | None) -> Literal["bar", "lines", "notebook"]:
    """The display for a stream."""
    if stream is None and _in_notebook():
        return "notebook"
    terminal = _is_terminal(sys.stdout if stream is None else stream)
    return "bar" if terminal and os.environ.get("TERM") != "dumb" else "lines"


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # none, or closed
        return False


def _in_notebook() -> bool:
    """True in an IPython kernel, which has then imported IPython."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)


def _texts(values: dict[str, Any]) -> dict[str, str]:
    """The numbers among the values, as text."""
    numbers = {k: float(v) for k, v in values.items() if np.ndim(v) == 0 and not isinstance(v, str | None)}
    return {k: f"{x:.3f}" if x == 0 or 0.01 <= abs(x) < 1000 else f"{x:.3g}" for k, x in numbers.items()}


def _si(x: float) -> str:
    """Three digits and a prefix: 0.3, 212, 21.3k, 1.2M."""
    for prefix in ("", "k", "M", "G"):
        if x < 999.5:
            return f"{x:.3g}{prefix}"
        x /= 1000
    return f"{x:.3g}T"


def _duration(seconds: float) -> str:
    """Two units at most: 6 s, 2 min 05 s, 1 h 02 min, 2 d 03 h."""
    s = max(round(seconds), 0)
    if s < 100:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02} s"
    if s < 86400:
        return f"{s // 3600} h {s % 3600 // 60:02} min"
    return f"{s // 86400} d {s % 86400 // 3600:02} h"
