"""Padding examples enter no batch statistics: every BatchNorm, linen's or nnx's, is handed the batch's mask."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as linen
import jax
from flax import nnx

_MASK: contextvars.ContextVar[jax.Array | None] = contextvars.ContextVar("mask", default=None)


def _shaped(mask: jax.Array, axes: int) -> jax.Array:
    """[B, 1, ...] bool, for inputs of so many axes."""
    return mask.reshape((-1,) + (1,) * (axes - 1)) > 0


def linen_masked(mask: jax.Array) -> Callable[..., Any]:
    """An interceptor for linen modules. mask: [B], 0 for padding."""

    def interceptor(next_function, args, kwargs, context):
        batch_norm = isinstance(context.module, linen.BatchNorm) and context.method_name == "__call__"
        if batch_norm and kwargs.get("mask") is None:
            x = args[0] if args else kwargs["x"]
            kwargs = {**kwargs, "mask": _shaped(mask, x.ndim)}
        return next_function(*args, **kwargs)

    return interceptor


@contextlib.contextmanager
def padding(mask: jax.Array) -> Iterator[None]:
    """What nnx modules are called in. mask: [B], 0 for padding."""
    token = _MASK.set(mask)
    try:
        yield
    finally:
        _MASK.reset(token)


def nnx_masked(module: nnx.Module) -> None:
    """Have each BatchNorm of an nnx module take the mask of `padding`, unless it is handed one."""
    for _, part in nnx.iter_graph(module):
        if isinstance(part, nnx.BatchNorm):
            part.__class__ = _masked(type(part))


def all_masked(module: nnx.Module) -> bool:
    """Whether a module's batch statistics are those of `nnx.BatchNorm` alone."""
    parts = [part for _, part in nnx.iter_graph(module)]
    inside = {id(value) for part in parts if isinstance(part, nnx.BatchNorm) for value in vars(part).values()}
    return all(id(part) in inside for part in parts if isinstance(part, nnx.BatchStat))


@functools.cache
def _masked(kind: type[Any]) -> type[Any]:
    """That class of BatchNorm, with the mask."""

    def call(self: Any, x: jax.Array, *args: Any, mask: jax.Array | None = None, **kwargs: Any) -> jax.Array:
        given = _MASK.get()
        if mask is None and given is not None:
            mask = _shaped(given, x.ndim)
        return kind.__call__(self, x, *args, mask=mask, **kwargs)

    return type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__, "__doc__": kind.__doc__})
