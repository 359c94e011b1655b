"""The loop over rounds: dispatch, check, evaluate, record, checkpoint. Nothing that is finished is lost."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fedjax_sim.core.errors import NonFiniteUpdateError, RunInterrupted, check
from fedjax_sim.core.types import Params, RoundState
from fedjax_sim.engine.device import placement, processes
from fedjax_sim.simulation.executor import Executor
from fedjax_sim.simulation.history import History, RoundMetrics, check_finite
from fedjax_sim.simulation.recorder import Recording

Evaluate = Callable[[Params], dict[str, float]]
"""`params -> dict of numbers`."""


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


def run_rounds(
    executor: Executor, state: RoundState, schedule: Schedule, evaluate: Evaluate | None, record: Recording
) -> tuple[RoundState, History]:
    """Rounds from `state` to the schedule's end; `sim.run` has the arguments' meaning."""
    parts, history, copy = executor.parts, History(), executor.copy_if_donated
    # One dispatch is in flight while the one before it is checked; states that hold rows are not kept twice.
    ahead = not parts.has_table and parts.sampler.observe is None
    good, recorded = state, True  # the last state that can be gone on from, and whether all its rounds are recorded
    pending: list[tuple[RoundState, list[RoundMetrics]]] = []

    def keep(rounds: list[RoundMetrics]) -> None:
        for metrics in rounds:
            history.rounds.append(metrics)
            record.round(metrics)

    def settle() -> None:
        """Check and record the oldest dispatch. If that fails, it and those after it are as if they had not been."""
        nonlocal good, recorded
        (after, metrics), later = pending[0], pending[1:]
        pending.clear()
        if parts.on_nonfinite == "raise":
            try:
                check_finite(metrics, parts)
            except NonFiniteUpdateError as error:
                before, again = executor.replay(good, error.round)
                keep(again)
                good = before
                raise
        if parts.donates:  # the state before it is gone
            good, recorded = after, False
        after = executor.observed(after, metrics)
        if evaluate is not None and schedule.evaluates(after.round):
            record.say("evaluating")
            metrics[-1].evaluation = evaluated(
                evaluate, placement.local(executor.copy_if_donated(parts.algorithm.params(after.server)))
            )
        keep(metrics)
        good, recorded = after, True
        pending.extend(later)

    profile = record.profile
    rounds = (executor.plan, executor.dispatch) if profile is None else (profile.plan, profile.dispatch)
    plan, dispatch = functools.partial(rounds[0], slots=executor.rounds_per_dispatch), rounds[1]
    if profile is not None and evaluate is not None:
        evaluate = profile.evaluating(evaluate)
    try:
        record.say("compiling")
        count = schedule.count(state.round)
        plans = plan(state, count) if count else None
        while plans is not None:
            state, metrics = dispatch(state, plans, copy)
            pending.append((state, metrics))
            copy = _unchanged
            count = schedule.count(state.round)
            plans = plan(state, count) if count and parts.sampler.observe is None else None
            held = 1 if ahead and not schedule.due(state.round) and not record.stopping else 0
            while len(pending) > held:
                settle()
            state = state if held else good
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
        # What only one of several processes meets, it cannot save with the others.
        told = not parts.multi_process or isinstance(error, processes.ALIKE)
        try:
            while pending and told:
                settle()
            if recorded and told:
                record.checkpoint(good)
                record.wait()
        except Exception as another:
            error.add_note(f"While it was being handled: {another}")
        history.rounds = [metrics for metrics in history.rounds if metrics.round < good.round]
        _tell(error, good, history, record)
        raise
    return state, history


def _tell(error: BaseException, good: RoundState, history: History, record: Recording) -> None:
    """What is left of the run, and where."""
    error.state, error.history = good, history  # type: ignore[attr-defined]
    message = record.how_to_go_on(good)
    if isinstance(error, RunInterrupted):
        name = record.stopped_by.name if record.stopped_by else "a signal"
        error.args = (f"stopped by {name}. {message}",)
    else:
        error.add_note(message)


def _unchanged(tree: Any) -> Any:
    return tree


def evaluated(evaluate: Evaluate, params: Params) -> dict[str, float]:
    """What `evaluate` says of a model, checked."""
    values = evaluate(params)
    check(isinstance(values, Mapping), "evaluate's value", values, "must be a dict of name to number.")
    return {str(name): float(value) for name, value in values.items()}
