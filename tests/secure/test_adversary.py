"""A server, or a client, that does not keep to the protocol; and what those see who do."""

import itertools

import numpy as np
import pytest
from scipy import stats

import fedjax_sim as fs
from fedjax_sim.secure import Refused, RoundAborted, keys, rounds, shamir
from fedjax_sim.secure.client import Advertised
from fedjax_sim.secure.server import Mask, masked

N, T = 6, 4
PROTOCOL = fs.secure.bonawitz(threshold=T)


class Cast:
    """All clients and the server of a round, up to and with the round that is asked for."""

    def __init__(self, round=0, seed=0):
        self.players = rounds.players(PROTOCOL, seed, round, range(N))
        self.clients, self.server = self.players.clients, self.players.server
        self.told = self.server.advertised([c.advertise() for c in self.clients.values()])

    def shared(self):
        self.letters = self.server.shared({k: c.share(self.told[k]) for k, c in self.clients.items()})
        return self

    def received(self):
        self.masks = {k: c.receive(self.letters[k]) for k, c in self.clients.items()}
        return self

    def signed(self, survivors=range(N)):
        self.signatures = {k: self.clients[k].sign(survivors) for k in survivors}
        return self

    def others(self, k):
        return {v: s for v, s in self.signatures.items() if v != k}


@pytest.fixture
def ready():
    return Cast().shared().received()


def test_a_client_never_gives_both_shares(ready):
    """Not when it is asked at once, nor by one list after another."""
    ready.signed(range(5))
    client = ready.clients[0]
    with pytest.raises(Refused, match=r"both shares of clients \[3\]"):
        client.unmask(range(5), [3, 5], ready.others(0))
    with pytest.raises(Refused, match="a list of survivors that it did not sign"):
        client.unmask([0, 1, 2, 4], [3, 5], ready.others(0))
    opened = client.unmask(range(5), [5], ready.others(0))
    assert not opened.seeds.keys() & opened.keys.keys()
    assert set(opened.seeds) == set(range(5))
    assert set(opened.keys) == {5}
    with pytest.raises(Refused, match="has signed another"):
        client.sign([0, 1, 2, 4])
    assert client.unmask(range(5), [5], ready.others(0)) == opened


def test_lists_that_differ_between_clients(ready):
    """A server that says to one half that client 5 was lost gets shares of neither."""
    early = {k: ready.clients[k].sign(range(6)) for k in (0, 1, 2)}
    late = {k: ready.clients[k].sign(range(5)) for k in (3, 4)}
    for k, survivors in ((0, range(6)), (3, range(5))):
        others = {v: s for v, s in {**early, **late}.items() if v != k}
        with pytest.raises(Refused, match="lists differ"):
            ready.clients[k].unmask(survivors, [], others)
        mine = early if k == 0 else late
        with pytest.raises(RoundAborted, match=r"round 4 \(unmask\): [23] signatures .* t = 4"):
            ready.clients[k].unmask(survivors, [], {v: s for v, s in mine.items() if v != k})


def test_a_wrong_signature_of_the_list(ready):
    ready.signed()
    forged = {**ready.others(0), 2: ready.signatures[3]}
    with pytest.raises(Refused, match="signature of client 2"):
        ready.clients[0].unmask(range(N), [], forged)
    before = Cast(round=1).shared().received().signed()
    with pytest.raises(Refused, match="signature of client 2"):
        ready.clients[0].unmask(range(N), [], {**ready.others(0), 2: before.signatures[2]})
    with pytest.raises(Refused, match="a list of survivors that it is not in"):
        ready.clients[4].sign([0, 1, 2, 3])


def changed(letter):
    return bytes([letter[0] ^ 1]) + letter[1:]


@pytest.mark.parametrize(
    "swap",
    [
        lambda cast: changed(cast.letters[0][3]),  # tampered
        lambda cast: cast.letters[0][2],  # another sender's
        lambda cast: cast.letters[1][3],  # for another
        lambda cast: Cast(round=1).shared().letters[0][3],  # of another round
        lambda cast: cast.letters[3][0],  # its own, sent back
        lambda cast: b"",
    ],
)
def test_ciphertexts_that_were_changed_swapped_or_replayed(swap):
    cast = Cast().shared()
    with pytest.raises(Refused, match="client 3 is not one that it made in round 0"):
        cast.clients[0].receive({**cast.letters[0], 3: swap(cast)})


def test_keys_that_are_not_a_clients_own():
    cast = Cast()
    one, two, *rest = cast.told[0]
    forged = Advertised(two.id, two.cipher, keys.public_bytes(keys.exchange_key(bytes(31) + b"1")), two.signature)
    for said, message in (
        ([one, one, *rest], "or told twice"),
        ([one, two._replace(mask=one.mask), *rest], "is another's too"),
        ([one, two._replace(mask=two.cipher), *rest], "is another's too"),
        ([one, two._replace(mask=cast.clients[0].advertise().mask), *rest], "is another's too"),
        ([one, forged, *rest], "not signed by it for this round"),
        ([one, Cast(round=1).told[0][1], *rest], "not signed by it for this round"),
        ([one, two._replace(id=0), *rest], "no neighbour of its"),
    ):
        with pytest.raises(Refused, match=message):
            Cast().clients[0].share(said)


def test_too_few_for_a_client_whatever_the_server_says():
    cast = Cast()
    with pytest.raises(RoundAborted, match=r"round 1 \(share\): 3 holders"):
        cast.clients[0].share(cast.told[0][:2])
    cast = Cast().shared()
    with pytest.raises(RoundAborted, match="3 shares came"):
        cast.clients[0].receive(dict(itertools.islice(cast.letters[0].items(), 2)))
    cast = Cast().shared().received()
    with pytest.raises(RoundAborted, match=r"round 3 \(consistency\): 3 holders"):
        cast.clients[0].sign([0, 1, 2])


def test_a_client_that_lies_about_a_share_of_a_key_is_noticed(ready):
    ready.signed(range(5))
    opened = {k: ready.clients[k].unmask(range(5), [5], ready.others(k)) for k in range(5)}
    opened[0].keys[5] += 1
    with pytest.raises(fs.FedSimError, match="client 5's key give another key than it advertised"):
        ready.server.masks(range(5), opened)


def test_the_server_and_t_less_one_clients_learn_nothing(ready):
    """All that they can take off an upload leaves words that a chi-square test on 2^20 of them calls uniform.

    They know the masks that colluders share with the victim, and t - 1 shares of its secrets, which tell none of them;
    with one share more they have its words.
    """
    victim, colluders, length = 5, range(T - 1), 2**20
    upload = masked(np.zeros(length, np.int32), rounds.upload(ready.masks[victim]), 0, 32)
    known = [Mask(*ready.masks[victim].pairs[k]) for k in colluders]
    assert all(ready.masks[k].pairs[victim] == (mask.key, -mask.sign) for k, mask in zip(colluders, known, strict=True))
    off = [Mask(mask.key, -mask.sign) for mask in known]
    shares = {k + 1: ready.clients[k]._held[victim][1] for k in range(T)}
    guess = shamir.join({x: shares[x] for x in list(shares)[: T - 1]}, T - 1).to_bytes(33, "little")[:32]
    for tried in (off, [*off, Mask(guess, -1)]):
        seen = masked(upload, tried, 0, 32)
        for shift in (0, 8, 16, 24):
            assert stats.chisquare(np.bincount((seen >> shift) & 255, minlength=256)).pvalue > 1e-5
    seed = shamir.join(shares, T).to_bytes(33, "little")[:32]
    rest = [Mask(key, -sign) for k, (key, sign) in ready.masks[victim].pairs.items() if k not in colluders]
    assert not masked(upload, [*off, *rest, Mask(seed, -1)], 0, 32).any()  # the test above would see bare words


def test_two_inputs_of_the_same_sum_look_the_same():
    """The uploads of either, over many rounds: the same law, as far as a two-sample test of each client can tell."""
    one = {k: np.array([50 * (k == 0), 7]) for k in range(4)}
    two = {k: np.array([50 * (k == 3), 28 * (k == 1)]) for k in range(4)}
    seen = [[], []]
    for round in range(60):
        for words, of in ((one, 0), (two, 1)):
            made = fs.secure.sum_of(words, fs.secure.bonawitz(), round=round, seed=of)
            assert made.value.tolist() == [50, 28]
            seen[of].append([made.uploads[k] / 2**32 for k in range(4)])
    first, second = np.asarray(seen)
    for k, at in itertools.product(range(4), range(2)):
        assert stats.ks_2samp(first[:, k, at], second[:, k, at]).pvalue > 1e-4
        assert stats.kstest(first[:, k, at], "uniform").pvalue > 1e-4
    correlations = np.corrcoef(first[:, :3, 0].T)[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 0.5
