"""Compressed downlink: clients receive a compressed model, and the server keeps the exact one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate import Aggregator, Context, Transform, as_aggregator
from fedjax_sim.algorithms.base import Algorithm, Pass, Phase
from fedjax_sim.core.arrays import Array, PyTree, Scalar
from fedjax_sim.core.errors import ArgumentError, check
from fedjax_sim.core.metrics import Sum
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import Aggregate, Key, Server


class Broadcast(NamedTuple):
    """Server state of an algorithm with a compressed downlink.

    Attributes:
        exact: the algorithm's own server state.
        received: what the clients decode of it, leaf by leaf of `broadcast`.
        bits: [] float32, what one client receives.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> algorithm = fs.compress_downlink(fs.fedavg(task, optax.sgd(0.1)), fs.aggregate.bfloat16())
        >>> server, _ = algorithm.init(jnp.array(1.001))
        >>> print(server.exact.params, server.received[0], server.bits)
        1.001 1.0 16.0
    """

    exact: Server
    received: tuple[Array, ...]
    bits: Scalar


@named("task", "aggregator")
def compress_downlink(
    algorithm: Algorithm,
    compressor: Transform | Aggregator,
    broadcast: Callable[[Server], PyTree] | None = None,
) -> Algorithm:
    r"""An algorithm whose clients receive what a compressor leaves of the server's model.

    .. math:: \hat x = D(C(x)), \qquad y_k = \text{local steps from } \hat x, \qquad \Delta_k = y_k - \hat x, \qquad
        x \leftarrow x + \text{mean}_k \Delta_k

    The server keeps the exact x, which is what is evaluated. One message goes to all clients of a round, drawn anew
    after each server step. The whole model is compressed, not its change: a client that was not there before has
    nothing to add a change to. `aggregate/downlink_bits` counts the message.

    Args:
        algorithm: any.
        compressor: without memory and without noise, such as `fs.aggregate.k_level(256)`, `fs.aggregate.eden(8)`,
            `fs.aggregate.bfloat16()`; or a chain of such.
        broadcast: `(server_state) -> part` that is sent, a selection of its leaves; None for the algorithm's `params`.
            Client functions get nothing else.

    Raises:
        ArgumentError: a compressor with rows, a state or noise, or one that needs a bound; a client function that reads
            more than `broadcast` sends (SCAFFOLD wants `lambda server: (server.params, server.control)`).

    Example:
        >>> import optax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.compress_downlink(fs.fedavg(task, optax.sgd(0.05)), fs.aggregate.k_level(256))
    """
    check(isinstance(algorithm, Algorithm), "algorithm", algorithm, "must be an algorithm, such as fs.fedavg(...).")
    check(algorithm.edges is None, "algorithm", algorithm, "has edges, which pass whole models on.")
    chain = _checked(compressor)
    select = algorithm.params if broadcast is None else broadcast

    def pack(key: Key, exact: Server) -> Broadcast:
        part = jax.tree.map(jnp.asarray, select(exact))
        value, bits = _decoded(chain, key, part)
        received = jax.tree.map(lambda new, old: new.astype(old.dtype), value, part)
        return Broadcast(exact, tuple(jax.tree.leaves(received)), bits)

    def view(server: Broadcast) -> Server:
        leaves, structure = jax.tree.flatten(server.exact)
        numbers = jax.tree.leaves(select(jax.tree.unflatten(structure, range(len(leaves)))))
        if not all(isinstance(n, int) for n in numbers) or len(numbers) != len(server.received):
            raise ArgumentError("broadcast: must select leaves of the server state, and compute nothing.")
        seen: list[Any] = [_NotSent()] * len(leaves)
        for number, leaf in zip(numbers, server.received, strict=True):
            seen[number] = leaf
        return jax.tree.unflatten(structure, seen)

    def wrapped(phase: Pass) -> Phase:
        def server(key, server, aggregate):
            own, sending = jax.random.split(key)
            return pack(sending, phase.server(own, server.exact, aggregate))

        def client(key, server, row, batches):
            try:
                return phase.client(key, view(server), row, batches)
            except TypeError as error:
                if _NotSent.__name__ not in str(error):
                    raise
                raise ArgumentError(
                    f"broadcast={broadcast!r}: the client function reads more of the server state than is sent; name "
                    f"all it reads of {type(server.exact).__name__}, as lambda server: (server.params, server.control)."
                ) from error

        return Phase(client, server, phase.aggregator, downlink=lambda server: server.bits)

    def init(params):
        exact, row = algorithm.init(params)
        return pack(jax.random.key(0), exact), row  # the first model's draws are the same in each run

    own = algorithm.personal
    return Algorithm(
        algorithm.task,
        init,
        params=lambda server: algorithm.params(server.exact),
        phases=tuple(wrapped(phase) for phase in algorithm.passes()),
        num_clients=algorithm.num_clients,
        personal=own and (lambda server, row: own(server.exact, row)),
    )


def _checked(compressor: Transform | Aggregator) -> Aggregator:
    """The compressor's chain, of which one message can go to all clients."""
    chain = as_aggregator(compressor)
    for wrong, what in (
        (chain.facts.rows, "keeps a row a client"),
        (chain.facts.noisy, "adds noise"),
        (chain.facts.weighted, "masks weighted sums"),
        (not chain.reducer.linear, "is no compressor"),
    ):
        if wrong:
            raise ArgumentError(
                f"compressor={chain.name}: {what}, and one message goes from the server to all clients."
            )
    return chain


class _NotSent:
    """Stands for a leaf that clients do not receive: whatever computes with it fails."""


def _decoded(chain: Aggregator, key: Key, part: PyTree) -> tuple[PyTree, Scalar]:
    """What clients decode of one message, and its bits."""
    states, _ = chain.init(part)
    if jax.tree.leaves(states):
        raise ArgumentError(
            f"compressor={chain.name}: keeps a state or needs a clip's bound; use one without, as fs.aggregate.k_level."
        )
    one, zero = jnp.ones(()), jnp.zeros((), jnp.int32)
    encode, shared, receive, decode = jax.random.split(key, 4)
    context = Context(zero, zero, shared, jnp.asarray(jnp.inf, jnp.float32), weight=one, receive_key=receive)
    encoded = chain.encode(encode, states, None, part, context)
    message = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), chain.receive(receive, states, encoded.message))
    alone = Aggregate(message, one, one, sums=(None,) * len(chain.transforms), round_key=shared)
    bits = encoded.metrics["uplink_bits"]
    assert isinstance(bits, Sum)
    return chain.server(decode, states, alone, 1.0)[0].value, bits.total
