"""Chains: transforms composed around a reducer, checked as a whole when they are built."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate.base import (
    Context,
    Facts,
    Message,
    Metrics,
    Reducer,
    Row,
    State,
    Transform,
)
from fedjax_sim.aggregate.reducers import mean
from fedjax_sim.core import pytree
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.metrics import as_metrics
from fedjax_sim.core.types import Aggregate, Key


class Aggregator(NamedTuple):
    """A chain of transforms around a reducer; made by `chain`.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> aggregator = fs.aggregate.chain(fs.aggregate.clip_by_l2(1.0))
        >>> states, rows = aggregator.init(jnp.zeros(2))
        >>> context = fs.aggregate.Context(client_id=0, round=0, round_key=jax.random.key(0), bound=jnp.inf)
        >>> print(aggregator.client(jax.random.key(1), states, rows, jnp.array([3.0, 4.0]), context)[0])
        [0.6 0.8]
    """

    transforms: tuple[Transform, ...]
    reducer: Reducer
    facts: Facts

    def init(self, payload_shapes: Any) -> tuple[tuple[State, ...], tuple[Row, ...] | None]:
        """`(states, rows)`, one entry a transform; rows are None when no transform keeps any."""
        states, rows, metrics = [], [], {}
        for t in self.transforms:
            state, row = t.init(payload_shapes)
            states.append(state)
            rows.append(row)
            payload_shapes, _, seen = jax.eval_shape(
                lambda payload, t=t, state=state, row=row: t.client(
                    jax.random.key(0), state, row, payload, _context_like()
                ),
                payload_shapes,
            )
            metrics = _join(metrics, seen, t)
        return tuple(states), tuple(rows) if jax.tree.leaves(rows) else None

    def client(self, key: Key, states: Any, rows: Any, payload: Any, context: Context):
        """All client sides in order: `(message, rows, metrics)`."""
        new_rows, metrics = [], {}
        for i, t in enumerate(self.transforms):
            row = None if rows is None else rows[i]
            bound = t.bound(states[i], context.bound, pytree.size(payload))
            payload, row, seen = t.client(jax.random.fold_in(key, i), states[i], row, payload, context)
            new_rows.append(row)
            metrics = _join(metrics, as_metrics(seen), t)
            context = context._replace(bound=bound)
        return payload, None if rows is None else tuple(new_rows), metrics

    def receive(self, key: Key, states: Any, message: Message) -> Message:
        """All receiving sides, in reverse order."""
        for i in reversed(range(len(self.transforms))):
            message = self.transforms[i].receive(jax.random.fold_in(key, i), states[i], message)
        return message

    def server(self, key: Key, states: Any, aggregate: Aggregate, expected: Any):
        """All server sides in reverse order, then the division: `(aggregate, states, metrics)`.

        Under noise the result's weight and count are the expected cohort too: the realised one is not public, and a
        server that multiplies the mean by its count must get the sum back.
        """
        new_states, metrics = list(states), {}
        for i in reversed(range(len(self.transforms))):
            t = self.transforms[i]
            aggregate, new_states[i], seen = t.server(jax.random.fold_in(key, i), states[i], aggregate)
            metrics = _join(metrics, as_metrics(seen), t)
        value = self.reducer.result(aggregate, expected if self.facts.noisy else None)
        weight, count = aggregate.weight, aggregate.count
        if self.facts.noisy:
            weight = count = jnp.asarray(expected, jnp.float32)
        return Aggregate(value, weight, count), tuple(new_states), metrics

    def __str__(self) -> str:
        stages = [t.name for t in self.transforms] + [self.reducer.name]
        return "chain(" + " > ".join(stages) + ")"


def chain(*transforms: Transform, reduce: Reducer | None = None) -> Aggregator:
    """Compose transforms around a reducer; their order is the order on the client.

    Args:
        *transforms: none or more.
        reduce: the reducer; `fs.aggregate.mean()` by default.

    Raises:
        ArgumentError: a combination that would be wrong, naming the parts.

    Example:
        >>> import fedjax_sim as fs
        >>> print(fs.aggregate.chain(fs.aggregate.clip_by_l2(1.0), reduce=fs.aggregate.mean("uniform")))
        chain(clip_by_l2(1.0) > mean(uniform))
    """
    reducer = mean() if reduce is None else reduce
    if not isinstance(reducer, Reducer):
        raise ArgumentError(f"reduce={reducer!r}: must be a reducer, such as fs.aggregate.mean().")
    facts = Facts()
    for t in transforms:
        if not isinstance(t, Transform):
            raise ArgumentError(f"{t!r}: must be a fs.aggregate.Transform; reducers go to reduce=.")
        facts = t.facts(facts)
    if facts.noisy and reducer.weight == "examples":
        raise ArgumentError(
            f"{_names(transforms)} adds noise, and {reducer.name} weights clients by examples: one client's "
            'influence is then not bounded. Use reduce=fs.aggregate.mean(weight="uniform").'
        )
    if facts.noisy and not reducer.linear:
        raise ArgumentError(f"{_names(transforms)} adds noise for a sum, and {reducer.name} is not a sum: use mean.")
    return Aggregator(tuple(transforms), reducer, facts)


def as_aggregator(aggregator: Aggregator | Reducer | Transform | None) -> Aggregator:
    """An `Aggregator` from a chain, a bare reducer, a bare transform, or nothing (a mean by examples).

    Example:
        >>> import fedjax_sim as fs
        >>> for part in (fs.aggregate.median(), fs.aggregate.clip_by_l2(1.0), None):
        ...     print(fs.aggregate.as_aggregator(part))
        chain(median)
        chain(clip_by_l2(1.0) > mean(examples))
        chain(mean(examples))
    """
    if isinstance(aggregator, Aggregator):
        return aggregator
    if aggregator is None or isinstance(aggregator, Reducer):
        return chain(reduce=aggregator)
    if isinstance(aggregator, Transform):
        return chain(aggregator)
    raise ArgumentError(f"aggregator={aggregator!r}: must be a chain, a reducer or a transform.")


def _context_like() -> Context:
    zero = jnp.zeros((), jnp.int32)
    return Context(zero, zero, jax.random.key(0), jnp.asarray(jnp.inf, jnp.float32))


def _join(metrics: Metrics, more: Metrics, transform: Transform) -> Metrics:
    twice = set(metrics) & set(more)
    if twice:
        raise ArgumentError(f"{transform.name} reports {sorted(twice)}, which an earlier transform did too.")
    return {**metrics, **more}


def _names(transforms: tuple[Transform, ...]) -> str:
    return ", ".join(t.name for t in transforms)
