"""The cohorts of a run that was recorded, once more."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.types import Cohort
from fedjax_sim.population.sampling import Sampler, cohort

ARRIVED, STEPS, WEIGHT = "population/arrived", "population/steps", "population/weight"
ABANDONED = "population/abandoned"
OTHERS = ("population/version", "population/scale")
"""Columns of the per-client table, where a sampler said something of its clients; NaN where it did not."""


def replay(run_folder: str | os.PathLike[str]) -> Sampler:
    """The clients that a run's folder recorded, round by round: who was drawn, who arrived, and after how many steps.

    So that another method meets the very same clients: the same algorithm ends with the same bits, on as many lanes and
    devices. No accounting event, as cohorts are given.

    Args:
        run_folder: of `sim.run(run_dir=)`, whose per-client table tells it.

    Raises:
        ArgumentError: no such table; a run whose cohorts repeated clients, or were asynchronous; a round after the
            last.

    Example:
        >>> import fedjax_sim as fs
        >>> def once_more(algorithm, data, folder):
        ...     return fs.Simulation(algorithm, data, fs.sampler.replay(folder), fs.Batching(20))
    """
    folder = Path(run_folder)
    columns = _table(folder)
    if any(name in columns for name in OTHERS):
        raise ArgumentError(
            f"{folder} holds a run whose clients were scaled, or started from old models: replay others."
        )
    order = np.argsort(columns["round"], kind="stable")
    columns = {name: values[order] for name, values in columns.items()}
    rounds, first = np.unique(columns["round"], return_index=True)
    ends = np.append(first[1:], len(order))
    most, last = int((ends - first).max()), int(rounds[-1])
    for round, begin, end in zip(rounds, first, ends, strict=True):
        if len(np.unique(columns["client"][begin:end])) < end - begin:
            raise ArgumentError(f"{folder}: round {round} has a client twice, whose draws a table does not tell apart.")

    def init(num_clients: int) -> int:
        largest = int(columns["client"].max())
        if largest >= num_clients:
            raise ArgumentError(f"{folder} has a client {largest}, and the population only {num_clients}.")
        return num_clients

    def sample(state: int, round: int, seed: int) -> tuple[Cohort, int]:
        if round > last:
            raise ArgumentError(f"round={round}: {folder} recorded rounds up to {last}.")
        at = np.searchsorted(rounds, round)
        mine = slice(first[at], ends[at]) if rounds[at] == round else slice(0, 0)  # nobody was drawn
        made = cohort(columns["client"][mine], most)
        places = lambda values, fill: np.concatenate([values, np.full(most - len(values), fill, values.dtype)])
        more: dict[str, Any] = {}
        if ARRIVED in columns:
            more["arrives"] = places(columns[ARRIVED][mine] != 0, False)
        if STEPS in columns:
            steps = np.nan_to_num(columns[STEPS][mine], nan=2**31 - 1)
            more["max_steps"] = places(steps.astype(np.int32), 0)
        if WEIGHT in columns:
            more["weight"] = places(np.nan_to_num(columns[WEIGHT][mine], nan=1.0).astype(np.float32), 0.0)
        if ABANDONED in columns:
            more["abandoned"] = bool((columns[ABANDONED][mine] == 1).any())
        return dataclasses.replace(made, **more), state

    return Sampler(
        init=init,
        sample=sample,
        capacity=lambda num_clients: most,
        expected=lambda num_clients: float(len(order) / len(rounds)),
        name=f"replay({folder.name})",
    )


def _table(folder: Path) -> dict[str, np.ndarray]:
    """The per-client table's columns that cohorts are made of."""
    import pyarrow.parquet

    files, found = sorted((folder / "clients").glob("*.parquet")), []
    if not files:
        raise ArgumentError(f"{folder} has no per-client table, clients/*.parquet: give the folder of a recorded run.")
    for path in files:
        try:
            table = pyarrow.parquet.read_table(path)
            names = [
                n for n in ("round", "client", ARRIVED, STEPS, WEIGHT, ABANDONED, *OTHERS) if n in table.column_names
            ]
            found.append({name: table[name].to_numpy() for name in names})
        except Exception as error:
            raise ArgumentError(f"{path} cannot be read: {error}.") from error
    if not all({"round", "client"} <= set(each) for each in found):
        raise ArgumentError(f"{folder}: a per-client table lacks the columns round and client.")
    nothing = lambda each: np.full(len(each["round"]), np.nan)
    names = dict.fromkeys(name for each in found for name in each)
    return {name: np.concatenate([each.get(name, nothing(each)) for each in found]) for name in names}
