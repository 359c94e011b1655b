"""Evaluation, pooled and client by client, against NumPy on the same examples."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from tests.engine import toys

SIZES = (5, 0, 9, 1, 7)
DATA = toys.federation(SIZES)
PARAMS = {"w": jnp.arange(6.0).reshape(3, 2) / 6, "b": jnp.array([0.1, -0.2])}
TOKENS = np.random.default_rng(1).integers(0, 4, len(DATA.arrays["x"])).astype(np.float32)


def weighted_loss(params, batch, key):
    error = batch["x"] @ params["w"] + params["b"][None] - batch["y"]
    value = jnp.mean(error**2, axis=1)
    metrics = {
        "bias": error[:, 0],
        "by_tokens": (error[:, 1], batch["t"]),
        "largest": fs.metrics.Max(jnp.max(jnp.where(batch["mask"] > 0, value, -jnp.inf))),
        "spread": fs.metrics.Histogram.of(value, (0.0, 1.0, 2.0), batch["mask"]),
    }
    return fs.Loss(value, batch["t"], metrics)


TASK = fs.Task(lambda key: PARAMS, weighted_loss)
ARRAYS = {**DATA.arrays, "t": TOKENS}
WITH_TOKENS = fs.data.FederatedData(ARRAYS, DATA.offsets)


def by_hand(rows):
    x, y, t = (ARRAYS[name][rows].astype(np.float64) for name in ("x", "y", "t"))
    error = x @ np.asarray(PARAMS["w"], np.float64) + np.asarray(PARAMS["b"]) - y
    value = (error**2).mean(1)
    ratio = lambda total, weight: total.sum() / weight.sum() if weight.sum() else np.nan
    return {
        "loss": ratio(t * value, t),
        "bias": error[:, 0].mean() if len(rows) else np.nan,
        "by_tokens": ratio(t * error[:, 1], t),
        "largest": value.max(initial=-np.inf) if len(rows) else np.nan,
        "spread": np.array([(value < 1).sum(), (value >= 1).sum()]),
    }


@pytest.mark.parametrize("batch_size, devices", [(1, 1), (7, 1), (100, 1), (4, 8)], ids=str)
def test_pooled(batch_size, devices):
    """Every example counts once; the histogram is not a number, so it is left to the clients' test."""

    def loss(params, batch, key):
        full = weighted_loss(params, batch, key)
        return fs.Loss(full.value, full.weight, {k: v for k, v in full.metrics.items() if k != "spread"})

    task, devices = fs.Task(TASK.init, loss), jax.devices()[:devices]
    expected = by_hand(np.arange(sum(SIZES)))
    expected.pop("spread")
    for arrays in (ARRAYS, WITH_TOKENS):
        found = fs.evaluate(task, PARAMS, arrays, batch_size, devices)
        assert found == pytest.approx(expected, rel=1e-5)


def test_pooled_over_the_rows_that_clients_hold():
    index = np.array([3, 1, 14, 8, 20])
    some = fs.data.FederatedData(ARRAYS, [0, 2, 2, 5], index)
    found = fs.evaluate_clients(TASK, PARAMS, some, devices=jax.devices()[:1])
    for k, rows in enumerate((index[:2], [], index[2:])):
        assert found["loss"][k] == pytest.approx(by_hand(np.array(rows, int))["loss"], nan_ok=True)
    pooled = fs.evaluate(toys.task(), PARAMS, some, devices=jax.devices()[:1])
    other = fs.evaluate(
        toys.task(),
        PARAMS,
        jax.tree.map(lambda a: a[index], ARRAYS),
        devices=jax.devices()[:1],
    )
    assert pooled == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize("batch_size, devices", [(4, 1), (64, 8)], ids=str)
def test_client_by_client(batch_size, devices):
    found = fs.evaluate_clients(TASK, PARAMS, WITH_TOKENS, batch_size, jax.devices()[:devices])
    for k in range(len(SIZES)):
        for name, value in by_hand(WITH_TOKENS.rows(k)).items():
            np.testing.assert_allclose(found[name][k], value, rtol=1e-5, err_msg=f"{k} {name}")
    assert np.isnan(found["loss"][1])
    assert found.sizes.tolist() == list(SIZES)
    real = found["bias"][[0, 2, 3, 4]]
    quantiles = found.quantiles("bias")
    assert list(quantiles) == [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]
    for p, value in quantiles.items():
        assert value == pytest.approx(np.quantile(real, p))
    assert found.quantiles("bias", (0.5,)) == {0.5: pytest.approx(np.median(real))}


def test_quantiles_leave_out_clients_without_a_value():
    """A client whose examples all have weight 0 has no loss, and no place in the quantiles."""
    weightless = np.where(np.arange(len(TOKENS)) < 5, 0, 1 + TOKENS).astype(np.float32)
    data = fs.data.FederatedData({**ARRAYS, "t": weightless}, DATA.offsets)
    found = fs.evaluate_clients(TASK, PARAMS, data, 4, jax.devices()[:1])
    assert np.isnan(found["loss"][0])
    assert found.quantiles("loss", (0.5,))[0.5] == pytest.approx(np.median(found["loss"][[2, 3, 4]]))


def test_evaluation_mode_and_the_models_params():
    """Dropout is off, and a state's params go straight in."""

    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(3)(nn.Dropout(0.9, deterministic=not train)(x))

    sample = {"x": DATA.arrays["x"], "y": np.zeros(len(TOKENS), np.int32)}
    task = fs.classification(Noisy(), sample)
    params = task.init(jax.random.key(0))
    dense = params["params"]["Dense_0"]
    logits = sample["x"] @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    expected = -np.log(np.exp(logits[:, 0]) / np.exp(logits).sum(1)).mean()
    found = fs.evaluate(task, params, sample, devices=jax.devices()[:1])
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == 0).mean())


def test_bad_arguments():
    with pytest.raises(fs.FedSimError, match="batch_size=0: must be"):
        fs.evaluate(TASK, PARAMS, ARRAYS, batch_size=0)
    with pytest.raises(fs.FedSimError, match='entry "mask": the name is reserved'):
        fs.evaluate(TASK, PARAMS, {**ARRAYS, "mask": TOKENS})
    with pytest.raises(fs.FedSimError, match="losses are a scalar"):
        fs.evaluate(fs.Task(TASK.init, lambda p, b, k: jnp.sum(b["x"])), PARAMS, ARRAYS)
