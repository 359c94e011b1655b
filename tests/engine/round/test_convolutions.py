"""Whatever clients compute has its convolutions rewritten on a CPU: read in the text of the compiled programs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError

DRAW = np.random.default_rng(0)
DATA = fs.data.FederatedData(
    {"x": DRAW.normal(size=(12, 6, 6, 2)).astype(np.float32), "y": DRAW.integers(0, 3, 12).astype(np.int32)},
    [0, 5, 7, 12],
)
PARAMS = {
    "first": 0.3 * DRAW.normal(size=(3, 3, 2, 4)).astype(np.float32),
    "depthwise": DRAW.normal(size=(2, 2, 1, 4)).astype(np.float32),
    "last": 0.3 * DRAW.normal(size=(8, 3)).astype(np.float32),
}


def conv(x, kernel, groups=1, strides=(1, 1)):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, strides, "VALID", dimension_numbers=numbers, feature_group_count=groups
    )


def loss(params, batch, key):
    x = jax.nn.relu(conv(batch["x"], params["first"]))
    x = jax.checkpoint(lambda x: jnp.tanh(conv(x, params["depthwise"], groups=4)))(x)
    x = jax.lax.reduce_window(x[:, :2], -jnp.inf, jax.lax.max, (1, 2, 1, 1), (1, 2, 1, 1), "VALID")
    logits = x[:, :, :2].reshape(len(x), -1) @ params["last"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])


def task(convolutions):
    return fs.Task(lambda key: jax.tree.map(jnp.asarray, PARAMS), loss, convolutions=convolutions)


def own_client(task):
    """A client function that differentiates by itself, in a scan, and calls no loss of a task."""

    def client(key, server, row, batches):
        def step(params, batch, key):
            def mean(params, half):
                x, y = batch["x"], batch["y"]
                losses = loss(params, {"x": x * (1 + half), "y": y}, key)
                return jnp.sum(losses * batch["mask"]) / jnp.maximum(jnp.sum(batch["mask"]), 1)

            def half(params, i):
                grads = jax.grad(mean)(params, i)
                return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), None

            return jax.lax.scan(half, params, jnp.arange(2.0))[0], {}

        params, metrics = fs.local_steps(step, server, batches, key)
        delta = jax.tree.map(jnp.subtract, params, server)
        return fs.ClientUpdate(delta, weight=batches.num_examples, metrics=metrics)

    def server(key, server, aggregate):
        return jax.tree.map(jnp.add, server, aggregate.value)

    return fs.Algorithm(task, lambda params: (params, None), client, server)


def fedavg(task):
    return fs.fedavg(task, optax.sgd(0.1))


def trained(algorithm, lanes):
    def run(task):
        sim = fs.Simulation(
            algorithm(task),
            DATA,
            fs.sampler.uniform(3),
            fs.Batching(2),
            execution=fs.Execution(lanes=lanes, devices=jax.devices()[:1]),
        )
        return sim.params(sim.run(sim.init(), 1)[0])

    return run


def evaluated(task):
    return fs.evaluate(task, PARAMS, DATA, batch_size=4, devices=jax.devices()[:1])


def evaluated_clients(task):
    return fs.evaluate_clients(task, PARAMS, DATA, batch_size=4, devices=jax.devices()[:1])["loss"]


@pytest.fixture
def programs(tmp_path):
    """The text of all programs compiled since."""
    before = jax.config.read("jax_dump_ir_to")
    jax.config.update("jax_dump_ir_to", str(tmp_path))
    yield lambda: "".join(path.read_text() for path in tmp_path.rglob("*.mlir"))
    jax.config.update("jax_dump_ir_to", before)


@pytest.mark.parametrize(
    "run",
    [trained(fedavg, 1), trained(fedavg, 2), trained(own_client, 2), evaluated, evaluated_clients],
    ids=["task", "task-lanes", "own client", "evaluate", "evaluate_clients"],
)
def test_no_program_of_a_plain_task_holds_a_convolution(run, programs):
    mine = run(task("auto"))
    text = programs()
    assert "stablehlo.while" in text  # the round is there
    assert "stablehlo.convolution" not in text
    assert "select_and_scatter" not in text
    xla = run(task("xla"))
    assert "stablehlo.convolution" in programs()  # left alone where it was asked for, and seen if it is there
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(xla), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_client_function_is_traced_once_for_a_program():
    traces = []

    def counted(params, batch, key):
        traces.append(batch["x"].shape)
        return loss(params, batch, key)

    once = fs.Task(lambda key: jax.tree.map(jnp.asarray, PARAMS), counted)
    fs.evaluate(once, PARAMS, DATA, batch_size=4, devices=jax.devices()[:1])
    assert len(traces) == 2  # the shapes of a step's metrics, and the step


def test_an_unknown_choice_is_refused():
    with pytest.raises(ArgumentError, match='must be "auto", "matmul" or "xla"'):
        evaluated(task("fast"))
    with pytest.raises(ArgumentError, match='must be "auto", "matmul" or "xla"'):
        trained(own_client, 1)(task("fast"))
