"""Power of choice: of some candidates, those whose loss is largest."""

import numpy as np

from fedjax_sim.core import rng
from fedjax_sim.core.errors import check, check_count
from fedjax_sim.core.rng import Purpose
from fedjax_sim.core.types import Cohort
from fedjax_sim.population.sampling import Sampler, cohort

TRIES = 100
"""Draws of all candidates before those that are missing are drawn at the price of the population."""


def power_of_choice(candidates: int, chosen: int, sizes: np.ndarray | None = None) -> Sampler:
    """Draws candidates in proportion to their examples, and takes those with the largest losses (Cho et al. 2022).

    Algorithm 1 of that paper. The candidates' mean losses are measured under the model that the round begins with,
    before it is planned: d passes over clients' data that FedAvg does not make. Ties go to the smaller id; a client
    without examples, or whose loss is NaN, comes last. No accounting event: who is chosen depends on the data, so that
    noise for privacy refuses it.

    Args:
        candidates: d, drawn without replacement, one after another in proportion to `sizes` of those that are left.
        chosen: m, at most d.
        sizes: [K] examples of each client, `data.sizes`; None to draw candidates uniformly.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> sampler = fs.sampler.power_of_choice(3, 2)
        >>> drawn, state = sampler.sample(sampler.init(10), round=0, seed=0)
        >>> cohort, _ = sampler.choose(state, drawn, np.array([0.1, 0.9, 0.5]))
        >>> cohort.ids.tolist() == drawn.ids[[1, 2]].tolist()
        True
    """
    check_count("candidates", candidates)
    check_count("chosen", chosen)
    check(chosen <= candidates, "chosen", chosen, f"must be at most candidates={candidates}.")
    weights = None if sizes is None else np.asarray(sizes, np.float64)
    if weights is not None:
        good = weights.ndim == 1 and np.isfinite(weights).all() and (weights >= 0).all()
        check(good and (weights > 0).sum() >= candidates, "sizes", sizes, "must be [K], d of them above 0.")
    ends = None if weights is None else np.cumsum(weights)

    def init(num_clients: int) -> int:
        check(candidates <= num_clients, "candidates", candidates, f"the population has {num_clients} clients.")
        check(ends is None or len(ends) == num_clients, "sizes", sizes, f"the population has {num_clients} clients.")
        return num_clients

    def sample(state: int, round: int, seed: int) -> tuple[Cohort, int]:
        draw, found = rng.generator(seed, Purpose.SAMPLE, round), []
        for _ in range(TRIES):  # whoever was drawn before is drawn anew: those that are left, in proportion
            at = draw.random(candidates)
            ids = np.searchsorted(ends, at * ends[-1], side="right") if ends is not None else (at * state).astype(int)
            found = list(dict.fromkeys([*found, *np.minimum(ids, state - 1).tolist()]))[:candidates]
            if len(found) == candidates:
                break
        else:
            found += _left(draw, np.ones(state) if weights is None else weights, found, candidates - len(found))
        return cohort(np.asarray(found, np.int32), candidates), state

    def choose(state: int, drawn: Cohort, losses: np.ndarray) -> tuple[Cohort, int]:
        last = np.where(np.isnan(losses), -np.inf, losses)
        places = np.lexsort((drawn.ids, -last, ~drawn.valid))[: min(chosen, int(drawn.valid.sum()))]
        return cohort(drawn.ids[places], chosen), state

    return Sampler(
        init=init,
        sample=sample,
        capacity=lambda num_clients: chosen,
        expected=lambda num_clients: float(chosen),
        name=f"power_of_choice({candidates}, {chosen})",
        choose=choose,
    )


def _left(draw: np.random.Generator, weights: np.ndarray, found: list[int], count: int) -> list[int]:
    """So many more, one after another in proportion to the weights of those not found yet.

    Who waits least for an event of that rate is drawn first (Efraimidis and Spirakis 2006).
    """
    rates = weights.copy()
    rates[found] = 0.0
    with np.errstate(divide="ignore", over="ignore"):
        waits = np.log(draw.exponential(size=len(rates))) - np.log(rates)  # logarithms, as rates may be any numbers
    return np.argsort(waits, kind="stable")[:count].tolist()
