"""What a transform of a sampler is made of: who may be drawn, who is invited, what becomes of them."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.core import rng
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.rng import Purpose
from fedjax_sim.population.timing import Seconds, Timing

Event = Any
"""A sampler's accounting event, or None."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a round is drawn, by whom, and for which transform.

    Attributes:
        round, seed: of the run.
        now: seconds since the run began; 0 where no clock runs.
        population: K.
        place: of the transform among its sampler's, so that two of a kind draw apart.
        timing: how long clients take; None where nobody said.
    """

    round: int
    seed: int
    now: float
    population: int
    place: int = 0
    timing: Timing | None = None

    def uniforms(self, purpose: Purpose, ids: np.ndarray, round: int | None = None) -> np.ndarray:
        """[n] numbers in (0, 1), a client's own in this round or another; the same whoever else is asked."""
        return rng.uniforms(self.seed, purpose, self.round if round is None else round, ids, self.place)

    def need(self, name: str) -> Timing:
        """What is known of work and time.

        Raises:
            ArgumentError: nothing.
        """
        if self.timing is None:
            raise ArgumentError(f"{name} reads what clients' work is: the sampler must be that of a fs.Simulation.")
        return self.timing


@dataclasses.dataclass(frozen=True)
class Course:
    """How a round goes for those that are invited, on the host. Places are the cohort's.

    Attributes:
        ids: [C] client ids.
        valid: [C] bool, invited.
        steps: [C] local steps that a client takes if nothing stops it; None where nobody said.
        seconds: [C] each, what they take.
        lost: [C] bool, the update is lost.
        worked: [C] share of its work that a client does; 1 but for those that drop out.
        size: m, how many the sampler without transforms draws.
        deadline: seconds after which nobody is waited for.
        partial: what is done by then counts.
        keep: only so many that arrive first count; None for all.
        least: with fewer the round is abandoned.
        asked, available: clients that were asked whether they are there, and that were.
    """

    ids: np.ndarray
    valid: np.ndarray
    steps: np.ndarray | None
    seconds: Seconds
    lost: np.ndarray
    worked: np.ndarray
    size: int
    deadline: float = np.inf
    partial: bool = False
    keep: int | None = None
    least: int = 0
    asked: int = 0
    available: int = 0

    def with_steps(self, steps: np.ndarray) -> "Course":
        """With other, positive numbers of steps; the time of computing in proportion."""
        assert self.steps is not None
        share = steps / np.maximum(self.steps, 1)
        return dataclasses.replace(
            self, steps=steps, seconds=self.seconds._replace(compute=self.seconds.compute * share)
        )


class Stage(NamedTuple):
    """A transform of a sampler, in its parts; those that are None change nothing.

    Attributes:
        name: for messages.
        on: `(ids, moment) -> [n] bool`, who may be drawn.
        invited: `(m) -> int`, how many are invited where a sampler draws m.
        course: `(course, moment) -> course`, what becomes of those invited.
        event: `(event) -> event or None`, an accounting event that still bounds what the transformed draw releases.
        expected: `(clients) -> clients`, that a sampler without a fixed number expects.
        check: `(K, m, invited)`, raises for a population that it does not fit, or for so many clients.
        needs: "", "work": what it reads a simulation knows; or "clock": it needs a fleet.
        loses: by chances that no plan knows, fewer may arrive than were drawn, or be drawn than the sampler would.
    """

    name: str
    on: Callable[[np.ndarray, Moment], np.ndarray] | None = None
    invited: Callable[[int], int] | None = None
    course: Callable[[Course, Moment], Course] | None = None
    event: Callable[[Event], Event] = lambda event: None
    expected: Callable[[float], float] = lambda clients: clients
    check: Callable[[int, int, int], None] = lambda num_clients, size, invited: None
    needs: str = ""
    loses: bool = False


class Settled(NamedTuple):
    """How a round ended.

    Attributes:
        arrives: [C] bool.
        max_steps: [C], steps done in time; None where nobody was cut short.
        round_time: seconds.
        late, dropped: how many.
        abandoned: too few arrived.
        spent: [C] seconds that each was at work.
        arrival: [C] seconds until each update is, or would be, there; infinite for a lost one.
        computed, radio: [C] seconds of computing and of sending and receiving.
    """

    arrives: np.ndarray
    max_steps: np.ndarray | None
    round_time: float
    late: int
    dropped: int
    abandoned: bool
    spent: np.ndarray
    arrival: np.ndarray
    computed: np.ndarray
    radio: np.ndarray


def settled(course: Course, idle: float) -> Settled:
    """Who arrives, and when the round is over.

    Of those that are neither lost nor late the first `keep` count, ties by id. The round ends with the last one that
    counts where as many came as were to be kept, or all came; else at the deadline, or where there is none with the
    last sign of life.

    Args:
        course: of the round.
        idle: seconds of a round without clients.
    """
    down, compute, up = course.seconds
    valid, steps = course.valid, course.steps
    if course.partial:
        assert steps is not None
        room = np.maximum(course.deadline - down - up, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            fits = np.where(compute > room, np.floor(steps * (room / compute) * (1 + 1e-12)), steps)
        done = np.minimum(fits, steps)
        late = valid & ((done < 1) & (steps > 0) | (down + up > course.deadline))
        compute = np.minimum(compute, room)
        steps = done.astype(np.int64)
    else:
        late = valid & (down + compute + up > course.deadline)
    late &= ~course.lost
    arrival = np.where(course.lost, np.inf, down + compute + up)
    good = valid & ~course.lost & ~late
    came, keep = int(good.sum()), course.keep
    if keep is not None and came > keep:
        places = np.flatnonzero(good)
        first = places[np.lexsort((course.ids[places], arrival[places]))[:keep]]
        late |= good
        late[first] = False
        good = np.zeros_like(good)
        good[first] = True
    end = _end(course, good, arrival, down, compute, idle, came)
    abandoned = bool(good.sum() < course.least)
    busy = np.clip(end - down, 0.0, compute * course.worked)
    radio = np.minimum(down, end) + np.where(course.lost, 0.0, np.clip(end - down - compute, 0.0, up))
    busy, radio = np.where(valid, busy, 0.0), np.where(valid, radio, 0.0)
    return Settled(
        arrives=good & (not abandoned),
        max_steps=steps if course.partial else None,
        round_time=end,
        late=int(late.sum()),
        dropped=int((valid & course.lost).sum()),
        abandoned=abandoned,
        spent=busy + radio,
        arrival=np.where(valid, arrival, np.nan),
        computed=busy,
        radio=radio,
    )


def _end(
    course: Course,
    good: np.ndarray,
    arrival: np.ndarray,
    down: np.ndarray,
    compute: np.ndarray,
    idle: float,
    came: int,
) -> float:
    """Seconds after which nobody is waited for any more."""
    if not course.valid.any():
        return idle
    enough = course.keep is not None and came >= course.keep
    if enough or came == course.valid.sum():
        return float(arrival[good].max())
    if np.isfinite(course.deadline):
        return course.deadline
    seen = np.where(course.lost, down + compute * course.worked, arrival)
    return float(seen[course.valid].max())


def check_length(name: str, values: np.ndarray, num_clients: int) -> None:
    """Raise `ArgumentError` where an array has not one entry a client."""
    if values.ndim and len(values) != num_clients:
        raise ArgumentError(
            f"{name} has {len(values)} entries, and the population {num_clients} clients: one a client."
        )
