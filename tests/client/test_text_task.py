"""Next-token prediction: pads and special tokens, against sums written out."""

from functools import partial

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
    kernel, bias, recurrent = layer["input"]["kernel"], layer["input"]["bias"], jnp.asarray(layer["recurrent"])
    np.testing.assert_array_equal(bias, np.repeat([0, 1, 0, 0], 5))  # the forget gate's are 1
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(5), atol=1e-5)
    gates = {}
    for i, gate in enumerate("ifgo"):
        part = slice(5 * i, 5 * i + 5)
        gates[f"i{gate}"] = {"kernel": kernel[:, part]}
        gates[f"h{gate}"] = {"kernel": recurrent[:, part], "bias": bias[part]}
    embedded = params["Embed_0"]["embedding"][x]
    want = jnp.asarray(nn.RNN(nn.LSTMCell(5)).apply({"params": {"cell": gates}}, embedded))
    last = jax.tree.map(jnp.asarray, dict(params["Dense_0"]))
    want = want @ last["kernel"] + last["bias"][None, None]
    np.testing.assert_allclose(jnp.asarray(model.apply({"params": params}, x)), want, atol=1e-5)


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


LINES = [b"to be or", b"not", b"", b"that is the question", b"ay", b"sleep no more"]


@pytest.mark.parametrize(
    "model",
    [fs.models.LSTM(90, 4, 8, 1), fs.models.Transformer(90, width=8, depth=1, heads=2, mlp=8, max_length=12)],
    ids=["lstm", "transformer"],
)
def test_packed_rows_have_the_loss_and_the_gradient_of_padded_windows(model):
    data = fs.data.FederatedData({"snippets": np.array(LINES, object)}, [0, 4, 6])
    padded, packed = (fs.data.next_token_windows(data, LETTERS, 12, packed=p) for p in (False, True))
    assert packed.num_examples < padded.num_examples
    one, many = fs.next_token(model, padded.arrays), fs.next_token(model, packed.arrays, segments="segments")
    params = one.init(jax.random.key(0))
    columns = [{**d.arrays, "mask": np.ones(d.num_examples, np.float32)} for d in (padded, packed)]

    @jax.jit
    def both(params):
        return [
            fs.grad(task)(params, batch, jax.random.key(0)) for task, batch in zip((one, many), columns, strict=True)
        ]

    (want, m), (got, n) = both(params)
    assert n["loss"].weight == m["loss"].weight == sum(len(line) + 1 for line in LINES) - 2  # two have two windows
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), (got, n), (want, m))


def test_packed_rows_hold_each_text_whole_and_no_other_clients():
    data = fs.data.FederatedData({"snippets": np.array(LINES, object)}, [0, 4, 6])
    rows = fs.data.next_token_windows(data, LETTERS, 12, packed=True)
    first = rows.client(1)
    bos, eos, encode = LETTERS.bos, LETTERS.eos, LETTERS.encode
    np.testing.assert_array_equal(first["x"][0], [bos, *encode("ay"), *[0] * 9])  # the next is too long for this row
    np.testing.assert_array_equal(first["y"][0], [*encode("ay"), eos, *[0] * 9])
    np.testing.assert_array_equal(first["segments"][0], [1] * 3 + [0] * 9)
    np.testing.assert_array_equal(rows.client(0)["segments"][0], [1] * 9 + [0] * 3)
    np.testing.assert_array_equal(rows.client(0)["segments"][1], [1] * 4 + [2] + [0] * 7)


def test_measures_are_of_tokens_and_a_clients_own():
    """Against NumPy: the label among the three highest, and exp of the mean loss."""
    model = fs.models.LSTM(width=4, layers=1)
    measures = {
        "top3": fs.metrics.TopK.of,
        "top1": partial(fs.metrics.TopK.of, k=1),
        "perplexity": fs.metrics.Perplexity.of,
    }
    data = fs.data.FederatedData({"x": X, "y": Y}, [0, 1, 2])
    task = fs.next_token(model, data.arrays, measures=measures)
    params = task.init(jax.random.key(1))
    got, each = fs.evaluate(task, params, data.arrays), fs.evaluate_clients(task, params, data)
    logits = np.asarray(model.apply(params, X), np.float64)
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, Y[..., None], -1)[..., 0]
    right = (np.argsort(-logits, axis=-1)[..., :3] == Y[..., None]).any(-1)
    for found, rows in [
        (got, [0, 1]),
        ({name: each[name][0] for name in got}, [0]),
        ({name: each[name][1] for name in got}, [1]),
    ]:
        real = Y[rows] > 0
        assert found["top3"] == pytest.approx(right[rows][real].mean())
        assert found["top1"] == pytest.approx(found["accuracy"])
        assert found["perplexity"] == pytest.approx(np.exp(losses[rows][real].mean()), rel=1e-5)


@pytest.mark.parametrize(
    "columns, problem",
    [
        (
            {"x": X + 3, "y": Y},
            "run from 3 to 92, but the model's vocab_size is 90.* tokenizer does not fit the embedding",
        ),
        ({"x": X, "y": 0 * Y}, "'y' hold nothing but padding, 0 or negative: nothing to learn"),
        ({"x": X, "y": Y + 2}, "'y' run from 2 to 91"),
    ],
    ids=["tokens", "padding", "labels"],
)
def test_data_that_a_model_cannot_learn_from(columns, problem):
    task = fs.next_token(fs.models.LSTM(width=4), {"x": X, "y": Y})
    data = fs.data.FederatedData(columns, [0, 1, 2])
    with pytest.raises(fs.FedSimError, match=problem):
        fs.Simulation(fs.fedavg(task, optax.sgd(0.1)), data, fs.sampler.uniform(1), fs.Batching(1))


def test_ranks_among_equal_logits_are_those_of_argmax_and_impossible_labels_poison():
    top = lambda labels, k: fs.metrics.TopK.of(np.zeros((len(labels), 4), np.float32), np.array(labels), k=k).compute()
    assert [float(top([label], 2)) for label in range(4)] == [1, 1, 0, 0]
    assert top([0, -1], 1) == 1
    assert np.isnan(top([0, 4], 1))
    assert np.isnan(fs.metrics.Perplexity.of(np.full((1, 4), np.nan, np.float32), np.array([1])).compute())
    with pytest.raises(fs.FedSimError, match="k=5: must be at most the 4 classes"):
        top([0], 5)
