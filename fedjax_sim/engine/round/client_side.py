"""One client's whole part of a phase: train, encode, and what the server receives of it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate import Context
from fedjax_sim.client import ClientBatches
from fedjax_sim.client.bound import bound
from fedjax_sim.core import metrics as metrics_lib
from fedjax_sim.core import rng
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.metrics import Metric
from fedjax_sim.core.pytree import squared_norm, where
from fedjax_sim.core.rng import Purpose
from fedjax_sim.core.types import Lane
from fedjax_sim.engine.parts import Parts
from fedjax_sim.engine.round.cohort_map import EDGE, ClientResult
from fedjax_sim.engine.round.returned import checked_update
from fedjax_sim.engine.round.sums import fits
from fedjax_sim.engine.round.versions import of_version

BITS = ("aggregate/uplink_bits", "aggregate/downlink_bits")
NONFINITE = "nonfinite"


class ClientSide:
    """One client's whole part of a phase, `(broadcast, rows, lane, batches) -> ClientResult`.

    Args:
        parts: of the simulation.
        index: of the phase.
    """

    def __init__(self, parts: Parts, index: int):
        self.parts, self.phase = parts, parts.phases[index]
        _, self.downlink, self.read = parts.sent[index]
        self.aggregator = self.phase.aggregator
        self.facts = self.aggregator.facts
        self.local = any(m.where == "local" for m in self.facts.noise)
        self.shares = self.local or any(m.where == "distributed" for m in self.facts.noise)

    def __call__(self, broadcast: PyTree, rows: PyTree, lane: Lane, batches: ClientBatches) -> ClientResult:
        server, states, keys, this_round, ring = broadcast
        client_row, aggregator_row = rows
        own = lambda purpose: rng.client_key(keys[purpose], lane.client_id, lane.copy)
        server = of_version(ring, server, lane.version, this_round, self.read)
        if self.parts.algorithm.edges is not None:
            server = jax.tree.map(lambda leaf: leaf[lane.columns[EDGE]], server)
        with bound(self.parts.algorithm.task.frozen, batches.frozen, this_round):
            update = checked_update(self.phase.client(own(Purpose.CLIENT), server, client_row, batches), client_row)

        weight = jnp.asarray(update.weight, jnp.float32)
        finite = jnp.isfinite(squared_norm((update.payload, update.state))) & jnp.isfinite(weight)
        finite &= ~_any_nan(update.metrics.get("loss"))
        trained = lane.steps > 0
        contributes = trained & finite
        # Noise that clients add must not tell who has data: all that were drawn and arrive send. Their weights are 1.
        sends = lane.weight > 0 if self.parts.everyone else trained
        payload = jax.tree.map(lambda leaf: jnp.where(contributes, leaf, jnp.zeros_like(leaf)), update.payload)
        weight = self._weight(weight, lane, contributes)
        receive_key = own(Purpose.RECEIVE)
        context = Context(
            lane.client_id,
            this_round,
            keys[Purpose.SHARED],
            jnp.asarray(jnp.inf, jnp.float32),
            neighbour=lane.neighbour,
            weight=sends.astype(jnp.float32) if self.shares else weight,
            expected=self.parts.expected,
            receive_key=receive_key,
            columns=lane.columns,
        )
        own_keys = own(Purpose.ENCODE), own(Purpose.NOISE)
        encoded = self.aggregator.encode(own_keys[0], states, aggregator_row, payload, context, own_keys[1])
        message = self.aggregator.receive(receive_key, states, encoded.message)
        if "scale" in lane.columns:
            message = jax.tree.map(lambda leaf: _scaled(leaf, lane.columns["scale"]), message)
        factor = sends if self.facts.weighted or self.shares else weight
        if (
            self.parts.exact and not self.facts.weighted
        ):  # what is beyond the range of the sum counts as what is not finite
            inside = fits((message, encoded.sums), jnp.maximum(weight, 1.0))
            finite, contributes = finite & inside, contributes & inside
            message = jax.tree.map(lambda leaf: jnp.where(inside, leaf, jnp.zeros_like(leaf)), message)
            weight, factor = (jnp.where(inside, each, 0.0) for each in (weight, factor))
        received = self.downlink if self.phase.downlink is None else self.phase.downlink(server)
        seen = {**encoded.metrics, "downlink_bits": metrics_lib.Sum(jnp.asarray(received, jnp.float32))}

        metrics = _reported(update.metrics, seen, contributes, sends if self.parts.everyone else None)
        metrics[NONFINITE] = metrics_lib.Sum((trained & ~finite).astype(jnp.float32))
        new_rows = (update.state, encoded.rows)
        counted = sends if self.local else contributes
        return ClientResult(
            message,
            weight,
            contributes,
            metrics,
            where(contributes, new_rows, rows),
            jax.tree.map(lambda leaf: jnp.where(counted, leaf, jnp.zeros_like(leaf)), encoded.sums),
            factor,
        )

    def _weight(self, weight: jax.Array, lane: Lane, contributes: jax.Array) -> Any:
        """A client's weight in the reducer's mean."""
        weight = jnp.where(self.aggregator.reducer.weight == "uniform", 1.0, weight) * lane.weight
        if self.facts.max_weight is not None:
            weight = jnp.clip(jnp.round(weight), 0, self.facts.max_weight)
        return jnp.where(contributes, weight, 0.0)


def _scaled(leaf: jax.Array, scale: jax.Array) -> jax.Array:
    """Whole numbers as fractions; others keep their type."""
    leaf = leaf if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf.astype(jnp.float32)
    return leaf * scale.astype(leaf.dtype)


def _reported(
    client: dict[str, Metric], seen: dict[str, Metric], contributes: jax.Array, sends: jax.Array | None
) -> dict[str, Metric]:
    """A client's metrics, nothing for one that does not contribute; with what it sends, should it send all the same."""
    metrics = {f"client/{name}": metric for name, metric in client.items()}
    metrics |= {f"aggregate/{name}": metric for name, metric in seen.items()}
    nothing = metrics_lib.zero(metrics)
    if sends is not None:
        nothing |= {name: where(sends, metrics[name], nothing[name]) for name in BITS}
    return where(contributes, metrics, nothing)


def _any_nan(metric: Metric | None) -> Any:
    """Whether a metric holds NaN: labels without a class make a loss so, and leave the update finite."""
    leaves = [leaf for leaf in jax.tree.leaves(metric) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
    return functools.reduce(jnp.logical_or, (jnp.any(jnp.isnan(leaf)) for leaf in leaves), jnp.zeros((), bool))
