"""Tasks: masks, token weights, reductions and metric pairs against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.client import gradient, replace
from fedjax_sim.client.task import evaluation

KEY = jax.random.key(0)
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(5, 3)).astype(np.float32)
Y = DRAW.normal(size=5).astype(np.float32)
W = jnp.array([0.5, -1.0, 2.0])
WEIGHT = np.array([3.0, 0.0, 1.0, 2.0, 5.0], np.float32)


def batch(mask, fill=None):
    """The five examples, some of them padding; `fill` is what padding rows hold."""
    mask = np.asarray(mask, np.float32)
    x = X if fill is None else np.where(mask[:, None] > 0, X, fill).astype(np.float32)
    return {"x": jnp.asarray(x), "y": jnp.asarray(Y), "t": jnp.asarray(WEIGHT), "mask": mask}


def plain(params, batch, key):
    error = batch["x"] @ params - batch["y"]
    return error**2, {"error": error, "weighted": (error, batch["t"])}


def weighted(params, batch, key):
    error = batch["x"] @ params - batch["y"]
    return fs.Loss(error**2, batch["t"], {"error": error, "by_tokens": (error, batch["t"])})


def task(loss, reduction="mean"):
    return fs.Task(lambda key: jnp.zeros(3), loss, reduction)


def by_hand(mask, weight, reduction):
    """Loss and gradient in float64."""
    x, y, w = X.astype(np.float64), Y.astype(np.float64), np.asarray(W, np.float64)
    scale = np.asarray(mask) * (1.0 if weight is None else weight)
    error = x @ w - y
    denominator = scale.sum() if reduction == "mean" and scale.sum() else 1.0
    gradient = (scale * 2 * error) @ x / denominator
    return (scale * error**2).sum() / max(scale.sum(), 1e-9), gradient


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss, weight", [(plain, None), (weighted, WEIGHT)], ids=["plain", "tokens"])
@pytest.mark.parametrize("mask", [[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 1, 0, 0, 0], [0] * 5], ids=str)
def test_loss_and_gradient(mask, loss, weight, reduction):
    grads, metrics = fs.grad(task(loss, reduction))(W, batch(mask), KEY)
    value, expected = by_hand(mask, weight, reduction)
    np.testing.assert_allclose(grads, expected, rtol=1e-5, atol=1e-6)
    total = (np.asarray(mask) * (1 if weight is None else weight)).sum()
    assert metrics["loss"].weight == total
    if total:
        np.testing.assert_allclose(metrics["loss"].compute(), value, rtol=1e-6)
    else:
        assert metrics["loss"].total == 0
        assert np.isnan(metrics["loss"].compute())
        np.testing.assert_array_equal(grads, np.zeros(3))


@pytest.mark.parametrize("fill", [1e6, np.nan, np.inf], ids=str)
@pytest.mark.parametrize("measure", ["grad", "evaluate"])
def test_what_padding_holds_is_never_seen(fill, measure):
    def loss(params, batch, key):  # forward values of padding may be anything; real padding repeats an example
        x = jax.lax.stop_gradient(batch["x"])
        return jnp.sum(x, axis=1), {"pair": (x[:, 0], x[:, 1] ** 2), "one": x[:, 2]}

    functions = {
        "grad": lambda *args: fs.grad(task(loss))(*args)[1],
        "evaluate": evaluation(task(loss)),
    }
    mask = [1, 0, 1, 1, 0]
    clean, dirty = (functions[measure](W, batch(mask, fill=f), KEY) for f in (None, fill))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def test_metric_pairs():
    mask = np.array([1, 1, 0, 1, 0])
    _, metrics = fs.grad(task(plain))(W, batch(mask), KEY)
    error = X @ np.asarray(W) - Y
    np.testing.assert_allclose(metrics["error"].compute(), error[mask > 0].mean(), rtol=1e-6)
    expected = (mask * WEIGHT * error).sum() / (mask * WEIGHT).sum()
    np.testing.assert_allclose(metrics["weighted"].compute(), expected, rtol=1e-6)


def test_metrics_merge_to_those_of_the_whole():
    """Two batches' metrics merged are one larger batch's, with token weights."""
    grad = fs.grad(task(weighted))
    parts = [grad(W, batch(mask), KEY)[1] for mask in ([1, 1, 0, 0, 0], [0, 0, 1, 1, 0])]
    whole = grad(W, batch([1, 1, 1, 1, 0]), KEY)[1]
    for name, metric in whole.items():
        merged = parts[0][name].merge(parts[1][name])
        np.testing.assert_allclose(merged.compute(), metric.compute(), rtol=1e-6, err_msg=name)


def test_metrics_may_be_monoids():
    def loss(params, batch, key):
        return batch["y"], {"top": fs.metrics.Max(jnp.max(batch["y"] * batch["mask"]))}

    _, metrics = fs.grad(task(loss))(W, batch([1] * 5), KEY)
    assert metrics["top"].compute() == max(Y.max(), 0)


def test_token_classification_is_the_mean_over_tokens():
    """Labels [B, T]: every real token counts once, whoever holds it."""
    logits = DRAW.normal(size=(4, 6, 3)).astype(np.float32)
    labels = DRAW.integers(0, 3, (4, 6)).astype(np.int32)
    labels[0, 3:] = labels[1, 1:] = labels[2] = -1
    model = _Logits(logits.shape[1:])
    tokens = fs.classification(model, {"x": logits, "y": labels})
    mask = np.array([1, 1, 1, 0], np.float32)
    made = tokens.init(KEY)
    metrics = evaluation(tokens)(made, {"x": logits, "y": labels, "mask": jnp.asarray(mask)}, KEY)
    real = (labels >= 0) & (mask[:, None] > 0)
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    each = -np.take_along_axis(log, np.maximum(labels, 0)[..., None], -1)[..., 0]
    np.testing.assert_allclose(metrics["loss"].compute(), each[real].mean(), rtol=1e-5)
    assert metrics["loss"].weight == real.sum()
    right = logits.argmax(-1) == labels
    np.testing.assert_allclose(metrics["accuracy"].compute(), right[real].mean(), rtol=1e-6)


def _Logits(shape):
    import flax.linen as nn

    class Logits(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + self.param("b", nn.initializers.zeros, shape)[None]

    return Logits()


def collecting(params, batch, key):
    seen = params["stats"] + jnp.sum(batch["mask"])
    return fs.Loss((params["w"] - batch["y"]) ** 2, variables={"stats": seen})


def test_collections_are_replaced_and_never_trained():
    stats = fs.Task(lambda key: None, collecting, collections=("stats",))
    params = {"w": jnp.zeros(()), "stats": jnp.zeros(())}
    result = gradient(stats)(params, batch([1, 1, 0, 0, 0]), KEY)
    assert result.grads["stats"] == 0
    np.testing.assert_allclose(result.grads["w"], -2 * Y[:2].mean(), rtol=1e-6)
    assert replace(params, result.variables) == {"w": 0, "stats": 2}
    with pytest.raises(fs.FedSimError, match=r"\('stats',\): fs.grad would leave them unchanged"):
        fs.grad(stats)
    with pytest.raises(fs.FedSimError, match=r"name \['stats'\], which params lack: \['w'\]"):
        gradient(stats)({"w": 0.0}, batch([1] * 5), KEY)


def test_evaluate_function_takes_the_loss_functions_place():
    def quiet(params, batch, key):
        return jnp.abs(batch["y"]), {"y": batch["y"]}

    both = task(plain)._replace(evaluate=quiet)
    metrics = evaluation(both)(W, batch([1, 0, 1, 0, 0]), KEY)
    np.testing.assert_allclose(metrics["loss"].compute(), np.abs(Y[[0, 2]]).mean(), rtol=1e-6)
    assert set(metrics) == {"loss", "y"}
