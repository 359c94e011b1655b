"""What a run keeps and shows while it goes on: callbacks and, with a folder, files, checkpoints and progress."""

import contextlib
import dataclasses
import os
import shlex
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.core import pytree
from fedjax_sim.core.errors import RunFolderError
from fedjax_sim.core.types import RoundState
from fedjax_sim.engine.device import processes
from fedjax_sim.engine.parts import Parts
from fedjax_sim.engine.store.checkpoint import Checkpoints, digests, fill
from fedjax_sim.engine.store.row_table import trim
from fedjax_sim.population.transformed import TOTALS, going_on
from fedjax_sim.runs import checksums, loggers
from fedjax_sim.runs.folder import RunFolder, read
from fedjax_sim.runs.progress import Progress
from fedjax_sim.runs.stopping import Stop
from fedjax_sim.runs.writing import writing
from fedjax_sim.simulation import fingerprint, first_state
from fedjax_sim.simulation.executor import Executor
from fedjax_sim.simulation.history import RoundMetrics
from fedjax_sim.simulation.stopwatch import Profile

Callback = Callable[[RoundMetrics], object] | loggers.Logger
"""A function of a round's metrics, or an `fs.runs.Logger`."""

CHECKPOINTS = "checkpoints"


def facts(executor: Executor) -> dict[str, Any]:
    """What a simulation is, in plain values: a run goes on only with the same."""
    parts = executor.parts
    return {
        "clients": parts.data.num_clients,
        "examples": parts.data.num_examples,
        "sizes": parts.data.checksum,
        "parameters": pytree.size(parts.model),
        "sampler": parts.sampler.name,
        "batching": dataclasses.asdict(parts.batching),
        "seed": parts.seed,
        "on_nonfinite": parts.on_nonfinite,
        "lanes": executor.lanes,
        "rounds_per_dispatch": executor.rounds_per_dispatch,
        **({"delta": parts.delta} if parts.noisy else {}),
        **({"exact": True} if parts.exact else {}),
        **({"noise_seed": parts.noise_seed} if parts.noise_seed is not None else {}),
        **({"rows": "host"} if parts.rows == "host" else {}),
    }


def save(executor: Executor, folder: Path, state: RoundState) -> None:
    """One checkpoint, on the disk when this returns."""
    state = _portable(executor.parts, state)
    if not executor.parts.multi_process or processes.first():
        with RunFolder(folder).held():
            checkpoints = Checkpoints(folder / CHECKPOINTS)
            with contextlib.closing(checkpoints):
                old = None
                if state.round in checkpoints.rounds():
                    try:
                        old = checkpoints.read(state.round)[1]
                    except RunFolderError:  # damaged, and so none
                        checkpoints.remove(state.round)
                if old is not None:
                    _check_same(folder, state, old)
                else:
                    checkpoints.save(state, _layout(executor))
                checkpoints.wait()
    if executor.parts.multi_process:
        processes.wait("saved")


class Recording:
    """Records rounds: the user's callbacks hear of them first, as they may end the run, and then the run's own files.

    Of several processes the first writes and calls back. The others follow: they give their rows to checkpoints, and
    heed signals.

    Attributes:
        stopped_by: the signal that asked this process to stop after its round, or None.
        profile: what times the rounds, or None.
    """

    def __init__(
        self,
        executor: Executor,
        callbacks: Iterable[Callback],
        run_dir: Any = None,
        profiled: bool = False,
        shown: bool = False,
    ):
        self._follows = executor.parts.multi_process and not processes.first()
        callbacks = list(callbacks)
        self.executor, self.callbacks, self._may_end = executor, [] if self._follows else callbacks, bool(callbacks)
        self.folder = run_dir if isinstance(run_dir, RunFolder) or run_dir is None else RunFolder(run_dir)
        self.stopped_by: signal.Signals | None = None
        self._checkpoints: Checkpoints | None = None
        self._checksums: checksums.Checksums | None = None
        self._progress: Progress | None = None
        self._shown = shown and not self._follows
        self._saved: int | None = None
        self._ended: Stop | None = None
        self._own: list[Callback] = []
        self._profiled = profiled and not self._follows
        self.profile: Profile | None = None

    @contextlib.contextmanager
    def of(self, state: RoundState, rounds: int) -> Iterator["Recording"]:
        """Open all that the recording needs for that many rounds from `state`; close it, whatever happens."""
        with contextlib.ExitStack() as stack:
            config: dict[str, Any] = {"simulation": facts(self.executor)}
            whole = None if self.folder is None else _portable(self.executor.parts, state)
            if self.folder is not None and not self._follows:
                stack.enter_context(self.folder.held())
                self._open_folder(self.folder, whole, rounds, stack)  # type: ignore[arg-type]
                config = read(self.folder.path).config
            for callback in self.callbacks:
                if hasattr(callback, "open"):
                    callback.open(self.folder and self.folder.path, config, state.round)  # type: ignore[union-attr]
                    stack.enter_context(_closing(callback))
            if self.folder is not None:
                if self.executor.parts.multi_process:
                    self._saved = state.round if processes.told(self._saved is not None) else None
                if self._saved is None:
                    self._save(whole)  # type: ignore[arg-type]
            if self._shown and (rounds or self.folder is not None):
                title, quiet = ("", None) if self.folder is None else (self.folder.path.name, 0.0)
                self._progress = stack.enter_context(Progress(title, state.round, rounds, quiet=quiet))
            if self.folder is not None:
                stack.enter_context(self._heeding_signals())
                if self._profiled:
                    self.profile = stack.enter_context(_closing(Profile(self.executor, self.folder.path, rounds)))
            del whole
            yield self

    def _open_folder(self, folder: RunFolder, state: RoundState, rounds: int, stack: contextlib.ExitStack) -> None:
        path = folder.path
        checkpoints = stack.enter_context(_closing(Checkpoints(path / CHECKPOINTS)))
        damaged, good = [], None
        for found in checkpoints.newest():
            if not isinstance(found, RunFolderError):
                good = found
                break
            damaged.append(found)
        if good is not None:
            _check_same(path, state, good[2])
            fingerprint.check(path, good[2], self.executor.fingerprint, facts(self.executor), allow=None)
            checkpoints.same(state, good[2])
        elif damaged:
            raise RunFolderError(f"{path} holds no checkpoint that can be read: {damaged[0]}. Choose another folder.")
        devices = self.executor.parts.devices
        described = {
            "platform": devices[0].platform,
            "kind": getattr(devices[0], "device_kind", devices[0].platform),
            "count": len(devices),
        }
        checksums.warn_of_damage(path)
        folder.describe(facts(self.executor), described, state.round + rounds, self.executor.parts.data.about)
        for round in checkpoints.rounds():
            if round > state.round:
                checkpoints.remove(round)
        folder.truncate(state.round)
        self._saved = None if good is None else state.round
        self._checkpoints = checkpoints
        self._own = [
            loggers.JsonLines(),
            loggers.ClientTable(self.executor.parts.data.client_ids),
            loggers.TensorBoard(),
        ]
        self.callbacks = [*self._own, *self.callbacks]
        if not (path / "partition.npz").exists():
            from fedjax_sim.runs.client_plots import label_counts

            with writing(path):
                with open(path / ".partition.npz.new", "wb") as file:
                    np.savez(file, **label_counts(self.executor.parts.data))  # type: ignore[arg-type]
                os.replace(path / ".partition.npz.new", path / "partition.npz")
        self._checksums = checksums.Checksums(path)
        self._checksums.keep()

    @contextlib.contextmanager
    def _heeding_signals(self) -> Iterator[None]:
        """Ctrl-C or SIGTERM ends the run after its round; a second one ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: Any) -> None:
            if self.stopped_by is not None:
                raise KeyboardInterrupt
            self.stopped_by = signal.Signals(number)
            os.write(2, b"\nstopping after this round; once more to stop at once\n")  # safe inside a handler

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def stopping(self) -> bool:
        """Whether the run is to stop, as this process or another was told."""
        stop = self.stopped_by is not None
        return processes.any_of(stop) if self.executor.parts.multi_process and self.folder is not None else stop

    @property
    def ended(self) -> str | None:
        """Why a callback ended the run, in this process or in the first; None while none did."""
        ended = self._ended
        if self.executor.parts.multi_process and self._may_end and processes.told(int(ended is not None)):
            ended = ended or Stop("a callback of the first process did it")
        return None if ended is None else ended.reason

    def note(self, message: str) -> None:
        """A line that stays."""
        if self._progress is not None:
            self._progress.note(message)

    def say(self, message: str) -> None:
        """What is going on now."""
        if self._progress is not None:
            self._progress.say(message)

    def call_back(self, metrics: RoundMetrics) -> None:
        """Tell the user's callbacks of a finished round."""
        for callback in self.callbacks[len(self._own) :]:
            said = callback(metrics)
            if isinstance(said, Stop):
                self._ended = self._ended or said

    def round(self, metrics: RoundMetrics) -> None:
        """Write a finished round down, and show it."""
        for callback in self._own:
            callback(metrics)
        if self._progress is not None:
            self._progress.round(metrics)

    def checkpoint(self, state: RoundState) -> None:
        """Save a state whose rounds were all recorded."""
        if self.folder is not None and self._saved != state.round:
            self._save(_portable(self.executor.parts, state))

    def _save(self, state: RoundState) -> None:
        if self._checkpoints is not None:
            self.folder.check_there()  # type: ignore[union-attr]
            for callback in self.callbacks:
                if hasattr(callback, "flush"):
                    callback.flush()  # type: ignore[union-attr]
            if self._checksums is not None:
                self._checksums.keep()
            self._checkpoints.save(state, _layout(self.executor))
        self._saved = state.round

    def wait(self) -> None:
        """Until the last checkpoint is on the disk."""
        if self._checkpoints is not None:
            saved, self._saved = self._saved, None
            self._checkpoints.wait()
            self._saved = saved

    def finish(self, state: RoundState) -> None:
        """The last state is safe, and what the folder shows is drawn, while the checkpoint is being written."""
        self.checkpoint(state)
        if self._checkpoints is None or self.folder is None:
            return
        self.say("drawing")
        from fedjax_sim.runs import plots

        try:
            plots.save_all(read(self.folder.path))
        except Exception as error:  # the run itself is whole
            self.note(f"the plots could not be drawn: {error}")
        self.wait()
        self.say("")

    def how_to_go_on(self, state: RoundState) -> str:
        """Where the state is, for a message."""
        here = "The state after the last finished round is this exception's .state."
        if self.folder is None:
            return here
        path, saved = self.folder.path, state.round
        command = (
            f"fedjax-sim resume {shlex.quote(str(path))}"
            if self.folder.experiment
            else f"state = sim.restore({str(path)!r})"
        )
        if self._saved != state.round:  # it could not be saved; an earlier one stays
            saved = max([int(each.name) for each in (path / CHECKPOINTS).glob("*") if each.name.isdigit()], default=0)
            if not saved:
                return here
        kept = f"{saved} {'round is' if saved == 1 else 'rounds are'} saved in {path}; to go on: {command}"
        return kept if saved == state.round or self.folder.experiment else f"{here} {kept}"


@contextlib.contextmanager
def _closing(what: Any) -> Iterator[Any]:
    """Close it at the end; what goes wrong then does not hide an error that ended the run."""
    try:
        yield what
    except BaseException as error:
        try:
            what.close()
        except Exception as another:
            error.add_note(f"While {type(what).__name__} was being closed: {another}")
        raise
    what.close()


def _portable(parts: Parts, state: RoundState) -> RoundState:
    """The state as it would be on any number of devices; of several processes, in the first."""
    if parts.rows == "host":
        return state
    rows = processes.gathered(state.rows) if parts.multi_process else state.rows
    return dataclasses.replace(state, rows=trim(rows, parts.data.num_clients))


def _layout(executor: Executor) -> dict[str, Any]:
    layout = {"devices": len(executor.parts.devices), "lanes": executor.lanes}
    return {"simulation": facts(executor), "layout": layout, "fingerprint": executor.fingerprint}


def _check_same(path: Path, state: RoundState, record: dict[str, Any]) -> None:
    """The state is the checkpoint's."""
    if record["round"] != state.round:
        raise RunFolderError(
            f"{path} holds a run of {record['round']} rounds, and this state is at round {state.round}: go on from "
            f"state = sim.restore({str(path)!r}), or choose another folder."
        )
    if record["digests"] != digests(state):
        raise RunFolderError(
            f"{path} holds another state of round {state.round}: go on from state = sim.restore({str(path)!r}), or "
            "choose another folder."
        )


def restore(
    executor: Executor, folder: Path, round: int | None, allow: Iterable[str], or_init: bool = False
) -> RoundState:
    """`sim.restore`."""
    checkpoints = Checkpoints(folder / CHECKPOINTS, read_only=True)
    with contextlib.closing(checkpoints):
        rounds = checkpoints.rounds()
        if not rounds and or_init and round is None:
            return first_state.begin(executor.parts, executor.first, None)
        if not rounds:
            raise RunFolderError(f"{folder} holds no checkpoint.")
        if round is not None:
            if round not in rounds:
                raise RunFolderError(f"{folder} holds checkpoints of rounds {rounds[::-1]}, and none of round {round}.")
            leaves, record = checkpoints.read(round)
            return _restored(executor, checkpoints, leaves, record, allow)
        damaged = []
        for found in checkpoints.newest():
            if isinstance(found, RunFolderError):
                damaged.append(found)
                continue
            if damaged:
                warnings.warn(f"{damaged[0]}. Going on from round {found[0]}.", stacklevel=3)
            return _restored(executor, checkpoints, *found[1:], allow)
    raise RunFolderError(f"{folder} holds no checkpoint that can be read: {damaged[0]}.")


def _restored(
    executor: Executor,
    checkpoints: Checkpoints,
    leaves: dict[str, np.ndarray],
    record: dict[str, Any],
    allow: Iterable[str],
) -> RoundState:
    """The state of a checkpoint, where rounds leave it."""
    parts = executor.parts
    others = fingerprint.check(checkpoints.folder.parent, record, executor.fingerprint, facts(executor), allow)
    if record["layout"]["devices"] == len(parts.devices):
        executor.use(record["layout"]["lanes"])
    like = first_state.blank(parts)
    if others & {"sampler", "data"}:  # its state may be of another population
        own = ("['sampler']", "['versions']")
        totals = {name: leaves.get(f"['sampler']['{name}']") for name in TOTALS}
        leaves = {name: leaf for name, leaf in leaves.items() if not name.startswith(own)}
        state = fill(dataclasses.replace(like, sampler=None, versions=None), leaves, record)
        state = dataclasses.replace(state, sampler=going_on(parts.sampler, like.sampler, totals))
    else:
        state = fill(like, leaves, record)
    seeds = {name: getattr(parts, name) for name in ("seed", "noise_seed") if name in others}
    state = dataclasses.replace(state, **seeds)
    if parts.rows == "host":
        rows = checkpoints.rows(state.rows, parts.data.num_clients, leaves, record)
        state = dataclasses.replace(state, rows=rows)
    return first_state.placed(parts, state)
