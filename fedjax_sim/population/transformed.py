"""A sampler with transforms: who is asked, invited, and arrives, and what time it is then."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.core.errors import ArgumentError, check
from fedjax_sim.core.types import Cohort, Told
from fedjax_sim.population.sampling import Sampler, cohort
from fedjax_sim.population.stages import Course, Moment, Settled, Stage, settled
from fedjax_sim.population.timing import Devices, Hierarchy, Seconds, Timing

MOST = 1000
"""Clients that are asked for each one that is wanted, before a round goes on with fewer."""

TOTALS = ("now", "bytes_down", "bytes_up", "energy")
"""Of the run so far, in the state of a sampler with a clock: they go on where another sampler takes its place."""

LINK = ("edge_bytes_down", "edge_bytes_up")
"""Also where edges stand between clients and server: of the link between them and the server."""


class Made(NamedTuple):
    """What a transformed sampler is made of; `timing` is None until a simulation says it."""

    base: Sampler
    stages: tuple[Stage, ...] = ()
    timing: Timing | None = None


def extended(sampler: Sampler, stage: Stage) -> Sampler:
    """The sampler with one more transform, the last in time.

    Raises:
        ArgumentError: a transform that such a sampler cannot bear.
    """
    made = sampler.made or Made(sampler)
    return transformed(made._replace(stages=(*made.stages, stage)))


def timed(sampler: Sampler, timing: Timing) -> Sampler:
    """The sampler that knows the work of its clients, and with a fleet has a clock.

    Raises:
        ArgumentError: a transform needs a fleet, and there is none; a clock over a sampler that repeats clients.
    """
    if sampler.timed is not None:
        return sampler.timed(timing)
    if timing.fleet is None:
        return sampler
    return transformed(Made(sampler, (), timing))


def transformed(made: Made) -> Sampler:
    """The sampler that is made of these."""
    base, stages, _ = made
    name = " | ".join([base.name, *(stage.name for stage in stages)])
    _check(made, name)
    rounds = _Rounds(made, name)
    bounded = base.event is not None and rounds.event(1000) is not None
    return base._replace(
        init=rounds.init,
        sample=rounds.sample,
        capacity=rounds.capacity,
        expected=rounds.expected,
        event=rounds.event if bounded else None,
        observe=None if base.observe is None else rounds.observe,
        choose=None if base.choose is None else rounds.choose,
        name=name,
        pool=None,
        made=made,
        timed=lambda timing: transformed(made._replace(timing=timing)),
    )


def short(sampler: Sampler, num_clients: int) -> str:
    """The transform by which fewer clients may send than the accounting event speaks of; or "".

    Where others are drawn for those that are not there, the chance that these are too few is exp(-50) by Hoeffding's
    inequality, or that is such a transform too.
    """
    made = sampler.made
    law = None if sampler.event is None else sampler.event(num_clients)
    if made is None or law is None:
        return ""
    there = asked = num_clients // getattr(law, "separation", 1)
    for stage in made.stages:
        if stage.loses:
            return stage.name
        if stage.on is not None and made.base.pool is not None:
            there = stage.expected(there)
            if there - 5 * asked**0.5 < made.base.capacity(num_clients):
                return stage.name
    return ""


def going_on(sampler: Sampler, first: Any, totals: Mapping[str, Any]) -> Any:
    """A sampler's first state, at the time and with the totals of another's last one, if both have a clock."""
    if sampler.made is None or any(total is None for total in totals.values()):
        return first
    return {**first, **{name: np.float64(total) for name, total in totals.items()}}


class _Rounds:
    """The functions of a transformed sampler."""

    def __init__(self, made: Made, name: str):
        self.made, self.name = made, name
        self.restricted = any(stage.on is not None or stage.invited is not None for stage in made.stages)

    def capacity(self, num_clients: int) -> int:
        return _invited(self.made.stages, self.made.base.capacity(num_clients))

    def expected(self, num_clients: int) -> float:
        clients = self.made.base.expected(num_clients)
        for stage in self.made.stages if self.made.base.pool is None else ():
            clients = stage.expected(clients)
        return clients

    def event(self, num_clients: int) -> Any:
        assert self.made.base.event is not None
        law = self.made.base.event(num_clients)
        for stage in self.made.stages:
            law = None if law is None else stage.event(law)
        return law

    def init(self, num_clients: int) -> dict[str, Any]:
        base, stages, timing = self.made
        size, invited = base.capacity(num_clients), self.capacity(num_clients)
        few = f"so many would be invited by {self.name}, and the population has {num_clients} clients."
        check(invited <= num_clients or invited <= size, "over_select", invited, few)
        for stage in stages:
            stage.check(num_clients, size, invited)
        if timing is not None and timing.fleet is not None:
            timing.fleet.check(num_clients)
        linked = timing is not None and timing.work.hierarchy is not None
        totals = {each: np.float64(0) for each in (*TOTALS, *(LINK if linked else ()))}
        return {"sampler": base.init(num_clients), "population": np.int64(num_clients), **totals}

    def sample(self, state: dict[str, Any], round: int, seed: int) -> tuple[Cohort, dict[str, Any]]:
        timing = self.made.timing
        moment = Moment(round, seed, float(state["now"]), int(state["population"]), timing=timing)
        drawn, inner, asked, available = _drawn(self.made, self.restricted, state["sampler"], moment)
        state = {**state, "sampler": inner}
        if self.made.base.choose is not None:
            return dataclasses.replace(drawn, told=Told({}, {}, (moment, asked, available))), state
        return _gone(self.made, drawn, moment, asked, available, state)

    def choose(self, state: dict[str, Any], candidates: Cohort, losses: np.ndarray) -> tuple[Cohort, dict[str, Any]]:
        assert self.made.base.choose is not None
        assert candidates.told is not None
        moment, asked, available = candidates.told.moment
        losses = np.where(candidates.valid, losses, np.nan)
        chosen, inner = self.made.base.choose(state["sampler"], dataclasses.replace(candidates, told=None), losses)
        return _gone(self.made, chosen, moment, asked, available, {**state, "sampler": inner})

    def observe(self, state: dict[str, Any], cohort: Cohort, metrics: Any) -> dict[str, Any]:
        assert self.made.base.observe is not None
        return {**state, "sampler": self.made.base.observe(state["sampler"], cohort, metrics)}


def _check(made: Made, name: str) -> None:
    base, stages, timing = made
    if base.repeats or base.versions:
        what = "a clock" if not stages else stages[-1].name
        raise ArgumentError(
            f"{base.name} may draw a client twice in a round, or one that is at work: {what} goes with samplers that "
            "draw each client once. fs.sampler.asynchronous(...) reads a fleet by itself."
        )
    for stage in stages:
        if stage.invited is not None and base.pool is None:
            raise ArgumentError(
                f"{stage.name}: {base.name} does not draw a fixed number of clients, so that it cannot invite more: "
                "use fs.sampler.uniform or min_separation."
            )
        if stage.needs == "clock" and timing is not None and timing.fleet is None:
            raise ArgumentError(
                f"{stage.name} reads a clock, and there is none: give fs.Simulation(fleet=fs.fleet...)."
            )


def _invited(stages: tuple[Stage, ...], size: int) -> int:
    for stage in stages:
        size = size if stage.invited is None else stage.invited(size)
    return size


def _on(stages: tuple[Stage, ...], ids: np.ndarray, moment: Moment) -> np.ndarray:
    """[n] bool, who may be drawn."""
    on = np.ones(len(ids), bool)
    for place, stage in enumerate(stages):
        if stage.on is not None:
            on &= stage.on(ids, dataclasses.replace(moment, place=place))
    return on


def _drawn(made: Made, restricted: bool, state: Any, moment: Moment) -> tuple[Cohort, Any, int, int]:
    """A cohort of those that are there, the base's state, and how many were asked and were there."""
    base, stages, _ = made
    if base.pool is None or not restricted:
        drawn, state = base.sample(state, moment.round, moment.seed)
        valid = np.asarray(drawn.valid, bool)
        on = valid & _on(stages, np.asarray(drawn.ids), moment) if restricted else valid
        return dataclasses.replace(drawn, valid=on), state, int(valid.sum()), int(on.sum())
    count = _invited(stages, base.capacity(moment.population))
    found, asked, missing, share = [], 0, count, 1.0
    while missing and asked < MOST * count:
        block = int(min(max(1.1 * missing / share, 16), MOST * count - asked))
        ids = base.pool(state, moment.round, moment.seed, asked, block)
        on = _on(stages, ids, moment)
        taken = np.flatnonzero(on)[:missing]
        found.append(ids[taken])
        missing -= len(taken)
        asked += len(ids) if missing else int(taken[-1]) + 1
        if len(ids) < block:
            break
        share = max((count - missing) / asked, 1 / MOST)
    ids = np.concatenate(found) if found else np.zeros(0, np.int64)
    return cohort(ids, count), state, asked, len(ids)


def _gone(
    made: Made, drawn: Cohort, moment: Moment, asked: int, available: int, state: dict[str, Any]
) -> tuple[Cohort, dict[str, Any]]:
    """How the round goes for those that were drawn, and the state after it."""
    timing, ids = made.timing, np.asarray(drawn.ids)
    steps, seconds, devices = None, Seconds.none(len(ids)), None
    if timing is not None:
        steps = np.asarray(timing.work.steps(ids), np.int64)
        steps = steps if drawn.max_steps is None else np.minimum(steps, drawn.max_steps)
        seconds, devices = timing.seconds(ids, steps, moment.round, moment.seed)
    valid = np.asarray(drawn.valid, bool)
    lost = np.zeros(len(ids), bool) if drawn.arrives is None else ~np.asarray(drawn.arrives, bool)
    size = made.base.capacity(moment.population)
    course = Course(ids, valid, steps, seconds, lost, np.ones(len(ids)), size, asked=asked, available=available)
    for place, stage in enumerate(made.stages):
        if stage.course is not None:
            course = stage.course(course, dataclasses.replace(moment, place=place))
    fleet = None if timing is None else timing.fleet
    end = settled(course, 0.0 if fleet is None else fleet.idle)
    cut = end.max_steps is not None or course.steps is not steps
    max_steps = end.max_steps if end.max_steps is not None else course.steps
    report, clients = _report(course, end), {}
    if fleet is not None:
        assert timing is not None
        assert devices is not None
        link = _linked(course, end, timing.work.hierarchy, fleet.edge)
        state = _advanced(state, course, end, timing, devices, link)
        report |= _clock(state, end, link) | _shares(fleet.classes, devices, end)
        clients = {"clock/seconds": np.where(np.isfinite(end.arrival), end.arrival, np.nan)}
    drawn = dataclasses.replace(
        drawn,
        arrives=end.arrives if made.stages else drawn.arrives,
        max_steps=None if max_steps is None else max_steps.astype(np.int32) if cut else drawn.max_steps,
        told=Told(report, clients),
        abandoned=drawn.abandoned or end.abandoned,
    )
    return drawn, state


class _Link(NamedTuple):
    """What passes between edges and the server in a round: seconds, joules, and bytes by their names in `LINK`."""

    seconds: float = 0.0
    joules: float = 0.0
    moved: Mapping[str, float] = {}


def _linked(course: Course, end: Settled, hierarchy: Hierarchy | None, edge: Any) -> _Link:
    """An edge receives if any client of its is invited, and sends if any counts; all have the same device."""
    if hierarchy is None:
        return _Link()
    ids = np.asarray(course.ids)
    counts = [len(np.unique(hierarchy.places(ids[who]))) for who in (course.valid, end.arrives)]
    moved = {name: hierarchy.bytes * count for name, count in zip(LINK, counts, strict=True)}
    if edge is None:
        return _Link(moved=moved)
    each = [hierarchy.bytes / wide + edge.latency for wide in (edge.down, edge.up)]
    seconds = sum(time for time, count in zip(each, counts, strict=True) if count)
    return _Link(seconds, edge.radio_watts * float(np.dot(each, counts)), moved)


def _advanced(
    state: dict[str, Any], course: Course, end: Settled, timing: Timing, devices: Devices, link: _Link
) -> dict[str, np.float64]:
    sent, work = course.valid & (end.arrival <= end.round_time), timing.work
    added = {
        "now": end.round_time + link.seconds,
        "bytes_down": work.exchanges * work.bytes_down * course.valid.sum(),
        "bytes_up": work.exchanges * work.bytes_up * sent.sum(),
        "energy": devices.watts @ end.computed + devices.radio_watts @ end.radio + link.joules,
        **link.moved,
    }
    return {**state, **{name: np.float64(state[name] + value) for name, value in added.items()}}


def _report(course: Course, end: Settled) -> dict[str, float]:
    """The round's `population/` numbers."""
    numbers = {
        "asked": course.asked,
        "available": course.available,
        "selected": course.valid.sum(),
        "trained": end.arrives.sum(),
        "late": end.late,
        "dropped": end.dropped,
        "abandoned": end.abandoned,
    }
    return {f"population/{name}": float(value) for name, value in numbers.items()}


def _clock(state: dict[str, Any], end: Settled, link: _Link) -> dict[str, float]:
    """The round's `clock/` numbers; all but the round's own time and its waste are of the run so far."""
    spent = end.spent.sum()
    return {
        "clock/time": float(state["now"]),
        "clock/round_time": end.round_time + link.seconds,
        "clock/bytes_up": float(state["bytes_up"]),
        "clock/bytes_down": float(state["bytes_down"]),
        "clock/energy_j": float(state["energy"]),
        "clock/waste": float(end.spent[~end.arrives].sum() / spent) if spent else 0.0,
        **{f"clock/{name}": float(state[name]) for name in link.moved},
    }


def _shares(classes: tuple[str, ...], devices: Devices, end: Settled) -> dict[str, float]:
    """Of those that arrived, the share of each class of devices; 0 where nobody did."""
    counts = np.bincount(devices.kind[end.arrives], minlength=len(classes))[: len(classes)] / max(end.arrives.sum(), 1)
    return {f"population/share_{name}": float(share) for name, share in zip(classes, counts, strict=True)}
