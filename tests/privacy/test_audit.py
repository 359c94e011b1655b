"""Audits: values computed elsewhere, and claims that are false, which they must see."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import norm

import fedjax_sim as fs

audit = fs.privacy.audit


def test_area_under_the_curve_counts_ties_half():
    assert audit.membership(np.array([3, 2, 2]), np.array([1, 2, 0])).auc == pytest.approx(8 / 9)
    assert audit.membership(np.zeros(4), np.zeros(7)).auc == 0.5


def test_rates_at_few_false_alarms():
    members, others = np.array([5.0, 4.0, 2.5, 1.0]), np.arange(10) / 2.0  # 0 to 4.5
    found = audit.membership(members, others, rates=(0.001, 0.1, 0.2))
    assert [found.at[rate].value for rate in (0.001, 0.1, 0.2)] == [0.25, 0.25, 0.5]
    assert audit.membership(members, others, rates=(0.3,)).at[0.3].value == 0.5
    assert audit.membership(np.ones(5), np.ones(100)).at[0.1].value == 0  # a constant finds nobody
    assert (found.at[0.1].low, found.at[0.1].high) == pytest.approx((0.006309, 0.805880), abs=1e-5)


def test_most_that_privacy_permits():
    assert audit.most_under_gaussian(1.0, 0.01) == pytest.approx(0.0923622, abs=1e-6)
    assert audit.most_under_dp(1.0, 1e-5, 0.01) == pytest.approx(0.0271928, abs=1e-6)
    draw = np.random.default_rng(1)
    found = audit.membership(draw.normal(1, 1, 50_000), draw.normal(0, 1, 50_000))
    assert found.auc == pytest.approx(0.7602499, abs=5e-3)
    for rate, measured in found.at.items():
        assert measured.low < audit.most_under_gaussian(1.0, rate) < measured.high


def test_likelihood_ratios_find_what_plain_scores_do_not():
    """Examples differ in how hard they are, so that one threshold for all finds few."""
    draw = np.random.default_rng(2)
    hard = draw.normal(0, 5, 200)
    included = draw.random((16, 200)) < 0.5
    shadows = hard + 1.0 * included + 0.3 * draw.normal(size=(16, 200))
    member = draw.random(200) < 0.5
    score = hard + 1.0 * member + 0.3 * draw.normal(size=200)
    ratios = audit.lira(score, shadows, included)
    assert audit.membership(ratios[member], ratios[~member]).auc > 0.9
    assert audit.membership(score[member], score[~member]).auc < 0.7
    k = 7  # one example by hand
    own = [shadows[included[:, k] == side, k] for side in (True, False)]
    by_hand = norm.logpdf(score[k], own[0].mean(), own[0].std(ddof=1)) - norm.logpdf(
        score[k], own[1].mean(), own[1].std(ddof=1)
    )
    assert ratios[k] == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("canaries", "guesses", "right", "delta", "epsilon"),
    [
        (1000, 100, 100, 0.0, 3.4929654),
        (1000, 100, 80, 0.0, 0.9583920),
        (1000, 100, 60, 0.0, 0.0519149),
        (2000, 1000, 900, 0.0, 2.0212332),
        (1000, 100, 80, 1e-5, 0.9553185),
        (1000, 100, 100, 1e-5, 3.4653762),
    ],
)
def test_bounds_of_one_run(canaries, guesses, right, delta, epsilon):
    """Of Steinke et al. 2023, Theorem 5.2, computed elsewhere; those that were in and are not guessed come last."""
    wrong = guesses - right
    included = np.array([True] * right + [False] * wrong + [False] * (canaries // 2 - wrong))
    included = np.concatenate([included, np.ones(canaries - len(included), bool)])
    found = audit.one_run(-np.arange(canaries), included, delta, guesses=guesses)
    assert found == pytest.approx(epsilon, abs=2e-5)


def test_bounds_of_a_gaussian_mechanism_are_seldom_wrong_and_not_loose():
    wrong, bounds = 0, []
    for seed in range(60):
        draw = np.random.default_rng(seed)
        included = draw.random(400) < 0.5
        bounds.append(audit.one_run(draw.normal(size=400) + included, included, 1e-5, method="gaussian", seed=seed))
        wrong += bounds[-1] > 4.377178  # epsilon of mu = 1 at that delta
    assert wrong <= 6
    assert np.median(bounds) > 1.2


CLIP, CLIENTS, WIDTH = 0.5, 600, 5000


def canaries(multiplier):
    """A simulation all of whose clients are canaries, and take part."""
    task = fs.Task(lambda key: jnp.zeros(WIDTH), lambda w, batch, key: batch["x"] * w[0])
    data = fs.data.FederatedData({"x": np.zeros(CLIENTS, np.float32)}, np.arange(CLIENTS + 1))
    chain = fs.aggregate.chain(
        fs.aggregate.clip_by_l2(CLIP), fs.aggregate.gaussian_noise(multiplier), reduce=fs.aggregate.mean("uniform")
    )
    algorithm = fs.fedavg(task, optax.sgd(0.1), aggregator=chain)
    attacked = fs.attacks.infect(algorithm, fs.attacks.canary(CLIP), np.arange(CLIENTS))
    return fs.Simulation(attacked, data, fs.sampler.poisson(1.0), fs.Batching(1))


def test_an_audit_sees_noise_that_is_half_of_what_is_claimed():
    """The claim is that of multiplier 1; the runs have half of it."""
    ids, claimed = np.arange(CLIENTS), float(canaries(1.0).epsilon(rounds=1, delta=1e-5))
    sim = canaries(0.5)
    for seed in range(5):
        state, _ = sim.step(dataclasses.replace(sim.init(), seed=seed))
        scores = audit.canary_scores(sim.params(state), ids)
        lower = audit.one_run(scores, audit.included(ids), 1e-5, method="gaussian", seed=seed)
        audit.check_claim(lower, float(sim.epsilon(state=state, delta=1e-5)))
        with pytest.raises(fs.FedSimError, match="is claimed"):
            audit.check_claim(lower, claimed)


def test_a_dense_layer_gives_its_example_away():
    x, w = jnp.array([0.2, -0.4, 0.9]), jnp.array([[0.1, 0.3], [0.5, -0.2], [0.0, 0.4]])
    loss = lambda w, b: -jax.nn.log_softmax(x @ w + b)[1]
    weights, bias = jax.grad(loss, argnums=(0, 1))(w, jnp.zeros(2))
    found, label = audit.invert_dense(weights, bias)
    np.testing.assert_allclose(found, x, rtol=1e-6)
    assert int(label) == 1


@pytest.mark.parametrize("method", ["dlg", "geiping"])
def test_gradients_are_inverted_unless_they_are_noised(method):
    key = jax.random.key(3)
    w = jax.random.normal(key, (6, 8)) / 3
    v = jax.random.normal(jax.random.fold_in(key, 1), (8, 3)) / 3
    truth = jax.random.uniform(jax.random.fold_in(key, 2), (1, 6))

    def gradient(x):
        loss = lambda w, v: -jax.nn.log_softmax(jnp.tanh(x @ w) @ v)[0, 1]
        return jax.grad(loss, argnums=(0, 1))(w, v)

    sent = gradient(truth)
    clear = audit.invert(gradient, sent, (1, 6), key, method, steps=2000)
    assert clear.psnr(truth) > 25
    noise = lambda leaf: leaf + 0.3 * jax.random.normal(key, leaf.shape)
    noised = audit.invert(gradient, jax.tree.map(noise, sent), (1, 6), key, method, steps=2000)
    assert noised.psnr(truth) < clear.psnr(truth) - 10


def test_a_batch_is_matched_whatever_its_order():
    truth = np.random.default_rng(0).random((4, 2, 2))
    found = audit.Inverted(jnp.asarray(truth[::-1] + 0.1), jnp.zeros(()))
    assert found.psnr(truth) == pytest.approx(20.0, abs=1e-3)
    assert found.psnr(truth, peak=10.0) == pytest.approx(40.0, abs=1e-3)


def test_what_is_wrong_is_said():
    scores, included = np.arange(4.0), np.array([True, False, True, False])
    for make, words in (
        (lambda: audit.membership(np.ones(0), np.ones(2)), "members"),
        (lambda: audit.membership(np.ones(2), np.ones(0)), "others"),
        (lambda: audit.membership(np.ones(2), np.array([np.nan])), "NaN"),
        (lambda: audit.membership(np.ones(2), np.ones(2), rates=(0.0,)), "rates=0.0"),
        (lambda: audit.lira(np.ones(1), np.ones((3, 1)), np.array([[True], [True], [False]])), "at least 2"),
        (lambda: audit.lira(np.ones(1), np.full((4, 2), 1.0), np.eye(4, 2) > 0), r"must be of shape \[S, 1\]"),
        (lambda: audit.lira(np.ones(1), np.full((4, 1), np.nan), np.arange(4)[:, None] < 2), "NaN"),
        (lambda: audit.one_run(scores, included, -1e-5), "delta"),
        (lambda: audit.one_run(scores, included, 1e-5, beta=1.0), "beta=1.0"),
        (lambda: audit.one_run(scores, np.ones(4, bool), 1e-5), "not all"),
        (lambda: audit.one_run(scores, included[:3], 1e-5), "one number a canary"),
        (lambda: audit.one_run(scores, included, 0.0, method="gaussian"), "above 0"),
        (lambda: audit.one_run(scores, included, 1e-5, guesses=5), "guesses=5"),
        (lambda: audit.invert_dense(jnp.ones((2, 3)), jnp.zeros(3)), "all 0"),
        (lambda: audit.invert_dense(jnp.ones((2, 3)), jnp.zeros(2)), "shape"),
    ):
        with pytest.raises(fs.FedSimError, match=words):
            make()
