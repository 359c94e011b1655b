"""A small federation with a low-rank task: a two-layer network of four inputs, whose kernels are of odd sizes."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import fedjax_sim as fs

KEY = jax.random.key(0)
SIZES = (5, 1, 8, 0, 3, 2)
BATCHING = fs.Batching(batch_size=3, epochs=2, shuffle=False)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(jnp.tanh(nn.Dense(5)(x)))


@functools.cache
def federation() -> fs.data.FederatedData:
    draw = np.random.default_rng(7)
    x = draw.normal(size=(sum(SIZES), 4)).astype(np.float32)
    y = (x @ draw.normal(size=(4, 3))).argmax(1).astype(np.int32)
    return fs.data.FederatedData({"x": x, "y": y}, np.concatenate([[0], np.cumsum(SIZES)]))


@functools.cache
def base() -> tuple[fs.Task, dict]:
    task = fs.classification(MLP(), federation().arrays)
    return task, task.init(KEY)


def lora(rank: int = 2, **options) -> fs.Task:
    return fs.lora.adapt(*base(), rank, alpha=4, targets="kernel", **options)


def drawn(like, scale=0.3, seed=0):
    """Numbers in place of a tree's."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * draw.normal(size=leaf.shape), leaf.dtype), like)


def close(found, expected, rtol=2e-5, atol=2e-6):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), found, expected)
