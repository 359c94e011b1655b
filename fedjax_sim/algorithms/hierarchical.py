"""Hierarchical averaging: edges between the clients and the server (Liu et al. 2020, HierFAVG, Algorithm 1)."""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from fedjax_sim.algorithms.base import Algorithm, Edges, Pass, Phase
from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import Aggregate, Key, Server


@named("task", "aggregator")
def hierarchical(algorithm: Algorithm, edges: int | npt.ArrayLike, edge_rounds: int = 1) -> Algorithm:
    r"""An algorithm run by edges, each among its own clients, whose states a server averages.

    .. math:: x_e \leftarrow x, \qquad x_e \leftarrow A(x_e, S_e) \;\; \kappa_2 \text{ times}, \qquad
        x \leftarrow \sum_e W_e x_e / \sum_e W_e

    in one round, one compiled program: each edge e has the algorithm's whole server state, gives its clients
    :math:`S_e` of the cohort :math:`\kappa_2` rounds of the algorithm A, and counts by :math:`W_e`, the weights of its
    clients: their examples, or their number where the algorithm's mean is uniform. An edge that nobody was drawn of
    has no weight. Whole numbers of the state, which count rounds, are alike in all edges that took part.

    So with one edge a round is :math:`\kappa_2` rounds of A with the same clients; and with one edge round it is a
    round of A wherever A's server step is linear in the mean, as FedAvg's is, with momentum too: the mean of means
    is the mean. Under FedAdam and the like each edge adapts on its own.

    `fs.Batching` is what a client does in *one* edge round; each goes on in the client's examples where the last one
    ended. A client that is stopped on the way counts in the edge rounds that it took a step in.

    The chain is of the link from clients to their edge, once in each edge round; between edges and server whole states
    travel as they are. On a clock a client's time is that of all its edge rounds, and `fs.fleet`'s `edge=` device says
    what the link to the server takes: `clock/edge_bytes_up`, `clock/edge_bytes_down`. Memory is of E server states
    and E sums on each device.

    Args:
        algorithm: one whose rounds need a weighted sum of messages and no more.
        edges: [K], each client's edge, from 0 on; or their number E, client k's being k modulo E.
        edge_rounds: :math:`\kappa_2`.

    Raises:
        ArgumentError: edges without clients; an algorithm that needs all clients at once, that counts the population
            (SCAFFOLD, FedDyn: of an edge's part of a control variate there is no mean), whose downlink is its own,
            or that has edges already. And, by `fs.Simulation`: chains with noise for privacy, masks, host stages or a
            server's memory, as an adaptive clip; asynchronous samplers; rows on the host.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.array(8.0), lambda x, batch, key: (x - batch["b"]) ** 2 / 2)
        >>> data = fs.data.FederatedData({"b": jnp.array([0.0, 2.0, 4.0, 10.0])}, offsets=range(5))
        >>> algorithm = fs.hierarchical(fs.fedavg(task, optax.sgd(0.5)), edges=[0, 0, 1, 1], edge_rounds=2)
        >>> sim = fs.Simulation(algorithm, data, fs.sampler.cross_silo(), fs.Batching(1, steps=2))
        >>> state, _ = sim.step(sim.init())
        >>> print(sim.params(state))
        4.25
    """
    check(isinstance(algorithm, Algorithm), "algorithm", algorithm, "must be an algorithm, such as fs.fedavg(...).")
    check_count("edge_rounds", edge_rounds)
    check(algorithm.edges is None, "algorithm", algorithm, "has edges already.")
    told = algorithm.num_clients
    check(told is None, "algorithm", algorithm, f"counts the population, {told} clients, and an edge has some of them.")
    passes = algorithm.passes()
    for phase in passes:
        name = phase.aggregator.name
        check(phase.aggregator.reducer.linear, "algorithm", name, "needs all clients' messages at once, not a sum.")
        check(phase.downlink is None, "algorithm", algorithm, "has a downlink of its own, and edges pass models on.")
    if isinstance(edges, int | np.integer) and not isinstance(edges, bool):
        check_count("edges", edges)
        made = Edges(int(edges), edge_rounds)
    else:
        of = _checked(edges)
        made = Edges(int(of.max()) + 1, edge_rounds, of)
    return algorithm._replace(
        client=None, server=None, aggregator=None, phases=tuple(map(_of_edge, passes)), edges=made
    )


def _checked(edges: npt.ArrayLike) -> np.ndarray:
    """[K] int32."""
    of = np.asarray(edges)
    whole = of.ndim == 1 and of.size > 0 and np.issubdtype(of.dtype, np.integer) and bool((of >= 0).all())
    check(whole, "edges", edges, "must be their number, or [K] whole numbers from 0 on, each client's edge.")
    sizes = np.bincount(of)
    empty = np.flatnonzero(sizes == 0).tolist()
    fix = f"have no clients: number those that have from 0 to {len(sizes) - 1 - len(empty)}."
    check(not empty, "edges", empty[:5], fix)
    return of.astype(np.int32)


def _of_edge(phase: Pass) -> Phase:
    """The phase, whose server knows of its edge's clients alone."""

    def server(key: Key, server: Server, aggregate: Aggregate) -> Server:
        return phase.server(key, server, dataclasses.replace(aggregate, population=_Unknown()))

    return Phase(phase.client, server, phase.aggregator)


class _Unknown:
    """The population, to an edge: whatever computes with it fails."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise ArgumentError(
            "fs.hierarchical: the algorithm's server computes with the population's size, as SCAFFOLD's and FedDyn's "
            "do: an edge has but some of the clients, and edges' means of its state would be none of the population's. "
            "Use an algorithm without it, such as fs.fedavg or fs.fedprox."
        )

    __rtruediv__ = __truediv__ = __rmul__ = __mul__ = __add__ = __radd__ = __sub__ = __rsub__ = __array__
