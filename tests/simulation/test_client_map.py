"""A function of each client, its row and its batches, against Python loops in NumPy on the same rows and examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.core import rng
from fedjax_sim.core.types import ClientRows
from fedjax_sim.engine.device import placement
from fedjax_sim.engine.round import waves
from fedjax_sim.engine.store.row_file import HostRows, write
from fedjax_sim.engine.store.row_table import client_row
from fedjax_sim.simulation import client_map
from tests.engine import toys

K = toys.NUM_CLIENTS
DATA = toys.federation()
DRAW = np.random.default_rng(3)
MODELS = {
    "w": DRAW.normal(size=(K, 3, 2)).astype(np.float32),
    "b": DRAW.normal(size=(K, 2)).astype(np.float32),
}
SHIFT = np.array([0.5, -1.0], np.float32)
SUBSET = [9, 2, 6, 11, 1]  # in no order; client 1 is empty


def squared_error(model, batch, key):
    return jnp.mean((batch["x"] @ model["w"] + model["b"][None] - batch["y"]) ** 2, axis=1)


TASK = fs.Task(lambda key: toys.task().init(key), squared_error)
TRACES = []


def personal(key, shift, model, batches):
    """Metrics of a client's own model and arrays of any kind, all in one pytree."""
    TRACES.append(1)
    measure = fs.client.evaluation(TASK)
    moved = {**model, "b": model["b"] + shift}
    metrics = fs.local_steps(lambda _, batch, key: ((), measure(moved, batch, key)), (), batches, key)[1]
    whole = {"id": batches.client_id, "norm": jnp.sum(model["w"] ** 2), "examples": batches.num_examples}
    return metrics, whole, fs.metrics.Max(jnp.max(model["b"]))


def by_hand(k):
    x, y = (DATA.arrays[name][DATA.rows(k)].astype(np.float64) for name in ("x", "y"))
    w, b = (MODELS[name][k].astype(np.float64) for name in ("w", "b"))
    if not len(x):
        return np.nan, 0, 0.0, 0, np.nan
    return ((x @ w + b + SHIFT - y) ** 2).mean(), k, (w**2).sum(), len(x), b.max()


def assert_by_hand(found, clients):
    metrics, whole, largest = found
    got = zip(metrics["loss"].compute(), whole["id"], whole["norm"], whole["examples"], largest.compute(), strict=True)
    np.testing.assert_allclose(list(got), [by_hand(k) for k in clients], rtol=1e-5)
    assert whole["id"].dtype == np.int32
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))


def host_rows(unseen=()):
    """The models in a file, but for those of clients that took part in no round: they have the first row."""
    rows = HostRows(ClientRows(client={"b": MODELS["b"][0], "w": MODELS["w"][0]}), K)
    new = {k: rows.file.new() for k in range(K) if k not in unseen}
    write(list(new.values()), [np.ascontiguousarray(MODELS[name][list(new)]) for name in ("b", "w")])
    return rows.updated(new)


def placed(devices):
    """As a state of a simulation on so many devices has them: dealt, with padding."""
    mesh = _mesh(devices)
    pad = lambda table: np.concatenate([table, np.full((-K % devices, *table.shape[1:]), np.nan, np.float32)])
    return ClientRows(client=placement.shard(mesh, jax.tree.map(pad, MODELS)))


ROWS = {"plain": lambda: MODELS, "of 1": lambda: placed(1), "of 5": lambda: placed(5), "host": host_rows}


@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("clients, lanes", [(None, None), (SUBSET, 2), (np.array([8]), 1)], ids=["all", "some", "one"])
def test_personal_models(rows, devices, clients, lanes):
    given = {"rows": ROWS[rows](), "clients": clients, "devices": jax.devices()[:devices], "lanes": lanes}
    assert_by_hand(fs.map_clients(personal, SHIFT, DATA, 4, **given), range(K) if clients is None else clients)


@pytest.mark.parametrize("devices", [1, 3])
def test_waves_of_one_chunk(devices, monkeypatch):
    """As where few rows fit a device at a time."""
    monkeypatch.setitem(waves.WAVE, "cpu", 1)
    given = {"devices": jax.devices()[:devices], "lanes": 2}
    assert_by_hand(fs.map_clients(personal, SHIFT, DATA, 4, rows=host_rows(unseen=[0]), **given), range(K))


@pytest.mark.parametrize("rows", ["plain", "of 5", "host"])
@pytest.mark.parametrize("devices", [1, 3])
def test_streamed_data(rows, devices, monkeypatch):
    """In groups, of which the last one is short."""
    monkeypatch.setattr(client_map, "_GROUP", 2)
    offsets = DATA.offsets
    made = lambda client, example: {name: leaf[offsets[client] + example] for name, leaf in DATA.arrays.items()}
    data = fs.data.procedural(K, np.array(toys.SIZES), made)
    given = {"rows": ROWS[rows](), "devices": jax.devices()[:devices], "lanes": 1}
    for clients in (None, SUBSET):
        found = fs.map_clients(personal, SHIFT, data, 4, clients=clients, **given)
        assert_by_hand(found, range(K) if clients is None else clients)


@pytest.mark.parametrize("rows", ["plain", "host"])
def test_one_program_for_sets_of_a_size(rows):
    given = {"rows": ROWS[rows](), "devices": jax.devices()[:3]}
    fs.map_clients(personal, SHIFT, DATA, 4, clients=[0, 2, 4], **given)
    programs = client_map._programs(personal, _mesh(3), fs.Batching(4, shuffle=False), "auto")
    sizes, traces = [each._cache_size() for each in programs], len(TRACES)
    for clients in ([11, 7, 6], [10, 1, 0]):
        found = fs.map_clients(personal, 2 * SHIFT - SHIFT, DATA, 4, clients=clients, **given)
        assert_by_hand(found, clients)
    assert ([each._cache_size() for each in programs], len(TRACES)) == (sizes, traces)


def _mesh(devices):
    return placement.client_mesh(jax.devices()[:devices])


def test_rows_of_a_simulation():
    """SCAFFOLD's control variates; the state stays as it is, and one without rows gives None."""
    algorithm = fs.scaffold(toys.task(), toys.LR)
    place = lambda rows: fs.Execution(devices=jax.devices()[:2], rows=rows)
    square = lambda key, server, row, batches: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(row))
    found = []
    for rows in ("device", "host"):
        sim = fs.Simulation(algorithm, DATA, fs.sampler.uniform(4), fs.Batching(3), seed=1, execution=place(rows))
        state, _ = sim.run(sim.init(), rounds=3)
        norms = fs.map_clients(square, sim.params(state), DATA, 4, rows=state.rows)
        expected = [
            sum(np.sum(leaf**2) for leaf in jax.tree.leaves(client_row(state.rows, k))) if toys.SIZES[k] else 0
            for k in range(K)
        ]
        np.testing.assert_allclose(norms, expected, rtol=1e-5)
        assert (norms > 0).sum() > 4
        found.append(norms)
        sim.run(state, rounds=1)
    np.testing.assert_allclose(*found, rtol=1e-5)
    plain = fs.Simulation(toys.fedavg(toys.task()), DATA, fs.sampler.uniform(4), fs.Batching(3))
    nothing = lambda key, server, row, batches: jnp.ones(()) * (row is None)
    feedback = HostRows(ClientRows(client=None, aggregator=(np.zeros(2, np.float32),)), K)
    for rows in (plain.init().rows, feedback):
        assert fs.map_clients(nothing, None, DATA, 4, rows=rows).sum() == sum(n > 0 for n in toys.SIZES)


def drawn(key, server, row, batches):
    return jax.random.uniform(key), batches.batch(0)["x"][:, 0]


def test_randomness_is_of_seed_round_and_client():
    """Keys and shuffled batches: whoever else is computed, on whatever device."""
    one, three = jax.devices()[:1], jax.devices()[:3]
    batching = fs.Batching(4)
    numbers, firsts = fs.map_clients(drawn, None, DATA, batching, seed=5, round=7, devices=one)
    expected = jax.random.fold_in(rng.key(5, rng.Purpose.EVALUATE, 7), 9)
    assert numbers[9] == jax.random.uniform(expected)
    some, some_firsts = fs.map_clients(drawn, None, DATA, batching, clients=SUBSET, seed=5, round=7, devices=three)
    np.testing.assert_array_equal(some, numbers[SUBSET])
    np.testing.assert_array_equal(some_firsts, firsts[SUBSET])
    for other in ({"seed": 6, "round": 7}, {"seed": 5, "round": 8}):
        others, other_firsts = fs.map_clients(drawn, None, DATA, batching, devices=one, **other)
        assert len(np.intersect1d(others, numbers[numbers > 0])) <= 1  # the empty client's zero
        assert (other_firsts != firsts).any()


@pytest.mark.parametrize("rows", [lambda: None, host_rows], ids=["none", "host"])
def test_loops_of_a_fixed_length_know_the_longest_client(rows):
    def slope(key, w, row, batches):
        def total(w):
            step = lambda value, batch, key: (value + jnp.sum(batch["mask"] * (w - batch["x"][:, 0]) ** 2), {})
            return fs.local_steps(step, jnp.zeros(()), batches, key, static_steps=batches.longest)[0]

        return jax.grad(total)(w)

    found = fs.map_clients(slope, np.float32(0.5), DATA, 4, rows=rows(), devices=jax.devices()[:1])
    expected = [2 * (0.5 - DATA.arrays["x"][DATA.rows(k), 0]).sum() for k in range(K)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_traced_rows_and_servers():
    loss = lambda key, shift, row, batches: jnp.sum(row["b"] * shift)
    scales = jnp.array([1.0, 2.0])
    given = {"clients": SUBSET, "devices": jax.devices()[:1]}
    found = jax.vmap(lambda c: fs.map_clients(loss, c * SHIFT, DATA, 4, rows=MODELS, **given))(scales)
    by_rows = jax.jit(lambda models: fs.map_clients(loss, SHIFT, DATA, 4, rows=models, **given))(MODELS)
    stored = jax.vmap(lambda c: fs.map_clients(loss, c * SHIFT, DATA, 4, rows=host_rows(), **given))(scales)
    expected = np.array([MODELS["b"][k] @ SHIFT if toys.SIZES[k] else 0 for k in SUBSET])
    np.testing.assert_allclose(by_rows, expected, rtol=1e-5)
    for each in (found, stored):
        np.testing.assert_allclose(each, [expected, 2 * expected], rtol=1e-5)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"clients": [1, K]}, f"clients=.*must lie in 0..{K - 1}"),
        ({"clients": [-1]}, "must lie in"),
        ({"clients": [3, 4, 3]}, "names a client more than once"),
        ({"clients": []}, "at least one"),
        ({"clients": [0.5]}, "whole numbers"),
        ({"clients": np.arange(K) < 3}, "whole numbers"),
        ({"rows": MODELS["b"][:-1]}, "a row for each of 12 clients"),
        ({"rows": np.zeros(())}, "a row for each of 12 clients"),
        ({"rows": HostRows(ClientRows(client=np.zeros(2)), K + 1)}, "the data have 12 clients"),
        ({"batching": 0}, "batching=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_what_does_not_fit_is_refused(given, message):
    with pytest.raises(fs.FedSimError, match=message):
        fs.map_clients(drawn, None, DATA, **{"batching": 4, **given})
