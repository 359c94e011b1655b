"""Fine-tuning a model for each client, and what it does to them: all clients in one compiled pass."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim.client import ClientBatches, Task, gradient, replace, split_params
from fedjax_sim.client.bound import BOUND, bound
from fedjax_sim.core import html, rng
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.core.metrics import Metric
from fedjax_sim.core.pytree import where
from fedjax_sim.core.rng import Purpose
from fedjax_sim.core.types import Params
from fedjax_sim.data.batching import Batching
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.data.store.procedural import ProceduralData
from fedjax_sim.engine.device import placement
from fedjax_sim.simulation.client_map import over_clients
from fedjax_sim.simulation.client_metrics import ClientMetrics
from fedjax_sim.simulation.evaluation import measure_of


@dataclasses.dataclass(frozen=True, repr=False)
class Personalised:
    """What fine-tuning does to each client.

    Attributes:
        before: every client's metrics under the model that all begin with.
        after: under its own.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> data = fs.data.FederatedData({"x": jnp.array([1.0, 1.0, -2.0, 2.0])}, offsets=[0, 2, 4])
        >>> tuned = fs.personalise(task, jnp.array(0.5), data, steps=1, optimizer=optax.sgd(0.25))
        >>> tuned.before["loss"], tuned.after["loss"], tuned.harmed("loss")
        (array([0.25, 4.25]), array([0.0625, 4.0625]), 0.0)
    """

    before: ClientMetrics
    after: ClientMetrics

    def harmed(self, name: str) -> float:
        """The share of clients that a metric is worse of afterwards, among those that had it; NaN without such.

        More is worse of a loss, an error or a perplexity, less of anything else; and no number any more of all, as
        where fine-tuning diverged.
        """
        sign = 1 if self.before.summary(name).worst_are == "high" else -1
        change = sign * (self.after[name] - self.before[name])
        known = ~np.isnan(self.before[name])
        worse = (change > 0) | np.isnan(self.after[name])
        return float(np.mean(worse[known])) if known.any() else float("nan")

    def facts(self) -> dict[str, str]:
        """Mean, worst tenth and quantiles of each metric before and after, and who is harmed, in words."""
        found = {}
        for name in sorted(self.before.metrics):
            if self.before[name].ndim != 1:
                continue
            for when, clients in (("before", self.before), ("after", self.after)):
                said = clients.summary(name)
                spread = " ".join(f"{value:.4g}" for p, value in said.quantiles.items() if 0 < p < 1)
                found[f"{name} {when}"] = f"{said.mean:.4g} (worst tenth {said.worst:.4g}; quantiles {spread})"
            found[f"{name} harmed"] = f"{100 * self.harmed(name):.3g} % of clients"
        return found

    def __repr__(self) -> str:
        return f"Personalised({'; '.join(f'{name}: {value}' for name, value in self.facts().items())})"

    def _repr_html_(self) -> str:
        return html.facts("Personalised", self.facts())


def personalise(
    task: Task,
    params: Params,
    clients: FederatedData,
    steps: int,
    optimizer: optax.GradientTransformation,
    *,
    test: FederatedData | None = None,
    batch_size: int = 32,
    seed: int = 0,
    devices: Sequence[placement.Device] | None = None,
    lanes: int | None = None,
) -> Personalised:
    """Fine-tune a model on each client's examples and evaluate it before and after, thousands in one compiled pass.

    Client by client, of whom none sees another's, and without any server: what a model is worth once it is personal.
    No fine-tuned model is kept.

    Args:
        task: what is learnt; collections (batch statistics) are tuned along.
        params: the model that each begins with, `sim.params(state)` say.
        clients: what they tune on.
        steps: of each client, as often around its examples as that takes, in an order drawn from (seed, client id).
            A client without examples stays as it is.
        optimizer: an optax transformation; `optax.masked` to tune a part alone.
        test: what they are evaluated on: the same clients in their order, as `fs.data.split(data, 0.5)` makes them.
            None for what they tune on, which flatters.
        batch_size: examples at a time, in tuning and evaluation.
        seed: of the orders and of the task's own draws.
        devices: None for all local ones.
        lanes: clients that a device tunes side by side; None for a rule.

    Raises:
        ArgumentError: other clients to be evaluated on, or streamed examples of another set.

    Example:
        >>> import jax, optax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.LogisticRegression(10), digits.train)
        >>> clients = fs.data.federate(digits.train, fs.partition.shards(20, 2), seed=0)
        >>> train, test = fs.data.split(clients, test=0.3)
        >>> params = task.init(jax.random.key(0))
        >>> tuned = fs.personalise(task, params, train, steps=5, optimizer=optax.sgd(0.1), test=test)
        >>> tuned.after.summary("accuracy").mean > tuned.before.summary("accuracy").mean
        True
    """
    check_count("steps", steps)
    check_count("batch_size", batch_size)
    rng.check_seed(seed)
    fits = hasattr(optimizer, "init") and hasattr(optimizer, "update")
    check(fits, "optimizer", optimizer, "must be an optax transformation, as optax.sgd(0.1).")
    tuned_on = clients.sizes.astype(np.int32)
    both = _shuffled_before(clients, test, seed)
    # Before each other, so that one pass gathers both; else the same examples.
    skipped = tuned_on if test is not None else np.zeros_like(tuned_on)
    tuned = _Tuned(task if task.frozen is None else task._replace(frozen=BOUND), optimizer, steps)
    mesh, batching = placement.client_mesh(devices), Batching(batch_size, shuffle=False)
    given: dict[str, Any] = dict(rows=(tuned_on, skipped), seed=seed, lanes=lanes, task=task)
    before, after = over_clients(tuned, params, both, batching, mesh, **given)
    sizes = clients.sizes if test is None else test.sizes
    return Personalised(ClientMetrics(before, sizes), ClientMetrics(after, sizes))


class _Tuned(NamedTuple):
    """A client's metrics before and after; equal for equal parts, so that programs are kept."""

    task: Task
    optimizer: optax.GradientTransformation
    steps: int

    def __call__(self, key: jax.Array, server: Params, row: PyTree, batches: ClientBatches) -> PyTree:
        tuned_on, skipped = row
        with bound(BOUND, batches.frozen):
            own = self.tune(key, server, _part(batches, jnp.zeros_like(skipped), tuned_on))
        whole = batches.num_examples.astype(jnp.int32)
        held_out = _part(batches, skipped, whole - skipped)
        measure = measure_of(self.task)
        return tuple(_evaluated(measure, params, held_out) for params in (server, own))

    def tune(self, key: jax.Array, received: Params, batches: ClientBatches) -> Params:
        """The model after the steps, around the client's examples."""
        gradient_fn, epoch = gradient(self.task), jnp.maximum(batches.num_steps, 1)

        def step(s: jax.Array, carry: PyTree) -> PyTree:
            params, state = carry
            result = gradient_fn(params, batches.batch(s % epoch), jax.random.fold_in(key, s))
            (trained, held), (grads, _) = split_params(self.task, params), split_params(self.task, result.grads)
            updates, state = self.optimizer.update(grads, state, trained)
            return replace(optax.apply_updates(trained, updates), {**held, **result.variables}), state

        received = jax.tree.map(jnp.asarray, received)
        first = received, self.optimizer.init(split_params(self.task, received)[0])
        tuned, _ = jax.lax.fori_loop(0, self.steps, step, first)
        return where(batches.num_steps > 0, tuned, received)


def _evaluated(measure: Any, params: Params, batches: ClientBatches) -> dict[str, Metric]:
    return measure(None, params, None, batches)


def _part(batches: ClientBatches, first: jax.Array, count: jax.Array) -> ClientBatches:
    """Some of a client's examples, in the order that they lie in."""
    steps = -(-count // batches.batch_size)
    of = dict(start=batches.start + first, stride=count, num_steps=steps, num_examples=count.astype(jnp.float32))
    return dataclasses.replace(batches, **of, bound=steps if batches.alone else batches.bound)


def _shuffled_before(clients: FederatedData, test: FederatedData | None, seed: int) -> FederatedData:
    """One federation of both: of each client its examples to tune on, shuffled, and behind them those of the other."""
    for name, data in (("clients", clients), ("test", test)):
        if isinstance(data, ProceduralData):
            raise ArgumentError(f"{name}: are made on demand, and have no order: fs.data.from_clients keeps them.")
    owner = np.repeat(np.arange(clients.num_clients), clients.sizes)
    position = np.arange(clients.num_examples) - np.repeat(clients.offsets[:-1], clients.sizes)
    order = np.lexsort((position, rng.hash32(seed, Purpose.SHUFFLE, 0, owner, position), owner))
    index = (np.arange(clients.num_examples) if clients.index is None else np.asarray(clients.index))[order]
    if test is None:
        return FederatedData(clients.arrays, clients.offsets, index, clients.client_ids, clients.about)
    if test.num_clients != clients.num_clients:
        raise ArgumentError(
            f"test: has {test.num_clients} clients, and {clients.num_clients} are tuned: give examples of the same "
            "clients in their order, as fs.data.split makes them."
        )
    arrays, behind = clients.arrays, np.arange(test.num_examples) if test.index is None else np.asarray(test.index)
    if test.arrays is not arrays:
        if not (clients.resident and test.resident):
            raise ArgumentError("test: is another set of streamed examples: split one, fs.data.split(data, 0.5).")
        length = len(jax.tree.leaves(arrays)[0])
        arrays = jax.tree.map(lambda a, b: np.concatenate([np.asarray(a), np.asarray(b)]), arrays, test.arrays)
        behind = behind + length
    owner = np.concatenate([owner, np.repeat(np.arange(test.num_clients), test.sizes)])
    index = np.concatenate([index, behind])[np.argsort(owner, kind="stable")]
    offsets = clients.offsets + test.offsets
    return FederatedData(arrays, offsets, index, clients.client_ids, clients.about)
