"""The simulation: an algorithm, a federation, a sampler and a batching, run round after round."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from fedjax_sim.algorithms.base import Algorithm
from fedjax_sim.core.types import Params, RoundPlan, RoundState
from fedjax_sim.data.batching import Batching
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.engine.device.placement import Device
from fedjax_sim.engine.store.residency import Residency
from fedjax_sim.engine.store.row_table import Rows
from fedjax_sim.population.sampling import Sampler
from fedjax_sim.population.timing import Fleet
from fedjax_sim.privacy.accounting import Epsilon
from fedjax_sim.runs.folder import RunFolder
from fedjax_sim.simulation import describe, epsilon, first_state, former, pure_round, recorder, tuning
from fedjax_sim.simulation.assemble import assemble
from fedjax_sim.simulation.evaluation import ClientMetrics
from fedjax_sim.simulation.execution import Execution
from fedjax_sim.simulation.executor import Executor
from fedjax_sim.simulation.history import History, RoundMetrics
from fedjax_sim.simulation.loop import Evaluate, Schedule, check_run, one_round, run_rounds
from fedjax_sim.simulation.own_models import evaluate_clients_of, model_in
from fedjax_sim.simulation.pure_round import PureState, RoundFunction
from fedjax_sim.simulation.recorder import Callback, Recording


class Simulation:
    """A federated simulation whose rounds are one compiled program.

    Args:
        algorithm: from `fs.algorithms`, or your own `fs.Algorithm`.
        data: the federation.
        sampler: from `fs.sampler`.
        batching: how a client's examples become batches.
        seed: 32-bit seed; all randomness comes from (seed, purpose, round, client id).
        execution: lanes, devices, and where examples and rows live: what cannot change the results.
        on_nonfinite: an update with NaN, infinity or a squared norm beyond float32, or a metric "loss" that is NaN:
            "raise" an error that names client and round and carries the last good state; or "drop" the client from
            the round (of several phases, from the failing one on its own) and record it. A client's new row counts
            as its update.
        debug: run each client alone and eagerly before each round, so that an error in a client function names
            the client and its batch.
        evaluate: `params -> dict of numbers`: what `run` evaluates, unless it is told otherwise.
        delta: of `privacy/epsilon`, which rounds with noise for privacy report (with the extra `privacy`): an upper
            bound by Rényi accounting, which is cheap. `sim.epsilon` is tighter. None for K ** -1.1, at most 1e-3.
        exact: add in fixed point (`fedjax_sim.engine.round.sums`): for the same `lanes` devices, processes and the
            cohort's order change no bit of a sum. Clients' weighted numbers must stay below 2^24; the unit is 2^-48.
        noise_seed: 32-bit seed of all noise for privacy; None for `seed`. Runs that are both released need different
            ones, as noise that they share cancels; sampling, batches and training stay as they are.
        fleet: what clients train on, from `fs.fleet`: a clock, `clock/` columns, and what transforms of samplers read.

    Attributes:
        parts: what it is made of, a frozen record.
        executor: what runs its rounds.

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
        *,
        execution: Execution = Execution(),  # noqa: B008, frozen
        on_nonfinite: Literal["raise", "drop"] = "raise",
        debug: bool = False,
        evaluate: Evaluate | None = None,
        delta: float | None = None,
        exact: bool = False,
        noise_seed: int | None = None,
        fleet: Fleet | None = None,
        **options: Any,
    ):
        execution = former.with_former(execution, options)
        self.parts = assemble(
            algorithm,
            data,
            sampler,
            batching,
            execution,
            seed=seed,
            noise_seed=noise_seed,
            on_nonfinite=on_nonfinite,
            debug=debug,
            delta=delta,
            exact=exact,
            fleet=fleet,
        )
        self.executor = Executor(self.parts, execution)
        self.evaluate = evaluate

    @property
    def algorithm(self) -> Algorithm:
        """What is trained."""
        return self.parts.algorithm

    @property
    def data(self) -> FederatedData:
        """The federation."""
        return self.parts.data

    @property
    def sampler(self) -> Sampler:
        """Who is drawn."""
        return self.parts.sampler

    @property
    def batching(self) -> Batching:
        """How a client's examples become batches."""
        return self.parts.batching

    @property
    def seed(self) -> int:
        """Of all randomness but noise for privacy."""
        return self.parts.seed

    @property
    def delta(self) -> float:
        """Of `privacy/epsilon`."""
        return self.parts.delta

    @property
    def devices(self) -> tuple[Device, ...]:
        """That train, of all processes."""
        return self.parts.devices

    @property
    def lanes(self) -> int:
        """Clients that a device trains side by side now."""
        return self.executor.lanes

    @property
    def rounds_per_dispatch(self) -> int:
        """Rounds in one compiled dispatch of `run`."""
        return self.executor.rounds_per_dispatch

    @property
    def tuning(self) -> dict[int, float] | None:
        """Seconds of a cut round by lanes, if they were measured."""
        return self.executor.tuning

    @property
    def residency(self) -> Residency:
        """Where the examples live, "device" or "stream"."""
        return self.parts.residency

    @property
    def rows(self) -> Rows:
        """Where clients' rows live, "device" or "host"."""
        return self.parts.rows

    def __getattr__(self, name: str) -> Any:
        return former.attribute(self, name)

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
        return first_state.begin(self.parts, self.executor.first, params)

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
        recorder.save(self.executor, Path(folder), state)

    def restore(
        self, folder: str | os.PathLike[str], round: int | None = None, allow: Iterable[str] = (), or_init: bool = False
    ) -> RoundState:
        """The state of a folder's newest checkpoint, or of a given round's.

        A damaged one is left aside for the one before it, with a warning. Lanes that were chosen automatically are
        chosen as they were, if the number of devices is the same: then the run goes on bit by bit as it would have.

        Args:
            folder: of `save`, or of a run.
            round: rounds of the state; None for the newest.
            allow: what may differ, deliberately: "algorithm", "sampler", "data", ... Another sampler begins anew.
            or_init: where there is no checkpoint yet, `init()`: a script that is started again then goes on by itself.

        Raises:
            RunFolderError: no checkpoint there, none that can be read, or one of another simulation.
        """
        return recorder.restore(self.executor, Path(folder), round, allow, or_init)

    def step(self, state: RoundState) -> tuple[RoundState, RoundMetrics]:
        """One round: `(state, metrics)`. The given state stays usable."""
        return one_round(self.executor, state)

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
        progress: bool = True,
    ) -> tuple[RoundState, History]:
        """That many more rounds: `(state, history)`. The given state stays usable.

        Later rounds are planned while the devices compute. With a folder, the run keeps its configuration, metrics,
        checkpoints, TensorBoard events and plots there (`fedjax_sim.runs.folder`); Ctrl-C then ends the round, saves it
        and raises `RunInterrupted`. A run goes on in its folder from `state = sim.restore(folder)`.

        Args:
            state: from `init`, `step`, `run` or `restore`.
            rounds: additional rounds; 0 gives the state back.
            evaluate: `params -> dict of numbers`, called after every `eval_every` rounds and after the last;
                its values join the round's metrics. None for the simulation's own.
            eval_every: None for after the last round alone.
            run_dir: a folder for the run, made if need be; or an `fs.runs.RunFolder`.
            checkpoint_every: rounds between checkpoints, the last three of which stay; None: at the start and the end.
            callbacks: functions of each finished round's metrics, in order, or loggers; an `fs.runs.Stop` ends the run.
            profile: time planning, transfer and computation, one after another, and keep a trace in the folder.
            progress: show how far it is; without a folder, after a second, or after ten on stderr where no terminal is.

        Raises:
            NonFiniteUpdateError, RefusedRoundError: `on_nonfinite="raise"`; a reducer of `on_few="error"` refused.
            RunFolderError: the folder cannot be written, is in use, or holds another run.
            RunInterrupted: by Ctrl-C or SIGTERM, with a folder.
            Any exception that ends a run has the last good state and the history as `.state` and `.history`.
        """
        check_run(rounds, eval_every, checkpoint_every, profile, run_dir)
        if rounds:
            tuning.tune(self.executor, state)
        schedule = Schedule(state.round + rounds, self.executor.rounds_per_dispatch, eval_every, checkpoint_every)
        with Recording(self.executor, callbacks, run_dir, profile, progress).of(state, rounds) as record:
            return run_rounds(self.executor, state, schedule, evaluate or self.evaluate, record)

    def params(self, state: RoundState | PureState, ema: bool = False, client: int | None = None) -> Params:
        """The model in a state, `algorithm.params(state.server)`; or what `fs.server.ema` averaged; or a client's."""
        return model_in(self.parts, state, ema, client)

    def evaluate_clients(
        self,
        state: RoundState,
        data: FederatedData | None = None,
        *,
        personal: bool | Literal["unseen"] = False,
        batch_size: int = 64,
    ) -> ClientMetrics:
        """Each client's metrics, under the server's model or under its own, in one compiled pass.

        Args:
            data: None for the simulation's; or any, which under `personal=True` is of the same clients in their order.
            personal: True for each client's own model, `algorithm.personal(state.server, row)`; "unseen" for what one
                that never took part would have, by a first row made of today's model.
        """
        return evaluate_clients_of(self.parts, state, data, personal, batch_size)

    def round_function(self, static: bool = False) -> RoundFunction:
        """A round as a pure function, `(round_state, plan, arrays) -> (round_state, metrics)`.

        To be jitted, vmapped and differentiated; `pure_state` and `round_plan` make its arguments. `metrics` is a dict
        of numbers. Of updates that are not finite, `cohort/nonfinite` tells; they are left out.

        Args:
            static: loops have bounds that do not depend on the plan, so that `jax.grad` goes through. They run over all
                places of a cohort and the steps of the population's longest client, and a derivative keeps what each of
                these steps computed.

        Raises:
            ArgumentError: examples that are streamed, or rows on the host; static sums in fixed point, whose derivative
                is zero.

        Example:
            >>> import dataclasses, jax, jax.numpy as jnp, optax, fedjax_sim as fs
            >>> task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
            >>> data = fs.data.FederatedData({"x": jnp.arange(4.0)}, offsets=[0, 2, 4])
            >>> sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.1)), data, fs.sampler.uniform(2), fs.Batching(2))
            >>> state, (plan, arrays) = sim.pure_state(sim.init()), sim.round_plan(sim.init())
            >>> def model(w):  # after a round from w: w + 0.1 * 2 * (1.5 - w)
            ...     start = dataclasses.replace(state, server=state.server._replace(params=w))
            ...     return sim.params(sim.round_function(static=True)(start, plan, arrays)[0])
            >>> print(jax.grad(model)(0.0))
            0.8
        """
        return pure_round.round_function(self.parts, static)

    def pure_state(self, state: RoundState) -> PureState:
        """What a round function takes of a state: its arrays, seeds and round."""
        return pure_round.pure_state(self.parts, state)

    def round_plan(self, state: RoundState, rounds: int | None = None) -> tuple[RoundPlan, Any]:
        """`(plan, arrays)` of the state's next round: its cohort's work, and the examples.

        Args:
            state: from `init`, `step`, `run` or `restore`.
            rounds: None for one; else so many plans, stacked along a first axis, as `jax.lax.scan` takes them.
        """
        return pure_round.round_plan(self.executor, state, rounds)

    def epsilon(
        self,
        rounds: int | None = None,
        delta: float | None = None,
        *,
        state: RoundState | None = None,
        accountant: Literal["pld", "rdp"] | None = None,
        adjacency: str | None = None,
    ) -> Epsilon:
        """What rounds cost in privacy: those that a state has behind it, those that are planned, or both.

        Planned rounds have this simulation's noise, sampler and population. Those behind a state have what they had:
        its ledger says so, whatever this simulation is. It covers what the rounds release, the aggregates and so the
        models; not `client/` metrics and per-client tables, which are for the experimenter's eyes. Needs the extra
        `privacy`.

        Args:
            rounds: how many are planned, after the state's if there is one. With shares of distributed noise, all who
                are drawn are taken to send theirs; refused where a transform or a protocol loses some by chance.
            delta: of the guarantee; None for the simulation's.
            state: whose rounds were run, with the shares of noise that clients really sent.
            accountant: "pld", "rdp", or None for PLD wherever there is one.
            adjacency: "add-or-remove-one" or "replace-one"; None for what goes with the sampler, see
                `fs.privacy.epsilon`. Rounds of different settings must have it in common.

        Raises:
            ArgumentError: no noise, or none that can be accounted with this sampler; a state whose ledger does not
                know all of its rounds, as of a version without one; rounds that no one epsilon covers.

        Example:
            >>> import jax.numpy as jnp, optax, fedjax_sim as fs
            >>> task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
            >>> data = fs.data.FederatedData({"x": jnp.arange(100.0)}, offsets=range(101))
            >>> noise = (fs.aggregate.clip_by_l2(1.0), fs.aggregate.gaussian_noise(multiplier=1.0))
            >>> private = fs.fedavg(
            ...     task, optax.sgd(0.1), aggregator=fs.aggregate.chain(*noise, reduce=fs.aggregate.mean("uniform"))
            ... )
            >>> sim = fs.Simulation(private, data, fs.sampler.poisson(0.1), fs.Batching(1))
            >>> spent = sim.epsilon(rounds=10, delta=1e-3)
            >>> print(f"{spent.epsilon:.2f}", spent.adjacency)
            1.57 add-or-remove-one
        """
        return epsilon.epsilon(self.parts, lambda: self.executor.released, rounds, delta, state, accountant, adjacency)

    def compile_count(self) -> int:
        """How many programs the rounds have needed so far.

        It is 1, whatever is mixed of `step`, `run` and `restore`. Three things need another: a draw that exceeds its
        sampler's capacity, fewer lanes where memory does not suffice, and `step` beside `run` where examples are
        streamed and a dispatch is several rounds.
        """
        return self.executor.compile_count()

    def __repr__(self) -> str:
        return describe.text(self.executor)

    def _repr_html_(self) -> str:
        return describe.table(self.executor)
