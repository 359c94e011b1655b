"""The simulation: an algorithm, a federation, a sampler and a batching, run round after round."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.aggregate.checks import check_build, check_sampler
from fedjax_sim.algorithms.base import Algorithm
from fedjax_sim.core import pytree, rng
from fedjax_sim.core.errors import NonFiniteUpdateError, check, check_count, is_traced
from fedjax_sim.core.kinds import check_computable, shapes_of
from fedjax_sim.core.types import Params, RoundState
from fedjax_sim.data.batching import Batching
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.engine.device import placement
from fedjax_sim.engine.plan.packing import Plans, pack
from fedjax_sim.engine.plan.planner import Planner, PlanShape
from fedjax_sim.engine.plan.words import place_plans, unpack_plan
from fedjax_sim.engine.round.block import block
from fedjax_sim.engine.round.phase import DeviceState, PhaseRound, make_round, sent
from fedjax_sim.engine.round.waves import Waves
from fedjax_sim.engine.store import data_checks, row_table
from fedjax_sim.engine.store import residency as residency_lib
from fedjax_sim.population.sampling import Sampler
from fedjax_sim.privacy.accounting import check_delta
from fedjax_sim.runs.folder import RunFolder
from fedjax_sim.simulation import debug as debug_lib
from fedjax_sim.simulation import describe, first_state, ledger, recorder
from fedjax_sim.simulation import epsilon as privacy
from fedjax_sim.simulation import fingerprint as fingerprint_lib
from fedjax_sim.simulation import lanes as lanes_lib
from fedjax_sim.simulation.history import History, RoundMetrics, check_finite
from fedjax_sim.simulation.loop import Evaluate, Schedule, run_rounds
from fedjax_sim.simulation.recorder import Callback, Recording


class Simulation:
    """A federated simulation whose rounds are one compiled program.

    Args:
        algorithm: from `fs.algorithms`, or your own `fs.Algorithm`.
        data: the federation.
        sampler: from `fs.sampler`.
        batching: how a client's examples become batches.
        seed: 32-bit seed; all randomness comes from (seed, purpose, round, client id).
        lanes: clients that a device trains side by side, or "auto": once for the simulation, by parameter count,
            platform and, on a CPU, how clients' steps differ (`fedjax_sim.simulation.lanes.for_simulation`), and then
            by measurement where `autotune` says so. It changes results only within float tolerance: in the order of
            sums, and in the roundings of a client's own steps, which long training amplifies (docs/design.md). Where
            a round does not fit the devices' memory, it is halved.
        autotune: time a few lanes before the first round, if they are "auto" (`fedjax_sim.simulation.lanes.tune`); None
            for "not on a CPU", where the rule was measured. What was measured is in `tuning`, and kept beside the
            compiled programs (`fedjax_sim.engine.device.programs`) for the next time.
        devices: JAX devices; None for all local ones, or those of all processes (`fs.use_processes`).
        rounds_per_dispatch: rounds in one compiled dispatch of `run`, or "auto": 1 on a CPU, where a dispatch
            costs little beside a round, 8 elsewhere; always 1 for samplers that observe rounds.
        on_nonfinite: an update with NaN, infinity or a squared norm beyond float32, or a metric "loss" that is NaN:
            "raise" an error that names client and round and carries the last good state; or "drop" the client from
            the round (of several phases, from the failing one on its own) and record it. A client's new row counts
            as its update.
        debug: run each client alone and eagerly before each round, so that an error in a client function names
            the client and its batch.
        evaluate: `params -> dict of numbers`: what `run` evaluates, unless it is told otherwise.
        delta: of `privacy/epsilon`, which rounds report when there is noise for privacy (and the extra `privacy` is
            installed): an upper bound by Rényi accounting, which is cheap. `sim.epsilon` is tighter. None for
            K ** -1.1, at most 1e-3.
        residency: where the examples live: "device", all of them on every device (CPU devices share one copy);
            "stream", in memory, files or nowhere, from where each round's are read in the background; "auto": streamed
            if they exceed half of a device's memory (on a CPU, the host's) or are no arrays in memory. The results
            are the same, bit by bit.
        rows: where what clients keep between rounds lives: "device", a table dealt over the devices; "host", a file
            (in `tempfile`'s folder) that holds rows of those who took part, read and written wave by wave while the
            devices compute; "auto": on the host if the table exceeds 256 MiB on a CPU, elsewhere half of the devices'
            memory. `state.rows` is then a `fedjax_sim.engine.store.row_file.HostRows`, and a dispatch is one round.
        exact: add in fixed point (`fedjax_sim.engine.round.sums`): for the same `lanes` devices, processes and the
            cohort's order change no bit of a sum. Clients' weighted numbers must stay below 2^24; the unit is 2^-48.
        noise_seed: 32-bit seed of all noise for privacy, which `fs.aggregate` adds; None for `seed`. Runs that are both
            released need different ones: noise that they share cancels, and sampling, batches and training stay as
            they are.

    Attributes:
        shared: several processes train it together.
        row_bytes: what one client keeps.
        tuning: seconds of a cut round by lanes, if they were measured.

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
        autotune: bool | None = None,
        devices: Sequence[placement.Device] | None = None,
        rounds_per_dispatch: int | Literal["auto"] = "auto",
        on_nonfinite: Literal["raise", "drop"] = "raise",
        debug: bool = False,
        evaluate: Evaluate | None = None,
        delta: float | None = None,
        residency: residency_lib.Residency = "auto",
        rows: row_table.Rows = "auto",
        exact: bool = False,
        noise_seed: int | None = None,
    ):
        for name, value, kind in (
            ("algorithm", algorithm, Algorithm),
            ("data", data, FederatedData),
            ("sampler", sampler, Sampler),
            ("batching", batching, Batching),
        ):
            check(isinstance(value, kind), name, value, f"must be a {kind.__name__}.")
        rng.check_seed(seed)
        if noise_seed is not None:
            rng.check_seed(noise_seed, "noise_seed")
        check(on_nonfinite in ("raise", "drop"), "on_nonfinite", on_nonfinite, 'must be "raise" or "drop".')
        told = algorithm.num_clients
        check(told in (None, data.num_clients), "num_clients", told, f"the data have {data.num_clients}; leave it out.")
        self.algorithm, self.data, self.sampler, self.batching = algorithm, data, sampler, batching
        self.seed, self.on_nonfinite, self.debug = int(seed), on_nonfinite, debug
        self.evaluate, self.exact = evaluate, exact
        self.noise_seed = noise_seed if noise_seed is None or is_traced(noise_seed) else int(noise_seed)
        self.delta = privacy.default_delta(data.num_clients) if delta is None else delta
        check_delta(self.delta)

        self._phases = algorithm.passes()
        self._sampler_state = sampler.init(data.num_clients)
        self._expected = float(sampler.expected(data.num_clients))
        for phase in self._phases:
            check_sampler(phase.aggregator, sampler.name, sampler.event is not None)
        privacy.check_participation(self)
        self._noisy, self._everyone = privacy.noisy(self), privacy.shared_out(self)

        self._mesh = placement.client_mesh(devices, of_all=True)
        self.devices = tuple(self._mesh.devices.flat)
        self.shared = self._mesh.is_multi_process
        if self.shared:
            check(not debug, "debug", debug, "debug in one process: clients run one by one, outside the devices' map.")
        self.model = shapes_of("task.init's params", algorithm.task.init, jax.random.key(0))
        server, row = shapes_of("algorithm.init's (server_state, row)", algorithm.init, self.model)
        self._capacity = int(sampler.capacity(data.num_clients))
        per_device = -(-self._capacity // len(self.devices))
        self.lanes_chosen = lanes == "auto"
        if lanes == "auto":
            lanes = lanes_lib.for_simulation(self)
        check_count("lanes", lanes, advice='or "auto".')
        self.lanes = min(int(lanes), max(per_device, 1))
        self.tuning: dict[int, float] | None = None
        tunes = self.devices[0].platform != "cpu" if autotune is None else autotune
        self._untuned = tunes and self.lanes_chosen and not self.shared
        if rounds_per_dispatch == "auto":
            rounds_per_dispatch = 1 if self.devices[0].platform == "cpu" else 8
        check_count("rounds_per_dispatch", rounds_per_dispatch, advice='or "auto".')
        self.rounds_per_dispatch = 1 if sampler.observe is not None else int(rounds_per_dispatch)

        check_computable(data.arrays)
        streamed = residency_lib.streams(residency, data, self._mesh.local_devices[0])
        self.residency: residency_lib.Residency = "stream" if streamed else "device"
        self._reader = residency_lib.Reader(data, self._mesh, algorithm.task.check) if streamed else None
        longest = int(batching.count_steps(data.kinds()[0]).max(initial=0))
        like = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), data.arrays)
        with debug_lib.explained(self, clients=True):
            self._sent = sent(self._phases, server, row, like, batching, longest)
        data_checks.check_all(algorithm.task, data, streamed)
        aggregator_states, aggregator_rows = first_state.aggregators(self)
        self._check_aggregation(aggregator_states, self._capacity)
        privacy.check_rows(self, row)
        row = (row, aggregator_rows)
        self.row_bytes = pytree.bits(row) // 8
        self.rows: row_table.Rows = row_table.place(rows, row, data.num_clients, self.devices, self.shared)
        self._has_rows = row_table.has_rows(row) and self.rows == "device"
        self._waves = Waves(self) if self.rows == "host" else None
        if self._waves is not None:
            self.rounds_per_dispatch = 1
        self._planner = Planner(
            data,
            batching,
            len(self.devices),
            row_table.homes(data.num_clients, len(self.devices)) if self._has_rows else None,
            streamed,
            self._everyone,
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
        return first_state.begin(self, params)

    def save(self, folder: str | os.PathLike[str], state: RoundState) -> None:
        """Write a checkpoint of a state; it is on the disk when this returns.

        Args:
            folder: made if need be; a run's folder, or any other.
            state: from `init`, `step` or `run`.

        Raises:
            RunFolderError: the folder cannot be written, is in use, or holds another state of the same round.

        Example:
            >>> import tempfile, jax.numpy as jnp, optax, fedjax_sim as fs
            >>> task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
            >>> data = fs.data.FederatedData({"x": jnp.arange(4.0)}, offsets=[0, 2, 4])
            >>> sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.1)), data, fs.sampler.uniform(2), fs.Batching(2))
            >>> state, _ = sim.run(sim.init(), rounds=2)
            >>> folder = tempfile.mkdtemp()
            >>> sim.save(folder, state)
            >>> sim.restore(folder).round
            2
        """
        recorder.save(self, Path(folder), state)

    def restore(
        self, folder: str | os.PathLike[str], round: int | None = None, allow: Iterable[str] = ()
    ) -> RoundState:
        """The state of a folder's newest checkpoint, or of a given round's.

        A damaged one is left aside for the one before it, with a warning. Lanes that were chosen automatically are
        chosen as they were, if the number of devices is the same: then the run goes on bit by bit as it would have.

        Args:
            folder: of `save`, or of a run.
            round: rounds of the state; None for the newest.
            allow: what may differ, deliberately: "algorithm", "aggregator", "sampler", "batching", "data", "seed", or
                another argument. Another sampler, or any on other data, begins anew.

        Raises:
            RunFolderError: no checkpoint there, none that can be read, or one of another simulation.
        """
        return recorder.restore(self, Path(folder), round, allow)

    def _check_aggregation(self, aggregator_states: Any, capacity: int) -> None:
        for phase, state, phase_sent in zip(self._phases, aggregator_states, self._sent, strict=True):
            check_build(phase.aggregator, state, phase_sent.payload, capacity, self._expected)

    # Rounds

    def step(self, state: RoundState) -> tuple[RoundState, RoundMetrics]:
        """One round: `(state, metrics)`. The given state stays usable."""
        self._tune(state)
        slots = self.rounds_per_dispatch if self._reader is None else 1  # room to stream costs more than a program
        after, rounds = self._dispatch(state, self._plan(state, 1, slots), self._copy_if_donated)
        if self.on_nonfinite == "raise":
            try:
                check_finite(rounds, self)
            except NonFiniteUpdateError as error:
                error.state = state
                raise
        return self._observed(after, rounds), rounds[0]

    def run(
        self,
        state: RoundState,
        rounds: int,
        *,
        evaluate: Evaluate | None = None,
        eval_every: int | None = None,
        run_dir: str | os.PathLike[str] | RunFolder | None = None,
        checkpoint_every: int | None = None,
        callbacks: Iterable[Callback] = (),
        profile: bool = False,
    ) -> tuple[RoundState, History]:
        """That many more rounds: `(state, history)`. The given state stays usable.

        Later rounds are planned while the devices compute. With a folder, the run shows its progress and keeps its
        configuration, metrics, checkpoints, TensorBoard events and plots there (`fedjax_sim.runs.folder`); Ctrl-C
        then finishes the round, saves it and raises `RunInterrupted`. A run goes on in its folder from
        `state = sim.restore(folder)`.

        Args:
            state: from `init`, `step`, `run` or `restore`.
            rounds: additional rounds; 0 gives the state back.
            evaluate: `params -> dict of numbers`, called after every `eval_every` rounds and after the last;
                its values join the round's metrics. None for the simulation's own.
            eval_every: None for after the last round alone.
            run_dir: a folder for the run, made if need be; or an `fs.runs.RunFolder`.
            checkpoint_every: rounds between checkpoints, of which the last three are kept; None for one at the
                start and one at the end.
            callbacks: functions of each finished round's metrics, in order; or `fs.runs.Logger`s.
            profile: time planning, transfer and computation, one after another, and keep a trace in the folder.

        Raises:
            NonFiniteUpdateError: under `on_nonfinite="raise"`.
            RunFolderError: the folder cannot be written, is in use, or holds another run.
            RunInterrupted: by Ctrl-C or SIGTERM, with a folder.
            Any exception that ends a run has the last good state and the history as `.state` and `.history`.
        """
        check_count("rounds", rounds, minimum=0)
        for name, value in (("eval_every", eval_every), ("checkpoint_every", checkpoint_every)):
            if value is not None:
                check_count(name, value)
        for name, value in (("checkpoint_every", checkpoint_every), ("profile", profile)):
            check(not value or run_dir is not None, name, value, "needs run_dir=, a folder to keep it in.")
        if rounds:
            self._tune(state)
        schedule = Schedule(state.round + rounds, self.rounds_per_dispatch, eval_every, checkpoint_every)
        with Recording(self, callbacks, run_dir, profile).of(state, rounds) as record:
            return run_rounds(self, state, schedule, evaluate or self.evaluate, record)

    def params(self, state: RoundState) -> Params:
        """The model in a state: `algorithm.params(state.server)`."""
        return self.algorithm.params(state.server)

    epsilon = privacy.epsilon
    _fingerprint = functools.cached_property(fingerprint_lib.fingerprint)

    @functools.cached_property
    def _meter(self) -> Any:
        return privacy.meter(self)

    @functools.cached_property
    def _released(self) -> dict[str, Any]:
        return ledger.setting(self)

    def _plan(self, state: RoundState, count: int, slots: int) -> Plans:
        """`block.pack`, placed on the devices."""
        plans = pack(self, state, count, slots)
        return plans._replace(words=place_plans(self._mesh, plans.words))

    def _dispatch(
        self, state: RoundState, plans: Plans, copy: Callable[[Any], Any]
    ) -> tuple[RoundState, list[RoundMetrics]]:
        """Start a block of rounds on the devices; returns without waiting for it, but for a program's first."""
        while True:
            try:
                return self._attempt(state, plans, copy)
            except lanes_lib.FAILURES as error:
                self._programs.pop((plans.shape, plans.slots), None)
                if self._waves is not None:
                    self._waves.forget(plans.shape)
                plans = lanes_lib.replanned(self, state, plans, error)

    def _attempt(
        self, state: RoundState, plans: Plans, copy: Callable[[Any], Any]
    ) -> tuple[RoundState, list[RoundMetrics]]:
        arrays = self._resident_arrays() if plans.examples is None else plans.examples.result()
        if self.debug:
            for r in range(len(plans.cohorts)):
                debug_lib.run_clients(self, state, unpack_plan(plans.words[r], plans.shape), arrays)
        with debug_lib.explained(self):
            programs = self.compile_count()
            if self._waves is not None:
                made, rows, output = self._waves.round(state, plans, arrays)
                outputs = [output]
            else:
                program = self._program(plans.shape, plans.slots)
                made, count = copy(self._on_devices(state)), np.int32(len(plans.cohorts))
                made, outputs = program(state.seeds, made, plans.words, count, arrays)
                rows = made.rows
            if self.compile_count() > programs:  # an allocation that fails is told now
                jax.block_until_ready((made, outputs))
        after = RoundState(
            round=state.round + len(plans.cohorts),
            seed=state.seed,
            server=made.server,
            aggregator=made.aggregator,
            sampler=plans.sampler_state,
            rows=rows,
            ledger=state.ledger,
            noise_seed=state.noise_seed,
        )
        metrics, epsilon = [], None
        for i, (cohort, stats, output) in enumerate(zip(plans.cohorts, plans.stats, outputs, strict=False)):
            after = _replace(after, ledger=ledger.entered(after.ledger, self._released, stats.drawn, stats.sent))
            if self._meter is not None:
                epsilon = functools.partial(privacy.spent, self._meter, after.ledger, plans.first + i + 1)
            metrics.append(RoundMetrics(plans.first + i, cohort, stats, output, epsilon))
        return after, metrics

    def _on_devices(self, state: RoundState) -> DeviceState:
        return DeviceState(state.server, state.aggregator, state.rows)

    def _program(self, shape: PlanShape, slots: int) -> Callable[..., Any]:
        """The compiled program of a block of up to `slots` rounds."""
        if (shape, slots) not in self._programs:
            run = block(self._one_round(shape), shape, slots)
            # Without a say, XLA may place the state elsewhere than it was, and the next round is another program.
            out = (first_state.shardings(self), placement.everywhere(self._mesh) if self.shared else None)
            self._programs[shape, slots] = jax.jit(run, donate_argnums=(1,) if self._donates else (), out_shardings=out)
        return self._programs[shape, slots]

    def _one_round(self, shape: PlanShape, members: str | None = None) -> Callable[..., Any]:
        """The function of one round, to be compiled; `members` as in `CohortMap`."""
        return make_round(self._parts(shape, members), shape.capacity)

    def _parts(self, shape: PlanShape, members: str | None = None) -> list[PhaseRound]:
        fixed = (self._mesh, self.batching, self._planner.longest, shape.capacity, self._expected)
        return [
            PhaseRound(
                i,
                phase,
                *fixed,
                self._sent[i],
                members,
                self.exact,
                self._everyone,
                self.data.num_clients,
                self.algorithm.task.convolutions,
            )
            for i, phase in enumerate(self._phases)
        ]

    def _resident_arrays(self) -> Any:
        """The federation's arrays on every device, put there once."""
        assert self._reader is None, "a streamed plan's order counts rows of its own block"
        if self._arrays is None:
            self._arrays = residency_lib.resident_arrays(self._mesh, self.data)
        return self._arrays

    # What happens between rounds

    def _tune(self, state: RoundState) -> None:
        """Choose lanes by measurement, once, before the first round."""
        if self._untuned and self._waves is None:
            self.tuning = lanes_lib.tune(self, state)
        self._untuned = False

    @property
    def _donates(self) -> bool:
        """Rows are updated in place, unless a failing round must be able to give back the state before it."""
        return self._has_rows and self.on_nonfinite == "drop"

    def _copy_if_donated(self, tree: Any) -> Any:
        return _copy(tree) if self._donates else tree

    def _observed(self, state: RoundState, rounds: list[RoundMetrics]) -> RoundState:
        """The state with what the sampler takes from rounds that are done, its rows safe."""
        if self._waves is not None:
            state.rows.settle()
        if self.sampler.observe is None:
            return state
        seen = self.sampler.observe(state.sampler, rounds[-1].cohort, rounds[-1].per_client())
        return _replace(state, sampler=seen)

    def _replay(self, good: RoundState, failed: int) -> tuple[RoundState, list[RoundMetrics]]:
        """The state just before a failed round of a block: its good rounds once more, one by one."""
        rounds: list[RoundMetrics] = []
        while good.round < failed:
            plans = self._plan(good, 1, self.rounds_per_dispatch)
            good, metrics = self._dispatch(good, plans, self._copy_if_donated)
            good = self._observed(good, metrics)
            rounds += metrics
        return good, rounds

    def compile_count(self) -> int:
        """How many programs the rounds have needed so far.

        It is 1, whatever is mixed of `step`, `run` and `restore`. Three things need another: a draw that exceeds its
        sampler's capacity, fewer lanes where memory does not suffice, and `step` beside `run` where examples are
        streamed and a dispatch is several rounds.
        """
        if self._waves is not None:
            return self._waves.compile_count()
        return sum(program._cache_size() for program in self._programs.values())  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return describe.text(self)

    def _repr_html_(self) -> str:
        return describe.table(self)


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _replace(state: RoundState, **changes: Any) -> RoundState:
    return dataclasses.replace(state, **changes)
