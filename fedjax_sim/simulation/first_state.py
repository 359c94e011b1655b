"""States of a simulation: the first one, where its parts live, and its form on any number of devices."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.algorithms.base import Pass
from fedjax_sim.core import rng
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.pytree import strong
from fedjax_sim.core.rng import Purpose
from fedjax_sim.core.types import ClientRows, Params, RoundState
from fedjax_sim.engine.device import placement
from fedjax_sim.engine.parts import Parts, Sent
from fedjax_sim.engine.round import versions
from fedjax_sim.engine.round.device_state import DeviceState
from fedjax_sim.engine.round.returned import check_params
from fedjax_sim.engine.store import row_table
from fedjax_sim.engine.store.row_file import HostRows


def program(parts: Parts) -> Callable[[Params], DeviceState]:
    """`make`, to be compiled: a simulation keeps it, as it may begin often."""
    return jax.jit(functools.partial(make, parts), out_shardings=shardings(parts))


def begin(parts: Parts, program: Callable[[Params], DeviceState], params: Params | None) -> RoundState:
    """`sim.init`."""
    if params is None:
        params = jax.jit(parts.algorithm.task.init)(rng.key(parts.seed, Purpose.INIT))
    check_params(parts.model, params)
    made = program(placement.replicate(parts.mesh, params))
    rows = HostRows(jax.device_get(made.rows), parts.data.num_clients) if parts.rows == "host" else made.rows
    own = dict(noise_seed=parts.noise_seed, versions=made.versions)
    return RoundState(0, parts.seed, made.server, made.aggregator, parts.sampler_state, rows, **own)


def make(parts: Parts, params: Params) -> DeviceState:
    """The first state, of any model; of rows on the host, the one that every client begins with."""
    params = jax.tree.map(lambda p, like: jnp.array(p, like.dtype, copy=True), params, parts.model)
    server, row = parts.algorithm.init(params)
    states, aggregator_rows = aggregators(parts.phases, parts.sent)
    rows = ClientRows(row, aggregator_rows)
    if parts.rows != "host":
        rows = row_table.make_table(rows, parts.data.num_clients, len(parts.devices))
    return strong(DeviceState(server, states, rows, rings(parts, server)))


def rings(parts: Parts, server: PyTree) -> PyTree:
    """The old server states of a run that begins with this one, an entry a phase; None where none are kept."""
    if not parts.versions:
        return None
    return tuple(versions.first(server, sent.read, parts.versions) for sent in parts.sent)


def shapes(parts: Parts) -> DeviceState:
    """Of the first state."""
    return jax.eval_shape(functools.partial(make, parts), parts.model)


def aggregators(phases: tuple[Pass, ...], payloads: tuple[Sent, ...]) -> tuple[PyTree, PyTree]:
    """The transforms' first states and rows, an entry a phase; None where no client keeps a row."""
    made = [phase.aggregator.init(sent.payload) for phase, sent in zip(phases, payloads, strict=True)]
    rows = tuple(row for _, row in made)
    return tuple(state for state, _ in made), rows if jax.tree.leaves(rows) else None


def shardings(parts: Parts) -> Any:
    """Where a state's parts are; a prefix of it."""
    everywhere = placement.everywhere(parts.mesh)
    rows = everywhere if parts.rows == "host" else placement.dealt(parts.mesh)
    kept = everywhere if parts.versions else None
    return DeviceState(everywhere, everywhere, ClientRows(rows, rows), kept)  # type: ignore[arg-type]


def blank(parts: Parts) -> RoundState:
    """Shapes of a state, as it is on any number of devices: what a checkpoint is read into."""
    made = shapes(parts)
    rows = made.rows
    if parts.rows != "host":
        rows = jax.eval_shape(functools.partial(row_table.trim, num_clients=parts.data.num_clients), rows)
    own = dict(noise_seed=parts.noise_seed, versions=made.versions)
    return RoundState(0, parts.seed, made.server, made.aggregator, parts.sampler_state, rows, **own)


def placed(parts: Parts, state: RoundState) -> RoundState:
    """A state from the host, where rounds leave it; without old server states, as if all had been this one."""
    rows: PyTree = ClientRows()
    if parts.rows != "host":
        rows = row_table.pad(state.rows, parts.data.num_clients, len(parts.devices))
    kept = rings(parts, state.server) if state.versions is None else state.versions
    made = placement.put(DeviceState(state.server, state.aggregator, rows, kept), shardings(parts))
    rows = state.rows if parts.rows == "host" else made.rows
    return dataclasses.replace(state, server=made.server, aggregator=made.aggregator, rows=rows, versions=made.versions)
