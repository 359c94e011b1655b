"""Reducers that collect: what they return, checked; and those written for three arguments, as they once were."""

import inspect
import warnings

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate.base import Collected, Reduced, Reducer
from fedjax_sim.aggregate.robust.blocks import each
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.kinds import check_keeps
from fedjax_sim.core.metrics import as_metrics

ABANDONED = "abandoned"
"""The metric of a round that was refused, `aggregate/abandoned`: 1, else 0."""


def reduced(reducer: Reducer, collected: Collected) -> Reduced:
    """What a reducer makes of a round's messages, all at hand; of one by coordinate, block by block."""
    if not reducer.by_coordinate:
        return made(reducer, collected)
    value = each(lambda block: made(reducer, collected._replace(messages=block)).value, collected.messages)
    return of_no_coordinates(reducer, collected)._replace(value=value)


def of_no_coordinates(reducer: Reducer, collected: Collected) -> Reduced:
    """What a reducer by coordinate says of a round whatever its messages are."""
    nothing = jnp.zeros((len(collected.contributes), 0), jnp.float32)
    return made(reducer, collected._replace(messages=nothing))


def made(reducer: Reducer, collected: Collected) -> Reduced:
    """What `collect` returns, checked: metrics as metrics, the state like the one before.

    `refused` stays Python's False where nothing is ever refused.

    Raises:
        ArgumentError: it returned something else.
    """
    assert reducer.collect is not None
    found = reducer.collect(collected)
    if not isinstance(found, Reduced):
        raise ArgumentError(f"{reducer.name}: collect returned {type(found).__name__}: must be a fs.aggregate.Reduced.")
    metrics = as_metrics({} if found.metrics is None else found.metrics)
    if ABANDONED in metrics:
        raise ArgumentError(f"{reducer.name} reports {ABANDONED!r}, which the engine does of refused: rename it.")
    if jnp.shape(found.refused) != ():
        raise ArgumentError(f"{reducer.name}: refused has shape {jnp.shape(found.refused)}: must be a scalar.")
    refused = False if found.refused is False else jnp.asarray(found.refused, bool)
    return Reduced(found.value, _like(reducer.name, collected.state, found.state), metrics, refused)


def _like(name: str, old: object, new: object) -> object:
    """The new state, in the old one's dtypes."""
    shaped = lambda tree: (jax.tree.structure(tree), [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)])
    if shaped(old) != shaped(new):
        raise ArgumentError(
            f"{name}: the state that collect returned has {shaped(new)}: must be that of what init made, {shaped(old)}."
        )
    check_keeps(f"{name}: the state that collect returned", old, new)
    return jax.tree.map(lambda a, b: jnp.asarray(b, jnp.result_type(a)), old, new)


def of_today(reducer: Reducer) -> Reducer:
    """A reducer whose `collect` takes a `Collected`, of one that takes `(messages, weights, contributes)`."""
    if reducer.collect is None or _arguments(reducer.collect) != 3:
        return reducer
    warnings.warn(
        f"{reducer.name}: collect(messages, weights, contributes) -> value is deprecated: take one argument, a "
        "fs.aggregate.Collected, and return a fs.aggregate.Reduced.",
        DeprecationWarning,
        stacklevel=3,
    )
    former = reducer.collect

    def collect(collected: Collected) -> Reduced:
        return Reduced(former(collected.messages, collected.weights, collected.contributes))  # type: ignore[call-arg]

    return reducer._replace(collect=collect)


def _arguments(function: object) -> int | None:
    """How many a function must be given, one after another; None where it does not say."""
    try:
        parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
