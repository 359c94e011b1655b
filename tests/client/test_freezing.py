"""A part of a model trained: the rest is frozen, and the gradient is that part's of the whole model's."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from tests.lora.problems import BATCHING, KEY, base, close, federation

BATCH = {**{name: leaf[:6] for name, leaf in federation().arrays.items()}, "mask": np.ones(6, np.float32)}


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        return nn.Dense(3)(nn.BatchNorm(not train)(nn.Dense(5)(x)))


@pytest.mark.parametrize("trainable", ["bias$", "Dense_1", lambda path: path.endswith("0/kernel")])
def test_gradients_are_those_of_the_leaves(trainable):
    task, params = base()
    part = fs.freeze(task, params, trainable)
    first = part.init(KEY)
    close(fs.client.whole(part, first), params)
    found, expected = fs.grad(part)(first, BATCH, KEY)[0], fs.grad(task)(params, BATCH, KEY)[0]
    flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(expected)}
    mine = jax.tree_util.tree_leaves_with_path(found)
    assert 0 < len(mine) < len(flat)
    for path, leaf in mine:
        np.testing.assert_allclose(leaf, flat[jax.tree_util.keystr(path)], rtol=1e-6)


def test_a_run_leaves_the_rest_and_collections_are_averaged():
    task = fs.classification(Normed(), federation().arrays, batch_stats="average")
    params = task.init(KEY)
    part = fs.freeze(task, params, "Dense_1")
    made = fs.lora.adapt(
        fs.freeze(task, params, "Dense"), fs.freeze(task, params, "Dense").init(KEY), 1, targets="1/kernel"
    )
    for each in (part, made):
        sim = fs.Simulation(fs.fedavg(each, optax.sgd(0.1)), federation(), fs.sampler.uniform(4), BATCHING)
        state, _ = sim.run(sim.init(), 1)
        whole = fs.client.whole(each, sim.params(state))
        assert jax.tree.structure(whole) == jax.tree.structure(params)
        moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), whole, params)
        assert moved["params"]["Dense_0"] == {"kernel": False, "bias": False}
        assert moved["params"]["Dense_1"]["kernel"]
        assert all(jax.tree.leaves(moved["batch_stats"]))


def test_bad_input_is_refused(tmp_path):
    task, params = base()
    with pytest.raises(ArgumentError, match=r"trainable='head' matches no leaf: .* \['params/Dense_0/bias'"):
        fs.freeze(task, params, "head")
    with pytest.raises(ArgumentError, match=r"trainable='.*' matches every leaf, so that nothing is frozen"):
        fs.freeze(task, params, ".*")
    with pytest.raises(ArgumentError, match=r"params=.*must have the task's leaves"):
        fs.freeze(task, {"params": {}}, "bias")
    sim = lambda scale: fs.Simulation(
        fs.fedavg(fs.freeze(task, jax.tree.map(lambda leaf: scale * leaf, params), "bias"), optax.sgd(0.1)),
        *(federation(), fs.sampler.uniform(4), BATCHING),
    )
    sim(1.0).save(tmp_path, sim(1.0).init())
    assert sim(1.0).restore(tmp_path).round == 0
    with pytest.raises(fs.RunFolderError, match=r"frozen.rest\['params'\]\['Dense_0'\]\['kernel'\]"):
        sim(2.0).restore(tmp_path)
