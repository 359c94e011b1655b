"""Shares of secrets against published numbers and closed forms."""

import itertools

import numpy as np
import pytest

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.secure import shamir


def test_a_published_example():
    """Wikipedia's: S = 1234, f = 1234 + 166 x + 94 x^2 modulo 1613."""
    shares = shamir.split(1234, range(1, 7), [166, 94], prime=1613)
    assert shares == [1494, 329, 965, 176, 1188, 775]
    assert shamir.join({2: 329, 4: 176, 5: 1188}, 3, prime=1613) == 1234


def test_any_t_shares_rebuild_and_fewer_do_not():
    draw = np.random.default_rng(0)
    big = lambda: int.from_bytes(draw.bytes(48), "little") % shamir.PRIME
    secret, t = big() % 2**256, 3
    shares = dict(zip(range(1, 7), shamir.split(secret, range(1, 7), [big(), big()]), strict=True))
    for some in itertools.combinations(shares, t):
        assert shamir.join({x: shares[x] for x in some}, t) == secret
    for few in itertools.combinations(shares, t - 1):
        assert shamir.join({x: shares[x] for x in few}, t - 1) != secret
        with pytest.raises(ArgumentError, match="2 shares: 3 are needed"):
            shamir.join({x: shares[x] for x in few}, t)


def test_fewer_than_t_shares_fit_every_secret_equally_well():
    """Modulo 7, all polynomials: each pair of shares comes once with each secret."""
    pairs = {s: [] for s in range(7)}
    for secret, a, b in itertools.product(range(7), repeat=3):
        pairs[secret].append(tuple(shamir.split(secret, [1, 4], [a, b], prime=7)))
    assert all(sorted(found) == sorted(itertools.product(range(7), repeat=2)) for found in pairs.values())


def test_the_prime_is_one():
    """Miller and Rabin's test, 40 bases."""
    odd, twos = shamir.PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        x = pow(base, odd, shamir.PRIME)
        assert x in (1, shamir.PRIME - 1) or any(
            pow(x, 2**i, shamir.PRIME) == shamir.PRIME - 1 for i in range(1, twos)
        ), base


@pytest.mark.parametrize("holders", [[1, 2, 1], [0, 1, 2], [shamir.PRIME, 1]])
def test_points_that_would_give_the_secret_away(holders):
    with pytest.raises(ArgumentError, match="distinct points"):
        shamir.split(5, holders, [1])
