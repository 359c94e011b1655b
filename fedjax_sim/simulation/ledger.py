"""What the rounds of a state released, in plain values: the sampler's law, the noise, and for shares of it who sent.

A ledger is a list of entries in the order of the rounds, each of equal rounds one after another:

    {"sampler": "poisson(0.2) of 50", "sampling": {"kind": "poisson", ...}, "mechanisms": [{"kind": "gaussian", ...}],
     "rounds": 5, "counts": [[10, 9, 3], [8, 8, 2]]}

`mechanisms` is empty where a phase was released without noise; `counts` are (clients drawn, clients that sent their
share of noise, rounds), where noise is shared out. It is saved with the state, so that a round costs what it cost then.
"""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate import Context, Mechanism
from fedjax_sim.aggregate.folded import empty_columns
from fedjax_sim.aggregate.privacy.correlated_noise import banded_sensitivity
from fedjax_sim.core import pytree
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import ArgumentError, is_traced
from fedjax_sim.engine.parts import Parts
from fedjax_sim.population.sampling import SamplingEvent, SeparationEvent
from fedjax_sim.privacy.rounds import DISCRETE, Rounds
from fedjax_sim.simulation.participation import event

Record = dict[str, Any]
"""An entry."""

_SETTING = ("sampler", "sampling", "mechanisms")


def noise(parts: Parts) -> tuple[Any, ...]:
    """All noise of a round, with what accounting needs.

    Raises:
        ArgumentError: a phase sends its aggregate without noise.
    """
    found: list[Any] = []
    for i, (phase, sent) in enumerate(zip(parts.phases, parts.sent, strict=True)):
        aggregator = phase.aggregator
        if not aggregator.facts.noisy:
            of = f"phase {i} of {len(parts.phases)}: " if len(parts.phases) > 1 else ""
            raise ArgumentError(
                f"{of}{aggregator.name} adds no noise, so that there is no privacy to account for: put "
                "fs.aggregate.gaussian_noise(multiplier) into the chain, after a clip."
            )
        for mechanism in aggregator.mechanisms(parts.expected):
            found.append(_scaled(mechanism, aggregator, sent.payload, parts.expected))
    return tuple(found)


def _scaled(mechanism: Any, aggregator: PyTree, payload: PyTree, expected: float) -> Any:
    """With the bound in integer units and the dimension, where the noise is discrete."""
    if mechanism.kind not in DISCRETE:
        return mechanism
    states, rows = aggregator.init(payload)
    bound, step = aggregator.bound_and_step(states, payload)
    if is_traced(bound) or is_traced(step):
        raise ArgumentError(f"{aggregator.name}: its bound is traced, and accounting needs a number.")
    zero, one = jnp.zeros((), jnp.int32), jnp.ones(())
    unbounded = jnp.asarray(jnp.inf, jnp.float32)
    key = jax.random.key(0)
    context = Context(zero, zero, key, unbounded, zero, weight=one, expected=expected, step=one, receive_key=key)
    context = context._replace(columns=empty_columns(aggregator.host))
    message = jax.eval_shape(lambda p: aggregator.client(key, states, rows, p, context)[0], payload)
    shares = (mechanism.details or {}).get("survivors") or expected
    details = {"norm": float(bound) / float(step), "dimension": pytree.size(message), "shares": shares}
    return mechanism._replace(details=details)


def setting(parts: Parts) -> Record:
    """What each round of a simulation releases: an entry without rounds."""
    noisy = all(phase.aggregator.facts.noisy for phase in parts.phases)
    law = event(parts.sampler, parts.data.num_clients)
    made = {
        "sampler": f"{parts.sampler.name} of {parts.data.num_clients}",
        "sampling": None if law is None else _fields(law, (*SamplingEvent._fields, *SeparationEvent._fields)),
        "mechanisms": [_fields(m, Mechanism._fields) for m in noise(parts)] if noisy else [],
    }
    return json.loads(json.dumps(made, default=_number))


def _fields(of: Any, names: tuple[str, ...]) -> Record:
    return {name: getattr(of, name) for name in names if hasattr(of, name)}


def _number(value: PyTree) -> Any:
    """A scalar of NumPy's or JAX's as a number; what else is no plain value is left out."""
    return value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else None


def entered(ledger: Any, setting: Record, drawn: int, sent: int) -> list[Record]:
    """The ledger with one more round; the one given stays as it is."""
    ledger = ledger if isinstance(ledger, list) else []
    before, last = (ledger[:-1], ledger[-1]) if _goes_on(ledger, setting) else (ledger, {**setting, "rounds": 0})
    last = {**last, "rounds": last["rounds"] + 1}
    if any(m["where"] == "distributed" for m in setting["mechanisms"]):
        counts = list(last.get("counts", []))
        at = next((i for i, of in enumerate(counts) if of[:2] == [drawn, sent]), len(counts))
        counts[at:] = [[drawn, sent, 1 + (counts[at][2] if at < len(counts) else 0)], *counts[at + 1 :]]
        last["counts"] = counts
    return [*before, last]


def _goes_on(ledger: list[Record], setting: Record) -> bool:
    """Whether rounds of that setting join the last entry."""
    last = ledger[-1] if ledger else None
    return isinstance(last, dict) and all(last.get(name) == setting[name] for name in _SETTING)


def planned(ledger: list[Record], setting: Record, rounds: int) -> list[Record]:
    """The ledger with so many more rounds, of cohorts that are not drawn yet."""
    if _goes_on(ledger, setting) and "counts" not in ledger[-1]:
        return [*ledger[:-1], {**ledger[-1], "rounds": ledger[-1]["rounds"] + rounds}]
    return [*ledger, {**setting, "rounds": rounds}] if rounds or not ledger else ledger


def checked(ledger: Any, round: int) -> list[Record]:
    """The ledger of a state after so many rounds.

    Raises:
        ArgumentError: it does not know them all.
    """
    ledger = ledger or []
    try:
        known = sum(int(entry["rounds"]) for entry in ledger)
        whole = all(sum(n for *_, n in e["counts"]) == e["rounds"] for e in ledger if "counts" in e)
    except (TypeError, KeyError, ValueError, AttributeError):
        known, whole = 0, True
    if known != round or not whole:
        raise ArgumentError(
            f"the state's ledger knows {known if whole else 'less than all'} of its {round} rounds, so that what they "
            "released cannot be said: it is from a version that did not write it down, or was changed. Account for "
            "such rounds with fs.privacy.epsilon and the settings that they had."
        )
    return ledger


def rounds(ledger: list[Record]) -> list[Rounds]:
    """Entries as accountants read them."""
    try:
        return [_rounds(entry) for entry in ledger]
    except (TypeError, KeyError, ValueError) as error:
        raise ArgumentError(f"the state's ledger is none that this version writes: {error!r}.") from error


def _rounds(entry: Record) -> Rounds:
    sampling = entry["sampling"]
    if sampling is not None:
        sampling = (SeparationEvent if "separation" in sampling else SamplingEvent)(**sampling)
    counts = None if "counts" not in entry else {(drawn, sent): n for drawn, sent, n in entry["counts"]}
    mechanisms = tuple(_mechanism(**m) for m in entry["mechanisms"])
    return Rounds(mechanisms, sampling, entry["rounds"], entry["sampler"], counts)


def _mechanism(**fields: Any) -> Mechanism:
    m = Mechanism(**fields)
    if m.kind == "banded":
        column, separation = m.details["coefficients"], m.details["separation"]
        m = m._replace(details={**m.details, "sensitivity": functools.partial(banded_sensitivity, column, separation)})
    return m
