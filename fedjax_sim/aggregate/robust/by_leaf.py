"""A rule for each leaf of the messages, instead of one over all their coordinates."""

import functools
from typing import Literal

import jax

from fedjax_sim.aggregate.base import Collected, Reduced, Reducer
from fedjax_sim.aggregate.robust.faults import named_too
from fedjax_sim.core.errors import check
from fedjax_sim.core.metrics import as_metrics, merge

By = Literal["model", "leaf"]
"""What distances and norms are over."""


def by_leaf(by: By, reducer: Reducer) -> Reducer:
    """The reducer itself for "model"; for "leaf", one that applies it to each leaf alone.

    A round that a leaf's rule refuses is refused; metrics are merged over leaves; what it keeps, it keeps by leaf.

    Raises:
        ArgumentError: another word.
    """
    check(by in ("model", "leaf"), "by", by, 'must be "model", over all coordinates, or "leaf".')
    rule = reducer.collect
    if by == "model" or rule is None:
        return reducer

    def collect(collected: Collected) -> Reduced:
        leaves, structure = jax.tree.flatten(collected.messages)
        states = structure.flatten_up_to(collected.state) if reducer.keeps_state else [None] * len(leaves)
        made = []
        for i, (leaf, state) in enumerate(zip(leaves, states, strict=True)):
            key = None if collected.key is None else jax.random.fold_in(collected.key, i)
            made.append(rule(collected._replace(messages=leaf, state=state, key=key)))
        if not made:
            return Reduced(collected.messages, collected.state)
        metrics = functools.reduce(merge, (as_metrics(one.metrics or {}) for one in made))
        refused = functools.reduce(lambda a, b: a | b, (one.refused for one in made))
        state = structure.unflatten([one.state for one in made]) if reducer.keeps_state else None
        return Reduced(structure.unflatten([one.value for one in made]), state, metrics, refused)

    each = named_too(reducer, f"by={by}")._replace(collect=collect)
    if not reducer.keeps_state:
        return each
    return each._replace(init=lambda shapes: jax.tree.map(reducer.init, shapes))
