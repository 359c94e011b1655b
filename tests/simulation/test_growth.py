"""What rounds and simulations leave behind: the history's numbers, and nothing else."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.simulation.client_map import PROGRAMS
from tests.engine import toys

pytestmark = pytest.mark.usefixtures("drawn")


@pytest.fixture(autouse=True, scope="module")
def collected():
    """Garbage is collected as in users' processes, not as seldom as in tests."""
    before = gc.get_threshold()
    gc.unfreeze()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


def simulation(**kwargs):
    given = {"devices": jax.devices()[:1], "lanes": 2, **kwargs}
    return fs.Simulation(
        toys.fedavg(toys.task()), toys.federation(), fs.sampler.uniform(4), fs.Batching(3), **toys.executed(**given)
    )


def left(sim, start, rounds, **options):
    """Python's objects and JAX's arrays that stay after that many rounds, whose history is dropped."""
    sim.run(start, rounds, **options)
    gc.collect()
    gc.collect()  # of what the first one's callbacks let go
    return len(gc.get_objects()), len(jax.live_arrays())


@pytest.mark.parametrize("kept", ["bare", "folder"])
def test_rounds_leave_no_objects(kept, tmp_path):
    sim = simulation()
    start = sim.init()
    names = iter("abcde")

    def count(rounds):
        folder = {"run_dir": tmp_path / next(names), "checkpoint_every": rounds // 2}  # Orbax keeps a path of each
        return left(sim, start, rounds, **(folder if kept == "folder" else {}))

    count(8)
    before, (few, arrays), (many, later) = count(8)[0], count(8), count(40)
    assert (many - few) - (few - before) < 32  # less than one a round; Matplotlib may keep fonts of each run
    assert later == arrays
    assert sim.compile_count() == 1


def test_a_history_owns_its_numbers():
    """Views would keep the devices' buffers."""
    sim = simulation()
    _, history = sim.run(sim.init(), 3)
    for metrics in history.rounds:
        leaves = jax.tree.leaves(metrics._fetched())
        assert leaves
        assert all(isinstance(leaf, np.ndarray) and leaf.flags.owndata for leaf in leaves)


@pytest.mark.parametrize("kept", ["bare", "folder", "rows"])
def test_a_simulation_goes_when_it_is_no_longer_held(kept, tmp_path):
    algorithm = toys.ALGORITHMS["scaffold"](toys.task()) if kept == "rows" else toys.fedavg(toys.task())
    sim = fs.Simulation(algorithm, toys.federation(), fs.sampler.uniform(4), fs.Batching(3))
    task = algorithm.task
    sim.run(sim.init(), 2, **({"run_dir": tmp_path / "run"} if kept == "folder" else {}))
    refs = weakref.ref(sim), weakref.ref(task.loss)
    del sim, algorithm, task
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


def test_programs_of_evaluation_go_with_those_that_follow():
    def task(k):
        return fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2 + k)

    def measured(k):
        one = task(k)
        fs.evaluate(one, jnp.zeros(()), {"x": np.arange(3.0)}, devices=jax.devices()[:1])
        return weakref.ref(one.loss)

    first = measured(0)
    gc.collect()
    assert first() is not None  # found again where a run evaluates every few rounds
    for k in range(PROGRAMS):
        measured(k)
    gc.collect()
    assert first() is None
