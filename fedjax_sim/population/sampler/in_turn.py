"""Samplers under which everybody has a turn: the whole population, blocks one after another, epochs in random order."""

import numpy as np

from fedjax_sim.core.errors import check, check_count
from fedjax_sim.population.permutation import permuted
from fedjax_sim.population.sampling import Sampler, SamplingEvent, SeparationEvent, cohort


def cross_silo() -> Sampler:
    """Everybody, in every round.

    Accounting event: sampling without replacement, of all, which amplifies nothing.

    Example:
        >>> import fedjax_sim as fs
        >>> sampler = fs.sampler.cross_silo()
        >>> sampler.sample(sampler.init(3), round=7, seed=0)[0].ids
        array([0, 1, 2], dtype=int32)
    """
    return Sampler(
        init=lambda num_clients: num_clients,
        sample=lambda state, round, seed: (cohort(np.arange(state), state), state),
        capacity=lambda num_clients: num_clients,
        expected=float,
        event=lambda num_clients: SamplingEvent("without_replacement", num_clients, cohort_size=num_clients),
        name="cross_silo()",
    )


def cyclic(blocks: int) -> Sampler:
    """The population is dealt once, at random, into blocks; rounds take one whole block after another.

    Accounting event: a minimum separation of as many rounds as there are blocks, without amplification.

    Args:
        blocks: B, at most the population; sizes differ by one at most.

    Example:
        >>> import fedjax_sim as fs
        >>> sampler = fs.sampler.cyclic(3)
        >>> state, drawn = sampler.init(7), []
        >>> for round in range(3):
        ...     cohort, state = sampler.sample(state, round, seed=0)
        ...     drawn += cohort.ids[cohort.valid].tolist()
        >>> sorted(drawn)
        [0, 1, 2, 3, 4, 5, 6]
    """
    check_count("blocks", blocks)
    capacity = lambda num_clients: -(-num_clients // blocks)

    def init(num_clients: int) -> int:
        check(blocks <= num_clients, "blocks", blocks, f"the population has only {num_clients} clients.")
        return num_clients

    def sample(state: int, round: int, seed: int):
        ids = permuted(seed, 0, np.arange(round % blocks, state, blocks), state)
        return cohort(ids, capacity(state)), state

    return Sampler(
        init=init,
        sample=sample,
        capacity=capacity,
        expected=lambda num_clients: num_clients / blocks,
        event=lambda num_clients: SeparationEvent("min_separation", num_clients, capacity(num_clients), blocks),
        name=f"cyclic({blocks})",
    )


def shuffled_epochs(cohort_size: int) -> Sampler:
    """Everybody once an epoch, in an order that is new in each: random reshuffling of clients.

    An epoch's last round has those who are left. A round costs O(m): the order is a permutation that is computed where
    it is asked for (`permuted`). No accounting event: refused under noise for privacy.

    Args:
        cohort_size: m, at most the population.

    Example:
        >>> import fedjax_sim as fs
        >>> sampler = fs.sampler.shuffled_epochs(3)
        >>> state, drawn = sampler.init(7), []
        >>> for round in range(3):
        ...     cohort, state = sampler.sample(state, round, seed=0)
        ...     drawn += cohort.ids[cohort.valid].tolist()
        >>> sorted(drawn)
        [0, 1, 2, 3, 4, 5, 6]
    """
    check_count("cohort_size", cohort_size)
    rounds = lambda num_clients: -(-num_clients // cohort_size)

    def init(num_clients: int) -> int:
        few = f"the population has only {num_clients} clients; draw fewer."
        check(cohort_size <= num_clients, "cohort_size", cohort_size, few)
        return num_clients

    def sample(state: int, round: int, seed: int):
        epoch, within = divmod(round, rounds(state))
        at = np.arange(within * cohort_size, min((within + 1) * cohort_size, state))
        return cohort(permuted(seed, epoch, at, state), cohort_size), state

    return Sampler(
        init=init,
        sample=sample,
        capacity=lambda num_clients: cohort_size,
        expected=lambda num_clients: num_clients / rounds(num_clients),
        name=f"shuffled_epochs({cohort_size})",
    )
