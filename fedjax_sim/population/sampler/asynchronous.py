"""Asynchronous rounds: clients are handed the model whenever one is free, and a round is one update of the server.

Who arrives when does not depend on parameters, so that it is a simulation of events on the host; a round takes the
clients whose updates the server waits for, each from the model that it was handed (`Cohort.version`).
"""

import functools
import heapq
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.core import rng
from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.core.rng import Purpose
from fedjax_sim.core.types import Cohort, Told
from fedjax_sim.population.sampling import Sampler
from fedjax_sim.population.staleness import Staleness, polynomial
from fedjax_sim.population.timing import Timing
from fedjax_sim.population.transformed import TOTALS, Made

MOST = 100
"""Old server states that are kept without being asked for."""

State = dict[str, Any]
"""Places of clients at work, [M] each: `client`, `version`, `ticket` (in the order of handing out), `due`, infinite for
a place that is free; the time `now`; `owed`, places that are free; `handed` out and `dropped` so far; `population`;
`energy` spent on what has arrived, `bytes_down` and `bytes_up`, and seconds `wasted` on what was too stale."""


class Pace(NamedTuple):
    """How long clients take, and what it costs them; one for all, or [K].

    Attributes:
        seconds: from the handing out to the arrival.
        energy: joules.
        timing: what a simulation says; None where durations were given.
    """

    seconds: np.ndarray
    energy: np.ndarray
    timing: Timing | None = None


def asynchronous(
    concurrency: int,
    buffer: int,
    staleness: Staleness | None = None,
    max_staleness: int | None = None,
    durations: float | Sequence[float] | np.ndarray | None = None,
) -> Sampler:
    r"""Clients that work side by side, each from the newest model when it starts; the server waits for K updates.

    .. math:: x \leftarrow x + \frac 1 K \sum_{k = 1}^K s(\tau_k) \Delta_k

    FedBuff (Nguyen et al. 2022, Algorithm 1) with `fs.fedavg(..., aggregator=fs.aggregate.mean("uniform"))`, whose
    server optimizer has the place of the plain sum. A round is one update of the server. :math:`\tau` counts the
    updates since the client was handed its model, against which :math:`\Delta` is. What a method sends to divide
    sums by is not discounted: `batches.info["discount"]` is s, and 1 / s undoes it. At equal times all arrivals, and
    the updates that they complete, come before all departures; arrivals are in the order of handing out. A client is at
    work once at most, and may all the same arrive twice for one update. It is drawn at random among those not at work.

    With `fs.Simulation(fleet=)` the fleet says how long each takes, and rounds have `clock/` columns: bytes are those
    of all that were handed a model, and of all updates that arrived; `population/late` counts those that were too
    stale.

    No accounting event: refused under noise for privacy.

    Args:
        concurrency: M, clients at work.
        buffer: K, updates that the server waits for; at most M.
        staleness: s; None for `fs.population.polynomial(0.5)`.
        max_staleness: staler updates are dropped, and do not count as one of the K; None drops none. So many old server
            states are kept on the devices; under None as many as the durations can ask for, at most `MOST`.
        durations: how long a client takes, a positive number or [K] of them, in any unit; None for what the fleet says,
            or without one for all alike.

    Example:
        >>> import fedjax_sim as fs
        >>> sampler = fs.sampler.asynchronous(concurrency=6, buffer=2)
        >>> state, seen = sampler.init(100), []
        >>> for round in range(6):
        ...     cohort, state = sampler.sample(state, round, seed=0)
        ...     seen += (round - cohort.version).tolist()
        >>> seen
        [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2]
    """
    check_count("concurrency", concurrency)
    check_count("buffer", buffer)
    check(buffer <= concurrency, "buffer", buffer, f"no more than concurrency={concurrency} are ever at work.")
    if max_staleness is not None:
        check_count("max_staleness", max_staleness, minimum=0)
    weights = polynomial() if staleness is None else staleness
    times = np.asarray(1.0 if durations is None else durations, np.float64)
    good = times.ndim <= 1 and times.size > 0 and np.isfinite(times).all() and (times > 0).all()
    check(bool(good), "durations", durations, "must be a positive number, or [K] of them, one a client.")
    most = _Terms(concurrency, buffer, weights, max_staleness)
    sampler = _of_pace(most, Pace(times, np.zeros(())))

    def timed(timing: Timing) -> Sampler:
        if timing.fleet is None:
            return sampler
        if durations is not None:
            raise ArgumentError(
                "durations: the simulation has a fleet, which says how long clients take; leave out one."
            )
        return _of_pace(most, _pace(timing))._replace(made=Made(sampler._replace(timed=None), (), timing))

    return sampler._replace(timed=timed)


class _Terms(NamedTuple):
    """The sampler's arguments; `weights` is the staleness function."""

    concurrency: int
    buffer: int
    weights: Staleness
    max_staleness: int | None


def _pace(timing: Timing) -> Pace:
    """Of a fleet, for all clients at once: O(K), once a run."""
    fleet, ids = timing.fleet, np.arange(timing.work.population)
    assert fleet is not None
    if fleet.by_round:
        raise ArgumentError(
            f"{fleet.name} draws devices anew in each round, and there are none here: take by='client'."
        )
    fleet.check(len(ids))
    took, devices = timing.seconds(ids, timing.work.steps(ids), 0, timing.seed)
    assert devices is not None
    seconds = took.down + took.compute + took.up
    if not (np.isfinite(seconds).all() and (seconds > 0).all()):
        raise ArgumentError(
            f"{fleet.name}: client {int(np.argmin(seconds))} takes no time at all, so that it would arrive for ever at "
            "the same moment: give devices a latency."
        )
    return Pace(seconds, devices.watts * took.compute + devices.radio_watts * (took.down + took.up), timing)


def _of_pace(terms: _Terms, pace: Pace) -> Sampler:
    concurrency, buffer, weights, max_staleness = terms
    times = pace.seconds

    def init(num_clients: int) -> State:
        check(concurrency <= num_clients, "concurrency", concurrency, f"the population has {num_clients} clients.")
        check(
            times.shape in ((), (num_clients,)), "durations", times.shape, f"the population has {num_clients} clients."
        )
        places = {name: np.zeros(concurrency, np.int64) for name in ("client", "version", "ticket")}
        counts = {"handed": np.int64(0), "dropped": np.int64(0), **dict.fromkeys((*TOTALS, "wasted"), np.float64(0))}
        free = {"due": np.full(concurrency, np.inf), "owed": np.int64(concurrency)}
        return {**places, **free, **counts, "population": np.int64(num_clients)}

    def sample(state: State, round: int, seed: int):
        arrived, after = _until_full(state, round, seed, buffer, max_staleness, pace)
        after |= _bytes(state, after, pace)
        ids, version = (np.array(column, np.int32) for column in zip(*arrived, strict=True))
        s = np.asarray(weights(round - version), np.float32)
        ones = np.ones(buffer, np.float32)
        told = _told(state, after, ids, pace)
        return Cohort(ids, ones > 0, ones, version=version, columns={"scale": s, "discount": s}, told=told), after

    versions = _stalest(concurrency, buffer, times) if max_staleness is None else max_staleness
    check(
        max_staleness is not None or versions <= MOST,
        "max_staleness",
        max_staleness,
        f"by these durations an update may be {versions} updates old, and so many models would be kept: say how many.",
    )
    return Sampler(
        init=init,
        sample=sample,
        capacity=lambda num_clients: buffer,
        expected=lambda num_clients: float(buffer),
        name=f"asynchronous({concurrency}, {buffer})",
        columns={"scale": np.float32(0), "discount": np.float32(0)},
        repeats=True,
        versions=versions,
    )


def _told(before: State, after: State, ids: np.ndarray, pace: Pace) -> Told:
    """What happened since the update before."""
    change = lambda name: float(after[name] - before[name])
    report = {
        "population/selected": change("handed"),
        "population/trained": float(len(ids)),
        "population/late": change("dropped"),
    }
    if pace.timing is None:
        return Told(report, {})
    useful = pace.seconds[ids].sum()
    wasted = float(after["wasted"] - before["wasted"])
    report |= {
        "clock/time": float(after["now"]),
        "clock/round_time": change("now"),
        "clock/bytes_up": float(after["bytes_up"]),
        "clock/bytes_down": float(after["bytes_down"]),
        "clock/energy_j": float(after["energy"]),
        "clock/waste": float(wasted / (wasted + useful)),
    }
    return Told(report, {"clock/seconds": pace.seconds[ids]})


def _bytes(before: State, after: State, pace: Pace) -> State:
    """What has travelled, with what did since the update before: of all handed a model, and of all that arrived."""
    if pace.timing is None:
        return {name: before[name] for name in ("bytes_down", "bytes_up")}
    change = lambda name: int(after[name] - before[name])
    down = before["bytes_down"] + pace.timing.work.bytes_down * change("handed")
    up = before["bytes_up"] + pace.timing.work.bytes_up * (change("handed") + change("owed"))
    return {"bytes_down": np.float64(down), "bytes_up": np.float64(up)}


def _stalest(concurrency: int, buffer: int, times: np.ndarray) -> int:
    """Updates that can pass while a client is at work: of each other place as many arrivals as fit beside it."""
    each = math.ceil(times.max() / times.min() - 1e-9)
    return ((concurrency - 1) * each + buffer - 1) // buffer


def _until_full(
    state: State, version: int, seed: int, buffer: int, max_staleness: int | None, pace: Pace
) -> tuple[list[tuple[int, int]], State]:
    """The arrivals, (client, version) each, that the server's next update waits for; the state just after them."""
    columns = (state[name].tolist() for name in ("due", "ticket", "client", "version"))
    heap = [place for place in zip(*columns, strict=True) if place[0] < math.inf]
    heapq.heapify(heap)
    now, owed, handed, dropped = (state[name].item() for name in ("now", "owed", "handed", "dropped"))
    working, population, arrived = {place[2] for place in heap}, int(state["population"]), []
    times, stale = pace.seconds, []
    while len(arrived) < buffer:
        if owed and (not heap or heap[0][0] > now):  # all of this instant have arrived
            for ticket in range(handed, handed + owed):
                client = _free_client(seed, population, ticket, working)
                working.add(client)
                due = now + float(times[client] if times.ndim else times)
                heapq.heappush(heap, (due, ticket, client, version))
            handed, owed = handed + owed, 0
        now, _, client, its = heapq.heappop(heap)
        working.remove(client)
        owed += 1
        if max_staleness is not None and version - its > max_staleness:
            dropped += 1
            stale.append(client)
        else:
            arrived.append((client, its))
    heap += [(math.inf, 0, 0, 0)] * owed
    due, ticket, client, its = zip(*heap, strict=True)
    places = {"ticket": ticket, "client": client, "version": its}
    after = {name: np.array(values, np.int64) for name, values in places.items()}
    counts = {"owed": owed, "handed": handed, "dropped": dropped, "population": population}
    after |= {name: np.int64(value) for name, value in counts.items()}
    spent = pace.energy[[client for client, _ in arrived] + stale].sum() if pace.energy.ndim else 0.0
    wasted = times[stale].sum() if times.ndim else len(stale) * times
    after |= {"energy": np.float64(state["energy"] + spent), "wasted": np.float64(state["wasted"] + wasted)}
    return arrived, {**after, "due": np.array(due), "now": np.float64(now)}


TICKETS, ATTEMPTS = 1024, 4
"""Draws that are made at once, and how often each is tried before what is left is looked at."""


def _free_client(seed: int, population: int, ticket: int, working: set[int]) -> int:
    """Of those that are not at work, each as likely: by rejection, and where few are left, from a list of them."""
    block, within = divmod(ticket, TICKETS)
    draws = _draws(seed, block)[within]
    for draw in draws[:-1]:
        client = int(draw * population)
        if client not in working:
            return client
    free = [client for client in range(population) if client not in working] if population < 4 * len(working) else None
    if free is not None:
        return free[int(draws[-1] * len(free))]
    more = rng.generator(seed, Purpose.GROUP, ticket)
    while (client := int(more.integers(population))) in working:
        pass
    return client


@functools.lru_cache(maxsize=8)
def _draws(seed: int, block: int) -> list[list[float]]:
    """[TICKETS, ATTEMPTS + 1] uniform numbers of 53 bits."""
    count = ATTEMPTS + 1
    ticket, attempt = np.divmod(np.arange(TICKETS * count), count)
    high, low = (rng.hash32(seed, Purpose.SAMPLE, block, ticket, 2 * attempt + i) for i in (0, 1))
    bits = (high << np.uint64(21)) | (low >> np.uint64(11))
    return (bits.astype(np.float64) * 2.0**-53).reshape(TICKETS, count).tolist()
