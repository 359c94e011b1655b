"""Summaries over clients: against plain NumPy, published closed forms, and all clients' examples at once."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.simulation.client_metrics import ClientMetrics, summarise

K = 2000
SIZES = np.random.default_rng(0).integers(0, 4, K)
Y = np.random.default_rng(1).integers(0, 3, SIZES.sum()).astype(np.int32)
X = (np.random.default_rng(2).standard_normal((len(Y), 3)) + np.eye(3)[Y]).astype(np.float32)
DATA = fs.data.FederatedData({"x": X, "y": Y}, np.concatenate([[0], np.cumsum(SIZES)]))
MEASURES = {
    "confusion": fs.metrics.Confusion.of,
    "macro_f1": fs.metrics.MacroF1.of,
    "auc": lambda logits, labels, weight: fs.metrics.AUC.of(logits, labels, weight, label=2, bins=64),
}
TASK = fs.classification(fs.models.LogisticRegression(3), {"x": X, "y": Y}, measures=MEASURES)
PARAMS = {"params": {"Dense_0": {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}}}
ONE = dict(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def clients():
    return fs.evaluate_clients(TASK, PARAMS, DATA, batch_size=2, **ONE)


def test_thousands_of_clients_and_all_of_them_pooled(clients):
    """Each client's confusion matrix is counted by hand; their merge is the evaluation of all examples at once."""
    for k in np.flatnonzero(SIZES)[:50]:
        rows = DATA.rows(k)
        expected = np.zeros((3, 3))
        np.add.at(expected, (Y[rows], X[rows].argmax(1)), 1)
        np.testing.assert_array_equal(clients["confusion"][k], expected)
        right = expected.diagonal().sum() / expected.sum()
        assert clients["accuracy"][k] == pytest.approx(right)
    pooled, at_once = clients.pooled(), fs.evaluate(TASK, PARAMS, DATA, batch_size=64, **ONE)
    assert pooled.keys() == at_once.keys() == {"loss", "accuracy", *MEASURES}
    for name, value in at_once.items():
        np.testing.assert_allclose(pooled[name], value, rtol=1e-5, err_msg=name)
    assert at_once["confusion"].sum() == len(Y)
    assert fs.metrics.Confusion(at_once["confusion"]).f1().mean() == pytest.approx(at_once["macro_f1"])


def test_slices_and_unseen_clients_are_parts_of_the_whole(clients):
    regions = np.array(["north", "south", "east"])[np.arange(K) % 3]
    slices = clients.by(regions)
    assert list(slices) == ["east", "north", "south"]
    assert sum(part.sizes.sum() for part in slices.values()) == len(Y)
    rows = np.concatenate([DATA.rows(k) for k in range(0, K, 3)])
    north = slices["north"].pooled()
    assert north["accuracy"] == pytest.approx((X[rows].argmax(1) == Y[rows]).mean())
    parts = clients.seen([3, 4, 3])
    assert (len(parts["seen"].sizes), len(parts["unseen"].sizes)) == (2, K - 2)
    np.testing.assert_array_equal(parts["seen"]["accuracy"], clients["accuracy"][[3, 4]])
    assert len(clients.select([]).sizes) == 0


def by_hand(x, w, share):
    """The definitions, pair by pair and unit by unit."""
    total, mean = w.sum(), (w * x).sum() / w.sum()
    pairs = sum(a * b * abs(u - v) for u, a in zip(x, w, strict=True) for v, b in zip(x, w, strict=True))
    units = np.sort(np.repeat(x, w.astype(int)))  # of whole weights: so many clients of weight 1
    return {
        "mean": mean,
        "variance": (w * (x - mean) ** 2).sum() / total,
        "gini": pairs / (2 * total**2 * mean),
        "jain": (w * x).sum() ** 2 / (total * (w * x**2).sum()),
        "worst": units[: int(share * total)].mean(),
    }


@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "weighted"])
def test_summaries_are_their_definitions(weighted):
    generator = np.random.default_rng(3)
    x = generator.random(20)
    w = generator.permutation(np.repeat([1, 2, 3, 4], 5)) if weighted else np.ones(20)
    made = summarise("accuracy", x, w, "low", share=0.1)
    for name, value in by_hand(x, w, 0.1).items():
        assert getattr(made, name) == pytest.approx(value), name
    if weighted:
        units = np.repeat(x, w.astype(int))
        for p, value in made.quantiles.items():
            assert value == np.quantile(units, p, method="inverted_cdf"), p
    else:
        assert made.quantiles[0.25] == pytest.approx(np.quantile(x, 0.25))


def test_closed_forms():
    alike = summarise("a", np.full(7, 0.3), np.ones(7), "low", 0.1)
    assert (alike.gini, alike.jain, alike.variance) == pytest.approx((0, 1, 0), abs=1e-12)
    all_to_one = summarise("a", np.eye(5)[0], np.ones(5), "low", 0.1)
    assert (all_to_one.gini, all_to_one.jain) == pytest.approx((4 / 5, 1 / 5))
    assert summarise("a", np.array([1.0, 2, 3]), np.ones(3), "high", 0.5).worst == pytest.approx((3 + 2 * 0.5) / 1.5)
    assert np.isnan(summarise("a", np.array([-1.0, 2]), np.ones(2), "high", 0.1).gini)
    assert np.isnan(summarise("a", np.zeros(2), np.ones(2), "high", 0.1).jain)


def test_summaries_of_clients(clients):
    held = SIZES > 0
    uniform, examples = clients.summary("accuracy"), clients.summary("accuracy", weight="examples")
    assert (uniform.clients, uniform.undefined, uniform.worst_are) == (held.sum(), 0, "low")
    assert uniform.mean == pytest.approx(clients["accuracy"][held].mean())
    assert examples.mean == pytest.approx(clients.pooled()["accuracy"], rel=1e-5)
    assert clients.summary("accuracy", weight=SIZES).gini == examples.gini
    loss = clients.summary("loss")
    assert loss.worst_are == "high"
    assert loss.worst > loss.mean > clients.summary("loss", worst="low").worst
    area = clients.summary("auc")  # most clients lack a positive or a negative
    assert area.undefined == held.sum() - area.clients > 0
    assert "clients without a value" in repr(area)
    assert "<table>" in uniform._repr_html_()
    none = ClientMetrics({"loss": fs.metrics.Mean(np.zeros(2), np.zeros(2))}, np.zeros(2, int)).summary("loss")
    assert none.clients == 0
    assert np.isnan([none.mean, none.gini, none.quantiles[0.5]]).all()


def test_bad_arguments(clients):
    for problem, given in {
        "name='f1': the metrics are": dict(name="f1"),
        r"name='confusion': has values \(3, 3\) a client": dict(name="confusion"),
        "worst='least': must be": dict(name="loss", worst="least"),
        "share=0": dict(name="loss", share=0),
        "weight='sizes': must be": dict(name="loss", weight="sizes"),
        r"weight.shape=\(3,\): must be a weight for each of 2000": dict(name="loss", weight=[1, 2, 3]),
        "must not be negative": dict(name="loss", weight=-SIZES),
    }.items():
        with pytest.raises(fs.FedSimError, match=problem):
            clients.summary(**given)
    for ids in ([K], [-1]):
        with pytest.raises(fs.FedSimError, match=r"ids must lie in 0..1999"):
            clients.select(ids)
        with pytest.raises(fs.FedSimError, match=r"ids must lie in 0..1999"):
            clients.seen(ids)
    for wrong in ([0.5], [[1]], np.ones(3, bool)):
        with pytest.raises(fs.FedSimError, match="must be"):
            clients.select(wrong)
    with pytest.raises(fs.FedSimError, match="must be a value for each of 2000"):
        clients.by(["a", "b"])


@pytest.mark.parametrize(
    "measures, problem",
    [
        ({"f1": "macro"}, "'f1'.*must be a function"),
        ({"accuracy": fs.metrics.MacroF1.of}, "measures='accuracy': the loss has a metric of that name"),
        ({"f1": lambda logits, labels, weight: weight.sum()}, "must be a fs.metrics.Metric"),
    ],
)
def test_bad_measures(measures, problem):
    task = fs.classification(fs.models.LogisticRegression(3), {"x": X, "y": Y}, measures=measures)
    with pytest.raises(fs.FedSimError, match=problem):
        fs.evaluate(task, PARAMS, {"x": X[:2], "y": Y[:2]}, **ONE)


def test_measures_of_tokens_leave_pads_out():
    """Of windows [B, T] each token counts once, and pads do not; local training knows nothing of measures."""
    x = np.array([[1, 2, 3, 0], [2, 1, 0, 0]], np.int32)
    count = lambda logits, labels, weight: fs.metrics.Sum(jnp.sum(weight))
    measures = {"matrix": fs.metrics.Confusion.of, "tokens": count}
    task = fs.next_token(nn.Embed(4, 4), {"x": x, "y": x}, measures=measures)
    params = task.init(jax.random.key(0))
    found = fs.evaluate(task, params, {"x": x, "y": x}, **ONE)
    assert found["matrix"].sum() == found["tokens"] == 5
    batch = {"x": x, "y": x, "mask": jnp.ones(2)}
    shapes = jax.eval_shape(lambda: fs.grad(task)(params, batch, jax.random.key(0))[1])
    assert set(shapes) == {"loss", "accuracy"}
