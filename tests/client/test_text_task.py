"""Next-token prediction: pads and special tokens, against sums written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs

LETTERS = fs.data.character_vocabulary()
X = np.array([[88, 1, 2, 3], [88, 4, 89, 0]], np.int32)
Y = np.array([[1, 2, 87, 89], [4, 89, 0, 0]], np.int32)


def test_parameters_are_those_of_the_papers_models():
    count = lambda model, shape: sum(
        leaf.size
        for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape, jnp.int32)))
    )
    assert count(fs.models.LSTM(), (1, 80)) == 820_522
    assert count(fs.models.LSTM(10_004, embedding=96, width=670, layers=1, projection=96), (1, 20)) == 4_050_748


def test_the_lstm_is_flaxs_cell_over_time():
    import flax.linen as nn

    model = fs.models.LSTM(vocab_size=12, embedding=3, width=5, layers=1)
    x = np.random.default_rng(0).integers(0, 12, (2, 7))
    params = model.init(jax.random.key(1), x)["params"]
    layer = params["LSTM_0"]
    kernel, bias, recurrent = layer["input"]["kernel"], layer["input"]["bias"], layer["recurrent"]
    np.testing.assert_array_equal(bias, np.repeat([0, 1, 0, 0], 5))  # the forget gate's are 1
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(5), atol=1e-5)
    gates = {}
    for i, gate in enumerate("ifgo"):
        part = slice(5 * i, 5 * i + 5)
        gates[f"i{gate}"] = {"kernel": kernel[:, part]}
        gates[f"h{gate}"] = {"kernel": recurrent[:, part], "bias": bias[part]}
    embedded = params["Embed_0"]["embedding"][x]
    want = nn.RNN(nn.LSTMCell(5)).apply({"params": {"cell": gates}}, embedded)
    want = want @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None, None]
    np.testing.assert_allclose(model.apply({"params": params}, x), want, atol=1e-5)


def test_pads_count_nowhere_and_special_tokens_not_in_their_accuracy():
    model = fs.models.LSTM(width=4)
    task = fs.next_token(model, {"x": X, "y": Y}, special=(LETTERS.oov, LETTERS.eos))
    params = task.init(jax.random.key(0))
    got = fs.evaluate(task, params, {"x": X, "y": Y})
    logits = np.asarray(model.apply(params, X), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    each = -np.take_along_axis(log_p, Y[..., None], -1)[..., 0]
    right = logits.argmax(-1) == Y
    real, plain = Y > 0, np.isin(Y, [1, 2, 4])
    assert got["loss"] == pytest.approx(each[real].mean(), rel=1e-5)
    assert got["accuracy"] == pytest.approx(right[real].mean())
    assert got["accuracy_no_special"] == pytest.approx(right[plain].mean())
    # A model that always says 2: one of six, and one of three.
    always = jax.tree.map(jnp.zeros_like, params)
    always["params"]["Dense_0"]["bias"] = jnp.zeros(90).at[2].set(1.0)
    got = fs.evaluate(task, always, {"x": X, "y": Y})
    assert (got["accuracy"], got["accuracy_no_special"]) == (pytest.approx(1 / 6), pytest.approx(1 / 3))


def test_a_client_learns_its_line_by_heart():
    line = b"If music be the food of love, play on"
    data = fs.data.FederatedData({"snippets": np.array([line] * 4, object)}, [0, 4])
    windows = fs.data.next_token_windows(data, LETTERS, length=19)
    task = fs.next_token(fs.models.LSTM(width=32, layers=1), windows.arrays)
    algorithm = fs.fedavg(task, optax.adam(0.02))
    sim = fs.Simulation(algorithm, windows, fs.sampler.uniform(1), fs.Batching(8, epochs=25))
    state, _ = sim.run(sim.init(), 4)
    assert fs.evaluate(task, state.server.params, windows.arrays)["accuracy"] > 0.95
