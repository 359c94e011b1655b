"""Old server states: clients of asynchronous rounds start from the model that they were handed, as in a NumPy twin."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.types import Cohort
from tests.engine import toys

CONCURRENCY, BUFFER, STALEST = 5, 2, 6
CLIENTS = [k for k, size in enumerate(toys.SIZES) if size]
ROUNDS = 9
LR = 0.1


def delay(client):
    return 1.0 + 0.7 * (client % 5)


def asynchronous(versions=STALEST, first=CLIENTS):
    """A toy: so many clients are at work at a time; a round takes those that come first, and hands out as many."""

    def init(num_clients):
        of = np.array(first[:CONCURRENCY])
        return {"client": of, "version": 0 * of, "due": np.array([delay(k) for k in of]), "next": np.int64(CONCURRENCY)}

    def sample(state, round, seed):
        order = np.lexsort((np.arange(CONCURRENCY), state["due"]))
        done, rest = order[:BUFFER], np.sort(order[BUFFER:])
        ids, version = state["client"][done].astype(np.int32), state["version"][done].astype(np.int32)
        now = state["due"][done].max()
        handed = np.array([first[(int(state["next"]) + i) % len(first)] for i in range(BUFFER)])
        due = now + np.array([delay(k) for k in handed])
        after = {
            "client": np.append(state["client"][rest], handed),
            "version": np.append(state["version"][rest], np.full(BUFFER, round + 1)),
            "due": np.append(state["due"][rest], due),
            "next": state["next"] + BUFFER,
        }
        return Cohort(ids, np.ones(BUFFER, bool), np.ones(BUFFER, np.float32), version=version), after

    return fs.sampler.Sampler(
        init,
        sample,
        lambda num_clients: BUFFER,
        lambda num_clients: float(BUFFER),
        name="asynchronous",
        versions=versions,
        repeats=True,
    )


def twin(rounds, params):
    """Event by event: models are kept by version, and each arrival's delta is against the model that it was handed."""
    data = toys.federation()
    models = [jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)]
    flying = [(delay(k), i, k, 0) for i, k in enumerate(CLIENTS[:CONCURRENCY])]  # due, ticket, client, version
    tickets, staleness = CONCURRENCY, []
    while len(models) <= rounds:
        flying.sort()
        arrived, flying = flying[:BUFFER], flying[BUFFER:]
        deltas = []
        for _, _, k, version in arrived:
            x, y = (np.asarray(data.arrays[n][data.offsets[k] : data.offsets[k + 1]], np.float64) for n in ("x", "y"))
            start = models[version]
            w, b = start["w"], start["b"]
            for _ in range(2):  # full batches: the mean over examples of the mean over outputs
                error = (x @ w + b - y) / len(x)
                w, b = w - LR * x.T @ error, b - LR * error.sum(0)
            deltas.append((len(x), w - start["w"], b - start["b"]))
            staleness.append(len(models) - 1 - version)
        total = sum(n for n, _, _ in deltas)
        new = [sum(n * d[i] for n, *d in deltas) / total for i in (0, 1)]
        models.append({"w": models[-1]["w"] + new[0], "b": models[-1]["b"] + new[1]})
        now = arrived[-1][0]
        for _ in arrived:
            k = CLIENTS[tickets % len(CLIENTS)]
            flying.append((now + delay(k), tickets, k, len(models) - 1))
            tickets += 1
    return models, staleness


def simulation(algorithm=None, draw=None, **options):
    algorithm = fs.fedavg(toys.task(), optax.sgd(LR)) if algorithm is None else algorithm
    draw = asynchronous() if draw is None else draw
    batching = fs.Batching(max(toys.SIZES), epochs=2)
    given = {"lanes": 2, "devices": jax.devices()[:1], **options}
    return fs.Simulation(algorithm, toys.federation(), draw, batching, seed=4, **toys.executed(**given))


def close(a, b, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), a, b)


WAYS = {
    "lanes, in place": {"on_nonfinite": "drop", "rounds_per_dispatch": 4},
    "devices, one lane each": {"lanes": 1, "devices": jax.devices()[:2], "rounds_per_dispatch": 2},
    "debug": {"debug": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_equals_the_twin(way):
    sim = simulation(**WAYS[way])
    first = sim.init()
    rounds = 5 if way == "debug" else ROUNDS
    models, staleness = twin(rounds, jax.device_get(first.server.params))
    assert max(staleness) >= (2 if way == "debug" else 3)
    assert min(staleness) == 0
    state, history = sim.run(first, rounds)
    close(state.server.params, models[-1])
    seen = [metrics.round - v for metrics in history.rounds for v in metrics.cohort.version]
    assert sorted(seen) == sorted(staleness)
    assert sim.compile_count() == 1
    fresh, _ = sim.step(first)  # the state that was given stays usable
    close(fresh.server.params, models[1])


def test_only_what_clients_read_is_kept():
    sim = simulation(fs.fedavg(toys.task(), optax.sgd(LR), server_optimizer=fs.server.fedadam(0.1)))
    (ring,) = sim.init().versions
    assert sorted(leaf.shape for leaf in ring) == [(STALEST, 2), (STALEST, 3, 2)]
    assert simulation(draw=fs.sampler.uniform(2)).init().versions is None


def test_fedbuff_by_hand():
    """Nguyen et al. 2022, Algorithm 1: concurrency 3, buffer 2, durations 2, 3, 5; a client's delta is (c - x) / 2."""

    def client(key, server, row, batches):
        stale = (batches.info["round"] - batches.info["version"]).astype(jnp.float32)
        delta = (batches.client_id.astype(jnp.float32) - server) / 2
        return fs.ClientUpdate(delta / jnp.sqrt(1 + stale))

    task = fs.Task(lambda key: jnp.float32(10.0), lambda w, batch, key: batch["x"] * w)
    add = lambda key, server, aggregate: server + aggregate.value
    algorithm = fs.Algorithm(task, lambda w: (w, None), client, add, fs.aggregate.mean("uniform"))
    data = fs.data.FederatedData({"x": jnp.zeros(16)}, offsets=range(17))
    events = by_events(durations=(2, 3, 5), concurrency=3, buffer=2, rounds=5)

    def sample(state, round, seed):
        ids, version = events[round]
        return Cohort(
            np.array(ids, np.int32), np.ones(2, bool), np.ones(2, np.float32), version=np.array(version)
        ), state

    draw = fs.sampler.fixed([[0, 1]])._replace(sample=sample, versions=4)
    sim = fs.Simulation(algorithm, data, draw, fs.Batching(1))
    state, found = sim.init(), []
    for _ in range(5):
        state, _ = sim.step(state)
        found.append(float(state.server))
    np.testing.assert_allclose(found, [5.25, 2.5983496, 3.2277913, 3.9698161, 6.0709774], rtol=1e-6)


def by_events(durations, concurrency, buffer, rounds):
    """Who arrives for each server update, and the version that each was handed; clients are numbered as they leave."""
    flying = [(float(durations[c % len(durations)]), c, 0) for c in range(concurrency)]
    left, version, buffered, found = concurrency, 0, [], []
    while len(found) < rounds:
        now = min(due for due, _, _ in flying)
        arrived = sorted(each for each in flying if each[0] == now)
        flying = [each for each in flying if each[0] != now]
        for _, c, v in arrived:  # all of an instant arrive before any leaves
            buffered.append((c, v))
            if len(buffered) == buffer:
                found.append(tuple(zip(*buffered, strict=True)))
                buffered, version = [], version + 1
        for _ in arrived:
            flying.append((now + durations[left % len(durations)], left, version))
            left += 1
    return found


def test_resumes_to_the_bit(tmp_path):
    sim = simulation(rounds_per_dispatch=2, on_nonfinite="drop")
    straight, history = sim.run(sim.init(), 8)
    paused, _ = sim.run(sim.init(), 4, run_dir=tmp_path / "run")
    again = simulation(rounds_per_dispatch=2, on_nonfinite="drop")
    restored = again.restore(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, restored.versions, paused.versions)
    resumed, later = again.run(restored, 4)
    jax.tree.map(np.testing.assert_array_equal, resumed.server, straight.server)
    jax.tree.map(np.testing.assert_array_equal, resumed.versions, straight.versions)
    np.testing.assert_array_equal(later["client/loss"], history["client/loss"][4:])

    other = simulation(draw=fs.sampler.uniform(BUFFER)).restore(tmp_path / "run", allow={"sampler"})
    assert other.versions is None
    simulation(draw=fs.sampler.uniform(BUFFER)).save(tmp_path / "plain", other)
    anew = again.restore(tmp_path / "plain", allow={"sampler"})
    for states in anew.versions[0]:
        np.testing.assert_array_equal(states, np.broadcast_to(states[0], states.shape))
    again.step(anew)


def test_as_a_pure_function_and_in_sweeps():
    sim = simulation()
    straight, _ = sim.run(sim.init(), 5)
    plans, arrays = sim.round_plan(sim.init(), rounds=5)
    f = sim.round_function(static=True)
    pure, _ = jax.lax.scan(lambda state, plan: f(state, plan, arrays), sim.pure_state(sim.init()), plans)
    close(pure.server.params, straight.server.params)
    close(pure.versions, straight.versions)
    build = lambda lr: simulation(fs.fedavg(toys.task(), optax.sgd(lr)))
    swept = fs.sweep(build, {"lr": [LR, 0.02]}, rounds=5, seeds=[4], params=sim.params(sim.init()))
    close(swept.members[0][0].params, straight.server.params)


@pytest.mark.parametrize("rows", ["device", "host"])
def test_each_phase_has_its_own_and_rows_are_the_rounds(rows):
    """The second phase of an old version's client sees what the second phase of that round saw."""

    def first(key, server, row, batches):
        metrics = {"a": fs.metrics.Sum(server["a"]), "seen": fs.metrics.Sum(row)}
        return fs.ClientUpdate(jnp.ones(()), metrics=metrics, state=row + 1)

    def second(key, server, row, batches):
        return fs.ClientUpdate(jnp.ones(()), metrics={"b": fs.metrics.Sum(server["b"] + 0 * server["a"])})

    def server_of(name, by):
        return lambda key, server, aggregate: {**server, name: server[name] + by * aggregate.count}

    algorithm = fs.Algorithm(
        toys.task(),
        init=lambda params: ({"a": jnp.zeros(()), "b": jnp.zeros(()), "params": params}, np.zeros((), np.float32)),
        params=lambda server: server["params"],
        phases=(fs.Phase(first, server_of("b", 1.0)), fs.Phase(second, server_of("a", 1.0))),
    )
    sim = simulation(algorithm, rows=rows, devices=jax.devices()[:2], lanes=1)
    _, history = sim.run(sim.init(), 6)
    for metrics in history.rounds:
        version = metrics.cohort.version
        np.testing.assert_array_equal(metrics.clients("client/a"), BUFFER * version)
        np.testing.assert_array_equal(metrics.clients("client/b"), BUFFER * (version + 1))


@pytest.mark.parametrize("versions, message", [(2, r"asynchronous: client \d+ starts from version 0 in round 3")])
def test_a_version_that_is_not_kept(versions, message):
    sim = simulation(draw=asynchronous(versions))
    with pytest.raises(ArgumentError, match=message):
        sim.run(sim.init(), ROUNDS)


def test_a_version_that_is_still_to_come():
    def sample(state, round, seed):
        cohort, state = asynchronous().sample(state, round, seed)
        return dataclasses.replace(cohort, version=cohort.version + round + 1), state

    sim = simulation(draw=asynchronous()._replace(sample=sample))
    with pytest.raises(ArgumentError, match=r"starts from version 1 in round 0, and .* rounds 0 to 0 are kept"):
        sim.step(sim.init())
    with pytest.raises(ArgumentError, match=r"sampler.versions=-1"):
        simulation(draw=asynchronous(versions=-1))


def test_without_a_version_clients_have_the_rounds_own():
    def sample(state, round, seed):
        cohort, state = asynchronous().sample(state, round, seed)
        return dataclasses.replace(cohort, version=None), state

    kept, plain = (asynchronous()._replace(sample=sample, versions=versions) for versions in (3, 0))
    a, b = (sim.run(sim.init(), 4)[0].server for sim in (simulation(draw=kept), simulation(draw=plain)))
    close(a, b)
