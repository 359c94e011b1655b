"""Models: parameter counts, shapes, dropout, and the CNN against plain NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs

CNN, MLP, LogisticRegression = fs.models.CNN, fs.models.MLP, fs.models.LogisticRegression


@pytest.mark.parametrize(
    "model, shape, parameters",
    [
        (CNN(62), (28, 28, 1), 1_206_590),
        (CNN(10), (28, 28, 1), 1_199_882),
        (CNN(10), (8, 8, 1), 320 + 18_496 + (2 * 2 * 64 + 1) * 128 + 129 * 10),
        (CNN(100), (24, 20, 3), 896 + 18_496 + (10 * 8 * 64 + 1) * 128 + 129 * 100),
        (MLP(10), (784,), 199_210),
        (MLP(10), (28, 28, 1), 199_210),
        (MLP(3, widths=()), (5,), 18),
        (MLP(3, widths=(7,)), (5,), 66),
        (LogisticRegression(10), (60,), 610),
        (LogisticRegression(10), (28, 28), 7850),
    ],
    ids=str,
)
def test_parameter_counts_and_output_shapes(model, shape, parameters):
    x = jax.ShapeDtypeStruct((5, *shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    assert set(variables) == {"params"}
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == parameters
    logits = jax.eval_shape(model.apply, variables, x)
    assert logits.shape == (5, model.num_classes)
    assert logits.dtype == jnp.float32


def test_logistic_regression_starts_at_zero():
    params = LogisticRegression(10).init(jax.random.key(0), jnp.ones((1, 60)))
    assert not any(leaf.any() for leaf in jax.tree.leaves(params))


def made(model, shape):
    """Random inputs and parameters, biases too."""
    draw = lambda like, scale: scale * generator.standard_normal(like.shape, np.float32)
    generator = np.random.default_rng(0)
    x = draw(jax.ShapeDtypeStruct(shape, jnp.float32), 1)
    like = jax.eval_shape(model.init, jax.random.key(0), x)
    return x, jax.tree.map(lambda leaf: draw(leaf, np.float32(0.2)), like)


def numpy_cnn(params, x):
    """The CNN's forward pass, one output pixel at a time."""
    params, x = jax.tree.map(np.asarray, params["params"]), np.asarray(x, np.float64)
    for layer in "Conv_0", "Conv_1":
        kernel, bias = params[layer]["kernel"], params[layer]["bias"]
        batch, high, wide, _ = x.shape
        out = np.zeros((batch, high - 2, wide - 2, kernel.shape[-1]))
        for i in range(high - 2):
            for j in range(wide - 2):
                patch = x[:, i : i + 3, j : j + 3, :]
                out[:, i, j] = np.einsum("bhwc,hwcd->bd", patch, kernel) + bias
        x = np.maximum(out, 0)
    batch, high, wide, channels = x.shape
    x = x[:, : high // 2 * 2, : wide // 2 * 2]  # a last odd row or column is dropped
    x = x.reshape(batch, high // 2, 2, wide // 2, 2, channels).max(axis=(2, 4)).reshape(batch, -1)
    x = np.maximum(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], 0)
    return x @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (3, 7, 10, 2)])
def test_cnn_is_what_its_docstring_says(shape):
    model = CNN(3)
    x, params = made(model, shape)
    np.testing.assert_allclose(jax.jit(model.apply)(params, x), numpy_cnn(params, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("widths", [(), (7,), (7, 5)])
def test_mlp_is_what_its_docstring_says(widths):
    model = MLP(3, widths)
    x, params = made(model, (4, 2, 3))
    out = np.asarray(x, np.float64).reshape(4, 6)
    for i in range(len(widths) + 1):
        layer = jax.tree.map(np.asarray, params["params"][f"Dense_{i}"])
        out = (np.maximum(out, 0) if i else out) @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(jax.jit(model.apply)(params, x), out, rtol=1e-4, atol=1e-5)


def test_dropout_is_off_by_default():
    x, params = made(CNN(3), (2, 8, 8, 1))
    plain = CNN(3).apply(params, x)
    np.testing.assert_array_equal(CNN(3, dropout=0.25).apply(params, x), plain)
    np.testing.assert_array_equal(CNN(3).apply(params, x, train=True, rngs={"dropout": jax.random.key(0)}), plain)


def test_dropout_in_training():
    """d after the pool and 2d before the last layer; what stays is scaled up."""
    model = CNN(3, dropout=0.2)
    x, params = made(model, (200, 8, 8, 1))
    params = jax.tree.map(jnp.abs, params)  # and positive inputs: no zero comes from a ReLU

    @partial(jax.jit, static_argnums=1)
    def run(key, train):
        return model.apply(params, jnp.abs(x), train=train, rngs={"dropout": key}, capture_intermediates=True)

    key = jax.random.key(0)
    (logits, seen), (_, quiet) = run(key, True), run(key, False)
    for name, rate in ("Dropout_0", 0.2), ("Dropout_1", 0.4):
        out, calm = (s["intermediates"][name]["__call__"][0] for s in (seen, quiet))
        zeros = float((out == 0).mean())
        assert abs(zeros - rate) < 5 * (rate * (1 - rate) / out.size) ** 0.5
        if name == "Dropout_0":
            np.testing.assert_allclose(out, np.where(out == 0, 0, calm / 0.8), rtol=1e-5)
    np.testing.assert_array_equal(run(key, True)[0], logits)
    assert (run(jax.random.key(1), True)[0] != logits).all()
