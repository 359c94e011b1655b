"""What a phase sends, found by tracing its client function once, without computing."""

import jax
import jax.numpy as jnp

from fedjax_sim.algorithms.base import Pass
from fedjax_sim.client import Task
from fedjax_sim.client.bound import bound
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.pytree import bits
from fedjax_sim.core.types import Columns, Lane
from fedjax_sim.data.batching import Batching
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.engine.parts import Sent
from fedjax_sim.engine.round.cohort_map import client_batches
from fedjax_sim.engine.round.returned import checked_update
from fedjax_sim.engine.store.residency import Constants


def sent(
    phases: tuple[Pass, ...],
    server: PyTree,
    client_row: PyTree,
    task: Task,
    data: FederatedData,
    batching: Batching,
    columns: Columns = (),
) -> tuple[Sent, ...]:
    """What each phase sends, of a server's state, a client's row and a sampler's columns of those shapes."""
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), data.arrays)
    constants = Constants(shapes, task.frozen)
    longest = batching.most_steps(data.kinds()[0])

    def update(phase: Pass, server: PyTree, row: PyTree, constants: Constants, zero: jax.Array):
        lane = Lane.of(lambda dtype, shape: jnp.broadcast_to(zero.astype(dtype), shape), columns)
        batches = client_batches(lane, zero, zero[None], constants, batching, bound=zero, longest=longest, alone=False)
        with bound(task.frozen, batches.frozen, zero):
            return checked_update(phase.client(jax.random.key(0), server, row, batches), row)

    found = []
    for phase in phases:
        trace = jax.make_jaxpr(lambda *a, phase=phase: update(phase, *a), return_shape=True)
        program, shape = trace(server, client_row, constants, scalar)
        program = program.jaxpr
        read = {id(v) for equation in program.eqns for v in equation.invars} | {id(v) for v in program.outvars}
        leaves = jax.tree.leaves(server)
        used = tuple(id(variable) in read for variable in program.invars[: len(leaves)])
        downlink = sum(bits(leaf) for leaf, seen in zip(leaves, used, strict=True) if seen)
        found.append(Sent(shape.payload, float(downlink), used))
    return tuple(found)
