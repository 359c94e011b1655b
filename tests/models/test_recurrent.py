"""The LSTM layer whose gradient is written out, against Flax's cell, clients side by side with weights of their own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import fedjax_sim as fs
from fedjax_sim.models.recurrent import lstm

C, T, B, H = 3, 6, 2, 5


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def flax(inputs, recurrent):
    """The same layer by Flax's cell: inputs come as they are, through kernels that pick a gate's share."""
    gates = {
        f"h{gate}": {"kernel": recurrent[:, H * i : H * i + H], "bias": jnp.zeros(H)} for i, gate in enumerate("ifgo")
    }
    picks = {f"i{gate}": {"kernel": jnp.eye(4 * H)[:, H * i : H * i + H]} for i, gate in enumerate("ifgo")}
    return nn.RNN(nn.LSTMCell(H), time_major=True).apply({"params": {"cell": {**gates, **picks}}}, inputs)


def test_values_and_gradients_are_those_of_flaxs_cell_for_each_client():
    x, R, weight = draw(C, T, B, 4 * H), draw(C, H, 4 * H, seed=1), draw(C, T, B, H, seed=2)

    def run(layer):
        def loss(x, R, weight):
            h = layer(x, R)
            return jnp.sum(weight * h**2), h

        return jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1), has_aux=True)))(x, R, weight)

    (_, h), (dx, dR) = run(lstm)
    (_, h_flax), (dx_flax, dR_flax) = run(flax)
    np.testing.assert_allclose(h, h_flax, atol=1e-6)
    np.testing.assert_allclose(dx, dx_flax, atol=2e-6)
    np.testing.assert_allclose(dR, dR_flax, atol=1e-5)


def test_a_segment_is_a_text_of_its_own_in_values_and_gradients():
    model = fs.models.LSTM(9, embedding=3, width=H, layers=2)
    tokens = np.array([[1, 2, 3, 4, 5, 6, 0], [7, 8, 1, 1, 2, 4, 5]], np.int32)
    segments = np.array([[1, 1, 1, 1, 2, 2, 0], [1, 1, 2, 2, 2, 2, 2]], np.int32)
    alone = np.array([[1, 2, 3, 4, 0], [5, 6, 0, 0, 0], [7, 8, 0, 0, 0], [1, 1, 2, 4, 5]], np.int32)
    params = model.init(jax.random.key(0), tokens)
    weight = draw(2, 7, 9, seed=3) * (segments > 0)[..., None]
    parts = [weight[0, :4], weight[0, 4:6], weight[1, :2], weight[1, 2:]]
    padded = np.stack([np.pad(part, ((0, 5 - len(part)), (0, 0))) for part in parts])

    @jax.jit
    def both(params):
        packed = lambda params: jnp.sum(weight * jnp.asarray(model.apply(params, (tokens, segments))))
        single = lambda params: jnp.sum(padded * jnp.asarray(model.apply(params, alone)))
        return jax.value_and_grad(packed)(params), jax.value_and_grad(single)(params)

    got, expected = both(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected)


def test_an_lstm_of_two_layers_of_670_has_its_number_of_parameters():
    """The published 4,050,748 of one layer, and the second's kernels and bias."""
    model = fs.models.LSTM(10_004, embedding=96, width=670, layers=2, projection=96)
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 20), jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(like)) == 4_050_748 + 4 * 670 * (670 + 670 + 1)
