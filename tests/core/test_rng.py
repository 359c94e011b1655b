"""Keys and hashes come from (seed, purpose, round, client id), and from nothing else."""

from itertools import product

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import fedjax_sim as fs
from fedjax_sim.core import rng
from fedjax_sim.core.rng import Purpose

U64 = 2**64 - 1
KEYS = [(4165894930, 804218099), (1400128608, 1700204917)]
HASHES = [2676364955, 4187614875, 434899035, 4031119999]
SEEDS = 0, 1, 2**31 - 1, 2**31, 2**32 - 1


def bits(key):
    return tuple(jax.random.key_data(key).tolist())


# Keys


def test_keys_differ_by_seed_purpose_round_and_client():
    fold = jax.jit(lambda seed, purpose, round: rng.key(seed, purpose, round))
    keys = [
        bits(fold(np.uint32(seed), int(purpose), round))
        for seed, purpose, round in product(SEEDS, Purpose, (0, 1, 2, 1000))
    ]
    key = rng.key(0, Purpose.CLIENT, 3)
    keys += [bits(jax.random.fold_in(key, client)) for client in range(50)]
    assert len(set(keys)) == len(keys)


def test_keys_can_be_traced_and_vmapped():
    seeds = np.array(SEEDS, np.uint32)
    together = jax.vmap(lambda seed, round: rng.key(seed, Purpose.SERVER, round))(seeds, np.arange(5))
    for i, seed in enumerate(SEEDS):
        assert bits(together[i]) == bits(rng.key(seed, Purpose.SERVER, i))


def test_purposes_are_never_renumbered():
    names = "INIT PARTITION SPLIT SAMPLE SHUFFLE CLIENT ENCODE DECODE SERVER EVALUATE"
    assert [p.name for p in Purpose][:10] == names.split()
    assert [int(p) for p in Purpose][:10] == list(range(10))


def test_key_known_answers():
    """Changing these numbers changes every run: only with a new major version."""
    assert bits(rng.key(0, Purpose.INIT)) == KEYS[0]
    assert bits(rng.key(7, Purpose.CLIENT, 3)) == KEYS[1]


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True, "0", None, np.float32(1)], ids=repr)
def test_seeds_that_are_none(seed):
    with pytest.raises(fs.FedSimError, match="seed="):
        rng.check_seed(seed)


@pytest.mark.parametrize("seed", [*SEEDS, np.uint32(7), np.int64(7)], ids=repr)
def test_seeds(seed):
    rng.check_seed(seed)


def test_generators_differ_by_seed_purpose_and_round():
    draws = [
        rng.generator(seed, purpose, round).integers(2**63)
        for seed, purpose, round in product(SEEDS, Purpose, range(3))
    ]
    assert len(set(draws)) == len(draws)
    assert rng.generator(1, Purpose.SAMPLE, 2).integers(2**63) == (rng.generator(1, Purpose.SAMPLE, 2).integers(2**63))


# The hash


def slow_hash(seed, purpose, round, client, counter):
    """SplitMix64's finaliser in Python's integers."""

    def mix(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & U64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & U64
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    base = int(np.random.SeedSequence((seed, purpose, round)).generate_state(1, np.uint64)[0])
    stream = mix(client * golden + base & U64)
    return mix(counter * golden + stream & U64) >> 32


def test_hash_known_answers():
    assert rng.hash32(0, Purpose.SHUFFLE, 0, [0, 0, 1], [0, 1, 0]).tolist() == HASHES[:3]
    assert rng.hash32(5, Purpose.SPLIT, 9, [2**31 - 1], [2**63]).tolist() == HASHES[3:]


@settings(max_examples=50)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 10**6),
    st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, U64)), min_size=1, max_size=20),
)
def test_hash_does_not_see_positions(seed, round, pairs):
    clients = np.array([client for client, _ in pairs])
    counters = np.array([counter for _, counter in pairs], np.uint64)
    made = rng.hash32(seed, Purpose.SHUFFLE, round, clients, counters)
    assert made.dtype == np.uint64
    assert (made < 2**32).all()
    assert made.tolist() == [slow_hash(seed, Purpose.SHUFFLE, round, *pair) for pair in pairs]


def test_hash_differs_by_seed_purpose_and_round():
    counters = np.arange(1000)
    streams = [
        rng.hash32(seed, purpose, round, 3, counters) for seed, purpose, round in product((0, 1), Purpose, (0, 1))
    ]
    for i, a in enumerate(streams):
        for b in streams[:i]:
            assert (a == b).sum() <= 1


@pytest.mark.parametrize("which", ["client", "counter"])
@pytest.mark.parametrize("bit", [0, 1, 7, 20, 30])
def test_hash_avalanche(which, bit):
    """Flipping an input bit flips each of the 32 output bits every other time."""
    n = 4000
    client, counter = np.arange(n) % 61, np.arange(n) // 61
    flipped = {"client": (client ^ (1 << bit), counter), "counter": (client, counter ^ (1 << bit))}
    before = rng.hash32(0, Purpose.SHUFFLE, 0, client, counter)
    change = before ^ rng.hash32(0, Purpose.SHUFFLE, 0, *flipped[which])
    rate = ((change[:, None] >> np.arange(32, dtype=np.uint64)) & np.uint64(1)).mean(axis=0)
    assert (np.abs(rate - 0.5) < 5 * 0.5 / n**0.5).all()


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
@pytest.mark.parametrize("which", ["clients", "counters"])
def test_hash_is_uniform(which, shift):
    n = np.arange(51200)
    client, counter = (n, 0 * n) if which == "clients" else (0 * n, n)
    byte = rng.hash32(1, Purpose.SHUFFLE, 4, client, counter) >> np.uint64(shift) & np.uint64(255)
    counts = np.bincount(byte.astype(int), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-3
    # Neighbours are independent: pairs of top four bits.
    pairs = (byte[::2] >> np.uint64(4)) * np.uint64(16) + (byte[1::2] >> np.uint64(4))
    assert stats.chisquare(np.bincount(pairs.astype(int), minlength=256)).pvalue > 1e-3
