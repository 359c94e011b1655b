"""Frozen constants: a program has them as an argument, which losses read in their place while it is traced."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Final

import jax

from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import is_traced

_bound: ContextVar[tuple[tuple[PyTree, PyTree], ...]] = ContextVar("frozen", default=())

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
def bound(given: PyTree, here: PyTree) -> Iterator[None]:
    """Losses of tasks whose `frozen` is `given`, this very object, read `here`."""
    if given is None:
        yield
        return
    token = _bound.set((*_bound.get(), (given, here)))
    try:
        with _trace(object() if any(map(is_traced, jax.tree.leaves(here))) else None):
            yield
    finally:
        _bound.reset(token)


def keyword(given: PyTree) -> dict[str, PyTree]:
    """What a loss takes beside parameters, batch and key: `frozen`, for a task that has some."""
    if given is None:
        return {}
    return {"frozen": next((here for each, here in reversed(_bound.get()) if each is given), given)}
