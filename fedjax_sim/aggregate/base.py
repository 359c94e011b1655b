"""Aggregation: transforms with a client and a server side, and reducers.

A client's payload passes the client sides in order; the messages are received and summed with their effective
weights; the sum passes the server sides in reverse order; the reducer divides last.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from fedjax_sim.core.types import Aggregate, Key

State = Any
Row = Any
Message = Any
Metrics = dict[str, Any]


class Context(NamedTuple):
    """What a client side may know besides its payload.

    Attributes:
        client_id: [] int32.
        round: [] int32.
        round_key: a key that the round's clients share (for a shared rotation, say).
        bound: [] float32, the L2 bound of the incoming payload; infinity where none is known.

    Example:
        >>> import jax, jax.numpy as jnp, fedjax_sim as fs
        >>> def client(key, state, row, payload, context):
        ...     keep = jax.random.bernoulli(context.round_key, 0.5, payload.shape)  # the same on each client
        ...     return jnp.where(keep, 2 * payload, 0), row, {}
        >>> random_mask = fs.aggregate.Transform("random_mask", client=client)
    """

    client_id: Any
    round: Any
    round_key: Any
    bound: Any


class Facts(NamedTuple):
    """Static facts of what is sent, folded along the chain when it is built.

    Attributes:
        bits: bits a number.
        integers: messages are integers.
        modulus: of modular sums, or None.
        clipped: the L2 norm is bounded.
        noisy: the aggregate is randomised for privacy: its mean divides by the *expected* cohort.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> truncate = fs.aggregate.Transform(
        ...     "truncate",
        ...     client=lambda key, state, row, payload, context: (jnp.trunc(payload), row, {}),
        ...     facts=lambda facts: facts._replace(integers=True),
        ... )
        >>> fs.aggregate.chain(fs.aggregate.clip_by_l2(100.0), truncate).facts
        Facts(bits=32.0, integers=True, modulus=None, clipped=True, noisy=False)
    """

    bits: float = 32.0
    integers: bool = False
    modulus: int | None = None
    clipped: bool = False
    noisy: bool = False


def _no_init(payload_shapes: Any) -> tuple[State, Row]:
    return None, None


def _same_payload(key: Key, state: State, row: Row, payload: Any, context: Context):
    return payload, row, {}


def _same_message(key: Key, state: State, message: Message) -> Message:
    return message


def _same_aggregate(key: Key, state: State, aggregate: Aggregate):
    return aggregate, state, {}


def _same_facts(facts: Facts) -> Facts:
    return facts


def _same_bound(state: State, incoming: Any, dim: int) -> Any:
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
        bound: `(state, incoming, dim) -> bound`: the L2 bound of one client's message after this transform.

    Example:
        >>> import jax, fedjax_sim as fs
        >>> def client(key, state, row, payload, context):
        ...     return jax.tree.map(lambda p: p / 2, payload), row, {}
        >>> halve = fs.aggregate.Transform(name="halve", client=client)
    """

    name: str = "identity"
    init: Callable[[Any], tuple[State, Row]] = _no_init
    client: Callable[..., tuple[Message, Row, Metrics]] = _same_payload
    receive: Callable[..., Message] = _same_message
    server: Callable[..., tuple[Aggregate, State, Metrics]] = _same_aggregate
    facts: Callable[[Facts], Facts] = _same_facts
    bound: Callable[[State, Any, int], Any] = _same_bound


class Reducer(NamedTuple):
    """How the messages of a cohort become one value.

    The engine keeps one weighted sum for a linear reducer; for another it collects the cohort's messages (memory
    of C models) and calls `collect`.

    Attributes:
        name: for messages.
        result: `(aggregate, expected) -> value`, the last step; `expected` is the sampler's expected cohort under
            noise, else None.
        weight: "examples" for the clients' own weights, "uniform" for 1 each; times the cohort's importance.
        collect: `(messages [n, ...], weights [n], contributes [n]) -> value`, or None for a linear reducer.

    Example:
        >>> import fedjax_sim as fs
        >>> total = fs.aggregate.Reducer("sum", lambda aggregate, expected: aggregate.value, weight="uniform")
        >>> print(fs.aggregate.chain(fs.aggregate.clip_by_l2(1.0), reduce=total))
        chain(clip_by_l2(1.0) > sum)
    """

    name: str
    result: Callable[[Aggregate, Any], Any]
    weight: Literal["examples", "uniform"] = "examples"
    collect: Callable[[Any, Any, Any], Any] | None = None

    @property
    def linear(self) -> bool:
        """True when a weighted sum is all that it needs."""
        return self.collect is None
