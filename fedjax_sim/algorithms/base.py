"""What an algorithm is: functions of one client and of the server; the engine owns the rest."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax

from fedjax_sim.aggregate import Aggregator, Reducer, as_aggregator, mean
from fedjax_sim.client import ClientBatches, Task, replace, split_params
from fedjax_sim.core import html
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import ArgumentError, check
from fedjax_sim.core.shown import facts, record
from fedjax_sim.core.types import Aggregate, ClientUpdate, Key, Params, Row, Server
from fedjax_sim.server import step

ClientFunction = Callable[[Key, Server, Row, ClientBatches], ClientUpdate]
"""`(key, server_state, row, batches) -> ClientUpdate`."""

ServerFunction = Callable[[Key, Server, Aggregate], Server]
"""`(key, server_state, aggregate) -> server_state`."""

InitFunction = Callable[[Params], tuple[Server, Row]]
"""`(params) -> (server_state, row)`."""

DownlinkBits = Callable[[Server], Scalar]
"""`(server_state) -> [] bits`."""


class Phase(NamedTuple):
    """One pass over the cohort: `client` on each, an aggregation, then `server`.

    Attributes:
        client: `(key, server_state, row, batches) -> ClientUpdate`.
        server: `(key, server_state, aggregate) -> server_state`.
        aggregator: a chain or a reducer; None for a mean by examples.
        downlink: `(server_state) -> [] bits` that a client receives; None for the leaves of the server state that
            `client` reads, uncompressed.

    Example:
        >>> import fedjax_sim as fs
        >>> def count(key, server, row, batches):
        ...     return fs.ClientUpdate(batches.num_examples)
        >>> phase = fs.Phase(count, lambda key, server, aggregate: server, fs.aggregate.mean("uniform"))
    """

    client: ClientFunction
    server: ServerFunction
    aggregator: Aggregator | Reducer | None = None
    downlink: DownlinkBits | None = None

    def __repr__(self) -> str:
        return record(self)


class Pass(NamedTuple):
    """A phase as the engine runs it: checked, with a whole aggregator; attributes as of `fs.Phase`.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> [each.aggregator.name for each in fs.fedavg(task, optax.sgd(0.1)).passes()]
        ['chain(mean(examples))']
    """

    client: ClientFunction
    server: ServerFunction
    aggregator: Aggregator
    downlink: DownlinkBits | None = None

    def __repr__(self) -> str:
        return record(self)


class Edges(NamedTuple):
    """Servers that stand between the clients and the server.

    Attributes:
        number: E.
        rounds: that each of them runs among its clients before the server takes their mean.
        of: [K] int32, the edge of each client; None: that of client k is k modulo E.
    """

    number: int
    rounds: int
    of: np.ndarray | None = None

    def places(self, ids: np.ndarray) -> np.ndarray:
        """[n] int32, the edges of those clients."""
        return np.asarray(ids % self.number if self.of is None else self.of[ids], np.int32)


class Algorithm(NamedTuple):
    """A federated learning algorithm.

    Attributes:
        task: what is learnt.
        init: `(params) -> (server_state, row)`: the server's first state and one client's first private row
            (None, or a pytree without leaves, for methods whose clients keep nothing).
        client, server, aggregator: the one phase of most methods, as in `fs.Phase`.
        params: `(server_state) -> params`, the model to evaluate.
        phases: several passes over the same cohort instead of `client`, `server`, `aggregator`.
        downlink: of the one phase, as in `fs.Phase`.
        num_clients: the population that it was told of, which must be the simulation's; None for any. A server function
            finds the simulation's in `aggregate.population`.
        personal: `(server_state, row) -> params`, a client's own model; None for methods without.
        name: how it was made, to be shown; None for "as its functions say".
        edges: of `fs.hierarchical`; None for clients that talk to the server themselves.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> def client(key, server, row, batches):
        ...     def step(total, batch, key):
        ...         return total + jnp.dot(batch["x"] - server, batch["mask"]), {}
        ...
        ...     total, metrics = fs.local_steps(step, jnp.zeros(()), batches, key)
        ...     return fs.ClientUpdate(total / batches.num_examples, weight=batches.num_examples)
        >>> def server(key, server, aggregate):
        ...     return server + aggregate.value
        >>> federated_mean = fs.Algorithm(task, lambda params: (params, None), client, server)
    """

    task: Task
    init: InitFunction
    client: ClientFunction | None = None
    server: ServerFunction | None = None
    aggregator: Aggregator | Reducer | None = None
    params: Callable[[Server], Params] = lambda server: server
    phases: tuple[Phase, ...] = ()
    downlink: DownlinkBits | None = None
    num_clients: int | None = None
    personal: Callable[[Server, Row], Params] | None = None
    name: str | None = None
    edges: Edges | None = None

    def __repr__(self) -> str:
        return f"Algorithm({', '.join(self._said().values())})" if self.name else record(self)

    def _repr_html_(self) -> str:
        return html.facts("Algorithm", self._said() if self.name else facts(self))

    def _said(self) -> dict[str, str]:
        """How it was made, and what is no part of that, name by name."""
        chains = [phase.aggregator for phase in self.phases] or [self.aggregator]
        said = {"made by": self.name or ""}
        if any(each is not None for each in chains):
            said["aggregator"] = " and ".join(as_aggregator(each).name for each in chains)
        return {**said, "task": repr(self.task)}

    def passes(self) -> tuple[Pass, ...]:
        """The phases, checked, each with a whole `Aggregator`."""
        single = self.client is not None or self.server is not None
        if single == bool(self.phases) or (single and (self.client is None or self.server is None)):
            raise ArgumentError(
                "an Algorithm needs both client= and server=, or phases=(fs.Phase(...), ...), not a mixture."
            )
        phases = self.phases or (Phase(self.client, self.server, self.aggregator, self.downlink),)  # type: ignore[arg-type]
        return tuple(Pass(p.client, p.server, as_aggregator(p.aggregator), p.downlink) for p in phases)


class ServerState(NamedTuple):
    """Server state of the methods that take a server optimizer.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.ones(2), lambda w, batch, key: jnp.sum((w - batch["x"]) ** 2, -1))
        >>> server, _ = fs.fedavg(task, optax.sgd(0.1), fs.server.fedadam(0.01)).init(jnp.ones(2))
        >>> print(server.params, server.optimizer.m)
        [1. 1.] [0. 0.]
    """

    params: Params
    optimizer: optax.OptState


def server_init(task: Task, optimizer: optax.GradientTransformation) -> Callable[[Params], ServerState]:
    """`params -> ServerState`; model collections stay out of the optimizer."""

    def init(params: Params) -> ServerState:
        return ServerState(params, optimizer.init(split_params(task, params)[0]))

    return init


def server_update(task: Task, optimizer: optax.GradientTransformation) -> Callable[[ServerState, Params], ServerState]:
    """`(state, mean delta) -> state`: the optimizer moves what is trained; collections move by their mean delta."""

    def update(state: ServerState, delta: Params) -> ServerState:
        trained, held = split_params(task, state.params)
        trained_delta, held_delta = split_params(task, delta)
        trained, optimizer_state = step(optimizer, trained, state.optimizer, trained_delta)
        held = jax.tree.map(lambda h, d: h + d, held, held_delta)
        return ServerState(replace(trained, held), optimizer_state)

    return update


def uniform(aggregator: Aggregator | Reducer | None, why: str) -> Aggregator:
    """The aggregator of a method whose rule counts each client once: the uniform mean where None is given."""
    whole = as_aggregator(mean("uniform") if aggregator is None else aggregator)
    fits = whole.reducer.weight == "uniform" and whole.reducer.linear
    check(fits, "aggregator", whole.name, f'{why}; use reduce=fs.aggregate.mean("uniform").')
    return whole
