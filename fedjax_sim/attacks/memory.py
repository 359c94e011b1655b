"""An algorithm whose server state keeps the model of the round before, for attacks that remember it."""

from typing import NamedTuple

from fedjax_sim.algorithms import Algorithm, Phase
from fedjax_sim.algorithms.base import Pass
from fedjax_sim.core.types import Params, Server


class Remembered(NamedTuple):
    """The server state of an algorithm that some clients attack by what they remember.

    Attributes:
        server: the algorithm's own.
        previous: the model before the last round that changed something; the first one until then.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> lazy = fs.attacks.infect(fs.fedavg(task, optax.sgd(0.1)), fs.attacks.free_rider("replay"), clients=[3])
        >>> state, _ = lazy.init(jnp.array(1.0))
        >>> print(state.server.params, state.previous)
        1.0 1.0
    """

    server: Server
    previous: Params


def remembering(algorithm: Algorithm) -> Algorithm:
    """The algorithm, whose server state is a `Remembered`."""

    def wrapped(i: int, phase: Pass) -> Phase:
        def client(key, server, row, batches):
            return phase.client(key, server.server, row, batches)

        def step(key, server, aggregate):
            previous = algorithm.params(server.server) if i == 0 else server.previous
            return Remembered(phase.server(key, server.server, aggregate), previous)

        downlink = phase.downlink
        return Phase(client, step, phase.aggregator, downlink and (lambda server: downlink(server.server)))

    def init(params):
        server, row = algorithm.init(params)
        return Remembered(server, algorithm.params(server)), row

    own = algorithm.personal
    return algorithm._replace(
        init=init,
        client=None,
        server=None,
        aggregator=None,
        downlink=None,
        params=lambda server: algorithm.params(server.server),
        phases=tuple(wrapped(i, phase) for i, phase in enumerate(algorithm.passes())),
        personal=own and (lambda server, row: own(server.server, row)),
    )
