"""Shamir's t-of-n secret sharing over a prime field (Shamir 1979)."""

import functools
from collections.abc import Mapping, Sequence

from fedjax_sim.core.errors import ArgumentError

PRIME = 2**256 + 297
"""The smallest prime above all secrets of 32 bytes."""

SIZE = 33
"""Bytes of a share."""


def split(secret: int, holders: Sequence[int], coefficients: Sequence[int], prime: int = PRIME) -> list[int]:
    r"""A share for each holder, of which any t tell the secret and fewer tell nothing.

    .. math:: f(x) = s + \sum_{j=1}^{t-1} a_j x^j \bmod p

    Args:
        secret: s, below the prime.
        holders: distinct points x from 1 to p - 1; a holder's share is f(x).
        coefficients: t - 1 uniform numbers below the prime, used for this secret alone.
        prime: p.

    Raises:
        ArgumentError: a point of 0, which would get the secret itself, or one that two holders have.
    """
    points = [x % prime for x in holders]
    if len(set(points)) != len(points) or 0 in points:
        raise ArgumentError(f"holders={list(holders)}: must be distinct points from 1 to the prime less 1.")
    if not 0 <= secret < prime:
        raise ArgumentError("a secret must lie from 0 to the prime less 1.")
    shares = []
    for x in points:
        value = 0
        for a in reversed(coefficients):
            value = (value + a) * x % prime
        shares.append((value + secret) % prime)
    return shares


def join(shares: Mapping[int, int], threshold: int, prime: int = PRIME) -> int:
    r"""The secret, from t of its shares or more: :math:`f(0)` by Lagrange's formula.

    Args:
        shares: point to share; the t of the smallest points are used.
        threshold: t.
        prime: p.

    Raises:
        ArgumentError: fewer than t, from which a number would come that is not the secret.
    """
    if len(shares) < threshold:
        raise ArgumentError(f"{len(shares)} shares: {threshold} are needed to tell a secret.")
    points = sorted(shares)[:threshold]
    return sum(shares[x] * c for x, c in zip(points, at_zero(tuple(points), prime), strict=True)) % prime


@functools.lru_cache(maxsize=256)
def at_zero(points: tuple[int, ...], prime: int = PRIME) -> tuple[int, ...]:
    r"""Lagrange's coefficients at 0, :math:`\prod_{m \ne j} x_m / (x_m - x_j)`."""
    found = []
    for j, x in enumerate(points):
        above, below = 1, 1
        for m, other in enumerate(points):
            if m != j:
                above, below = above * other % prime, below * (other - x) % prime
        found.append(above * pow(below, -1, prime) % prime)
    return tuple(found)
