"""Debugging: clients one by one, eagerly, so that an error names the client and its batch."""

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from fedjax_sim.client.bound import bound
from fedjax_sim.core import rng
from fedjax_sim.core.errors import ClientError, FedSimError
from fedjax_sim.core.rng import Purpose
from fedjax_sim.core.types import RoundPlan, RoundState
from fedjax_sim.data.batching import Batching
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.engine.device.placement import Dealt
from fedjax_sim.engine.parts import Parts
from fedjax_sim.engine.round.cohort_map import client_batches
from fedjax_sim.engine.round.returned import checked_update
from fedjax_sim.engine.round.versions import of_version
from fedjax_sim.engine.store.residency import Constants
from fedjax_sim.engine.store.row_table import client_row


@contextlib.contextmanager
def explained(debug: bool, data: FederatedData | None = None, batching: Batching | None = None) -> Iterator[None]:
    """Errors of user functions while they are traced, which concerns all clients alike.

    They pass with a note on debugging; a simulation that debugs names the batches' shapes for clients' functions, whose
    data and batching are given.
    """
    try:
        yield
    except Exception as error:
        if debug and data is not None and batching is not None and not isinstance(error, FedSimError):
            size = batching.batch_size
            shapes = jax.tree.map(lambda a: f"{a.dtype}{[size, *a.shape[1:]]}", data.arrays)
            how = "every client fails alike"
            if isinstance(error, _ABSTRACT):
                how = f"{_NO_VALUES} In debug mode {_HOW_TO_LOOK}"
            raise ClientError(f"{how}; batches are {shapes}: {type(error).__name__}: {error}") from error
        if isinstance(error, _ABSTRACT):
            error.add_note(f"{_NO_VALUES} With Simulation(debug=True), {_HOW_TO_LOOK}.")
        elif not debug:
            error.add_note("Simulation(debug=True) runs clients one by one and names the one that fails.")
        raise


_ABSTRACT = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
_NO_VALUES = (
    "A function of the algorithm is traced once for all clients, when the simulation is built and when a round is "
    "compiled; there, batches.client_id, the examples and the server state have shapes and no values, and Python "
    "cannot decide by them (use jnp.where, jax.lax.cond)."
)
_HOW_TO_LOOK = (
    "each client also runs alone before its round, with values: look at one where "
    "`not isinstance(batches.client_id, jax.core.Tracer) and int(batches.client_id) == 3`"
)


def run_clients(parts: Parts, state: RoundState, plan: RoundPlan, constants: Constants) -> None:
    """Run the first phase's client function for each planned client, outside any compilation.

    Raises:
        ClientError: the function failed; names the client and its batch's shapes, from the original error.
    """
    phase = parts.phases[0]
    plan, server = jax.device_get((plan, state.server))
    ring = None if state.versions is None else state.versions[0]
    dealt = constants.examples if isinstance(constants.examples, Dealt) else None
    share = jax.device_get(dealt.arrays if dealt else constants.examples)
    share, frozen = jax.tree.map(jnp.asarray, (share, constants.frozen))
    blocks = len(parts.devices) if dealt else 1
    for d, t, place in zip(*(plan.lanes.steps > 0).nonzero(), strict=True):
        lane = jax.tree.map(lambda column, at=(d, t, place): jnp.asarray(column[at]), plan.lanes.placeless())
        this_round = jnp.asarray(plan.round[d])
        batches = client_batches(
            lane,
            this_round,
            jnp.asarray(plan.order[d]),
            Constants(jax.tree.map(lambda a, d=d: a.reshape(blocks, -1, *a.shape[1:])[d % blocks], share), frozen),
            parts.batching,
            bound=lane.steps,
            longest=parts.planner.longest,
            alone=True,
        )
        client = int(lane.client_id)
        key = jax.random.fold_in(rng.key(state.seed, Purpose.CLIENT, int(plan.round[d])), 0)
        row = jax.tree.map(jnp.asarray, client_row(state.rows, client))
        key = rng.client_key(key, client, lane.copy)
        try:
            with jax.disable_jit(), bound(parts.algorithm.task.frozen, frozen, int(plan.round[d])):
                seen = of_version(ring, server, lane.version, this_round, parts.sent[0].read)
                checked_update(phase.client(key, seen, row, batches), row)
        except Exception as error:
            shapes = jax.tree.map(lambda a: f"{a.dtype}{list(a.shape)}", batches.batch(0))
            raise ClientError(
                f"client {parts.data.name(client)} (id {client}, {int(batches.num_examples)} examples, "
                f"{int(batches.num_steps)} steps) failed in round {int(plan.round[d])}; its batches are {shapes}: "
                f"{type(error).__name__}: {error}"
            ) from error
