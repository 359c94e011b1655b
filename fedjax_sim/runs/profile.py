"""Where the time of a run's rounds went: what its profile.json says, in few numbers."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fedjax_sim.runs.writing import Json

FILE = "profile.json"
REST = "rest"
PARTS = {
    "planning": "cohort and batches, on the host",
    "transfer": "waiting for plan and examples on the devices",
    "compute": "clients and server, on the devices",
    "evaluation": "of the model, with its compilation",
    REST: "checks and records, on the host",
}
"""Part of a round to what it is."""


class Split(NamedTuple):
    """The time of some rounds.

    Attributes:
        rounds: how many.
        seconds: of all of them together, by part.
    """

    rounds: int
    seconds: dict[str, float]

    def rows(self) -> list[tuple[str, float, float]]:
        """Each part, its milliseconds a round, and its share of the whole."""
        whole = sum(self.seconds.values()) or 1.0
        return [(part, 1e3 * spent / max(self.rounds, 1), spent / whole) for part, spent in self.seconds.items()]


def split(profile: Mapping[str, Json]) -> tuple[Split, Split]:
    """The rounds as they go, and the blocks of rounds before which a program was compiled.

    Blocks under the trace, which takes time of its own, are left out of the former where there are others; where all
    blocks were compiled for, they are the former too.

    Args:
        profile: what profile.json holds.
    """
    blocks: Sequence[Mapping[str, Json]] = profile["blocks"]
    compiled = [block for block in blocks if block["compiled"]]
    going = [block for block in blocks if not block["compiled"]]
    going = [block for block in going if not block["traced"]] or going or compiled
    return _sum(going), _sum(compiled)


def _sum(blocks: Sequence[Mapping[str, Json]]) -> Split:
    return Split(sum(b["rounds"] for b in blocks), {part: sum(b[part] for b in blocks) for part in PARTS})
