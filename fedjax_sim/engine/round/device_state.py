"""The part of a round's state that its program takes and gives back."""

from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.pytree import pytree
from fedjax_sim.core.types import ClientRows


@pytree
class DeviceState:
    """The part of a `RoundState` that lives on devices."""

    server: PyTree
    aggregator: PyTree
    rows: ClientRows
    versions: PyTree = None
