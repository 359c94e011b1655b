"""What a checkpoint knows of its simulation: whatever changes the training is told, nothing else is."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.simulation.fingerprint import compare
from tests.engine import toys

c = fs.aggregate
SCALE = 1.0


def squares(scale=1.0, power=2) -> fs.Task:
    """With a number in a closure, one in the code and one outside of the function."""

    def loss(params, batch, key):
        return scale * SCALE * jnp.mean(jnp.abs(batch["x"] @ params["w"] - batch["y"]) ** power, axis=1)

    return fs.Task(lambda key: {"w": jnp.zeros((3, 2))}, loss)


def cubes() -> fs.Task:
    def loss(params, batch, key):
        return SCALE * jnp.mean(jnp.abs(batch["x"] @ params["w"] - batch["y"]) ** 3, axis=1)

    return fs.Task(lambda key: {"w": jnp.zeros((3, 2))}, loss)


class Dense(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        self.dense, self.drop = nnx.Linear(3, width, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x, train):
        return self.drop(self.dense(x), deterministic=not train)


def flax_task(model) -> fs.Task:
    sample = {name: array[:1] for name, array in toys.federation().arrays.items()}
    return fs.flax_task(model, sample, lambda outputs, batch: jnp.mean((outputs - batch["y"]) ** 2, axis=1))


def picky(first=0) -> fs.sampler.Sampler:
    """A user's own sampler."""

    def sample(state, round, seed):
        return fs.sampler.cohort(np.array([first, 1 + (round + 1) % 5]), 2), state

    return fs.sampler.Sampler(lambda num_clients: None, sample, lambda num_clients: 2, lambda num_clients: 2.0)


def other_picky(first=0) -> fs.sampler.Sampler:
    def sample(state, round, seed):
        return fs.sampler.cohort(np.array([first, 1 + (round + 2) % 5]), 2), state

    return fs.sampler.Sampler(lambda num_clients: None, sample, lambda num_clients: 2, lambda num_clients: 2.0)


def changed(array: str, change) -> fs.data.FederatedData:
    data = toys.federation()
    return dataclasses.replace(data, arrays={**data.arrays, array: change(data.arrays[array])})


def private(clip=1.0, noise=1.0, *more) -> fs.Algorithm:
    return fedavg(aggregator=c.chain(c.clip_by_l2(clip), *more, c.gaussian_noise(noise), reduce=c.mean("uniform")))


def fedavg(lr=0.1, server=None, task=None, **kwargs) -> fs.Algorithm:
    return fs.fedavg(task or squares(), optax.sgd(lr), server, **kwargs)


def build(algorithm=None, data=None, sampler=None, batching=None, **kwargs) -> fs.Simulation:
    kwargs = {"devices": jax.devices()[:1], **kwargs}
    parts = (algorithm or fedavg(), data or toys.federation(), sampler or fs.sampler.uniform(5))
    return fs.Simulation(*parts, batching or fs.Batching(3), **toys.executed(**kwargs))


pytestmark = pytest.mark.filterwarnings("ignore:the client optimizer has a schedule")

SIMULATIONS = {
    "fedavg": build,
    "client's rate": lambda: build(fedavg(0.5)),
    "server's rate": lambda: build(fedavg(server=optax.sgd(0.5))),
    "schedule": lambda: build(fs.fedavg(squares(), optax.sgd(optax.linear_schedule(0.1, 0.01, 10)))),
    "other schedule": lambda: build(fs.fedavg(squares(), optax.sgd(optax.linear_schedule(0.1, 0.01, 11)))),
    "momentum": lambda: build(fs.fedavg(squares(), optax.sgd(0.1, momentum=0.9))),
    "fedadam": lambda: build(fedavg(server=fs.server.fedadam(0.1))),
    "fedadam from elsewhere": lambda: build(fedavg(server=fs.server.fedadam(0.1, initial_accumulator=0.5))),
    "fedyogi": lambda: build(fedavg(server=fs.server.fedyogi(0.1))),
    "fedprox": lambda: build(fs.fedprox(squares(), optax.sgd(0.1), mu=0.1)),
    "fedprox of other mu": lambda: build(fs.fedprox(squares(), optax.sgd(0.1), mu=0.2)),
    "scaffold": lambda: build(fs.scaffold(squares(), 0.1, toys.NUM_CLIENTS)),
    "scaffold, option 1": lambda: build(fs.scaffold(squares(), 0.1, toys.NUM_CLIENTS, option=1)),
    "a loss of other scale": lambda: build(fedavg(task=squares(2.0))),
    "a loss of other power": lambda: build(fedavg(task=squares(power=4))),
    "another loss": lambda: build(fedavg(task=cubes())),
    "two phases": lambda: build(toys.two_phase(toys.task())),
    "linen": lambda: build(fedavg(task=flax_task(nn.Dense(2)))),
    "linen without a bias": lambda: build(fedavg(task=flax_task(nn.Dense(2, use_bias=False)))),
    "nnx": lambda: build(fedavg(task=flax_task(lambda rngs: Dense(2, rngs)))),
    "median": lambda: build(fedavg(aggregator=c.median())),
    "uniform mean": lambda: build(fedavg(aggregator=c.mean("uniform"))),
    "private": lambda: build(private()),
    "other noise": lambda: build(private(noise=2.0)),
    "other clip": lambda: build(private(2.0)),
    "more chain": lambda: build(private(1.0, 1.0, c.rotate())),
    "quantized": lambda: build(fedavg(aggregator=c.chain(c.clip_by_l2(1.0), c.quantize(8)))),
    "quantized to less": lambda: build(fedavg(aggregator=c.chain(c.clip_by_l2(1.0), c.quantize(4)))),
    "a clip's start": lambda: build(fedavg(aggregator=c.chain(c.adaptive_clip(0.1, bit_noise=0)))),
    "a clip's other start": lambda: build(fedavg(aggregator=c.chain(c.adaptive_clip(0.2, bit_noise=0)))),
    "cohorts": lambda: build(sampler=fs.sampler.fixed([[0, 2], [3, 4]])),
    "other cohorts": lambda: build(sampler=fs.sampler.fixed([[0, 2], [3, 5]])),
    "poisson": lambda: build(sampler=fs.sampler.poisson(0.5)),
    "own sampler": lambda: build(sampler=picky()),
    "own sampler, other number": lambda: build(sampler=picky(2)),
    "own sampler, other code": lambda: build(sampler=other_picky()),
    "data times 7": lambda: build(data=changed("x", lambda x: x * 7)),
    "one label": lambda: build(data=changed("y", lambda y: np.where(np.arange(len(y))[:, None] == 7, y + 1, y))),
    "data of another type": lambda: build(data=changed("x", lambda x: x.astype(np.float16))),
    "data rearranged": lambda: build(data=dataclasses.replace(toys.federation(), index=np.arange(58)[::-1])),
    "names": lambda: build(data=dataclasses.replace(toys.federation(), client_ids=[f"c{i}" for i in range(12)])),
}
SAME = {
    "lanes": lambda: build(lanes=2),
    "devices": lambda: build(devices=jax.devices()[:3]),
    "streamed": lambda: build(residency="stream"),
    "blocks": lambda: build(rounds_per_dispatch=4),
    "debugging": lambda: build(debug=True),
    "evaluation": lambda: build(evaluate=lambda params: {}),
}


@pytest.fixture(scope="module")
def fingerprints():
    return {name: make().executor.fingerprint for name, make in SIMULATIONS.items()}


def test_every_part_of_every_simulation_is_told(fingerprints):
    for name, found in fingerprints.items():
        assert all(found.values()), name
        phases = 2 if name == "two phases" else 1
        assert len(found["programs"]) == 1 + 5 * phases, name
        assert len(json.dumps(found)) < 20_000, name


def test_no_two_of_them_are_taken_for_each_other(fingerprints):
    for name, found in fingerprints.items():
        for other, another in fingerprints.items():
            assert bool(compare(found, another).differences) == (name != other), (name, other)


def test_the_same_simulation_has_the_same_fingerprint_in_another_process(fingerprints):
    code = (
        "import json, sys, fedjax_sim; from tests.simulation import test_fingerprint as tests;"
        "json.dump({name: tests.SIMULATIONS[name]().executor.fingerprint for name in sys.argv[1:]}, sys.stdout)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[2])}
    names = ["schedule", "fedadam", "scaffold", "linen", "nnx", "private", "a clip's start", "own sampler", "names"]
    command = [sys.executable, "-c", code, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout) == json.loads(json.dumps({name: fingerprints[name] for name in names}))


@pytest.mark.parametrize("name", SAME)
def test_where_and_how_it_is_trained_does_not_matter(fingerprints, name):
    assert compare(fingerprints["fedavg"], SAME[name]().executor.fingerprint) == ({}, "")


def test_a_user_s_function_may_be_written_in_another_way(fingerprints):
    def loss(weights, examples, _):
        error = jnp.abs(examples["x"] @ weights["w"] - examples["y"])
        return 1.0 * SCALE * jnp.mean(error**2, axis=1)

    task = fs.Task(lambda key: {"w": jnp.zeros((3, 2))}, loss)
    assert compare(fingerprints["fedavg"], build(fedavg(task=task)).executor.fingerprint).differences == {}


WORDS = {
    (
        "fedavg",
        "client's rate",
    ): "algorithm: init.client_optimizer.update.update_fns[1].tx.update.step_size was -0.1 there and is -0.5 here",
    ("fedprox", "fedprox of other mu"): "algorithm: client.pull.mu was 0.1 there and is 0.2 here",
    ("fedavg", "a loss of other scale"): "algorithm: task.loss.scale was 1.0 there and is 2.0 here",
    ("fedavg", "another loss"): "algorithm: ",
    ("fedavg", "median"): "aggregator: chain was chain(mean(examples)) there and is chain(median) here; ",
    ("private", "other noise"): "aggregator: chain was chain(clip_by_l2(1.0) > gaussian_noise(1.0) > mean(uniform)) "
    "there and is chain(clip_by_l2(1.0) > gaussian_noise(2.0) > mean(uniform)) here; ",
    ("cohorts", "other cohorts"): "sampler: init.rows[1] was int64 [3, 4] there and is int64 [3, 5] here",
    (
        "own sampler",
        "own sampler, other code",
    ): "sampler: sample code was <code ",
    ("fedavg", "data times 7"): "data: values of ['x'] was ",
}


@pytest.mark.parametrize("pair", WORDS)
def test_what_differs_is_named(fingerprints, pair):
    found = compare(*(fingerprints[name] for name in pair)).differences
    told = "; ".join(f"{part}: {words}" for part, words in found.items())
    assert told.startswith(WORDS[pair]), told


def test_a_number_outside_of_a_function_is_named(fingerprints, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3.0)
    found = compare(fingerprints["fedavg"], build().executor.fingerprint).differences
    assert found == {"algorithm": "task.loss.SCALE was 1.0 there and is 3.0 here"}


def test_under_another_jax_constants_are_compared_and_programs_doubted(fingerprints):
    def elsewhere(name):
        found = json.loads(json.dumps(fingerprints[name]))
        found["versions"]["jax"] = "0.0.1"
        found["programs"] = {program: "other" for program in found["programs"]}
        found["sampler"] = {name: "<code 1>" if word[:1] == "<" else word for name, word in found["sampler"].items()}
        return found

    here = fingerprints["own sampler"]
    doubts = (
        "whether its algorithm and its aggregator and its sampler is the same cannot be told, as jax was 0.0.1 and is "
    )
    doubts += jax.__version__
    assert compare(elsewhere("own sampler"), here) == ({}, doubts)
    for name, part in {
        "client's rate": "algorithm",
        "median": "aggregator",
        "data times 7": "data",
    }.items():
        assert list(compare(elsewhere(name), fingerprints["fedavg"]).differences) == [part], name
    assert list(compare(elsewhere("other cohorts"), fingerprints["cohorts"]).differences) == ["sampler"]


def test_what_cannot_be_told_ends_no_run(tmp_path, fingerprints):
    class Odd:
        @property
        def __dict__(self):
            raise RuntimeError

    odd = Odd()
    sampler = fs.sampler.uniform(5)
    sampler = sampler._replace(capacity=lambda num_clients: 5 if odd else 0)
    sim = build(sampler=sampler)
    sim.save(tmp_path, sim.init())
    assert sim.executor.fingerprint["sampler"] == {}
    assert build(sampler=sampler).restore(tmp_path).round == 0


# With a folder


def refused(sim, folder, **kwargs) -> str:
    with pytest.raises(fs.RunFolderError) as error:
        sim.restore(folder, **kwargs)
    return str(error.value)


def test_restore_refuses_another_simulation_and_allow_goes_on_with_it(tmp_path):
    first = build()
    first.save(tmp_path, first.init({"w": jnp.ones((3, 2))}))
    other = build(fedavg(0.5), data=changed("x", lambda x: x * 7), seed=3)
    told = refused(other, tmp_path)
    assert "algorithm: init.client_optimizer." in told
    assert "data: values of ['x'] was " in told
    assert "seed was 0 there and is 3 here" in told
    assert 'sim.restore(..., allow={"algorithm", "data", "seed"}), and in another folder.' in told
    assert "seed was" not in refused(other, tmp_path, allow={"seed"})
    state = other.restore(tmp_path, allow={"algorithm", "data", "seed"})
    assert (state.round, state.seed) == (0, 3)
    assert other.params(state)["w"].tolist() == [[1, 1]] * 3
    with pytest.raises(
        ArgumentError, match=r"allow=\['lanes'\]: must be among \['aggregator', 'algorithm', 'batching'"
    ):
        other.restore(tmp_path, allow={"lanes"})


def test_another_sampler_begins_anew_where_it_is_allowed(tmp_path):
    first = build()
    first.save(tmp_path, first.init())
    more = fs.data.FederatedData(toys.federation().arrays, np.arange(59))
    state = build(data=more, sampler=toys.script([[50, 57]])).restore(tmp_path, allow={"data", "sampler"})
    assert state.sampler == [[50, 57]]
    assert build(data=more).restore(tmp_path, allow={"data"}).sampler == 58


def test_a_run_goes_on_in_its_folder_as_what_it_was_alone(tmp_path):
    first, other = build(), build(fedavg(0.5))
    first.run(first.init(), 1, run_dir=tmp_path / "run")
    state = other.restore(tmp_path / "run", allow={"algorithm"})
    with pytest.raises(fs.RunFolderError, match=r"run holds another run: algorithm: init\.client_optimizer\."):
        other.run(state, 1, run_dir=tmp_path / "run")
    assert first.restore(tmp_path / "run").round == 1
    other.run(state, 1, run_dir=tmp_path / "another")
    assert build(fedavg(0.5)).restore(tmp_path / "another").round == 2


def test_a_checkpoint_without_a_fingerprint_is_told_of_and_taken(tmp_path, monkeypatch):
    from fedjax_sim.simulation import recorder

    whole = recorder._layout
    monkeypatch.setattr(recorder, "_layout", lambda sim: {k: v for k, v in whole(sim).items() if k != "fingerprint"})
    sim = build()
    sim.save(tmp_path, sim.init())
    with pytest.warns(UserWarning, match="was saved by an earlier version, which did not keep what its simulation was"):
        assert sim.restore(tmp_path).round == 0
