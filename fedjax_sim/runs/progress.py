"""What a run says while it runs: a bar in a terminal, lines in a log, an element in a notebook."""

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TextIO

from fedjax_sim.core.errors import check, check_count
from fedjax_sim.runs.metric_words import ABANDONED
from fedjax_sim.runs.progress_displays import Bar, Display, Lines, Notebook, Stream, is_terminal
from fedjax_sim.runs.progress_status import Status, texts

QUIET = {"bar": 1.0, "lines": 10.0, "notebook": 1.0}
"""Seconds in which a run that is not kept is over and shows nothing."""

_READ_EVERY = 0.1  # seconds; reading a value may wait for a device
_PER_ROUND = (
    "client/",
    "aggregate/",
    "cohort/",
    "plan/",
    "population/",
    "clock/",
)  # any other name of a round was evaluated after it


class Round(Protocol):
    """What a progress display sees of a round: an `fs.RoundMetrics`."""

    round: int

    def __getitem__(self, name: str) -> Any: ...
    def __iter__(self) -> Iterator[str]: ...


class Progress:
    """What a run says while it runs: round, abandoned ones, loss, accuracy, clients and examples a second, time left.

    Rates are those of the last half minute, or of the last eight rounds where these took longer. They count all that
    happens between rounds, evaluation too, and nothing before the first round's end: no compilation of the round.
    Of the examples, a client's epochs count. Loss and accuracy are read ten times a second at most.

    Lines come every 0.9 s, after 30 s every 5 s, and after 5 minutes every 30 s, whatever the main thread waits for.
    The last round always has one. A reader that goes away (`| head`) ends the display, not the run. Evaluated numbers
    stand in one line; the bar and the notebook's element say after which round they were measured.

    Args:
        title: what runs.
        first: the first round of this run; rounds before it count as done.
        rounds: rounds of this run.
        display: "bar" (a terminal), "lines" (a log), "notebook" (an IPython kernel), or "auto": what fits the stream.
        stream: where to write; None for standard output, or a notebook's cell, and for lines under `quiet` the standard
            error.
        clock: seconds, from any beginning.
        quiet: nothing is shown of a run that is over in so many seconds (None: one of a bar, ten of lines), and lines
            come every 10 s then. 0 shows all.

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
        quiet: float | None = 0.0,
    ):
        check_count("first", first, minimum=0)
        check_count("rounds", rounds, minimum=0)
        known = display in ("auto", "bar", "lines", "notebook")
        check(known, "display", display, 'must be "auto", "bar", "lines" or "notebook".')
        if display == "auto":
            display = _fitting(stream)
        elif display == "notebook":
            check(_in_notebook(), "display", display, 'there is no IPython kernel to show it; leave it at "auto".')
        self._status = Status(title, first, first + rounds, clock)
        self._quiet = QUIET[display] if quiet is None else quiet
        # What a script prints into a file or a pipe is its own: how long a run took changes nothing of it.
        unasked = sys.stderr if display == "lines" and self._quiet > 0 else sys.stdout
        out = Stream(unasked if stream is None else stream)
        self._display: Display
        if display == "lines":
            self._display = Lines(self._status, out, sparse=self._quiet > 0)
        else:
            self._display = (Bar if display == "bar" else Notebook)(self._status, out)
        self._begun, self._lock = False, threading.Lock()
        # What draws from a thread of its own may begin in one; a notebook's element belongs to the main thread's cell.
        waits = self._quiet > 0 and display != "notebook"
        self._timer = threading.Timer(self._quiet, self._begin) if waits else None
        self._latest: Round | None = None  # not read yet
        self._evaluated: Round | None = None  # the same, of the last round that was evaluated
        self._read_at = -math.inf

    def __enter__(self) -> Self:
        self._status.start()
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        elif self._quiet == 0:
            self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
        try:
            if kind is None and self._begun:  # after an error, a value might not be there to be read
                self._read()
        finally:
            if self._begun:
                self._display.stop()

    def say(self, message: str) -> None:
        """Show what is going on now, until the next round is finished: "compiling", "evaluating", "saving"."""
        self._status.doing = message
        if self._shows():
            self._display.said(message)

    def note(self, message: str) -> None:
        """Print a line that stays."""
        if self._shows():
            self._display.note(message)

    def round(self, metrics: Round) -> None:
        """A finished round; only what is shown is read of it, and that from this thread alone."""
        status, now, names = self._status, self._status.clock(), tuple(metrics)
        clients = metrics["cohort/clients"] if "cohort/clients" in names else math.nan
        examples = metrics["plan/examples"] if "plan/examples" in names else math.nan
        status.pace.add(now, clients, examples)
        status.completed, status.doing = metrics.round + 1, ""
        status.abandoned += any(metrics[name] for name in ABANDONED if name in names)
        self._latest = metrics
        if not all(name.startswith(_PER_ROUND) for name in names):
            self._evaluated = metrics
        if not self._shows():
            return
        last = status.completed == status.total
        if last or now - self._read_at >= _READ_EVERY:
            self._read()
            self._read_at = now
        self._display.advanced(last)

    def _begin(self) -> None:
        with self._lock:
            if not self._begun:
                self._display.start()
                self._begun = True

    def _shows(self) -> bool:
        """Whether something is shown by now; of a notebook this is the moment at which it may begin."""
        if not self._begun and self._timer is None and self._status.elapsed() >= self._quiet:
            self._begin()
        return self._begun

    def _read(self) -> None:
        status = self._status
        if self._latest is not None:
            names = {name: f"client/{name}" for name in ("loss", "accuracy")}
            there = tuple(self._latest)
            status.trained = texts({name: self._latest[key] for name, key in names.items() if key in there})
        if self._evaluated is not None:
            keys = [name for name in self._evaluated if not name.startswith(_PER_ROUND)]
            names = {key if "/" in key else f"evaluated {key}": key for key in keys}  # not to be taken for the clients'
            values = {name: self._evaluated[key] for name, key in names.items()}
            status.evaluated = texts(values)
            status.evaluated_at = self._evaluated.round + 1
        self._latest = self._evaluated = None


def _fitting(stream: TextIO | None) -> Literal["bar", "lines", "notebook"]:
    """The display for a stream."""
    if stream is None and _in_notebook():
        return "notebook"
    terminal = is_terminal(sys.stdout if stream is None else stream)
    return "bar" if terminal and os.environ.get("TERM") != "dumb" else "lines"


def _in_notebook() -> bool:
    """True in an IPython kernel, which has then imported IPython."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)
