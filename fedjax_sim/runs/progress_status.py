"""Where a run is, how fast it goes, and how that is said."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

_MOST_EVALUATED = 4  # values shown


class Status:
    """Where a run is. The main thread sets one attribute after another, and a drawing thread reads them."""

    def __init__(self, title: str, first: int, total: int, clock: Callable[[], float]):
        self.title, self.first, self.total, self.clock = title, first, total, clock
        self.completed, self.doing = first, ""
        self.abandoned = 0
        self.trained: dict[str, str] = {}  # name to value; replaced, never changed
        self.evaluated: dict[str, str] = {}
        self.evaluated_at = first  # rounds completed then
        self.pace = Pace()
        self.start()

    def start(self) -> None:
        self._begin = self.clock()

    def elapsed(self) -> float:
        return self.clock() - self._begin

    def pieces(self, since: int = -1) -> Iterator[tuple[int, str]]:
        """(rank, text) of all there is to say but the round; what has a higher rank is left out sooner.

        Args:
            since: rounds after which an evaluation is no news; an earlier one says after how many rounds it was made.
        """
        if self.doing:
            yield 0, self.doing
        if self.abandoned:
            yield 1, f"{self.abandoned} abandoned"
        for rank, (name, text) in zip((1, 4), self.trained.items(), strict=False):
            yield rank, f"{name} {text}"
        if self.evaluated_at > since:
            when = f" (round {self.evaluated_at})" if self.evaluated_at < self.completed else ""
            for name, text in list(self.evaluated.items())[:_MOST_EVALUATED]:
                yield 5, f"{name} {text}{when}"
        rates = self.pace.rates()
        if rates is not None:
            for rank, rate, unit in ((3, rates.clients, "clients/s"), (6, rates.examples, "examples/s")):
                if not math.isnan(rate):
                    yield rank, f"{_si(rate)} {unit}"
            if self.completed < self.total:
                # The round under way counts as far as it should be by now, and never as done.
                under_way = min((self.clock() - rates.now) * rates.rounds, 1.0)
                yield 2, f"{duration((self.total - self.completed - under_way) / rates.rounds)} left"

    def line(self, brief: bool = False, since: int = -1) -> str:
        """All of it; in brief, the round and what is going on."""
        text = self.doing if brief else ", ".join(text for _, text in self.pieces(since))
        if self.completed == self.first:
            return text or "starting"
        return f"round {self.completed}/{self.total}" + (f": {text}" if text else "")


class Rates(NamedTuple):
    """Per second, at the time `now` of the last round."""

    now: float
    rounds: float
    clients: float
    examples: float


class Mark(NamedTuple):
    """The rounds that ended from `begin` to `end`, and what was done until then."""

    begin: float
    end: float
    rounds: int
    clients: float
    examples: float


class Pace:
    """Rates over a recent window, from marks at rounds' ends.

    A block of rounds that ran in one dispatch is told of in a burst; a burst is one mark.
    """

    _BURST = 0.01  # seconds
    _WINDOW = 30.0  # seconds
    _FEWEST = 9  # marks kept of a window that is too short for slow rounds

    def __init__(self) -> None:
        self._marks: deque[Mark] = deque()
        self._rounds, self._clients, self._examples = 0, 0.0, 0.0
        self._span: tuple[Mark, Mark] | None = None  # replaced as a whole: another thread reads it

    def add(self, now: float, clients: float, examples: float) -> None:
        """A round ended."""
        self._rounds += 1
        self._clients += clients
        self._examples += examples
        marks, begin = self._marks, now
        if marks and now - marks[-1].begin < self._BURST:
            begin = marks.pop().begin
        marks.append(Mark(begin, now, self._rounds, self._clients, self._examples))
        while len(marks) > self._FEWEST and now - marks[0].end > self._WINDOW:
            marks.popleft()
        self._span = (marks[0], marks[-1]) if len(marks) > 1 else None

    def rates(self) -> Rates | None:
        """None before there is a round after the first one, or the first burst."""
        if self._span is None:
            return None
        old, new = self._span
        seconds = new.end - old.end
        done = (new.rounds - old.rounds, new.clients - old.clients, new.examples - old.examples)
        return Rates(new.end, *(each / seconds for each in done))


def texts(values: Mapping[str, Any]) -> dict[str, str]:
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


def duration(seconds: float) -> str:
    """Two units at most: 6 s, 2 min 05 s, 1 h 02 min, 2 d 03 h."""
    s = max(round(seconds), 0)
    if s < 100:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02} s"
    if s < 86400:
        return f"{s // 3600} h {s % 3600 // 60:02} min"
    return f"{s // 86400} d {s % 86400 // 3600:02} h"
