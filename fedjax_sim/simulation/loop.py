"""The loop over rounds: dispatch, check, evaluate, record, checkpoint. Nothing that is finished is lost."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import NonFiniteUpdateError, RefusedRoundError, RunInterrupted, check, check_count
from fedjax_sim.core.types import Params, RoundState
from fedjax_sim.engine.device import placement, processes
from fedjax_sim.simulation import tuning
from fedjax_sim.simulation.executor import Executor
from fedjax_sim.simulation.history import History, RoundMetrics, check_rounds
from fedjax_sim.simulation.recorder import Recording

Evaluate = Callable[[Params], dict[str, float]]
"""`params -> dict of numbers`."""


def check_run(rounds: int, eval_every: Any, checkpoint_every: Any, profile: bool, run_dir: Any) -> None:
    """Arguments of `sim.run`."""
    check_count("rounds", rounds, minimum=0)
    for name, value in (("eval_every", eval_every), ("checkpoint_every", checkpoint_every)):
        if value is not None:
            check_count(name, value)
    for name, value in (("checkpoint_every", checkpoint_every), ("profile", profile)):
        check(not value or run_dir is not None, name, value, "needs run_dir=, a folder to keep it in.")


class Schedule(NamedTuple):
    """Which rounds end a block: those after which the run evaluates, checkpoints or ends."""

    end: int
    block: int
    eval_every: int | None
    checkpoint_every: int | None

    def count(self, now: int) -> int:
        """Rounds of the next dispatch."""
        every = [n for n in (self.eval_every, self.checkpoint_every) if n is not None]
        return min(self.block, self.end - now, *(n - now % n for n in every))

    def evaluates(self, round: int) -> bool:
        return round == self.end or (self.eval_every is not None and round % self.eval_every == 0)

    def checkpoints(self, round: int) -> bool:
        return self.checkpoint_every is not None and round % self.checkpoint_every == 0

    def due(self, round: int) -> bool:
        return self.evaluates(round) or self.checkpoints(round)


def one_round(executor: Executor, state: RoundState) -> tuple[RoundState, RoundMetrics]:
    """`sim.step`."""
    tuning.tune(executor, state)
    # Room to stream costs more than a program.
    slots = executor.rounds_per_dispatch if executor.parts.reader is None else 1
    after, rounds = executor.dispatch(state, executor.plan(state, 1, slots), executor.copy_if_donated)
    if executor.parts.may_fail:
        try:
            check_rounds(rounds, executor.parts)
        except (NonFiniteUpdateError, RefusedRoundError) as error:
            error.state = state
            raise
    return executor.observed(after, rounds), rounds[0]


def run_rounds(
    executor: Executor, state: RoundState, schedule: Schedule, evaluate: Evaluate | None, record: Recording
) -> tuple[RoundState, History]:
    """Rounds from `state` to the schedule's end; `sim.run` has the arguments' meaning."""
    parts, profile, copy = executor.parts, record.profile, executor.copy_if_donated
    rounds = (executor.plan, executor.dispatch) if profile is None else (profile.plan, profile.dispatch)
    plan, dispatch = functools.partial(rounds[0], slots=executor.rounds_per_dispatch), rounds[1]
    if profile is not None and evaluate is not None:
        evaluate = profile.evaluating(evaluate)
    flight = Flight(executor, state, schedule, evaluate, record)
    # One dispatch is in flight while the one before it is checked; states that hold tables are not kept twice.
    ahead = not parts.large and not parts.sampler.waits
    try:
        record.say("compiling")
        count = schedule.count(state.round)
        plans = plan(state, count) if count else None
        while plans is not None:
            state, metrics = dispatch(state, plans, copy)
            flight.pending.append((state, metrics))
            copy = _unchanged
            count = schedule.count(state.round)
            plans = plan(state, count) if count and not parts.sampler.waits else None
            held = 1 if ahead and not schedule.due(state.round) and not record.stopping else 0
            while len(flight.pending) > held and flight.ended is None:
                flight.settle()
            if ended := flight.ended:
                flight.pending.clear()  # a dispatch in flight is as if it had not been
                state, flight.history.stopped = flight.good, ended
                record.note(f"ended after {state.round} rounds: {ended}")
                break
            state = state if held else flight.good
            if schedule.checkpoints(state.round):
                record.checkpoint(state)
            if not held and count and record.stopping:
                raise RunInterrupted
            if plans is None and count:
                plans = plan(state, count)
        if profile is not None:
            profile.close()  # what follows belongs to no round
        record.finish(state)
    except BaseException as error:
        flight.land(error)
        raise
    return state, flight.history


class Flight:
    """The dispatches of a run that are in flight, and what is known of those before them.

    Attributes:
        history: the rounds that are checked.
        pending: state and metrics after each dispatch that is not, the oldest first.
        good: the last state that can be gone on from.
        recorded: all its rounds are recorded.
        ended: why a callback ended the run; None while none did.
    """

    def __init__(
        self, executor: Executor, state: RoundState, schedule: Schedule, evaluate: Evaluate | None, record: Recording
    ):
        self.executor, self.schedule, self.evaluate, self.record = executor, schedule, evaluate, record
        self.history = History()
        self.pending: list[tuple[RoundState, list[RoundMetrics]]] = []
        self.good, self.recorded = state, True
        self.ended: str | None = None

    def settle(self) -> None:
        """Check and record the oldest dispatch. If that fails, it and those after it are as if they had not been."""
        executor, parts = self.executor, self.executor.parts
        (after, metrics), later = self.pending[0], self.pending[1:]
        self.pending.clear()
        if parts.may_fail:
            try:
                check_rounds(metrics, parts)
            except (NonFiniteUpdateError, RefusedRoundError) as error:
                before, again = executor.replay(self.good, error.round)
                self._call_back(again)
                self._write(again)
                self.good = before
                raise
        if parts.donates:  # the state before it is gone
            self.good, self.recorded = after, False
        after = executor.observed(after, metrics)
        due = self.schedule.evaluates(after.round)
        if due:
            self._evaluate(after, metrics[-1])
        self._call_back(metrics)
        self.ended = self.record.ended
        if self.ended is not None and not due:  # it is the last round after all
            self._evaluate(after, metrics[-1])
        self._write(metrics)
        self.good, self.recorded = after, True
        self.pending.extend(later)

    def _evaluate(self, after: RoundState, last: RoundMetrics) -> None:
        if self.evaluate is not None:
            self.record.say("evaluating")
            model = self.executor.copy_if_donated(self.executor.parts.algorithm.params(after.server))
            last.params = placement.local(model)
            last.evaluation = evaluated(self.evaluate, last.params)

    def _call_back(self, rounds: list[RoundMetrics]) -> None:
        for metrics in rounds:
            self.history.rounds.append(metrics)
            self.record.call_back(metrics)

    def _write(self, rounds: list[RoundMetrics]) -> None:
        for metrics in rounds:
            self.record.round(metrics)
            metrics.params = None

    def land(self, error: BaseException) -> None:
        """After an error: save what is good, and say where it is."""
        # What only one of several processes meets, it cannot save with the others.
        told = not self.executor.parts.multi_process or isinstance(error, processes.ALIKE)
        try:
            while self.pending and told:
                self.settle()
            if self.recorded and told:
                self.record.checkpoint(self.good)
                self.record.wait()
        except Exception as another:
            error.add_note(f"While it was being handled: {another}")
        kept = [metrics for metrics in self.history.rounds if metrics.round < self.good.round]
        self.history.rounds = kept
        _tell(error, self.good, self.history, self.record)


def _tell(error: BaseException, good: RoundState, history: History, record: Recording) -> None:
    """What is left of the run, and where."""
    error.state, error.history = good, history  # type: ignore[attr-defined]
    message = record.how_to_go_on(good)
    if isinstance(error, RunInterrupted):
        name = record.stopped_by.name if record.stopped_by else "a signal"
        error.args = (f"stopped by {name}. {message}",)
    else:
        error.add_note(message)


def _unchanged(tree: PyTree) -> Any:
    return tree


def evaluated(evaluate: Evaluate, params: Params) -> dict[str, float]:
    """What `evaluate` says of a model, checked."""
    values = evaluate(params)
    check(isinstance(values, Mapping), "evaluate's value", values, "must be a dict of name to number.")
    return {str(name): float(value) for name, value in values.items()}
