"""A round as a pure function of arrays, for JAX's transformations: its state, its plans, and the function itself."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.pytree import pytree
from fedjax_sim.core.types import RoundPlan, RoundState
from fedjax_sim.engine.device import placement
from fedjax_sim.engine.parts import Parts
from fedjax_sim.engine.plan.words import unpack_plan
from fedjax_sim.engine.round.device_state import DeviceState
from fedjax_sim.engine.round.phase import RoundOutput, make_round
from fedjax_sim.simulation import first_state
from fedjax_sim.simulation.executor import Executor
from fedjax_sim.simulation.host_stages import check_fused


@pytree
class PureState:
    """What a round function takes and gives back, a pytree of arrays: `sim.pure_state(state)`.

    Attributes:
        server: the algorithm's server state.
        aggregator: the transforms' server state, one entry a phase.
        rows: `ClientRows`, tables on the devices.
        seeds: [2] uint32, the run's and its noise's, that draws on the devices are keyed by.
        round: [] int32, the next round's number, by which they are keyed, too.
        versions: what clients read of the last server states, as in `fs.RoundState`; or None.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, optax, fedjax_sim as fs
        >>> def loss(w, batch, key):
        ...     return (w - batch["x"] - jax.random.normal(key)) ** 2
        >>> task = fs.Task(lambda key: jnp.zeros(()), loss)
        >>> data = fs.data.FederatedData({"x": jnp.arange(4.0)}, offsets=[0, 2, 4])
        >>> sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.1)), data, fs.sampler.uniform(2), fs.Batching(2))
        >>> state, (plan, arrays) = sim.pure_state(sim.init()), sim.round_plan(sim.init())
        >>> def of_seeds(seeds):
        ...     return sim.round_function()(dataclasses.replace(state, seeds=seeds), plan, arrays)[0]
        >>> jax.vmap(of_seeds)(jnp.arange(6, dtype=jnp.uint32).reshape(3, 2)).server.params.shape
        (3,)
    """

    server: PyTree
    aggregator: PyTree
    rows: PyTree
    seeds: jax.Array
    round: Any
    versions: PyTree = None


RoundFunction = Callable[[PureState, RoundPlan, Any], tuple[PureState, dict[str, Any]]]
"""`(round_state, plan, arrays) -> (round_state, metrics)`."""


def pure_state(parts: Parts, state: RoundState) -> PureState:
    """`sim.pure_state`."""
    numbers = state.seeds, np.int32(state.round)
    placed = placement.put(numbers, placement.everywhere(parts.mesh))
    return PureState(state.server, state.aggregator, state.rows, *placed, versions=state.versions)


def round_plan(executor: Executor, state: RoundState, rounds: int | None) -> tuple[RoundPlan, Any]:
    """`sim.round_plan`."""
    check_resident(executor.parts)
    count = 1 if rounds is None else rounds
    observing = executor.parts.sampler.waits
    if observing and count > 1:
        raise ArgumentError(
            f"rounds={rounds}: {executor.parts.sampler.name} observes each round before it draws the next. Plan one at "
            "a time, from the states that sim.step gives."
        )
    plans = executor.plan(state, count, count)
    if rounds is None:
        return unpack_plan(plans.words[0], plans.shape), executor.constants
    return jax.vmap(lambda words: unpack_plan(words, plans.shape))(plans.words), executor.constants


def round_function(parts: Parts, static: bool) -> RoundFunction:
    """`sim.round_function`."""
    check_resident(parts)
    if static and parts.exact:
        raise ArgumentError(
            "static=True: sums in fixed point have derivative zero, and this simulation is exact=True. Leave out one."
        )

    everywhere: Any
    everywhere, placed = placement.everywhere(parts.mesh), first_state.shardings(parts)
    # Rounds leave a state where `pure_state` has it, so that the next one is the same program.
    out = PureState(placed.server, placed.aggregator, placed.rows, everywhere, everywhere, placed.versions)

    @functools.partial(jax.jit, out_shardings=(out, None))
    def one(state: PureState, plan: RoundPlan, arrays: PyTree) -> tuple[PureState, dict[str, Any]]:
        _, chunks, lanes = plan.lanes.start.shape
        made = DeviceState(state.server, state.aggregator, state.rows, state.versions)
        plan = replace(plan, round=jnp.broadcast_to(state.round, plan.round.shape))
        made, output = make_round(parts, chunks * lanes, static=static)(state.seeds, made, plan, arrays)
        names = ("server", "aggregator", "rows", "versions")
        after = replace(state, round=state.round + 1, **{name: getattr(made, name) for name in names})
        return after, _numbers(output)

    return one


def _numbers(output: RoundOutput) -> dict[str, Any]:
    counted = {
        "cohort/contributed": output.count,
        "cohort/weight": output.weight,
        "cohort/nonfinite": jnp.sum(~output.finite),
    }
    return {name: metric.compute() for name, metric in output.merged.items()} | counted


def check_resident(parts: Parts) -> None:
    """Raise where a round needs the host while it runs."""
    check_fused(parts, "a round function")
    if parts.residency == "stream":
        raise ArgumentError(
            "a round function takes arrays that are kept on the devices, and this simulation's data are streamed: give "
            'it fs.Execution(residency="device") where they fit.'
        )
    if parts.rows == "host":
        raise ArgumentError(
            "a round function takes rows that are kept on the devices, and this simulation's are on the host: give it "
            'fs.Execution(rows="device") where they fit.'
        )
