"""Planning: who trains on what, on which device, in which chunk and lane. NumPy, vectorised over clients.

Clients are sorted by their number of local steps (ties by id), dealt to the devices (longest first, to the least
loaded), and each device's queue is cut into chunks of L lanes. A plan depends on (seed, round) and the cohort
alone, so that later rounds can be planned while the device computes.
"""

from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.core import rng
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.rng import Purpose
from fedjax_sim.core.types import Cohort, Columns, Lane, RoundPlan
from fedjax_sim.data.batching import Batching
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.engine.plan import given
from fedjax_sim.population.sampling import Sampler


class PlanShape(NamedTuple):
    """What is static of a plan: devices, chunks, lanes, rows of `order`, places in the cohort; the lanes' columns."""

    devices: int
    chunks: int
    lanes: int
    rows: int
    capacity: int
    columns: Columns = ()
    repeats: bool = False


class PlanStats(NamedTuple):
    """What planning knows of a round, on the host.

    Attributes:
        clients: clients that train.
        drawn: clients that were drawn, whether or not they arrive.
        sent: clients that send: those that train, and under `Planner(everyone=True)` all that arrive.
        examples: examples they hold, each once.
        trained: examples of all their steps, epochs counted.
        steps: local steps in all.
        efficiency: real batches / batches computed, padding lanes and shorter neighbours included.
        balance: mean device load / greatest device load, in chunk steps.
    """

    clients: int
    examples: int
    trained: int
    steps: int
    efficiency: float
    balance: float
    drawn: int = 0
    sent: int = 0


class Planner:
    """Plans the rounds of one federation; holds what does not change between them.

    Args:
        data: the federation.
        batching: how examples become batches.
        devices: D.
        homes: [K] the device of each client, for methods whose clients keep state on a device; or None.
        streamed: `order` counts rows within the examples that a device's clients of the round hold together, client
            after client in the order of its lanes, instead of rows of the federation.
        everyone: clients that arrive have a lane even if they take no step: each adds its share of noise.
        sampler: whose cohorts it plans: their own columns, how old versions may be, and whether they may name a client
            more than once. None for cohorts of plain ids.
    """

    def __init__(
        self,
        data: FederatedData,
        batching: Batching,
        devices: int = 1,
        homes: np.ndarray | None = None,
        streamed: bool = False,
        everyone: bool = False,
        sampler: Sampler | None = None,
    ):
        self.data, self.batching, self.devices, self.homes = data, batching, devices, homes
        self.streamed, self.everyone = streamed, everyone
        self.sampler = "the sampler" if sampler is None else sampler.name
        self.columns = given.declared(None if sampler is None else sampler.columns)
        self.repeats = sampler is not None and sampler.repeats
        self.versions = 0 if sampler is None else sampler.versions
        self.longest = batching.most_steps(data.kinds()[0])
        self._shapes: dict[tuple[int, int], PlanShape] = {}
        self._examples: dict[PlanShape, int] = {}

    def shape(self, capacity: int, lanes: int) -> PlanShape:
        """Sizes that no cohort of that capacity can exceed; found once for each, as it costs O(population)."""
        if (capacity, lanes) not in self._shapes:
            self._shapes[capacity, lanes] = self._shape(capacity, lanes)
        return self._shapes[capacity, lanes]

    def _shape(self, capacity: int, lanes: int) -> PlanShape:
        top = self._top(capacity)
        if self.devices > 1 and self.homes is not None:
            rows = max(self._most(self.batching.count_rows, top, d) for d in range(self.devices))
        else:
            rows = self._most(self.batching.count_rows, top)
        if self.devices > 1 and self.homes is None:
            # greedy dealing: a device exceeds the mean load by at most one client
            steps = -(-self._most(self.batching.count_steps, top) // self.devices) + self.longest
            rows = min(steps * self.batching.batch_size, rows)
        sizes = (self.devices, max(1, -(-capacity // lanes)), lanes, max(rows, 1), capacity)
        return PlanShape(*sizes, given.kinds(self.columns), self.repeats)

    def _top(self, capacity: int) -> int:
        """Clients of a cohort at most."""
        return capacity if self.repeats else min(capacity, self.data.num_clients)

    def examples(self, shape: PlanShape) -> int:
        """Examples that no device's clients of a round exceed together, each counted once: rows to stream.

        Found once for each shape, as it costs O(population).
        """
        if shape not in self._examples:
            self._examples[shape] = self._count_examples(shape)
        return self._examples[shape]

    def _count_examples(self, shape: PlanShape) -> int:
        top = self._top(shape.capacity)
        if self.devices > 1 and self.homes is not None:
            return max(1, *(self._most(self.batching.count_examples, top, d) for d in range(self.devices)))
        return max(1, min(self._most(self._trained, top), shape.rows if self._keeps_all else 2**62))

    @property
    def _keeps_all(self) -> bool:
        """Whether a client that trains goes over all of its examples, so that `order` holds each at least once."""
        return self.batching.steps is None and not self.batching.drop_remainder

    def _trained(self, sizes) -> np.ndarray:
        return np.where(self.batching.count_steps(sizes) > 0, self.batching.count_examples(sizes), 0)

    def _most(self, count, top: int, device: int | None = None) -> int:
        """The greatest sum of `count(sizes)` over `top` clients, of all or of those at home on a device.

        Where a cohort may repeat clients, over the largest, so many times.
        """
        sizes, clients = self.data.kinds(None if device is None else self.homes == device)  # type: ignore[operator]
        values = count(sizes)
        order = np.argsort(-values, kind="stable")
        taken = np.full(len(order), top) if self.repeats else np.minimum(np.cumsum(clients[order]), top)
        return int(np.diff(taken, prepend=0) @ values[order])

    def plan(self, cohort: Cohort, shape: PlanShape, seed: int, round: int) -> tuple[RoundPlan, PlanStats]:
        """The plan of one round.

        Args:
            cohort: who takes part; its capacity is `shape.capacity`.
            shape: the plan's static sizes.
            seed: the run's seed.
            round: the round's number.

        Raises:
            ArgumentError: a client outside the population, or twice in a cohort that may not repeat any; columns that
                the sampler does not declare, or a version that is not kept.
        """
        D, T, L, M, C = shape[:5]
        slot = self._active(cohort)
        columns = given.columns_of(cohort, self.columns, self.sampler)
        ids = cohort.ids[slot].astype(np.int64)
        sizes = self.data.sizes_of(ids)
        steps, rows = self.batching.count_steps(sizes), self.batching.count_rows(sizes)
        if cohort.max_steps is not None:
            steps = np.minimum(steps, np.asarray(cohort.max_steps)[slot])
            rows = self.batching.count_rows(sizes, steps)
        load = given.most_steps(ids, steps) if self.repeats else steps
        order = np.lexsort((ids, -load))
        slot, ids, steps, rows, load = slot[order], ids[order], steps[order], rows[order], load[order]
        copy = given.later_copies(ids) if self.repeats else None
        examples = np.where(steps > 0, self.batching.count_examples(sizes[order]), 0)
        device = deal(np.maximum(load, 1), D) if self.homes is None else self.homes[ids]

        place = _rank_within(device, D)
        flat = (device * T + place // L) * L + place % L
        start = _start_within(device, rows, D)

        def lanes(values, fill: Any = 0, dtype: Any = np.int32):
            out = np.full((D * T * L, *np.shape(fill)), fill, dtype)
            out[flat] = values
            return out.reshape(D, T, L, *np.shape(fill))

        table = np.zeros(D * M, np.int32)
        first = _start_within(device, examples, D) if self.streamed else self.data.offsets[ids]
        n = int((steps > 0).sum())  # those that train come first
        self._fill(table, (device * M + start)[:n], ids[:n], examples[:n], first[:n], rows[:n], seed, round, copy)
        longest = lanes(steps).max(axis=-1).sum(axis=-1)
        plan = RoundPlan(
            order=table.reshape(D, M),
            lanes=Lane(
                start=lanes(start),
                size=lanes(examples),
                steps=lanes(steps),
                client_id=lanes(ids),
                slot=lanes(slot, fill=C),
                weight=lanes(cohort.weight[slot], dtype=np.float32),
                version=lanes(given.versions_of(cohort, slot, round, self.versions, self.sampler)),
                neighbour=lanes(_next_in_ring(ids)),
                columns={name: lanes(columns[name][slot], of, of.dtype) for name, of in self.columns.items()},
                copy=None if copy is None else lanes(copy),
            ),
            chunks=(-(-np.bincount(device, minlength=D) // L)).astype(np.int32),
            round=np.full(D, round, np.int32),
            abandoned=np.full(D, cohort.abandoned, np.int32),
        )
        total, computed = int(steps.sum()), int(longest.sum()) * L
        return plan, PlanStats(
            clients=n,
            examples=int(examples.sum()),
            trained=int(rows.sum()),
            steps=total,
            efficiency=total / computed if computed else 1.0,
            balance=float(longest.mean() / longest.max()) if computed else 1.0,
            drawn=int(np.sum(cohort.valid)),
            sent=len(ids),
        )

    def _active(self, cohort: Cohort) -> np.ndarray:
        """Places of the clients that send: valid ones that arrive, and have at least one batch unless all send."""
        ids = np.asarray(cohort.ids)
        valid = np.asarray(cohort.valid, bool)
        drawn = ids[valid]
        if len(drawn) and (drawn.min() < 0 or drawn.max() >= self.data.num_clients):
            raise ArgumentError(
                f"cohort.ids span {drawn.min()}..{drawn.max()}: must lie in "
                f"0..{self.data.num_clients - 1}, the population's clients."
            )
        if not self.repeats and len(np.unique(drawn)) < len(drawn):
            raise ArgumentError(
                "cohort.ids name a client more than once: raise its weight instead; or declare Sampler(repeats=True), "
                "and each copy trains and draws for itself."
            )
        if cohort.arrives is not None:
            valid = valid & np.asarray(cohort.arrives, bool)
        if self.everyone:
            return np.flatnonzero(valid)
        if cohort.max_steps is not None:
            valid = valid & (np.asarray(cohort.max_steps) > 0)
        sizes = self.data.sizes_of(np.where(valid, ids, 0))
        return np.flatnonzero(valid & (self.batching.count_steps(sizes) > 0))

    def _fill(self, table, start, ids, size, first, rows, seed: int, round: int, copy=None) -> None:
        """Write each client's rows, which begin at `first`, into `table` from `start`, in a new order an epoch."""
        if not len(ids):
            return
        stride = size
        if self.batching.drop_remainder:
            stride = size // self.batching.batch_size * self.batching.batch_size
        epochs = -(-rows // stride)
        drawn = size * epochs
        client = np.repeat(np.arange(len(ids)), drawn)
        within = np.arange(len(client)) - np.repeat(np.cumsum(drawn) - drawn, drawn)
        epoch, rank = np.divmod(within, size[client])
        position = rank
        if self.batching.shuffle:
            counter = within if copy is None else within + (copy[client] << 32)
            draw = rng.hash32(seed, Purpose.SHUFFLE, round, ids[client], counter)
            position = _sort_segments(np.cumsum(rank == 0) - 1, draw, rank)
        if not np.array_equal(rows, drawn):  # a remainder, or an epoch that stays unfinished
            within = epoch * stride[client] + rank
            used = (rank < stride[client]) & (within < rows[client])
            client, within, position = client[used], within[used], position[used]
        row = first[client] + position
        index = None if self.streamed else self.data.index
        table[start[client] + within] = row if index is None else index[row]


def deal(steps: np.ndarray, devices: int) -> np.ndarray:
    """Longest processing time first: [n] steps in falling order to [n] devices.

    The greedy rule, a whole run of equal step counts at a time: of the loads that each device would pass through,
    a run of m clients takes the m least.

    Example:
        >>> import numpy as np
        >>> from fedjax_sim.engine.plan.planner import deal
        >>> deal(np.array([5, 3, 3, 1, 1, 1]), 2)
        array([0, 1, 1, 0, 0, 1])
    """
    out = np.zeros(len(steps), np.int64)
    if devices == 1 or not len(steps):
        return out
    load = np.zeros(devices, np.int64)
    first = np.flatnonzero(np.diff(steps, prepend=-1))
    for begin, end in zip(first, [*first[1:], len(steps)], strict=True):
        count, each = end - begin, int(steps[begin])
        levels = load[:, None] + each * np.arange(count)
        taken = np.argsort(levels, axis=None, kind="stable")[:count] // count
        out[begin:end] = taken
        load += each * np.bincount(taken, minlength=devices)
    return out


def _next_in_ring(ids: np.ndarray) -> np.ndarray:
    """[n] for each of distinct ids the next larger one, and for the largest the least."""
    order = np.argsort(ids)
    following = np.empty_like(ids)
    following[order] = np.roll(ids[order], -1)
    return following


def _sort_segments(segment: np.ndarray, draw: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Positions sorted by (segment, draw, position). One sort of packed words where they fit: 64 bits."""
    bits = int(position.max()).bit_length()
    if int(segment[-1]).bit_length() + 32 + bits > 64:
        return position[np.lexsort((position, draw, segment))]
    word = segment.astype(np.uint64) << np.uint64(32)
    word = ((word | draw) << np.uint64(bits)) | position.astype(np.uint64)
    word.sort()
    return (word & np.uint64((1 << bits) - 1)).astype(np.int64)


def _rank_within(group: np.ndarray, groups: int) -> np.ndarray:
    """How many earlier entries share an entry's group."""
    return _start_within(group, np.ones(len(group), np.int64), groups)


def _start_within(group: np.ndarray, length: np.ndarray, groups: int) -> np.ndarray:
    """The sum of `length` over the earlier entries of the same group."""
    out = np.zeros(len(group), np.int64)
    for g in range(groups):
        members = group == g
        mine = length[members]
        out[members] = np.cumsum(mine) - mine
    return out
