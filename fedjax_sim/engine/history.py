"""What rounds report: metrics that stay on the devices until they are read."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.metrics import Metric
from fedjax_sim.core.types import Cohort
from fedjax_sim.data.plan import PlanStats
from fedjax_sim.engine.round import RoundOutput


class RoundMetrics(Mapping[str, Any]):
    """One round's metrics by flat name: `client/loss`, `aggregate/clip_fraction`, `plan/efficiency` ...

    Reading the first of them waits for the device; the values are then on the host. `clients(name)` gives a metric of
    each client in the cohort.

    Attributes:
        round: the round's number.
        cohort: who was drawn.

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

    def __init__(self, round: int, cohort: Cohort, stats: PlanStats, output: RoundOutput):
        self.round, self.cohort = round, cohort
        self._stats, self._device, self._host = stats, output, None
        self._values: dict[str, Any] = {}
        self._names = (*output.merged, *_HOST_NAMES)

    def _fetched(self) -> RoundOutput:
        if self._host is None:
            self._host, self._device = jax.device_get(self._device), None
        return self._host  # type: ignore[return-value]

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(f"{name!r}: this round has {sorted(self._names)}.")
        if name not in self._values:
            if name in _HOST_NAMES:
                value = _HOST_NAMES[name](self._stats, self._fetched)
            else:
                value = _value(self._fetched().merged[name])
            self._values[name] = value
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def client_ids(self) -> np.ndarray:
        """[c] the clients drawn, in the order of `clients(name)`."""
        return np.asarray(self.cohort.ids)[np.asarray(self.cohort.valid)]

    def clients(self, name: str) -> np.ndarray:
        """[c, ...] a `client/` or `aggregate/` metric of each client drawn; NaN (a `Sum`: 0) where it did not train."""
        output = self._fetched()
        if name not in output.per_client:
            raise KeyError(f"{name!r}: kept per client are {sorted(output.per_client)}.")
        return output.per_client[name].compute()[np.asarray(self.cohort.valid)]

    def per_client(self) -> dict[str, Metric]:
        """The metrics of the cohort's places, [C] each, as monoids: what samplers observe."""
        return self._fetched().per_client

    def nonfinite_clients(self) -> list[int]:
        """The clients whose update held NaN or infinity."""
        finite = self._fetched().finite
        return sorted(int(k) for k in np.asarray(self.cohort.ids)[~finite])

    def __repr__(self) -> str:
        values = ", ".join(f"{name}: {_short(self[name])}" for name in self)
        return f"RoundMetrics(round {self.round}, {values})"


_HOST_NAMES = {
    "cohort/clients": lambda stats, fetched: stats.clients,
    "cohort/examples": lambda stats, fetched: stats.examples,
    "cohort/contributed": lambda stats, fetched: int(fetched().count),
    "cohort/weight": lambda stats, fetched: float(fetched().weight),
    "cohort/nonfinite": lambda stats, fetched: int((~fetched().finite).sum()),
    "plan/steps": lambda stats, fetched: stats.steps,
    "plan/efficiency": lambda stats, fetched: stats.efficiency,
    "plan/balance": lambda stats, fetched: stats.balance,
}


class History(Mapping[str, np.ndarray]):
    """The rounds of a run: `history["client/loss"]` is a column over them.

    Example:
        >>> import fedjax_sim as fs
        >>> len(fs.History().rounds)
        0
    """

    def __init__(self, rounds: list[RoundMetrics] | None = None):
        self.rounds: list[RoundMetrics] = list(rounds or [])
        self.evaluations: dict[int, dict[str, float]] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name == "round":
            return np.asarray([metrics.round for metrics in self.rounds])
        evaluated = {key for values in self.evaluations.values() for key in values}
        if name in evaluated:
            rows = [self.evaluations.get(m.round, {}).get(name, np.nan) for m in self.rounds]
            return np.asarray(rows)
        if self.rounds and name not in self.rounds[0]:
            raise KeyError(f"{name!r}: the history has {sorted(self)}.")
        return np.asarray([metrics[name] for metrics in self.rounds])

    def __iter__(self) -> Iterator[str]:
        yield "round"
        yield from dict.fromkeys(key for values in self.evaluations.values() for key in values)
        yield from self.rounds[0] if self.rounds else ()

    def __len__(self) -> int:
        return len(list(iter(self)))

    def to_pandas(self) -> Any:
        """A DataFrame with a row a round; needs pandas."""
        try:
            import pandas
        except ImportError as error:
            raise ArgumentError('history.to_pandas() needs pandas: pip install "fedjax-sim[pandas]".') from error
        return pandas.DataFrame({name: list(self[name]) for name in self}).set_index("round")

    def __repr__(self) -> str:
        if not self.rounds:
            return "History(no rounds)"
        last = self.rounds[-1]
        return f"History({len(self.rounds)} rounds, last: {last!r})"


def _value(metric: Metric) -> Any:
    value = metric.compute()
    return float(value) if np.ndim(value) == 0 else value


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
