"""What a simulation is made of: one frozen record, from which all that plans, trains, records and accounts reads."""

import dataclasses
from typing import Any, Literal, NamedTuple

from jax.sharding import Mesh

from fedjax_sim.algorithms.base import Algorithm, Pass
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.data.batching import Batching
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.engine.device.placement import Device
from fedjax_sim.engine.plan.planner import Planner
from fedjax_sim.engine.store.residency import Reader, Residency
from fedjax_sim.engine.store.row_table import Rows
from fedjax_sim.population.sampling import Sampler


class Sent(NamedTuple):
    """What passes between the server and a client in a phase.

    Attributes:
        payload: shapes of what the client function returns for the aggregator.
        downlink: bits of the server state's leaves that the client function reads.
        read: for each leaf of the server state, whether it does.
    """

    payload: PyTree
    downlink: float
    read: tuple[bool, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """What a simulation is made of, checked; it stays as it is from the first round to the last.

    Attributes:
        algorithm, data, sampler, batching, seed, noise_seed, on_nonfinite, debug, delta, exact: as `fs.Simulation` was
            given them, or found them.
        phases: the algorithm's, each with a whole aggregator.
        model: shapes of the parameters.
        sent: what each phase sends.
        sampler_state: the sampler's first.
        capacity: C, places in a cohort.
        expected: clients that the sampler expects in a round.
        noisy: a phase adds noise for privacy.
        everyone: clients add noise themselves, so that all who are drawn and arrive have a place in plans.
        mesh: the devices.
        residency: where the examples live, "device" or "stream".
        rows: where clients' rows live, "device" or "host".
        has_table: there are rows, and they are on the devices.
        row_bytes: what one client keeps.
        planner: plans rounds.
        reader: reads streamed examples; None where they are on the devices.
    """

    algorithm: Algorithm
    data: FederatedData
    sampler: Sampler
    batching: Batching
    seed: int
    noise_seed: int | None
    on_nonfinite: Literal["raise", "drop"]
    debug: bool
    delta: float
    exact: bool
    phases: tuple[Pass, ...]
    model: PyTree
    sent: tuple[Sent, ...]
    sampler_state: Any
    capacity: int
    expected: float
    noisy: bool
    everyone: bool
    mesh: Mesh
    residency: Residency
    rows: Rows
    has_table: bool
    row_bytes: int
    planner: Planner
    reader: Reader | None

    @property
    def devices(self) -> tuple[Device, ...]:
        """D devices, of all processes."""
        return tuple(self.mesh.devices.flat)

    @property
    def multi_process(self) -> bool:
        """Several processes train together."""
        return self.mesh.is_multi_process

    @property
    def versions(self) -> int:
        """V, server states of earlier rounds that are kept on the devices; 0 for none."""
        return self.sampler.versions

    @property
    def large(self) -> bool:
        """States hold tables, of rows or of old server states, and are not kept twice."""
        return self.has_table or self.versions > 0

    @property
    def staged(self) -> bool:
        """The host speaks between the clients and the server's side."""
        stages = [phase.aggregator.host for phase in self.phases]
        return any(stage is not None and stage.between is not None for stage in stages)

    @property
    def donates(self) -> bool:
        """These are updated in place, unless a failing round must be able to give back the state before it."""
        return self.large and not self.may_fail

    @property
    def must_not_refuse(self) -> bool:
        """A round that a reducer refuses ends the run."""
        return any(phase.aggregator.reducer.on_refused == "error" for phase in self.phases)

    @property
    def may_fail(self) -> bool:
        """What a round reports may end the run."""
        return self.on_nonfinite == "raise" or self.must_not_refuse
