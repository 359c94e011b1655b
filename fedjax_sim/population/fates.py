"""Transforms of samplers that say how many are invited, and what becomes of them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from fedjax_sim.core.errors import check, check_count, check_fraction, check_positive
from fedjax_sim.core.rng import Purpose
from fedjax_sim.population.availability import Numbers, Transform, separation_alone
from fedjax_sim.population.stages import Course, Moment, Stage, check_length
from fedjax_sim.population.transformed import extended

Shares = tuple[float, float] | Callable[[np.ndarray], np.ndarray]
"""(least, most), or a quantile function, `[n] in (0, 1) -> [n] shares`."""


def over_select(factor: float, keep: int | None = None) -> Transform:
    """More clients are invited than are wanted, and the fastest that come are kept, ties by id.

    Those that come later have worked for nothing: `population/late`, `clock/waste`. The slow are kept less often than
    they
    are invited: `population/share_CLASS` shows it. No accounting event: who is kept depends on how much data each has.

    Args:
        factor: at least 1; a sampler of m clients invites ceil(factor m).
        keep: how many; None for m.

    Example:
        >>> import fedjax_sim as fs
        >>> sampler = fs.population.over_select(1.3)(fs.sampler.uniform(10))
        >>> sampler.capacity(1000), sampler.expected(1000)
        (13, 10.0)
    """
    check(math.isfinite(factor) and factor >= 1, "factor", factor, "must be at least 1.")
    if keep is not None:
        check_count("keep", keep)

    def fits(num_clients: int, size: int, invited: int) -> None:
        check(keep is None or keep <= invited, "keep", keep, f"only {invited} clients are invited.")

    def course(course: Course, moment: Moment) -> Course:
        return dataclasses.replace(course, keep=course.size if keep is None else keep)

    return _transform(
        Stage(
            name=f"over_select({factor})" if keep is None else f"over_select({factor}, {keep})",
            invited=lambda size: math.ceil(factor * size - 1e-9),
            course=course,
            check=fits,
            needs="clock",
        )
    )


def deadline(seconds: float, partial: Literal["drop", "keep"] = "drop", min_cohort: int = 0) -> Transform:
    """After so many seconds the server waits no more; who comes at that very moment is in time.

    Below `min_cohort` the round is abandoned: nothing changes but the clock, and `population/abandoned` is 1. No
    accounting event: who is in time depends on how much data each has.

    Args:
        seconds: from the invitation on.
        partial: "drop" the work of those that are late, or "keep" the steps that leave time to send them.
        min_cohort: clients that must arrive.

    Example:
        >>> import fedjax_sim as fs
        >>> sampler = fs.population.deadline(60.0, min_cohort=3)(fs.sampler.uniform(10))
        >>> sampler.name
        'uniform(10) | deadline(60.0)'
    """
    check_positive("seconds", seconds)
    check(partial in ("drop", "keep"), "partial", partial, 'must be "drop" or "keep".')
    check_count("min_cohort", min_cohort, minimum=0)

    def fits(num_clients: int, size: int, invited: int) -> None:
        check(min_cohort <= invited, "min_cohort", min_cohort, f"only {invited} clients are invited.")

    def course(course: Course, moment: Moment) -> Course:
        first = min(seconds, course.deadline)
        least = max(min_cohort, course.least)
        return dataclasses.replace(course, deadline=first, partial=course.partial or partial == "keep", least=least)

    more = ", partial='keep'" if partial == "keep" else ""
    return _transform(Stage(name=f"deadline({seconds}{more})", course=course, check=fits, needs="clock"))


def dropout(chance: Numbers, when: Literal["before", "after", "uniform"] = "after") -> Transform:
    """Clients whose update is lost, each with a chance of its own; their rows stay as they were.

    What they received, and computed until then, is spent all the same.

    Accounting: of one chance for all, the event of those that were drawn stays a bound, as a coin is no one's data; of
    chances that differ, a minimum separation alone.

    Args:
        chance: p in [0, 1], or [K] of them.
        when: "before" they train, "after" it, or at a "uniform" moment of it.

    Example:
        >>> import fedjax_sim as fs
        >>> sampler = fs.population.dropout(0.5)(fs.sampler.uniform(10))
        >>> cohort, _ = sampler.sample(sampler.init(100), round=0, seed=0)
        >>> int(cohort.valid.sum()), int(cohort.arrives.sum() + cohort.told.report["population/dropped"])
        (10, 10)
    """
    p = np.asarray(chance, np.float64)
    check(
        p.ndim <= 1 and bool(((p >= 0) & (p <= 1)).all()), "chance", chance, "must lie in [0, 1]; one, or one a client."
    )
    check(when in ("before", "after", "uniform"), "when", when, 'must be "before", "after" or "uniform".')

    def course(course: Course, moment: Moment) -> Course:
        u = moment.uniforms(Purpose.FATE, course.ids)
        each = p[course.ids] if p.ndim else p
        lost = course.valid & (u < each)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = {"before": 0.0, "after": 1.0, "uniform": u / each}[when]  # given u < p, u / p is uniform
        worked = np.where(lost & ~course.lost, np.minimum(share, course.worked), course.worked)
        return dataclasses.replace(course, lost=course.lost | lost, worked=worked)

    return _transform(
        Stage(
            name=f"dropout({float(p)})" if not p.ndim else f"dropout({len(p)} chances)",
            course=course,
            event=separation_alone if p.ndim else _unchanged,
            check=lambda num_clients, size, invited: check_length("chance", p, num_clients),
            loses=bool((p > 0).any()),
        )
    )


def partial_work(shares: Shares) -> Transform:
    """Clients that take only a share of their local steps, at least one, and send what they have.

    As in FedProx (Li et al. 2020, section 5.2), and for FedNova, which undoes the difference. Accounting: the sampler's
    event stays, as the share is no one's data.

    Args:
        shares: (least, most), between which a client's share of a round is uniform; or a function that takes [n]
            uniform numbers to [n] shares in (0, 1], a quantile function.

    Example:
        >>> import fedjax_sim as fs
        >>> sampler = fs.population.partial_work((0.1, 1.0))(fs.sampler.uniform(10))
        >>> sampler.name
        'uniform(10) | partial_work'
    """
    if not callable(shares):
        least, most = shares
        check_fraction("shares", least, closed=True)
        check(least <= most <= 1, "shares", shares, "must be (least, most), in [0, 1].")
        quantile = lambda u: least + (most - least) * u
    else:
        quantile = shares

    def course(course: Course, moment: Moment) -> Course:
        moment.need("fs.population.partial_work")
        assert course.steps is not None
        share = np.asarray(quantile(moment.uniforms(Purpose.FATE, course.ids)), np.float64)
        good = share.shape == course.ids.shape and bool(((share >= 0) & (share <= 1)).all())
        check(good, "shares", share, "must give [n] numbers in (0, 1].")
        return course.with_steps(
            np.minimum(np.maximum(np.ceil(course.steps * share - 1e-9), 1), course.steps).astype(np.int64)
        )

    return _transform(Stage(name="partial_work", course=course, event=_unchanged, needs="work"))


def _unchanged(event: Any) -> Any:
    return event


def _transform(stage: Stage) -> Transform:
    return lambda sampler: extended(sampler, stage)
