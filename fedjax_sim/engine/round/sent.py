"""What a phase sends, found by tracing its client function once, without computing."""

import jax
import jax.numpy as jnp

from fedjax_sim.algorithms.base import Pass
from fedjax_sim.client import Task
from fedjax_sim.client.frozen import bound
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.pytree import bits
from fedjax_sim.data.batching import Batching
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.engine.parts import Sent
from fedjax_sim.engine.round.cohort_map import Lane, client_batches
from fedjax_sim.engine.round.returned import checked_update
from fedjax_sim.engine.store.residency import Constants


def sent(
    phases: tuple[Pass, ...], server: PyTree, client_row: PyTree, task: Task, data: FederatedData, batching: Batching
) -> tuple[Sent, ...]:
    """What each phase sends, of a server's state and a client's row of those shapes."""
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), data.arrays)
    constants = Constants(shapes, task.frozen)
    longest = int(batching.count_steps(data.kinds()[0]).max(initial=0))

    def payload(phase: Pass, server: PyTree, row: PyTree, constants: Constants, zero: jax.Array):
        lane = Lane(zero, zero, zero, zero, zero.astype(jnp.float32), zero, zero)
        batches = client_batches(lane, zero[None], constants, batching, bound=zero, longest=longest, alone=False)
        with bound(task.frozen, batches.frozen):
            return checked_update(phase.client(jax.random.key(0), server, row, batches), row).payload

    found = []
    for phase in phases:
        trace = jax.make_jaxpr(lambda *a, phase=phase: payload(phase, *a), return_shape=True)
        program, shape = trace(server, client_row, constants, scalar)
        program = program.jaxpr
        read = {id(v) for equation in program.eqns for v in equation.invars} | {id(v) for v in program.outvars}
        leaves = jax.tree.leaves(server)
        inputs = zip(leaves, program.invars[: len(leaves)], strict=True)
        found.append(Sent(shape, float(sum(bits(leaf) for leaf, variable in inputs if id(variable) in read))))
    return tuple(found)
