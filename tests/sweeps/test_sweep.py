"""A sweep's members are what their own runs are, whatever else is swept beside them."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.core import rng
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.simulation.lanes import for_simulation
from tests.engine import toys

ROUNDS = 4
BATCHING = fs.Batching(3, epochs=2)
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}
TEST = {"x": np.linspace(-1, 1, 21, dtype=np.float32).reshape(7, 3), "y": np.ones((7, 2), np.float32)}


def simulation(algorithm, lanes=2, devices=1, batching=BATCHING, sampler=None, **kwargs):
    sampler = sampler or fs.sampler.uniform(5)
    where = jax.devices()[:devices]
    return fs.Simulation(
        algorithm, toys.federation(), sampler, batching, **toys.executed(lanes=lanes, devices=where, **kwargs)
    )


def fedavg(client_lr=0.1, server_lr=1.0, clip=1.0, **kwargs):
    aggregator = fs.aggregate.chain(fs.aggregate.clip_by_l2(clip))
    task = toys.task(noisy=True)
    return simulation(fs.fedavg(task, optax.sgd(client_lr), optax.sgd(server_lr), aggregator), **kwargs)


def fedprox(mu, b1=0.9, tau=0.1, **kwargs):
    server = fs.server.fedyogi(0.1, b1=b1, tau=tau)
    return simulation(fs.fedprox(toys.task(noisy=True), optax.sgd(0.1), server, mu=mu), **kwargs)


def scaffold(client_lr, server_lr=1.0, **kwargs):
    return simulation(fs.scaffold(toys.task(noisy=True), client_lr, toys.NUM_CLIENTS, server_lr=server_lr), **kwargs)


def own_run(sim, seed, rounds=ROUNDS, **kwargs):
    """A simulation by itself from a seed: its columns and its model."""
    first = jax.jit(sim.algorithm.task.init)(rng.key(seed, rng.Purpose.INIT))
    state, history = sim.run(dataclasses.replace(sim.init(first), seed=seed), rounds, **kwargs)
    return {name: history[name] for name in history}, sim.params(state)


def assert_own_runs(result, build, **kwargs):
    for setting, row in zip(result.settings, result.members, strict=True):
        sim = build(**setting)
        for seed, member in zip(result.seeds, row, strict=True):
            columns, params = own_run(sim, seed, **kwargs)
            for name, column in member.columns.items():
                np.testing.assert_allclose(column, columns[name], err_msg=f"{setting} {seed} {name}", **TOLERANCE)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), member.params, params)


CASES = {
    "client and server rates, clip": (
        fedavg,
        [{"client_lr": 0.05, "server_lr": 1, "clip": 0.3}, {"client_lr": 0.2, "server_lr": 0.5, "clip": 5}],
        {},
    ),
    "mu and an adaptive server's, one lane": (
        fedprox,
        [{"mu": 0.0, "b1": 0.9, "tau": 0.1}, {"mu": 1.0, "b1": 0.5, "tau": 0.01}],
        {"lanes": 1, "devices": 2},
    ),
    "rows, two devices": (scaffold, {"client_lr": [0.05, 0.2]}, {"devices": 2}),
    "rows, one device and lane": (scaffold, {"client_lr": [0.1], "server_lr": [0.5, 1.0]}, {"lanes": 1, "devices": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_members_are_their_own_runs(case):
    make, grid, kwargs = CASES[case]

    def build(**setting):
        return make(**setting, **kwargs)

    result = fs.sweep(build, grid, ROUNDS, seeds=[3, 8])
    assert (result.compilations, result.groups) == (1, 1)
    assert_own_runs(result, build)
    losses = result["client/loss"]
    assert losses.shape == (len(result.settings), 2, ROUNDS)
    assert len(np.unique(losses[..., -1])) == losses[..., -1].size  # every member is another


def test_shared_cohorts_are_those_of_the_first_seed():
    first = fs.sampler.uniform(5)
    of_three = first._replace(sample=lambda state, round, seed: first.sample(state, round, 3))
    batching = fs.Batching(3, shuffle=False)

    def build(client_lr, sampler=first):
        return fedavg(client_lr, batching=batching, sampler=sampler)

    result = fs.sweep(build, {"client_lr": [0.05, 0.2]}, ROUNDS, seeds=[3, 8], share_cohorts=True)
    assert result.compilations == 1
    assert_own_runs(result, lambda client_lr: build(client_lr, of_three))


def test_shared_cohorts_are_shuffled_alike():
    """Without draws of their own and from one model, seeds that share cohorts are the same run."""
    quiet = lambda lr: simulation(fs.fedavg(toys.task(), optax.sgd(lr)))
    start = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    shared = fs.sweep(quiet, {"lr": [0.1]}, 2, seeds=2, share_cohorts=True, params=start)["client/loss"]
    own = fs.sweep(quiet, {"lr": [0.1]}, 2, seeds=2, params=start)["client/loss"]
    np.testing.assert_array_equal(shared[:, 0], shared[:, 1])
    np.testing.assert_allclose(shared[:, 0], own[:, 0], **TOLERANCE)
    assert (own[:, 0] != own[:, 1]).all()


def test_a_draw_over_the_capacity_by_one_seed():
    """The widest seed's cohort widens all: a second program, and the same results."""

    def sample(state, round, seed):
        ids = [0, 2, 4, 6] if (round, seed) == (1, 8) else [seed, seed + 1]
        return fs.sampler.cohort(np.asarray(ids), 2), state

    narrow = fs.sampler.uniform(2)._replace(sample=sample)
    build = lambda server_lr: fedavg(server_lr=server_lr, sampler=narrow, lanes=1)
    result = fs.sweep(build, {"server_lr": [0.5, 1.0]}, 3, seeds=[3, 8])
    assert result.compilations == 2
    assert_own_runs(result, build, rounds=3)


def test_a_member_that_diverges_stops_nobody():
    build = lambda client_lr: fedavg(client_lr, clip=1e6)
    rates = [0.05, 1e30, 0.2]
    result = fs.sweep(build, {"client_lr": rates}, ROUNDS)
    with pytest.raises(fs.NonFiniteUpdateError) as error:
        own_run(build(1e30), 0)
    assert result.diverged == [({"client_lr": 1e30}, 0, error.value.round)]
    good = fs.SweepResult([result.settings[i] for i in (0, 2)], [0], [result.members[i] for i in (0, 2)])
    assert_own_runs(good, build)
    lost = result.members[1][0].columns
    assert np.isnan(lost["client/loss"][error.value.round :]).all()
    assert not np.isnan(result["client/loss"][[0, 2]]).any()
    assert result.best("client/loss", mode="max").setting["client_lr"] in (0.05, 0.2)


def test_dropped_updates_are_dropped_in_their_member_alone():
    build = lambda client_lr: fedavg(client_lr, clip=1e6, on_nonfinite="drop")
    result = fs.sweep(build, {"client_lr": [0.05, 1e19]}, ROUNDS)
    assert_own_runs(result, build)
    assert result.diverged == []
    assert result["cohort/nonfinite"][1].any()
    assert not result["cohort/nonfinite"][0].any()


def test_groups_calls_of_build_and_no_tracer_left():
    calls = []

    def build(lr, momentum, batch_size=3):
        calls.append((type(lr), momentum, batch_size))
        task = toys.task()
        optimizer = optax.sgd(lr, momentum=0.5 if momentum == "some" else None)
        return simulation(fs.fedavg(task, optimizer), batching=fs.Batching(batch_size))

    grid = {"momentum": ["none", "some"], "lr": [0.05], "batch_size": [3, 4]}
    seen = []
    with jax.checking_leaks():
        result = fs.sweep(build, grid, 2, static=["batch_size"], progress=lambda *at: seen.append(at))
    assert seen == [(r, 8) for r in range(1, 9)]
    concrete = [call for call in calls if call[0] is float]
    assert (len(calls), len(concrete), result.groups, result.compilations) == (8, 4, 4, 4)
    assert concrete == [(float, m, b) for m, b in itertools.product(["none", "some"], [3, 4])]
    assert_own_runs(fs.SweepResult(result.settings[1:3], [0], result.members[1:3]), build, rounds=2)


def evaluated(traceable):
    def build(lr, scale=1.0):
        task = toys.task()

        def evaluate(params):
            loss = fs.evaluate(task, params, TEST)["loss"]
            middle = fs.evaluate_clients(task, params, toys.federation()).quantiles("size", (0.5,))[0.5]
            values = {"test/loss": loss * scale, "clients/size_p50": middle}
            return values if traceable else {name: float(value) for name, value in values.items()}

        return simulation(fs.fedavg(task, optax.sgd(lr)), evaluate=evaluate)

    return build


@pytest.mark.parametrize("traceable", [True, False], ids=["in one program", "one by one"])
def test_evaluation(traceable):
    """Also what depends on a hyperparameter, and of a diverged member."""
    build = evaluated(traceable)
    result = fs.sweep(build, {"lr": [0.05], "scale": [1.0, 3.0]}, 3, seeds=2, eval_every=2)
    assert_own_runs(result, build, rounds=3, eval_every=2)
    assert np.isnan(result["test/loss"]).tolist() == [[[True, False, False]] * 2] * 2
    assert result.members[0][0].evaluated == (1, 2)
    by_hand = fs.sweep(build, {"lr": [0.05, 1e30]}, 3, evaluate=lambda params: {"bias": params["b"][0]})
    assert by_hand["bias"][0, 0, -1] == pytest.approx(float(by_hand.members[0][0].params["b"][0]))
    assert np.isnan(by_hand["bias"][1]).all()


def test_evaluation_under_vmap_is_evaluation():
    task, data = toys.task(), toys.federation()
    models = {"w": jnp.stack([jnp.ones((3, 2)), jnp.zeros((3, 2))]), "b": jnp.zeros((2, 2))}
    pooled = jax.vmap(lambda params: fs.evaluate(task, params, TEST))(models)
    each = jax.vmap(lambda params: dict(fs.evaluate_clients(task, params, data).metrics))(models)
    for i in range(2):
        model = jax.tree.map(lambda leaf, i=i: leaf[i], models)
        np.testing.assert_allclose(pooled["loss"][i], fs.evaluate(task, model, TEST)["loss"], rtol=1e-5)
        np.testing.assert_allclose(each["loss"][i], fs.evaluate_clients(task, model, data)["loss"], rtol=1e-5)


def test_traced_numbers_keep_short_types():
    """As Python's numbers would: a float32 rate would make float32 of a bfloat16 model."""
    task = toys.task()
    short = task._replace(init=lambda key: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), task.init(key)))
    build = lambda lr: simulation(fs.scaffold(short, lr, toys.NUM_CLIENTS))
    result = fs.sweep(build, {"lr": [0.1, 0.2]}, 1)
    assert result.members[0][0].params["w"].dtype == jnp.bfloat16


def drawing(lr):
    """A build whose data are drawn anew each time."""
    x = np.random.default_rng().normal(size=(4, 3)).astype(np.float32)
    data = fs.FederatedData({"x": x, "y": x[:, :2]}, [0, 2, 4])
    return fs.Simulation(fs.fedavg(toys.task(), optax.sgd(lr)), data, fs.sampler.uniform(2), fs.Batching(2))


def device_data(lr):
    """A build whose offsets are JAX's."""
    data = fs.FederatedData({"x": np.ones((4, 3)), "y": np.ones((4, 2))}, jnp.asarray([0, 2, 4]) + 0)
    return fs.Simulation(fs.fedavg(toys.task(), optax.sgd(lr)), data, fs.sampler.uniform(2), fs.Batching(2))


def shaped(lr, width):
    return simulation(
        fs.fedavg(toys.task()._replace(init=lambda key: {"w": jnp.zeros((3, width)), "b": jnp.zeros(2)}), optax.sgd(lr))
    )


def watching(lr):
    return fedavg(lr, sampler=fs.sampler.uniform(5)._replace(observe=lambda state, cohort, metrics: state))


BAD = {
    "no grid": (fedprox, {}, {}, "grid={}: names no hyperparameter"),
    "no values": (fedprox, {"mu": []}, {}, "grid['mu']=[]: must hold at least one value"),
    "a bare number": (fedprox, {"mu": 0.1}, {}, "grid['mu']=0.1: must be a list"),
    "unknown": (drawing, {"rate": [1]}, {}, "['rate'], which"),
    "missing": (shaped, {"lr": [0.1]}, {}, "build needs ['width'], which the grid does not name"),
    "twice": (fedprox, {"mu": [0.1, 0.1]}, {}, "more than once"),
    "ragged": (fedprox, [{"mu": 0.1}, {"tau": 0.1}], {}, "must name ['mu']"),
    "ignored": (
        lambda lr, unused: drawing_fixed(lr),
        {"lr": [0.1], "unused": [1.0, 2.0]},
        {},
        "names ['unused'], on which",
    ),
    "a width": (shaped, {"lr": [0.1], "width": [2, 1]}, {}, "value of width while the program is made"),
    "a batch size": (
        lambda lr, size: fedavg(lr, batching=fs.Batching(size)),
        {"lr": [0.1], "size": [3, 4]},
        {},
        "static=('size',)",
    ),
    "other data": (drawing, {"lr": [0.1]}, {}, "and then other data"),
    "device data": (device_data, {"lr": [0.1]}, {}, "make it with NumPy"),
    "a value that is wrong": (fedprox, {"mu": [0.1, -2.0]}, {}, "mu=-2.0: must be zero or more"),
    "a fraction that is wrong": (fedprox, {"mu": [0.1], "b1": [0.5, 1.5]}, {}, "b1=1.5: must lie in [0, 1)"),
    "no simulation": (lambda lr: None, {"lr": [0.1]}, {}, "must be a fs.Simulation"),
    "static": (fedprox, {"mu": [0.1]}, {"static": ("nu",)}, "static='nu': is no hyperparameter"),
    "seeds": (fedprox, {"mu": [0.1]}, {"seeds": [1, 1]}, "seeds=[1, 1]: names a seed more than once"),
    "no seeds": (fedprox, {"mu": [0.1]}, {"seeds": 0}, "seeds=0: must be a whole number"),
    "params": (fedprox, {"mu": [0.1]}, {"params": {"w": jnp.ones(3)}}, "params have structure"),
    "rounds": (fedprox, {"mu": [0.1]}, {"rounds": 0}, "rounds=0: must be a whole number"),
    "a sampler that learns": (watching, {"lr": [0.1]}, {}, "observes rounds"),
}


def drawing_fixed(lr):
    return simulation(fs.fedavg(toys.task(), optax.sgd(lr)))


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    build, grid, kwargs, message = BAD[case]
    with pytest.raises(fs.FedSimError) as error:
        fs.sweep(build, grid, **{"rounds": 1, **kwargs})
    assert message in str(error.value)


def test_a_failing_client_function_is_told_as_it_is():
    def build(lr):
        algorithm = fs.fedavg(toys.task(), optax.sgd(lr))
        return simulation(algorithm._replace(client=lambda key, server, row, batches: batches.missing))

    with pytest.raises(AttributeError, match="missing"):
        fs.sweep(build, {"lr": [0.1]}, 1)


def test_blocks_of_rounds_are_rounds():
    one, blocks = (
        fs.sweep(lambda mu, n=n: fedprox(mu, rounds_per_dispatch=n), {"mu": [0.0, 1.0]}, 5, seeds=2) for n in (1, 3)
    )
    np.testing.assert_array_equal(one["client/loss"], blocks["client/loss"])


def test_lanes_of_a_sweep_follow_its_members():
    lanes = []

    def build(mu):
        sim = fedprox(mu, lanes="auto", devices=1)
        lanes.append(sim)
        return sim

    fs.sweep(build, {"mu": [0.0]}, 1)
    assert lanes[0].lanes == for_simulation(lanes[0].parts, members=1) == 2


def test_noise_multipliers_are_swept():
    def build(multiplier):
        chain = fs.aggregate.chain(
            fs.aggregate.clip_by_l2(1.0),
            fs.aggregate.gaussian_noise(multiplier),
            reduce=fs.aggregate.mean(weight="uniform"),
        )
        return simulation(fs.fedavg(toys.task(), optax.sgd(0.1), aggregator=chain))

    result = fs.sweep(build, {"multiplier": [0.5, 2.0]}, 2)
    assert result.compilations == 1
    assert_own_runs(result, build, rounds=2)


# What seeds redraw


def guessing(lr, seed=7, sampler=None):
    """Clients whose numbers are drawn with the seed, and a model that begins anywhere."""
    values = np.random.default_rng(seed).normal(size=8).astype(np.float32)
    data = fs.data.FederatedData({"x": values}, offsets=[0, 2, 4, 6, 8])
    task = fs.Task(lambda key: jax.random.normal(key), lambda w, batch, key: (w - batch["x"]) ** 2)
    return fs.Simulation(
        fs.fedavg(task, optax.sgd(lr)), data, sampler or fs.sampler.uniform(2), fs.Batching(2, shuffle=False),
        **toys.executed(lanes=2, devices=jax.devices()[:1]),
    )  # fmt: skip


def test_seeds_may_redraw_the_data_the_model_and_the_cohorts():
    everybody = fs.sampler.uniform(4)  # cohorts that leave nothing to draw
    losses = lambda reseed, **kwargs: fs.sweep(
        lambda lr, seed=7: guessing(lr, seed, **kwargs), {"lr": [0.1]}, 2, [3, 4], reseed=reseed
    )["client/loss"][0]
    one, other = losses("cohorts", sampler=everybody)
    np.testing.assert_allclose(one, other, **TOLERANCE)  # the model of the first seed, and its data
    one, other = losses("cohorts")
    assert one[0] != other[0]
    one, other = losses("model", sampler=everybody)
    assert one[0] != other[0]
    whole = losses(("data", "model", "cohorts"))
    data = losses("data")
    for i, seed in enumerate((3, 4)):
        for found, of in ((whole, seed), (data, 3)):
            np.testing.assert_allclose(found[i], own_run(guessing(0.1, seed), of, 2)[0]["client/loss"], **TOLERANCE)
    result = fs.sweep(guessing, {"lr": [0.1, 0.2]}, 1, 2, reseed=("data", "model", "cohorts"))
    assert (result.seeds, result.compilations, result["client/loss"].shape) == ([7, 8], 2, (2, 2, 1))


def test_what_seeds_cannot_redraw_is_refused():
    refused = lambda message: pytest.raises(fs.FedSimError, match=message)
    with refused(r"reseed='partition': must hold some of"):
        fs.sweep(guessing, {"lr": [0.1]}, 1, 2, reseed="partition")
    with refused("nothing is left for seeds to redraw"):
        fs.sweep(guessing, {"lr": [0.1]}, 1, 2, reseed=["cohorts"], share_cohorts=True)
    with refused(r"grid='seed': is what reseed"):
        fs.sweep(guessing, {"lr": [0.1], "seed": [1]}, 1, 2, reseed=["data"])
    with refused(r"build\(seed=8\) gives the data of the seed before"):
        fs.sweep(lambda lr, seed=7: guessing(lr), {"lr": [0.1]}, 1, 2, reseed=["data"])
    with refused("names .'seed'., which build does not take"):
        fs.sweep(lambda lr: guessing(lr), {"lr": [0.1]}, 1, 2, reseed=["data"])


def test_asynchronous_devices_that_other_seeds_would_draw_are_refused():
    """One simulation draws all members' cohorts, on the devices of its own seed."""
    task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
    data = fs.FederatedData({"x": np.zeros(9, np.float32)}, np.arange(10))
    device = fs.fleet.Device(seconds_per_step=1.0)

    def build(lr=0.3):
        algorithm = fs.fedavg(task, optax.sgd(lr), aggregator=fs.aggregate.mean("uniform"))
        sampler = fs.sampler.asynchronous(4, 2, max_staleness=3)
        return fs.Simulation(algorithm, data, sampler, fs.Batching(1), fleet=fs.fleet.lognormal(1.0, device))

    with pytest.raises(ArgumentError, match="draws other devices by seed 1 than by the simulation's own, 0"):
        fs.sweep(build, {"lr": [0.3]}, rounds=2, seeds=2)
