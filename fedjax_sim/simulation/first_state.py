"""States of a simulation: the first one, where its parts live, and its form on any number of devices."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core import rng
from fedjax_sim.core.pytree import strong
from fedjax_sim.core.rng import Purpose
from fedjax_sim.core.types import ClientRows, Params, RoundState
from fedjax_sim.engine.device import placement
from fedjax_sim.engine.round.phase import DeviceState, check_params
from fedjax_sim.engine.store import row_table
from fedjax_sim.engine.store.row_file import HostRows


def begin(sim: Any, params: Params | None) -> RoundState:
    """`sim.init`."""
    if params is None:
        params = jax.jit(sim.algorithm.task.init)(rng.key(sim.seed, Purpose.INIT))
    check_params(sim.model, params)
    first = functools.partial(make, sim)
    made = jax.jit(first, out_shardings=shardings(sim))(placement.replicate(sim._mesh, params))
    rows = HostRows(jax.device_get(made.rows), sim.data.num_clients) if sim.rows == "host" else made.rows
    return RoundState(0, sim.seed, made.server, made.aggregator, sim._sampler_state, rows, noise_seed=sim.noise_seed)


def make(sim: Any, params: Params) -> DeviceState:
    """The first state, of any model; of rows on the host, the one that every client begins with."""
    params = jax.tree.map(lambda p, like: jnp.array(p, like.dtype, copy=True), params, sim.model)
    server, row = sim.algorithm.init(params)
    states, aggregator_rows = aggregators(sim)
    rows = ClientRows(row, aggregator_rows)
    if sim.rows != "host":
        rows = row_table.make_table(rows, sim.data.num_clients, len(sim.devices))
    return strong(DeviceState(server, states, rows))


def shapes(sim: Any) -> DeviceState:
    """Of the first state."""
    return jax.eval_shape(functools.partial(make, sim), sim.model)


def aggregators(sim: Any) -> tuple[Any, Any]:
    """The transforms' first states and rows, an entry a phase; None where no client keeps a row."""
    made = [
        phase.aggregator.init(sent.payload)  # type: ignore[union-attr]
        for phase, sent in zip(sim._phases, sim._sent, strict=True)
    ]
    rows = tuple(row for _, row in made)
    return tuple(state for state, _ in made), rows if jax.tree.leaves(rows) else None


def shardings(sim: Any) -> Any:
    """Where a state's parts are; a prefix of it."""
    everywhere = placement.everywhere(sim._mesh)
    rows = everywhere if sim.rows == "host" else placement.dealt(sim._mesh)
    return DeviceState(everywhere, everywhere, ClientRows(rows, rows))  # type: ignore[arg-type]


def blank(sim: Any) -> RoundState:
    """Shapes of a state, as it is on any number of devices: what a checkpoint is read into."""
    made = shapes(sim)
    rows = made.rows
    if sim.rows != "host":
        rows = jax.eval_shape(functools.partial(row_table.trim, num_clients=sim.data.num_clients), rows)
    return RoundState(0, sim.seed, made.server, made.aggregator, sim._sampler_state, rows, noise_seed=sim.noise_seed)


def placed(sim: Any, state: RoundState) -> RoundState:
    """A state from the host, where rounds leave it."""
    rows: Any = ClientRows()
    if sim.rows != "host":
        rows = row_table.pad(state.rows, sim.data.num_clients, len(sim.devices))
    made = placement.put(DeviceState(state.server, state.aggregator, rows), shardings(sim))
    rows = state.rows if sim.rows == "host" else made.rows
    return dataclasses.replace(state, server=made.server, aggregator=made.aggregator, rows=rows)
