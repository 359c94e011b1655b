"""Attacks: the values of their papers, twins in NumPy, and what infecting an algorithm must leave as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import ndtri

import fedjax_sim as fs
from fedjax_sim.attacks.colluding import most_deviations
from fedjax_sim.attacks.infection import adversaries, attacks_now
from tests.aggregate.test_robust import X
from tests.algorithms.problems import quadratics, simulate

HONEST = X[:10]
A = np.array([1.0, 2.0, 0.5, 1.0, 3.0, 1.0])
B = np.array([1.0, -2.0, 3.0, 0.5, 2.0, -1.0])
COPIES = np.array([2, 1, 3, 1, 2, 1])
LR = 0.1
ONE_STEP = fs.Batching(batch_size=4)


def known(rows=X, bad=(10,), knows="all", bound=np.inf):
    bad = np.isin(np.arange(len(rows)), bad)
    messages = {"a": jnp.asarray(rows[:, :2], jnp.float32), "b": jnp.asarray(rows[:, 2:], jnp.float32)}
    everyone = fs.aggregate.Collected(
        messages, jnp.ones(len(rows)), jnp.ones(len(rows), bool), jnp.arange(len(rows)), bound=bound
    )
    seen = bad if knows == "own" else ~bad
    return fs.attacks.Known(everyone._replace(contributes=jnp.asarray(seen)), everyone, jnp.asarray(bad))


def sent(attack, given):
    message = attack.collude.message(given)
    return np.concatenate([message["a"], message["b"]])


@pytest.mark.parametrize(("n", "m", "value"), [(50, 24, 1.4260769), (100, 20, 0.2858409), (20, 9, 0.9084579)])
def test_most_deviations_that_hide(n, m, value):
    assert float(most_deviations(n, m)) == pytest.approx(value, rel=1e-5)


def test_a_majority_of_bad_clients_hides_in_the_mean():
    assert float(most_deviations(3, 2)) == 0
    assert float(most_deviations(4, 4)) == 0


@pytest.mark.parametrize(("attack", "value"), [("min_max", 1.3065972), ("min_sum", 1.5554394)])
def test_the_largest_scale_that_stays_near(attack, value):
    made = sent(getattr(fs.attacks, attack)(), known())
    mean, std = HONEST.mean(axis=0), HONEST.std(axis=0)
    np.testing.assert_allclose(made, mean - value * std, rtol=2e-6)


@pytest.mark.parametrize("direction", ["std", "unit", "sign"])
def test_the_largest_scale_is_largest(direction):
    """A step further breaks the inequality of the paper, and the scale itself does not."""
    mean, std = HONEST.mean(axis=0), HONEST.std(axis=0)
    along = {"std": -std, "unit": -mean / np.linalg.norm(mean), "sign": -np.sign(mean)}[direction]
    pairs = ((HONEST[:, None] - HONEST[None]) ** 2).sum(-1)
    for attack, measure, most in (
        (fs.attacks.min_max(direction), np.max, pairs.max()),
        (fs.attacks.min_sum(direction), np.sum, pairs.sum(1).max()),
    ):
        scale = float(np.mean((sent(attack, known()) - mean) / along))
        inside, outside = (measure(((mean + g * along - HONEST) ** 2).sum(-1)) for g in (scale - 1e-4, scale + 1e-4))
        assert inside <= most < outside


def test_colluding_messages_are_their_formulas():
    mean, std = HONEST.mean(axis=0), HONEST.std(axis=0)
    z = ndtri((11 - 1 - (6 - 1)) / 10)
    np.testing.assert_allclose(sent(fs.attacks.alie(), known()), mean - z * std, rtol=1e-5)
    np.testing.assert_allclose(sent(fs.attacks.alie(1.5), known()), mean - 1.5 * std, rtol=1e-5)
    np.testing.assert_allclose(sent(fs.attacks.ipm(0.5), known()), -0.5 * mean, rtol=1e-5)
    np.testing.assert_allclose(sent(fs.attacks.mimic(4), known()), X[4], rtol=1e-6)
    np.testing.assert_allclose(sent(fs.attacks.mimic(10), known()), X[0], rtol=1e-6)  # not an honest one
    own = sent(fs.attacks.alie(2.0, knows="own"), known(bad=(8, 9, 10), knows="own"))
    np.testing.assert_allclose(own, X[8:].mean(axis=0) - 2 * X[8:].std(axis=0), rtol=1e-5)


def test_a_colluding_message_obeys_the_chain():
    long = sent(fs.attacks.ipm(10.0), known())
    np.testing.assert_allclose(
        sent(fs.attacks.ipm(10.0), known(bound=1.5)), 1.5 * long / np.linalg.norm(long), rtol=1e-5
    )


def test_an_optimised_scale_is_the_worst_of_those_tried():
    rule = lambda rows: np.sort(rows, axis=0)[2:-2].mean(axis=0)
    scales = np.linspace(0.5, 4.0, 8)
    mean = HONEST[:9].mean(axis=0)
    harm = [np.linalg.norm(rule(np.vstack([HONEST[:9], [-g * mean] * 2])) - mean) for g in scales]
    attack = fs.attacks.optimise(fs.attacks.ipm(1.0), fs.aggregate.trimmed_mean(2), largest=4.0, evaluations=8)
    np.testing.assert_allclose(sent(attack, known(bad=(9, 10))), -scales[np.argmax(harm)] * mean, rtol=1e-5)


def deltas(x, clients):
    """One full step of each client of the quadratic problem."""
    return -LR * A[clients] * (x - B[clients])


def run(attack, clients, cohorts, aggregator=None, start=0.0, infected=True, server=None, **options):
    task, data = quadratics(A, B, COPIES)
    algorithm = fs.fedavg(task, optax.sgd(LR), server, aggregator=aggregator)
    if infected:
        algorithm = fs.attacks.infect(algorithm, attack, clients, **options)
    states = simulate(algorithm, data, cohorts, ONE_STEP, params=jnp.float32(start))
    return [np.asarray(state.server.params) for state in states]


def test_bad_clients_flip_signs_in_their_rounds_alone():
    everybody = np.arange(6)
    x, expected = 0.0, []
    for r in range(3):
        moved = deltas(x, everybody) * np.where(np.isin(everybody, [1, 4]) & (r != 1), -3.0, 1.0)
        x += np.average(moved, weights=COPIES)
        expected.append(x)
    attack = fs.attacks.sign_flip(3.0)
    found = run(attack, [4, 1], [everybody] * 3, rounds=slice(0, None, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_replaced_model_is_the_servers_where_others_send_nothing():
    x = B[0]
    attack = fs.attacks.replacement(jnp.float32(7.0), scale=1 / (0.5 * COPIES[3] / (COPIES[0] + COPIES[3])))
    assert fs.attacks.replacement(jnp.zeros(()), 1 / (0.5 * 20 / 400)).name == "replacement(40.0)"
    found = run(attack, [3], [[0, 3]], start=x, server=optax.sgd(0.5))
    np.testing.assert_allclose(found[0], 7.0, rtol=1e-5)


def test_colluding_clients_against_a_mean_and_a_median():
    honest, w = np.array([0, 2, 4]), COPIES
    x = deltas(0.0, honest).mean() * -2.0
    attacked = np.concatenate([deltas(0.0, honest), [x, x]])
    mean = run(fs.attacks.ipm(2.0), [1, 3], [[0, 1, 2, 3, 4]])[0]
    np.testing.assert_allclose(mean, np.average(attacked, weights=w[[0, 2, 4, 1, 3]]), rtol=1e-5)
    median = run(fs.attacks.ipm(2.0), [1, 3], [[0, 1, 2, 3, 4]], aggregator=fs.aggregate.median())[0]
    np.testing.assert_allclose(median, np.median(attacked), rtol=1e-5)


def test_bad_clients_are_clipped_unless_they_break_the_chain():
    clip = fs.aggregate.chain(fs.aggregate.clip_by_l2(0.05), reduce=fs.aggregate.mean("uniform"))
    honest = np.clip(deltas(0.0, np.array([0, 2])), -0.05, 0.05)
    attack = fs.attacks.sign_flip(100.0)
    bad = -100 * deltas(0.0, np.array([1]))
    obeys = run(attack, [1], [[0, 1, 2]], aggregator=clip)[0]
    np.testing.assert_allclose(obeys, np.mean([*honest, *np.clip(bad, -0.05, 0.05)]), rtol=1e-5)
    breaks = run(attack, [1], [[0, 1, 2]], aggregator=clip, obeys_chain=False)[0]
    clipped = -100 * np.clip(deltas(0.0, np.array([1])), -0.05, 0.05)
    np.testing.assert_allclose(breaks, np.mean([*honest, *clipped]), rtol=1e-5)


def first(collected):
    """The message of the client of the smallest id."""
    return fs.aggregate.Reduced(jax.tree.map(lambda leaf: leaf[jnp.argmin(collected.ids)], collected.messages))


def test_honest_clients_are_the_same_to_the_bit_whatever_the_others_do():
    task, data = quadratics(A, B, COPIES)

    def loss(x, batch, key):  # whose clients draw
        return task.loss(x, batch, key) + x * jax.random.normal(key, batch["mask"].shape)

    noisy = task._replace(loss=loss)
    algorithm = fs.fedavg(
        noisy, optax.sgd(LR), aggregator=fs.aggregate.Reducer("first", weight="uniform", collect=first)
    )
    everything = fs.attacks.Attack(
        "everything",
        batch=lambda key, batch: {**batch, "b": batch["b"] + jax.random.normal(key, batch["b"].shape)},
        update=lambda key, payload, received: payload * jax.random.normal(key),
        collude=fs.attacks.alie(2.0).collude,
    )
    cohorts = [[0, 1, 2, 3, 4, 5], [3, 2, 4]]
    clean = simulate(algorithm, data, cohorts, ONE_STEP)
    attacked = simulate(fs.attacks.infect(algorithm, everything, [1, 3, 5]), data, cohorts, ONE_STEP)
    again = simulate(fs.attacks.infect(algorithm, everything, [3, 1, 5]), data, cohorts, ONE_STEP, lanes=3, devices=1)
    for one, other, third in zip(clean, attacked, again, strict=True):
        assert float(one.server.params) == float(other.server.params) == float(third.server.params)


def test_metrics_count_bad_clients_and_the_distance_to_the_honest_mean():
    task, data = quadratics(A, B, COPIES)
    algorithm = fs.fedavg(task, optax.sgd(LR), aggregator=fs.aggregate.median())
    attacked = fs.attacks.infect(algorithm, fs.attacks.ipm(2.0), [1, 3], rounds=slice(1, 2))
    sim = fs.Simulation(attacked, data, fs.sampler.fixed([[0, 1, 2, 3, 5]] * 2), ONE_STEP)
    _, history = sim.run(sim.init(), rounds=2)
    np.testing.assert_array_equal(history["client/attackers"], [0, 2])
    everyone = deltas(0.0, np.array([0, 1, 2, 3, 5]))
    np.testing.assert_allclose(
        history["aggregate/distance_to_honest"][0], abs(np.median(everyone) - everyone.mean()), rtol=1e-4
    )


def test_who_is_bad_is_drawn_once_and_for_all():
    bad = adversaries(0.2, 50, seed=3)
    assert len(set(bad.tolist())) == len(bad) == 10
    np.testing.assert_array_equal(bad, adversaries(0.2, 50, seed=3))
    assert not np.array_equal(bad, adversaries(0.2, 50, seed=4))
    found = attacks_now(bad, np.arange(50), slice(None), 0)
    np.testing.assert_array_equal(np.flatnonzero(found), bad)
    draws = np.concatenate([adversaries(0.2, 50, seed=s) for s in range(400)])
    counts = np.bincount(draws, minlength=50)
    assert abs(counts - 80).max() < 5 * np.sqrt(400 * 0.2 * 0.8)


def test_labels_flip_and_those_without_a_class_stay():
    batch = {"y": jnp.array([0, 3, 9, -1] * 200), "mask": jnp.ones(800)}
    key = jax.random.key(0)
    np.testing.assert_array_equal(fs.attacks.label_flip().batch(key, batch)["y"][:4], [9, 6, 0, -1])
    shifted = [*range(1, 10), 0]
    np.testing.assert_array_equal(fs.attacks.label_flip(shifted).batch(key, batch)["y"][:4], [1, 4, 0, -1])
    drawn = np.asarray(fs.attacks.label_flip("random").batch(key, batch)["y"])[::4]
    assert set(drawn) == set(range(1, 10))


def test_a_backdoor_takes_its_share_and_is_measured_without_the_targets_class():
    trigger = fs.attacks.patch(2, 5.0, at=(1, 1))
    batch = {"x": jnp.zeros((4000, 3, 3)), "y": jnp.ones(4000, jnp.int32), "mask": jnp.ones(4000)}
    poisoned = fs.attacks.backdoor(trigger, 2, share=0.3).batch(jax.random.key(1), batch)
    hit = np.asarray(poisoned["y"]) == 2
    assert abs(hit.mean() - 0.3) < 0.03
    np.testing.assert_array_equal(np.asarray(poisoned["x"])[:, 2, 2] == 5, hit)

    predicted = np.array([0, 0, 0, 1, 2, 0])  # of a model that knows the example by its number
    test = {"x": np.arange(6.0), "y": np.array([0, 0, 1, 1, 2, 2])}
    triggered = fs.attacks.backdoor_test(test, lambda x: x, target=0)
    assert (predicted[triggered["x"].astype(int)] == triggered["y"]).mean() == 0.5  # 2/3 with the class 0


def test_what_is_wrong_is_said():
    task, _ = quadratics(A, B, COPIES)
    digits = fs.data.load("digits")
    algorithm = fs.fedavg(task, optax.sgd(LR))
    labelled = fs.fedavg(fs.classification(fs.models.LogisticRegression(10), digits.train), optax.sgd(LR))
    infect, flip = fs.attacks.infect, fs.attacks.sign_flip()
    noisy = fs.aggregate.chain(
        fs.aggregate.clip_by_l2(1.0), fs.aggregate.gaussian_noise(1.0), reduce=fs.aggregate.mean("uniform")
    )
    for make, words in (
        (lambda: infect(algorithm, flip, 0.2), "num_clients="),
        (lambda: infect(algorithm, flip, 1.2, num_clients=6), "clients=1.2"),
        (lambda: infect(algorithm, flip, [1, 1]), "twice"),
        (lambda: infect(algorithm, flip, [-1]), "from 0"),
        (lambda: infect(algorithm, flip, [6], num_clients=6), "below 6"),
        (lambda: infect(algorithm, flip, list(range(6)), num_clients=6), "all clients"),
        (lambda: infect(algorithm, flip, [1], rounds=3), "slice"),
        (lambda: infect(algorithm, fs.attacks.sign_flip, [1]), "attack="),
        (lambda: infect(labelled, fs.attacks.backdoor(fs.attacks.patch(), 10), [1]), "10"),
        (lambda: infect(labelled, fs.attacks.label_flip(classes=12), [1]), "11"),
        (lambda: infect(algorithm._replace(aggregator=noisy), fs.attacks.alie(), [1]), "adds noise"),
        (lambda: fs.attacks.patch(3)(jnp.zeros((1, 2, 2))), "not within"),
        (lambda: fs.attacks.backdoor(fs.attacks.patch(), 1, share=1.5), "share=1.5"),
        (lambda: fs.attacks.backdoor_test({"x": np.zeros(2), "y": np.ones(2)}, lambda x: x, 1), "nothing to measure"),
        (lambda: fs.attacks.label_flip({10: 1}), "below 10"),
        (lambda: fs.attacks.label_flip([1, 0]), "below 10"),
        (lambda: fs.attacks.sign_flip(0.0), "scale=0.0"),
        (lambda: fs.attacks.gaussian(-1.0), "sigma=-1.0"),
        (lambda: fs.attacks.min_max("down"), "direction='down'"),
        (lambda: fs.attacks.alie(knows="some"), "knows='some'"),
        (lambda: fs.attacks.optimise(flip, fs.aggregate.median()), "no scale"),
    ):
        with pytest.raises(fs.FedSimError, match=words):
            make()


def test_a_triggered_test_set_is_made_while_a_sweep_traces():
    test = {"x": np.zeros((3, 4, 4), np.uint8), "y": np.arange(3)}

    def build(scale):
        triggered = fs.attacks.backdoor_test(test, fs.attacks.patch(2, 255), target=0)
        assert triggered["x"].dtype == np.uint8
        assert triggered["x"][:, 0, 0].tolist() == [255, 255]
        return scale

    jax.eval_shape(build, 1.0)
