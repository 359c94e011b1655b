"""What is printed says what it is: no addresses of functions, and no arrays."""

import inspect
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.test_public_api import NAMES

MAKERS = (fs.Algorithm, fs.Task, fs.sampler.Sampler, fs.aggregate.Transform, fs.aggregate.Reducer, fs.attacks.Attack)
TASK = fs.Task(lambda key: jnp.zeros(3), lambda w, batch, key: jnp.sum((w[None] - batch["x"][:, None]) ** 2, -1))
PICTURES = {"x": np.zeros((2, 4, 4, 1), np.float32), "y": np.array([0, 1], np.int32)}
TWO = fs.Task(
    lambda key: {"w": jnp.zeros((3, 1)), "b": jnp.zeros(1)},
    lambda p, batch, key: (batch["x"] @ p["w"] + p["b"])[:, 0] ** 2,
)
TWO_LEAVES = {"task": TWO, "params": {"w": jnp.zeros((3, 1)), "b": jnp.zeros(1)}}
AVERAGING = fs.fedavg(TASK, optax.sgd(0.1, 0.9))
GIVEN = {
    "task": TASK, "algorithm": AVERAGING, "client_optimizer": optax.sgd(0.1), "optimizer": optax.adam(0.1),
    "inner": optax.sgd(0.1), "domains": 2, "compressor": fs.aggregate.drive(), "client_lr": 0.1, "alpha": 0.1,
    "num_clients": 10, "mu": 0.1, "q": 1.0, "p": 0.5, "gamma": 0.1, "attack": fs.attacks.nan(), "clients": 0.2,
    "samples": 2, "sample_steps": 1, "lam": 0.8, "beta": 0.1, "rho": 0.1,
    "features": lambda params, batch, key: batch["x"],
    "make": lambda round: AVERAGING, "model": fs.models.LogisticRegression(2), "sample": PICTURES,
    "loss": lambda outputs, batch: outputs[:, 0], "count": 2, "levels": 4, "bits": 4, "rank": 2, "fraction": 0.1,
    "part": "delta", "transform": fs.aggregate.top_k(0.1), "initial": 1.0, "clip_norm": 1.0, "clip_norms": {"w": 1.0},
    "multiplier": 1.0, "bands": 2, "rounds": 8, "separation": 2, "efficient": True, "f": 1, "tau": 1.0, "bound": 1.0,
    "s": 2, "then": fs.aggregate.median(), "server_data": PICTURES, "rule": fs.aggregate.median(), "eps": 0.1,
    "client": 0, "trigger": fs.attacks.patch(2), "target": 1, "sigma": 1.0, "flip": {0: 1}, "classes": 2, "scale": 2.0,
    "kind": "zero", "buffer": 2, "concurrency": 4, "candidates": 4, "chosen": 2, "sizes": np.ones(10, int), "draws": 2,
    "chances": np.ones(10), "probability": 0.5, "cohorts": [[0, 1], [2, 3]], "cohort_size": 2, "blocks": 2, "steps": 1,
    "k": 2, "inner_lr": 0.05, "server_optimizer": optax.sgd(1.0),
}  # fmt: skip
BY_NAME = {  # where a name means something else
    "infect": {"num_clients": 10}, "afl": {"rule": "projected", "gamma": 0.1}, "mimic": {"client": 0},
    "optimise": {"attack": fs.attacks.ipm(0.1)}, "replacement": {"target": jnp.zeros(3)},
    "moon": {"tau": 0.5}, "gossip": {"mixing": fs.mixing.ring(10)}, "pfedme": {"client_lr": 0.01},
    "freeze": {**TWO_LEAVES, "trainable": "b"}, "adapt": {**TWO_LEAVES, "rank": 1, "targets": "w"},
    "next_token": {"sample": {k: np.zeros((1, 3), np.int32) for k in "xy"}, "model": fs.models.LSTM(5)},
}  # fmt: skip


def makers():
    for name, value in NAMES.items():
        own = name != "fedjax_sim.population.chain"  # prints what it is made of
        if own and inspect.isfunction(value) and inspect.signature(value).return_annotation in MAKERS:
            yield name


def made(name):
    """What a public function makes of the arguments that it needs; None where nobody said above what to give it."""
    make, own = NAMES[name], BY_NAME.get(name.rpartition(".")[2], {})
    parameters = inspect.signature(make).parameters.values()
    needed = [each.name for each in parameters if each.default is each.empty and each.kind != each.VAR_POSITIONAL]
    given = {each: GIVEN[each] for each in needed if each in GIVEN} | own
    return make(**given) if set(needed) <= set(given) else None


def says(value):
    text = repr(value)
    assert not re.search(r"\b0x|<function|<bound|array\(|\n", text), text
    html = value._repr_html_() if hasattr(value, "_repr_html_") else "<table></table>"
    assert html.startswith("<table>")
    assert not re.search(r"\b0x|&lt;function", html)
    return text


@pytest.mark.parametrize("kind", MAKERS)
def test_all_public_functions_make_what_says_its_arguments(kind):
    mine = [name for name in makers() if inspect.signature(NAMES[name]).return_annotation is kind]
    found = {name: value for name in mine if (value := made(name)) is not None}
    assert len(found) >= max(0.9 * len(mine), 6), set(mine) - set(found)
    for name, value in found.items():
        assert name.rpartition(".")[2] in says(value), name


def test_what_a_user_makes_is_shown_by_its_functions():
    assert says(TASK) == "Task(init=lambda, loss=lambda)"
    functions: dict = dict(client=test_reprs_of_runs, server=says)
    own = fs.Algorithm(TASK, init=lambda params: (params, None), **functions)
    assert "client=test_reprs_of_runs, server=says" in says(own)
    clip: Any = fs.aggregate.clip_by_l2(1.0)
    prox = fs.fedprox(TASK, optax.sgd(0.1), mu=0.25, aggregator=clip)
    assert "fedprox(client_optimizer=chain(identity, scale(step_size=-0.1)), mu=0.25)" in says(prox)
    assert "aggregator" not in str(prox.name)
    assert "clip_by_l2(1.0)" in says(prox._replace(aggregator=prox.aggregator))
    assert says(fs.by_round(lambda round: prox)).startswith("Algorithm(by_round(fedprox(")
    assert says(fs.aggregate.chain(fs.aggregate.clip_by_l2(1.0))) == "chain(clip_by_l2(1.0) > mean(examples))"


def test_reprs_of_runs():
    data = fs.data.FederatedData({"x": jnp.arange(4.0)}, offsets=[0, 2, 4])
    sim = fs.Simulation(AVERAGING, data, fs.sampler.uniform(2), fs.Batching(2))
    state, history = sim.run(sim.init(), rounds=2)
    parts = [sim, history, history.rounds[0], data, fs.Batching(2), fs.Execution(), fs.runs.JsonLines()]
    for value in [
        *parts,
        fs.runs.RunFolder("runs/a"),
        fs.runs.keep_best("loss"),
        fs.evaluate_clients(TASK, jnp.zeros(3), data),
    ]:
        says(value)
    assert len(history) == 2
    assert says(state) == "RoundState(round=2, seed=0, server=(params=[...]))" or says(state).startswith(
        "RoundState(round=2, seed=0"
    )
    assert says(fs.metrics.Mean(jnp.zeros(100), jnp.ones(100))) == "Mean(total=float32[100], weight=float32[100])"
