"""Models of published benchmarks: their parameter counts, their shapes inside, and plain NumPy on small ones."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from tests.models.test_models import made

models = fs.models


def shapes(model, shape, dtype=jnp.float32):
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), dtype))


@pytest.mark.parametrize(
    "model, shape, count",
    [
        (models.Autoencoder(), (784,), 2_837_314),
        (models.Autoencoder(), (28, 28, 1), 2_837_314),
        (models.ResNet18(100, strides=(1, 1, 1, 1)), (24, 24, 3), 11_227_812),
        (models.ResNet18(100), (32, 32, 3), 11_227_812),
        (models.ResNet18(1000), (224, 224, 3), 11_689_512),  # torchvision's resnet18
        (models.ResNet18(10, stem="small"), (32, 32, 3), 11_173_962),
        (models.LogisticRegression(500), (10_000,), 5_000_500),
        (models.CIFARCNN(), (32, 32, 3), 1_626_442),
        (models.ViT(1000), (224, 224, 3), 5_717_416),
        (models.ViT(10, patch=4), (32, 32, 3), 5_362_762),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "apply") else str(value),
)
def test_published_parameter_counts(model, shape, count):
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(model, shape))) == count


@pytest.mark.parametrize("model, count", [(models.LSTM(), 820_522), (models.LSTM(10_004, 96, 670, 1, 96), 4_050_748)])
def test_published_parameter_counts_of_text_models(model, count):
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(model, (20,), jnp.int32))) == count


@pytest.mark.parametrize(
    "strides, stem, side, sizes",
    [
        ((1, 1, 1, 1), "large", 24, [6, 6, 6, 6]),
        ((1, 2, 2, 2), "large", 224, [56, 28, 14, 7]),
        ((1, 2, 2, 2), "small", 32, [32, 16, 8, 4]),
    ],
    ids=["released", "standard", "small pictures"],
)
def test_how_large_pictures_are_in_each_stage_of_a_resnet(strides, stem, side, sizes):
    model, x = models.ResNet18(100, strides, stem), jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    run = lambda params, x: model.apply(params, x, capture_intermediates=True)[1]["intermediates"]
    seen = jax.eval_shape(run, shapes(model, (side, side, 3)), x)
    found = {seen[name]["__call__"][0].shape[1:] for name in seen if name.startswith("Conv_")}
    stem_side = side // 2 if stem == "large" else side
    expected = {(size, size, width) for size, width in zip(sizes, (64, 128, 256, 512), strict=True)}
    assert found == expected | {(stem_side, stem_side, 64)}


# NumPy


def convolved(x, kernel, stride=1):
    """With the padding that keeps ceil(side / stride) pixels, more of it at the end."""
    k, side = len(kernel), x.shape[1]
    out = -(-side // stride)
    total = max((out - 1) * stride + k - side, 0)
    pads = (total // 2, total - total // 2)
    x = np.pad(x, ((0, 0), pads, pads, (0, 0)))
    at = lambda i, j: x[:, i * stride : i * stride + k, j * stride : j * stride + k]
    rows = [[np.einsum("bhwc,hwcd->bd", at(i, j), kernel) for j in range(out)] for i in range(out)]
    return np.moveaxis(np.array(rows), 2, 0)


def grouped(x, layer, groups):
    parts = x.reshape(*x.shape[:3], groups, -1)
    centred = parts - parts.mean((1, 2, 4), keepdims=True)
    parts = centred / np.sqrt((centred**2).mean((1, 2, 4), keepdims=True) + 1e-3)
    return parts.reshape(x.shape) * layer["scale"] + layer["bias"]


def test_resnet_is_pre_activated_with_projections_of_the_blocks_input():
    """One block a stage: the first of equal channels, the second wider and halved."""
    model = models.ResNet18(3, strides=(1, 2), groups=2, widths=(4, 6), blocks=1)
    x, params = made(model, (2, 8, 8, 3))
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    kernels = [p[f"Conv_{i}"]["kernel"] for i in range(6)]
    norm = lambda x, i: grouped(x, p[f"GroupNorm_{i}"], 2)
    relu = lambda x: np.maximum(x, 0)
    h = relu(norm(convolved(np.asarray(x, np.float64), kernels[0], 2), 0))
    padded = np.pad(h, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=-np.inf)  # 4 to 2 by windows of 3
    pool = lambda i, j: padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2))
    h = np.stack([np.stack([pool(i, j) for j in range(2)], 1) for i in range(2)], 1)
    h = h + convolved(relu(norm(convolved(h, kernels[1]), 1)), kernels[2])
    inner = convolved(relu(norm(h, 2)), kernels[3], 2)
    h = norm(convolved(h, kernels[5], 2), 4) + convolved(relu(norm(inner, 3)), kernels[4])
    logits = relu(norm(h, 5)).mean((1, 2)) @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    np.testing.assert_allclose(jax.jit(model.apply)(params, x), logits, rtol=1e-4, atol=1e-4)


def test_vit_is_what_its_docstring_says():
    model = models.ViT(3, patch=2, width=4, depth=1, heads=2)
    x, params = made(model, (2, 4, 6, 3))
    p, x64 = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"]), np.asarray(x, np.float64)
    dense = lambda x, layer: x @ layer["kernel"] + layer["bias"]
    patches = np.stack([x64[:, i : i + 2, j : j + 2].reshape(2, -1) for i in (0, 2) for j in (0, 2, 4)], 1)
    h = patches @ p["patches"]["kernel"].reshape(-1, 4) + p["patches"]["bias"]
    h = np.concatenate([np.repeat(p["token"], 2, 0), h], 1) + p["positions"]

    def norm(x, i):
        centred = x - x.mean(-1, keepdims=True)
        x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return x * p[f"LayerNorm_{i}"]["scale"] + p[f"LayerNorm_{i}"]["bias"]

    layers = p["MultiHeadDotProductAttention_0"]
    part = lambda name: np.einsum("btc,chd->bhtd", norm(h, 0), layers[name]["kernel"]) + layers[name]["bias"][:, None]
    scores = np.exp(np.einsum("bhtd,bhsd->bhts", part("query"), part("key")) / math.sqrt(2))
    heads = np.einsum("bhts,bhsd->bthd", scores / scores.sum(-1, keepdims=True), part("value"))
    h = h + np.einsum("bthd,hdc->btc", heads, layers["out"]["kernel"]) + layers["out"]["bias"]
    wide = dense(norm(h, 1), p["Dense_0"])
    h = h + dense(wide * (1 + np.vectorize(math.erf)(wide / math.sqrt(2))) / 2, p["Dense_1"])
    np.testing.assert_allclose(jax.jit(model.apply)(params, x), dense(norm(h, 2)[:, 0], p["Dense_2"]), rtol=1e-4)


def test_autoencoder_is_what_its_docstring_says():
    model = models.Autoencoder(widths=(5, 4), code=2)
    x, params = made(model, (3, 2, 3))
    h = np.asarray(x, np.float64).reshape(3, 6)
    for i in range(6):
        layer = params["params"][f"Dense_{i}"]
        h = h @ np.asarray(layer["kernel"], np.float64) + layer["bias"]
        h = h if i == 2 else 1 / (1 + np.exp(-h))  # the code is linear
    np.testing.assert_allclose(model.apply(params, x), h.reshape(3, 2, 3), rtol=1e-5)


def test_a_model_with_batch_norm_needs_a_policy():
    """And its statistics are a collection beside its parameters, of which ResNet-18 has as many as with groups."""
    model = models.ResNet18(100, norm="batch", widths=(4, 4), strides=(1, 1), groups=32, blocks=1)
    sample = {"x": np.zeros((1, 8, 8, 3), np.float32), "y": np.zeros(1, np.int32)}
    with pytest.raises(fs.FedSimError, match=r'batch_stats=None: .*"average".*private=.*"frozen"'):
        fs.classification(model, sample)
    task = fs.classification(model, sample, batch_stats="frozen")
    assert task.collections == ("batch_stats",)


@pytest.mark.parametrize(
    "model, problem",
    [
        (models.ResNet18(3, strides=(1, 2)), "strides=.*one for each of 4 stages"),
        (models.ResNet18(3, stem="tiny"), "stem='tiny'"),
        (models.ResNet18(3, norm="layer"), "norm='layer'"),
        (models.ResNet18(3, groups=48), "groups=48: must divide the channels"),
        (models.ViT(3, patch=5), "patch=5: must divide"),
        (models.ViT(3, patch=4, heads=5), "heads=5: must divide the width"),
    ],
    ids=["strides", "stem", "norm", "groups", "patch", "heads"],
)
def test_models_that_cannot_be(model, problem):
    with pytest.raises(fs.FedSimError, match=problem):
        shapes(model, (8, 8, 3))
