"""The protocol on the host: the survivors' sum bit for bit, or an abort that names the round, the count and t."""

import itertools
import sys

import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.secure import keys
from fedjax_sim.secure.graph import neighbourhoods
from tests.secure import patterns


def test_however_many_of_five_are_lost_in_whatever_round(monkeypatch):
    patterns.remembered(monkeypatch.setattr)
    words, three = patterns.words_of(5), fs.secure.bonawitz(threshold=3)
    summed = [patterns.check(pattern, three, words, 3) for pattern in patterns.multisets()]
    assert len(summed) == 252
    assert sum(summed) == 21  # of 3, 4 or 5 that stay, and the others lost anywhere


def test_some_of_forty_are_lost(monkeypatch):
    patterns.remembered(monkeypatch.setattr)
    summed = [patterns.check(p, fs.secure.bonawitz(), patterns.words_of(40), 27) for p in patterns.scattered(3, seed=4)]
    assert any(summed)


def test_of_a_random_graph():
    """Sums are those of the survivors, or a neighbourhood is too small."""
    words = patterns.words_of(30)
    for at, pattern in enumerate(patterns.scattered(4, clients=30, seed=1)):
        protocol = fs.secure.secagg_plus(8, 5, patterns.lost_at(pattern if at else (5,) * 30))
        made = fs.secure.sum_of(dict(enumerate(words)), protocol, round=at)
        assert (made.value is None) == (made.aborted is not None)
        if made.value is not None:
            np.testing.assert_array_equal(made.value.astype(np.int32), words[made.survivors].sum(0))
        else:
            assert made.aborted.count < made.aborted.threshold <= 6
        assert at or made.value is not None


@pytest.mark.parametrize("k, n", [(4, 11), (10, 11), (20, 11), (None, 5)])
def test_the_graph_is_regular_and_both_ends_know(k, n):
    ids = [3 * i + 1 for i in range(n)]
    near = neighbourhoods(ids, k, seed=1, round=2)
    assert {len(v) for v in near.values()} == {min(k or n, n - 1)}
    assert all(u in near[v] and u != v for u, vs in near.items() for v in vs)
    assert near == neighbourhoods(ids[::-1], k, seed=1, round=2)
    assert k != 4 or near != neighbourhoods(ids, k, seed=1, round=3)


def test_keys_are_fresh_and_uploads_too():
    words = dict(enumerate(patterns.words_of(4, 1000)))
    seen = [
        fs.secure.sum_of(words, fs.secure.bonawitz(), round=r, seed=s).uploads[0] for r, s in ((0, 0), (1, 0), (0, 1))
    ]
    for a, b in itertools.combinations(seen, 2):
        assert (a != b).mean() > 0.99


def test_published_vectors_of_the_primitives():
    """RFC 8439's key stream (A.1, the first) and RFC 7748's X25519 (6.1)."""
    block = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    block += "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    assert keys.keystream(bytes(32), 0, 16).tobytes().hex() == block
    alice = keys.exchange_key(bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
    bob = keys.exchange_key(bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    assert keys.public_bytes(alice).hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert (
        keys.agreed(alice, keys.public_bytes(bob)).hex() == keys.agreed(bob, keys.public_bytes(alice)).hex() == shared
    )


@pytest.mark.parametrize(
    "made, message",
    [
        (lambda: fs.secure.bonawitz(threshold=0), "threshold=0"),
        (lambda: fs.secure.bonawitz(threshold=1), "threshold=1: one share is then the secret"),
        (lambda: fs.secure.bonawitz(threshold=1.5), "threshold=1.5: must lie between 0 and 1"),
        (lambda: fs.secure.bonawitz(threshold=True), "threshold=True"),
        (lambda: fs.secure.secagg_plus(7, 5), "neighbours=7: must be even"),
        (lambda: fs.secure.secagg_plus(8, 9), "threshold=9: each client has 8 neighbours"),
        (lambda: fs.secure.dropouts(upload=1.5), "upload=1.5"),
        (lambda: fs.secure.bonawitz(dropouts=0.1), "dropouts=0.1"),
        (lambda: fs.secure.sum_of(dict(enumerate(patterns.words_of(2))), fs.secure.bonawitz()), "cohorts of 2"),
        (lambda: fs.secure.sum_of({4: np.ones(2, int)}, fs.secure.bonawitz()), "cohorts of 1"),
        (lambda: fs.secure.bonawitz(threshold=6).check(5), "t = 6 of 5 holders"),
    ],
)
def test_what_cannot_be_summed(made, message):
    with pytest.raises(ArgumentError, match=message):
        made()


@pytest.mark.parametrize("protocol", [fs.secure.bonawitz(0.3), fs.secure.bonawitz(5), fs.secure.secagg_plus(6, 3)])
def test_a_threshold_that_a_lying_server_passes_twice(protocol):
    with pytest.warns(UserWarning, match=r"at most half of \d+ holders: a server that lies"):
        protocol.check(10)


def test_the_extra_is_named(monkeypatch):
    keys.module.cache_clear()
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.hashes", None)
    with pytest.raises(ArgumentError, match=r'needs cryptography: pip install "fedjax-sim\[secure\]"'):
        keys.derived(bytes(32), "anything")
