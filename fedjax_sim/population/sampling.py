"""Samplers: who takes part in a round.

A `Sampler` is a bundle of functions. Draws depend on (seed, round) alone; nothing costs O(population) in a round.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from fedjax_sim.core import rng
from fedjax_sim.core.arrays import Array, Scalar
from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.core.rng import Purpose
from fedjax_sim.core.types import Cohort, SamplerState
from fedjax_sim.population.permutation import permuted


class SamplingEvent(NamedTuple):
    """What a privacy accountant needs to know of one round's draw.

    Attributes:
        kind: "poisson", or "without_replacement".
        population: K.
        probability: inclusion probability of a client, for "poisson".
        cohort_size: m, for "without_replacement".

    Example:
        >>> import fedjax_sim as fs
        >>> fs.sampler.poisson(0.1).event(1000)
        SamplingEvent(kind='poisson', population=1000, probability=0.1, cohort_size=None)
    """

    kind: str
    population: int
    probability: float | None = None
    cohort_size: int | None = None


class SeparationEvent(NamedTuple):
    """What an accountant needs to know of a sampler that keeps participations apart.

    Attributes:
        kind: "min_separation".
        population: K.
        cohort_size: m.
        separation: b, least rounds from one participation of a client to its next.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.sampler.min_separation(10, separation=5).event(1000)
        SeparationEvent(kind='min_separation', population=1000, cohort_size=10, separation=5)
    """

    kind: str
    population: int
    cohort_size: int
    separation: int


class Sample(Protocol):
    """`(state, round, seed) -> (cohort, state)`.

    Example:
        >>> import fedjax_sim as fs
        >>> def in_turn(state, round, seed):
        ...     return fs.sampler.cohort([round % state], capacity=1), state
        >>> draw: fs.sampler.Sample = in_turn
    """

    def __call__(self, state: SamplerState, round: int, seed: int, /) -> tuple[Cohort, SamplerState]: ...


Choose = Callable[[SamplerState, Cohort, np.ndarray], tuple[Cohort, SamplerState]]
"""`(state, candidates, losses [C]) -> (cohort, state)`."""

Observe = Callable[[SamplerState, Cohort, dict[str, np.ndarray]], SamplerState]
"""`(state, cohort, per-client values [C, ...]) -> state`."""


Pool = Callable[[SamplerState, int, int, int, int], np.ndarray]
"""`(state, round, seed, first, count) -> [n] ids`."""


class Sampler(NamedTuple):
    """Functions that draw cohorts.

    Attributes:
        init: `(num_clients) -> state`; raises when the population is too small.
        sample: `(state, round, seed) -> (Cohort, state)`, on the host.
        capacity: `(num_clients) -> C`, the static size of its cohorts. A draw may exceed it: the round's
            program is then compiled again for the larger cohort, which is never cut.
        expected: `(num_clients) -> float`, the expected number of clients.
        event: `(num_clients) -> SamplingEvent` or `SeparationEvent`, or None: nothing can be accounted.
        observe: `(state, cohort, values) -> state`, or None for a sampler that needs no feedback: its rounds may be
            planned ahead. `values` maps a metric's name, `client/loss`, to a NumPy array [C, ...] in the order of the
            cohort's places: NaN (a sum: 0) where a client did not train, or the place is empty.
        choose: `(state, candidates, losses) -> (cohort, state)`, or None. `sample` then draws candidates, on whose
            examples the round's own model is measured first: losses [C] float64, NaN for a client without examples. Its
            rounds are not planned ahead.
        name: for messages.
        columns: dict of name to what an empty place holds, a number or a small array: its cohorts have a column of that
            name, shape and dtype, which clients find as `batches.info[name]`. None for none. What is named `scale`,
            a float32 a client, multiplies its message in the sum, and not its weight in the mean.
        repeats: its cohorts may hold a client more than once. Copies train as of the round's start, each from draws of
            its own; the one at the latest place draws as it would alone, and its row is kept. Metrics are per place.
        pool: `(state, round, seed, first, count) -> [n] ids`, for a sampler of a fixed number of distinct clients:
            whom it would draw in places first .. first + count - 1 of this round, fewer only where the population
            ends. So that a transform finds others for those that are not there. None where nobody can be drawn instead.
        made, timed: what a transformed sampler is made of, and `(timing) -> Sampler`, which knows a simulation's work
            and clock: `fs.population`'s and the simulation's own affair.
        versions: how many server states before the round's own its cohorts may ask for by `Cohort.version`; so many are
            kept on the devices. 0 for none.

    Example:
        >>> import fedjax_sim as fs
        >>> in_turn = fs.sampler.Sampler(
        ...     init=lambda num_clients: num_clients,
        ...     sample=lambda state, round, seed: (fs.sampler.cohort([round % state], 1), state),
        ...     capacity=lambda num_clients: 1,
        ...     expected=lambda num_clients: 1.0,
        ... )
        >>> [int(in_turn.sample(3, round, seed=0)[0].ids[0]) for round in range(5)]
        [0, 1, 2, 0, 1]
    """

    init: Callable[[int], SamplerState]
    sample: Sample
    capacity: Callable[[int], int]
    expected: Callable[[int], float]
    event: Callable[[int], SamplingEvent | SeparationEvent] | None = None
    observe: Observe | None = None
    name: str = "sampler"
    columns: Mapping[str, Array | Scalar] | None = None
    repeats: bool = False
    versions: int = 0
    choose: Choose | None = None
    pool: Pool | None = None
    made: Any = None
    timed: Callable[[Any], Any] | None = None

    def __repr__(self) -> str:
        return f"Sampler({self.name})"

    @property
    def waits(self) -> bool:
        """A round cannot be planned before the one before it is over."""
        return self.observe is not None or self.choose is not None


def cohort(ids: np.ndarray, capacity: int) -> Cohort:
    """A cohort of `ids`, filled up with empty places to `capacity` (or longer, when the ids are more).

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> cohort = fs.sampler.cohort(np.array([4, 2]), capacity=3)
        >>> cohort.ids[cohort.valid], cohort.weight
        (array([4, 2], dtype=int32), array([1., 1., 0.], dtype=float32))
    """
    count, places = len(ids), max(capacity, len(ids))
    padded = np.zeros(places, np.int32)
    padded[:count] = ids
    valid = np.arange(places) < count
    return Cohort(padded, valid, valid.astype(np.float32))


def uniform(cohort_size: int) -> Sampler:
    """A fixed number of distinct clients, each set equally likely.

    Accounting event: sampling without replacement.

    Args:
        cohort_size: m, at most the population.

    Example:
        >>> import fedjax_sim as fs
        >>> sampler = fs.sampler.uniform(3)
        >>> cohort, _ = sampler.sample(sampler.init(10), round=0, seed=0)
        >>> len(set(cohort.ids.tolist()))
        3
    """
    check_count("cohort_size", cohort_size)

    def init(num_clients: int) -> int:
        check(
            cohort_size <= num_clients,
            "cohort_size",
            cohort_size,
            f"the population has only {num_clients} clients; draw fewer.",
        )
        return num_clients

    def sample(state: int, round: int, seed: int):
        draw = rng.generator(seed, Purpose.SAMPLE, round)
        return cohort(draw.choice(state, cohort_size, replace=False), cohort_size), state

    return Sampler(
        init=init,
        sample=sample,
        capacity=lambda num_clients: cohort_size,
        expected=lambda num_clients: float(cohort_size),
        event=lambda num_clients: SamplingEvent("without_replacement", num_clients, cohort_size=cohort_size),
        name=f"uniform({cohort_size})",
        pool=lambda state, round, seed, first, count: _others(seed, round, first, count, state),
    )


def _others(seed: int, round: int, first: int, count: int, num_clients: int) -> np.ndarray:
    """Places of a permutation that is the round's own."""
    return permuted(seed, round, np.arange(first, min(first + count, num_clients)), num_clients, Purpose.SAMPLE)


def poisson(probability: float) -> Sampler:
    """Each client independently with the same probability.

    The number of clients is drawn from Binomial(K, q), and then which ones: the same law, without O(K) work.
    Accounting event: Poisson sampling. The capacity is six standard deviations over the mean.

    Args:
        probability: q in (0, 1].

    Example:
        >>> import fedjax_sim as fs
        >>> sampler = fs.sampler.poisson(0.1)
        >>> sampler.expected(1000)
        100.0
    """
    check(
        0 < probability <= 1,
        "probability",
        probability,
        "must lie in (0, 1], as a client's chance.",
    )

    def capacity(num_clients: int) -> int:
        mean = num_clients * probability
        spread = (mean * (1 - probability)) ** 0.5
        return int(min(num_clients, np.ceil(mean + 6 * spread + 3)))

    def sample(state: int, round: int, seed: int):
        draw = rng.generator(seed, Purpose.SAMPLE, round)
        ids = draw.choice(state, draw.binomial(state, probability), replace=False)
        limit = capacity(state)
        while limit < len(ids):
            limit = min(state, 2 * limit)
        return cohort(ids, limit), state

    return Sampler(
        init=lambda num_clients: num_clients,
        sample=sample,
        capacity=capacity,
        expected=lambda num_clients: float(num_clients * probability),
        event=lambda num_clients: SamplingEvent("poisson", num_clients, probability=probability),
        name=f"poisson({probability})",
    )


def coins(probability: float) -> Sampler:
    """Everyone, for a number of local steps that coins decide: they go on until one that all share comes up.

    The number is geometric, of mean 1 / p; a batching with fewer steps ends a round before. For `fs.scaffnew`.

    Args:
        probability: p in (0, 1], that a step is a round's last.

    Example:
        >>> import fedjax_sim as fs
        >>> sampler = fs.sampler.coins(0.2)
        >>> [sampler.sample(sampler.init(3), round, seed=0)[0].max_steps.tolist() for round in range(2)]
        [[7, 7, 7], [1, 1, 1]]
    """
    check(0 < probability <= 1, "probability", probability, "must lie in (0, 1], as a coin's chance.")

    def sample(state: int, round: int, seed: int):
        steps = rng.generator(seed, Purpose.SAMPLE, round).geometric(probability)
        everyone = cohort(np.arange(state), state)
        return dataclasses.replace(everyone, max_steps=np.full(state, min(steps, 2**31 - 1), np.int32)), state

    return Sampler(
        init=lambda num_clients: num_clients,
        sample=sample,
        capacity=lambda num_clients: num_clients,
        expected=float,
        name=f"coins({probability})",
    )


def min_separation(cohort_size: int, separation: int) -> Sampler:
    """A fixed number of distinct clients, none of whom took part in the rounds just before.

    The population is dealt once, at random, into as many groups as the separation has rounds; rounds draw from one
    group after another. A client's participations are then at least `separation` rounds apart, whatever happens. It is
    what correlated noise counts on (`fs.aggregate.tree_noise`, `fs.aggregate.banded_noise`).

    Accounting event: a minimum separation, without amplification.

    Args:
        cohort_size: m, at most the population over the separation.
        separation: b, least rounds from one participation of a client to its next; 1 is no restriction.

    Example:
        >>> import fedjax_sim as fs
        >>> sampler = fs.sampler.min_separation(2, separation=5)
        >>> state, drawn = sampler.init(10), []
        >>> for round in range(5):
        ...     drawn += sampler.sample(state, round, seed=0)[0].ids.tolist()
        >>> sorted(drawn)
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    check_count("cohort_size", cohort_size)
    check_count("separation", separation)

    def init(num_clients: int) -> int:
        check(
            cohort_size * separation <= num_clients,
            "cohort_size",
            cohort_size,
            f"the population of {num_clients} has {num_clients // separation} clients for each of {separation} rounds; "
            "draw fewer, or ask for less separation.",
        )
        return num_clients

    def sample(state: int, round: int, seed: int):
        group = _dealt(seed, state)[round % separation :: separation]
        draw = rng.generator(seed, Purpose.SAMPLE, round)
        return cohort(draw.choice(group, cohort_size, replace=False), cohort_size), state

    def pool(state: int, round: int, seed: int, first: int, count: int) -> np.ndarray:
        group = _dealt(seed, state)[round % separation :: separation]
        return group[_others(seed, round, first, count, len(group))]

    return Sampler(
        init=init,
        sample=sample,
        capacity=lambda num_clients: cohort_size,
        expected=lambda num_clients: float(cohort_size),
        event=lambda num_clients: SeparationEvent("min_separation", num_clients, cohort_size, separation),
        name=f"min_separation({cohort_size}, {separation})",
        pool=pool,
    )


@functools.lru_cache(maxsize=4)
def _dealt(seed: int, num_clients: int) -> np.ndarray:
    """The population in random order, once a run: [K] int32."""
    return rng.generator(seed, Purpose.GROUP).permutation(num_clients).astype(np.int32)


def fixed(cohorts: Sequence[Sequence[int]] | np.ndarray, repeats: bool = False) -> Sampler:
    """Cohorts given beforehand, one row a round. No accounting event.

    Args:
        cohorts: [R, C] client ids, or R rows of different lengths (an empty one is an empty cohort).
        repeats: a client may appear more than once in a row, as where cohorts were drawn with replacement.

    Raises:
        ArgumentError: an id outside the population or twice in a row; a round after the last row.

    Example:
        >>> import fedjax_sim as fs
        >>> sampler = fs.sampler.fixed([[0, 1], [2]])
        >>> cohort, _ = sampler.sample(sampler.init(3), round=1, seed=0)
        >>> cohort.ids[cohort.valid]
        array([2], dtype=int32)
    """
    rows = [np.asarray(row).reshape(-1) for row in cohorts]
    check(len(rows) > 0, "cohorts", cohorts, "must hold at least one round.")
    for r, row in enumerate(rows):
        whole = not len(row) or np.issubdtype(row.dtype, np.integer)
        check(whole, f"cohorts[{r}]", row, "client ids are whole numbers.")
        once = repeats or len(np.unique(row)) == len(row)
        check(once, f"cohorts[{r}]", row, "names a client more than once; let it do so with repeats=True.")
    largest = max(1, max(len(row) for row in rows))

    def init(num_clients: int) -> int:
        for r, row in enumerate(rows):
            check(
                not len(row) or (row.min() >= 0 and row.max() < num_clients),
                f"cohorts[{r}]",
                row,
                f"ids must lie in 0..{num_clients - 1}.",
            )
        return num_clients

    def sample(state: int, round: int, seed: int):
        if round >= len(rows):
            raise ArgumentError(f"round={round}: fs.sampler.fixed was given {len(rows)} cohorts; give one row a round.")
        return cohort(rows[round], largest), state

    return Sampler(
        init=init,
        sample=sample,
        capacity=lambda num_clients: largest,
        expected=lambda num_clients: float(np.mean([len(row) for row in rows])),
        name=f"fixed({len(rows)} cohorts)",
        repeats=repeats,
    )
