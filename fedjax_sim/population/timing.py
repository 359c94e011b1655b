"""How long clients take: the work of a round, and the devices that it is done on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Seconds(NamedTuple):
    """[n] each: receiving the model, computing, sending the update; latency is a part of both ways."""

    down: np.ndarray
    compute: np.ndarray
    up: np.ndarray

    @classmethod
    def none(cls, count: int) -> "Seconds":
        """Everything at once."""
        return cls(*np.zeros((3, count)))


class Hierarchy(NamedTuple):
    """Edges between clients and server.

    Attributes:
        places: `(ids) -> [n]`, the edge of each client.
        rounds: an edge's rounds in one of the server's, in each of which a client receives and sends.
        bytes: that an edge receives of the server, and sends it, in one of the server's rounds.
    """

    places: Callable[[np.ndarray], np.ndarray]
    rounds: int
    bytes: float


class Work(NamedTuple):
    """What a round asks of a client.

    Attributes:
        steps: `(ids) -> [n]` local steps of its own batches.
        batch_size: examples of a step.
        flops: floating-point operations of a step, of all phases together; NaN where nobody needs them.
        bytes_down, bytes_up: of all phases together, and with edges of one edge round.
        population: K.
        hierarchy: of edges; None without.
    """

    steps: Callable[[np.ndarray], np.ndarray]
    batch_size: int
    flops: float = np.nan
    bytes_down: float = 0.0
    bytes_up: float = 0.0
    population: int = 0
    hierarchy: Hierarchy | None = None

    @property
    def exchanges(self) -> int:
        """How often a client receives and sends in a round."""
        return 1 if self.hierarchy is None else self.hierarchy.rounds


class Devices(NamedTuple):
    """[n] each, what some clients train on.

    Attributes:
        step: seconds of a local step.
        fixed: seconds that a round's work takes besides.
        down, up: bytes a second.
        latency: seconds, each way.
        watts, radio_watts: while it computes; while it sends or receives.
        kind: the index of its class.
    """

    step: np.ndarray
    fixed: np.ndarray
    down: np.ndarray
    up: np.ndarray
    latency: np.ndarray
    watts: np.ndarray
    radio_watts: np.ndarray
    kind: np.ndarray


class Fleet(NamedTuple):
    """Everybody's devices; from `fs.fleet`.

    Attributes:
        devices: `(ids, round, seed, work) -> Devices`.
        name: for messages.
        classes: names of device classes.
        idle: seconds of a round without clients.
        counts_flops: it needs to know what a step costs.
        by_round: devices differ from round to round.
        check: `(K)`, raises for a population that it does not fit.
        flops: of a step; None for those of the compiled program.
        bytes_up: of an update; None for those of the chain.
        edge: what an edge has, whose bandwidths, latency and radio are those of its link to the server; or None, for no
            time and no power.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.fleet.uniform(fs.fleet.Device(seconds_per_step=0.1)).classes
        ()
    """

    devices: Callable[[np.ndarray, int, int, Work], Devices]
    name: str = "fleet"
    classes: tuple[str, ...] = ()
    idle: float = 60.0
    counts_flops: bool = False
    by_round: bool = False
    check: Callable[[int], None] = lambda num_clients: None
    flops: float | None = None
    bytes_up: float | None = None
    edge: Any = None


class Timing(NamedTuple):
    """The work of a simulation, the fleet that does it, if there is one, and the seed that its devices are drawn
    from."""

    work: Work
    fleet: Fleet | None = None
    seed: int = 0

    def seconds(self, ids: np.ndarray, steps: np.ndarray, round: int, seed: int) -> tuple[Seconds, Devices | None]:
        """What so many steps take those clients, and their devices."""
        if self.fleet is None:
            return Seconds.none(len(ids)), None
        devices = self.fleet.devices(ids, round, seed, self.work)
        down = self.work.exchanges * (self.work.bytes_down / devices.down + devices.latency)
        up = self.work.exchanges * (self.work.bytes_up / devices.up + devices.latency)
        return Seconds(down, devices.fixed + steps * devices.step, up), devices
