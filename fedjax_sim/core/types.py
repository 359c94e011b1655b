"""The records that pass between the parts. Axes: C cohort, D devices, T chunks, L lanes, M example rows."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.core import html
from fedjax_sim.core.arrays import UNSET, Key, Planned, PyTree, Scalar
from fedjax_sim.core.metrics import Metric
from fedjax_sim.core.pytree import pytree, static
from fedjax_sim.core.shown import facts

Params = PyTree
"""A model's parameters, and its collections."""

Metrics = Mapping[str, Metric | Scalar]
"""Name to metric, as a transform or a local step returns them; a bare number becomes a `Mean` of weight one."""

Server = PyTree
"""An algorithm's server state."""

Row = PyTree
"""A client's private state between rounds, or None."""

SamplerState = Any
"""What a sampler hands from round to round, on the host."""


@pytree
class ClientUpdate:
    """What a client function returns.

    Attributes:
        payload: any pytree of arrays; what goes through the aggregator. By convention `delta = client - server`.
        weight: scalar, the client's weight in a mean by examples.
        state: the client's next private row, or None for a method without.
        metrics: dict of name to `Sum`, `Mean`, `Max` or `Histogram`.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> def client(key, server, visits, batches):
        ...     first = batches.batch(0)
        ...     delta = (jnp.average(first["x"], weights=first["mask"]) - server) / (visits + 1)
        ...     metrics = {"visits": fs.metrics.Max(visits + 1)}
        ...     return fs.ClientUpdate(delta, batches.num_examples, state=visits + 1, metrics=metrics)
    """

    payload: PyTree
    weight: Scalar = 1.0
    _: dataclasses.KW_ONLY
    state: Row = None
    metrics: dict[str, Metric] = dataclasses.field(default_factory=dict)


@pytree
class Aggregate:
    """What the server side of an aggregator sees: the sum before the division, the result after it.

    Attributes:
        value: pytree; the weighted sum of the messages, then the reducer's result.
        weight: scalar float32, sum of the effective weights.
        count: scalar float32, number of clients that contributed.
        bound: scalar, the L2 bound of one client's decoded message at the chain's end, under the states that the
            round's clients used; infinity where none holds. For server sides, as all that follow.
        expected: the sampler's expected cohort.
        population: K, the federation's clients; algorithms' server functions have it too.
        sums: the sum of what this transform's `sums` gave, or None.
        step: how much one unit of the integers that are sent is worth; 1 where they are none.
        round_key: the key of this transform that the round's clients had as `context.round_key`.
        shares: scalar float32, clients that added their share of noise, whether or not they contributed; None without
            such noise.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> total = fs.Aggregate(value=jnp.array([6.0]), weight=jnp.array(3.0), count=jnp.array(2.0))
        >>> print(fs.aggregate.mean().result(total, None))
        [2.]
    """

    value: PyTree
    weight: Scalar
    count: Scalar
    _: dataclasses.KW_ONLY
    bound: Scalar = UNSET
    expected: Scalar = UNSET
    population: Scalar | None = None
    sums: PyTree = None
    round_key: Key = UNSET
    step: Scalar = UNSET
    shares: Scalar | None = None


class Told(NamedTuple):
    """What the host knows of a round besides who takes part.

    Attributes:
        report: dict of name to number, columns of the history.
        clients: dict of name to [C], columns of the per-client table.
        moment: what a sampler that chooses remembers of its draw until then.
    """

    report: Mapping[str, float]
    clients: Mapping[str, np.ndarray]
    moment: Any = None


@pytree
class Cohort:
    """Who takes part in a round.

    Attributes:
        ids: [C] int32 client ids; C is the sampler's capacity.
        valid: [C] bool; False marks an empty place.
        weight: [C] float32 importance weights, 1 for most samplers.
        max_steps: [C] int32 or None; a client stops after that many steps (slow devices).
        arrives: [C] bool or None; False for a client whose update is lost. Under noise for privacy it must depend
            neither on data nor on who the client is: the sampler's event speaks for it as well.
        version: [C] int32 or None; the round whose first server state a client starts from (asynchronous methods). Of a
            sampler that says how many `versions` back it may ask clients get that state; of any other it is
            `batches.info["version"]`, and no more.
        columns: dict of name to [C, ...], whatever else clients shall know, as the sampler declares it in `columns`: a
            client finds its own in `batches.info[name]`.
        told: what the host knows of the round besides, for its history; or None.
        abandoned: the sampler gives the round up, as too few arrived: nobody's update counts, and model, server
            optimizer and clients' rows stay as they were, also under noise.

    Example:
        >>> import dataclasses, numpy as np, fedjax_sim as fs
        >>> sampler = fs.sampler.fixed([[4, 7, 2]])
        >>> def sample(state, round, seed):
        ...     cohort, state = sampler.sample(state, round, seed)
        ...     return dataclasses.replace(cohort, max_steps=np.where(cohort.ids % 2, 1, 5)), state
        >>> odd_are_slow = sampler._replace(sample=sample)
        >>> odd_are_slow.sample(odd_are_slow.init(10), round=0, seed=0)[0].max_steps
        array([5, 1, 5])
    """

    ids: np.ndarray
    valid: np.ndarray
    weight: np.ndarray
    _: dataclasses.KW_ONLY
    max_steps: np.ndarray | None = None
    arrives: np.ndarray | None = None
    version: np.ndarray | None = None
    columns: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    told: Told | None = None
    abandoned: bool = static(default=False)


Columns = tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]
"""A sampler's own columns: each one's name, dtype, and shape for one client."""


@pytree
class Lane:
    """A client's place in a plan: scalars; or, in a plan, those of all lanes, [D, T, L, ...].

    The one declaration of what the host tells the devices of a client: what is added here, the planner fills in, and it
    is packed, sent, cut into chunks and handed to the function of one client as all the others are.

    Attributes:
        start: int32, where the client begins in `order`.
        size: int32, its examples (each once).
        steps: int32, its local steps; 0 marks an empty lane, or a client that sends its share of noise alone.
        client_id: int32.
        slot: int32, its place in the cohort; C marks an empty lane. None in the hands of a client: nothing may depend
            on its place.
        weight: float32, the cohort's importance weight; 0 in an empty lane.
        version: int32, the cohort's `version`; without one 0, or the round where old server states are kept.
        neighbour: int32, the next client in the ring of those that send, in order of their ids.
        columns: dict of the sampler's own, each of its dtype and shape.
        copy: int32, how many later places of the cohort train the same client; None where no cohort repeats one.
    """

    start: Planned
    size: Planned
    steps: Planned
    client_id: Planned
    slot: Planned
    weight: Planned = dataclasses.field(metadata={"dtype": np.float32})
    version: Planned
    neighbour: Planned
    columns: dict[str, Planned]
    copy: Planned

    @classmethod
    def of(cls, make: Callable[[Any, tuple[int, ...]], Any], columns: Columns = (), repeats: bool = False) -> "Lane":
        """Each column made from its dtype and the shape of one client's."""
        plain = [field for field in dataclasses.fields(cls) if field.name not in ("columns", "copy")]
        made = {field.name: make(field.metadata.get("dtype", np.int32), ()) for field in plain}
        own = {name: make(dtype, shape) for name, dtype, shape in columns}
        return cls(**made, columns=own, copy=make(np.int32, ()) if repeats else None)

    def placeless(self) -> "Lane":
        """Without its place in the cohort."""
        return dataclasses.replace(self, slot=None)


@pytree
class RoundPlan:
    """A round's work, dealt to devices, chunks and lanes; every shape is fixed by the sampler's capacity.

    Attributes:
        order: [D, M] int32 rows of the data, client by client and epoch by epoch (CSR with `lanes.start`).
        lanes: `Lane`, whose columns are [D, T, L, ...].
        chunks: [D] int32, chunks that hold work.
        round: [D] int32, the round's number.
        abandoned: [D] int32, 1 where the sampler gave the round up.
    """

    order: Planned
    lanes: Lane
    chunks: Planned
    round: Planned
    abandoned: Planned


@pytree
class ClientRows:
    """Per-client private state, kept by the engine between rounds.

    Attributes:
        client: the algorithm's rows, [K, ...] a leaf, or None.
        aggregator: the transforms' rows (error feedback), one entry a phase, or None.
    """

    client: PyTree = None
    aggregator: PyTree = None


@pytree
class RoundState:
    """All that a resume needs.

    Attributes:
        round: the next round's number, a host int.
        seed: the run's seed, a host int.
        server: the algorithm's server state.
        aggregator: the transforms' server state, one entry a phase.
        sampler: the sampler's state (host).
        rows: `ClientRows`; of rows on the host, `fedjax_sim.engine.store.row_file.HostRows`.
        ledger: what each past round released, for accountants (host, plain values; `fedjax_sim.simulation.ledger`).
        noise_seed: what noise for privacy is drawn from, a host int; None for the seed.
        versions: what clients read of the last server states, [V, ...] a leaf, one entry a phase; None unless the
            sampler asks for `versions`.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> data = fs.data.FederatedData({"x": jnp.arange(4.0)}, offsets=[0, 2, 4])
        >>> sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.1)), data, fs.sampler.uniform(2), fs.Batching(2))
        >>> paused, _ = sim.run(sim.init(), rounds=2)
        >>> resumed, straight = sim.run(paused, rounds=1)[0], sim.run(sim.init(), rounds=3)[0]
        >>> resumed.round, bool(resumed.server.params == straight.server.params)
        (3, True)
    """

    round: int
    seed: int
    server: Server
    aggregator: PyTree
    sampler: SamplerState
    rows: PyTree
    ledger: Any = None
    noise_seed: int | None = None
    versions: PyTree = None

    def _repr_html_(self) -> str:
        return html.facts("State", facts(self))

    @property
    def seeds(self) -> np.ndarray:
        """[2] uint32: the run's seed and its noise's."""
        return np.array([self.seed, self.seed if self.noise_seed is None else self.noise_seed], np.uint32)
