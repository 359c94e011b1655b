"""Transforms of samplers that say who is there: those that are not are passed over, and others drawn for them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedjax_sim.core.errors import check, check_fraction, check_positive
from fedjax_sim.core.rng import Purpose
from fedjax_sim.population.sampling import Sampler
from fedjax_sim.population.stages import Moment, Stage, check_length
from fedjax_sim.population.transformed import extended

Transform = Callable[[Sampler], Sampler]
"""`Sampler -> Sampler`."""

Numbers = float | Sequence[float] | np.ndarray
"""One for all, or [K], one a client."""


def chain(sampler: Sampler, *transforms: Transform) -> Sampler:
    """The sampler under transforms, in the order of time: who is there, who is invited, who arrives.

    Each transform is a function `Sampler -> Sampler`; this is their composition. The accounting event is the sampler's
    as far as each transform says that it is still a bound, and none otherwise: then noise for privacy is refused.

    Args:
        sampler: who is drawn.
        transforms: from `fs.population`.

    Example:
        >>> import fedjax_sim as fs
        >>> here = fs.population.bernoulli(0.7)
        >>> sampler = fs.population.chain(fs.sampler.uniform(20), here, fs.population.dropout(0.05))
        >>> cohort, state = sampler.sample(sampler.init(1000), round=0, seed=0)
        >>> int(cohort.valid.sum()), int(cohort.told.report["population/selected"])
        (20, 20)
        >>> sampler.name
        'uniform(20) | bernoulli(0.7) | dropout(0.05)'
    """
    for i, transform in enumerate(transforms):
        check(callable(transform), f"transforms[{i}]", transform, "must be a function Sampler -> Sampler.")
        sampler = transform(sampler)
        check(isinstance(sampler, Sampler), f"transforms[{i}]'s value", sampler, "must be a fs.sampler.Sampler.")
    return sampler


def separation_alone(event: Any) -> Any:
    """A minimum separation holds whoever is left out; amplification by sampling does not."""
    return event if event is not None and event.kind == "min_separation" else None


def bernoulli(chance: Numbers) -> Transform:
    r"""Each client is there in a round with a chance of its own, apart from other rounds and clients.

    A sampler of m clients passes over those that are not there and still draws m; under `poisson` and those that take
    everybody, or a block, they are left out.

    Accounting: `bernoulli(q)` of `poisson(p)` is Poisson sampling with pq. For one chance for all, what
    `uniform` draws is as it was: by symmetry, each set is as likely. Chances that differ keep a minimum separation
    alone.

    Args:
        chance: q in [0, 1], or [K] of them.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.population.bernoulli(0.5)(fs.sampler.poisson(0.2)).event(100)
        SamplingEvent(kind='poisson', population=100, probability=0.1, cohort_size=None)
    """
    q = np.asarray(chance, np.float64)
    check(
        q.ndim <= 1 and bool(((q >= 0) & (q <= 1)).all()), "chance", chance, "must lie in [0, 1]; one, or one a client."
    )

    def event(law: Any) -> Any:
        if law is None or law.kind == "min_separation" or (law.kind == "without_replacement" and not q.ndim):
            return law
        return (
            law._replace(probability=law.probability * float(q)) if not q.ndim and law.kind == "poisson" and q else None
        )

    def on(ids: np.ndarray, moment: Moment) -> np.ndarray:
        return moment.uniforms(Purpose.AVAILABLE, ids) < (q[ids] if q.ndim else q)

    return _transform(
        Stage(
            name=f"bernoulli({float(q)})" if not q.ndim else f"bernoulli({len(q)} chances)",
            on=on,
            event=event,
            expected=lambda clients: clients * float(q.mean()),
            check=lambda num_clients, size, invited: check_length("chance", q, num_clients),
            loses=bool(q.ndim),
        )
    )


def markov(on_rate: float, off_rate: float) -> Transform:
    r"""Each client comes and goes by a chain of its own: on with rate a in a round when it is off, and off with rate b.

    It is on in a share :math:`\pi = a / (a + b)` of rounds, for 1 / b rounds on the average, and states k rounds apart
    correlate by :math:`(1 - a - b)^k`. It begins in the stationary law. Nothing is kept between rounds: of a client's
    uniform number of each round, below b sends it off and above 1 - a on, whatever it was, and between it stays. So its
    state is what the last such number said, which is looked for backwards: 1 / (a + b) rounds on the average (coupling
    from the past: Propp and Wilson 1996).

    Accounting: by symmetry, as of `bernoulli` with one chance, within a round; but who is there is not drawn anew in
    each, so that only a minimum separation stays.

    Args:
        on_rate: a in (0, 1].
        off_rate: b in [0, 1), with a + b at most 1.

    Example:
        >>> import fedjax_sim as fs
        >>> sampler = fs.population.markov(on_rate=0.1, off_rate=0.3)(fs.sampler.uniform(50))
        >>> report = sampler.sample(sampler.init(10_000), round=100, seed=0)[0].told.report
        >>> 0.1 < report["population/available"] / report["population/asked"] < 0.4
        True
    """
    check_fraction("on_rate", on_rate, closed=True)
    check_fraction("off_rate", off_rate, closed=True)
    check(on_rate > 0, "on_rate", on_rate, "must be above 0: nobody would ever be there.")
    check(
        on_rate + off_rate <= 1,
        "on_rate + off_rate",
        on_rate + off_rate,
        "must be at most 1: rates are chances of a round; take longer rounds to be shorter.",
    )

    def on(ids: np.ndarray, moment: Moment) -> np.ndarray:
        state, left = np.zeros(len(ids), bool), np.arange(len(ids))
        for round in range(moment.round, -1, -1):
            if not len(left):
                break
            u = moment.uniforms(Purpose.AVAILABLE, ids[left], round)
            if round == 0:
                state[left] = u < on_rate / (on_rate + off_rate)
                break
            state[left] = came = u > 1 - on_rate
            left = left[~came & (u >= off_rate)]
        return state

    return _transform(
        Stage(
            name=f"markov({on_rate}, {off_rate})",
            on=on,
            event=separation_alone,
            expected=lambda clients: clients * on_rate / (on_rate + off_rate),
        )
    )


def diurnal(mean: float, amplitude: float, period: float = 86_400.0, phase: Numbers = 0.0) -> Transform:
    r"""Each client is there with a chance that goes up and down with the time of its day.

    .. math:: q_k(t) = \bar q \left(1 + A \cos \frac{2 \pi (t - \varphi_k)}{P} \right)

    t is the simulated time at which the round begins, so that it needs a fleet. No accounting event.

    Args:
        mean: the mean chance.
        amplitude: A in [0, 1], of the mean; q may not exceed 1.
        period: P, seconds.
        phase: seconds at which the chance is greatest: one, or [K], such as clients' time zones.

    Example:
        >>> import fedjax_sim as fs
        >>> by_day = fs.population.diurnal(0.1, amplitude=0.8)  # 0.18 at time 0, and 0.02 twelve hours later
        >>> sampler = by_day(fs.sampler.uniform(10))
        >>> sampler.event is None
        True
    """
    check_fraction("mean", mean, closed=True)
    check_fraction("amplitude", amplitude, closed=True)
    check(mean * (1 + amplitude) <= 1, "amplitude", amplitude, f"the chance would reach {mean * (1 + amplitude):.4g}.")
    check_positive("period", period)
    phases = np.asarray(phase, np.float64)
    check(
        phases.ndim <= 1 and bool(np.isfinite(phases).all()), "phase", phase, "must be seconds: one, or one a client."
    )

    def on(ids: np.ndarray, moment: Moment) -> np.ndarray:
        of = phases[ids] if phases.ndim else phases
        q = mean * (1 + amplitude * np.cos(2 * math.pi * (moment.now - of) / period))
        return moment.uniforms(Purpose.AVAILABLE, ids) < q

    return _transform(
        Stage(
            name=f"diurnal({mean}, {amplitude})",
            on=on,
            expected=lambda clients: clients * mean,
            check=lambda num_clients, size, invited: check_length("phase", phases, num_clients),
            needs="clock",
        )
    )


def join(rounds: Sequence[int] | np.ndarray) -> Transform:
    """Clients that are there from a round on. Their rows are as the algorithm's `init` made them until then.

    Accounting: a minimum separation stays; no other event does.

    Args:
        rounds: [K], the first round of each client; 0 for one that is there from the start.

    Example:
        >>> import fedjax_sim as fs
        >>> late = fs.population.join([0, 0, 0, 7])(fs.sampler.cross_silo())
        >>> [int(late.sample(late.init(4), round, seed=0)[0].valid.sum()) for round in (6, 7)]
        [3, 4]
    """
    return _by_round("join", rounds, lambda round, of: round >= of)


def leave(rounds: Sequence[int] | np.ndarray) -> Transform:
    """Clients that are there until a round. Accounting: a minimum separation stays; no other event does.

    Args:
        rounds: [K], the first round without each client; a number beyond the last for one that stays.

    Example:
        >>> import fedjax_sim as fs
        >>> early = fs.population.leave([99, 99, 99, 7])(fs.sampler.cross_silo())
        >>> [int(early.sample(early.init(4), round, seed=0)[0].valid.sum()) for round in (6, 7)]
        [4, 3]
    """
    return _by_round("leave", rounds, lambda round, of: round < of)


def _by_round(name: str, rounds: Any, there: Callable[[int, np.ndarray], np.ndarray]) -> Transform:
    of = np.asarray(rounds)
    good = of.ndim == 1 and np.issubdtype(of.dtype, np.integer) and bool((of >= 0).all())
    check(good, "rounds", rounds, "must be [K] whole numbers, at least 0, one a client.")
    return _transform(
        Stage(
            name=f"{name}({len(of)} clients)",
            on=lambda ids, moment: there(moment.round, of[ids]),
            event=separation_alone,
            check=lambda num_clients, size, invited: check_length("rounds", of, num_clients),
            loses=True,
        )
    )


def _transform(stage: Stage) -> Transform:
    return lambda sampler: extended(sampler, stage)
