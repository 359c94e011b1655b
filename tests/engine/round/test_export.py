"""The round's program, exported for platforms that are not at hand: it lowers, calls no host, and has static shapes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import fedjax_sim as fs
from fedjax_sim.engine.round.device_state import DeviceState
from tests.engine import toys

a = fs.aggregate
PLATFORMS = ("cuda", "tpu")


def federation(shape=(8, 8, 1), classes=10):
    draw = np.random.default_rng(0)
    sizes = draw.integers(0, 30, 12)
    x = draw.integers(0, 256, (sizes.sum(), *shape)).astype(np.uint8)
    y = draw.integers(0, classes, len(x)).astype(np.int32)
    return fs.data.FederatedData({"x": x, "y": y}, np.cumsum([0, *sizes]))


def simulation(name, lanes):
    data = federation()
    model = fs.models.CNN(10) if name == "cnn" else fs.models.MLP(10)
    task = fs.classification(model, data.client(0), preprocess=lambda batch: {**batch, "x": batch["x"] / 255.0})
    private = a.chain(
        a.clip_by_l2(1.0),
        a.gaussian_noise(0.8),
        a.rotate(),
        a.quantize(8),
        a.secure_sum(),
        reduce=a.mean("uniform"),
    )
    algorithms = {
        "mlp": lambda: fs.fedavg(task, optax.sgd(0.1)),
        "cnn": lambda: fs.fedavg(task, optax.adam(0.1)),
        "scaffold": lambda: fs.scaffold(task, 0.1, data.num_clients),
        "private": lambda: fs.fedavg(task, optax.sgd(0.1), aggregator=private),
        "sparse": lambda: fs.fedavg(task, optax.sgd(0.1), aggregator=a.chain(a.error_feedback(a.top_k(0.1)))),
        "exact": lambda: fs.fedavg(task, optax.sgd(0.1)),
        "streamed": lambda: fs.fedavg(task, optax.sgd(0.1)),
    }
    options = {"exact": {"exact": True}, "streamed": {"residency": "stream", "rounds_per_dispatch": 8}}
    where = {"lanes": lanes, "devices": jax.devices()[:4], **options.get(name, {})}
    return fs.Simulation(algorithms[name](), data, fs.sampler.uniform(6), fs.Batching(4), **toys.executed(**where))


def exported(sim):
    """The program of a block of rounds, as StableHLO."""
    state, slots = sim.init(), sim.rounds_per_dispatch
    plans = sim.executor.plan(state, 1, slots)
    arrays = sim.executor.read(plans)
    program = export.export(sim.executor.program(plans.shape, slots), platforms=PLATFORMS)
    device_state = DeviceState(state.server, state.aggregator, state.rows)
    made = program(np.zeros(2, np.uint32), device_state, plans.words, np.int32(1), arrays)
    assert made.platforms == PLATFORMS
    assert made.nr_devices == 4
    return made.mlir_module()


def callbacks(text):
    return [call for call in re.findall(r"custom_call @?\"?([\w.]+)", text) if "callback" in call]


def dynamic(text):
    """Operations and tensors whose shapes are found out on the device."""
    found_out = "dynamic_reshape|real_dynamic_slice|dynamic_broadcast_in_dim|dynamic_iota|dynamic_pad|dynamic_gather"
    return re.findall(r"tensor<[^>]*\?[^>]*>", text) + re.findall(rf"stablehlo\.({found_out})", text)


CASES = [
    ("mlp", 1),
    ("cnn", 1),
    ("cnn", 2),
    ("scaffold", 2),
    ("private", 2),
    ("sparse", 1),
    ("exact", 2),
    ("streamed", 2),
]


@pytest.mark.parametrize(("name", "lanes"), CASES)
def test_rounds_lower_for_accelerators(name, lanes):
    text = exported(simulation(name, lanes))
    assert "stablehlo.while" in text  # it is the program
    assert callbacks(text) == []
    assert dynamic(text) == []


def test_a_callback_would_be_seen():
    like = jax.ShapeDtypeStruct((), jnp.float32)
    text = jax.jit(lambda x: jax.pure_callback(np.sin, like, x)).lower(1.0).as_text()
    assert callbacks(text)


def test_a_dynamic_shape_would_be_seen():
    (size,) = export.symbolic_shape("n")
    text = export.export(jax.jit(lambda x: jnp.concatenate([x, x])))(jax.ShapeDtypeStruct((size,), jnp.float32))
    assert dynamic(text.mlir_module())
