"""Chains: transforms composed around a reducer, checked as a whole when they are built."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate import folded
from fedjax_sim.aggregate.base import (
    Collected,
    Context,
    Facts,
    Mechanism,
    Message,
    Reduced,
    Reducer,
    Row,
    State,
    Transform,
)
from fedjax_sim.aggregate.checks import check_chain
from fedjax_sim.aggregate.collecting import of_today, reduced
from fedjax_sim.aggregate.host import HostStage
from fedjax_sim.aggregate.reducers import mean
from fedjax_sim.core import html
from fedjax_sim.core.arrays import PyTree, Scalar, Shapes
from fedjax_sim.core.errors import ArgumentError, is_traced
from fedjax_sim.core.metrics import Metric, Sum, as_metrics
from fedjax_sim.core.types import Aggregate, Key

V = TypeVar("V")


class Encoded(NamedTuple):
    """What the client sides of a chain make of one payload.

    Attributes:
        message: what is sent.
        rows: the transforms' next rows, or None.
        metrics: of the transforms, and `uplink_bits`.
        sums: side values by transform, each a pytree of float32 or None.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> aggregator = fs.aggregate.chain(fs.aggregate.clip_by_l2(1.0))
        >>> context = fs.aggregate.Context(client_id=0, round=0, round_key=jax.random.key(0), bound=jnp.inf)
        >>> encoded = aggregator.encode(jax.random.key(1), (None,), None, jnp.array([3.0, 4.0]), context)
        >>> print(encoded.message, encoded.metrics["uplink_bits"].compute())
        [0.6 0.8] 64.0
    """

    message: Message
    rows: PyTree
    metrics: dict[str, Metric]
    sums: tuple[PyTree, ...]


class Aggregator(NamedTuple):
    """A chain of transforms around a reducer; made by `chain`.

    `stages` are the facts after each transform; `facts` those of the whole.

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
    stages: tuple[Facts, ...]

    @property
    def name(self) -> str:
        """The chain in one line."""
        return f"chain({' > '.join([t.name for t in self.transforms] + [self.reducer.name])})"

    def init(self, payload_shapes: Shapes) -> tuple[tuple[State, ...], tuple[Row, ...] | None]:
        """`(states, rows)`, one entry a transform; rows are None when no transform keeps any.

        The state of a reducer that keeps one comes last.
        """
        states, rows, metrics = [], [], {}
        for t in self.transforms:
            state, row = t.init(folded.part(t, payload_shapes))
            states.append(state)
            rows.append(row)
            payload_shapes, seen = folded.shapes(t, state, row, payload_shapes)
            metrics = _join(metrics, seen, t)
        if jax.tree.leaves(rows) and self.facts.noisy:
            raise ArgumentError(
                f"{self.name} keeps rows on its clients and adds noise for privacy: what a client sends would depend "
                "on the rounds that drew it before, which no accountant of sampling covers. Leave out one of them."
            )
        if self.reducer.keeps_state:
            received = lambda message: self.receive(jax.random.key(0), states, message)
            states.append(self.reducer.init(jax.eval_shape(received, payload_shapes)))
        return tuple(states), tuple(rows) if jax.tree.leaves(rows) else None

    def encode(
        self, key: Key, states: PyTree, rows: PyTree, payload: PyTree, context: Context, noise_key: Key | None = None
    ) -> Encoded:
        """All client sides in order, with the side values and the bits that go up.

        Where a masked sum follows, the payload is multiplied by `context.weight` just before. Transforms that add noise
        for privacy get their keys from `noise_key`, if there is one, all others from `key`.
        """
        new_rows, metrics, sums = [], {}, []
        bounds, step, bits = folded.whole(context.bound), jnp.ones(()), folded.first_bits(payload)
        for i, t in enumerate(self.transforms):
            if self._weighs(i):
                payload = jax.tree.map(lambda p: p * jnp.asarray(context.weight).astype(p.dtype), payload)
            mine = folded.part(t, payload)
            own = context._replace(
                round_key=jax.random.fold_in(context.round_key, i),
                bound=folded.incoming(t, bounds),
                step=step,
                receive_key=_folded(context.receive_key, i) if t.receives else None,
            )
            own_key, row = self._key(i, key, noise_key), folded.no_row(t, mine) if rows is None else rows[i]
            sums.append(t.sums(own_key, states[i], mine, own))
            bounds, step, before = *folded.bound(t, states[i], bounds, step, payload), payload
            message, row, seen = t.client(own_key, states[i], row, mine, own)
            payload = folded.put(t, payload, message)
            bits = folded.bits(t, bits, before, message)
            new_rows.append(row)
            metrics = _join(metrics, as_metrics(seen), t)
        metrics = {**metrics, "uplink_bits": Sum(jnp.asarray(folded.total_bits(bits), jnp.float32))}
        return Encoded(payload, None if rows is None else tuple(new_rows), metrics, tuple(sums))

    def client(self, key: Key, states: PyTree, rows: PyTree, payload: PyTree, context: Context):
        """`encode` without the side values: `(message, rows, metrics)`."""
        return tuple(self.encode(key, states, rows, payload, context))[:3]

    def receive(self, key: Key, states: PyTree, message: Message) -> Message:
        """All receiving sides, in reverse order."""
        for i in reversed(range(len(self.transforms))):
            t = self.transforms[i]
            if t.receives:
                own = t.receive(jax.random.fold_in(key, i), states[i], folded.part(t, message))
                message = folded.put(t, message, own)
        return message

    def bound(self, states: PyTree, payload_shapes: Shapes) -> jax.Array:
        """The L2 bound of one client's decoded message at the end, [] float32; infinity where none holds."""
        return self.bound_and_step(states, payload_shapes)[0]

    def bound_and_step(self, states: PyTree, payload_shapes: Shapes) -> tuple[jax.Array, Scalar]:
        """`bound`, and how much one unit of the integers that are sent is worth."""
        bounds, step = folded.whole(jnp.asarray(jnp.inf, jnp.float32)), jnp.ones(())
        for t, state in zip(self.transforms, states[: len(self.transforms)], strict=True):
            bounds, step = folded.bound(t, state, bounds, step, payload_shapes)
            row = jax.eval_shape(lambda shapes, t=t: t.init(shapes)[1], folded.part(t, payload_shapes))
            payload_shapes, _ = folded.shapes(t, state, row, payload_shapes)
        return jnp.asarray(folded.total(bounds, payload_shapes), jnp.float32), step

    def reduce(self, states: PyTree, collected: Collected) -> tuple[Reduced, tuple[State, ...]]:
        """What a collecting reducer makes of a round, whose state is among `states`; the states after it."""
        if not self.reducer.keeps_state:
            return reduced(self.reducer, collected), states
        made = reduced(self.reducer, collected._replace(state=states[-1]))
        return made, (*states[:-1], made.state)

    def server(self, key: Key, states: PyTree, aggregate: Aggregate, expected: Scalar, noise_key: Key | None = None):
        """All server sides in reverse order, then the division: `(aggregate, states, metrics)`.

        Keys as in `encode`; a reducer's state stays as it is.

        Under noise the result's weight and count are the expected cohort too: the realised one is not public, and a
        server that multiplies the mean by its count must get the sum back.
        """
        new_states, metrics, given = list(states), {}, aggregate
        bound = jnp.inf if given.bound is None else given.bound
        step = jnp.ones(()) if given.step is None else given.step
        for i in reversed(range(len(self.transforms))):
            t = self.transforms[i]
            seen = dataclasses.replace(
                aggregate,
                value=folded.part(t, aggregate.value),
                bound=bound,
                expected=expected,
                step=step,
                sums=None if given.sums is None else given.sums[i],
                round_key=None if given.round_key is None else jax.random.fold_in(given.round_key, i),
            )
            after, new_states[i], reported = t.server(self._key(i, key, noise_key), states[i], seen)
            aggregate = dataclasses.replace(after, value=folded.put(t, aggregate.value, after.value))
            metrics = _join(metrics, as_metrics(reported), t)
        value = self.reducer.result(aggregate, expected if self.facts.noisy else None)
        weight, count = aggregate.weight, aggregate.count
        if self.facts.noisy:
            weight = count = jnp.asarray(expected, jnp.float32)
        return Aggregate(value, weight, count, population=given.population), tuple(new_states), metrics

    @property
    def host(self) -> HostStage | None:
        """What the host says in a round."""
        return next((t.host for t in self.transforms if t.host is not None), None)

    def joined(self, metrics: dict[str, Metric], reduced: Mapping[str, Metric]) -> dict[str, Metric]:
        """The server sides' metrics with the reducer's."""
        return _join(metrics, reduced, self.reducer)

    def mechanisms(self, expected: float) -> tuple[Mechanism, ...]:
        """All noise that the chain adds, for an expected cohort."""
        return tuple(m.resolved(expected) for m in self.facts.noise)

    def _key(self, i: int, key: Key, noise_key: Key | None) -> Key:
        """The key of a transform's side."""
        before = self.stages[i - 1].noise if i else ()
        if noise_key is not None and len(self.stages[i].noise) > len(before):
            key = noise_key
        return jax.random.fold_in(key, i)

    def _weighs(self, i: int) -> bool:
        return self.stages[i].weighted and (i == 0 or not self.stages[i - 1].weighted)

    def __repr__(self) -> str:
        return self.name

    def _repr_html_(self) -> str:
        rows = [(t.name, explain(facts)) for t, facts in zip(self.transforms, self.stages, strict=True)]
        return html.table("Chain", ["stage", "says"], [*rows, (self.reducer.name, self._divided())])

    def _divided(self) -> str:
        return "divided by the expected cohort" if self.facts.noisy else f"weights: {self.reducer.weight}"

    def __str__(self) -> str:
        lines = [self.name]
        width = max(len(t.name) for t in (*self.transforms, self.reducer))
        for t, facts in zip(self.transforms, self.stages, strict=True):
            lines.append(f"  {t.name:{width}}  {explain(facts)}")
        return "\n".join([*lines, f"  {self.reducer.name:{width}}  {self._divided()}"])


def explain(facts: Facts) -> str:
    """What is sent, in one line.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.aggregate.explain(fs.aggregate.Facts(bits=8, integers=True, bound="1.0"))
        'sends integers, 8 bits a number, L2 bound: 1.0'
    """
    kind = "integers" if facts.integers else "floats"
    if facts.modulus is not None:
        kind += f" modulo 2**{facts.modulus.bit_length() - 1}"
    parts = [f"sends {kind}, {facts.bits:g} bits a number", f"L2 bound: {facts.bound}"]
    parts += [f"noise: {m.where} {m.kind} {m.multiplier:g} on the {m.of}" for m in facts.noise]
    parts += ["decoded one by one"] * (not facts.linear) + ["clients keep rows"] * facts.rows
    parts += ["weighted before the sum"] * facts.weighted
    return ", ".join(parts)


def chain(*transforms: Transform, reduce: Reducer | None = None) -> Aggregator:
    """Compose transforms around a reducer; their order is the order on the client.

    Printed, a chain says stage by stage what is sent, in how many bits a number, and which bound holds.

    Args:
        *transforms: none or more.
        reduce: the reducer; `fs.aggregate.mean()` by default.

    Raises:
        ArgumentError: a combination that would be wrong, naming the parts.

    Example:
        >>> import fedjax_sim as fs
        >>> print(fs.aggregate.chain(fs.aggregate.clip_by_l2(1.0), reduce=fs.aggregate.mean("uniform")))
        chain(clip_by_l2(1.0) > mean(uniform))
          clip_by_l2(1.0)  sends floats, 32 bits a number, L2 bound: 1.0
          mean(uniform)    weights: uniform
    """
    reducer = mean() if reduce is None else reduce
    if not isinstance(reducer, Reducer):
        raise ArgumentError(f"reduce={reducer!r}: must be a reducer, such as fs.aggregate.mean().")
    reducer, facts, stages = of_today(reducer), Facts(), []
    for t in transforms:
        if not isinstance(t, Transform):
            raise ArgumentError(f"{t!r}: must be a fs.aggregate.Transform; reducers go to reduce=.")
        facts = t.facts(facts)
        if t.receives:
            facts = facts._replace(linear=False)
        stages.append(facts)
    check_chain(transforms, stages, facts, reducer)
    return Aggregator(tuple(transforms), reducer, facts, tuple(stages))


def as_aggregator(aggregator: Aggregator | Reducer | Transform | None) -> Aggregator:
    """An `Aggregator` from a chain, a bare reducer, a bare transform, or nothing (a mean by examples).

    Example:
        >>> import fedjax_sim as fs
        >>> for part in (fs.aggregate.median(), fs.aggregate.clip_by_l2(1.0), None):
        ...     print(fs.aggregate.as_aggregator(part).name)
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


def _folded(key: Key | None, i: int) -> Key | None:
    if key is None:
        return None
    eager = contextlib.nullcontext if is_traced(key) else jax.ensure_compile_time_eval
    with eager():  # what nobody uses is no part of a program
        return jax.random.fold_in(key, i)


def _join(metrics: Mapping[str, V], more: Mapping[str, V], transform: Transform | Reducer) -> dict[str, V]:
    if isinstance(transform, Transform) and transform.part is not None:
        more = {f"{transform.part}/{name}": metric for name, metric in more.items()}
    twice = (set(metrics) | {"uplink_bits", "downlink_bits"}) & set(more)
    if twice:
        raise ArgumentError(f"{transform.name} reports {sorted(twice)}, which an earlier transform did too.")
    return {**metrics, **more}
