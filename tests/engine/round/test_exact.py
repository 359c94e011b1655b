"""Exact sums: against whole numbers and fractions; the same bits for any devices, order and place in a chunk."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.engine.round import sums
from tests.engine import toys
from tests.engine.round.test_invariance import COHORTS, assert_same, outcome, simulation

a = fs.aggregate
CHAINS = {
    "quantized": lambda: a.chain(a.clip_by_l2(1.0), a.quantize(8)),
    "adaptive": lambda: a.chain(a.adaptive_clip(0.5), a.gaussian_noise(0.1), reduce=a.mean("uniform")),
    "drive": lambda: a.chain(a.drive()),
    "secure": lambda: a.chain(a.clip_by_l2(1.0), a.quantize(8), a.secure_sum(), reduce=a.mean("uniform")),
}


def algorithm(name):
    task = toys.task(noisy=True)
    if name in CHAINS:
        return toys.watched(toys.fedavg(task, aggregator=CHAINS[name]()))
    return toys.watched(toys.ALGORITHMS[name](task))


def exact(name, lanes, devices, cohorts=COHORTS, **kwargs):
    sampler = toys.script(cohorts)._replace(event=fs.sampler.uniform(6).event)
    where = {"lanes": lanes, "devices": jax.devices()[:devices]}
    batching = fs.Batching(3, epochs=2)
    return fs.Simulation(
        algorithm(name), toys.federation(), sampler, batching, seed=3, exact=True, **toys.executed(**where, **kwargs)
    )


def everything(sim, rounds=3):
    state, history = sim.run(sim.init(), rounds)
    metrics = {name: history[name] for name in history if not name.startswith("plan/")}
    return toys.on_device(state), metrics, [toys.by_client(metrics) for metrics in history.rounds]


CASES = [("fedavg", 1), ("fedavg", 2), ("scaffold", 2), ("two_phase", 1), ("median", 1), ("adaptive", 2), ("drive", 2)]


@pytest.mark.parametrize(("name", "lanes"), [*CASES, ("quantized", 1), ("secure", 2)])
def test_the_same_bits_for_any_devices_and_order(name, lanes):
    draw = np.random.default_rng(0)
    permuted = tuple(tuple(draw.permutation(row).tolist()) for row in COHORTS)
    # XLA turns this one's division by a scalar into a product in the program of one device, and not in others.
    least = 2 if name == "two_phase" else 1
    state, metrics, clients = everything(exact(name, lanes, least))
    assert np.isfinite(state["server"]).all()
    others = [(3, permuted), (4, COHORTS)] if name == "fedavg" else [(3, permuted)]
    for devices, cohorts in others:
        other, other_metrics, other_clients = everything(exact(name, lanes, devices, cohorts))
        for part in state:
            np.testing.assert_array_equal(other[part], state[part], err_msg=part)
        for metric in metrics:
            np.testing.assert_array_equal(other_metrics[metric], metrics[metric], err_msg=metric)
        jax.tree.map(np.testing.assert_array_equal, other_clients, clients)


def test_exact_rounds_are_the_others_within_rounding():
    expected = outcome(simulation("scaffold", 2, 2), rounds=2)
    assert_same(expected, outcome(simulation("scaffold", 2, 2, exact=True), rounds=2), exact=False)


def total_of(values, factors, clients, parts=1):
    """The exact sum over lanes, added in `parts` totals, which are then added."""
    adder = sums.exact(clients)
    shape = jax.ShapeDtypeStruct(values.shape[1:], jnp.float32)
    totals = [
        adder.add(adder.zero(shape), jnp.asarray(v), jnp.asarray(f))
        for v, f in zip(np.array_split(values, parts), np.array_split(factors, parts), strict=True)
    ]
    return np.asarray(adder.result(sum(totals)))


@pytest.mark.parametrize("clients", [1, 2, 5, 1000, 2**20])
def test_sums_are_those_of_fractions(clients):
    draw = np.random.default_rng(clients)
    lanes = min(clients, 40)
    sign, scale = draw.choice([-1, 1], (lanes, 50)), 2.0 ** draw.integers(-40, 20, (lanes, 50))
    values = (sign * draw.uniform(1, 2, (lanes, 50)) * scale).astype(np.float32)
    factors = draw.choice(np.array([0.0, 1.0, 3.0, 0.3], np.float32), lanes)
    found = total_of(values, factors, clients)
    unit = Fraction(1, 2**48)
    assert unit == Fraction(sums.RESOLUTION)
    products = (factors[:, None] * values).astype(np.float32)
    for column in range(50):
        sum_of_units = sum(round(Fraction(float(p)) / unit) for p in products[:, column])
        expected = float(sum_of_units * unit)
        assert abs(found[column] - expected) <= 2.0**-23 * abs(expected)
    for parts in (2, 7):
        np.testing.assert_array_equal(total_of(values, factors, clients, min(parts, lanes)), found)
    order = draw.permutation(lanes)
    np.testing.assert_array_equal(total_of(values[order], factors[order], clients), found)


@pytest.mark.parametrize("clients", [3, 1024])
def test_the_edge_of_the_range(clients):
    largest = np.nextafter(np.float32(sums.RANGE), np.float32(0))
    for value in (largest, -largest, np.float32(sums.RESOLUTION), np.float32(-sums.RESOLUTION / 2)):
        found = total_of(np.full((clients, 1), value), np.ones(clients, np.float32), clients)
        units = round(Fraction(float(value)) / Fraction(sums.RESOLUTION))
        np.testing.assert_allclose(found, float(clients * units * Fraction(sums.RESOLUTION)), rtol=2e-7)
    assert sums.fits({"x": jnp.asarray(largest)}, 1.0)
    for bad in (sums.RANGE, -sums.RANGE, np.inf, np.nan):
        assert not sums.fits({"x": jnp.asarray([0.0, bad])}, 1.0)
    assert not sums.fits({"x": jnp.asarray(largest)}, 2.0)


def scalar_sim(value, **kwargs):
    """Client 1's update is `value`, the others' 1."""

    def client(key, server, row, batches):
        delta = jnp.where(batches.client_id == 1, value, 1.0)
        return fs.ClientUpdate(delta, weight=batches.num_examples)

    task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
    algorithm = fs.Algorithm(
        task,
        init=lambda params: (params, None),
        client=client,
        server=lambda key, server, aggregate: server + aggregate.value,
        params=lambda server: server,
    )
    data = fs.data.FederatedData({"x": jnp.zeros(6)}, [0, 2, 4, 6])
    return fs.Simulation(algorithm, data, fs.sampler.uniform(3), fs.Batching(2), exact=True, **toys.executed(**kwargs))


def test_what_is_beyond_the_range_is_an_error_or_left_out():
    sim = scalar_sim(2.0**23)  # two examples each: 2^24 once weighted
    with pytest.raises(fs.NonFiniteUpdateError, match=r"client 1 .* 2\^24 or more once weighted") as error:
        sim.run(sim.init(), 2)
    assert error.value.state.round == 0
    sim = scalar_sim(2.0**23, on_nonfinite="drop")
    state, history = sim.run(sim.init(), 2)
    assert float(sim.params(state)) == 2.0
    assert history["cohort/nonfinite"].tolist() == [1, 1]
    sim = scalar_sim(2.0**22)
    assert float(sim.params(sim.run(sim.init(), 1)[0])) == (2 * 2.0**22 + 4) / 6


def test_a_sweep_of_exact_simulations_is_its_runs():
    build = lambda lr: fs.Simulation(
        fs.fedavg(toys.task(), optax.sgd(lr)), toys.federation(), fs.sampler.uniform(5), fs.Batching(3), exact=True
    )
    result = fs.sweep(build, {"lr": [0.05, 0.1]}, 2)
    for setting, member in zip(({"lr": 0.05}, {"lr": 0.1}), result.members, strict=True):
        sim = build(**setting)
        expected = sim.params(sim.run(sim.init(), 2)[0])
        np.testing.assert_allclose(member[0].params["w"], expected["w"], rtol=1e-5, atol=1e-6)


def test_a_folder_holds_runs_of_one_kind(tmp_path):
    sim = exact("fedavg", 1, 1)
    sim.save(tmp_path, sim.run(sim.init(), 1)[0])
    with pytest.raises(fs.FedSimError, match="exact"):
        simulation("fedavg", sampler=sim.sampler).restore(tmp_path)
