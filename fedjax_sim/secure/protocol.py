"""Which protocol: who shares masks with whom, how many must stay, and who is lost on the way."""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedjax_sim.core import rng
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.core.rng import Purpose
from fedjax_sim.secure.faults import STEPS

Loss = float | Callable[[int, np.ndarray], np.ndarray]
"""A chance, or `(round, ids) -> [n] bool`, True for those that are lost."""


class Dropouts(NamedTuple):
    """Who is lost in each of the protocol's rounds; made by `dropouts`.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> fs.secure.dropouts(upload=0.5).lost("upload", seed=0, round=3, ids=np.arange(6)).tolist()
        [True, False, True, False, True, True]
    """

    advertise: Loss = 0.0
    share: Loss = 0.0
    upload: Loss = 0.0
    consistency: Loss = 0.0
    unmask: Loss = 0.0

    @property
    def before_upload(self) -> bool:
        """Whether some of those that are drawn may send no words."""
        return any(callable(loss) or loss > 0 for loss in (self.advertise, self.share, self.upload))

    def lost(self, step: str, seed: int, round: int, ids: np.ndarray) -> np.ndarray:
        """[n] bool, those of the clients whose message of that step does not come."""
        loss = getattr(self, step)
        if callable(loss):
            said = np.asarray(loss(round, ids))
            check(said.shape == ids.shape and said.dtype == bool, f"dropouts({step}=)", said, "must give [n] bool.")
            return said
        if not loss:
            return np.zeros(len(ids), bool)
        return rng.hash32(seed, Purpose.SECURE, round, ids, STEPS.index(step)) < loss * 2.0**32


def dropouts(
    advertise: Loss = 0.0, share: Loss = 0.0, upload: Loss = 0.0, consistency: Loss = 0.0, unmask: Loss = 0.0
) -> Dropouts:
    """Clients that are lost in the protocol's rounds 0 to 4: each one's message there does not come, nor any later.

    Args:
        advertise, share, upload, consistency, unmask: the chance of a client that is still there, drawn from the run's
            seed, the round and its id; or a function `(round, ids) -> [n] bool` that says who.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.secure.bonawitz(dropouts=fs.secure.dropouts(upload=0.05, unmask=0.01)).dropouts.unmask
        0.01
    """
    made = Dropouts(advertise, share, upload, consistency, unmask)
    for name, loss in zip(made._fields, made, strict=True):
        check(callable(loss) or 0 <= loss <= 1, name, loss, "must be a chance from 0 to 1, or a function.")
    return made


class Protocol(NamedTuple):
    """A protocol of secure aggregation; made by `bonawitz` or `secagg_plus`.

    Attributes:
        name: for messages.
        threshold: t as it was given: a share of the holders, or their number.
        neighbours: k of the random graph; None for the complete one.
        dropouts: who is lost.

    Example:
        >>> import fedjax_sim as fs
        >>> protocol = fs.secure.bonawitz(threshold=2 / 3)
        >>> protocol.needed(99), protocol.needed(100)
        (67, 67)
    """

    name: str
    threshold: Scalar
    neighbours: int | None
    dropouts: Dropouts

    def degree(self, clients: int) -> int:
        """Neighbours of each of so many clients."""
        return clients - 1 if self.neighbours is None else min(self.neighbours, clients - 1)

    def holders(self, clients: int) -> int:
        """Who get a share of a client's secrets: in the complete graph itself too."""
        return clients if self.neighbours is None else self.degree(clients)

    def needed(self, clients: int) -> int:
        """t, the shares that tell a secret: of a share of the holders, the smallest number above it."""
        if isinstance(self.threshold, int):
            return self.threshold
        holders = self.holders(clients)
        return min(holders, math.floor(self.threshold * holders) + 1)

    def least(self, clients: int) -> int:
        """Clients that must be left of so many in each of the protocol's rounds; of 1 or 2 a sum would tell all."""
        return max(3, self.needed(clients)) if self.neighbours is None else max(3, self.needed(clients) + 1)

    def check(self, clients: int) -> None:
        """Raise `ArgumentError` where no cohort of that size could be summed; warn where a lying server sees words.

        Args:
            clients: of a cohort at most.
        """
        if clients < 3:
            raise ArgumentError(
                f"{self.name}: cohorts of {clients}: the sum of one tells its words, and of two each client learns the "
                "other's. Draw 3 at least."
            )
        t, holders = self.needed(clients), self.holders(clients)
        if t > holders:
            raise ArgumentError(
                f"{self.name}: t = {t} of {holders} holders in a cohort of {clients}: no round could ever end. Lower "
                "the threshold, or draw more clients."
            )
        if 2 * t <= holders:
            warnings.warn(
                f"{self.name}: t = {t} is at most half of {holders} holders: a server that lies can tell one half that "
                "a client was lost and the other that it came, get t shares of both its secrets, and see its words. "
                "Take more than half.",
                stacklevel=2,
            )


def bonawitz(threshold: Scalar = 2 / 3, dropouts: Dropouts | None = None) -> Protocol:
    r"""The protocol of Bonawitz et al. 2017 (Figure 4, with round 3 against a server that lies): all are neighbours.

    .. math:: y_u = x_u + \mathrm{PRG}(b_u) + \sum_{v > u} \mathrm{PRG}(s_{uv}) - \sum_{v < u} \mathrm{PRG}(s_{uv})
        \bmod 2^b

    Each client shares its seed :math:`b_u` and the key of its :math:`s_{uv}` out, t of n. From t clients' shares the
    server takes off the survivors' seeds and the masks of those that were lost, and sees the survivors' sum. All n keys
    are fresh in each round. Its cost is O(n) key agreements and O(n d) words of key stream a client.

    Args:
        threshold: t; a number below 1 is a share of the cohort, and t the smallest number above it. A server that may
            lie needs more than half; one that works with clients, about two thirds.
        dropouts: `fs.secure.dropouts`; None for none but the sampler's own.

    Raises:
        ArgumentError: a threshold below 1 client, or a share of the cohort above all of it.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.secure.bonawitz(threshold=0.75).name
        'bonawitz(t > 0.75 n)'
    """
    return _protocol("bonawitz", threshold, None, dropouts)


def secagg_plus(neighbours: int, threshold: Scalar = 0.6, dropouts: Dropouts | None = None) -> Protocol:
    r"""SecAgg+ (Bell et al. 2020): as `bonawitz`, among the k neighbours of a random graph of each round.

    Shares go to neighbours alone, t of k, so that a client's cost is O(k) agreements and O(k d) words.
    `fs.secure.choose` says which k and t hold.

    Deviations: the graph is drawn from the run's seed and the round, which clients know, instead of being the server's
    word; all survivors sign the whole list of survivors, and each checks its neighbours' signatures; a client whose
    neighbours are fewer than t ends the round, and not its own part alone.

    Args:
        neighbours: k, even. A cohort of at most k + 1 is a complete graph.
        threshold: t; a number below 1 is a share of the neighbours, and t the smallest number above it.
        dropouts: as in `bonawitz`.

    Raises:
        ArgumentError: an odd k, or one below t.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.secure.secagg_plus(neighbours=20, threshold=12).name
        'secagg_plus(20 neighbours, t = 12)'
    """
    check_count("neighbours", neighbours, minimum=2)
    check(neighbours % 2 == 0, "neighbours", neighbours, "must be even: half of them are on either side of a circle.")
    return _protocol("secagg_plus", threshold, neighbours, dropouts)


def _protocol(name: str, threshold: Scalar, neighbours: int | None, lost: Dropouts | None) -> Protocol:
    given = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    check(given, "threshold", threshold, "must be a number of clients, or a share of them below 1.")
    if not isinstance(threshold, int):
        check(0 < threshold < 1, "threshold", threshold, "must lie between 0 and 1, or be a whole number of clients.")
    else:
        check_count("threshold", threshold, advice="With 0 shares needed, anybody knows every key.")
        check(threshold > 1, "threshold", threshold, "one share is then the secret itself: take 2 at least.")
    lost = Dropouts() if lost is None else lost
    check(isinstance(lost, Dropouts), "dropouts", lost, "must be made by fs.secure.dropouts.")
    of = "n" if neighbours is None else "k"
    t = f"t = {threshold}" if isinstance(threshold, int) else f"t > {threshold:.3g} {of}"
    if neighbours is not None:
        check(
            not isinstance(threshold, int) or threshold <= neighbours,
            "threshold",
            threshold,
            f"each client has {neighbours} neighbours, who hold its shares: take as many at most.",
        )
        t = f"{neighbours} neighbours, {t}"
    return Protocol(f"{name}({t})", threshold, neighbours, lost)
