"""A round that is given up, by a reducer, the host or the sampler: the state as it was before it."""

import itertools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fedjax_sim.aggregate import Aggregator
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.types import ClientRows, RoundPlan
from fedjax_sim.engine.device.placement import AXIS, REPLICATED, SHARDED
from fedjax_sim.engine.parts import Parts
from fedjax_sim.engine.round.device_state import DeviceState
from fedjax_sim.privacy.rounds import CORRELATED


def abandoned_state(parts: Parts, before: DeviceState, after: DeviceState) -> DeviceState:
    """The state after an abandoned round, but for its rows, which are still those of after.

    Its old server states, if there are any, have gone on a round.
    """
    states = zip(parts.phases, before.aggregator, after.aggregator, strict=True)
    kept = tuple(abandoned_states(phase.aggregator, old, new) for phase, old, new in states)
    return replace(after, server=before.server, aggregator=kept)


def abandoned_states(aggregator: Aggregator, before: tuple[PyTree, ...], after: tuple[PyTree, ...]) -> tuple[Any, ...]:
    """A chain's states after a round that is given up: those of before it.

    A noise that later rounds take back has gone on: it counts rounds, as the separation of participations does.
    """
    correlated = [0, *(sum(m.kind in CORRELATED for m in facts.noise) for facts in aggregator.stages)]
    goes_on = [now > earlier for earlier, now in itertools.pairwise(correlated)]
    goes_on += [False] * (len(before) - len(goes_on))  # a reducer's
    return tuple(new if on else old for on, old, new in zip(goes_on, before, after, strict=True))


def cohort_rows(mesh: Mesh, rows: ClientRows, plan: RoundPlan) -> PyTree:
    """A copy of the rows of a round's clients, each on its device."""

    def share(rows: PyTree, client_id: jax.Array, steps: jax.Array) -> PyTree:
        places = _places(rows, client_id, steps)
        return jax.tree.map(lambda table: table.at[places].get(mode="clip"), rows)

    if not jax.tree.leaves(rows):
        return None
    return _over(mesh, share, (SHARDED,) * 3)(rows, plan.lanes.client_id, plan.lanes.steps)


def rows_put_back(mesh: Mesh, rows: ClientRows, plan: RoundPlan, copy: PyTree, abandoned: jax.Array) -> ClientRows:
    """The rows of before the round, whose `cohort_rows` are given, if it is abandoned; in place."""

    def share(rows: PyTree, client_id: jax.Array, steps: jax.Array, copy: PyTree, abandoned: jax.Array) -> PyTree:
        places = _places(rows, client_id, steps)
        places = jnp.where(abandoned, places, _length(rows))
        return jax.tree.map(lambda table, old: table.at[places].set(old, mode="drop"), rows, copy)

    if copy is None:
        return rows
    specs = (*(SHARDED,) * 4, REPLICATED)
    return _over(mesh, share, specs)(rows, plan.lanes.client_id, plan.lanes.steps, copy, abandoned)


def _over(mesh: Mesh, share: Any, specs: Any) -> Any:
    return jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=SHARDED, check_vma=False)


def _length(rows: PyTree) -> int:
    return jax.tree.leaves(rows)[0].shape[0]


def _places(rows: PyTree, client_id: jax.Array, steps: jax.Array) -> jax.Array:
    """In a device's block of the tables; past its end for an empty lane."""
    first = jax.lax.axis_index(AXIS) * _length(rows)
    return jnp.where(steps > 0, client_id - first, _length(rows)).reshape(-1)
