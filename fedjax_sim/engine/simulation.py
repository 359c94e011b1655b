"""The simulation: an algorithm, a federation, a sampler and a batching, run round after round."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.algorithms.base import Algorithm
from fedjax_sim.core import pytree, rng
from fedjax_sim.core.errors import ArgumentError, FedSimError, NonFiniteUpdateError, check, check_count
from fedjax_sim.core.pytree import strong
from fedjax_sim.core.rng import Purpose
from fedjax_sim.core.types import ClientRows, Cohort, Params, RoundState
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.plan import Batching, Planner, PlanShape, PlanStats
from fedjax_sim.engine import debug as debug_lib
from fedjax_sim.engine import mapping
from fedjax_sim.engine import rows as rows_lib
from fedjax_sim.engine.history import History, RoundMetrics
from fedjax_sim.engine.round import DeviceState, RoundOutput, make_round, payload_shapes
from fedjax_sim.population.sampling import Sampler


class Simulation:
    """A federated simulation whose rounds are one compiled program.

    Args:
        algorithm: from `fs.algorithms`, or your own `fs.Algorithm`.
        data: the federation.
        sampler: from `fs.sampler`.
        batching: how a client's examples become batches.
        seed: 32-bit seed; all randomness comes from (seed, purpose, round, client id).
        lanes: clients that a device trains side by side, or "auto": by parameter count and platform
            (`fedjax_sim.engine.mapping.auto_lanes`). It changes results only within float tolerance.
        devices: JAX devices; None for all local ones.
        rounds_per_dispatch: rounds in one compiled dispatch of `run`, or "auto": 1 on a CPU, where a dispatch
            costs little beside a round, 8 elsewhere; always 1 for samplers that observe rounds.
        on_nonfinite: an update with NaN, infinity or a squared norm beyond float32: "raise" an error that names
            client and round and carries the last good state; or "drop" the client from the round (of several
            phases, from the failing one on its own) and record it. A client's new row counts as its update.
        debug: run each client alone and eagerly before each round, so that an error in a client function names
            the client and its batch.

    Raises:
        ArgumentError: parts that do not fit together.

    Example:
        >>> import optax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> clients = fs.data.federate(digits.train, fs.partition.iid(10))
        >>> task = fs.classification(fs.models.LogisticRegression(10), digits.train)
        >>> algorithm = fs.fedavg(task, optax.sgd(0.5))
        >>> sim = fs.Simulation(algorithm, clients, fs.sampler.uniform(5), fs.Batching(20))
        >>> state, history = sim.run(sim.init(), rounds=3)
        >>> bool(history["client/loss"][-1] < history["client/loss"][0])
        True
    """

    def __init__(
        self,
        algorithm: Algorithm,
        data: FederatedData,
        sampler: Sampler,
        batching: Batching,
        seed: int = 0,
        lanes: int | Literal["auto"] = "auto",
        devices: Sequence[mapping.Device] | None = None,
        rounds_per_dispatch: int | Literal["auto"] = "auto",
        on_nonfinite: Literal["raise", "drop"] = "raise",
        debug: bool = False,
    ):
        for name, value, kind in (
            ("algorithm", algorithm, Algorithm),
            ("data", data, FederatedData),
            ("sampler", sampler, Sampler),
            ("batching", batching, Batching),
        ):
            check(isinstance(value, kind), name, value, f"must be a {kind.__name__}.")
        rng.check_seed(seed)
        check(
            on_nonfinite in ("raise", "drop"),
            "on_nonfinite",
            on_nonfinite,
            'must be "raise" or "drop".',
        )
        self.algorithm, self.data, self.sampler, self.batching = algorithm, data, sampler, batching
        self.seed, self.on_nonfinite, self.debug = int(seed), on_nonfinite, debug

        self._phases = algorithm.passes()
        self._sampler_state = sampler.init(data.num_clients)
        self._expected = float(sampler.expected(data.num_clients))
        for phase in self._phases:
            if phase.aggregator.facts.noisy and sampler.event is None:  # type: ignore[union-attr]
                raise ArgumentError(
                    f"{sampler.name} has no accounting event, and {phase.aggregator} adds noise for privacy, which "
                    "could not be accounted: use fs.sampler.poisson or fs.sampler.uniform."
                )

        self._mesh = mapping.client_mesh(devices)
        self.devices = tuple(self._mesh.devices.flat)
        params = jax.eval_shape(algorithm.task.init, jax.random.key(0))
        server, row = jax.eval_shape(algorithm.init, params)
        self._capacity = int(sampler.capacity(data.num_clients))
        per_device = -(-self._capacity // len(self.devices))
        if lanes == "auto":
            lanes = mapping.auto_lanes(pytree.size(params), self.devices[0].platform, per_device)
        check_count("lanes", lanes, advice='or "auto".')
        self.lanes = min(int(lanes), max(per_device, 1))
        if rounds_per_dispatch == "auto":
            rounds_per_dispatch = 1 if self.devices[0].platform == "cpu" else 8
        check_count("rounds_per_dispatch", rounds_per_dispatch, advice='or "auto".')
        self.rounds_per_dispatch = 1 if sampler.observe is not None else int(rounds_per_dispatch)

        longest = int(batching.count_steps(data.sizes).max(initial=0))
        with debug_lib.explained(self, clients=True):
            self._payloads = payload_shapes(self._phases, server, row, data.arrays, batching, longest)
        self._has_rows = rows_lib.has_rows((row, self._aggregator_init()[1]))
        self._planner = Planner(
            data,
            batching,
            len(self.devices),
            rows_lib.homes(data.num_clients, len(self.devices)) if self._has_rows else None,
        )
        self._programs: dict[tuple[PlanShape, int], Callable[..., Any]] = {}
        self._arrays: Any = None

    # State

    def init(self, params: Params | None = None) -> RoundState:
        """The state before the first round, placed where rounds leave it.

        Args:
            params: the first model; None for `task.init` with the seed's key. Every leaf is copied.

        Example:
            >>> import jax.numpy as jnp, optax, fedjax_sim as fs
            >>> task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
            >>> data = fs.data.FederatedData({"x": jnp.arange(4.0)}, offsets=[0, 2, 4])
            >>> sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.1)), data, fs.sampler.uniform(2), fs.Batching(2))
            >>> sim.init().round
            0
        """
        if params is None:
            params = jax.jit(self.algorithm.task.init)(rng.key(self.seed, Purpose.INIT))
        like = jax.eval_shape(self.algorithm.task.init, jax.random.key(0))
        _check_params(like, params)
        num_clients, devices = self.data.num_clients, len(self.devices)

        def make(params: Params) -> DeviceState:
            params = jax.tree.map(lambda p, like: jnp.array(p, like.dtype, copy=True), params, like)
            server, row = self.algorithm.init(params)
            states, aggregator_rows = self._aggregator_init()
            table = functools.partial(rows_lib.make_table, num_clients=num_clients, devices=devices)
            return strong(DeviceState(server, states, ClientRows(table(row), table(aggregator_rows))))

        out = self._placement(jax.eval_shape(make, params))
        made = jax.jit(make, out_shardings=out)(mapping.replicate(self._mesh, params))
        return RoundState(
            round=0,
            seed=self.seed,
            server=made.server,
            aggregator=made.aggregator,
            sampler=self._sampler_state,
            rows=made.rows,
        )

    def _aggregator_init(self) -> tuple[Any, Any]:
        made = [
            phase.aggregator.init(payload)  # type: ignore[union-attr]
            for phase, payload in zip(self._phases, self._payloads, strict=True)
        ]
        rows = tuple(row for _, row in made)
        return tuple(state for state, _ in made), rows if jax.tree.leaves(rows) else None

    def _placement(self, like: DeviceState) -> DeviceState:
        everywhere, dealt = mapping.everywhere(self._mesh), mapping.dealt(self._mesh)
        return DeviceState(
            jax.tree.map(lambda _: everywhere, like.server),
            jax.tree.map(lambda _: everywhere, like.aggregator),
            jax.tree.map(lambda _: dealt, like.rows),
        )

    # Rounds

    def step(self, state: RoundState) -> tuple[RoundState, RoundMetrics]:
        """One round: `(state, metrics)`. The given state stays usable."""
        after, rounds = self._dispatch(state, self._plan(state, 1, slots=1), self._copy_if_donated)
        if self.on_nonfinite == "raise":
            try:
                self._raise_nonfinite(rounds)
            except NonFiniteUpdateError as error:
                error.state = state
                raise
        return self._observed(after, rounds[0]), rounds[0]

    def run(
        self,
        state: RoundState,
        rounds: int,
        *,
        evaluate: Callable[[Params], dict[str, float]] | None = None,
        eval_every: int | None = None,
        callbacks: Iterable[Callable[[RoundMetrics], None]] = (),
    ) -> tuple[RoundState, History]:
        """That many more rounds: `(state, history)`. The given state stays usable.

        Later rounds are planned while the devices compute.

        Args:
            state: from `init`, `step` or `run`.
            rounds: additional rounds; 0 gives the state back.
            evaluate: `params -> dict of numbers`, called after every `eval_every` rounds and after the last;
                its values are columns of the history.
            eval_every: None for after the last round alone.
            callbacks: called with each finished round's metrics, in order.

        Raises:
            NonFiniteUpdateError: under `on_nonfinite="raise"`.
            FedSimError: this and any other of ours holds the last good state and the history, `.state`, `.history`.
        """
        check_count("rounds", rounds, minimum=0)
        if eval_every is not None:
            check_count("eval_every", eval_every)
        history, callbacks = History(), tuple(callbacks)
        end, copy = state.round + rounds, self._copy_if_donated
        # One dispatch is in flight while the one before it is checked; states that hold rows are not kept twice.
        ahead = not self._has_rows and self.sampler.observe is None
        good: RoundState = state
        pending: list[tuple[RoundState, list[RoundMetrics]]] = []

        def record(rounds: list[RoundMetrics]) -> None:
            for metrics in rounds:
                history.rounds.append(metrics)
                for callback in callbacks:
                    callback(metrics)

        def settle(after: RoundState, metrics: list[RoundMetrics]) -> RoundState:
            if self.on_nonfinite == "raise":
                try:
                    self._raise_nonfinite(metrics)
                except NonFiniteUpdateError as error:
                    error.state, again = self._replay(good, error.round)
                    record(again)
                    error.history = history
                    raise
            record(metrics)
            return self._observed(after, metrics[-1])

        plan = functools.partial(self._plan, slots=self.rounds_per_dispatch)
        plans = plan(state, self._block(state.round, end, eval_every)) if rounds else None
        try:
            while plans is not None:
                state, metrics = self._dispatch(state, plans, copy)
                pending.append((state, metrics))
                copy = _unchanged
                block = self._block(state.round, end, eval_every)
                plans = plan(state, block) if block and self.sampler.observe is None else None
                due = state.round == end or (eval_every and state.round % eval_every == 0)
                keep = 1 if ahead and not due else 0
                while len(pending) > keep:
                    good = settle(*pending.pop(0))
                state = state if keep else good
                if due and evaluate is not None:
                    history.evaluations[state.round - 1] = dict(evaluate(self._copy_if_donated(self.params(state))))
                if plans is None and block:
                    plans = plan(state, block)
        except FedSimError as error:  # no finished round is lost
            while pending and error.state is None:
                good = settle(*pending.pop(0))
            if error.state is None:
                error.state, error.history = good, history
            raise
        return state, history

    def params(self, state: RoundState) -> Params:
        """The model in a state: `algorithm.params(state.server)`."""
        return self.algorithm.params(state.server)

    def _block(self, now: int, end: int, eval_every: int | None) -> int:
        """Rounds of the next dispatch: none across an evaluation."""
        block = min(self.rounds_per_dispatch, end - now)
        return block if eval_every is None else min(block, eval_every - now % eval_every)

    def _plan(self, state: RoundState, count: int, slots: int) -> "_Plans":
        """Cohorts and plans of the next rounds; all of one capacity, so that they share a dispatch of `slots`."""
        sampler_state, cohorts = state.sampler, []
        for r in range(state.round, state.round + count):
            cohort, sampler_state = self.sampler.sample(sampler_state, r, state.seed)
            cohorts.append(cohort)
        capacity = max(self._capacity, *(len(cohort.ids) for cohort in cohorts))
        shape = self._planner.shape(capacity, self.lanes)
        planned = [
            self._planner.plan(_widened(cohort, capacity), shape, state.seed, state.round + i)
            for i, cohort in enumerate(cohorts)
        ]
        plans = [plan for plan, _ in planned]
        plans += [plans[0]] * (slots - count)
        return _Plans(
            state.round,
            [_widened(cohort, capacity) for cohort in cohorts],
            [stats for _, stats in planned],
            mapping.place_plans(self._mesh, plans),
            shape,
            slots,
            sampler_state,
        )

    def _dispatch(
        self, state: RoundState, plans: "_Plans", copy: Callable[[Any], Any]
    ) -> tuple[RoundState, list[RoundMetrics]]:
        """Start a block of rounds on the devices; returns without waiting for it."""
        if self.debug:
            for r in range(len(plans.cohorts)):
                debug_lib.run_clients(self, state, mapping.unpack_plan(plans.words[r], plans.shape))
        program = self._program(plans.shape, plans.slots)
        made = copy(DeviceState(state.server, state.aggregator, state.rows))
        count = np.int32(len(plans.cohorts))
        with debug_lib.explained(self):
            made, outputs = program(np.uint32(state.seed), made, plans.words, count, self._resident_arrays())
        after = RoundState(
            round=state.round + len(plans.cohorts),
            seed=state.seed,
            server=made.server,
            aggregator=made.aggregator,
            sampler=plans.sampler_state,
            rows=made.rows,
            ledger=state.ledger,
        )
        metrics = [
            RoundMetrics(plans.first + i, cohort, stats, output)
            for i, (cohort, stats, output) in enumerate(zip(plans.cohorts, plans.stats, outputs, strict=False))
        ]
        return after, metrics

    def _program(self, shape: PlanShape, slots: int) -> Callable[..., Any]:
        """The compiled program of a block of up to `slots` rounds."""
        if (shape, slots) not in self._programs:
            one_round = make_round(
                self._phases,
                self._mesh,
                self.batching,
                self._planner.longest,
                shape.capacity,
                self._expected,
            )
            self._programs[shape, slots] = _compile_block(one_round, shape, slots, self._donates)
        return self._programs[shape, slots]

    def _resident_arrays(self) -> Any:
        """The federation's arrays on every device, put there once."""
        if self._arrays is None:
            self._arrays = mapping.replicate(self._mesh, self.data.arrays)
        return self._arrays

    # What happens between rounds

    @property
    def _donates(self) -> bool:
        """Rows are updated in place, unless a failing round must be able to give back the state before it."""
        return self._has_rows and self.on_nonfinite == "drop"

    def _copy_if_donated(self, tree: Any) -> Any:
        return _copy(tree) if self._donates else tree

    def _observed(self, state: RoundState, metrics: RoundMetrics) -> RoundState:
        if self.sampler.observe is None:
            return state
        seen = self.sampler.observe(state.sampler, metrics.cohort, metrics.per_client())
        return _replace(state, sampler=seen)

    def _raise_nonfinite(self, rounds: list[RoundMetrics]) -> None:
        for metrics in rounds:
            clients = metrics.nonfinite_clients()
            if clients:
                names = ", ".join(self.data.name(k) for k in clients[:10])
                more = f" and {len(clients) - 10} more" if len(clients) > 10 else ""
                raise NonFiniteUpdateError(
                    f"round {metrics.round}: the update of client {names}{more} is not finite (NaN, infinity, or a "
                    "norm beyond float32). Lower the client's learning rate, clip its gradients, or pass "
                    'Simulation(on_nonfinite="drop") to leave such clients out and record them. The state after '
                    "the last good round is this error's .state.",
                    metrics.round,
                    clients,
                )

    def _replay(self, good: RoundState, failed: int) -> tuple[RoundState, list[RoundMetrics]]:
        """The state just before a failed round of a block: its good rounds once more, one by one."""
        rounds: list[RoundMetrics] = []
        while good.round < failed:
            plans = self._plan(good, 1, self.rounds_per_dispatch)
            good, metrics = self._dispatch(good, plans, self._copy_if_donated)
            rounds += metrics
        return good, rounds

    def compile_count(self) -> int:
        """How many programs the rounds have needed so far; 1 unless a Poisson draw exceeded its capacity."""
        return sum(program._cache_size() for program in self._programs.values())  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return (
            f"Simulation({self.data!r}, {self.sampler.name}, {self.batching}, seed={self.seed}, "
            f"{len(self.devices)} {self.devices[0].platform} device(s) x {self.lanes} lanes)"
        )


class _Plans:
    """A block of rounds, planned and placed."""

    def __init__(
        self,
        first: int,
        cohorts: list[Cohort],
        stats: list[PlanStats],
        words: jax.Array,
        shape: PlanShape,
        slots: int,
        sampler_state: Any,
    ):
        self.first, self.cohorts, self.stats, self.words = first, cohorts, stats, words
        self.shape, self.slots, self.sampler_state = shape, slots, sampler_state


def _compile_block(one_round: Callable[..., Any], shape: PlanShape, slots: int, donate: bool) -> Callable[..., Any]:
    """Up to `slots` rounds in one dispatch; how many is traced. Outputs come as a list, one entry a slot."""

    def block(seed: Any, state: DeviceState, words: Any, count: Any, arrays: Any):
        plan_of = lambda r: mapping.unpack_plan(words[r], shape)  # noqa: E731
        like = jax.eval_shape(lambda: one_round(seed, state, plan_of(0), arrays)[1])
        outputs = jax.tree.map(lambda a: jnp.zeros((slots, *a.shape), a.dtype), like)

        def body(r: Any, carry: tuple[DeviceState, RoundOutput]):
            state, outputs = carry
            state, output = one_round(seed, state, plan_of(r), arrays)
            return state, jax.tree.map(lambda out, leaf: out.at[r].set(leaf), outputs, output)

        state, outputs = jax.lax.fori_loop(0, count, body, (state, outputs))
        return state, [jax.tree.map(lambda leaf, r=r: leaf[r], outputs) for r in range(slots)]

    return jax.jit(block, donate_argnums=(1,) if donate else ())


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _unchanged(tree: Any) -> Any:
    return tree


def _replace(state: RoundState, **changes: Any) -> RoundState:
    return dataclasses.replace(state, **changes)


def _widened(cohort: Cohort, capacity: int) -> Cohort:
    """The cohort with empty places up to `capacity`."""
    missing = capacity - len(cohort.ids)
    if not missing:
        return cohort
    return jax.tree.map(lambda leaf: np.pad(np.asarray(leaf), (0, missing)), cohort)


def _check_params(like: Params, params: Params) -> None:
    expected, given = jax.tree.structure(like), jax.tree.structure(params)
    if expected != given:
        raise ArgumentError(f"params have structure {given}: the task's have {expected}.")
    leaves = jax.tree_util.tree_leaves_with_path(like)
    for (path, a), b in zip(leaves, jax.tree.leaves(params), strict=True):
        if a.shape != jnp.shape(b):
            raise ArgumentError(
                f"params{jax.tree_util.keystr(path)} has shape {jnp.shape(b)}: the task's has {a.shape}."
            )
