"""Mixed precision, recomputation and micro-batches: the same gradients, in what type and at what memory."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.client.task import gradient
from fedjax_sim.core.errors import ArgumentError

KEY = jax.random.key(0)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(8):
            x = jnp.tanh(nn.Dense(64)(x))
        return nn.Dense(3)(x)


def task(**kwargs):
    return fs.classification(Net(), {"x": np.zeros((1, 8), np.float32), "y": np.zeros(1, np.int32)}, **kwargs)


def batch(size=64):
    draw = np.random.default_rng(0)
    mask = np.ones(size, np.float32)
    mask[-3:] = 0
    x, y = draw.normal(size=(size, 8)), draw.integers(0, 3, size)
    return {"x": x.astype(np.float32), "y": y.astype(np.int32), "mask": mask}


def products(task, size=64):
    """Types of the matrix products in a step, and how often they are computed."""
    text = str(jax.make_jaxpr(fs.grad(task))(task.init(KEY), batch(size), KEY))
    found = re.findall(r":(\w+)\[\d+,\d+\] = dot_general\[", text)
    return set(found), len(found)


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_mixed_precision_computes_short_and_keeps_long():
    plain, short = task(), fs.client.compute_in(task())
    assert products(plain)[0] == {"f32"}
    assert products(short)[0] == {"bf16"}
    params = plain.init(KEY)
    grads, metrics = fs.grad(short)(params, batch(), KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves((grads, metrics))} == {np.dtype(np.float32)}
    expected, expected_metrics = fs.grad(plain)(params, batch(), KEY)
    close(grads, expected, atol=0.02)
    assert not np.array_equal(jax.tree.leaves(grads)[0], jax.tree.leaves(expected)[0])
    assert metrics["loss"].compute() == pytest.approx(expected_metrics["loss"].compute(), rel=0.02)
    # The mask is never cut to eight bits: 257 examples are 257.
    ones = {"x": np.zeros((257, 8), np.float32), "y": np.zeros(257, np.int32), "mask": np.ones(257, np.float32)}
    assert fs.grad(short)(params, ones, KEY)[1]["loss"].weight == 257


def test_mixed_precision_in_a_simulation():
    draw = np.random.default_rng(1)
    data = fs.data.FederatedData({"x": batch()["x"], "y": batch()["y"]}, np.sort([0, 64, *draw.integers(0, 64, 5)]))
    losses = []
    for made in (task(), fs.client.compute_in(task())):
        sim = fs.Simulation(fs.fedavg(made, optax.adam(0.01)), data, fs.sampler.uniform(4), fs.Batching(8), seed=1)
        state, history = sim.run(sim.init(), 3)
        assert {leaf.dtype for leaf in jax.tree.leaves(sim.params(state))} == {np.dtype(np.float32)}
        losses.append(history["client/loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)
    assert not np.array_equal(*losses)


def test_collections_keep_their_types():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(x))

    sample = {"x": np.zeros((2, 8), np.float32), "y": np.zeros(2, np.int32)}
    made = fs.client.compute_in(fs.classification(Normed(), sample, batch_stats="average"))
    params = made.init(KEY)
    found = gradient(made)(params, batch(), KEY).variables
    assert jax.tree.map(lambda leaf: leaf.dtype, found) == {
        name: jax.tree.map(lambda leaf: leaf.dtype, params[name]) for name in found
    }


def test_remat_computes_again_and_changes_nothing():
    plain, again = task(), fs.client.remat(task())
    params = plain.init(KEY)
    close(fs.grad(again)(params, batch(), KEY), fs.grad(plain)(params, batch(), KEY), rtol=1e-6, atol=1e-7)
    assert products(again)[1] > products(plain)[1]


@pytest.mark.parametrize("count", [1, 2, 8])
def test_micro_batches_have_the_batchs_gradient(count):
    plain, parts = task(), fs.client.micro_batches(task(), count)
    params = plain.init(KEY)
    found, metrics = fs.grad(parts)(params, batch(), KEY)
    expected, expected_metrics = fs.grad(plain)(params, batch(), KEY)
    close(found, expected, rtol=1e-4, atol=1e-6)
    assert metrics.keys() == expected_metrics.keys()
    for name in metrics:
        assert metrics[name].compute() == pytest.approx(expected_metrics[name].compute(), rel=1e-5)


def test_micro_batches_with_token_weights():
    """Parts weigh differently: their mean is not the batch's."""

    def loss(w, batch, key):
        return fs.Loss((w - batch["x"]) ** 2, weight=batch["tokens"], metrics={"x": (batch["x"], batch["tokens"])})

    made = fs.Task(lambda key: jnp.zeros(()), loss)
    given = {"x": jnp.arange(4.0), "tokens": jnp.array([1.0, 0.0, 5.0, 2.0]), "mask": jnp.array([1.0, 1.0, 1.0, 0.0])}
    for each in (made, fs.client.micro_batches(made, 2)):
        grads, metrics = fs.grad(each)(jnp.zeros(()), given, KEY)
        assert grads == pytest.approx(-2 * (0 * 1 + 2 * 5) / 6)
        assert metrics["x"].compute() == pytest.approx(10 / 6)


def test_memory_is_that_of_a_part():
    def temporary(made):
        step = jax.jit(lambda params, batch: fs.grad(made)(params, batch, KEY))
        return step.lower(made.init(KEY), batch(4096)).compile().memory_analysis().temp_size_in_bytes

    plain = temporary(task())
    assert temporary(fs.client.micro_batches(task(), 16)) < plain / 4


def test_what_cannot_be_cut():
    with pytest.raises(ArgumentError, match="must divide the batch size, which is 64"):
        fs.grad(fs.client.micro_batches(task(), 5))(task().init(KEY), batch(), KEY)
    with pytest.raises(ArgumentError, match="floating-point"):
        fs.client.compute_in(task(), jnp.int8)
    with pytest.raises(ArgumentError, match="collections"):
        fs.client.micro_batches(task()._replace(collections=("stats",)), 2)
    odd = fs.Task(lambda key: jnp.zeros(()), lambda w, b, key: ((w - b["x"]) ** 2, {"n": fs.metrics.Sum(jnp.ones(()))}))
    with pytest.raises(ArgumentError, match="metrics"):
        fs.grad(fs.client.micro_batches(odd, 2))(jnp.zeros(()), {"x": jnp.ones(4), "mask": jnp.ones(4)}, KEY)
