"""Errors that say what was wrong, with the value, and what to do about it."""

import contextlib
import contextvars
import math
import operator
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import jax
from jax.core import Tracer

from fedjax_sim.core.arrays import Scalar

try:
    from jax.extend.core import get_opaque_trace_state
except ImportError:  # in JAX 0.8
    from jax.core import get_opaque_trace_state  # pyright: ignore[reportAttributeAccessIssue]


class FedSimError(Exception):
    """Every error that this package raises on purpose is one of these.

    Attributes:
        state: where a `run` ended early, the `RoundState` after its last good round; else None.
        history: the `History` of that run's good rounds; else None.

    Example:
        >>> import fedjax_sim as fs
        >>> try:
        ...     fs.partition.dirichlet(alpha=-1.0, num_clients=10)
        ... except fs.FedSimError as error:
        ...     print(error)
        alpha=-1.0: must be positive and finite. Small values give skewed clients, large ones even.
    """

    state: Any = None
    history: Any = None


class ArgumentError(FedSimError, ValueError):
    """An argument, a data set or a combination of parts that cannot be right."""


class ClientError(FedSimError):
    """A client function failed; the message names the client and its batch.

    Example:
        >>> import jax, jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.ones(()), lambda w, batch, key: jnp.log(w * batch["x"]))
        >>> data = fs.data.FederatedData({"x": jnp.array([1.0, -1.0])}, offsets=[0, 1, 2])
        >>> parts = (fs.fedavg(task, optax.sgd(0.1)), data, fs.sampler.uniform(2), fs.Batching(1))
        >>> sim = fs.Simulation(*parts, debug=True)
        >>> try:
        ...     with jax.debug_nans(True):
        ...         sim.step(sim.init())
        ... except fs.ClientError as error:
        ...     print(str(error).split(";")[0])
        client 1 (id 1, 1 examples, 1 steps) failed in round 0
    """


class NonFiniteUpdateError(FedSimError, ArithmeticError):
    """A client's update held NaN or infinity.

    Attributes:
        round: the round in which it happened.
        client_ids: the clients, as indices into the federation.
        state, history: as in `FedSimError`; from `step`, the state that it was given.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> data = fs.data.FederatedData({"x": jnp.array([1.0, jnp.nan])}, offsets=[0, 1, 2])
        >>> sampler = fs.sampler.fixed([[0], [0, 1]])
        >>> sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.1)), data, sampler, fs.Batching(1))
        >>> try:
        ...     sim.run(sim.init(), rounds=2)
        ... except fs.NonFiniteUpdateError as error:
        ...     print(error.round, error.client_ids, sim.params(error.state))
        1 [1] 0.2
    """

    def __init__(self, message: str, round: int, client_ids: list[int]):
        super().__init__(message)
        self.round = round
        self.client_ids = client_ids


class RefusedRoundError(FedSimError):
    """A reducer that must not abandon a round refused one: too few clients came for its rule.

    Attributes:
        round: the round that was refused.
        state, history: as in `FedSimError`; from `step`, the state that it was given.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> data = fs.data.FederatedData({"x": jnp.arange(6.0)}, offsets=[0, 2, 4, 6])
        >>> rule = fs.aggregate.trimmed_mean(1, on_few="error")
        >>> sampler = fs.sampler.fixed([[0, 1, 2], [0, 1]])
        >>> sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.1), aggregator=rule), data, sampler, fs.Batching(2))
        >>> try:
        ...     sim.run(sim.init(), rounds=2, progress=False)
        ... except fs.RefusedRoundError as error:
        ...     print(error.round, error.state.round)
        1 1
    """

    def __init__(self, message: str, round: int):
        super().__init__(message)
        self.round = round


class RunFolderError(FedSimError, OSError):
    """A run folder, or a checkpoint in it, that cannot be written or read, is in use, or belongs to another run.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> data = fs.data.FederatedData({"x": jnp.arange(4.0)}, offsets=[0, 2, 4])
        >>> sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.1)), data, fs.sampler.uniform(2), fs.Batching(2))
        >>> try:
        ...     sim.restore("runs/nothing-here")
        ... except fs.RunFolderError as error:
        ...     print(error)
        runs/nothing-here holds no checkpoint.
    """


class RunInterrupted(KeyboardInterrupt):
    """Ctrl-C, or SIGTERM, while a run with a folder went on: its round was finished and its state saved.

    Attributes:
        state, history: the `RoundState` and the `History` of the finished rounds.

    Example:
        >>> import fedjax_sim as fs
        >>> def train(sim, folder):
        ...     try:
        ...         return sim.run(sim.init(), rounds=100, run_dir=folder)
        ...     except fs.RunInterrupted as stop:
        ...         return stop.state, stop.history
    """

    state: Any = None
    history: Any = None


def is_traced(value: object) -> bool:
    """True when `value` is known only inside a JAX transformation, and so cannot be checked."""
    return isinstance(value, Tracer)


class Deferred(NamedTuple):
    """A check of a traced value, to be made where its value is known."""

    ok: jax.Array
    value: object
    name: str
    advice: str


_deferred: contextvars.ContextVar[tuple[list[Deferred], Any] | None] = contextvars.ContextVar("deferred", default=None)


@contextlib.contextmanager
def deferring() -> Iterator[list[Deferred]]:
    """Collect the checks of traced values instead of skipping them, but for those in functions traced within."""
    found: list[Deferred] = []
    token = _deferred.set((found, get_opaque_trace_state(convention="flax")))
    try:
        yield found
    finally:
        _deferred.reset(token)


def check(ok: object, name: str, value: object, advice: str) -> None:
    """Raise `ArgumentError` naming an argument and its value unless `ok`; skip traced values, or defer their checks.

    Args:
        ok: the condition. A traced condition is not checked, but kept where a caller is `deferring`.
        name: the argument's name.
        value: its value, printed.
        advice: what it must be, and what to do.
    """
    if is_traced(ok) or is_traced(value):
        found, level = _deferred.get() or (None, None)
        if found is not None and is_traced(ok) and get_opaque_trace_state(convention="flax") == level:
            found.append(Deferred(cast(jax.Array, ok), value, name, advice))
        return
    if not ok:
        raise ArgumentError(f"{name}={value!r}: {advice}")


def check_positive(name: str, value: Scalar, advice: str = "") -> None:
    """`value` must be a positive, finite number."""
    if is_traced(value):
        ok = (value > 0) & (value < math.inf)
    else:
        ok = _is_number(value) and math.isfinite(value) and value > 0
    check(ok, name, value, f"must be positive and finite. {advice}".rstrip())


def check_not_negative(name: str, value: Scalar, advice: str = "") -> None:
    """`value` must be zero or a positive, finite number."""
    if is_traced(value):
        ok = (value >= 0) & (value < math.inf)
    else:
        ok = _is_number(value) and math.isfinite(value) and value >= 0
    check(ok, name, value, f"must be zero or more, and finite. {advice}".rstrip())


def check_fraction(name: str, value: Scalar, advice: str = "", closed: bool = False) -> None:
    """`value` must lie in [0, 1), or in [0, 1] when `closed`."""
    if is_traced(value):
        ok = (value >= 0) & ((value <= 1) if closed else (value < 1))
    else:
        ok = _is_number(value) and (0 <= value < 1 or (closed and value == 1))
    interval = "[0, 1]" if closed else "[0, 1)"
    check(ok, name, value, f"must lie in {interval}. {advice}".rstrip())


def check_count(name: str, value: object, minimum: int = 1, advice: str = "") -> None:
    """`value` must be a whole number, at least `minimum`; counts shape programs and are never traced."""
    try:
        ok = not isinstance(value, bool) and operator.index(value) >= minimum  # type: ignore[arg-type]
    except TypeError:
        ok = False
    check(ok, name, value, f"must be a whole number, at least {minimum}. {advice}".rstrip())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or getattr(value, "ndim", None) == 0
