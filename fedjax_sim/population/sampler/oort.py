"""Oort (Lai et al. 2021, Algorithm 1): clients that teach much and are fast, with some that nobody knows yet."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_sim.core import rng
from fedjax_sim.core.errors import check, check_count, check_fraction, check_not_negative
from fedjax_sim.core.rng import Purpose
from fedjax_sim.core.types import Cohort
from fedjax_sim.population.sampling import Sampler, cohort

State = dict[str, Any]
"""`utility`, `seconds` and the round it was `last` trained in, from 1 (0: never), [K] each; the `round`; `gain`s of
this window of rounds and of the one before, [2]; the `percentile` of the pacer."""


def oort(
    cohort_size: int,
    sizes: Sequence[int] | np.ndarray | None = None,
    *,
    explore: float = 0.9,
    decay: float = 0.98,
    explore_least: float = 0.2,
    alpha: float = 2.0,
    cutoff: float = 0.95,
    clip: float = 95.0,
    percentile: float = 30.0,
    pacer_step: float = 5.0,
    pacer_rounds: int = 20,
) -> Sampler:
    r"""Draws by what clients' losses promise, how long ago they were looked at, and how fast they are.

    .. math:: \mathrm{util}(k) = \Big(n_k \ell_k + \sqrt{0.1 \ln R / L_k}\Big)
        \cdot \Big(\frac{T}{t_k}\Big)^{\alpha \, [T < t_k]}

    with the mean loss :math:`\ell_k` of a client's last training, in round :math:`L_k` of R so far, and the
    :math:`t_k` seconds that it took. A share of the cohort, which falls from `explore`, are clients that never trained,
    drawn uniformly. The others are drawn in proportion to util among those that reach `cutoff` of what the last one
    needed would have. T is a percentile of the known times, and rises where a window of rounds gained less than the one
    before (the pacer).

    Deviations from the paper: :math:`n_k \ell_k` in place of :math:`n_k \sqrt{\sum_i \ell_{ki}^2 / n_k}`, which is the
    same where a client's examples have one loss; T moves by percentiles, as in the authors' program; rounds count from
    1, so that no L is 0; new clients are not preferred by speed, which nobody knows yet; nobody is struck off.

    It observes each round, so that rounds are not planned ahead, and times need a fleet: without one :math:`t_k` plays
    no part. No accounting event: refused under noise for privacy.

    Args:
        cohort_size: m.
        sizes: [K] n, examples of each client, `data.sizes`; None to count all alike.
        explore, decay, explore_least: the share of new clients is max(explore_least, explore decay^round).
        alpha: at least 0.
        cutoff: c in [0, 1].
        clip: the percentile of utilities at which larger ones are cut.
        percentile, pacer_step, pacer_rounds: T begins at this percentile of times, and moves by so much after windows
            of so many rounds.

    Example:
        >>> import fedjax_sim as fs
        >>> sampler = fs.sampler.oort(5)
        >>> cohort, _ = sampler.sample(sampler.init(100), round=0, seed=0)
        >>> len(set(cohort.ids.tolist()))
        5
    """
    check_count("cohort_size", cohort_size)
    _check_shares(explore=explore, decay=decay, explore_least=explore_least, cutoff=cutoff)
    _check_percentiles(clip=clip, percentile=percentile)
    check_not_negative("alpha", alpha)
    check_not_negative("pacer_step", pacer_step)
    check_count("pacer_rounds", pacer_rounds)
    n = None if sizes is None else np.asarray(sizes, np.float64)
    check(n is None or (n.ndim == 1 and (n >= 0).all()), "sizes", sizes, "must be [K], none negative.")

    def init(num_clients: int) -> State:
        check(cohort_size <= num_clients, "cohort_size", cohort_size, f"the population has {num_clients} clients.")
        check(n is None or len(n) == num_clients, "sizes", sizes, f"the population has {num_clients} clients.")
        nothing = {name: np.zeros(num_clients) for name in ("utility", "seconds")}
        own = {"gain": np.zeros(2), "percentile": np.float64(percentile), "round": np.int64(0)}
        return {**nothing, "last": np.zeros(num_clients, np.int64), **own}

    def sample(state: State, round: int, seed: int) -> tuple[Cohort, State]:
        draw = rng.generator(seed, Purpose.SAMPLE, round)
        known, new = np.flatnonzero(state["last"] > 0), np.flatnonzero(state["last"] == 0)
        share = max(explore_least, explore * decay**round)
        count = min(len(new), max(round_half(share * cohort_size), cohort_size - len(known)))
        ids = draw.choice(new, count, replace=False)
        if cohort_size > count:
            scores = utilities(state, known, round + 1, alpha, clip)
            ids = np.concatenate([ids, exploited(draw, known, scores, cohort_size - count, cutoff)])
        return cohort(ids, cohort_size), {**state, "round": np.int64(round)}

    def observe(state: State, drawn: Cohort, metrics: dict[str, np.ndarray]) -> State:
        losses = np.asarray(metrics["client/loss"], np.float64)
        came = np.asarray(drawn.valid, bool) & np.isfinite(losses)
        ids, now = np.asarray(drawn.ids)[came], int(state["round"]) + 1
        utility, seconds, last = (state[name].copy() for name in ("utility", "seconds", "last"))
        utility[ids], last[ids] = losses[came] * (1.0 if n is None else n[ids]), now
        if "clock/seconds" in metrics:
            seconds[ids] = metrics["clock/seconds"][came]
        paced = _paced(state, now, float(utility[ids].sum()), pacer_step, pacer_rounds)
        return {**state, "utility": utility, "seconds": seconds, "last": last, **paced}

    return Sampler(
        init=init,
        sample=sample,
        capacity=lambda num_clients: cohort_size,
        expected=lambda num_clients: float(cohort_size),
        observe=observe,
        name=f"oort({cohort_size})",
    )


def _paced(state: State, now: int, gained: float, step: float, rounds: int) -> State:
    """The windows' gains and the pacer's percentile, after a round that gained so much."""
    gain, pace = state["gain"] + np.array([0.0, gained]), state["percentile"]
    if now % rounds == 0:
        pace = np.float64(min(100.0, pace + step)) if gain[1] < gain[0] else pace
        gain = np.array([gain[1], 0.0])
    return {"gain": gain, "percentile": pace}


def _check_shares(**values: float) -> None:
    for name, value in values.items():
        check_fraction(name, value, closed=True)


def _check_percentiles(**values: float) -> None:
    for name, value in values.items():
        check(0 < value <= 100, name, value, "must lie in (0, 100], as a percentile.")


def round_half(value: float) -> int:
    """To the nearest whole number, halves up."""
    return int(np.floor(value + 0.5))


def utilities(state: State, known: np.ndarray, rounds: int, alpha: float, clip: float) -> np.ndarray:
    """[n] of clients that trained before, after so many rounds with this one.

    Example:
        >>> import numpy as np
        >>> from fedjax_sim.population.sampler.oort import utilities
        >>> state = {
        ...     "utility": np.zeros(1),
        ...     "seconds": np.zeros(1),
        ...     "last": np.array([1]),
        ...     "percentile": np.float64(30),
        ... }
        >>> utilities(state, np.array([0]), 10, alpha=2.0, clip=95.0).round(7)
        array([0.4798526])
    """
    utility, seconds, last = (state[name][known] for name in ("utility", "seconds", "last"))
    scores = np.minimum(utility, np.percentile(utility, clip)) + np.sqrt(0.1 * np.log(rounds) / last)
    timed = seconds > 0
    if timed.any():
        preferred = np.percentile(seconds[timed], float(state["percentile"]))
        slow = timed & (seconds > preferred)
        scores[slow] *= (preferred / seconds[slow]) ** alpha
    return scores


def exploited(
    draw: np.random.Generator, known: np.ndarray, scores: np.ndarray, count: int, cutoff: float
) -> np.ndarray:
    """[count] of the known, in proportion to their scores among those that reach a share of the last one needed's."""
    order = np.lexsort((known, -scores))
    last = scores[order[count - 1]]
    enough = scores >= min(cutoff * last, last)  # of negative losses a share would lie above the last one needed
    admitted, weights = known[enough], np.maximum(scores[enough], 1e-300)
    waits = draw.exponential(size=len(admitted)) / weights  # the first of so many events, one of each rate
    return admitted[np.argsort(waits, kind="stable")[:count]]
