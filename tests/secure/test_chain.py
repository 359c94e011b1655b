"""A secure sum by the protocol, in a chain: the plain sum's own numbers, whoever is lost."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.secure import chacha, keys
from fedjax_sim.simulation.fingerprint import compare, fingerprint
from tests.engine import toys
from tests.privacy.rounding import rounded

a, s = fs.aggregate, fs.secure
DATA = toys.federation()


def simulation(aggregator, sampler=None, algorithm=None, **options):
    algorithm = algorithm or fs.fedavg(toys.task(), optax.sgd(0.1))
    algorithm = algorithm._replace(aggregator=aggregator)
    sampler = sampler or fs.sampler.uniform(8)
    return fs.Simulation(algorithm, DATA, sampler, fs.Batching(3), seed=5, **toys.executed(**options))


def chained(protocol="simulated", weight="uniform", max_weight=1, bits=24, extra=()):
    sums = a.secure_sum(bits, max_weight=max_weight, protocol=protocol)
    return a.chain(a.clip_by_l2(1.0), *extra, sums, reduce=a.mean(weight))


def without(lost, base=None):
    """A sampler whose cohorts lack those that are lost."""
    base = base or fs.sampler.uniform(8)

    def sample(state, round, seed):
        cohort, state = base.sample(state, round, seed)
        return dataclasses.replace(cohort, arrives=~lost(round, cohort.ids)), state

    return base._replace(sample=sample)


def test_the_key_stream_of_rfc_8439():
    """2.3.2's block on the devices; and the stream that the host makes with OpenSSL, over several pieces."""
    words = lambda text: np.frombuffer(bytes.fromhex(text), "<u4")
    key = words(bytes(range(32)).hex())
    nonce = tuple(words("000000090000004a00000000").tolist())
    made = np.stack(chacha.blocks(jnp.asarray(key), jnp.array([0, 1], jnp.uint32), nonce))[:, 1]
    block = "e4e7f11015593bd11fdd0f50c47120a3c7f4d1c70368c0339aaa22044e6cd4c3466482d209aa9f0705d7c214a2028bd9"
    assert "".join(f"{word:08x}" for word in made) == block + "d19c12b5b94e16dee883d0cb4e3c50a2"
    secrets = [bytes([k]) * 32 for k in range(3)]
    of = jnp.asarray([words(secret.hex()) for secret in secrets])
    signs = jnp.array([1, 2**32 - 1, 0], jnp.uint32)
    length = 16 * chacha.PIECE + 5
    made = jax.jit(chacha.mask, static_argnums=(2, 3))(of, signs, length, 7)
    expected = keys.keystream(secrets[0], 7, length) - keys.keystream(secrets[1], 7, length)
    np.testing.assert_array_equal(made, expected)


LATE = lambda round, ids: (ids + round) % 6 == 0
EXTRA = (a.rotate(), a.quantize(12))


@pytest.fixture(scope="module")
def plain():
    """Three rounds of the simulated sum, of SCAFFOLD's two parts with weights, without those that are late."""
    chain = chained("simulated", "examples", 4, 32, EXTRA)
    sim = simulation(chain, without(LATE), fs.scaffold(toys.task(), 0.1), lanes=2)
    return sim.run(sim.init(), 3)[0]


@pytest.mark.parametrize(
    "protocol, options",
    [
        (s.bonawitz(0.51, s.dropouts(upload=LATE)), {"devices": jax.devices()[:2]}),
        (s.secagg_plus(6, 4, s.dropouts(upload=LATE)), {"residency": "stream"}),
    ],
    ids=["bonawitz", "secagg_plus"],
)
def test_masks_come_off_exactly(protocol, options, plain):
    """Bit for bit the numbers of those who came; rows and weights too."""
    chain = chained(protocol, "examples", 4, 32, EXTRA)
    sim = simulation(chain, None, fs.scaffold(toys.task(), 0.1), lanes=2, **options)
    state, history = sim.run(sim.init(), 3)
    np.testing.assert_array_equal(toys.flat(state.server), toys.flat(plain.server))
    for name, value in toys.on_device(state).items():
        np.testing.assert_array_equal(value, toys.on_device(plain)[name], err_msg=name)
    lost = [int(LATE(r, metrics.cohort.ids).sum()) for r, metrics in enumerate(history.rounds)]
    assert history["secure/recovered"].tolist() == lost
    assert sum(lost) > 0
    assert history["secure/survivors"].tolist() == [8 - n for n in lost]
    assert not history["secure/aborted"].any()
    assert sim.compile_count() == 1


# A sum of a few numbers


def numbers(largest):
    """A quantiser for payloads that are whole already."""
    return a.Transform(
        "whole",
        client=lambda key, state, row, payload, context: (payload.astype(jnp.int32), row, {}),
        server=lambda key, state, aggregate: (aggregate, state, {}),
        facts=lambda facts: facts._replace(integers=True, largest=float(largest)),
    )


def summing(values, protocol, bits=20, largest=None, sampler=None):
    """Each client sends its row of [K, 3] numbers; the server's state is the mean of the last round."""
    values = np.asarray(values, np.float32)
    task = fs.Task(lambda key: jnp.zeros(3), lambda params, batch, key: batch["u"][:, 0])
    chain = a.chain(
        numbers(np.nanmax(np.abs(values)) if largest is None else largest),
        a.secure_sum(bits, protocol=protocol),
        reduce=a.mean("uniform"),
    )
    algorithm = fs.Algorithm(
        task,
        init=lambda params: (params, None),
        client=lambda key, server, row, batches: fs.ClientUpdate(batches.batch(0)["u"][0], batches.num_examples),
        server=lambda key, server, aggregate: aggregate.value,
        aggregator=chain,
    )
    held = np.arange(len(values)) != 1  # client 1 has no example
    offsets = np.concatenate([[0], np.cumsum(held)])
    data = fs.FederatedData({"u": values[held]}, offsets)
    sampler = sampler or fs.sampler.uniform(len(values))
    return fs.Simulation(algorithm, data, sampler, fs.Batching(1), on_nonfinite="drop")


def test_rounds_below_the_threshold_are_abandoned_and_the_run_goes_on():
    """The first five rounds each lose four of six clients in another of the protocol's rounds; a NaN, and a client
    without examples, send their masks."""
    values = np.random.default_rng(0).integers(-1000, 1000, (6, 3)).astype(np.float32)
    values[5] = np.nan
    at = lambda step: lambda round, ids: (ids >= 2) & (round == step)
    lost = s.dropouts(*map(at, range(5)))
    sim = summing(values, s.bonawitz(threshold=4, dropouts=lost))
    state, history = sim.run(sim.init(), 7)
    assert history["secure/aborted"].tolist() == [1, 1, 1, 1, 1, 0, 0]
    assert [metrics.abandoned for metrics in history.rounds] == [True] * 5 + [False] * 2
    assert history["secure/survivors"].tolist() == [0, 0, 2, 6, 6, 6, 6]
    np.testing.assert_allclose(state.server, values[[0, 2, 3, 4]].mean(0), rtol=1e-6)
    middle, _ = sim.run(sim.init(), 5)
    np.testing.assert_array_equal(middle.server, np.zeros(3))
    # What crossed the wire, by hand: 6 clients, 5 neighbours, 20 bits of 3 numbers, a signature of each, no dropout.
    last = history.rounds[-1]
    assert last["secure/bytes_advertise"] == 6 * (4 + 32 + 32 + 64) * (1 + 5)
    assert last["secure/bytes_share"] == 2 * 6 * 5 * (4 + 66 + 16)
    assert last["secure/bytes_upload"] == 6 * 8
    assert last["secure/bytes_consistency"] == 6 * (64 + 6 * 4)
    assert last["secure/bytes_unmask"] == 6 * (5 * (4 + 64) + 6 * (4 + 33))
    assert last["secure/client_bytes_upload"] == 8


def test_the_sum_of_1024_clients_at_the_ranges_edge():
    """All at +c, where n c is the largest sum that 2^20 holds, and one more does not."""
    values, c = np.zeros((1024, 3)), 511
    values[:, 0], values[:, 1] = c, -c
    protocol = s.secagg_plus(4, 3)
    state, _ = (sim := summing(values, protocol)).run(sim.init(), 1)
    np.testing.assert_allclose(state.server, values[[0] + [2] * 1022].sum(0) / 1023, rtol=1e-6)
    with pytest.raises(ArgumentError, match=r"1024 clients of integers up to 512"):
        summing(values, protocol, largest=512)


def test_the_ledger_counts_the_noise_that_survived():
    """Shares of noise come with those who upload; a round whose sum nobody saw costs nothing."""
    lost = s.dropouts(upload=LATE, unmask=lambda round, ids: np.full(len(ids), round == 1))
    noised = (a.quantize(12), a.discrete_gaussian_noise(0.5))
    sampler = fs.sampler.uniform(8)
    sim = simulation(chained(s.bonawitz(0.51, lost), bits=24, extra=noised), sampler)
    state, history = sim.run(sim.init(), 3)
    came = [int((~LATE(r, metrics.cohort.ids)).sum()) for r, metrics in enumerate(history.rounds)]
    assert history["secure/aborted"].tolist() == [0, 1, 0]
    entries = state.ledger[-1]["counts"]
    assert sorted(entries) == sorted(_tally([(8, came[0]), (8, 0), (8, came[2])]))
    plain = simulation(chained(bits=24, extra=noised), without(LATE, sampler))
    first, _ = sim.step(sim.init())
    expected, _ = plain.step(plain.init())
    np.testing.assert_array_equal(toys.flat(first.server), toys.flat(expected.server))
    realised = 0.5 * np.sqrt(np.array(came) / 8)
    np.testing.assert_allclose(history["aggregate/noise_multiplier"][[0, 2]], realised[[0, 2]], rtol=1e-6)


def _tally(pairs):
    return [[*pair, pairs.count(pair)] for pair in set(pairs)]


@pytest.mark.parametrize(
    "made, message",
    [
        (lambda: summing(np.ones((2, 3)), s.bonawitz()), "cohorts of 2: .* each client learns the other's"),
        (lambda: summing(np.ones((5, 3)), s.bonawitz(6)), "t = 6 of 5 holders"),
        (lambda: a.secure_sum(protocol="bonawitz"), "protocol='bonawitz': must be \"simulated\""),
        (lambda: a.chain(a.clip_by_l2(1.0), a.secure_sum(protocol=s.bonawitz())), "gets floats"),
        (lambda: a.chain(numbers(1), a.secure_sum(protocol=s.bonawitz()), reduce=a.median()), "median is not a sum"),
        (
            lambda: summing(np.ones((5, 3)), s.bonawitz(), sampler=fs.sampler.fixed([[0, 0]], repeats=True)),
            "draw a client twice",
        ),
    ],
)
def test_what_a_chain_refuses(made, message):
    with pytest.raises(ArgumentError, match=message):
        made()


def test_who_a_protocol_loses_is_a_part_of_the_simulation():
    """Dropouts are in no program: the fingerprint reads them where the host does."""
    lossy = lambda chance: s.bonawitz(dropouts=s.dropouts(upload=chance))
    few, many = (fingerprint(simulation(chained(lossy(p), extra=(rounded(1 / 64),))).parts) for p in (0.1, 0.5))
    assert "dropouts.upload was 0.1 there and is 0.5 here" in compare(few, many).differences["aggregator"]
    assert compare(few, few).differences == {}
