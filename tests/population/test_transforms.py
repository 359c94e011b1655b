"""Transforms of samplers, fleets and the clock, against closed forms, chains run forwards, and enumeration."""

import dataclasses
import itertools
import json
import math
import pickle

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.core import rng
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.rng import Purpose
from fedjax_sim.population.stages import Moment
from fedjax_sim.population.timing import Timing, Work
from fedjax_sim.population.traces import read_intervals
from fedjax_sim.population.transformed import timed
from tests.engine import toys

p = fs.population
TEN = Work(lambda ids: np.full(len(ids), 10), batch_size=20, flops=1e6, bytes_down=5.0, bytes_up=5.0)


def drawn(sampler, rounds, seed=0, clients=1000):
    state, found = sampler.init(clients), []
    for round in rounds:
        cohort, state = sampler.sample(state, round, seed)
        found.append(cohort)
    return found


def with_clock(sampler, fleet, work=TEN):
    return timed(sampler, Timing(work, fleet))


def seconds(*times):
    return fs.fleet.measured(list(times))


def states(transform, rounds, clients, seed=0):
    """[R, K] who is there."""
    stage = transform(fs.sampler.cross_silo()).made.stages[0]
    return np.array([stage.on(np.arange(clients), Moment(r, seed, 0.0, clients)) for r in rounds])


# Who is there


def test_a_number_of_clients_stays_that_number():
    sampler = p.chain(fs.sampler.uniform(20), p.bernoulli(0.7), p.leave([9] * 1000))
    cohorts = drawn(sampler, range(40))
    for round, cohort in enumerate(cohorts):
        ids = cohort.ids[cohort.valid]
        assert len(set(ids.tolist())) == (20 if round < 9 else 0)
        assert states(p.bernoulli(0.7), [round], 1000)[0][ids].all()
    asked, on = (np.array([c.told.report[f"population/{n}"] for c in cohorts[:9]]) for n in ("asked", "available"))
    assert (on == 20).all()
    assert asked.min() >= 20
    assert asked.max() < 60
    alike = drawn(p.bernoulli(0.8)(fs.sampler.uniform(20)), range(600), clients=50)
    counts = np.bincount(np.concatenate([c.ids for c in alike]), minlength=50) / 600
    assert all(c.valid.all() for c in alike)
    assert np.abs(counts - 0.4).max() < 4.5 * (0.4 * 0.6 / 600) ** 0.5


def test_bernoulli_leaves_out_where_the_number_is_not_fixed():
    each = np.linspace(0, 1, 1000)
    cohorts = drawn(p.bernoulli(each)(fs.sampler.poisson(0.2)), range(300))
    seen = np.zeros(1000)
    for cohort in cohorts:
        seen[cohort.ids[cohort.valid]] += 1
    assert np.abs(seen / 300 - 0.2 * each).max() < 5 * (0.16 / 300) ** 0.5
    assert not seen[0]
    assert p.bernoulli(each)(fs.sampler.poisson(0.2)).expected(1000) == pytest.approx(100)


def test_markov_is_the_chain_run_forwards():
    a, b, clients, rounds = 0.1, 0.3, 4000, 60
    u = np.array([rng.uniforms(0, Purpose.AVAILABLE, r, np.arange(clients), 0) for r in range(rounds)])
    on = [u[0] < a / (a + b)]
    for r in range(1, rounds):
        on.append(np.where(u[r] < b, False, np.where(u[r] > 1 - a, True, on[-1])))
    on = np.array(on)
    assert (states(p.markov(a, b), range(rounds), clients) == on).all()
    assert on.mean() == pytest.approx(0.25, abs=0.01)
    assert on[3:][on[:-3]].mean() == pytest.approx(0.412, abs=0.01)
    assert on[3:][~on[:-3]].mean() == pytest.approx(0.196, abs=0.01)
    assert np.corrcoef(on[3:].ravel(), on[:-3].ravel())[0, 1] == pytest.approx(0.216, abs=0.01)
    runs = [len(list(g)) for k, g in itertools.groupby(on[:, :1500].T.ravel()) if k]  # of one client after another
    assert np.mean(runs) == pytest.approx(10 / 3, rel=0.15)


def test_diurnal_follows_the_day():
    day = 86_400.0
    stage = p.diurnal(0.1, 0.8, phase=np.repeat([0.0, day / 2], 50_000))(fs.sampler.cross_silo()).made.stages[0]
    ids = np.arange(100_000)
    at = lambda now: stage.on(ids, Moment(3, 0, now, 100_000)).reshape(2, -1).mean(1)
    np.testing.assert_allclose(at(0.0), [0.18, 0.02], atol=6e-3)
    np.testing.assert_allclose(at(1.5 * day), [0.02, 0.18], atol=6e-3)
    np.testing.assert_allclose(at(day / 4), [0.1, 0.1], atol=6e-3)


ONE = {"active": [1, 3, 6, 9], "inactive": [1, 4, 7, 10], "finish_time": 10, "duration": 4, "model": "x"}
BITS = [0, 1, 0, 1, 1, 0, 1, 1, 0, 1, 0]


def test_traces_answer_whatever_was_asked_before(tmp_path):
    two = {"active": [0], "inactive": [4], "finish_time": 8, "duration": 4, "model": "y"}
    (tmp_path / "a.json").write_text(json.dumps({"4": ONE, "9": two}))
    (tmp_path / "pickled").write_bytes(pickle.dumps({4: ONE, 9: two}))
    for name in ("a.json", "pickled"):
        intervals = read_intervals(tmp_path / name)
        for now in (6, *range(11), 9, 7):
            assert intervals.on(np.array([0, 1, 0]), float(now)).tolist() == [BITS[now], now % 8 <= 4, BITS[now]]
    rows = "client,start,stop\n1,1,1\n1,3,4\n0,2,5\n1,6,7\n1,9,10\n"
    (tmp_path / "a.csv").write_text(rows)
    import pyarrow.csv
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.csv.read_csv(tmp_path / "a.csv"), tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        sampler = p.trace(tmp_path / name, clients="exact")(fs.sampler.cross_silo())
        stage, bits = sampler.made.stages[0], [*BITS[:10], 1]
        for now in range(13):
            on = stage.on(np.arange(2), Moment(0, 0, float(now), 2)).tolist()
            assert on == [2 <= now <= 5, now < 11 and bits[now]]


# What becomes of them


def test_over_selection_keeps_the_fastest():
    clients = 4000
    law = -np.log1p(-(np.random.default_rng(0).permutation(clients) + 0.5) / clients)
    run = lambda sampler, times: drawn(with_clock(sampler, seconds(*times)), range(1200), clients=clients)
    report = lambda sampler: np.array([c.told.report["clock/round_time"] for c in run(sampler, law)])
    assert report(p.over_select(1.3)(fs.sampler.uniform(10))).mean() == pytest.approx(1.3468004, rel=0.03)
    assert report(fs.sampler.uniform(10)).mean() == pytest.approx(2.9289683, rel=0.04)
    slow = np.random.default_rng(1).random(clients) < 0.5
    cohorts = run(p.over_select(1.3)(fs.sampler.uniform(10)), np.where(slow, 3.0, 1.0) * law)
    ids = np.concatenate([c.ids[c.arrives] for c in cohorts])
    assert len(ids) == 12_000
    assert slow[ids].mean() == pytest.approx(0.403, abs=0.02)


def everybody(*transforms, times=(1, 3, 4, 4.5, 9), seed=0):
    sampler = with_clock(p.chain(fs.sampler.cross_silo(), *transforms), seconds(*times), TEN._replace(bytes_up=0.0))
    return sampler.sample(sampler.init(len(times)), 0, seed)[0]


def test_deadlines():
    late = everybody(p.deadline(4.0))
    assert late.arrives.tolist() == [True, True, True, False, False]
    assert (late.told.report["clock/round_time"], late.told.report["population/late"]) == (4, 2)
    assert late.told.report["clock/waste"] == pytest.approx(8 / 16)
    kept = everybody(p.deadline(4.0, partial="keep"))
    assert kept.max_steps.tolist() == [10, 10, 10, 8, 4]
    assert kept.told.report["population/trained"] == 5
    assert not everybody(p.deadline(4.0, min_cohort=4)).arrives.any()
    abandoned = everybody(p.deadline(4.0, min_cohort=4)).told.report
    assert (abandoned["population/abandoned"], abandoned["clock/time"], abandoned["clock/waste"]) == (1, 4, 1)
    assert everybody(p.deadline(4.0, min_cohort=3)).arrives.sum() == 3
    nobody = everybody(p.deadline(0.5))
    assert not nobody.arrives.any()
    assert nobody.told.report["clock/round_time"] == 0.5
    assert everybody(p.deadline(4.0, partial="keep"), p.partial_work((0.5, 0.5))).max_steps.tolist() == [5, 5, 5, 5, 4]


@pytest.mark.parametrize("when, mean", [("before", 0.0), ("after", 4.0), ("uniform", 2.0)])
def test_dropouts_spend_what_they_did(when, mean):
    cohort = everybody(p.dropout(0.3, when=when), times=[4.0] * 5000)
    lost = ~cohort.arrives
    assert lost.mean() == pytest.approx(0.3, abs=0.03)
    report = cohort.told.report
    assert report["population/dropped"] == lost.sum()
    wasted = report["clock/waste"] * (4 * (~lost).sum()) / (1 - report["clock/waste"])
    assert wasted / lost.sum() == pytest.approx(mean, abs=0.15)
    assert report["clock/bytes_down"] == 5 * 5000
    assert np.isnan(cohort.told.clients["clock/seconds"][lost]).all()


def test_an_empty_round_takes_its_time():
    cohort = everybody(p.bernoulli(0.0))
    report = cohort.told.report
    assert (report["population/selected"], report["clock/round_time"], report["clock/waste"]) == (0, 60, 0)
    asked = drawn(with_clock(p.bernoulli(0.0)(fs.sampler.uniform(3)), fs.fleet.uniform(slow(1.0))), [0], clients=10**7)
    assert asked[0].told.report["population/asked"] == 3000  # and no more


# Fleets


def slow(step, **more):
    return fs.fleet.Device(seconds_per_step=step, **more)


def numbers(fleet, ids, round=0, seed=0, steps=10, work=TEN):
    return Timing(work, fleet).seconds(np.asarray(ids), np.full(len(ids), steps), round, seed)


def test_time_and_energy_by_hand(tmp_path):
    path = tmp_path / "devices.json"
    path.write_text(json.dumps({"1": {"computation": 50.0, "communication": 2.5}}))
    took, _ = numbers(fs.fleet.trace(path, bandwidth_unit="B/s"), [0, 7])
    assert took.compute.tolist() == [30, 30]  # 3 x 20 examples x 10 steps x 50 ms
    assert (took.down + took.up).tolist() == [4, 4]  # (5 + 5) / 2.5
    device = fs.fleet.Device(flops=1e7 / 3, down=2.5, up=2.5, watts=2.1, radio_watts=0.8)
    sampler = with_clock(fs.sampler.cross_silo(), fs.fleet.uniform(device))
    report = sampler.sample(sampler.init(1), 0, 0)[0].told.report
    assert report["clock/energy_j"] == pytest.approx(9.5)  # 3 s at 2.1 W, and 4 s at 0.8 W
    assert report["clock/time"] == pytest.approx(7)
    took, _ = numbers(fs.fleet.uniform(dataclasses.replace(device, latency=0.25)), [3], work=TEN._replace(flops=2e6))
    assert (took.down[0], took.compute[0], took.up[0]) == pytest.approx((2.25, 6, 2.25))


def test_fleets_are_drawn_from_seed_and_client():
    ids = np.arange(20_000)
    fleet = fs.fleet.lognormal(0.6, slow(0.1), bandwidth_sigma=0.2)
    took, _ = numbers(fleet, ids)
    logs = np.log(took.compute)
    assert np.median(took.compute) == pytest.approx(1.0, rel=0.03)
    assert logs.std() == pytest.approx(0.6, rel=0.03)
    np.testing.assert_array_equal(numbers(fleet, ids[::-7], round=5)[0].compute, took.compute[::-7])
    assert abs(np.corrcoef(numbers(fleet, ids, seed=1)[0].compute, took.compute)[0, 1]) < 0.03
    anew = fs.fleet.lognormal(0.6, slow(0.1), by="round")
    assert abs(np.corrcoef(numbers(anew, ids, 1)[0].compute, numbers(anew, ids, 2)[0].compute)[0, 1]) < 0.03
    tiers = fs.fleet.tiers({"phone": slow(0.4), "laptop": slow(0.1)}, [3, 1])
    assert (numbers(tiers, ids)[1].kind == 0).mean() == pytest.approx(0.75, abs=0.015)
    report = drawn(with_clock(fs.sampler.uniform(400), tiers), [0], clients=20_000)[0].told.report
    assert report["population/share_phone"] + report["population/share_laptop"] == 1
    assert report["population/share_phone"] == pytest.approx(0.75, abs=0.1)


# In a simulation

FLEET = fs.fleet.lognormal(0.6, fs.fleet.Device(flops=1e3, down=1e2, up=1e2, watts=2.0))


def simulate(sampler, fleet=FLEET, **options):
    make = options.pop("algorithm", toys.fedavg)
    batching = fs.Batching(3)
    return fs.Simulation(
        make(toys.task()), toys.federation(), sampler, batching, fleet=fleet, **toys.executed(**options)
    )


def test_a_clock_changes_no_bit(tmp_path):
    plain, clocked = (simulate(fs.sampler.uniform(5), fleet) for fleet in (None, FLEET))
    (a, _), (b, history) = (sim.run(sim.init(), 3) for sim in (plain, clocked))
    jax.tree.map(np.testing.assert_array_equal, a.server, b.server)
    work = clocked.sampler.made.timing.work
    assert (work.bytes_down, work.bytes_up) == (32, 32)  # 8 numbers
    assert 36 <= work.flops <= 600  # the forward pass takes 36
    round = history.rounds[0]
    steps = -(-np.array(toys.SIZES)[round.client_ids] // 3)
    expected, _ = clocked.sampler.made.timing.seconds(round.client_ids, steps, 0, 0)
    np.testing.assert_allclose(round.clients("clock/seconds"), sum(expected))
    np.testing.assert_allclose(np.cumsum(history["clock/round_time"]), history["clock/time"])
    assert history["clock/bytes_up"].tolist() == [160, 320, 480]
    worst = history["client/loss"].max()
    assert history.time_to("client/loss", worst) == history["clock/time"][0]
    assert history.time_to("client/loss", -1.0) == math.inf
    with pytest.raises(ArgumentError, match="have no clock"):
        plain.run(plain.init(), 1)[1].time_to("client/loss", 1.0)


FULL = (
    p.markov(0.3, 0.2),
    p.over_select(1.4),
    p.deadline(8.0, partial="keep"),
    p.dropout(0.2),
    p.partial_work((0.4, 1)),
)


def test_a_whole_chain_resumes_to_the_bit_and_trains_those_who_arrive(tmp_path):
    sim = simulate(p.chain(fs.sampler.uniform(5), *FULL), algorithm=toys.ALGORITHMS["scaffold"])
    straight, history = sim.run(sim.init(), 6)
    paused, _ = sim.run(sim.init(), 3)
    sim.save(tmp_path, paused)
    resumed, rest = sim.run(sim.restore(tmp_path), 3)
    jax.tree.map(np.testing.assert_array_equal, resumed.server, straight.server)
    jax.tree.map(np.testing.assert_array_equal, resumed.rows, straight.rows)
    jax.tree.map(np.testing.assert_array_equal, resumed.sampler, straight.sampler)
    for name in ("clock/time", "clock/energy_j", "population/late", "population/dropped"):
        np.testing.assert_array_equal(rest[name], history[name][3:])
    assert history["population/dropped"].any()
    assert history["population/late"].any()
    for round in history.rounds:
        trained = ~np.isnan(round.clients("client/loss"))
        arrives = round.cohort.arrives[round.cohort.valid] & (np.array(toys.SIZES)[round.client_ids] > 0)
        np.testing.assert_array_equal(trained, arrives)
    assert sim.compile_count() == 1
    other = simulate(p.chain(fs.sampler.uniform(5), *FULL[:-1]), algorithm=toys.ALGORITHMS["scaffold"])
    with pytest.raises(fs.RunFolderError, match="sampler"):
        other.restore(tmp_path)


def test_those_who_are_lost_are_as_if_they_had_not_been_drawn():
    losing = simulate(p.dropout(0.4)(fs.sampler.uniform(6)), None)
    state, history = losing.run(losing.init(), 3)
    came = [[int(k) for k in m.cohort.ids[m.cohort.arrives]] for m in history.rounds]
    assert sum(map(len, came)) < 18
    alone = simulate(fs.sampler.fixed(came), None)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        alone.run(alone.init(), 3)[0].server,
        state.server,
    )


def test_choosing_by_losses_goes_on_among_those_that_are_there():
    sim = simulate(p.chain(fs.sampler.power_of_choice(8, 3), p.bernoulli(0.6), p.deadline(9.0)))
    _, history = sim.run(sim.init(), 3)
    for m in history.rounds:
        on = states(p.bernoulli(0.6), [m.round], toys.NUM_CLIENTS)[0]
        assert on[m.client_ids].all()
        assert len(m.client_ids) <= 3
    assert (np.diff(history["clock/time"]) > 0).all()


# What is accounted


def kind(sampler, clients=1000):
    return None if sampler.event is None else sampler.event(clients)


def test_events_stay_bounds():
    uniform, poisson, apart = fs.sampler.uniform(20), fs.sampler.poisson(0.1), fs.sampler.min_separation(5, 3)
    half, each = p.bernoulli(0.5), p.bernoulli([0.5] * 1000)
    assert kind(half(poisson)) == fs.sampler.poisson(0.05).event(1000)
    assert kind(p.bernoulli(0.2)(half(poisson))).probability == pytest.approx(0.01)
    assert kind(half(uniform)) == kind(uniform)
    for lawful in (uniform, poisson, apart):
        assert kind(p.dropout(0.3)(lawful)) == kind(lawful)
        assert kind(p.partial_work((0.1, 1))(lawful)) == kind(lawful)
        for lost in (p.deadline(1.0), p.diurnal(0.1, 0.5), p.chain):
            assert kind(lost(lawful)) == (kind(lawful) if lost is p.chain else None)
    for partly in (each, p.markov(0.1, 0.2), p.join([0] * 1000), p.leave([9] * 1000), p.dropout([0.1] * 1000)):
        assert kind(partly(uniform)) is None
        assert kind(partly(poisson)) is None
        assert kind(partly(apart)) == kind(apart)
    assert kind(p.over_select(1.3)(uniform)) is None
    assert kind(p.dropout(0.1)(fs.sampler.coins(0.5))) is None
    assert kind(with_clock(uniform, FLEET)) == kind(uniform)


def test_noise_refuses_what_has_no_event():
    noisy = fs.aggregate.chain(
        fs.aggregate.clip_by_l2(1.0), fs.aggregate.gaussian_noise(1.0), reduce=fs.aggregate.mean("uniform")
    )
    make = lambda task: fs.fedavg(task, optax.sgd(0.1), aggregator=noisy)
    with pytest.raises(ArgumentError, match=r"uniform\(5\) \| deadline\(9.0\) has no accounting event"):
        simulate(p.deadline(9.0)(fs.sampler.uniform(5)), algorithm=make)
    half = simulate(p.chain(fs.sampler.poisson(0.4), p.bernoulli(0.5), p.dropout(0.1)), algorithm=make)
    plain = simulate(fs.sampler.poisson(0.2), algorithm=make)
    assert half.epsilon(rounds=5).epsilon == pytest.approx(plain.epsilon(rounds=5).epsilon)


# Bad input


def trace_of(tmp_path, table, name="bad.json", **options):
    (tmp_path / name).write_text(table if isinstance(table, str) else json.dumps(table))
    return p.trace(tmp_path / name, **options)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: p.bernoulli(1.2), r"chance=1.2: must lie in \[0, 1\]"),
        (lambda: p.bernoulli([0.5, np.nan]), "chance="),
        (lambda: p.bernoulli([0.5, 0.5])(fs.sampler.uniform(2)).init(3), "chance has 2 entries, and the population 3"),
        (lambda: p.markov(0.6, 0.5), "on_rate"),
        (lambda: p.markov(0.0, 0.5), "on_rate=0.0"),
        (lambda: p.diurnal(0.6, 0.8), "amplitude=0.8: the chance would reach 1.08"),
        (lambda: p.over_select(0.9), "factor=0.9"),
        (lambda: p.over_select(1.5)(fs.sampler.uniform(4)).init(5), "over_select=6: .* population has 5"),
        (lambda: p.over_select(1.5, keep=7)(fs.sampler.uniform(4)).init(50), "keep=7: only 6"),
        (lambda: p.over_select(1.5)(fs.sampler.poisson(0.1)), "does not draw a fixed number"),
        (lambda: p.deadline(0.0), "seconds=0.0"),
        (lambda: p.deadline(-1.0), "seconds=-1.0"),
        (lambda: p.deadline(1.0, partial="half"), "partial='half'"),
        (lambda: p.deadline(1.0, min_cohort=5)(fs.sampler.uniform(4)).init(50), "min_cohort=5: only 4"),
        (lambda: p.dropout(-0.1), "chance=-0.1"),
        (lambda: p.dropout(0.1, when="never"), "when='never'"),
        (lambda: p.partial_work((0.5, 1.5)), "shares"),
        (lambda: p.join([0, -1]), "rounds"),
        (lambda: p.chain(fs.sampler.uniform(2), 0.7), r"transforms\[0\]=0.7"),
        (lambda: simulate(p.deadline(3.0)(fs.sampler.uniform(2)), None), "deadline.3.0. reads a clock"),
        (lambda: simulate(fs.sampler.importance(np.ones(12), 2)), "may draw a client twice"),
        (lambda: simulate(fs.sampler.uniform(2), fleet=3), "fleet=3"),
        (lambda: fs.fleet.Device(flops=0.0), "flops=0.0"),
        (lambda: fs.fleet.Device(flops=math.nan), "flops=nan"),
        (lambda: fs.fleet.Device(flops=1.0, up=-1.0), "up=-1.0"),
        (lambda: fs.fleet.Device(flops=1.0, down=math.nan), "down=nan"),
        (lambda: fs.fleet.Device(up=1.0), "flops=, operations a second, or seconds_per_step"),
        (lambda: fs.fleet.measured([1.0, 0.0]), "seconds="),
        (lambda: simulate(fs.sampler.uniform(2), seconds(1, 2)), "seconds has 2 entries, and the population 12"),
        (lambda: fs.fleet.tiers({"a": slow(1.0)}, [-1.0]), "shares"),
        (lambda: fs.fleet.lognormal(-1.0, slow(1.0)), "sigma=-1.0"),
        (lambda: fs.fleet.uniform(slow(1.0), flips=2), "options"),
        (lambda: fs.fleet.trace("nowhere.json", bandwidth_unit="furlongs"), "bandwidth_unit='furlongs'"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_bad_traces(tmp_path, capsys):
    bad = {
        "ends before it begins": {**ONE, "inactive": [1, 2, 7, 10]},
        "4 times active and 3 inactive": {**ONE, "inactive": [1, 4, 7]},
        "overlapping": {**ONE, "active": [1, 3, 3.5, 9]},
        "goes beyond the end, 10": {**ONE, "inactive": [1, 4, 7, 11]},
        "begins before 0": {**ONE, "active": [-1, 3, 6, 9]},
        "finish_time=0": {**ONE, "finish_time": 0},
        "needs active": {"active": [1]},
    }
    for message, table in bad.items():
        with pytest.raises(ArgumentError, match=f"client 'c'.*{message}"):
            trace_of(tmp_path, {"c": table})
    with pytest.raises(ArgumentError, match="holds no clients"):
        trace_of(tmp_path, {})
    with pytest.raises(ArgumentError, match="no client is ever there"):
        trace_of(tmp_path, {"0": {"active": [], "inactive": [], "finish_time": 3}})
    with pytest.raises(ArgumentError, match="is empty"):
        trace_of(tmp_path, "client,start,stop\n", "bad.csv")
    with pytest.raises(ArgumentError, match="has columns"):
        trace_of(tmp_path, "who,start,stop\n", "bad.csv")
    with pytest.raises(ArgumentError, match="client '1': interval 1, 2 to 5, begins before the one before"):
        trace_of(tmp_path, "client,start,stop\n1,0,3\n1,2,5\n", "bad.csv")
    exact = trace_of(tmp_path, {"0": ONE, "7": ONE}, clients="exact")
    with pytest.raises(
        ArgumentError, match=r"2 clients, and the population 3: without data are \['7'\], .*\['1', '2'\]"
    ):
        exact(fs.sampler.uniform(2)).init(3)
    with pytest.raises(ArgumentError, match="cannot be read"):
        trace_of(tmp_path, "{")
    (tmp_path / "evil").write_bytes(pickle.dumps({"0": Evil()}))
    with pytest.raises(ArgumentError, match="asks for builtins"):
        p.trace(tmp_path / "evil")
    assert "run" not in capsys.readouterr().out
    (tmp_path / "device.json").write_text(json.dumps({"1": {"computation": 50.0, "communication": 0}}))
    with pytest.raises(ArgumentError, match="must be positive"):
        fs.fleet.trace(tmp_path / "device.json", bandwidth_unit="B/s")


def test_lengths_that_messages_decide():
    coded = fs.aggregate.chain(fs.aggregate.qsgd(4), reduce=fs.aggregate.mean())
    make = lambda task: fs.fedavg(task, optax.sgd(0.1), aggregator=coded)
    with pytest.raises(ArgumentError, match=r"as long as what it says.*bytes_up="):
        simulate(fs.sampler.uniform(2), algorithm=make)
    given = fs.fleet.uniform(slow(1.0), bytes_up=7.0)
    assert simulate(fs.sampler.uniform(2), given, algorithm=make).sampler.made.timing.work.bytes_up == 7
    short = fs.aggregate.chain(fs.aggregate.clip_by_l2(1.0), fs.aggregate.quantize(8), reduce=fs.aggregate.mean())
    half = simulate(fs.sampler.uniform(2), algorithm=lambda task: fs.fedavg(task, optax.sgd(0.1), aggregator=short))
    assert 8 <= half.sampler.made.timing.work.bytes_up <= 16
