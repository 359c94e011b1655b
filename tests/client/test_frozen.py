"""Frozen constants: an argument of every program, and the same numbers as a task that holds them in a closure."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.simulation.executor import on_devices
from tests.engine import toys

DATA = toys.federation()
BASE = {"w": np.linspace(-1.0, 1.0, 6, dtype=np.float32).reshape(3, 2)}


def loss(params, batch, key, *, frozen):
    error = batch["x"] @ (frozen["w"] + params["w"]) - batch["y"]
    return jnp.mean(error**2, axis=1)


def init(key):
    return {"w": 0.1 * jax.random.normal(key, (3, 2))}


def frozen_task(base=BASE) -> fs.Task:
    return fs.Task(init, loss, frozen=base)


def closed_task(base=BASE) -> fs.Task:
    base = jax.tree.map(jnp.asarray, base)
    return fs.Task(init, lambda params, batch, key: loss(params, batch, key, frozen=base))


def trained(sim: fs.Simulation, rounds: int):
    return sim.run(sim.init(), rounds)


def assert_equal(found, expected):
    np.testing.assert_array_equal(toys.flat(found), toys.flat(expected))


def assert_close(found, expected):
    np.testing.assert_allclose(toys.flat(found), toys.flat(expected), rtol=1e-5, atol=1e-6)


ALGORITHMS = {
    "fedavg": lambda task: fs.fedavg(task, optax.sgd(0.1)),
    "scaffold": lambda task: fs.scaffold(task, 0.1),
    "two_phase": toys.two_phase,
}
PLACES = {
    "one lane": {"lanes": 1},
    "three lanes": {"lanes": 3},
    "two devices": {"lanes": 2, "devices": jax.devices("cpu")[:2]},
    "streamed": {"residency": "stream", "rounds_per_dispatch": 2},
    "host rows": {"rows": "host"},
}


def simulation(algorithm: fs.Algorithm, **options) -> fs.Simulation:
    execution = fs.Execution(**options)
    return fs.Simulation(algorithm, DATA, fs.sampler.uniform(6), fs.Batching(4, epochs=2), seed=3, execution=execution)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_frozen_constants_are_those_of_a_closure(name, place):
    if place == "host rows" and name != "scaffold":
        pytest.skip("no rows")
    (state, metrics), (expected, wanted) = (
        trained(simulation(ALGORITHMS[name](task), **PLACES[place]), 2) for task in (frozen_task(), closed_task())
    )
    assert_equal(state.server, expected.server)
    for name in ("aggregate/uplink_bits", "aggregate/downlink_bits", "client/loss"):
        np.testing.assert_array_equal(metrics[name], wanted[name])


def test_a_program_holds_no_constant():
    """Neither rounds nor evaluation: their text does not grow with what is frozen."""

    def text(size: int) -> str:
        wide = lambda params, batch, key, *, frozen: loss(params, batch, key, frozen=frozen) + frozen["more"].sum()
        more = np.random.default_rng(0).normal(size=size).astype(np.float32)
        sim = simulation(fs.fedavg(fs.Task(init, wide, frozen={**BASE, "more": more}), optax.sgd(0.1)), lanes=2)
        state = sim.init()
        plans = sim.executor.plan(state, 1, 1)
        server = sim.executor.program(plans.shape, 1)
        given = (state.seeds, on_devices(state), plans.words, np.int32(1), sim.executor.read(plans))
        return server.lower(*given).as_text()

    short, long = text(10), text(100_000)
    assert abs(len(long) - len(short)) < 0.01 * len(short)
    assert "tensor<100000xf32>" in long
    assert "x100000x" not in long  # no copy a lane


def test_a_program_reads_its_argument():
    """Given other constants, the same program trains with those: it kept none of its own."""
    sim, doubled = simulation(fs.fedavg(frozen_task(), optax.sgd(0.1)), lanes=2), {"w": 2 * BASE["w"]}
    state = sim.init()
    plans = sim.executor.plan(state, 1, 1)
    given = dataclasses.replace(sim.executor.read(plans), frozen=jax.device_put(doubled))
    program = sim.executor.program(plans.shape, 1)
    made, _ = program(state.seeds, on_devices(state), plans.words, np.int32(1), given)
    expected, _ = trained(simulation(fs.fedavg(frozen_task(doubled), optax.sgd(0.1)), lanes=2), 1)
    assert_equal(made.server, expected.server)


def test_evaluation_compiles_once_for_other_constants():
    traces = []

    def watched(params, batch, key, *, frozen):
        traces.append(1)
        return loss(params, batch, key, frozen=frozen)

    params, values = init(jax.random.key(0)), []
    for scale in (1.0, 2.0, 3.0):
        base = jax.tree.map(lambda leaf, scale=scale: scale * leaf, BASE)
        values.append(fs.evaluate(fs.Task(init, watched, frozen=base), params, DATA.arrays)["loss"])
        assert values[-1] == fs.evaluate(closed_task(base), params, DATA.arrays)["loss"]
        assert len(traces) == 1 or len(values) == 1
        del traces[1:]
    assert len(set(values)) == 3


def test_functions_of_clients_read_them():
    """In one program, whichever task they are given."""
    task, params = frozen_task(), init(jax.random.key(0))

    def gradients(key, server, row, batches):
        assert not isinstance(batches.frozen["w"], np.ndarray)
        step = lambda total, batch, key: (jax.tree.map(jnp.add, total, fs.grad(task)(server, batch, key)[0]), {})
        return fs.local_steps(step, jax.tree.map(jnp.zeros_like, server), batches, key)[0]

    found = fs.map_clients(gradients, params, DATA, 4, task=task)
    expected = fs.evaluate_clients(task, params, DATA)
    assert np.isnan(expected["loss"]).sum() == np.sum(found["w"][:, 0, 0] == 0)
    per_client = []
    for client in range(DATA.num_clients):
        part = DATA.read(np.array([client]), DATA.sizes_of(np.array([client])))
        total = np.zeros((3, 2))
        for first in range(0, len(part["x"]), 4):
            x, y = part["x"][first : first + 4], part["y"][first : first + 4]
            total += x.T @ (x @ (BASE["w"] + np.asarray(params["w"])) - y) / len(x)
        per_client.append(total)
    np.testing.assert_allclose(found["w"], np.stack(per_client), rtol=1e-4, atol=1e-5)


def test_a_server_function_reads_them():
    task = frozen_task()
    grad = fs.grad(task)
    batch = {"x": jnp.ones((2, 3)), "y": jnp.zeros((2, 2)), "mask": jnp.ones(2)}

    def algorithm(task, grad):
        plain = fs.fedavg(task, optax.sgd(0.1))

        def server(key, state, aggregate):
            state = plain.server(key, state, aggregate)
            step = lambda w, g: w - 0.01 * g
            return state._replace(params=jax.tree.map(step, state.params, grad(state.params, batch, key)[0]))

        return plain._replace(server=server)

    closed = closed_task()
    found, _ = trained(simulation(algorithm(task, grad)), 2)
    expected, _ = trained(simulation(algorithm(closed, fs.grad(closed))), 2)
    assert_equal(found.server, expected.server)


@pytest.mark.skipif(not hasattr(jax, "make_user_context"), reason="JAX of before 0.9 keeps traces of such functions")
def test_a_jitted_function_of_ones_own_reads_each_program_s():
    task = frozen_task()
    grad = jax.jit(fs.grad(task))

    def client(key, server, row, batches):
        step = lambda w, batch, key: (jax.tree.map(lambda a, g: a - 0.1 * g, w, grad(w, batch, key)[0]), {})
        w, _ = fs.local_steps(step, server, batches, key)
        return fs.ClientUpdate(jax.tree.map(jnp.subtract, w, server), batches.num_examples)

    server = lambda key, server, aggregate: jax.tree.map(jnp.add, server, aggregate.value)
    algorithm = fs.Algorithm(task, lambda params: (params, None), client, server)
    expected = trained(simulation(fs.fedavg(closed_task(), optax.sgd(0.1))), 2)[0].server.params
    for lanes in (1, 2):
        assert_close(trained(simulation(algorithm, lanes=lanes), 2)[0].server, expected)


WRAPPERS = {
    "remat": fs.client.remat,
    "micro_batches": lambda task: fs.client.micro_batches(task, 2),
    "compute_in": lambda task: fs.client.compute_in(task, jnp.float16),
    "augment": lambda task: fs.client.augment(task, lambda example, key: {**example, "x": example["x"] + 1}),
    "transform": lambda task: fs.client.transform(task, lambda example, key: {**example, "x": example["x"] * 2}),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_transforms_of_tasks_hand_them_on(name):
    short = jax.tree.map(lambda leaf: leaf.astype(np.float16), BASE) if name == "compute_in" else BASE  # cast, too
    found, expected = (
        trained(simulation(fs.fedavg(WRAPPERS[name](task), optax.sgd(0.1))), 1)[0]
        for task in (frozen_task(), closed_task(short))
    )
    assert_equal(found.server, expected.server)


def test_a_sweep_reads_them_and_refuses_others():
    task = frozen_task()
    build = lambda lr: simulation(fs.fedavg(task, optax.sgd(lr)))
    member = fs.sweep(build, {"lr": [0.01, 0.1]}, rounds=2).members[1][0]
    one, _ = trained(build(0.1), 2)
    assert_close(member.params, one.server.params)
    count = []

    def changing(lr):
        count.append(1)
        return simulation(fs.fedavg(frozen_task({"w": BASE["w"] * len(count)}), optax.sgd(lr)))

    with pytest.raises(ArgumentError, match="other frozen constants"):
        fs.sweep(changing, {"lr": [0.01, 0.1]}, rounds=1)


def test_debug_mode_and_pure_rounds_read_them():
    task, expected = frozen_task(), None
    expected, _ = trained(simulation(fs.fedavg(closed_task(), optax.sgd(0.1))), 1)
    algorithm = fs.fedavg(task, optax.sgd(0.1))
    debugged = fs.Simulation(algorithm, DATA, fs.sampler.uniform(6), fs.Batching(4, epochs=2), seed=3, debug=True)
    assert_close(trained(debugged, 1)[0].server, expected.server)
    sim = simulation(algorithm)
    state = sim.init()
    pure, _ = sim.round_function()(sim.pure_state(state), *sim.round_plan(state))
    assert_equal(pure.server, expected.server)


def test_a_checkpoint_knows_each_leaf(tmp_path):
    base = {"first": BASE, "second": {"w": np.ones((3, 2), np.float32)}}

    def both(params, batch, key, *, frozen):
        summed = {"w": frozen["first"]["w"] + frozen["second"]["w"]}
        return loss(params, batch, key, frozen=summed)

    def sim(base):
        return simulation(fs.fedavg(fs.Task(init, both, frozen=base), optax.sgd(0.1)))

    made = sim(base)
    made.run(made.init(), rounds=1, run_dir=tmp_path / "run")
    again = jax.tree.map(np.copy, base)
    assert sim(again).restore(tmp_path / "run").round == 1
    again["second"]["w"][2, 1] += 1
    with pytest.raises(fs.RunFolderError, match=r"frozen\['second'\]\['w'\]"):
        sim(again).restore(tmp_path / "run")
    assert sim(again).restore(tmp_path / "run", allow={"algorithm"}).round == 1
    saved = sum(file.stat().st_size for file in (tmp_path / "run").rglob("*") if "checkpoint" in str(file))
    assert saved < 1_000_000


def test_what_is_no_array_is_refused():
    with pytest.raises(ArgumentError, match=r"task.frozen\['w'\] is a function"):
        simulation(fs.fedavg(frozen_task({"w": lambda: 0}), optax.sgd(0.1)))


def test_functions_that_do_not_take_it_are_refused_at_once():
    """Not by the first evaluation, which may be a long run's last act."""
    with pytest.raises(ArgumentError, match=r"task.frozen is given, and task.loss does not take it"):
        simulation(fs.fedavg(fs.Task(init, lambda params, batch, key: 0.0, frozen=BASE), optax.sgd(0.1)))
    with pytest.raises(ArgumentError, match=r"must be evaluate\(params, batch, key, \*, frozen\)"):
        simulation(fs.fedavg(frozen_task()._replace(evaluate=lambda params, batch, key: 0.0), optax.sgd(0.1)))
    with pytest.raises(ArgumentError, match=r"task.loss takes frozen, and the task has none"):
        fs.grad(fs.Task(init, loss))
    fs.grad(frozen_task(BASE)._replace(evaluate=lambda *given, **frozen: 0.0))
