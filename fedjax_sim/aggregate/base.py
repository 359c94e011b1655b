"""Aggregation: transforms with a client and a server side, and reducers.

A client's payload passes the client sides in order; the messages are received and summed with their effective
weights; the sum passes the server sides in reverse order; the reducer divides last.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from fedjax_sim.aggregate.host import HostStage
from fedjax_sim.core.arrays import UNSET, Array, Key, PyTree, Scalar, Shapes
from fedjax_sim.core.types import Aggregate, Metrics, Row

State = PyTree
"""A transform's state on the server."""

Message = PyTree
"""What a client sends: any pytree, whose nodes may be a transform's own codes."""


class Context(NamedTuple):
    """What a client side may know besides its payload.

    Attributes:
        client_id: [] int32.
        round: [] int32.
        round_key: a key that the round's clients and the server share (for a shared rotation, say); each transform of
            a chain has its own, and its server side finds it as `aggregate.round_key`.
        bound: [] float32, the L2 bound of the incoming payload in real units, as the server will decode it; infinity
            where none is known.
        neighbour: [] int32, the next client in the ring of the clients that train this round.
        weight: [] float32, the client's effective weight; 0 where it contributes nothing, but 1 where it adds noise.
        expected: the sampler's expected cohort.
        step: [] float32, how much one unit of the incoming integers is worth; 1 where they are no integers.
        receive_key: what this transform's `receive` will get as its key: by it a client knows what the server decodes,
            also where that draws; None outside of a round, and where nothing is received.
        columns: dict of the cohort's columns, the client's own of each: what a sampler or a host stage says of it.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> def client(key, state, row, payload, context):
        ...     keep = jax.random.bernoulli(context.round_key, 0.5, payload.shape)  # the same on each client
        ...     return jnp.where(keep, 2 * payload, 0), row, {}
        >>> random_mask = fs.aggregate.Transform("random_mask", client=client)
    """

    client_id: Scalar
    round: Scalar
    round_key: Key
    bound: Scalar
    neighbour: Scalar = 0
    weight: Scalar = 1.0
    expected: Scalar = 1.0
    step: Scalar = 1.0
    receive_key: Key | None = None
    columns: Mapping[str, Array] = {}


class Mechanism(NamedTuple):
    """Noise that a chain adds, as an accountant needs to know it.

    Attributes:
        kind: "gaussian", "laplace", "discrete_gaussian", "skellam", "tree", "banded", ...
        multiplier: standard deviation of the sum's noise over the L2 bound of one client's part (of "laplace": the
            scale over the L1 bound).
        where: "central", added once to the sum; "local", added by each client for itself; "distributed", a share by
            each client, so that the sum's noise falls with the clients that send. Clients' own noise is sent by all who
            are drawn and arrive, with a payload of zeros by those who contribute nothing.
        of: "value", what the chain sends; or "statistic", a side value such as the bit of adaptive clipping.
        per_expected: the multiplier is this times the expected cohort.
        transform: the name of the transform that adds it.
        details: what else accounting needs, or None.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.aggregate.Mechanism("gaussian", 0.05, of="statistic", per_expected=True).resolved(expected=20).multiplier
        1.0
    """

    kind: str
    multiplier: Scalar
    where: Literal["central", "local", "distributed"] = "central"
    of: Literal["value", "statistic"] = "value"
    per_expected: bool = False
    transform: str = ""
    details: Any = None

    def resolved(self, expected: float) -> "Mechanism":
        """With a plain multiplier, for an expected cohort."""
        if not self.per_expected:
            return self
        return self._replace(multiplier=self.multiplier * expected, per_expected=False)


class Facts(NamedTuple):
    """Static facts of what is sent, folded along the chain when it is built.

    Attributes:
        bits: nominal bits a number.
        integers: messages are integers.
        modulus: of modular sums, or None.
        clipped: the L2 norm of one client's message is bounded.
        noise: what is added for privacy. The mean then divides by the *expected* cohort.
        largest: largest absolute integer of one client's message before noise, or None.
        linear: the sum of the messages decodes to the sum of the payloads; False once a message must be decoded by
            itself.
        rows: clients keep something between rounds.
        weighted: weights were multiplied before this point, as a masked sum cannot be weighted afterwards.
        max_weight: weights are rounded to whole numbers up to this, or None.
        bound: the L2 bound, in words.
        masked: clients have masks that others count on, so that all that are drawn and arrive must send.
        leaks: what a transform learns from the clients and releases without noise, in words, or None.
        loses: by chances that no plan knows, fewer send than were drawn and arrive.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> truncate = fs.aggregate.Transform(
        ...     "truncate",
        ...     client=lambda key, state, row, payload, context: (jnp.trunc(payload), row, {}),
        ...     facts=lambda facts: facts._replace(integers=True),
        ... )
        >>> facts = fs.aggregate.chain(fs.aggregate.clip_by_l2(100.0), truncate).facts
        >>> facts.integers, facts.clipped, facts.noisy
        (True, True, False)
    """

    bits: float = 32.0
    integers: bool = False
    modulus: int | None = None
    clipped: bool = False
    noise: tuple[Mechanism, ...] = ()
    largest: float | None = None
    linear: bool = True
    rows: bool = False
    weighted: bool = False
    max_weight: float | None = None
    bound: str = "none"
    leaks: str | None = None
    masked: bool = False
    loses: bool = False

    @property
    def noisy(self) -> bool:
        """True when the aggregate is randomised for privacy."""
        return bool(self.noise)


TransformInit = Callable[[Shapes], tuple[State, Row]]
"""`(payload_shapes) -> (state, row)`."""

ClientSide = Callable[[Key, State, Row, PyTree, Context], tuple[Message, Row, Metrics]]
"""`(key, state, row, payload, context) -> (message, row, metrics)`."""

Receive = Callable[[Key, State, Message], Message]
"""`(key, state, message) -> message`."""

ServerSide = Callable[[Key, State, Aggregate], tuple[Aggregate, State, Metrics]]
"""`(key, state, aggregate) -> (aggregate, state, metrics)`."""

FactsRule = Callable[[Facts], Facts]
"""`(facts) -> facts`."""

BoundRule = Callable[[State, Scalar, int], Scalar]
"""`(state, incoming, dim) -> bound`."""

StepRule = Callable[[State, Scalar, Scalar, int], Scalar]
"""`(state, incoming, bound, dim) -> step`."""

SideSums = Callable[[Key, State, PyTree, Context], PyTree]
"""`(key, state, payload, context) -> pytree of float32`."""

BitsRule = Callable[[Message, Scalar], Scalar]
"""`(message, incoming) -> bits`."""

Result = Callable[[Aggregate, Scalar | None], PyTree]
"""`(aggregate, expected) -> value`."""


class Collected(NamedTuple):
    """What a reducer that collects sees of a round: n places, in no order, of which some may be empty.

    Attributes:
        messages: pytree, [n, ...] a leaf, as the server received them; those of places that do not contribute mean
            nothing, and must be masked.
        weights: [n] float32, the clients' effective weights; 0 for those that do not contribute.
        contributes: [n] bool.
        ids: [n] int32, the clients; 2^31 - 1 in places that do not contribute, so that they come last. Ties are for
            ids to decide, as a place depends on lanes and devices. A client that is in the cohort twice has two places.
        key: the reducer's own in this round. What is drawn for a client is drawn from `jax.random.fold_in(key, id)`.
        state: what the reducer keeps between rounds.
        round: [] int32.
        bound: [] float32, the L2 bound of one message, in real units; infinity where none holds.
        server: the algorithm's server state, as the round's clients had it; None for a reducer by coordinate.
        train: `(examples, steps) -> message`, what a client that holds these examples, a pytree of [m, ...], would send
            after so many local steps, as the server would receive it; None for a reducer by coordinate.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> def collect(collected):
        ...     first = jnp.argmin(collected.ids)  # the client of the smallest id, whichever its place
        ...     return fs.aggregate.Reduced(collected.messages[first])
        >>> places = fs.aggregate.Collected(
        ...     jnp.array([7.0, 8.0, 9.0]), jnp.ones(3), jnp.array([True, True, False]), jnp.array([5, 2, 2**31 - 1])
        ... )
        >>> print(collect(places).value)
        8.0
    """

    messages: PyTree
    weights: Array
    contributes: Array
    ids: Array = UNSET
    key: Key = UNSET
    state: State = None
    round: Scalar = 0
    bound: Scalar = math.inf
    server: PyTree = None
    train: Callable[[PyTree, int], PyTree] | None = None


class Reduced(NamedTuple):
    """What a reducer that collects makes of a round.

    Attributes:
        value: pytree, of the messages' shapes without n.
        state: what the reducer keeps for the next round; None where it keeps nothing.
        metrics: dict of metrics, `aggregate/NAME` of the round; or None.
        refused: [] bool; where True, the round is abandoned: the model, the transforms' and the reducer's states and
            the clients' rows stay as they were before it, and the round's metric `aggregate/abandoned` is 1.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> def largest_of_three(collected):
        ...     value = jnp.max(jnp.where(collected.contributes, collected.messages, -jnp.inf))
        ...     return fs.aggregate.Reduced(value, refused=jnp.sum(collected.contributes) < 3)
        >>> two = fs.aggregate.Collected(jnp.array([7.0, 8.0]), jnp.ones(2), jnp.array([True, True]))
        >>> print(largest_of_three(two).refused)
        True
    """

    value: PyTree
    state: State = None
    metrics: Metrics | None = None
    refused: Scalar = False


Collect = Callable[[Collected], Reduced]
"""`(collected) -> Reduced`."""

ReducerInit = Callable[[Shapes], State]
"""`(message_shapes) -> state`."""


def _the_value(aggregate: Aggregate, expected: Scalar | None) -> PyTree:
    return aggregate.value


def _no_state(message_shapes: Shapes) -> State:
    return None


def _no_init(payload_shapes: Shapes) -> tuple[State, Row]:
    return None, None


def _same_payload(key: Key, state: State, row: Row, payload: PyTree, context: Context) -> tuple[Message, Row, Metrics]:
    return payload, row, {}


def _same_message(key: Key, state: State, message: Message) -> Message:
    return message


def _same_aggregate(key: Key, state: State, aggregate: Aggregate) -> tuple[Aggregate, State, Metrics]:
    return aggregate, state, {}


def _same_facts(facts: Facts) -> Facts:
    return facts


def _same_bound(state: State, incoming: Scalar, dim: int) -> Scalar:
    return incoming


def _same_step(state: State, incoming: Scalar, bound: Scalar, dim: int) -> Scalar:
    return incoming


def _no_sums(key: Key, state: State, payload: PyTree, context: Context) -> PyTree:
    return None


def _same_bits(message: Message, incoming: Scalar) -> Scalar:
    return incoming


class Transform(NamedTuple):
    """One idea with two sides of a wire. All functions default to the identity.

    Attributes:
        name: for messages.
        init: `(payload_shapes) -> (state, row)`: the server's state, and one client's private row (or None).
        client: `(key, state, row, payload, context) -> (message, row, metrics)`, on each client. A client that
            contributes nothing comes with a payload of zeros.
        receive: `(key, state, message) -> message`, on the server for each message.
        server: `(key, state, aggregate) -> (aggregate, state, metrics)`: sees the *sum*, before the division.
        facts: `(facts) -> facts`, when the chain is built; raises `ArgumentError` on a wrong combination.
        bound: `(state, incoming, dim) -> bound`: the L2 bound of one client's message after this transform, in real
            units: as the server decodes it, rounding included. Noise anywhere in a chain is scaled by the end's.
        sums: `(key, state, payload, context) -> pytree of float32`, or None: side values of the incoming payload,
            summed over the clients that contribute, past all later transforms; this transform's server side finds
            them as `aggregate.sums`.
        bits: `(message, incoming) -> [] float32`: bits to send this message (padded sizes; the real encoded length
            where it is entropy coded), given those of the message that came in.
        step: `(state, incoming, bound, dim) -> step`: how much one unit of the integers that it makes is worth.
        part: name of the payload's part that it applies to, or None for all of it; see `fs.aggregate.on`.
        host: what the host says in each round, an `fs.aggregate.HostStage`, or None. A chain has one at most.

    Example:
        >>> import jax, fedjax_sim as fs
        >>> def client(key, state, row, payload, context):
        ...     return jax.tree.map(lambda p: p / 2, payload), row, {}
        >>> halve = fs.aggregate.Transform(name="halve", client=client)
    """

    name: str = "identity"
    init: TransformInit = _no_init
    client: ClientSide = _same_payload
    receive: Receive = _same_message
    server: ServerSide = _same_aggregate
    facts: FactsRule = _same_facts
    bound: BoundRule = _same_bound
    sums: SideSums = _no_sums
    bits: BitsRule = _same_bits
    step: StepRule = _same_step
    part: str | None = None
    host: HostStage | None = None

    def __repr__(self) -> str:
        return f"Transform({self.name}{'' if self.part is None else f', part={self.part!r}'})"

    @property
    def receives(self) -> bool:
        """True when messages must be decoded one by one."""
        return self.receive is not _same_message


class Reducer(NamedTuple):
    """How the messages of a cohort become one value.

    The engine keeps one weighted sum for a linear reducer; for another it collects the cohort's messages (memory
    of C models, dealt over the devices) and calls `collect`.

    Attributes:
        name: for messages.
        result: `(aggregate, expected) -> value`, the last step; `expected` is the sampler's expected cohort under
            noise, else None.
        weight: "examples" for the clients' own weights, "uniform" for 1 each; times the cohort's importance.
        collect: `(collected) -> Reduced`, of a `Collected`; None for a linear reducer.
        init: `(message_shapes) -> state`, the reducer's first state, which `collect` finds as `collected.state` and
            gives back in `Reduced`; saved with the transforms' states.
        by_coordinate: a coordinate of the value depends on that coordinate of the messages alone. `collect` then gets
            some coordinates at a time, messages [n, b] for a value [b] (b may be 0), so that what it computes with
            stays small. Metrics and `refused` must not depend on the messages then, and there is no state.
        on_refused: "abandon", a round that it refuses is abandoned; "error", it ends the run by an
            `fs.RefusedRoundError`.
        by_client: it reads messages whole, for their norms, products and weighted sums. They then stay on the devices
            where their clients trained; others are dealt over the devices by coordinates, which costs an exchange.

    Example:
        >>> import fedjax_sim as fs
        >>> total = fs.aggregate.Reducer("sum", lambda aggregate, expected: aggregate.value, weight="uniform")
        >>> fs.aggregate.chain(fs.aggregate.clip_by_l2(1.0), reduce=total).name
        'chain(clip_by_l2(1.0) > sum)'
    """

    name: str
    result: Result = _the_value
    weight: Literal["examples", "uniform"] = "examples"
    collect: Collect | None = None
    init: ReducerInit = _no_state
    by_coordinate: bool = False
    on_refused: Literal["abandon", "error"] = "abandon"
    by_client: bool = False

    def __repr__(self) -> str:
        return f"Reducer({self.name}{'' if self.name.endswith(')') else f', weight={self.weight!r}'})"

    @property
    def linear(self) -> bool:
        """True when a weighted sum is all that it needs."""
        return self.collect is None

    @property
    def keeps_state(self) -> bool:
        """True when it has something to keep between rounds."""
        return self.init is not _no_state
