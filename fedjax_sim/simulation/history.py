"""What rounds report: metrics that stay on the devices until they are read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_sim.aggregate.collecting import ABANDONED
from fedjax_sim.core import html, latex
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import ArgumentError, NonFiniteUpdateError, RefusedRoundError, check_count
from fedjax_sim.core.metrics import Mean, Metric
from fedjax_sim.core.types import Cohort, Params, Told
from fedjax_sim.engine.parts import Parts
from fedjax_sim.engine.plan.planner import PlanStats
from fedjax_sim.engine.round.phase import RoundOutput
from fedjax_sim.engine.store.data_checks import said_of
from fedjax_sim.runs.modes import Mode, mode_of

SHOWN = 10  # rounds of a history in a notebook


class RoundMetrics(Mapping[str, Any]):
    """One round's metrics by flat name: `client/loss`, `aggregate/clip_fraction`, `plan/efficiency` ...

    Reading the first of them waits for the device; the values are then on the host, numbers of Python and arrays of
    NumPy, for callbacks as for whoever reads a history. `clients(name)` gives a metric of each client in the cohort.

    Attributes:
        round: the round's number, from 0 on; what is printed counts the rounds that are completed, from 1 on.
        cohort: who was drawn.
        evaluation: what the run's `evaluate` found after this round; empty if it was not asked.
        params: in callbacks, after an evaluation, the model that was evaluated; None elsewhere.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> data = fs.data.FederatedData({"x": jnp.arange(4.0)}, offsets=[0, 2, 4])
        >>> sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.1)), data, fs.sampler.uniform(2), fs.Batching(2))
        >>> state, metrics = sim.step(sim.init())
        >>> dict(zip(metrics.client_ids.tolist(), metrics.clients("client/loss").tolist()))
        {0: 0.5, 1: 6.5}
        >>> metrics["client/loss"]
        3.5
    """

    def __init__(
        self,
        round: int,
        cohort: Cohort,
        stats: PlanStats,
        output: RoundOutput,
        epsilon: Callable[[], float] | None = None,
    ):
        self.round, self.cohort, self._epsilon = round, cohort, epsilon
        self._stats, self._device, self._host = stats, output, None
        self._values: dict[str, Any] = {}
        self._told = Told({}, {}) if cohort.told is None else cohort.told
        self._own = (*output.merged, *_HOST_NAMES, *self._told.report, *([_EPSILON] if epsilon else []))
        self.evaluation: dict[str, float] = {}
        self.params: Params | None = None

    def _fetched(self) -> RoundOutput:
        if self._host is None:
            # Copies: on a CPU the devices' own buffers would stay for their views, a kilobyte each.
            self._host, self._device = jax.tree.map(np.array, jax.device_get(self._device)), None
        return self._host  # type: ignore[return-value]

    def __getitem__(self, name: str) -> Any:
        if name in self.evaluation:
            return self.evaluation[name]
        if name not in self._own:
            raise KeyError(f"{name!r}: this round has {sorted(self)}.")
        if name not in self._values:
            if name == _EPSILON:
                value, self._epsilon = self._epsilon(), None  # type: ignore[misc]
            elif name in self._told.report:
                value = self._told.report[name]
            elif name in _HOST_NAMES:
                value = _HOST_NAMES[name](self._stats, self._fetched)
            else:
                value = _value(self._fetched().merged[name])
            self._values[name] = value
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from (name for name in self.evaluation if name not in self._own)

    def __len__(self) -> int:
        return len(list(iter(self)))

    @property
    def client_ids(self) -> np.ndarray:
        """[c] the clients drawn, in the order of `clients(name)`."""
        return np.asarray(self.cohort.ids)[np.asarray(self.cohort.valid)]

    def clients(self, name: str) -> np.ndarray:
        """[c, ...] a `client/` or `aggregate/` metric of each client drawn; NaN (a `Sum`: 0) where it did not train.

        With a fleet also `clock/seconds`, from the invitation to the update; NaN where it was lost.
        """
        found = self.per_client()
        if name not in found:
            raise KeyError(f"{name!r}: kept per client are {sorted(found)}.")
        return found[name].compute()[np.asarray(self.cohort.valid)]

    def per_client(self) -> dict[str, Metric]:
        """The metrics of the cohort's places, [C] each, as monoids."""
        host = {**self._told.clients, **_of_cohort(self.cohort)}
        return {**self._fetched().per_client, **{name: self._placed(each) for name, each in host.items()}}

    def observed(self) -> dict[str, np.ndarray]:
        """[C, ...] the values of the cohort's places, as NumPy arrays: what samplers observe."""
        return {name: np.asarray(metric.compute()) for name, metric in self.per_client().items()}

    def _placed(self, values: np.ndarray) -> Metric:
        """[C] numbers of the host, in as many places as the cohort has by now."""
        whole = np.full(len(self.cohort.ids), np.nan)
        whole[: len(values)] = values
        return Mean(whole, np.ones(len(whole)))

    def nonfinite_clients(self) -> list[int]:
        """The clients whose update held NaN or infinity."""
        finite = self._fetched().finite
        return sorted(int(k) for k in np.asarray(self.cohort.ids)[~finite])

    @property
    def abandoned(self) -> bool:
        """Whether the round was given up, by its reducer, the host or the sampler, and changed nothing."""
        name = f"aggregate/{ABANDONED}"
        return self.cohort.abandoned or (name in self._own and bool(self[name]))

    def main_names(self) -> list[str]:
        """What is shown of a round: the numbers of its clients' training, and those that were evaluated."""
        names = [name for name in self._own if name.startswith("client/")]
        return [name for name in dict.fromkeys([*names, *self.evaluation]) if _is_number(self[name])]

    def __repr__(self) -> str:
        values = "".join(f", {name} {_short(self[name])}" for name in self.main_names())
        abandoned = ", abandoned" if self.abandoned else ""
        return f"RoundMetrics(after round {self.round + 1}, {self['cohort/clients']} clients{abandoned}{values})"

    def _repr_html_(self) -> str:
        return html.facts(f"After round {self.round + 1}", {name: _short(self[name]) for name in self})


def _of_cohort(cohort: Cohort) -> dict[str, np.ndarray]:
    """[C] what a sampler said of its clients, where it is not what goes without saying: what `replay` reads."""
    said: dict[str, Any] = {
        "population/arrived": cohort.arrives,
        "population/steps": cohort.max_steps,
        "population/version": cohort.version,
        "population/scale": cohort.columns.get("scale"),
        "population/abandoned": np.ones(len(cohort.ids)) if cohort.abandoned else None,
        "population/weight": cohort.weight
        if np.any(np.asarray(cohort.weight)[np.asarray(cohort.valid)] != 1)
        else None,
    }
    return {name: np.asarray(values, np.float64) for name, values in said.items() if values is not None}


_EPSILON = "privacy/epsilon"  # of all rounds up to this one
_HOST_NAMES = {
    "cohort/clients": lambda stats, fetched: stats.clients,
    "cohort/examples": lambda stats, fetched: stats.examples,
    "cohort/contributed": lambda stats, fetched: int(fetched().count),
    "cohort/weight": lambda stats, fetched: float(fetched().weight),
    "cohort/nonfinite": lambda stats, fetched: int((~fetched().finite).sum()),
    "plan/examples": lambda stats, fetched: stats.trained,
    "plan/steps": lambda stats, fetched: stats.steps,
    "plan/efficiency": lambda stats, fetched: stats.efficiency,
    "plan/balance": lambda stats, fetched: stats.balance,
}


def check_rounds(rounds: list[RoundMetrics], parts: Parts) -> None:
    """Raise for the first round that must not be: with an update or a loss that is not finite, or refused.

    Args:
        rounds: in order.
        parts: of their simulation; if it adds in fixed point, what is beyond its range is left out as well.

    Raises:
        NonFiniteUpdateError: names the clients.
        RefusedRoundError: a reducer refused a round.
    """
    for metrics in rounds:
        if parts.must_not_refuse and metrics.abandoned and not metrics.cohort.abandoned:
            rules = ", ".join(phase.aggregator.reducer.name for phase in parts.phases)
            raise RefusedRoundError(
                f"round {metrics.round}: {rules} refuses it, of {metrics['cohort/contributed']} clients that "
                'contributed. Draw larger cohorts, or give the rule on_few="abandon" or "mean". The state after the '
                "last good round is this error's .state.",
                metrics.round,
            )
        clients = metrics.nonfinite_clients() if parts.on_nonfinite == "raise" else []
        if clients:
            names = ", ".join(parts.data.name(k) for k in clients[:10])
            more = f" and {len(clients) - 10} more" if len(clients) > 10 else ""
            beyond = ", or a number of 2^24 or more once weighted, which exact sums cannot hold" if parts.exact else ""
            raise NonFiniteUpdateError(
                f"round {metrics.round}: the update of client {names}{more} is not finite (NaN, infinity, or a "
                f"norm beyond float32{beyond}), or its loss is NaN. {_advice(parts, clients[:10])}, or pass "
                'Simulation(on_nonfinite="drop") to leave such clients out and record them. The state after '
                "the last good round is this error's .state.",
                metrics.round,
                clients,
            )


def _advice(parts: Parts, clients: list[int]) -> str:
    """What to do about clients that are not finite: their data first, then how they are trained."""
    for client in clients:
        said = said_of(parts.algorithm.task, parts.data, client)
        if said:
            return f"Of client {parts.data.name(client)} {said}. Mend the data"
    return "Its data are finite: lower the client's learning rate, clip its gradients"


class Best(NamedTuple):
    """A metric's best value, and after how many rounds it was reached first.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> data = fs.data.FederatedData({"x": jnp.arange(4.0)}, offsets=[0, 2, 4])
        >>> sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.9)), data, fs.sampler.uniform(2), fs.Batching(2))
        >>> state, history = sim.run(sim.init(), rounds=3)
        >>> history.best("client/loss").rounds
        3
    """

    value: float
    rounds: int


class History(Mapping[str, np.ndarray]):
    """The rounds of a run: `history["client/loss"]` is a column over them, and `len(history)` says how many they are.

    Attributes:
        rounds: each one's metrics.
        stopped: why a callback ended the run; None where none did.

    Example:
        >>> import fedjax_sim as fs
        >>> len(fs.History())
        0
    """

    def __init__(self, rounds: list[RoundMetrics] | None = None, stopped: str | None = None):
        self.rounds: list[RoundMetrics] = list(rounds or [])
        self.stopped = stopped

    def __getitem__(self, name: str) -> np.ndarray:
        if name == "round":
            return np.asarray([metrics.round for metrics in self.rounds])
        if not any(name in metrics for metrics in self.rounds):
            raise KeyError(f"{name!r}: the history has {sorted(self)}.")
        return np.asarray([metrics.get(name, np.nan) for metrics in self.rounds])

    def __iter__(self) -> Iterator[str]:
        yield "round"
        yield from dict.fromkeys(name for metrics in self.rounds for name in metrics)

    def __len__(self) -> int:
        return len(self.rounds)

    def best(self, name: str, mode: Mode | None = None) -> Best:
        """A metric's best value, and after how many rounds it was reached first.

        Args:
            name: of a metric with a number a round.
            mode: "min" or "max"; None for "min" where the name tells of a loss or an error, else "max".

        Raises:
            ArgumentError: no round has a number of that name.
        """
        column = self[name] if name in set(self) else np.zeros(0)
        values = column.astype(np.float64) if column.ndim == 1 and column.dtype.kind in "fiub" else np.zeros(0)
        if not np.any(~np.isnan(values)):
            raise ArgumentError(f"metric={name!r}: no round has a number of that name; there are {sorted(self)}.")
        at = int(np.nanargmin(values) if mode_of(name, mode) == "min" else np.nanargmax(values))
        return Best(float(values[at]), self.rounds[at].round + 1)

    def time_to(self, name: str, value: float, mode: Mode | None = None) -> float:
        """Simulated seconds until a metric first was as good as a value; infinite where it never was.

        Args:
            name: of a metric with a number a round, such as one that was evaluated.
            value: that it is to reach.
            mode: "min" or "max"; None for what the name tells, as in `best`.

        Raises:
            ArgumentError: rounds without a clock, or without a number of that name.
        """
        clock = "clock/time"
        if clock not in set(self):
            raise ArgumentError(
                f"time_to({name!r}): these rounds have no clock: give fs.Simulation(fleet=fs.fleet...)."
            )
        self.best(name, mode)  # says what is wrong with the name
        column = np.asarray(self[name], np.float64)
        reached = column <= value if mode_of(name, mode) == "min" else column >= value
        return float(self[clock][np.argmax(reached)]) if reached.any() else np.inf

    def to_latex(self, names: Sequence[str] | None = None, every: int = 1) -> str:
        """A table for a paper, in LaTeX with booktabs: a row for each `every`-th round, and the last.

        Args:
            names: its columns; None for the main ones.
            every: rounds.

        Raises:
            ArgumentError: a name that no round has.
        """
        check_count("every", every)
        names = list(self._main()) if names is None else list(names)
        there = set(self)
        for name in names:
            if name not in there:
                raise ArgumentError(f"metric={name!r}: no round has it; there are {sorted(there)}.")
        rounds = [m for m in self.rounds if (m.round + 1) % every == 0 or m is self.rounds[-1]]
        shown = lambda value: "--" if value is None or (np.ndim(value) == 0 and np.isnan(value)) else _short(value)
        rows = [[str(m.round + 1), *(shown(m.get(name)) for name in names)] for m in rounds]
        return latex.table(["rounds", *names], rows)

    def to_pandas(self) -> Any:
        """A DataFrame with a row a round; needs pandas."""
        try:
            import pandas
        except ImportError as error:
            raise ArgumentError('history.to_pandas() needs pandas: pip install "fedjax-sim[pandas]".') from error
        return pandas.DataFrame({name: list(self[name]) for name in self}).set_index("round")

    def _main(self) -> dict[str, list[Any]]:
        """The main columns, None where a round has no value."""
        names = dict.fromkeys(name for metrics in self.rounds for name in metrics.main_names())
        return {name: [metrics.get(name) for metrics in self.rounds] for name in names}

    def _span(self) -> str:
        first, last = self.rounds[0].round + 1, self.rounds[-1].round + 1
        lost = sum(metrics.abandoned for metrics in self.rounds)
        span = f"1 round ({first})" if len(self.rounds) == 1 else f"{len(self.rounds)} rounds ({first} to {last})"
        return f"{span}, {lost} abandoned" if lost else span

    def __repr__(self) -> str:
        if not self.rounds:
            return "History(no rounds)"
        ends = ""
        for name, column in self._main().items():
            values = [_short(value) for value in column if value is not None]
            ends += f"; {name} " + " -> ".join(values[:1] + values[1:][-1:])
        return f"History({self._span()}{ends})"

    def _repr_html_(self) -> str:
        if not self.rounds:
            return html.facts("History", {"rounds": 0})
        main = self._main()
        curves = [html.sparkline([np.nan if value is None else value for value in column]) for column in main.values()]
        rows = zip([metrics.round + 1 for metrics in self.rounds], *main.values(), strict=True)
        last = [["" if value is None else _short(value) for value in row] for row in list(rows)[-SHOWN:]]
        return html.table(f"History, {self._span()}", ["round", *main], [["all", *curves], *last])


def _value(metric: Metric) -> Any:
    value = metric.compute()
    return float(value) if np.ndim(value) == 0 else value


def _is_number(value: PyTree) -> bool:
    return np.ndim(value) == 0 and np.asarray(value).dtype.kind in "fiub"


def _short(value: PyTree) -> str:
    if np.ndim(value):
        return f"{np.asarray(value).dtype}[{','.join(map(str, np.shape(value)))}]"
    value = np.asarray(value).item()
    return f"{value:.4g}" if isinstance(value, float) else str(value)
