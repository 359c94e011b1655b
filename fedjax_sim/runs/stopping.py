"""Callbacks that end a run, or keep its best model: early stopping, a limit of time."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.runs.loggers import Round
from fedjax_sim.runs.modes import Mode, mode_of


class Stop(NamedTuple):
    """What a callback returns to end the run after its round; after the last of those that are dispatched with it.

    The state and the history are those of a run of so many rounds, evaluated after the last one, which callbacks are
    not told again; a folder has its last checkpoint.

    Attributes:
        reason: in words, which the run tells.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> data = fs.data.FederatedData({"x": jnp.arange(4.0)}, offsets=[0, 2, 4])
        >>> sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.1)), data, fs.sampler.uniform(2), fs.Batching(2))
        >>> enough = lambda metrics: fs.runs.Stop("good enough") if metrics["client/loss"] < 3.5 else None
        >>> state, history = sim.run(sim.init(), rounds=100, callbacks=[enough])
        >>> state.round, history.stopped
        (2, 'good enough')
    """

    reason: str


def early_stop(
    metric: str, patience: int, *, mode: Mode | None = None, min_delta: float = 0.0
) -> Callable[[Round], Stop | None]:
    """Ends a run whose metric has not improved for `patience` values in a row; rounds without a value do not count.

    A value improves on the best one before it by more than `min_delta`; NaN never does.

    Args:
        metric: its name, as in a history: "test/loss".
        patience: values, one or more.
        mode: "min" or "max"; None for "min" where the name tells of a loss or an error, else "max".
        min_delta: zero or more.

    Raises:
        ArgumentError: in the round after `patience` rounds and a hundred in which no round had the metric.

    Example:
        >>> import fedjax_sim as fs
        >>> stop = fs.runs.early_stop("test/loss", patience=2)
        >>> [stop({"test/loss": loss}) for loss in (1.0, 0.5, 0.6)]
        [None, None, None]
        >>> stop({"test/loss": 0.5}).reason
        'test/loss has not improved on 0.5 in 2 values'
    """
    check_count("patience", patience)
    check(min_delta >= 0, "min_delta", min_delta, "must not be negative.")
    sign = 1 if mode_of(metric, mode) == "min" else -1
    best, since, missing = math.inf, 0, 0

    def callback(metrics: Round) -> Stop | None:
        nonlocal best, since, missing
        if metric not in metrics:
            missing += 1
            _check_there(metric, metrics, missing if best == math.inf and not since else 0, patience)
            return None
        value = sign * float(metrics[metric])
        improved = value < best - min_delta or (best == math.inf and value < best)
        best, since = (value, 0) if improved else (best, since + 1)
        if since < patience:
            return None
        return Stop(f"{metric} has not improved on {sign * best:.4g} in {patience} values")

    return callback


def time_limit(*, minutes: float) -> Callable[[Round], Stop | None]:
    """Ends a run after the round in which so many minutes have passed since its first one's end.

    Example:
        >>> import fedjax_sim as fs
        >>> stop = fs.runs.time_limit(minutes=30)
        >>> stop({}) is None
        True
    """
    check(minutes > 0, "minutes", minutes, "must be above 0.")
    begin: float | None = None

    def callback(metrics: Round) -> Stop | None:
        nonlocal begin
        begin = time.monotonic() if begin is None else begin
        return Stop(f"{minutes:g} minutes have passed") if time.monotonic() - begin > 60 * minutes else None

    return callback


class keep_best:
    """Keeps the model of the evaluation with the best value so far.

    Args:
        metric: of the run's evaluation: "test/accuracy".
        mode: as in `early_stop`.

    Attributes:
        round: how many rounds it had been trained for; 0 before the first evaluation.
        value: the metric's.
        params: the model's parameters, on its devices; None before the first evaluation.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> data = fs.data.FederatedData({"x": jnp.arange(4.0)}, offsets=[0, 2, 4])
        >>> sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.9)), data, fs.sampler.uniform(2), fs.Batching(2))
        >>> best = fs.runs.keep_best("off", mode="min")
        >>> _ = sim.run(sim.init(), 3, evaluate=lambda w: {"off": abs(w - 1.5)}, eval_every=1, callbacks=[best])
        >>> best.round, bool(best.value < 0.8)
        (3, True)
    """

    def __init__(self, metric: str, *, mode: Mode | None = None):
        self.metric, self._sign = metric, 1 if mode_of(metric, mode) == "min" else -1
        self.round, self.value, self.params = 0, math.nan, None

    def __call__(self, metrics: Any) -> None:
        if not metrics.evaluation:
            return
        if self.metric not in metrics.evaluation:
            raise ArgumentError(f"metric={self.metric!r}: the evaluation has {sorted(metrics.evaluation)}.")
        value = float(metrics.evaluation[self.metric])
        if self.params is None or self._sign * value < self._sign * self.value or math.isnan(self.value):
            self.round, self.value, self.params = metrics.round + 1, value, metrics.params

    def __repr__(self) -> str:
        return f"keep_best({self.metric!r}: {self.value:.4g} after {self.round} rounds)"


def _check_there(metric: str, metrics: Round, missing: int, patience: int) -> None:
    """A name that is misspelt would never end a run."""
    if missing > patience + 100:
        raise ArgumentError(f"metric={metric!r}: none of {missing} rounds had it; this one has {sorted(metrics)}.")
