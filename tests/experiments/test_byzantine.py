"""The experiment of attacks and rules: every name of its flags is built, and a backdoor is measured."""

import dataclasses
import typing

import jax.numpy as jnp
import numpy as np

import fedjax_sim as fs
from experiments.byzantine import config as experiment
from fedjax_sim.data.fetch.sets import CentralData


def test_every_attack_and_rule_has_its_name(monkeypatch):
    y = (np.arange(600) % 10).astype(np.int32)
    pictures = {"x": np.broadcast_to(25 * y[:, None, None, None], (600, 28, 28, 1)).astype(np.uint8), "y": y}
    monkeypatch.setattr(fs.data, "load", lambda name: CentralData(pictures, pictures, name))
    small = experiment.Config(examples=600, num_clients=10, share=0.1)
    for attack in typing.get_args(experiment.Attack):
        sim = experiment.build(dataclasses.replace(small, attack=attack, rule="mean"))
        assert attack == "none" or sim.algorithm.client is not None
    for rule in typing.get_args(experiment.Rule):
        name = (
            experiment.build(dataclasses.replace(small, attack="none", rule=rule)).algorithm.passes()[0].aggregator.name
        )
        assert rule in name
    sim = experiment.build(small)
    found = sim.evaluate(sim.params(sim.init()))
    assert set(found) == {"test/accuracy", "test/loss", "test/backdoor"}
    assert jnp.ndim(found["test/backdoor"]) == 0
