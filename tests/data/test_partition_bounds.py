"""Every random partitioner: how often two rows meet, by the law's own probability, within exact binomial bounds."""

import inspect

import numpy as np
import pytest
from scipy import stats

import fedjax_sim as fs

TRIALS = 4000
SURE = 1 - 1e-7
ROWS = 12


def together(sizes):
    """Two given rows are at one client, if rows are dealt at random."""
    sizes = np.asarray(sizes)
    return (sizes * (sizes - 1)).sum() / (sizes.sum() * (sizes.sum() - 1))


def at_the_first(rows, below):
    """Two given of n rows are both at client 0, which gets round(n p) of them; `below(t)` is P(p < t)."""
    n = np.arange(rows + 1)
    chance = below(np.minimum((n + 0.5) / rows, 1)) - below(np.maximum((n - 0.5) / rows, 0))
    return (chance * n * (n - 1)).sum() / (rows * (rows - 1))


def polya(*concentration):
    """Two draws from a mixture of that Dirichlet law are of one class."""
    a = np.asarray(concentration)
    return (a * (a + 1)).sum() / (a.sum() * (a.sum() + 1))


def logistic_normal(sigma):
    """Shares s / (s + t) of two log-normal numbers."""
    return lambda t: stats.norm.cdf(np.log(np.maximum(t, 1e-300) / np.maximum(1 - t, 1e-300)) / (sigma * 2**0.5))


def meet(held, labels):
    return any({0, 1} <= set(rows) for rows in held)


def meet_at_the_first(held, labels):
    return {0, 1} <= set(held[0])


def one_class(held, labels):
    return len({labels[row] for row in held[0]}) == 1


def one_coarse_class(held, labels):
    return len({labels[row] // 2 for row in held[0]}) == 1


DISTINCT, ONE, FOUR = np.arange(6), np.zeros(ROWS, int), np.arange(ROWS) % 4
FIRST = [2, 0, 0]
P = fs.partition
# partitioner, labels, what may happen, its probability
LAWS = {
    "iid": (P.iid(4), ONE, meet, together([3] * 4)),
    "linear": (P.linear(3), ONE, meet, together([2, 4, 6])),
    "square": (P.square(2), ONE, meet, together([2, 10])),
    "exponential": (P.exponential(2), ONE, meet, together([3, 9])),
    "power_law": (P.power_law(1.0, 2), ONE, meet, together([8, 4])),
    "shards": (P.shards(3, 2), DISTINCT, meet, 1 / 5),
    "pathological": (P.pathological(2, 3), DISTINCT, meet, 1 / 5),
    "dirichlet": (P.dirichlet(0.5, 3), ONE, meet_at_the_first, at_the_first(ROWS, stats.beta(0.5, 1).cdf)),
    "quantity_dirichlet": (
        P.quantity_dirichlet(0.7, 2),
        ONE,
        meet_at_the_first,
        at_the_first(ROWS, stats.beta(0.7, 0.7).cdf),
    ),
    "lognormal": (P.lognormal(1.5, 2), ONE, meet_at_the_first, at_the_first(ROWS, logistic_normal(1.5))),
    "dirichlet_labels": (P.dirichlet_labels(2.0, 3, sizes=FIRST), FOUR, one_class, polya(0.5, 0.5, 0.5, 0.5)),
    "dirichlet_labels, prior": (
        P.dirichlet_labels(2.0, 3, prior=[1, 1, 1, 5], sizes=FIRST),
        FOUR,
        one_class,
        polya(0.25, 0.25, 0.25, 1.25),
    ),
    "dirichlet_labels, per coordinate": (
        P.dirichlet_labels(2.0, 3, sizes=FIRST, per_coordinate=True),
        FOUR,
        one_class,
        polya(2, 2, 2, 2),
    ),
    "pachinko, coarse": (P.pachinko(0.5, 1.0, 3, FOUR // 2, FIRST), FOUR, one_coarse_class, polya(0.5, 0.5)),
    "pachinko, fine": (P.pachinko(0.5, 1.0, 3, FOUR // 2, FIRST), FOUR, one_class, polya(0.5, 0.5) * polya(1, 1)),
}


@pytest.mark.parametrize("law", LAWS)
def test_what_may_happen_happens_as_often_as_the_law_says(law):
    partitioner, labels, event, probability = LAWS[law]
    generator = np.random.default_rng(0)
    happened = 0
    for _ in range(TRIALS):
        made = partitioner(labels, len(labels), generator)
        happened += event([part.tolist() for part in np.split(made.index, made.offsets[1:-1])], labels)
    bounds = stats.binomtest(happened, TRIALS).proportion_ci(SURE, "exact")
    assert bounds.low <= probability <= bounds.high
    for other in 0.8 * probability, 1.25 * probability:  # the test has teeth
        assert not bounds.low <= other <= bounds.high


def test_every_random_partitioner_is_here():
    made = {
        name
        for name, value in vars(fs.partition).items()
        if inspect.isfunction(value) and value.__annotations__.get("return") is fs.partition.Partitioner
    }
    assert {law.split(",")[0] for law in LAWS} == made - {"by_column"}  # which draws nothing
