"""The experiment of slow devices: each way is built, and who is awake goes with what clients hold."""

import dataclasses
import typing

import numpy as np

import fedjax_sim as fs
from experiments.slow_devices import config as experiment
from fedjax_sim.data.fetch.sets import CentralData
from fedjax_sim.population.stages import Moment


def test_every_way_has_its_sampler(monkeypatch):
    y = (np.arange(600) % 10).astype(np.int32)
    pictures = {"x": np.broadcast_to(25 * y[:, None, None, None], (600, 28, 28, 1)).astype(np.uint8), "y": y}
    monkeypatch.setattr(fs.data, "load", lambda name: CentralData(pictures, pictures, name))
    small = experiment.Config(examples=600, num_clients=60, cohort_size=5)
    make = lambda way: experiment.build(dataclasses.replace(small, way=way))
    sims = {way: make(way) for way in typing.get_args(experiment.Way)}
    names, data = {way: sim.sampler.name for way, sim in sims.items()}, sims["deadline"].data
    assert names["over_select"] == "uniform(5) | diurnal(0.3, 0.9) | over_select(1.5) | dropout(0.1)"
    assert names["partial_work"] == "uniform(5) | diurnal(0.3, 0.9) | deadline(400.0, partial='keep') | dropout(0.1)"
    assert names["oort"].startswith("oort(17) | diurnal")
    assert names["fedbuff"].startswith("asynchronous")
    main, by_day = experiment.main_class(data), experiment.sampler(small, data).made.stages[0]
    there = np.mean([by_day.on(np.arange(60), Moment(r, 0, 3 * 8640.0, 60)) for r in range(200)], axis=0)
    np.testing.assert_allclose(there[main == 3].mean(), 0.57, atol=0.05)  # 0.3 (1 + 0.9), at the hour of class 3
    assert there[main == 8].mean() < 0.07
