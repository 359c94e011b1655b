"""Checkpoints of a run, by Orbax: a round's whole state in one commit, with digests that tell damage."""

import contextlib
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import RunFolderError
from fedjax_sim.core.types import ClientRows, RoundState
from fedjax_sim.engine.store.row_archive import RowArchive
from fedjax_sim.engine.store.row_file import HostRows

Record = dict[str, Any]
"""What a checkpoint says of itself: `round`, `seed`, `noise_seed`, `ledger`, `digests`, `names`, `empty`, `layout`,
`simulation`, `slots`, `fingerprint`, and `digest`, of all these."""

_SINCE_DIGESTS = ("fingerprint", "digest")

_PARTS = ("server", "aggregator", "sampler", "rows", "versions")
_HOST_ROWS = "['rows']"


class Checkpoints:
    """The checkpoints of a folder, named by round; the newest three are kept.

    A save copies the state to the host and returns; files are written behind, in a temporary folder that is renamed
    when it is whole. One that was interrupted is no checkpoint.

    Args:
        folder: where they are; made when first written to.
        read_only: to look, and change nothing.
    """

    KEPT = 3

    def __init__(self, folder: Path, read_only: bool = False):
        self.folder, self._manager, self._writing = Path(folder), None, "a checkpoint"
        self._rows, self._knows = RowArchive(self.folder.with_name("rows.bin")), False
        if read_only and not self.folder.is_dir():
            return
        from orbax import checkpoint as ocp

        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(_not_from_orbax)
        self._speak = _hushed()
        alone, here = jax.process_count() == 1, jax.process_index()  # of several processes, each does this for itself
        several = {"primary_host": here, "active_processes": {here}, "barrier_sync_key_prefix": str(here)}
        processes = ocp.options.MultiprocessingOptions(**({} if alone else several))
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else self.KEPT,
            create=alone and not read_only,
            cleanup_tmp_directories=not read_only,
            multiprocessing_options=processes,
        )
        handlers = {
            "state": ocp.StandardCheckpointHandler(multiprocessing_options=processes),
            "record": ocp.JsonCheckpointHandler(multiprocessing_options=processes),
        }
        with _explained(f"the checkpoints in {self.folder} cannot be opened"):
            if not read_only:
                self._clean()
            if not alone and not read_only:
                self.folder.mkdir(parents=True, exist_ok=True)
            for tries_left in (4, 3, 2, 1, 0) if read_only else (0,):
                try:
                    path = self.folder.absolute()
                    self._manager = ocp.CheckpointManager(path, options=options, item_handlers=handlers)
                    break
                except FileNotFoundError:  # a run that goes on has just removed its oldest
                    if not tries_left:
                        raise

    def _clean(self) -> None:
        """Remove what a process that died left: older checkpoints that it was deleting, and halves of new ones."""
        if self.folder.is_dir():
            found = [path for path in self.folder.iterdir() if path.is_dir()]
            whole = sorted((path for path in found if path.name.isdigit()), key=lambda path: int(path.name))
            for path in found:
                if path in whole[: -self.KEPT] or ".orbax-checkpoint-tmp" in path.name:
                    shutil.rmtree(path)

    def rounds(self) -> list[int]:
        """Rounds of the whole checkpoints, newest first; damage is found on reading."""
        return sorted(self._manager.all_steps(), reverse=True) if self._manager else []

    def save(self, state: RoundState, facts: Mapping[str, Any]) -> None:
        """Begin to save a state; `facts` join its record.

        Raises:
            RunFolderError: this save or the one before it could not be written.
        """
        self.wait()
        from orbax import checkpoint as ocp

        self._writing = f"the checkpoint of round {state.round}"
        if isinstance(state.rows, HostRows):  # first, as it learns their CRCs
            facts = {**facts, "slots": self._save_rows(state)}
        leaves = host_leaves(state)
        stored = {str(i): leaf for i, leaf in enumerate(leaves.values()) if leaf.size}  # Orbax saves none of size zero
        record = {
            "round": state.round,
            "seed": state.seed,
            "ledger": state.ledger,
            "noise_seed": state.noise_seed,
            "digests": _digests(leaves),
            "names": list(leaves),  # those that users choose are no names of files
            "empty": {name: [str(leaf.dtype), leaf.shape] for name, leaf in leaves.items() if not leaf.size},
            **facts,
        }
        record["digest"] = _digest_of_record(record)
        items = ocp.args.Composite(state=ocp.args.StandardSave(stored), record=ocp.args.JsonSave(record))
        with self._trying(f"{self._writing} in {self.folder} could not be written"):
            self._manager.save(state.round, args=items, force=True)  # type: ignore[union-attr]

    def _save_rows(self, state: RoundState) -> list[int]:
        """Write rows of the host's beside the checkpoints: their slots."""
        kept = self.rounds()
        if not self._knows:
            for round in kept:
                with contextlib.suppress(RunFolderError):  # a damaged one is never read
                    self._rows.know(round, self._record(round).get("slots", []))
            self._knows = True
        self._rows.forget(kept)
        with self._trying(f"{self._writing} in {self.folder} could not be written"):
            return self._rows.save(state.round, state.rows)

    def same(self, state: RoundState, record: Record) -> None:
        """A state is the one of that record: its rows need not be written again."""
        if isinstance(state.rows, HostRows):
            self._rows.same(state.rows, record["slots"])

    def rows(self, first: ClientRows, num_clients: int, leaves: dict[str, np.ndarray], record: Record) -> HostRows:
        """Rows on the host that were saved with a checkpoint."""
        found = _index(leaves)
        return self._rows.load(first, num_clients, found["clients"], record["slots"], found["crc"])

    def wait(self) -> None:
        """Until what was saved is on the disk.

        Raises:
            RunFolderError: it could not be written.
        """
        if self._manager:
            with self._trying(f"{self._writing} in {self.folder} could not be written"):
                self._manager.wait_until_finished()

    def read(self, round: int) -> tuple[dict[str, np.ndarray], Record]:
        """The leaves of a checkpoint, by path, and its record.

        Raises:
            RunFolderError: it is damaged.
        """
        from orbax import checkpoint as ocp

        record = self._record(round)
        with self._trying(f"the checkpoint of round {round} in {self.folder} is damaged"):
            items = ocp.args.Composite(state=ocp.args.StandardRestore())
            leaves = self._manager.restore(round, args=items)["state"]  # type: ignore[union-attr]
            names = dict(enumerate(record["names"])) if "names" in record else {}
            leaves = {names[int(name)] if names else name: np.asarray(leaf) for name, leaf in leaves.items()}
            leaves |= {name: np.zeros(shape, jnp.dtype(dtype)) for name, (dtype, shape) in record["empty"].items()}
            if _digests(leaves) != record["digests"]:
                raise ValueError("it does not hold what was saved")
            if "slots" in record:
                size = sum(leaf.nbytes for name, leaf in leaves.items() if name.startswith(f"{_HOST_ROWS}['first']"))
                self._rows.check(size, record["slots"], _index(leaves)["crc"])
        return leaves, record

    def _record(self, round: int) -> Record:
        from orbax import checkpoint as ocp

        with self._trying(f"the checkpoint of round {round} in {self.folder} is damaged"):
            items = ocp.args.Composite(record=ocp.args.JsonRestore())
            record = self._manager.restore(round, args=items)["record"]  # type: ignore[union-attr]
            _check_record(record, round)
            return record

    def newest(self) -> Iterator[tuple[int, dict[str, np.ndarray], Record] | RunFolderError]:
        """From the newest on: a whole checkpoint's round, leaves and record, or what is wrong with it."""
        for round in self.rounds():
            try:
                leaves, record = self.read(round)
            except RunFolderError as error:
                yield error
            else:
                yield round, leaves, record

    def remove(self, round: int) -> None:
        """Delete a checkpoint."""
        with self._trying(f"the checkpoint of round {round} in {self.folder} cannot be removed"):
            self._manager.delete(round)  # type: ignore[union-attr]

    def close(self) -> None:
        """Wait for what is being written, and let go of the folder."""
        if self._manager:
            with self._trying(f"{self._writing} in {self.folder} could not be written"):
                self._manager.close()
            self._speak()

    @contextlib.contextmanager
    def _trying(self, what: str) -> Iterator[None]:
        try:
            with _explained(what):
                yield
        except RunFolderError:
            self._speak = lambda: None  # what else had begun may end at any time
            raise


def host_leaves(state: RoundState) -> dict[str, np.ndarray]:
    """Copies on the host of a state's leaves, by path; of rows on the host, which clients have any, and CRCs."""
    tree = {part: getattr(state, part) for part in _PARTS}
    if isinstance(state.rows, HostRows):
        used = state.rows.used()
        crcs = np.array([row.crc() for row in used.values()], np.uint32)
        tree["rows"] = {"first": state.rows.first, "clients": np.array(list(used), np.int64), "crc": crcs}
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path) for path, _ in paths]
    fetched = jax.device_get([_plain(leaf) for _, leaf in paths])
    return {name: np.array(leaf, copy=True) for name, leaf in zip(names, fetched, strict=True)}


def _index(leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of rows on the host: which clients have one, and the CRCs."""
    return {name: leaves[f"{_HOST_ROWS}['{name}']"] for name in ("clients", "crc")}


def fill(like: RoundState, leaves: dict[str, np.ndarray], record: Record) -> RoundState:
    """The state of a checkpoint, on the host, in the structure of `like`, whose leaves may be shapes.

    Of rows on the host it holds the first one alone.

    Raises:
        RunFolderError: the checkpoint holds something else.
    """
    tree = {part: getattr(like, part) for part in _PARTS}
    if "slots" in record:
        tree["rows"] = {"first": like.rows, **_index(leaves)}
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    expected = {jax.tree_util.keystr(path): leaf for path, leaf in paths}
    if expected.keys() != leaves.keys():
        missing, more = sorted(expected.keys() - leaves.keys()), sorted(leaves.keys() - expected.keys())
        raise RunFolderError(
            f"the checkpoint is of another algorithm, model or sampler: it lacks {missing[:3]} and has {more[:3]} "
            "besides. Build the simulation as it was built then."
        )
    filled = [_like(name, leaf, leaves[name]) for name, leaf in expected.items()]
    parts = jax.tree_util.tree_unflatten(structure, filled)
    if "slots" in record:
        parts["rows"] = parts["rows"]["first"]
    known = {"round": int(record["round"]), "seed": int(record["seed"]), "ledger": record["ledger"]}
    return RoundState(**known, noise_seed=record.get("noise_seed"), **parts)


def _like(name: str, like: PyTree, leaf: np.ndarray) -> Any:
    if isinstance(like, bool | int | float):
        return type(like)(leaf)
    if _is_key(like):
        impl = jax.random.key_impl(jnp.empty((), like.dtype))  # `like` may be a shape
        return jax.random.wrap_key_data(jnp.asarray(leaf), impl=impl)
    if leaf.shape != like.shape or leaf.dtype != like.dtype:
        raise RunFolderError(
            f"the checkpoint's {name} is {leaf.dtype}{list(leaf.shape)}: this simulation's is "
            f"{like.dtype}{list(like.shape)}. Build the simulation as it was built then."
        )
    return leaf


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def digests(state: RoundState) -> dict[str, str]:
    """Digests of a state's leaves, by path: those of its checkpoint's record."""
    return _digests(host_leaves(state))


def _digests(leaves: dict[str, np.ndarray]) -> dict[str, str]:
    return {name: _digest(leaf) for name, leaf in leaves.items()}


def _digest_of_record(record: Record) -> str:
    """Of all that it says but the digest itself."""
    said = {name: value for name, value in record.items() if name != "digest"}
    return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).hexdigest()


def _check_record(record: Any, round: int) -> None:
    """Raise `ValueError` unless it is whole, and of that round."""
    if not isinstance(record, dict):
        raise ValueError("its record is none")
    if any(name in record for name in _SINCE_DIGESTS) and _digest_of_record(record) != record.get("digest"):
        raise ValueError("its record is not what was saved")
    count = lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0
    words = lambda value: isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
    seed = lambda value: count(value) and value < 2**32
    layout, slots = record.get("layout"), record.get("slots", [])
    fits = {
        "round": count(record.get("round")),
        "seed": seed(record.get("seed")),
        "noise_seed": record.get("noise_seed") is None or seed(record["noise_seed"]),
        "ledger": _is_ledger(record.get("ledger", 0)),
        "digests": words(record.get("digests")),
        "names": words(dict(enumerate(record.get("names", [])))),
        "empty": isinstance(record.get("empty"), dict),
        "simulation": isinstance(record.get("simulation"), dict),
        "layout": isinstance(layout, dict) and all(count(layout.get(name)) for name in ("devices", "lanes")),
        "slots": isinstance(slots, list) and all(map(count, slots)),
        "fingerprint": isinstance(record.get("fingerprint", {}), dict),
    }
    if wrong := [name for name, fit in fits.items() if not fit]:
        raise ValueError(f"its record has no {', no '.join(wrong)} that can be")
    if record["round"] != round:
        raise ValueError(f"it is of round {record['round']}")


def _is_ledger(value: PyTree) -> bool:
    """Entries, as `fedjax_sim.simulation.ledger` has them; or what earlier versions kept."""
    return value is None or isinstance(value, dict) or (isinstance(value, list) and all(type(e) is dict for e in value))


def _digest(leaf: np.ndarray) -> str:
    """Of dtype, shape and bytes."""
    digest = hashlib.blake2b(f"{leaf.dtype}{leaf.shape}".encode(), digest_size=16)
    digest.update(leaf.tobytes())
    return digest.hexdigest()


def _not_from_orbax(record: logging.LogRecord) -> bool:
    """Its failures are raised as `RunFolderError`s; their tracebacks need not be logged as well."""
    return "orbax" not in Path(record.pathname).parts and ".orbax-checkpoint-tmp" not in record.getMessage()


def _hushed() -> Callable[[], None]:
    """After a failed save, writes that end later find their event loop closed, and would print it; undone by a call."""
    before = sys.unraisablehook

    def hook(found: Any) -> None:
        if str(found.exc_value) != "Event loop is closed":
            before(found)

    def undo() -> None:
        if sys.unraisablehook is hook:
            sys.unraisablehook = before

    sys.unraisablehook = hook
    return undo


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Whatever Orbax and the disk raise becomes a `RunFolderError` that says what was tried."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RunFolderError(f"{what}: {reason}") from error
