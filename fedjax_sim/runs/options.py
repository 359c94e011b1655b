"""Options of the commands that train; they belong to no experiment."""

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Options:
    """Of all of them."""

    preset: str = "default"
    """The set of values to start from."""
    run_dir: Path | None = None
    """The run's folder; runs/EXPERIMENT-DATE-TIME if left out."""


@dataclasses.dataclass(frozen=True)
class RunOptions(Options):
    """Of `run`."""

    coordinator: str | None = None
    """host:port of the first of several processes, in a cluster that JAX does not know."""
    num_processes: int | None = None
    """How many there are."""
    process_id: int | None = None
    """This one's number, from 0 on."""
    profile: bool = False
    """Time planning, transfer and computation of each round, and keep a trace in the folder."""


@dataclasses.dataclass(frozen=True)
class NewOptions:
    """Of `new`."""

    preset: str = "default"
    """The set of values to start from."""


@dataclasses.dataclass(frozen=True)
class SweepOptions(Options):
    """Of `sweep`."""

    run_dir: Path | None = None
    """The sweep's folder; runs/EXPERIMENT-sweep-DATE-TIME if left out."""
    grid: tuple[str, ...] = ()
    """NAME=VALUE,VALUE,... of a field; several of them make all combinations."""
    seeds: int = 1
    """Seeds of each setting, from the experiment's own on."""
    static: tuple[str, ...] = ()
    """Fields that each value of makes a program of its own; whole numbers, words and truth values do anyway."""
    share_cohorts: bool = False
    """All seeds have the cohorts of the first."""
    reseed: tuple[Literal["data", "model", "cohorts"], ...] = ("model", "cohorts")
    """What seeds redraw besides the first model, clients' draws and who takes part: with "data" the partition too."""
    metric: str | None = None
    """What the best setting is best at; the first accuracy that is evaluated if left out."""
    mode: Literal["min", "max"] | None = None
    """Whether the least or the greatest is best; by the metric's name if left out."""
    last: int = 1
    """Rounds at the end to average the metric over."""
