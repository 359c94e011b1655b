"""What may not be combined: checks of whole chains, of chains in a simulation, and of cohorts under noise."""

import math
from typing import Any

import jax
import numpy as np

from fedjax_sim.aggregate.base import Facts, Reducer, Transform
from fedjax_sim.core.arrays import PyTree, Shapes
from fedjax_sim.core.errors import ArgumentError, is_traced
from fedjax_sim.core.types import Cohort

TAIL = 9.0
"""Standard deviations of the sum's noise for which a modular sum must have room."""


LARGEST_SKELLAM = 4096.0
"""Standard deviation, in units, below which Poisson numbers of half its square are exact in float32."""


def check_chain(transforms: tuple[Transform, ...], stages: list[Facts], facts: Facts, reducer: Reducer) -> None:
    """Raise `ArgumentError` on a combination that would be wrong whatever the simulation."""
    names = ", ".join(t.name for t in transforms)
    _check_stages([t for t in transforms if t.host is not None], reducer)
    for t, before, after in zip(transforms[1:], stages[:-1], transforms[:-1], strict=True):
        if before.modulus is not None:
            raise ArgumentError(
                f"{t.name} stands after {after.name}, whose masked words it would change: put it before."
            )
    for t, before, after in zip(transforms, [Facts(), *stages], stages, strict=False):
        added = after.noise[len(before.noise) :]
        if before.integers and any(m.where == "central" and m.of == "value" for m in added):
            raise ArgumentError(
                f"{t.name} stands after a quantiser, where the sum is of integers: put it before. Its scale follows "
                "the bound at the chain's end all the same."
            )
    if facts.weighted and facts.max_weight == 1 and reducer.weight == "examples":
        raise ArgumentError(
            f"{names} sums with whole weights of at most 1, and {reducer.name} weights clients by examples: use "
            'reduce=fs.aggregate.mean(weight="uniform"), or secure_sum(max_weight=).'
        )
    if facts.noisy and reducer.weight == "examples":
        raise ArgumentError(
            f"{names} adds noise, and {reducer.name} weights clients by examples: one client's "
            'influence is then not bounded. Use reduce=fs.aggregate.mean(weight="uniform").'
        )
    _check_reducer(names, facts, reducer)
    if facts.modulus is not None and not facts.linear:
        alone = ", ".join(t.name for t in transforms if t.receives)
        raise ArgumentError(
            f"{names}: {alone} decodes messages one by one, and a secure sum lets only their sum be seen. Use a "
            "transform whose sum decodes, such as a quantiser with a shared range."
        )
    if facts.noisy and facts.rows:
        raise ArgumentError(
            f"{names} keeps rows on its clients and adds noise for privacy: what a client sends would depend on the "
            "rounds that drew it before, which no accountant of sampling covers. Leave out one of them."
        )
    values = [m for m in facts.noise if m.of == "value"]
    if facts.noisy and not values:
        raise ArgumentError(
            f"{names} adds noise to a statistic only, and sends the value in clear: add noise to the value too, or "
            "set the statistic's noise to 0."
        )
    if len(values) > 1:
        both = " and ".join(m.transform or m.kind for m in values)
        raise ArgumentError(f"{both} both add noise to the value: keep one, with the multiplier that you mean.")
    if facts.modulus is None and any(m.where == "distributed" for m in values):
        raise ArgumentError(
            f"{names} has each client add a share of the noise, too little to protect its own message: let "
            "fs.aggregate.secure_sum() follow, or take a central or a local noise."
        )
    central = [m for m in values if m.where != "local"]
    if central and not facts.clipped:
        raise ArgumentError(
            f"{names} adds noise, and what is summed has no L2 bound: clip, and let nothing after the clip undo it."
        )
    if facts.noisy and facts.leaks is not None:
        raise ArgumentError(f"{names} adds noise, and {facts.leaks} without noise: its privacy would not hold.")


def _check_stages(staged: list[Transform], reducer: Reducer) -> None:
    """Host stages of a chain."""
    if len(staged) > 1:
        raise ArgumentError(f"{' and '.join(t.name for t in staged)} both have a host stage: a chain has one at most.")
    if any(t.host is not None and t.host.between is not None for t in staged) and not reducer.linear:
        raise ArgumentError(f"{staged[0].name} changes the sum on the host, and {reducer.name} is not a sum: use mean.")


def _check_reducer(names: str, facts: Facts, reducer: Reducer) -> None:
    """A reducer is whole, and sees what it needs."""
    if reducer.by_coordinate and (reducer.linear or reducer.keeps_state):
        raise ArgumentError(f"{reducer.name}: by_coordinate=True is for a reducer that collects, and keeps no state.")
    if reducer.linear and reducer.keeps_state:
        raise ArgumentError(f"{reducer.name} has init= and no collect=, which would use and change its state.")
    if facts.noisy and not reducer.linear:
        raise ArgumentError(f"{names} adds noise for a sum, and {reducer.name} is not a sum: use mean.")
    if facts.modulus is not None and not reducer.linear:
        raise ArgumentError(f"{names} hides the messages, and {reducer.name} needs each of them: use mean.")


def check_build(aggregator: Any, states: PyTree, payload_shapes: Shapes, capacity: int, expected: float) -> None:
    """Raise `ArgumentError` on a chain that does not fit its payload or its cohort's size.

    Args:
        aggregator: the chain.
        states: its first states.
        payload_shapes: of one client's payload.
        capacity: clients of a cohort at most.
        expected: the expected cohort.
    """
    facts: Facts = aggregator.facts
    if not facts.noisy and facts.modulus is None:
        return
    bound, step = aggregator.bound_and_step(states, payload_shapes)
    if is_traced(bound) or is_traced(step) or any(is_traced(leaf) for leaf in jax.tree.leaves(states)):
        return
    summed = [m for m in aggregator.mechanisms(expected) if m.of == "value" and m.where != "local"]
    if summed and not math.isfinite(float(bound)):
        raise ArgumentError(
            f"{aggregator.name} adds noise, and the L2 bound of what is summed is {float(bound)}: every part of the "
            "payload must be clipped, and no transform may undo it."
        )
    for m in summed:
        sharers = (m.details or {}).get("survivors") or expected
        share = m.multiplier * float(bound) / (float(step) * sharers**0.5)
        if m.kind == "skellam" and share >= LARGEST_SKELLAM:
            raise ArgumentError(
                f"{aggregator.name}: a client's share of the noise has a standard deviation of {share:.4g} units, and "
                f"Skellam numbers are exact below {LARGEST_SKELLAM:g}: take fewer bits in the quantiser, or "
                "discrete_gaussian_noise."
            )
    if facts.modulus is None:
        return
    weight = 1.0 if facts.max_weight is None else facts.max_weight
    reach = capacity * weight * (facts.largest or 0.0)
    reach += sum(TAIL * m.multiplier * float(bound) / float(step) for m in summed if m.where == "distributed")
    if reach >= facts.modulus / 2:
        raise ArgumentError(
            f"{aggregator.name}: {capacity} clients of integers up to {facts.largest:g}, weights up to {weight:g} and "
            f"noise reach {reach:.3g} in the sum, and modulus/2 is {facts.modulus / 2:g}: take fewer bits in the "
            "quantiser, a larger modulus, a smaller max_weight or a smaller cohort."
        )


def check_sampler(aggregator: Any, sampler: str, has_event: bool) -> None:
    """Raise `ArgumentError` where noise could not be accounted for; local noise can, whoever is drawn."""
    if not has_event and any(m.where != "local" for m in aggregator.facts.noise):
        raise ArgumentError(
            f"{sampler} has no accounting event, and {aggregator.name} adds noise for privacy, which could not be "
            "accounted: use fs.sampler.poisson or fs.sampler.uniform."
        )


def check_cohort(aggregator: Any, cohort: Cohort, sampler: str) -> None:
    """Raise `ArgumentError` where a cohort's importance weights would break the bound that noise is scaled by."""
    facts: Facts = aggregator.facts
    weight = np.asarray(cohort.weight)[np.asarray(cohort.valid, bool)]
    if facts.noisy and not (weight == 1).all():
        worst = weight[np.argmax(np.abs(weight - 1))]
        raise ArgumentError(
            f"{sampler}: a cohort's importance weight is {worst}, and {aggregator.name} adds noise scaled by the bound "
            "of weight 1: draw clients with equal chances."
        )
    if facts.max_weight is not None and not ((weight == np.round(weight)) & (weight <= facts.max_weight)).all():
        raise ArgumentError(
            f"{sampler}: a cohort's importance weights reach {weight.max()}, and {aggregator.name} sums with whole "
            f"weights up to {facts.max_weight:g}: draw clients with equal chances, or raise max_weight."
        )
