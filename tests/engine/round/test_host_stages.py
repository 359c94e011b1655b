"""The host speaks in a round: before the clients train, between them and the server, and by the candidates' losses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from tests.engine import toys

DATA = toys.federation()
a = fs.aggregate


def simulation(aggregator=None, sampler=None, algorithm=None, **options) -> fs.Simulation:
    algorithm = algorithm or fs.fedavg(toys.task(), optax.sgd(0.1), aggregator=aggregator)
    sampler = sampler or fs.sampler.uniform(6)
    return fs.Simulation(algorithm, DATA, sampler, fs.Batching(3), seed=5, **toys.executed(**options))


def pads(host: a.HostRound) -> np.ndarray:
    """A secret word of each client and round."""
    words = [np.random.default_rng((host.seed, host.round, int(k))).integers(2**32) for k in host.cohort.ids]
    return np.asarray(words, np.uint32)


def stream(word, shape):
    return jax.random.bits(jax.random.wrap_key_data(jnp.stack([word, word])), shape, jnp.uint32).astype(jnp.int32)


def one_time_pad(seen=None, threshold: int = 0, late=()) -> a.Transform:
    """Clients hide 32-bit words behind a stream of their own; the host takes off those of the clients that came."""

    def before(host):
        arrives = ~np.isin(host.cohort.ids, late)
        return dataclasses.replace(host.cohort, columns={"pad": pads(host)}, arrives=arrives)

    def client(key, state, row, payload, context):
        weight = context.weight.astype(jnp.int32)
        hide = lambda leaf: weight * leaf + jnp.where(weight > 0, stream(context.columns["pad"], leaf.shape), 0)
        return jax.tree.map(hide, payload), row, {}

    def between(host, total):
        if seen is not None:
            seen.append((host, total))
        came = pads(host)[total.contributes]
        off = lambda leaf: leaf - sum((np.asarray(stream(word, leaf.shape)) for word in came), np.zeros_like(leaf))
        with np.errstate(over="ignore"):
            value = jax.tree.map(off, total.value)
        return a.HostResult(value, {"unmasked": len(came)}, refused=len(came) < threshold)

    def facts(facts):
        return facts._replace(weighted=True, max_weight=1.0, modulus=2**32)

    stage = a.HostStage(before, between, columns={"pad": np.uint32(0)})
    return a.Transform("one_time_pad", client=client, facts=facts, host=stage)


def masked(**options):
    return a.chain(a.clip_by_l2(1.0), a.quantize(16), one_time_pad(**options), reduce=a.mean("uniform"))


PLAIN = a.chain(a.clip_by_l2(1.0), a.quantize(16), a.secure_sum(max_weight=1), reduce=a.mean("uniform"))


@pytest.mark.parametrize("options", [{"lanes": 1}, {"lanes": 2, "devices": jax.devices()[:2]}, {"residency": "stream"}])
def test_masks_come_off_exactly(options):
    """Bit for bit the numbers of the sum whose masks cancel by themselves; what the host saw was hidden."""
    seen = []
    masking = simulation(masked(seen=seen), **options)
    plain = simulation(PLAIN, **options)
    state, history = masking.run(masking.init(), 3)
    expected, _ = plain.run(plain.init(), 3)
    np.testing.assert_array_equal(toys.flat(state.server), toys.flat(expected.server))
    assert [host.round for host, _ in seen] == [0, 1, 2]
    assert all(np.abs(total.value["w"]).max() > 2**24 for _, total in seen)
    assert [int(total.contributes.sum()) for _, total in seen] == history["aggregate/unmasked"].tolist()
    assert history["aggregate/unmasked"].tolist() == history["cohort/contributed"].tolist()
    assert masking.compile_count() == 1


def test_those_who_do_not_arrive_leave_no_mask():
    late = (2, 4, 6, 8)
    masking, plain = simulation(masked(late=late)), simulation(PLAIN, sampler=without(late))
    state, _ = masking.run(masking.init(), 2)
    expected, _ = plain.run(plain.init(), 2)
    np.testing.assert_array_equal(toys.flat(state.server), toys.flat(expected.server))


def without(late):
    base = fs.sampler.uniform(6)

    def sample(state, round, seed):
        cohort, state = base.sample(state, round, seed)
        return dataclasses.replace(cohort, arrives=~np.isin(cohort.ids, late)), state

    return base._replace(sample=sample)


def test_a_refused_round_is_abandoned():
    """Where fewer came than the threshold says: as if the round had not been, rows too; later rounds go on."""
    rowful = fs.scaffold(toys.task(), 0.1)
    calls = []

    def between(host, total):
        calls.append(host.round)
        return a.HostResult(total.value, refused=host.round == 1)

    nothing = a.Transform("nothing", host=a.HostStage(between=between))
    chained = lambda transform: a.chain(transform, reduce=a.mean("uniform"))
    sim = simulation(algorithm=rowful._replace(aggregator=chained(nothing)))
    first, _ = sim.step(sim.init())
    second, metrics = sim.step(first)
    assert metrics["aggregate/abandoned"] == 1
    for name, value in toys.on_device(second).items():
        np.testing.assert_array_equal(value, toys.on_device(first)[name], err_msg=name)
    assert second.round == 2
    third, metrics = sim.step(second)
    assert metrics["aggregate/abandoned"] == 0
    plain = simulation(algorithm=rowful._replace(aggregator=chained(a.Transform("plain"))))
    expected, _ = plain.step(second)
    for name, value in toys.on_device(third).items():
        np.testing.assert_allclose(value, toys.on_device(expected)[name], rtol=1e-6, atol=1e-7, err_msg=name)
    assert calls == [0, 1, 2]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda cohort: dataclasses.replace(cohort, ids=(cohort.ids + 1) % 10), "changed the cohort's ids"),
        (lambda cohort: dataclasses.replace(cohort, weight=2 * cohort.weight), "changed the cohort's weight"),
        (lambda cohort: dataclasses.replace(cohort, max_steps=np.ones(6, np.int32)), "changed the cohort's max_steps"),
        (lambda cohort: dataclasses.replace(cohort, arrives=np.ones(6, bool)), "changed the cohort's arrives"),
        (lambda cohort: fs.sampler.cohort(cohort.ids[:5], 5), "changed the cohort's ids, valid, weight"),
        (lambda cohort: None, "returned None: must be a cohort"),
    ],
)
def test_who_takes_part_is_not_the_hosts_to_say(change, words):
    """Noise is accounted for those that the sampler drew, with the weights that were checked."""
    stage = a.HostStage(before=lambda host: change(host.cohort))
    parts = (a.clip_by_l2(1.0), a.gaussian_noise(1.0), a.Transform("staged", host=stage))
    noisy = a.chain(*parts, reduce=a.mean("uniform"))
    late = without((0, 1, 2, 3, 4, 5, 6))
    sim = simulation(noisy, sampler=late._replace(event=fs.sampler.uniform(6).event))
    with pytest.raises(ArgumentError, match=words):
        sim.step(sim.init())


def test_a_sum_that_the_host_spoils_is_not_the_clients_fault():
    """In the round in which it does it; what is refused may be anything."""

    def between(host, total):
        value = jax.tree.map(lambda leaf: leaf * np.float32("nan"), total.value)
        return a.HostResult(value, refused=host.round == 0)

    sim = simulation(a.chain(a.Transform("spoils", host=a.HostStage(between=between)), reduce=a.mean("uniform")))
    state, metrics = sim.step(sim.init())
    assert metrics.abandoned
    with pytest.raises(ArgumentError, match="made a sum that is not finite, in round 1"):
        sim.step(state)


def test_both_phases_have_a_stage_of_their_own():
    seen = {0: [], 1: []}

    def watching(phase):
        def between(host, total):
            seen[phase].append(jax.tree.map(np.copy, total.value))
            return a.HostResult(total.value)

        return a.chain(a.Transform("watching", host=a.HostStage(between=between)))

    plain = toys.two_phase(toys.task())
    phases = tuple(phase._replace(aggregator=watching(i)) for i, phase in enumerate(plain.phases))
    watched, whole = simulation(algorithm=plain._replace(phases=phases)), simulation(algorithm=plain)
    state, _ = watched.run(watched.init(), 2)
    expected, _ = whole.run(whole.init(), 2)
    np.testing.assert_allclose(toys.flat(state.server), toys.flat(expected.server), rtol=1e-6, atol=1e-7)
    assert [len(each) for each in seen.values()] == [2, 2]


def test_an_interrupted_run_goes_on(tmp_path):
    sim = simulation(masked())
    sim.run(sim.init(), 2, run_dir=tmp_path / "run")
    state, _ = sim.run(sim.restore(tmp_path / "run"), 2)
    straight, _ = sim.run(sim.init(), 4)
    np.testing.assert_array_equal(toys.flat(state.server), toys.flat(straight.server))


# By the candidates' losses


def watched(sampler, seen):
    def choose(state, cohort, losses):
        seen.append((np.asarray(cohort.ids), losses))
        return sampler.choose(state, cohort, losses)

    return sampler._replace(choose=choose)


def test_a_sampler_chooses_by_losses():
    seen = []
    sim = simulation(sampler=watched(fs.sampler.power_of_choice(8, 3), seen))
    state = sim.init()
    for _ in range(3):
        losses = fs.evaluate_clients(toys.task(), state.server.params, DATA)["loss"]
        state, metrics = sim.step(state)
        candidates, told = seen[-1]
        np.testing.assert_allclose(told, losses[candidates], rtol=1e-6)
        best = candidates[np.lexsort((candidates, -np.nan_to_num(losses[candidates], nan=-np.inf)))[:3]]
        assert sorted(metrics.client_ids.tolist()) == sorted(best.tolist())
    again, _ = sim.run(sim.init(), 3)
    np.testing.assert_array_equal(toys.flat(again.server), toys.flat(state.server))


def test_the_chances_of_power_of_choice():
    """Of four clients with .4, .3, .2, .1 of the data and losses 1 to 4, two candidates, one chosen: in closed form."""
    sampler = fs.sampler.power_of_choice(2, 1, sizes=[4, 3, 2, 1])
    state, counts, rounds = sampler.init(4), np.zeros(4), 20_000
    for round in range(rounds):
        drawn, _ = sampler.sample(state, round, 0)
        assert len(set(drawn.ids.tolist())) == 2
        chosen, _ = sampler.choose(state, drawn, np.arange(1.0, 5.0)[drawn.ids])
        counts[chosen.ids[0]] += 1
    expected = np.array([0.0, 0.3714286, 0.3940476, 0.2345238])
    assert np.all(np.abs(counts / rounds - expected) < 4 * np.sqrt(expected * (1 - expected) / rounds) + 1e-12)


@pytest.mark.parametrize("largest", [1e6, 1e30])
def test_candidates_are_found_beside_one_who_has_nearly_all(largest):
    """At once, however small their chances; among themselves in proportion."""
    sampler = fs.sampler.power_of_choice(3, 1, sizes=[1, largest, 0, 1, 3])
    first = [sampler.sample(5, round, 0)[0].ids.tolist() for round in range(2000)]
    assert all(1 in ids and 2 not in ids and len(set(ids)) == 3 for ids in first)
    assert 0.6 - 0.045 < np.mean([ids[ids[0] == 1] == 4 for ids in first]) < 0.6 + 0.045


@pytest.mark.parametrize(
    "arguments, words",
    [((2, 3), "at most candidates=2"), ((0, 1), "candidates"), ((2, 1, [1, 0, 0]), "d of them above 0")],
)
def test_choices_that_cannot_be(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        fs.sampler.power_of_choice(*arguments)


# What cannot be


def test_where_the_host_cannot_speak():
    staged = simulation(masked())
    with pytest.raises(ArgumentError, match="middle of a round"):
        staged.round_function()
    with pytest.raises(ArgumentError, match="a sweep is one program"):
        fs.sweep(
            lambda lr: simulation(algorithm=fs.fedavg(toys.task(), optax.sgd(lr), aggregator=masked())),
            {"lr": [1, 2]},
            1,
        )
    with pytest.raises(ArgumentError, match="both have a host stage"):
        a.chain(*[a.Transform(name, host=a.HostStage()) for name in ("one", "two")])
    between = a.HostStage(between=lambda host, total: a.HostResult(total.value))
    with pytest.raises(ArgumentError, match="not a sum"):
        a.chain(a.Transform("staged", host=between), reduce=a.median())
    scaffold = fs.scaffold(toys.task(), 0.1)._replace(aggregator=a.chain(a.Transform("staged", host=between)))
    with pytest.raises(ArgumentError, match='rows="device"'):
        simulation(algorithm=scaffold, rows="host")
    noisy = a.chain(a.clip_by_l2(1.0), a.gaussian_noise(1.0), reduce=a.mean("uniform"))
    with pytest.raises(ArgumentError, match="draws by what it observes"):
        simulation(noisy, sampler=fs.sampler.power_of_choice(8, 3)._replace(event=fs.sampler.uniform(3).event))


@pytest.mark.parametrize(
    "said, words",
    [
        (lambda total: total.value, "must be an fs.aggregate.HostResult"),
        (lambda total: a.HostResult({"w": total.value["w"]}), "structure, shapes and dtypes must stay"),
        (lambda total: a.HostResult(jax.tree.map(np.float64, total.value)), "structure, shapes and dtypes must stay"),
    ],
)
def test_a_stage_that_returns_something_else(said, words):
    stage = a.HostStage(between=lambda host, total: said(total))
    sim = simulation(a.chain(a.Transform("staged", host=stage)))
    with pytest.raises(ArgumentError, match=words):
        sim.step(sim.init())
