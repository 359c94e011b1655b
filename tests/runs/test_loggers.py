"""Loggers: what they write is read back by other means."""

import functools
import glob
import json
import os
import struct
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pyarrow import parquet

import fedjax_sim as fs
from tests.engine import toys


class Metrics(dict):
    """A round's metrics, made up."""

    def __init__(self, round, values=(), **clients):
        super().__init__(values)
        self.round, self._clients = round, clients
        self.client_ids = np.asarray(clients.pop("ids", ()), np.int32)

    def per_client(self):
        return {f"client/{name}": None for name in self._clients}

    def clients(self, name):
        return np.asarray(self._clients[name.removeprefix("client/")])


def strict(line: str) -> dict:
    """A JSON parser that knows no NaN and no Infinity."""

    def refuse(constant):
        raise ValueError(constant)

    return json.loads(line, parse_constant=refuse)


def log(logger, folder: Path, *rounds, first: int = 0) -> None:
    logger.open(folder, {}, first)
    for metrics in rounds:
        logger(metrics)
    logger.flush()
    logger.close()


def simulation(sampler=None, **kwargs) -> fs.Simulation:
    data = kwargs.pop("data", toys.federation())
    return fs.Simulation(
        toys.fedavg(toys.task()), data, sampler or fs.sampler.uniform(4), fs.Batching(3), **toys.executed(**kwargs)
    )


# metrics.jsonl


def test_lines_are_strict_json_with_null_infinities_and_lists(tmp_path):
    values = {
        "client/loss": float("nan"),
        "test/high": float("inf"),
        "test/low": -np.float32("inf"),
        "client/histogram": np.array([1.0, np.nan, np.inf, -np.inf]),
        "test/jax": jnp.float32(0.1),
        "test/vector": jnp.array([1.5, jnp.nan]),
        "cohort/clients": np.int64(3),
        "test/last": np.inf,
    }
    log(fs.runs.JsonLines(), tmp_path, Metrics(0, values), Metrics(1, {"only": np.array([-np.inf])}))
    first, second = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert first == (
        '{"round": 0, "client/loss": null, "test/high": 1e999, "test/low": -1e999, '
        '"client/histogram": [1.0, null, 1e999, -1e999], "test/jax": 0.10000000149011612, '
        '"test/vector": [1.5, null], "cohort/clients": 3, "test/last": 1e999}'
    )
    assert strict(first)["client/histogram"] == [1.0, None, float("inf"), -float("inf")]
    assert strict(second) == {"round": 1, "only": [-float("inf")]}
    timing = [strict(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert [line["round"] for line in timing] == [0, 1]
    assert 0 <= timing[0]["seconds"] <= timing[1]["seconds"]


def test_lines_are_on_the_disk_when_the_round_is_over_and_are_added_to(tmp_path):
    logger = fs.runs.JsonLines()
    logger.open(tmp_path, {}, 0)
    logger(Metrics(0, {"a": 1}))
    assert (tmp_path / "metrics.jsonl").read_text() == '{"round": 0, "a": 1}\n'
    logger.close()
    log(fs.runs.JsonLines(), tmp_path, Metrics(1, {"a": 2}))
    assert (tmp_path / "metrics.jsonl").read_text() == '{"round": 0, "a": 1}\n{"round": 1, "a": 2}\n'


def test_a_run_s_lines_are_its_history_whatever_evaluate_returns(tmp_path):
    evaluated = {"test/float": 0.5, "test/jax": jnp.float32(1.25), "test/numpy": np.float64(-2), "test/nan": np.nan}
    sim = simulation()
    _, history = sim.run(sim.init(), 3, run_dir=tmp_path, evaluate=lambda params: evaluated, eval_every=2)
    lines = [strict(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for line, metrics in zip(lines, history.rounds, strict=True):
        names = [name for name in line if not name.startswith("test/")]
        assert {name: line[name] for name in names} == {"round": metrics.round} | {
            name: metrics[name] for name in metrics if not name.startswith("test/")
        }
    expected = {"test/float": 0.5, "test/jax": 1.25, "test/numpy": -2.0, "test/nan": None}
    for line, there in zip(lines, ({}, expected, expected), strict=True):
        assert {name: value for name, value in line.items() if name.startswith("test/")} == there


# clients/*.parquet


def test_the_table_has_a_row_a_client_and_round(tmp_path):
    logger = fs.runs.ClientTable(names=["Ann", "Bob", "Cid"])
    logger.open(tmp_path, {}, 4)
    logger(Metrics(4, ids=[2, 0], loss=[1.5, np.nan], histogram=[[1, 2], [3, 4]]))
    logger(Metrics(5, ids=[1], loss=[-np.inf], histogram=[[5, 6]]))
    logger.flush()
    logger(Metrics(6, ids=[], loss=[], histogram=np.zeros((0, 2))))
    logger(Metrics(7, ids=[0], loss=[2.5], histogram=[[7, 8]]))
    logger.close()
    assert sorted(path.name for path in (tmp_path / "clients").iterdir()) == ["00000004.parquet", "00000006.parquet"]
    first = parquet.read_table(tmp_path / "clients" / "00000004.parquet")
    assert [str(field.type) for field in first.schema] == ["int64", "int64", "string", "double"]
    np.testing.assert_equal(
        first.to_pydict(),
        {"round": [4, 4, 5], "client": [2, 0, 1], "name": ["Cid", "Ann", "Bob"], "client/loss": [1.5, np.nan, -np.inf]},
    )
    assert parquet.read_table(tmp_path / "clients" / "00000006.parquet").to_pylist() == [
        {"round": 7, "client": 0, "name": "Ann", "client/loss": 2.5}
    ]


def test_a_run_s_table_is_what_its_rounds_say_of_their_clients(tmp_path):
    names = [f"client {k}" for k in range(toys.NUM_CLIENTS)]
    plain = toys.federation()
    data = fs.data.FederatedData(plain.arrays, plain.offsets, client_ids=names)
    cohorts = [[0, 1, 2], [3, 5, 1], [4, 0, 11], [0, 1, 2], [3, 5, 1]]  # client 1 holds nothing
    sim = simulation(fs.sampler.fixed(cohorts), data=data)
    _, history = sim.run(sim.init(), 5, run_dir=tmp_path, checkpoint_every=2)
    assert sorted(path.stem for path in (tmp_path / "clients").iterdir()) == ["00000000", "00000002", "00000004"]
    table = fs.runs.read(tmp_path).clients()
    bits = ["aggregate/downlink_bits", "aggregate/uplink_bits"]
    assert list(table) == ["round", "client", "name", *bits, "client/loss", "client/size"]
    assert table["round"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert table["client"].tolist() == [0, 1, 2, 3, 5, 1, 4, 0, 11, 0, 1, 2, 3, 5, 1]
    assert table["name"].tolist() == [f"client {k}" for k in table["client"]]
    for name in ("client/loss", "client/size"):
        expected = np.concatenate([metrics.clients(name) for metrics in history.rounds])
        np.testing.assert_array_equal(table[name], expected)
        np.testing.assert_array_equal(np.isnan(table[name]), table["client"] == 1)


def test_without_names_clients_are_called_by_their_numbers(tmp_path):
    log(fs.runs.ClientTable(), tmp_path, Metrics(0, ids=[7], loss=[1.0]))
    assert parquet.read_table(tmp_path / "clients" / "00000000.parquet")["name"].to_pylist() == ["7"]


def test_a_metric_that_is_new_after_a_resume_is_nan_before(tmp_path):
    log(fs.runs.ClientTable(), tmp_path, Metrics(0, ids=[7], loss=[1.0]))
    log(fs.runs.ClientTable(), tmp_path, Metrics(1, ids=[8], loss=[2.0], other=[3.0]), first=1)
    (tmp_path / "config.json").write_text('{"format": 1}')
    table = fs.runs.read(tmp_path).clients()
    np.testing.assert_equal(table["client/other"], [np.nan, 3.0])


# TensorBoard


def events(folder: Path) -> list[list]:
    """The events of each file, in the files' order: the format's framing is taken apart by hand."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted((folder / "tensorboard").iterdir()):
        data, at = file.read_bytes(), 0
        found.append([])
        while at < len(data):
            (length,) = struct.unpack("<Q", data[at : at + 8])
            found[-1].append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 16 + length
        assert at == len(data)
    return found


def scalars(events: list) -> list[tuple]:
    return [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]


def test_tensorboard_gets_every_number_by_its_round(tmp_path):
    rounds = [Metrics(i, {"client/loss": 1.5 / (i + 1), "cohort/clients": i, "client/h": np.ones(2)}) for i in range(3)]
    log(fs.runs.TensorBoard(), tmp_path, *rounds)
    (only,) = events(tmp_path)
    assert only[0].file_version == "brain.Event:2"
    assert scalars(only) == [
        (0, "client/loss", 1.5),
        (0, "cohort/clients", 0.0),
        (1, "client/loss", 0.75),
        (1, "cohort/clients", 1.0),
        (2, "client/loss", 0.5),
        (2, "cohort/clients", 2.0),
    ]


def test_tensorboard_s_events_are_safe_after_a_flush(tmp_path):
    logger = fs.runs.TensorBoard()
    logger.open(tmp_path, {}, 0)
    for i in range(30):
        logger(Metrics(i, {"a": float(i)}))
    logger.flush()
    assert scalars(events(tmp_path)[0]) == [(i, "a", float(i)) for i in range(30)]
    logger.close()


def test_a_run_that_goes_on_within_a_second_hides_the_rounds_that_are_run_again(tmp_path):
    from tensorboardX.proto.event_pb2 import SessionLog

    log(fs.runs.TensorBoard(), tmp_path, Metrics(0, {"a": 1.0}), Metrics(1, {"a": 2.0}))
    log(fs.runs.TensorBoard(), tmp_path, Metrics(1, {"a": 3.0}), first=1)
    first, second = events(tmp_path)
    assert scalars(first) == [(0, "a", 1.0), (1, "a", 2.0)]
    assert scalars(second) == [(1, "a", 3.0)]
    starts = [(event.step, event.session_log.status) for event in second if event.HasField("session_log")]
    assert starts == [(1, SessionLog.START)]  # which tells TensorBoard to forget what earlier files have from there on
    assert not any(event.HasField("session_log") for event in first)


# Weights & Biases


def test_wandb_offline_stays_in_the_folder_and_a_run_that_goes_on_keeps_its_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    sim, folder = simulation(), tmp_path / "run"
    logger = functools.partial(fs.runs.WandB, project="test", mode="offline")
    state, _ = sim.run(sim.init(), 2, run_dir=folder, callbacks=[logger()])
    kept = json.loads((folder / "wandb.json").read_text())
    assert list(kept) == ["id"]
    sim.run(state, 2, run_dir=folder, callbacks=[logger()])
    assert json.loads((folder / "wandb.json").read_text()) == kept
    runs = glob.glob(str(folder / "wandb" / "offline-run-*" / f"run-{kept['id']}.wandb"))
    assert runs
    assert b"client/loss" in b"".join(Path(run).read_bytes() for run in runs)


def test_without_wandb_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(fs.FedSimError, match=r'fs\.runs\.WandB needs wandb: pip install "fedjax-sim\[wandb\]"\.'):
        fs.runs.WandB()


# MLflow


def test_mlflow_keeps_files_and_a_run_that_goes_on_is_the_same_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sim, folder = simulation(), tmp_path / "run"
    state, first = sim.run(sim.init(), 2, run_dir=folder, callbacks=[fs.runs.MLflow("toys", tags={"of": "tests"})])
    _, then = sim.run(state, 1, run_dir=folder, callbacks=[fs.runs.MLflow("toys")])
    client = mlflow.MlflowClient(tracking_uri=(folder / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("toys").experiment_id])
    assert (run.info.run_id, run.info.status) == (json.loads((folder / "mlflow.json").read_text())["id"], "FINISHED")
    assert (run.info.run_name, run.data.tags["of"], run.data.params["simulation.seed"]) == ("run", "tests", "0")
    losses = sorted((each.step, each.value) for each in client.get_metric_history(run.info.run_id, "client/loss"))
    assert losses == list(enumerate([*first["client/loss"], *then["client/loss"]]))


def test_without_mlflow_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(fs.FedSimError, match=r'MLflow needs mlflow-skinny: pip install "fedjax-sim\[mlflow\]"'):
        fs.runs.MLflow()


# A user's own


class Own:
    def __init__(self, log, fail=None):
        self.log, self.fail = log, fail

    def open(self, folder, config, round):
        self.log.append(("open", folder, config["simulation"]["seed"], round))

    def __call__(self, metrics):
        self.log.append(metrics.round)
        if metrics.round == self.fail:
            raise OSError("mine")

    def flush(self):
        self.log.append("flush")

    def close(self):
        self.log.append("close")


def test_a_user_s_logger_is_told_all_in_order(tmp_path):
    sim, log = simulation(seed=5), []
    state, _ = sim.run(sim.init(), 4, run_dir=tmp_path, checkpoint_every=2, callbacks=[Own(log)])
    assert log == [("open", tmp_path, 5, 0), "flush", 0, 1, "flush", 2, 3, "flush", "close"]
    log.clear()
    sim.run(state, 1, run_dir=tmp_path, callbacks=[Own(log)])
    assert log == [("open", tmp_path, 5, 4), 4, "flush", "close"]
    log.clear()
    sim.run(sim.init(), 2, callbacks=[Own(log)])  # without a folder there is nothing to be safe before
    assert log == [("open", None, 5, 0), 0, 1, "close"]


@pytest.mark.parametrize("with_folder", [True, False])
def test_a_logger_is_closed_also_when_the_run_fails(tmp_path, with_folder):
    sim, log, function = simulation(), [], []
    callbacks = [lambda metrics: function.append(metrics.round), Own(log, fail=1)]
    with pytest.raises(OSError, match="mine"):
        sim.run(sim.init(), 4, run_dir=tmp_path if with_folder else None, callbacks=callbacks)
    assert log[-1] == "close"
    assert log.count("close") == 1
    assert [entry for entry in log if isinstance(entry, int)] == [0, 1]
    assert function == [0, 1]


def test_an_error_on_closing_does_not_hide_the_one_that_ended_the_run(tmp_path):
    class Bad(Own):
        def close(self):
            super().close()
            raise RuntimeError("cannot close")

    sim, log = simulation(), []
    with pytest.raises(OSError, match="mine") as ended:
        sim.run(sim.init(), 4, run_dir=tmp_path, callbacks=[Own(log), Bad([], fail=1)])
    assert "While Bad was being closed: cannot close" in ended.value.__notes__
    assert log[-1] == "close"
    with pytest.raises(RuntimeError, match="cannot close"):
        simulation().run(sim.init(), 1, callbacks=[Bad([])])


def test_optax_losses_are_untouched_by_loggers(tmp_path):
    sim = simulation()
    logged, _ = sim.run(sim.init(), 3, run_dir=tmp_path, checkpoint_every=1, callbacks=[Own([])])
    plain, _ = sim.run(sim.init(), 3)
    assert optax.tree.norm(optax.tree.sub(logged.server, plain.server)) == 0
    assert os.path.exists(tmp_path / "checkpoints" / "3")
