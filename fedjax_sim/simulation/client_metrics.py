"""The metrics of every client, and what papers report of them: spread, fairness, slices, all clients pooled."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from fedjax_sim.core import html
from fedjax_sim.core import metrics as metrics_lib
from fedjax_sim.core.errors import check, check_fraction, is_traced
from fedjax_sim.core.metrics import Metric

PROBABILITIES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
Weight = Literal["uniform", "examples"] | npt.ArrayLike


class ClientMetrics:
    """The metrics of every client of a federation.

    Attributes:
        metrics: dict of name to [K] values; NaN for a client without data. Of a metric whose value is an array, a
            confusion matrix say, [K, ...].
        sizes: [K] examples of each client.
        sums: dict of name to the metrics themselves, sums over each client's examples, [K, ...] a leaf.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> task = fs.Task(lambda key: 0.0, lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> data = fs.data.FederatedData({"x": jnp.array([1.0, 2.0, 3.0, 1.0])}, offsets=[0, 1, 3, 4])
        >>> clients = fs.evaluate_clients(task, jnp.zeros(()), data)
        >>> clients["loss"], clients.pooled()
        (array([1. , 6.5, 1. ]), {'loss': 3.75})
        >>> clients.summary("loss").mean, clients.summary("loss", weight="examples").mean
        (2.8333333333333335, 3.75)
        >>> {name: part.pooled()["loss"] for name, part in clients.by(["city", "city", "village"]).items()}
        {'city': 4.666666666666667, 'village': 1.0}
    """

    def __init__(self, metrics: dict[str, Metric], sizes: np.ndarray):
        self.sums = metrics
        self.metrics = {name: metric.compute() for name, metric in metrics.items()}
        self.sizes = sizes

    def __getitem__(self, name: str) -> np.ndarray:
        return self.metrics[name]

    def quantiles(self, name: str, probabilities: tuple[float, ...] = PROBABILITIES) -> dict[float, float]:
        """Quantiles of a metric over the clients that have a value, each client counting once."""
        if is_traced(self.metrics[name]):
            return {p: jnp.nanquantile(self.metrics[name], p) for p in probabilities}  # type: ignore[misc]
        values = self.metrics[name][~np.isnan(self.metrics[name])]
        return {p: float(np.quantile(values, p)) for p in probabilities} if len(values) else {}

    def pooled(self) -> dict[str, Any]:
        """All clients' metrics merged, as if their examples were one client's: name to number, or array."""
        return values_of(metrics_lib.reduce(self.sums))

    def select(self, clients: npt.ArrayLike) -> "ClientMetrics":
        """Some of the clients: [K] booleans, or [n] ids."""
        chosen = np.asarray(clients)
        count = len(self.sizes)
        if chosen.dtype == bool:
            check(chosen.shape == (count,), "clients.shape", chosen.shape, f"must be a boolean for each of {count}.")
            chosen = np.flatnonzero(chosen)
        chosen = chosen.astype(np.int64) if chosen.size == 0 else chosen
        whole = chosen.ndim == 1 and np.issubdtype(chosen.dtype, np.integer)
        check(whole, "clients", clients, "must be [K] booleans or [n] ids.")
        inside = chosen.size == 0 or (chosen.min() >= 0 and chosen.max() < count)
        check(inside, "clients", clients, f"ids must lie in 0..{count - 1}.")
        return ClientMetrics(jax.tree.map(lambda leaf: leaf[chosen], self.sums), self.sizes[chosen])

    def by(self, column: npt.ArrayLike) -> dict[Any, "ClientMetrics"]:
        """Slices of the population: for each value of a column of what is known of clients, [K], those who have it."""
        column, count = np.asarray(column), len(self.sizes)
        check(column.shape == (count,), "column.shape", column.shape, f"must be a value for each of {count} clients.")
        unknown = column.dtype.kind in "fc" and bool(np.isnan(column).any())
        check(not unknown, "column", "NaN", "is the value of some clients, who would be in no slice: name them.")
        return {value.item(): self.select(column == value) for value in np.unique(column)}

    def seen(self, clients: npt.ArrayLike) -> dict[str, "ClientMetrics"]:
        """`{"seen": ..., "unseen": ...}`: clients that were in training, and those that were not.

        Args:
            clients: ids of those that were, as often as they were: of a run
                `np.concatenate([metrics.client_ids for metrics in history.rounds])`.
        """
        ids, mask = np.asarray(clients, np.int64).ravel(), np.zeros(len(self.sizes), bool)
        check(
            ids.size == 0 or (ids.min() >= 0 and ids.max() < len(mask)),
            "clients",
            clients,
            f"ids must lie in 0..{len(mask) - 1}.",
        )
        mask[ids] = True
        return {"seen": self.select(mask), "unseen": self.select(~mask)}

    def summary(
        self,
        name: str,
        weight: Weight = "uniform",
        worst: Literal["low", "high"] | None = None,
        share: float = 0.1,
    ) -> "Summary":
        """What papers report of a metric over the clients that have a value.

        Args:
            name: of a metric with one number a client.
            weight: "uniform", each client counts once; "examples", as often as it has examples; or [K] weights.
            worst: which values are bad: "low" ones, of an accuracy, or "high" ones, of a loss. None for "high" if the
                name speaks of a loss, an error or a perplexity, else "low".
            share: of the weight that the worst clients make up.

        Raises:
            ArgumentError: unknown names, values that are no numbers, weights that are negative or not one a client.
        """
        check(name in self.metrics, "name", name, f"the metrics are {sorted(self.metrics)}.")
        values, count = self.metrics[name], len(self.sizes)
        check(not is_traced(values), "name", name, "is traced: summarise it outside of jax.jit, or use quantiles.")
        check(values.shape == (count,), "name", name, f"has values {values.shape[1:]} a client: must be numbers.")
        check(worst in ("low", "high", None), "worst", worst, 'must be "low", "high" or None.')
        check_fraction("share", share, closed=True)
        check(share > 0, "share", share, "must be over 0.")
        if isinstance(weight, str):
            check(weight in ("uniform", "examples"), "weight", weight, 'must be "uniform", "examples" or [K] weights.')
            weights = self.sizes if weight == "examples" else np.ones(count)
        else:
            weights = np.asarray(weight, np.float64)
            check(weights.shape == (count,), "weight.shape", weights.shape, f"must be a weight for each of {count}.")
        check(bool(np.all(weights >= 0)), "weight", weight, "must not be negative.")
        if worst is None:
            worst = "high" if any(word in name.lower() for word in ("loss", "error", "perplexity")) else "low"
        kept = ~np.isnan(values) & (weights > 0)
        undefined = int(np.count_nonzero(np.isnan(values) & (self.sizes > 0)))
        return summarise(name, values[kept], weights[kept], worst, share, undefined)

    def __repr__(self) -> str:
        return f"ClientMetrics({len(self.sizes)} clients, {sorted(self.metrics)})"

    def _repr_html_(self) -> str:
        names = [name for name, values in self.metrics.items() if np.ndim(values) == 1]
        levels = {name: self.quantiles(name) for name in names}
        rows = [(f"{100 * p:g} %", *(f"{levels[name].get(p, np.nan):.4g}" for name in names)) for p in PROBABILITIES]
        return html.table(f"{len(self.sizes)} clients, quantiles", ["clients below", *names], rows)


@dataclasses.dataclass(frozen=True)
class Summary:
    r"""A metric over clients, of values x with weights w that sum to W.

    Attributes:
        name: the metric's.
        clients: those with a value and a weight, of which all that follows tells. NaN where there are none.
        undefined: clients with examples and without a value: a loss that is NaN, a recall of a class that they lack.
        mean: :math:`\mu = \sum w x / W`.
        variance: :math:`\sum w (x - \mu)^2 / W`.
        quantiles: probability to value; of unequal weights the smallest value that the clients up to it hold so much of
            the weight with, of equal ones between values as NumPy has it.
        worst: the mean over the worst `share` of the weight; the client at its edge counts in part.
        worst_are: "low" or "high".
        share: 0.1, if not told otherwise.
        gini: Gini's coefficient :math:`\sum_{ij} w_i w_j \lvert x_i - x_j \rvert / (2 W^2 \mu)`: 0 where all are equal.
            NaN with negative values, or with none over 0.
        jain: Jain's index :math:`(\sum w x)^2 / (W \sum w x^2)`: 1 where all are equal, 1/K where one has everything.
    """

    name: str
    clients: int
    undefined: int
    mean: float
    variance: float
    quantiles: Mapping[float, float]
    worst: float
    worst_are: Literal["low", "high"]
    share: float
    gini: float
    jain: float

    def facts(self) -> dict[str, str]:
        """What there is to say, in words."""
        spread = ", ".join(f"{100 * p:g} %: {value:.4g}" for p, value in self.quantiles.items())
        ill = {"clients without a value": str(self.undefined)} if self.undefined else {}
        return {
            "clients": str(self.clients),
            **ill,
            "mean": f"{self.mean:.4g}",
            "standard deviation": f"{self.variance**0.5:.4g}",
            "quantiles": spread,
            f"worst {100 * self.share:g} % ({self.worst_are})": f"{self.worst:.4g}",
            "Gini": f"{self.gini:.4g}",
            "Jain": f"{self.jain:.4g}",
        }

    def __repr__(self) -> str:
        return f"Summary({self.name}; " + "; ".join(f"{name} {value}" for name, value in self.facts().items()) + ")"

    def _repr_html_(self) -> str:
        return html.facts(self.name, self.facts())


def summarise(
    name: str, x: np.ndarray, w: np.ndarray, worst: Literal["low", "high"], share: float, undefined: int = 0
) -> Summary:
    """The summary of values [n] with positive weights [n]."""
    order = np.argsort(x, kind="stable")
    x, w = np.asarray(x, np.float64)[order], np.asarray(w, np.float64)[order]
    facts = dict(name=name, clients=len(x), undefined=undefined, worst_are=worst, share=share)
    if not len(x):
        nothing = dict.fromkeys(("mean", "variance", "worst", "gini", "jain"), np.nan)
        return Summary(**facts, **nothing, quantiles=dict.fromkeys(PROBABILITIES, np.nan))  # type: ignore[arg-type]
    total, mean = w.sum(), float(w @ x / w.sum())
    bad, its = (x, w) if worst == "low" else (x[::-1], w[::-1])
    part = np.clip(share * total - (np.cumsum(its) - its), 0, its)
    # Of sorted values, twice the sum over pairs of w_i w_j (x_j - x_i) for i < j.
    before = np.cumsum(w) - w / 2
    gini = float(w @ ((2 * before - total) * x)) / (total**2 * mean) if x[0] >= 0 and mean > 0 else np.nan
    squares = float(w @ x**2)
    return Summary(
        **facts,  # type: ignore[arg-type]
        mean=mean,
        variance=float(w @ (x - mean) ** 2 / total),
        quantiles={p: _quantile(x, w, p) for p in PROBABILITIES},
        worst=float(part @ bad / part.sum()),
        gini=gini,
        jain=float((w @ x) ** 2 / (total * squares)) if squares > 0 else np.nan,
    )


def _quantile(x: np.ndarray, w: np.ndarray, p: float) -> float:
    if np.all(w == w[0]):
        return float(np.quantile(x, p))
    reached = np.cumsum(w)
    return float(x[min(np.searchsorted(reached, p * reached[-1] * (1 - 1e-12)), len(x) - 1)])


def values_of(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """Metrics' values: numbers as floats, others as arrays; traced, where the metrics are."""
    if any(is_traced(leaf) for leaf in jax.tree.leaves(dict(metrics))):
        return {name: metric.compute() for name, metric in metrics.items()}
    values = {name: np.asarray(metric.compute()) for name, metric in jax.device_get(dict(metrics)).items()}
    return {name: value if value.ndim else float(value) for name, value in values.items()}
