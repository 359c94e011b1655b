"""Dropouts in every round of a protocol: `python -m tests.secure.patterns` tries all of 5 clients and 500 of 40.

Who is left in each round, and what the sum then is, follows here from sets and integers alone.
"""

import functools
import itertools
import sys

import numpy as np

import fedjax_sim as fs
from fedjax_sim.secure import keys

STEPS = ("advertise", "share", "upload", "consistency", "unmask")
STAYS = len(STEPS)


def lost_at(pattern):
    """Dropouts by client id, which is its place in the pattern: the step where it is lost, 5 for none."""
    gone = lambda step: lambda round, ids: np.asarray(pattern)[ids] == step
    return fs.secure.dropouts(**{name: gone(step) for step, name in enumerate(STEPS)})


def check(pattern, protocol, words, threshold):
    """The survivors' sum bit for bit, or an abort that names the first round with fewer than t, how many, and t."""
    made = fs.secure.sum_of(dict(enumerate(words)), protocol._replace(dropouts=lost_at(pattern)), bits=20)
    left = [sum(at > step for at in pattern) for step in range(STAYS)]
    short = [step for step, count in enumerate(left) if count < threshold]
    if short:
        said = made.aborted
        assert made.value is None
        assert (said.step, said.count, said.threshold) == (STEPS[short[0]], left[short[0]], threshold), pattern
        return False
    assert made.aborted is None, (pattern, made.aborted)
    came = [k for k, at in enumerate(pattern) if at > 2]
    assert made.survivors == came
    assert made.recovered == sum(at == 2 for at in pattern)
    np.testing.assert_array_equal(made.value, words[came].sum(0) % 2**20, err_msg=str(pattern))
    return True


def remembered(patch):
    """The same keys meet again and again in patterns of one round: what they give is kept."""
    for name in ("derived", "sealed", "opened"):
        patch(keys, name, functools.lru_cache(None)(getattr(keys, name)))
    exchanged, checked, publics = {}, {}, {}
    agreed, signed, public = keys.agreed, keys.signed_by, keys.public_bytes

    def known(store, compute, key, *rest):
        secret = key.public_key().public_bytes_raw() if hasattr(key, "public_key") else key.public_bytes_raw()
        if (secret, *rest) not in store:
            store[(secret, *rest)] = compute(key, *rest)
        return store[(secret, *rest)]

    patch(keys, "agreed", functools.partial(known, exchanged, agreed))
    patch(keys, "signed_by", functools.partial(known, checked, signed))
    patch(keys, "public_bytes", functools.partial(known, publics, public))


def words_of(clients, length=3, seed=0):
    return np.random.default_rng(seed).integers(-(2**14), 2**14, (clients, length))


def multisets(clients=5):
    """How many are lost where, each once, with the clients in random order."""
    draw = np.random.default_rng(0)
    for pattern in itertools.combinations_with_replacement(range(STAYS + 1), clients):
        yield tuple(draw.permutation(pattern).tolist())


def scattered(count, clients=40, seed=0):
    """Random patterns, of few and of many dropouts."""
    draw = np.random.default_rng(seed)
    for _ in range(count):
        stays = draw.uniform(0.5, 1.0)
        yield tuple(np.where(draw.random(clients) < stays, STAYS, draw.integers(0, STAYS, clients)).tolist())


if __name__ == "__main__":
    remembered(setattr)
    three = fs.secure.bonawitz(threshold=3)
    summed = [check(pattern, three, words_of(5), 3) for pattern in itertools.product(range(STAYS + 1), repeat=5)]
    print(f"5 clients, t = 3: {len(summed)} patterns, {sum(summed)} sums and {len(summed) - sum(summed)} aborts")
    most = fs.secure.bonawitz()
    summed = [
        check(pattern, most, words_of(40), 27) for pattern in scattered(int(sys.argv[-1]) if sys.argv[1:] else 500)
    ]
    print(f"40 clients, t = 27: {len(summed)} patterns, {sum(summed)} sums and {len(summed) - sum(summed)} aborts")
