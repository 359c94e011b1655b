"""What functions find bound while a program of theirs is traced: a task's frozen constants, and the round's number.

A program has both as arguments. Losses read the constants there and not in the task; what differs by round asks here.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Final

import jax

from fedjax_sim.core.arrays import PyTree, Scalar
from fedjax_sim.core.errors import is_traced

_bound: ContextVar[tuple[tuple[PyTree, PyTree], ...]] = ContextVar("frozen", default=())
_round: ContextVar[Scalar | Callable[[], Scalar] | None] = ContextVar("round", default=None)
_asked: list[bool] = []  # something in this process differs by round

# What a function that was jitted within keeps of a trace must not serve another: JAX has such contexts from 0.9 on.
_trace: Any = (
    jax.make_user_context(None) if hasattr(jax, "make_user_context") else lambda value: contextlib.nullcontext()
)


class _Bound:
    """Stands for constants that a program has as an argument."""

    def __repr__(self) -> str:
        return "<bound>"


BOUND: Final = _Bound()
"""In a task by which programs are kept: other constants of the same shapes take no other program."""


@contextlib.contextmanager
def bound(given: PyTree, here: PyTree, round: Scalar | Callable[[], Scalar] | None = None) -> Iterator[None]:
    """Losses of tasks whose `frozen` is `given`, this very object, read `here`; and it is that round.

    A round that is a function is called when it is asked for.
    """
    before, number = _bound.set((*_bound.get(), (given, here))), _round.set(round)
    try:
        told = (here, round) if _asked else here
        with _trace(object() if any(map(is_traced, jax.tree.leaves(told))) else None):
            yield
    finally:
        _bound.reset(before)
        _round.reset(number)


def keyword(given: PyTree) -> dict[str, PyTree]:
    """What a loss takes beside parameters, batch and key: `frozen`, for a task that has some."""
    if given is None:
        return {}
    return {"frozen": next((here for each, here in reversed(_bound.get()) if each is given), given)}


def ask_for_rounds() -> None:
    """From now on `this_round` will be called, perhaps within a user's own `jit`."""
    if not _asked:
        _asked.append(True)


def this_round() -> Scalar:
    """The number of the round whose functions are being traced; 0 before any round, where a state is made."""
    number = _round.get()
    return 0 if number is None else number() if callable(number) else number
