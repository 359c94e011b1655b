"""Asynchronous rounds and importance sampling, against an event loop, plain NumPy and enumeration."""

import dataclasses
import importlib
import itertools
import json

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.population.timing import Timing, Work
from fedjax_sim.population.transformed import timed
from tests.engine import toys

K = 60


def cohorts(sampler, rounds, seed=0, clients=K):
    state, found = sampler.init(clients), []
    for round in range(rounds):
        cohort, state = sampler.sample(state, round, seed)
        found.append((cohort, state))
    return found


def by_events(handed, durations, concurrency, buffer, rounds, max_staleness=None):
    """Clients in the order of handing out, to those that arrive for each update, the versions, times, and drops."""
    free = iter(handed)
    flying = [(durations[c], i, c, 0) for i, c in enumerate(itertools.islice(free, concurrency))]
    tickets, version, buffered, found, dropped = concurrency, 0, [], [], 0
    while len(found) < rounds:
        now = min(flying)[0]
        arrived = sorted(each for each in flying if each[0] == now)
        flying = [each for each in flying if each[0] != now]
        for _, _, c, v in arrived:
            if max_staleness is not None and version - v > max_staleness:
                dropped += 1
                continue
            buffered.append((c, v))
            if len(buffered) == buffer:
                found.append((buffered, now, dropped))
                buffered, version = [], version + 1
        for _ in arrived:
            c = next(free)
            flying.append((now + durations[c], tickets, c, version))
            tickets += 1
    return found[:rounds]


@pytest.mark.parametrize("max_staleness", [None, 3])
@pytest.mark.parametrize("concurrency, buffer", [(7, 2), (5, 5), (1, 1), (9, 1)])
def test_equals_an_event_loop(concurrency, buffer, max_staleness):
    durations = np.random.default_rng(1).integers(1, 9, K).astype(float)
    sampler = fs.sampler.asynchronous(concurrency, buffer, max_staleness=max_staleness, durations=durations)
    rounds = 40
    found = cohorts(sampler, rounds)
    handed = order_of_draws(concurrency, buffer, max_staleness, durations, rounds)
    expected = by_events(handed, durations, concurrency, buffer, rounds, max_staleness)
    for (cohort, state), (arrived, now, dropped) in zip(found, expected, strict=True):
        assert list(zip(cohort.ids.tolist(), cohort.version.tolist(), strict=True)) == arrived
        assert state["now"] == now
        assert state["dropped"] == dropped
    stalest = max(int((round - cohort.version).max()) for round, (cohort, _) in enumerate(found))
    assert stalest <= sampler.versions
    assert max_staleness is None or stalest <= max_staleness


def order_of_draws(concurrency, buffer, max_staleness, durations, rounds):
    """Clients in the order of handing out: what the sampler drew, watched where it draws."""
    module = importlib.import_module("fedjax_sim.population.sampler.asynchronous")  # the function has its name
    drawn, draw = [], module._free_client

    def watched(*arguments):
        drawn.append(draw(*arguments))
        assert drawn[-1] not in arguments[-1]
        return drawn[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_free_client", watched)
        sampler = fs.sampler.asynchronous(concurrency, buffer, max_staleness=max_staleness, durations=durations)
        cohorts(sampler, rounds + 50)
    return drawn


def test_equal_durations():
    """Concurrency 6, buffer 2: 0, 0, 1, 1, 2, 2 again and again; buffer 6: the synchronous rounds."""
    sampler = fs.sampler.asynchronous(6, 2, durations=3.5)
    seen = [round - v for round, (cohort, _) in enumerate(cohorts(sampler, 9)) for v in cohort.version]
    assert seen == [0, 0, 1, 1, 2, 2] * 3
    for round, (cohort, _) in enumerate(cohorts(fs.sampler.asynchronous(6, 6), 9)):
        assert (cohort.version == round).all()
        assert len(set(cohort.ids.tolist())) == 6


def test_states_are_plain_and_resume():
    sampler = fs.sampler.asynchronous(5, 2, durations=np.random.default_rng(0).random(K) + 0.1)
    straight = cohorts(sampler, 12)
    state = straight[5][1]
    json.dumps({name: np.asarray(value).tolist() for name, value in state.items()})
    for round in range(6, 12):
        cohort, state = sampler.sample(state, round, 0)
        np.testing.assert_array_equal(cohort.ids, straight[round][0].ids)
    shapes = {name: (np.shape(v), np.asarray(v).dtype) for name, v in sampler.init(K).items()}
    assert all({name: (np.shape(v), np.asarray(v).dtype) for name, v in s.items()} == shapes for _, s in straight)
    assert not np.array_equal(cohorts(sampler, 3, seed=1)[2][0].ids, straight[2][0].ids)


def test_clients_are_drawn_alike_even_where_few_are_free():
    for concurrency, clients in ((2, 12), (9, 10)):
        sampler = fs.sampler.asynchronous(concurrency, 1)
        ids = [int(cohort.ids[0]) for cohort, _ in cohorts(sampler, 3000, clients=clients)]
        counts = np.bincount(ids, minlength=clients)
        assert np.abs(counts / 3000 - 1 / clients).max() < 0.02


def test_weights_of_staleness():
    tau = np.array([0, 1, 4, 5, 9])
    np.testing.assert_allclose(
        0.6 * fs.population.polynomial(0.5)(tau), [0.6, 0.4243, 0.2683, 0.2449, 0.1897], atol=5e-5
    )
    np.testing.assert_allclose(0.6 * fs.population.hinge(10, 4)(tau), [0.6, 0.6, 0.6, 0.0545, 0.0118], atol=5e-5)
    sampler = fs.sampler.asynchronous(9, 1, staleness=fs.population.hinge(2.0, 1.0))
    for round, (cohort, _) in enumerate(cohorts(sampler, 20)):
        stale = round - cohort.version
        np.testing.assert_allclose(cohort.columns["scale"], 1 / (2 * np.maximum(stale - 1, 0) + 1), rtol=1e-6)


# Trained


def train(sampler, rounds, aggregator=None, **options):
    aggregator = fs.aggregate.mean("uniform") if aggregator is None else aggregator
    algorithm = fs.fedavg(toys.task(), optax.sgd(0.1), aggregator=aggregator)
    batching = fs.Batching(max(toys.SIZES), shuffle=False)
    sim = fs.Simulation(algorithm, toys.federation(), sampler, batching, seed=2, **toys.executed(**options))
    return sim, *sim.run(sim.init(), rounds)


def gradient(params, client):
    data = toys.federation()
    x, y = (np.asarray(data.arrays[n][data.offsets[client] : data.offsets[client + 1]], np.float64) for n in "xy")
    error = (x @ params["w"] + params["b"] - y) / max(len(x), 1)
    return {"w": x.T @ error, "b": error.sum(0)}


def test_fedbuff_equals_numpy():
    durations = 1.0 + np.arange(toys.NUM_CLIENTS) % 4
    sampler = fs.sampler.asynchronous(5, 3, durations=durations, max_staleness=4)
    sim, state, history = train(sampler, 10, lanes=2, devices=jax.devices()[:2], rounds_per_dispatch=2)
    models = [jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), jax.device_get(sim.params(sim.init())))]
    stale = 0
    for round, metrics in enumerate(history.rounds):
        cohort, new = metrics.cohort, dict(models[-1])
        trained = [(k, v) for k, v in zip(cohort.ids, cohort.version, strict=True) if toys.SIZES[k]]
        for k, v in trained:
            moved = gradient(models[v], k)
            new = {n: new[n] - 0.1 * moved[n] * (1 + round - v) ** -0.5 / len(trained) for n in new}
            stale = max(stale, round - v)
        models.append(new)
    assert stale >= 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.server.params, models[-1])
    assert sim.compile_count() == 1


def test_fedasync_equals_numpy_with_a_fleets_durations(tmp_path):
    """Concurrency 5, one at a time: models of clients that a NumPy loop over events hands out and takes back."""
    fleet = fs.fleet.measured(1.0 + np.arange(toys.NUM_CLIENTS) % 4)
    sampler = fs.sampler.asynchronous(5, 1, staleness=fs.population.hinge(2.0, 2.0), max_staleness=7)
    algorithm = fs.fedasync(toys.task(), optax.sgd(0.1), mixing=0.6)
    batching = fs.Batching(max(toys.SIZES), shuffle=False)
    sim = fs.Simulation(algorithm, toys.federation(), sampler, batching, seed=2, fleet=fleet)
    state, history = sim.run(sim.init(), 10)
    models = [jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), jax.device_get(sim.params(sim.init())))]
    stale = set()
    for round, metrics in enumerate(history.rounds):
        k, v = int(metrics.cohort.ids[0]), int(metrics.cohort.version[0])
        stale.add(round - v)
        x, new = models[-1], models[-1]
        if toys.SIZES[k]:
            alpha, moved = 0.6 / (2 * max(round - v - 2, 0) + 1), gradient(models[v], k)
            new = {n: (1 - alpha) * x[n] + alpha * (models[v][n] - 0.1 * moved[n]) for n in x}
        models.append(new)
    assert max(stale) >= 4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.server.params, models[-1])
    paused, _ = sim.run(sim.init(), 4)
    sim.save(tmp_path, paused)
    resumed, rest = sim.run(sim.restore(tmp_path), 6)
    jax.tree.map(np.testing.assert_array_equal, (resumed.server, resumed.sampler), (state.server, state.sampler))
    for name in ("clock/time", "clock/bytes_up", "clock/energy_j", "population/late"):
        np.testing.assert_array_equal(rest[name], history[name][4:])


def test_a_fleets_clock_is_that_of_the_events():
    """Concurrency 3, K = 2, durations 2, 3, 5: times, bytes, energy, and the share of what was too stale."""
    durations = np.array([2.0, 3.0, 5.0])[np.arange(K) % 3]
    power = fs.fleet.Device(seconds_per_step=0.0, watts=2.0)
    work = Work(lambda ids: np.ones(len(ids)), 1, bytes_down=3.0, bytes_up=7.0, population=K)
    timing = Timing(work, fs.fleet.measured(durations, power))
    clocked = timed(fs.sampler.asynchronous(3, 2, max_staleness=1), timing)
    plain = fs.sampler.asynchronous(3, 2, max_staleness=1, durations=durations)
    done, busy, wasted = 0, 0.0, 0.0
    for (a, before), (b, _) in zip(cohorts(clocked, 30), cohorts(plain, 30), strict=True):
        np.testing.assert_array_equal((a.ids, a.version), (b.ids, b.version))
        report = a.told.report
        done += report["population/trained"] + report["population/late"]
        busy += durations[a.ids].sum()
        late = report["clock/waste"] * durations[a.ids].sum() / (1 - report["clock/waste"])
        assert (late > 0) == (report["population/late"] > 0)
        wasted += late
        assert report["clock/time"] == before["now"]
        assert report["clock/bytes_up"] == 7 * done
        assert report["clock/bytes_down"] == 3 * before["handed"]
        assert report["clock/energy_j"] == pytest.approx(2 * (busy + wasted))
    assert wasted > 0


def test_equal_speeds_and_a_full_buffer_are_fedavg():
    sampler = fs.sampler.asynchronous(4, 4)
    ids = [cohort.ids for cohort, _ in cohorts(sampler, 6, seed=2, clients=toys.NUM_CLIENTS)]
    a, b = (train(s, 6)[1].server.params for s in (sampler, fs.sampler.fixed(np.array(ids))))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), a, b)


def test_resumes_to_the_bit(tmp_path):
    durations = 1.0 + np.arange(toys.NUM_CLIENTS) % 4
    sampler = fs.sampler.asynchronous(5, 2, durations=durations)
    sim, straight, _ = train(sampler, 8)
    paused, _ = sim.run(sim.init(), 4)
    sim.save(tmp_path, paused)
    resumed, _ = sim.run(sim.restore(tmp_path), 4)
    jax.tree.map(np.testing.assert_array_equal, resumed.server, straight.server)
    jax.tree.map(np.testing.assert_array_equal, resumed.sampler, straight.sampler)


# Importance sampling


def test_importance_is_unbiased_by_enumeration():
    """The mean of 1, 2 and 3 of sizes 1, 2 and 7 is 2.6; each pair of draws with its chance."""
    n, q, u = np.array([1, 2, 7]), np.array([0.2, 0.3, 0.5]), np.array([0.0, 1.5, 2.0])
    sampler = fs.sampler.importance(q, 2, sizes=n)
    scale = {}
    for round in range(60):
        cohort, _ = sampler.sample(None, round, 0)
        scale |= dict(zip(cohort.ids.tolist(), cohort.columns["scale"].tolist(), strict=True))
    pairs = list(itertools.product(range(3), repeat=2))
    chance = np.array([q[i] * q[j] for i, j in pairs])
    estimate = np.array([(scale[i] * u[i] + scale[j] * u[j]) / 2 for i, j in pairs])
    np.testing.assert_allclose(chance @ estimate, n @ u / n.sum(), rtol=1e-6)


def test_importance_draws_by_its_chances_and_is_what_the_server_gets():
    q = np.arange(1, toys.NUM_CLIENTS + 1) / 78
    sampler = fs.sampler.importance(q, 40, sizes=toys.SIZES)
    ids = np.concatenate([sampler.sample(None, round, 0)[0].ids for round in range(300)])
    counts = np.bincount(ids, minlength=toys.NUM_CLIENTS)
    assert (np.abs(counts - 12000 * q) < 4.5 * np.sqrt(12000 * q * (1 - q))).all()

    full = [k for k, size in enumerate(toys.SIZES) if size]  # empty ones would be left out of the denominator
    chances = np.where(np.array(toys.SIZES) > 0, q, 1e-12)
    sim, state, history = train(fs.sampler.importance(chances, 5, sizes=toys.SIZES), 1, lanes=3)
    first = jax.device_get(sim.params(sim.init()))
    p, cohort = np.array(toys.SIZES) / sum(toys.SIZES), history.rounds[0].cohort
    new = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), first)
    for k in cohort.ids:
        assert k in full
        new = {n: new[n] - 0.1 * gradient(first, k)[n] * p[k] / (chances[k] / chances.sum()) / 5 for n in new}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.server.params, new)


def test_scaled_messages_of_integers_and_of_a_median():
    quantized = fs.aggregate.chain(
        fs.aggregate.clip_by_l2(9.0), fs.aggregate.quantize(16), reduce=fs.aggregate.mean("uniform")
    )
    plain, short = (train(fs.sampler.importance(np.ones(12), 5), 1, a)[1].server.params for a in (None, quantized))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), plain, short)
    alike, given = fs.sampler.importance(np.ones(12), 5), np.array([2, 0.5, 1, 3, 1], np.float32)

    def scaled(state, round, seed):
        cohort, state = alike.sample(state, round, seed)
        return dataclasses.replace(cohort, columns={"scale": given}), state

    sim, state, history = train(alike._replace(sample=scaled), 1, fs.aggregate.median())
    first, ids = jax.device_get(sim.params(sim.init())), history.rounds[0].cohort.ids
    moved = {
        n: np.median([-0.1 * s * gradient(first, k)[n] for k, s in zip(ids, given, strict=True) if toys.SIZES[k]], 0)
        for n in first
    }
    new = {n: first[n] + moved[n] for n in first}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.server.params, new)


# Bad input

SLOW = fs.fleet.Device(seconds_per_step=1.0)


def of_fleet(fleet, **options):
    work = Work(lambda ids: np.ones(len(ids)), 1, population=K)
    return timed(fs.sampler.asynchronous(3, 1, max_staleness=9, **options), Timing(work, fleet))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: fs.sampler.asynchronous(3, 4), "buffer=4: no more than concurrency=3"),
        (lambda: fs.sampler.asynchronous(0, 1), "concurrency=0"),
        (lambda: fs.sampler.asynchronous(3, 1, durations=0.0), "durations=0.0: must be a positive number"),
        (lambda: fs.sampler.asynchronous(3, 1, durations=np.array([1, np.nan])), "must be a positive number"),
        (lambda: fs.sampler.asynchronous(3, 1, max_staleness=-1), "max_staleness=-1"),
        (lambda: fs.sampler.asynchronous(30, 1, durations=[1, 9]), "max_staleness=None: .* may be 261 updates old"),
        (lambda: fs.sampler.asynchronous(61, 1).init(K), "concurrency=61: the population has 60"),
        (lambda: fs.sampler.asynchronous(3, 1, durations=np.ones(59)).init(K), r"durations=\(59,\): the population"),
        (lambda: of_fleet(fs.fleet.uniform(fs.fleet.Device(seconds_per_step=0.0))), "takes no time at all"),
        (lambda: of_fleet(fs.fleet.lognormal(1.0, SLOW, by="round")), "anew in each round"),
        (lambda: of_fleet(fs.fleet.uniform(SLOW), durations=1.0), "the fleet|a fleet, which says"),
        (lambda: fs.population.bernoulli(0.5)(fs.sampler.asynchronous(3, 1)), "goes with samplers that draw each"),
        (lambda: fs.fedasync(toys.task(), optax.sgd(0.1), mixing=1.5), "mixing=1.5"),
        (lambda: fs.population.polynomial(-1.0), "exponent=-1.0"),
        (lambda: fs.sampler.importance([0.5, 0.0], 2), "chances=.*positive"),
        (lambda: fs.sampler.importance([0.5, 0.5], 2, sizes=[1]), r"sizes=\(1,\)"),
        (lambda: fs.sampler.importance([0.5, 0.5], 0), "draws=0"),
        (lambda: fs.sampler.importance([0.5, 0.5], 2).init(3), "the population has 3"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize("sampler", [fs.sampler.asynchronous(4, 2), fs.sampler.importance(np.ones(12), 3)])
def test_refused_under_noise(sampler):
    noisy = fs.aggregate.chain(
        fs.aggregate.clip_by_l2(1.0), fs.aggregate.local_gaussian_noise(1.0), reduce=fs.aggregate.mean("uniform")
    )
    with pytest.raises(ArgumentError, match=rf"{sampler.name.split('(')[0]}.* scales clients' messages"):
        train(sampler, 1, noisy)
