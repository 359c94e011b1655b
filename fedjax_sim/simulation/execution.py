"""Where and how rounds are computed: what cannot change their results."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from fedjax_sim.core.errors import check_count
from fedjax_sim.engine.device.placement import Device
from fedjax_sim.engine.store.residency import Residency
from fedjax_sim.engine.store.row_table import Rows


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a simulation's rounds are computed. No field changes a draw; `lanes` and `devices` change the order of sums.

    Attributes:
        lanes: clients that a device trains side by side, or "auto": once for the simulation, by parameter count,
            platform and, on a CPU, how clients' steps differ (`fedjax_sim.simulation.lanes.for_simulation`), and then
            by measurement where `autotune` says so. It changes results only within float tolerance: in the order of
            sums, and in the roundings of a client's own steps, which long training amplifies (docs/design.md). Where
            a round does not fit the devices' memory, it is halved.
        autotune: time a few lanes before the first round, if they are "auto" (`fedjax_sim.simulation.lanes.tune`);
            None for "not on a CPU", where the rule was measured. What was measured is in `Simulation.tuning`, and kept
            beside the compiled programs (`fedjax_sim.engine.device.programs`) for the next time.
        devices: JAX devices; None for all local ones, or those of all processes (`fs.use_processes`).
        rounds_per_dispatch: rounds in one compiled dispatch of `run`, or "auto": 1 on a CPU, where a dispatch
            costs little beside a round, 8 elsewhere; always 1 for samplers that observe rounds.
        residency: where the examples live: "device", all of them on every device (CPU devices share one copy);
            "stream", in memory, files or nowhere, from where each round's are read in the background; "auto": streamed
            if they exceed half of a device's memory (on a CPU, the host's) or are no arrays in memory. The results
            are the same, bit by bit.
        rows: where what clients keep between rounds lives: "device", a table dealt over the devices; "host", a file
            (in `tempfile`'s folder) that holds rows of those who took part, read and written wave by wave while the
            devices compute; "auto": on the host if the table exceeds 256 MiB on a CPU, elsewhere half of the devices'
            memory. `state.rows` is then a `fedjax_sim.engine.store.row_file.HostRows`, and a dispatch is one round.

    Raises:
        ArgumentError: a count that is none.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.Execution(lanes=8).rounds_per_dispatch
        'auto'
    """

    lanes: int | Literal["auto"] = "auto"
    autotune: bool | None = None
    devices: Sequence[Device] | None = None
    rounds_per_dispatch: int | Literal["auto"] = "auto"
    residency: Residency = "auto"
    rows: Rows = "auto"

    def __post_init__(self):
        for name in ("lanes", "rounds_per_dispatch"):
            if getattr(self, name) != "auto":
                check_count(name, getattr(self, name), advice='or "auto".')
