"""How many neighbours, and how many shares: chances of a random graph, by exact tails."""

import math
from typing import NamedTuple

from fedjax_sim.core.errors import ArgumentError, check, check_count


class Choice(NamedTuple):
    """Neighbours and threshold of `fs.secure.secagg_plus`, and what can go wrong in a round.

    Attributes:
        neighbours: k.
        threshold: t.
        too_many_corrupt: the chance, at most, that some client has t corrupt neighbours.
        too_few_left: the chance, at most, that some client has fewer than t neighbours left.
        cut: the chance, at most, that the honest clients that are left fall into parts that share no mask.

    Example:
        >>> import fedjax_sim as fs
        >>> choice = fs.secure.choose(1000, dropout=0.05, corrupt=0.05)
        >>> fs.secure.secagg_plus(choice.neighbours, choice.threshold).name
        'secagg_plus(36 neighbours, t = 19)'
    """

    neighbours: int
    threshold: int
    too_many_corrupt: float
    too_few_left: float
    cut: float


def choose(n: int, dropout: float, corrupt: float, failure: float = 2.0**-40) -> Choice:
    r"""The fewest neighbours, and a threshold, with which a round of SecAgg+ fails with a small chance each way.

    A client's k neighbours are k of the n - 1 others at random. With :math:`\gamma n` corrupt clients and
    :math:`\delta n` dropouts, t must satisfy

    .. math:: n P[H(n - 1, \gamma n, k) \ge t] \le f, \qquad n P[H(n - 1, n - 1 - \delta n, k) < t] \le f, \qquad
        n (\gamma + \delta)^{k / 2} \le f

    where H is the hypergeometric count of corrupt, or remaining, neighbours, and the last one says that no k/2 clients
    in a row of the circle are all corrupt or lost, without which the graph of the others stays connected (Bell et al.
    2020, Section 3). The three bounds are theirs; the tails are exact here, where the paper bounds them. With a
    server that lies, t must also be more than k/2, which is asked for always.

    Args:
        n: clients of a cohort.
        dropout: :math:`\delta`, the share of clients that are lost.
        corrupt: :math:`\gamma`, the share of clients that work with the server.
        failure: f, of each of the three, per round.

    Raises:
        ArgumentError: no k below n - 1 will do: use `fs.secure.bonawitz`.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.secure.choose(1000, dropout=0.05, corrupt=0.05, failure=1e-6)[:2]
        (22, 12)
    """
    check_count("n", n, minimum=3)
    for name, share in (("dropout", dropout), ("corrupt", corrupt)):
        check(0 <= share < 1, name, share, "must be a share of the clients, below 1.")
    check(dropout + corrupt < 1, "dropout", dropout, f"leaves nobody honest with corrupt={corrupt}.")
    check(0 < failure < 1, "failure", failure, "must be a chance between 0 and 1, such as 2**-40.")
    bad, gone = math.ceil(corrupt * n), math.ceil(dropout * n)
    for k in range(2, n - 1, 2):
        cut = n * (corrupt + dropout) ** (k / 2)
        if cut > failure:
            continue
        corrupted, left = _law(n - 1, min(bad, n - 1), k), _law(n - 1, max(n - 1 - gone, 0), k)
        for t in range(k // 2 + 1, k + 1):
            many, few = n * math.fsum(corrupted[t:]), n * math.fsum(left[:t])
            if many <= failure and few <= failure:
                return Choice(k, t, many, few, cut)
    raise ArgumentError(
        f"n={n}: no k below {n - 1} neighbours fails with a chance of at most {failure:.3g} with dropout={dropout} and "
        f"corrupt={corrupt}: use fs.secure.bonawitz, a larger cohort, or a larger failure."
    )


def _law(population: int, marked: int, draws: int) -> list[float]:
    """P[H = h] for h from 0 to draws, where so many of a population are marked."""
    log = lambda a, b: math.lgamma(a + 1) - math.lgamma(b + 1) - math.lgamma(a - b + 1)
    whole, found = log(population, draws), []
    for h in range(draws + 1):
        there = h <= marked and draws - h <= population - marked
        found.append(math.exp(log(marked, h) + log(population - marked, draws - h) - whole) if there else 0.0)
    return found
