"""From what the user gives to the parts of a simulation: checks, what is found by tracing, and where things live."""

from typing import Any, Literal

import jax
from jax.sharding import Mesh

from fedjax_sim.aggregate.checks import check_sampler
from fedjax_sim.algorithms.base import Algorithm, Pass
from fedjax_sim.core import pytree, rng
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import check, check_count, is_traced
from fedjax_sim.core.kinds import check_computable, check_leaves, shapes_of
from fedjax_sim.data.batching import Batching
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.engine.device.placement import client_mesh
from fedjax_sim.engine.parts import Parts
from fedjax_sim.engine.plan import given
from fedjax_sim.engine.plan.planner import Planner
from fedjax_sim.engine.round.block import check_aggregation
from fedjax_sim.engine.round.sent import sent
from fedjax_sim.engine.store import data_checks, row_table
from fedjax_sim.engine.store.residency import Reader, streams
from fedjax_sim.population.sampling import Sampler
from fedjax_sim.population.timing import Fleet
from fedjax_sim.population.transformed import timed
from fedjax_sim.privacy.accounting import check_delta
from fedjax_sim.simulation import edges, host_stages, participation
from fedjax_sim.simulation.debug import explained
from fedjax_sim.simulation.execution import Execution
from fedjax_sim.simulation.first_state import aggregators
from fedjax_sim.simulation.work import timing


def check_given(
    algorithm: Algorithm,
    data: FederatedData,
    sampler: Sampler,
    batching: Batching,
    seed: int,
    noise_seed: int | None,
    on_nonfinite: str,
    fleet: Fleet | None,
) -> None:
    """Raise `ArgumentError` for what no simulation can be made of."""
    for name, value, kind in (
        ("algorithm", algorithm, Algorithm),
        ("data", data, FederatedData),
        ("sampler", sampler, Sampler),
        ("batching", batching, Batching),
    ):
        check(isinstance(value, kind), name, value, f"must be a {kind.__name__}.")
    check(fleet is None or isinstance(fleet, Fleet), "fleet", fleet, "must be from fs.fleet, or None for no clock.")
    check_count("sampler.versions", sampler.versions, minimum=0)
    rng.check_seed(seed)
    if noise_seed is not None:
        rng.check_seed(noise_seed, "noise_seed")
    check(on_nonfinite in ("raise", "drop"), "on_nonfinite", on_nonfinite, 'must be "raise" or "drop".')
    check_leaves("task.frozen", algorithm.task.frozen)
    check_computable(data.arrays)
    told = algorithm.num_clients
    check(told in (None, data.num_clients), "num_clients", told, f"the data have {data.num_clients}; leave it out.")


def assemble(
    algorithm: Algorithm,
    data: FederatedData,
    sampler: Sampler,
    batching: Batching,
    execution: Execution,
    *,
    seed: int,
    noise_seed: int | None,
    on_nonfinite: Literal["raise", "drop"],
    debug: bool,
    delta: float | None,
    exact: bool,
    fleet: Fleet | None,
) -> Parts:
    """The parts of a simulation; arguments as of `fs.Simulation`.

    Raises:
        ArgumentError: parts that do not fit together.
    """
    check_given(algorithm, data, sampler, batching, seed, noise_seed, on_nonfinite, fleet)
    phases, capacity = _passes(algorithm, sampler, data.num_clients), int(sampler.capacity(data.num_clients))
    sampler.init(data.num_clients)  # says what is wrong before anything is traced
    columns = given.kinds(given.declared(_planned(sampler, algorithm, phases, capacity).columns))
    everyone, mesh = participation.shared_out(phases), _mesh(execution, debug)
    model, (server, row) = _shapes(algorithm)
    streamed = streams(execution.residency, data, mesh.local_devices[0])
    with explained(debug, data, batching):
        payloads = sent(phases, server, row, algorithm.task, data, batching, columns)
    sampler = _timed(sampler, fleet, int(seed), phases, payloads, server, row, algorithm, data, batching, columns)
    planned = _planned(sampler, algorithm, phases, capacity)
    data_checks.check_all(algorithm.task, data, streamed)
    states, aggregator_rows = aggregators(phases, payloads)
    participation.check_rows(phases, sampler, data.num_clients, row)
    rows, row_bytes, has_table = _rows(execution, (row, aggregator_rows), data, mesh)
    homes = row_table.homes(data.num_clients, mesh.size) if has_table else None
    parts = Parts(
        algorithm=algorithm,
        data=data,
        sampler=sampler,
        batching=batching,
        seed=int(seed),
        noise_seed=noise_seed if noise_seed is None or is_traced(noise_seed) else int(noise_seed),
        on_nonfinite=on_nonfinite,
        debug=debug,
        delta=_delta(delta, data.num_clients),
        exact=exact,
        phases=phases,
        model=model,
        sent=payloads,
        sampler_state=sampler.init(data.num_clients),
        capacity=capacity,
        expected=float(sampler.expected(data.num_clients)),
        noisy=participation.noisy(phases),
        everyone=everyone,
        mesh=mesh,
        residency="stream" if streamed else "device",
        rows=rows,
        has_table=has_table,
        row_bytes=row_bytes,
        planner=Planner(data, edges.of_round(batching, algorithm.edges), mesh.size, homes, streamed, everyone, planned),
        reader=Reader(data, mesh, algorithm.task.check) if streamed else None,
    )
    check_aggregation(parts, states, capacity)
    return edges.checked(host_stages.checked(parts), states)


def _delta(delta: float | None, num_clients: int) -> float:
    delta = participation.default_delta(num_clients) if delta is None else delta
    check_delta(delta)
    return delta


def _mesh(execution: Execution, debug: bool) -> Mesh:
    mesh = client_mesh(execution.devices, of_all=True, depth=2)
    if mesh.is_multi_process:
        check(not debug, "debug", debug, "debug in one process: clients run one by one, outside the devices' map.")
    return mesh


def _shapes(algorithm: Algorithm) -> tuple[PyTree, tuple[PyTree, PyTree]]:
    """Of the parameters, and of the first server state and a client's row."""
    model = shapes_of("task.init's params", algorithm.task.init, jax.random.key(0))
    return model, shapes_of("algorithm.init's (server_state, row)", algorithm.init, model)


def _timed(sampler: Sampler, fleet: Fleet | None, *asked: Any) -> Sampler:
    """The sampler, told of its clients' work where it or a clock asks; arguments as of `timing`."""
    return sampler if fleet is None and sampler.timed is None else timed(sampler, timing(fleet, *asked))


def _planned(sampler: Sampler, algorithm: Algorithm, phases: tuple[Pass, ...], capacity: int) -> Sampler:
    """The sampler, with all columns that cohorts have when they are planned."""
    return edges.with_column(host_stages.with_columns(sampler, phases, capacity), algorithm.edges)


def _passes(algorithm: Algorithm, sampler: Sampler, num_clients: int) -> tuple[Pass, ...]:
    """The algorithm's phases, whose chains go with the sampler."""
    phases, expected = algorithm.passes(), float(sampler.expected(num_clients))
    for phase in phases:
        check_sampler(phase.aggregator, sampler.name, sampler.event is not None)
    edges.check_edges(algorithm.edges, phases, sampler, num_clients)
    participation.check_participation(phases, sampler, num_clients, expected)
    participation.check_repeats(phases, sampler)
    return phases


def _rows(execution: Execution, row: PyTree, data: FederatedData, mesh: Mesh) -> tuple[row_table.Rows, int, bool]:
    """Where rows live, what one client keeps, and whether there is a table on the devices."""
    devices = tuple(mesh.devices.flat)
    rows = row_table.place(execution.rows, row, data.num_clients, devices, mesh.is_multi_process)
    return rows, pytree.bits(row) // 8, row_table.has_rows(row) and rows == "device"
