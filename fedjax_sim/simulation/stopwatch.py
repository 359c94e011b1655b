"""Rounds one after another under a stopwatch: how long each is planned, moved to the devices, and computed there."""

import contextlib
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.types import RoundState
from fedjax_sim.engine.round.block import Plans
from fedjax_sim.runs.profile import FILE, PARTS, REST
from fedjax_sim.runs.writing import rewrite
from fedjax_sim.simulation.executor import Executor
from fedjax_sim.simulation.history import RoundMetrics

TRACED = 3
"""Rounds in the trace, at least: blocks are traced whole."""

TRACE = "trace"


class Profile:
    """Plans and dispatches as a simulation does, but waits for each part; writes profile.json when it is closed.

    Every moment from the first plan to `close` counts for one part of one block of rounds, but for the trace's own
    start and end. The trace begins after the first block, whose time is mostly compilation, if there are more.

    Args:
        executor: of the simulation.
        folder: of the run.
        rounds: that will be run.
    """

    def __init__(self, executor: Executor, folder: Path, rounds: int):
        self._executor, self._folder = executor, folder
        self._blocks: list[dict[str, Any]] = []
        self._next: dict[str, float] = {}  # of the block that is planned
        self._traced, self._tracing, self._closed = 0, False, False
        self._mark = time.perf_counter()
        self._at_once = rounds <= executor.rounds_per_dispatch

    def plan(self, state: RoundState, count: int, slots: int) -> Plans:
        """`executor.plan`; the federation's arrays, or the examples of the block, are on the devices too."""
        self._lap(REST)
        if self._traced == 0 and not self._tracing and (self._blocks or self._at_once):
            self._begin_trace()
        self._next = {}
        with jax.profiler.TraceAnnotation("planning"):
            plans = self._executor.pack(state, count, slots)
        self._next["planning"] = self._lap()
        with jax.profiler.TraceAnnotation("transfer"):
            plans = self._executor.placed(plans)
            constants = self._executor.read(plans)
            jax.block_until_ready((plans.words, constants))
        self._next["transfer"] = self._lap()
        return plans

    def dispatch(
        self, state: RoundState, plans: Plans, copy: Callable[[Any], Any]
    ) -> tuple[RoundState, list[RoundMetrics]]:
        """`executor.dispatch`, waited for."""
        self._lap(REST)
        programs, traced = self._executor.compile_count(), self._tracing
        with jax.profiler.TraceAnnotation("compute"):
            after, metrics = self._executor.dispatch(state, plans, copy)
            jax.block_until_ready((after.server, after.aggregator, after.rows))
        block = {"round": plans.first, "rounds": len(plans.cohorts)}
        block |= {"compiled": self._executor.compile_count() > programs, "traced": traced}
        self._blocks.append({**block, **dict.fromkeys(PARTS, 0.0), **self._next, "compute": self._lap()})
        if traced:
            self._traced += len(plans.cohorts)
            if self._traced >= TRACED:
                self._end_trace()
        return after, metrics

    def evaluating(self, evaluate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The same evaluation, timed."""

        def timed(params: PyTree) -> Any:
            self._lap(REST)
            with jax.profiler.TraceAnnotation("evaluation"):
                values = jax.block_until_ready(evaluate(params))
            self._lap("evaluation")
            return values

        return timed

    def close(self) -> None:
        """End the trace and write what was found, once."""
        if self._closed:
            return
        self._closed = True
        self._lap(REST)
        self._end_trace()
        kept = [{name: round(v, 6) if name in PARTS else v for name, v in block.items()} for block in self._blocks]
        found = {"trace": TRACE if self._traced > 0 else None, "blocks": kept}
        rewrite(self._folder / FILE, json.dumps(found) + "\n")

    def _lap(self, part: str | None = None) -> float:
        """Seconds since the last lap; they count for a part of the last block, if one is named."""
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        if part and self._blocks:
            self._blocks[-1][part] += seconds
        return seconds

    def _begin_trace(self) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        try:
            jax.profiler.start_trace(self._folder / TRACE, profiler_options=options)
            self._tracing = True
        except RuntimeError as error:  # the program that calls traces already
            self._traced = -1
            warnings.warn(f"no trace of the rounds: {error}", stacklevel=2)
        self._mark = time.perf_counter()

    def _end_trace(self) -> None:
        if self._tracing:
            self._tracing = False
            with contextlib.suppress(RuntimeError):  # somebody else ended it
                jax.profiler.stop_trace()
            self._mark = time.perf_counter()
