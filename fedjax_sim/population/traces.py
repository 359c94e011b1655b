"""Traces of who was there when: FedScale's pickles, and rows (client, start, stop) as JSON, CSV or Parquet."""

import csv
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fedjax_sim.core.errors import ArgumentError, check
from fedjax_sim.population.availability import Transform
from fedjax_sim.population.stages import Moment, Stage
from fedjax_sim.population.transformed import extended

Assign = Literal["modulo", "exact"]


class Intervals(NamedTuple):
    """When clients were there, client by client.

    Attributes:
        names: [T] of the clients, in the order of the file.
        start, stop: [N] seconds, closed intervals, sorted within a client.
        first: [T + 1] where each client's begin.
        period: [T] seconds after which a client's begin again; infinite for never.
    """

    names: list[str]
    start: np.ndarray
    stop: np.ndarray
    first: np.ndarray
    period: np.ndarray

    def on(self, client: np.ndarray, now: float) -> np.ndarray:
        """[n] bool, whether clients (indices into the trace) are there: a search for each, whatever was asked
        before."""
        at = np.where(np.isfinite(self.period[client]), np.mod(now, self.period[client]), now)
        low, high = self.first[client], self.first[client + 1]
        while (low < high).any():  # the first interval that begins after `at`
            middle = (low + high) // 2
            before = (low < high) & (self.start[np.minimum(middle, len(self.start) - 1)] <= at)
            low, high = np.where(before, middle + 1, low), np.where(before | (low >= high), high, middle)
        last = low - 1
        return (last >= self.first[client]) & (self.stop[np.maximum(last, 0)] >= at)


def trace(path: str | os.PathLike[str], clients: Assign = "modulo", period: float | None = None) -> Transform:
    """Clients that are there when those of a trace were, by the simulated time at which a round begins.

    FedScale's `client_behave_trace` (Lai et al. 2022): a pickle, or JSON, of `{client: {"active": [...], "inactive":
    [...], "finish_time": ...}}`: a client is there from active[j] to inactive[j], both included, its time taken modulo
    its finish_time. Pickles are read without running any code of theirs. Or rows: CSV or Parquet with the columns
    client, start and stop, in seconds. Unlike FedScale's own reader an answer does not depend on what was asked before.
    No accounting event, and a fleet is needed, for the clock.

    Args:
        path: .json, .csv, .parquet, or a pickle of any other name.
        clients: "modulo": client k is number k modulo their number of the trace's clients, as FedScale deals them.
            "exact": the trace's clients are named 0 .. K - 1, and there must be as many as the data have.
        period: seconds after which rows begin anew; None for never.

    Raises:
        ArgumentError: a file that is empty, or cannot be read; intervals that end before they begin, overlap, or lie
            outside the period; other clients than the population's.

    Example:
        >>> import json, tempfile, pathlib, fedjax_sim as fs
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "trace.json"
        >>> one = {"active": [1, 3, 6, 9], "inactive": [1, 4, 7, 10], "finish_time": 10, "duration": 4}
        >>> _ = path.write_text(json.dumps({"0": one}))
        >>> fs.population.trace(path)(fs.sampler.uniform(2)).event is None
        True
    """
    check(clients in ("modulo", "exact"), "clients", clients, 'must be "modulo" or "exact".')
    intervals = read_intervals(Path(path), period)
    count = len(intervals.names)
    number = np.arange(count)
    if clients == "exact":
        names = set(intervals.names)
        number = np.array([intervals.names.index(str(k)) for k in range(count) if str(k) in names])

    def fits(num_clients: int, size: int, invited: int) -> None:
        if clients == "exact" and (count != num_clients or len(number) != count):
            known = {str(k) for k in range(num_clients)}
            strange, missing = sorted(set(intervals.names) - known), sorted(known - set(intervals.names))
            raise ArgumentError(
                f"{path} has {count} clients, and the population {num_clients}: without data are {strange[:3]}, and "
                f'without a trace {missing[:3]}. Deal them with clients="modulo".'
            )

    def on(ids: np.ndarray, moment: Moment) -> np.ndarray:
        return intervals.on(number[ids % count], moment.now)

    share = float(np.mean((intervals.stop - intervals.start).sum() / max(intervals.stop.max(), 1e-9) / count))
    stage = Stage(
        name=f"trace({Path(path).name}, {count} clients)",
        on=on,
        expected=lambda number: number * min(share, 1.0),
        check=fits,
        needs="clock",
    )
    return lambda sampler: extended(sampler, stage)


def read_intervals(path: Path, period: float | None = None) -> Intervals:
    """A trace file's intervals, checked."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".parquet"):
        return _of_rows(path, *(_csv(path) if suffix == ".csv" else _parquet(path)), period)
    table = read_table(path)
    check(period is None, "period", period, f"{path.name} says each client's own, finish_time.")
    return _of_fedscale(path, table)


def read_table(path: Path) -> Mapping[Any, Any]:
    """The dict of dicts that a JSON file or a pickle of plain values holds.

    Raises:
        ArgumentError: anything else.
    """
    try:
        if path.suffix.lower() == ".json":
            table = json.loads(path.read_text())
        else:
            with open(path, "rb") as file:
                table = _Plain(file).load()
    except ArgumentError:
        raise
    except Exception as error:
        raise ArgumentError(f"{path} cannot be read as a trace: {error!r}.") from error
    if not isinstance(table, dict) or not table or not all(isinstance(each, dict) for each in table.values()):
        raise ArgumentError(
            f"{path} holds no clients: a trace is a dict of client to dict, and has one client at least."
        )
    return table


class _Plain(pickle.Unpickler):
    """Reads dicts, lists, numbers and words, and calls nothing."""

    def find_class(self, module: str, name: str) -> Any:
        raise ArgumentError(f"a trace's pickle holds plain values alone, and this one asks for {module}.{name}.")


def _of_fedscale(path: Path, table: Mapping[Any, Any]) -> Intervals:
    starts, stops, counts, periods = [], [], [], []
    for name, each in table.items():
        of = f"{path}: client {name!r}"
        try:
            start, stop = (np.asarray(each[key], np.float64) for key in ("active", "inactive"))
            end = float(each["finish_time"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArgumentError(f"{of} needs active, inactive and finish_time, in numbers: {error!r}.") from error
        if start.shape != stop.shape or start.ndim != 1:
            raise ArgumentError(f"{of} has {start.size} times active and {stop.size} inactive: one of each.")
        if not (np.isfinite(end) and end > 0):
            raise ArgumentError(f"{of} has finish_time={end}: must be positive.")
        _check_intervals(of, start, stop, end)
        for column, value in ((starts, start), (stops, stop), (counts, len(start)), (periods, end)):
            column.append(value)
    return _joined(path, list(map(str, table)), starts, stops, counts, periods)


def _of_rows(path: Path, names: Any, start: np.ndarray, stop: np.ndarray, period: float | None) -> Intervals:
    known = list(dict.fromkeys(map(str, names)))
    if not known:
        raise ArgumentError(f"{path} is empty: a trace has one row (client, start, stop) at least.")
    if period is not None:
        check(np.isfinite(period) and period > 0, "period", period, "must be positive.")
    end = np.inf if period is None else float(period)
    of = {name: i for i, name in enumerate(known)}
    client = np.array([of[str(name)] for name in names])
    starts, stops = [], []
    for i, name in enumerate(known):
        mine = client == i
        _check_intervals(f"{path}: client {name!r}", start[mine], stop[mine], end)
        starts.append(start[mine])
        stops.append(stop[mine])
    return _joined(path, known, starts, stops, [len(each) for each in starts], [end] * len(known))


def _joined(path: Path, names: list[str], starts: Any, stops: Any, counts: Any, periods: Any) -> Intervals:
    if not sum(counts):
        raise ArgumentError(f"{path}: no client is ever there.")
    first = np.concatenate([[0], np.cumsum(counts)])
    return Intervals(names, np.concatenate(starts), np.concatenate(stops), first, np.asarray(periods, np.float64))


def _check_intervals(of: str, start: np.ndarray, stop: np.ndarray, end: float) -> None:
    """Raise for intervals of one client that are none."""
    wrong = ~(np.isfinite(start) & np.isfinite(stop))
    told = [
        (wrong, "is no number"),
        (start < 0, "begins before 0"),
        (stop < start, "ends before it begins"),
        (stop > end, f"goes beyond the end, {end}"),
        (
            np.append(False, start[1:] < stop[:-1]),
            "begins before the one before it has ended: overlapping, or unsorted",
        ),
    ]
    for bad, what in told:
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise ArgumentError(f"{of}: interval {at}, {start[at]:g} to {stop[at]:g}, {what}.")


COLUMNS = ("client", "start", "stop")


def _csv(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    with open(path, newline="") as file:
        rows = csv.DictReader(file)
        if not set(COLUMNS) <= set(rows.fieldnames or ()):
            raise ArgumentError(f"{path} has columns {rows.fieldnames}: a trace has client, start and stop.")
        table = list(rows)
    try:
        start, stop = (np.array([float(row[name]) for row in table]) for name in ("start", "stop"))
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{path}: start and stop are seconds: {error}.") from error
    return [row["client"] for row in table], start, stop


def _parquet(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, columns=list(COLUMNS))
        start, stop = (table[name].to_numpy().astype(np.float64) for name in ("start", "stop"))
    except Exception as error:
        raise ArgumentError(f"{path} has no columns client, start and stop that can be read: {error}.") from error
    return [str(name) for name in table["client"].to_pylist()], start, stop
