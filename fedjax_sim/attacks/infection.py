"""An algorithm some of whose clients are bad."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.aggregate import Aggregator, as_aggregator, chain
from fedjax_sim.algorithms import Algorithm
from fedjax_sim.algorithms.base import ClientFunction
from fedjax_sim.attacks.base import Attack, Received
from fedjax_sim.attacks.deceived import deceived
from fedjax_sim.attacks.memory import remembering
from fedjax_sim.client.local import ClientBatches
from fedjax_sim.core.arrays import Array, Batch, Key, PyTree
from fedjax_sim.core.errors import ArgumentError, check, check_count, check_fraction
from fedjax_sim.core.metrics import Sum
from fedjax_sim.core.pytree import pytree, static, where
from fedjax_sim.core.rng import Purpose, generator
from fedjax_sim.core.shown import named
from fedjax_sim.core.types import ClientUpdate

OWN = 0xA77AC4
"""What an attack's key is folded from a client's with: no number of a local step."""


@named()
def infect(
    algorithm: Algorithm,
    attack: Attack,
    clients: Sequence[int] | np.ndarray | float,
    rounds: slice = slice(None),
    *,
    num_clients: int | None = None,
    seed: int = 0,
    obeys_chain: bool = True,
) -> Algorithm:
    """An algorithm some of whose clients attack it; like any other, with every sampler, chain, mesh and checkpoint.

    The bad clients are the same in all rounds, and are drawn like the others: of N = 100 clients with 10 bad ones a
    cohort of 10 has none with probability 0.33 and more than two with 0.06. `client/attackers` counts them. Honest
    clients draw and compute what they would without the attack, bit for bit, from the same server state.

    Args:
        algorithm: any algorithm. All its phases are attacked.
        attack: of `fs.attacks`.
        clients: the bad clients' ids; or their share of all, from 0 to 1, which then are drawn from `seed`.
        rounds: the rounds in which they attack, `slice(10, 20)` say; they are honest in the others.
        num_clients: K, which a share needs; by default what the algorithm was told.
        seed: of the draw.
        obeys_chain: what bad clients send passes the chain's client sides, clips and quantisers, as a server enforces;
            colluding clients, who act on what others sent, shorten their message to the chain's bound. With False an
            update replaces what the chain made, and is collected: n models of memory.

    Raises:
        ArgumentError: a share without K or beyond 0 to 1, ids that are negative or come twice, an attack that does not
            fit the task, or one that must see messages beside noise for privacy or a secure sum.

    Example:
        >>> import optax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> data = fs.data.federate(digits.train, fs.partition.iid(10), seed=0)
        >>> task = fs.classification(fs.models.LogisticRegression(10), digits.train)
        >>> defended = fs.fedavg(task, optax.sgd(0.1), aggregator=fs.aggregate.krum(2))
        >>> attacked = fs.attacks.infect(defended, fs.attacks.sign_flip(5.0), clients=[3, 8])
        >>> sim = fs.Simulation(attacked, data, fs.sampler.uniform(10), fs.Batching(20))
        >>> state, history = sim.run(sim.init(), rounds=1, progress=False)
        >>> print(history["client/attackers"])
        [2.]
    """
    check(isinstance(attack, Attack), "attack", attack, "must be an attack, as fs.attacks.sign_flip().")
    check(isinstance(rounds, slice), "rounds", rounds, "must be a slice, as slice(10, 20).")
    known = algorithm.num_clients if num_clients is None else num_clients
    bad = adversaries(clients, known, seed)
    check(known is None or len(bad) < known, "clients", clients, "are all clients: there is nothing to defend.")
    if attack.check is not None:
        attack.check(algorithm.task)
    if attack.remembers:
        algorithm = remembering(algorithm)
    infected = lambda client: _client(algorithm, attack, client, bad, rounds, obeys_chain)
    aggregator = lambda given: _aggregator(algorithm, attack, as_aggregator(given), bad, rounds, obeys_chain)
    if not algorithm.phases:
        assert algorithm.client is not None
        return algorithm._replace(
            client=infected(algorithm.client), aggregator=aggregator(algorithm.aggregator), num_clients=known
        )
    of = lambda phase: phase._replace(client=infected(phase.client), aggregator=aggregator(phase.aggregator))
    return algorithm._replace(phases=tuple(map(of, algorithm.phases)), num_clients=known)


def adversaries(clients: Any, num_clients: int | None, seed: int) -> np.ndarray:
    """[m] int32 ids in order."""
    if isinstance(clients, float):
        check_fraction("clients", clients, closed=True)
        if num_clients is None:
            raise ArgumentError(
                f"clients={clients}: a share of a federation whose size is not known: give num_clients=."
            )
        check_count("num_clients", num_clients)
        count = int(clients * num_clients + 0.5)
        draw = generator(seed, Purpose.ADVERSARIES)
        return np.sort(draw.permutation(num_clients)[:count]).astype(np.int32)
    ids = np.asarray(clients)
    fits = ids.ndim == 1 and (ids.dtype.kind in "iu" or ids.size == 0)
    check(fits, "clients", clients, "must be clients' ids, [3, 8] say, or their share of all, 0.2 say.")
    last = np.iinfo(np.int32).max if num_clients is None else num_clients
    inside = ids.size == 0 or (ids.min() >= 0 and ids.max() < last)
    check(inside, "clients", clients, f"ids must be from 0 to below {last}.")
    check(len(np.unique(ids)) == len(ids), "clients", clients, "names a client twice.")
    return np.sort(ids).astype(np.int32)


def attacks_now(bad: np.ndarray, ids: Array, rounds: slice, round: Any) -> jax.Array:
    """Which clients attack in a round; like `ids`, bool."""
    if not len(bad):
        return jnp.zeros(jnp.shape(ids), bool)
    at = jnp.minimum(jnp.searchsorted(jnp.asarray(bad), ids), len(bad) - 1)
    start, step = rounds.start or 0, rounds.step or 1
    within = (round >= start) & ((round - start) % step == 0)
    if rounds.stop is not None:
        within &= round < rounds.stop
    return (jnp.asarray(bad)[at] == ids) & within


@pytree
class PoisonedBatches(ClientBatches):
    """A client's batches, which are others where it attacks."""

    attacks: jax.Array = None  # type: ignore[assignment]
    key: Key | None = None
    poison: Any = static(default=None)

    def batch(self, step: jax.Array | int) -> Batch:
        """As of `ClientBatches`."""
        honest = super().batch(step)
        assert self.key is not None
        bad = self.poison(jax.random.fold_in(self.key, step), honest)
        return where(self.attacks, {**bad, "mask": honest["mask"]}, honest)


def _client(
    algorithm: Algorithm, attack: Attack, client: ClientFunction, bad: np.ndarray, rounds: slice, obeys_chain: bool
) -> ClientFunction:
    def infected(key: Key, server: PyTree, row: PyTree, batches: ClientBatches) -> ClientUpdate:
        attacks, own = attacks_now(bad, batches.client_id, rounds, batches.info["round"]), jax.random.fold_in(key, OWN)
        if attack.batch is not None:
            batches = PoisonedBatches(**vars(batches), attacks=attacks, key=own, poison=attack.batch)
        update = client(key, server, row, batches)
        payload = update.payload
        received = _received(algorithm, attack)(server, batches.client_id, batches.info["round"])
        if attack.update is not None and obeys_chain:
            payload = where(attacks, attack.update(own, payload, received), payload)
        metrics = {**update.metrics, "attackers": Sum(attacks.astype(jnp.float32))}
        return ClientUpdate(payload, update.weight, state=update.state, metrics=metrics)

    return infected


def _aggregator(
    algorithm: Algorithm, attack: Attack, given: Aggregator, bad: np.ndarray, rounds: slice, obeys_chain: bool
) -> Aggregator:
    """The chain, whose reducer sees what the bad clients made of the messages; as it is where they need not see any."""
    late = attack.update if not obeys_chain else None
    if attack.collude is None and late is None and given.reducer.linear:
        return given
    who = lambda collected: attacks_now(bad, collected.ids, rounds, collected.round) & collected.contributes
    return chain(*given.transforms, reduce=deceived(given.reducer, attack, who, late, _received(algorithm, attack)))


def _received(algorithm: Algorithm, attack: Attack) -> Callable[..., Received]:
    """`(server_state, client_id, round) -> Received`."""
    previous = lambda server: server.previous if attack.remembers else None
    return lambda server, client, round: Received(algorithm.params(server), client, round, previous(server))
