"""Loggers: what keeps a run's rounds, on disk or elsewhere. A logger is a callback that may also be told more."""

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fedjax_sim.core.arrays import Array, Scalar
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.shown import call
from fedjax_sim.runs.writing import Json, check_text, write_table, writing

Value = Scalar | Array
"""Of a metric: a number, or a histogram."""


class Round(Protocol):
    """What loggers see of a round: an `fs.RoundMetrics`."""

    round: int

    def __getitem__(self, name: str) -> Value: ...
    def __iter__(self) -> Iterator[str]: ...
    def items(self) -> Iterable[tuple[str, Value]]: ...
    def clients(self, name: str) -> np.ndarray: ...
    def per_client(self) -> Mapping[str, object]: ...
    @property
    def client_ids(self) -> np.ndarray: ...


class Logger(Protocol):
    """A callback with a beginning and an end; pass it in `callbacks=`, as any function of a round's metrics.

    Example:
        >>> import fedjax_sim as fs
        >>> class Printer:
        ...     def open(self, folder, config, round):
        ...         print("from round", round)
        ...
        ...     def __call__(self, metrics):
        ...         print(metrics.round, metrics["client/loss"])
        ...
        ...     def flush(self): ...
        ...     def close(self):
        ...         print("done")
        >>> import jax.numpy as jnp, optax
        >>> task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> data = fs.data.FederatedData({"x": jnp.arange(4.0)}, offsets=[0, 2, 4])
        >>> sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.1)), data, fs.sampler.uniform(2), fs.Batching(2))
        >>> _ = sim.run(sim.init(), rounds=1, callbacks=[Printer()])
        from round 0
        0 3.5
        done
    """

    def open(self, folder: Path | None, config: Mapping[str, Json], round: int) -> None:
        """Before the first round; `folder` is the run's, or None, and `config` what config.json holds."""
        ...

    def __call__(self, metrics: Any) -> None:
        """A finished round, with its evaluation if it has one."""
        ...

    def flush(self) -> None:
        """Before a checkpoint: what was logged must be safe when this returns."""
        ...

    def close(self) -> None:
        """After the last round, also of a run that failed."""
        ...


class JsonLines:
    """metrics.jsonl, a line a round, and timing.jsonl beside it.

    Example:
        >>> import fedjax_sim as fs
        >>> logger = fs.runs.JsonLines()  # a run with a folder has one already
    """

    def __repr__(self) -> str:
        return "JsonLines()"

    def open(self, folder: Path | None, config: Mapping[str, Json], round: int) -> None:
        assert folder is not None
        self._path, self._begin = folder, time.perf_counter()
        with writing(folder):
            self._files = [open(folder / name, "a") for name in ("metrics.jsonl", "timing.jsonl")]  # noqa: SIM115

    def __call__(self, metrics: Round) -> None:
        check_text("a metric's name", list(metrics))
        line = {"round": metrics.round, **{name: plain(value) for name, value in metrics.items()}}
        timing = {"round": metrics.round, "seconds": round(time.perf_counter() - self._begin, 4)}
        with writing(self._path):
            # 1e999 is a number that JSON allows, and which readers take for infinity.
            self._files[0].write(re.sub(r"(?<=[\s\[-])Infinity(?=[,\]}])", "1e999", json.dumps(line)) + "\n")
            self._files[1].write(json.dumps(timing) + "\n")
            for file in self._files:
                file.flush()

    def flush(self) -> None:
        with writing(self._path):
            for file in self._files:
                file.flush()
                os.fsync(file.fileno())

    def close(self) -> None:
        with writing(self._path), contextlib.ExitStack() as stack:
            for file in self._files:
                stack.callback(file.close)


class ClientTable:
    """`clients/*.parquet`: per-client metrics, a row a client and round, a file a checkpoint.

    Args:
        names: [K] the clients' names, or None for their numbers.

    Example:
        >>> import fedjax_sim as fs
        >>> logger = fs.runs.ClientTable(names=["Ann", "Bob"])  # a run with a folder has one already
    """

    def __init__(self, names: Sequence[object] | np.ndarray | None = None):
        self._names = names
        self._rounds: list[Round] = []

    def __repr__(self) -> str:
        return "ClientTable()"

    def open(self, folder: Path | None, config: Mapping[str, Json], round: int) -> None:
        assert folder is not None
        self._path = folder / "clients"
        with writing(self._path):
            self._path.mkdir(exist_ok=True)

    def __call__(self, metrics: Round) -> None:
        self._rounds.append(metrics)

    def flush(self) -> None:
        if not self._rounds:
            return
        import pyarrow

        ids = [metrics.client_ids for metrics in self._rounds]
        client = np.concatenate(ids).astype(np.int64)
        columns = {
            "round": np.repeat([metrics.round for metrics in self._rounds], [len(each) for each in ids]),
            "client": client,
            "name": [_text(k if self._names is None else self._names[k]) for k in client.tolist()],
        }
        held = [set(metrics.per_client()) for metrics in self._rounds]
        for name in dict.fromkeys(name for metrics in self._rounds for name in metrics.per_client()):
            parts = zip(self._rounds, held, ids, strict=True)
            values = np.concatenate([m.clients(name) if name in of else np.full(len(k), np.nan) for m, of, k in parts])
            if values.ndim == 1:
                columns[name] = values
        write_table(self._path / f"{self._rounds[0].round:08d}.parquet", pyarrow.table(columns))
        self._rounds.clear()

    def close(self) -> None:
        self.flush()


def _text(name: object) -> str:
    """A client's name, with half characters, which no table takes, written out."""
    return str(name).encode("utf-8", "backslashreplace").decode()


class TensorBoard:
    """TensorBoard events of every number, by tensorboardX.

    Example:
        >>> import fedjax_sim as fs
        >>> logger = fs.runs.TensorBoard()  # a run with a folder has one already
    """

    def __repr__(self) -> str:
        return "TensorBoard()"

    def open(self, folder: Path | None, config: Mapping[str, Json], round: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog  # type: ignore[attr-defined]

        assert folder is not None
        self._path = folder / "tensorboard"
        # SummaryWriter would write in a thread: lose what was logged, and on a full disk wait for ever.
        with writing(self._path):
            self._path.mkdir(exist_ok=True)
            self._events = EventsWriter(str(self._path / "events"), f".{round:08d}.{os.getpid()}")
            if round:  # hide what an earlier process logged of the rounds that are run again
                self._write(step=round, session_log=SessionLog(status=SessionLog.START))

    def __call__(self, metrics: Round) -> None:
        from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[attr-defined]

        numbers = {name: value for name, value in metrics.items() if np.ndim(value) == 0}
        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in numbers.items()]
        with writing(self._path):
            self._write(step=metrics.round, summary=Summary(value=values))

    def flush(self) -> None:
        with writing(self._path):
            self._events.flush()

    def close(self) -> None:
        with writing(self._path):
            self._events.close()

    def _write(self, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]

        self._events.write_event(Event(wall_time=time.time(), **content))


class WandB:
    """Weights & Biases. Its mode is its own affair: `mode="offline"`, or WANDB_MODE, keeps everything in the folder.

    A run that goes on continues the same W&B run, whose id is kept in the folder's wandb.json.

    Args:
        options: what `wandb.init` takes: project, name, group, mode ...

    Example:
        >>> import fedjax_sim as fs
        >>> def train(sim, folder):
        ...     logger = fs.runs.WandB(project="digits", mode="offline")
        ...     return sim.run(sim.init(), rounds=100, run_dir=folder, callbacks=[logger])
    """

    def __init__(self, **options: Any):
        try:
            import wandb
        except ImportError as error:
            raise ArgumentError('fs.runs.WandB needs wandb: pip install "fedjax-sim[wandb]".') from error
        self._wandb, self._options = wandb, options

    def __repr__(self) -> str:
        return call("WandB", self._options)

    def open(self, folder: Path | None, config: Mapping[str, Json], round: int) -> None:
        options = {"config": dict(config), **self._options}
        kept = None if folder is None else folder / "wandb.json"
        if kept is not None:
            options.setdefault("dir", str(folder))
            if kept.exists():
                options.update(id=json.loads(kept.read_text())["id"], resume="allow")
        self._run = self._wandb.init(**options)
        if kept is not None:
            with writing(kept):
                kept.write_text(json.dumps({"id": self._run.id}) + "\n")

    def __call__(self, metrics: Round) -> None:
        numbers = {name: value for name, value in metrics.items() if np.ndim(value) == 0}
        self._run.log({"round": metrics.round, **numbers}, step=metrics.round)

    def flush(self) -> None:
        """W&B writes behind, in a process of its own."""

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow; offline, in the folder `mlruns` of the run's, unless a tracking server or another place is named.

    `mlflow ui --backend-store-uri RUN/mlruns` shows it. Parameters are what config.json says of configuration and
    simulation. A run that goes on continues the same MLflow run, whose id is kept in the folder's mlflow.json; rounds
    that are run again stand there twice, with equal numbers.

    Args:
        experiment: the MLflow experiment, made if need be.
        run_name: None for the folder's name.
        tracking_uri: None for MLFLOW_TRACKING_URI, or else files. For files MLflow wants MLFLOW_ALLOW_FILE_STORE=true
            in the environment, which is set where nothing is.
        tags: of the run.

    Raises:
        ArgumentError: MLflow is not installed.

    Example:
        >>> import fedjax_sim as fs
        >>> def train(sim, folder):
        ...     return sim.run(sim.init(), rounds=100, run_dir=folder, callbacks=[fs.runs.MLflow("digits")])
    """

    def __init__(
        self,
        experiment: str = "fedjax-sim",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: Mapping[str, str] | None = None,
    ):
        try:
            import mlflow
        except ImportError as error:
            raise ArgumentError('fs.runs.MLflow needs mlflow-skinny: pip install "fedjax-sim[mlflow]".') from error
        self._mlflow, self._experiment, self._name = mlflow, experiment, run_name
        self._uri, self._tags = tracking_uri, dict(tags or {})

    def __repr__(self) -> str:
        return call("MLflow", {"experiment": self._experiment, "run_name": self._name, "tracking_uri": self._uri})

    def open(self, folder: Path | None, config: Mapping[str, Json], round: int) -> None:
        uri = self._uri or os.environ.get("MLFLOW_TRACKING_URI") or ((folder or Path()) / "mlruns").absolute().as_uri()
        if uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client = self._mlflow.MlflowClient(tracking_uri=uri)
        kept = None if folder is None else folder / "mlflow.json"
        if kept is not None and kept.exists():
            self._id = json.loads(kept.read_text())["id"]
            self._client.set_terminated(self._id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(self._experiment)
        name = self._name or (folder.name if folder else None)
        self._id = self._client.create_run(experiment, run_name=name, tags=self._tags).info.run_id
        told = {**_flat("config", config.get("config") or {}), **_flat("simulation", config.get("simulation") or {})}
        params = [self._mlflow.entities.Param(_allowed(name), str(value)[:500]) for name, value in told.items()]
        for first in range(0, len(params), 100):  # as many as it takes at once
            self._client.log_batch(self._id, params=params[first : first + 100])
        if kept is not None:
            with writing(kept):
                kept.write_text(json.dumps({"id": self._id}) + "\n")

    def __call__(self, metrics: Round) -> None:
        now, make = int(1000 * time.time()), self._mlflow.entities.Metric
        numbers = {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0}
        logged = [make(_allowed(name), value, now, metrics.round) for name, value in numbers.items()]
        self._client.log_batch(self._id, metrics=logged)

    def flush(self) -> None:
        """Each round is written when it is logged."""

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _allowed(name: str) -> str:
    """A name with the characters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _flat(name: str, value: Json) -> dict[str, Json]:
    """The values of dicts in dicts, by their path."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {path: each for key, inner in value.items() for path, each in _flat(f"{name}.{key}", inner).items()}


def plain(value: Any) -> Json:
    """A metric for JSON: numbers, lists; None for NaN."""
    if hasattr(value, "tolist"):  # of NumPy or JAX
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
