"""A run's folder: what it says, whom it belongs to, and what becomes of it when the disk or the run fails."""

import dataclasses
import datetime
import json
import math
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pyarrow import parquet

import fedjax_sim as fs
from tests import programs
from tests.engine import toys
from tests.engine.store.test_checkpoint import check_equal

ROOT = Path(__file__).parents[2]


def simulation(algorithm=None, seed=0, data=None, **kwargs) -> fs.Simulation:
    algorithm = algorithm or toys.fedavg(toys.task())
    kwargs = {"devices": jax.devices()[:2], "lanes": 3, **kwargs}
    return fs.Simulation(
        algorithm,
        data or toys.federation(),
        fs.sampler.uniform(5),
        fs.Batching(3),
        seed=seed,
        **toys.executed(**kwargs),
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but its lock."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# What it says


def test_config_json_says_what_was_run(tmp_path):
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    run_dir = fs.runs.RunFolder(tmp_path, {"name": "mine", "preset": "small"}, {"rounds": 3, "rate": 0.1})
    sim = simulation(seed=4)
    state, _ = sim.run(sim.init(), 2, run_dir=run_dir)
    config = json.loads((tmp_path / "config.json").read_text())
    created = datetime.datetime.fromisoformat(config.pop("created"))
    assert before <= created <= datetime.datetime.now(datetime.UTC)
    versions = config.pop("versions")
    assert versions["jax"] == jax.__version__
    assert versions["numpy"] == np.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "fedjax-sim" in versions
    git = config.pop("git")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert (git is None) == bool(head.returncode)
    if git is not None:
        assert git["commit"] == head.stdout.strip()
        assert isinstance(git["dirty"], bool)
    simulation_facts = config.pop("simulation")
    expected = {
        "clients": 12,
        "examples": 58,
        "parameters": 8,
        "sampler": "uniform(5)",
        "seed": 4,
        "on_nonfinite": "raise",
        "lanes": 3,
        "rounds_per_dispatch": 1,
    }
    assert {name: simulation_facts[name] for name in expected} == expected
    assert simulation_facts["batching"]["batch_size"] == 3
    assert simulation_facts["batching"]["epochs"] == 1
    assert config == {
        "format": 1,
        "experiment": {"name": "mine", "preset": "small"},
        "config": {"rounds": 3, "rate": 0.1},
        "rounds": 2,
        "data": {},
        "devices": {"platform": "cpu", "kind": jax.devices()[0].device_kind, "count": 2},
    }
    sim.run(state, 3, run_dir=run_dir)
    again = json.loads((tmp_path / "config.json").read_text())
    assert again["rounds"] == 5
    assert again["created"] == created.isoformat()


def test_the_folder_and_its_report_say_where_the_data_come_from(tmp_path):
    data = dataclasses.replace(toys.federation(), about={"title": "Toys", "licence": "CC0 & free"})
    sim = simulation(data=data)
    sim.run(sim.init(), 1, run_dir=tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["data"] == sim.data.about
    page = fs.runs.report.page([fs.runs.read(tmp_path)])
    assert "data: licence" in page
    assert "CC0 &amp; free" in page


def test_the_folder_holds_the_partition(tmp_path):
    sim = simulation()
    sim.run(sim.init(), 1, run_dir=tmp_path)
    with np.load(tmp_path / "partition.npz") as partition:
        assert partition["sizes"].tolist() == list(toys.SIZES)
        assert partition["sizes"].dtype == np.int64


def test_a_run_from_python_has_neither_experiment_nor_config(tmp_path):
    sim = simulation()
    sim.run(sim.init(), 0, run_dir=tmp_path / "deep" / "er")
    config = json.loads((tmp_path / "deep" / "er" / "config.json").read_text())
    assert config["experiment"] is None
    assert config["config"] is None
    assert config["rounds"] == 0


# Whom it belongs to


def test_a_folder_in_use_names_who_holds_it(tmp_path):
    sim = simulation()
    state = sim.init()
    message = rf"is in use by process {os.getpid()} on .+: wait for it, end it, or choose another folder\."
    with fs.runs.RunFolder(tmp_path).held():
        for use in (lambda: sim.run(state, 1, run_dir=tmp_path), lambda: sim.save(tmp_path, state)):
            with pytest.raises(fs.RunFolderError, match=message):
                use()
    sim.run(state, 1, run_dir=tmp_path)  # it is free again


def test_a_folder_held_by_another_process_is_free_when_that_is_killed(tmp_path):
    program = "import sys, fedjax_sim as fs\nwith fs.runs.RunFolder(sys.argv[1]).held(): print(1, flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    with process:
        assert process.stdout.readline() == b"1\n"
        with (
            pytest.raises(fs.RunFolderError, match=rf"is in use by process {process.pid} on "),
            fs.runs.RunFolder(tmp_path).held(),
        ):
            pass
        process.kill()
    with fs.runs.RunFolder(tmp_path).held():
        assert f"process {os.getpid()} on" in (tmp_path / "lock").read_text()


def test_a_folder_of_another_run_is_refused_and_left_as_it_is(tmp_path):
    sim, other = simulation(), simulation(seed=1)
    config = {"rounds": 4, "rate": 0.1}
    state, _ = sim.run(sim.init(), 4, run_dir=fs.runs.RunFolder(tmp_path, config=config), checkpoint_every=2)
    before = contents(tmp_path)
    assert len(before) > 10
    go_on = r"go on from state = sim\.restore\('.*'\), or choose another folder\."
    moved = sim.init(jax.tree.map(lambda p: p + 1, sim.params(state)))
    moved, _ = sim.run(moved, 4)
    refused = {
        rf"holds a run of 4 rounds, and this state is at round 0: {go_on}": (sim, sim.init(), None),
        rf"holds a run of 4 rounds, and this state is at round 2: {go_on}": (sim, sim.restore(tmp_path, 2), None),
        rf"holds a run of 4 rounds, and this state is at round 5: {go_on}": (sim, sim.run(state, 1)[0], None),
        rf"holds another state of round 4: {go_on}": (sim, moved, None),
        r"holds another run: seed was 0 there and is 1 here\. Choose another folder for this one\.": (
            other,
            state,
            None,
        ),
        r"holds another run: rate was 0\.1 there and is 0\.2 here\. Choose another folder": (sim, state, {"rate": 0.2}),
    }
    for message, (which, begin, given) in refused.items():
        folder = fs.runs.RunFolder(tmp_path, config=given and {**config, **given})
        with pytest.raises(fs.RunFolderError, match=message):
            which.run(begin, 1, run_dir=folder)
        assert contents(tmp_path) == before, message
    folder = fs.runs.RunFolder(tmp_path, config={**config, "rounds": 5})  # more rounds are no other run
    assert sim.run(state, 1, run_dir=folder)[0].round == 5


@pytest.mark.parametrize("place", ["/proc/nobody/run", "file/run", "file"])
def test_a_place_that_cannot_be_written_is_an_error(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    sim = simulation()
    for use in (
        lambda: sim.run(sim.init(), 1, run_dir=tmp_path / place),
        lambda: sim.save(tmp_path / place, sim.init()),
    ):
        with pytest.raises(fs.RunFolderError, match=re.escape(f"{tmp_path / place} cannot be written: ")):
            use()
    with pytest.raises(fs.RunFolderError, match="holds no checkpoint"):
        sim.restore(tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


# When the disk or the run fails

FULL = textwrap.dedent("""
    import resource, sys
    import jax
    jax.config.update("jax_num_cpu_devices", 2)
    import fedjax_sim as fs
    from tests.runs import killed
    folder, limit = sys.argv[1], int(sys.argv[2])
    sim = killed.simulation()
    state, _ = sim.run(sim.init(), 4, run_dir=folder, checkpoint_every=2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        sim.run(state, 6, run_dir=folder, checkpoint_every=2)
    except fs.RunFolderError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        rounds = error.history["round"].tolist()
        print("\\nsaved", *error.__notes__)
        print("\\nended", error.state.round, rounds == list(range(4, error.state.round)), error)
        jax.block_until_ready(sim.step(error.state))  # the state is of use
""")


@pytest.fixture(scope="module")
def unlimited(tmp_path_factory):
    from tests.runs import killed

    sim, folder = killed.simulation(jax.devices()[:2]), tmp_path_factory.mktemp("unlimited")
    state, _ = sim.run(sim.init(), 4, run_dir=folder, checkpoint_every=2)
    state, _ = sim.run(state, 6, run_dir=folder, checkpoint_every=2)
    return sim, state, folder


@pytest.mark.parametrize("what", ["checkpoints", "metrics"])
def test_a_full_disk_is_a_clear_error_and_the_run_goes_on_later(unlimited, tmp_path, what):
    sim, expected, whole = unlimited
    # A file may be as large: less than a checkpoint's; or than six rounds' lines, but more than config.json.
    lines = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)
    limit = 100_000 if what == "checkpoints" else len("".join(lines[:6])) - 20
    done = programs.python(FULL, str(tmp_path), str(limit))
    assert done.status == 0, done.err
    ended = re.search(r"^ended (\d+) True (.*)", done.out, re.MULTILINE)
    assert ended, done.out + done.err
    assert 4 <= int(ended[1]) < 10
    assert "could not be written" in ended[2] or "cannot be written" in ended[2]
    assert str(tmp_path) in ended[2]
    saved = re.search(r"^saved .*exception's .state. (\d+) rounds are saved", done.out, re.MULTILINE | re.DOTALL)
    assert saved is None or int(saved[1]) == sim.restore(tmp_path).round
    assert saved or what == "metrics"
    assert "orbax" not in done.err  # nothing of its threads
    assert "Traceback" not in done.err
    state = sim.restore(tmp_path)
    assert state.round >= 4
    state, _ = sim.run(state, 10 - state.round, run_dir=tmp_path, checkpoint_every=2)
    check_equal(state, expected)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    np.testing.assert_equal(fs.runs.read(tmp_path).clients(), fs.runs.read(whole).clients())


class MineError(Exception):
    """An error of the user's own."""


ALGORITHMS = {
    "fedavg": {},
    "scaffold": {},
    "scaffold, in place": {"on_nonfinite": "drop"},
    "fedavg, in blocks": {"rounds_per_dispatch": 4},
}


def algorithm_of(name: str) -> fs.Algorithm | None:
    return fs.scaffold(toys.task(), toys.LR, toys.NUM_CLIENTS) if "scaffold" in name else None


@pytest.mark.parametrize("where", ["callback", "evaluate"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_user_s_error_ends_the_run_and_nothing_is_lost(tmp_path, name, where):
    def build():
        return simulation(algorithm_of(name), **ALGORITHMS[name])

    calls = []

    def callback(metrics):
        if where == "callback" and metrics.round == 6:
            raise MineError("here")

    def evaluate(params):
        calls.append(params)
        if where == "evaluate" and len(calls) == 3:  # after round 6
            raise MineError("here")
        return {"test/norm": optax.tree.norm(params)}

    plan = {"eval_every": 3, "checkpoint_every": 4}
    straight, sim = build(), build()
    fine = lambda params: {"test/norm": optax.tree.norm(params)}
    expected, _ = straight.run(straight.init(), 11, evaluate=fine, run_dir=tmp_path / "straight", **plan)
    folder = tmp_path / "run"
    if where == "evaluate":
        calls.append(None)
    with pytest.raises(MineError) as ended:
        sim.run(sim.init(), 11, evaluate=evaluate, run_dir=folder, callbacks=[callback], **plan)
    error = ended.value
    assert error.args == ("here",)
    assert 4 <= error.state.round <= 7
    rounds = error.history["round"].tolist()
    assert rounds == list(range(len(rounds)))
    assert len(rounds) <= error.state.round
    check_equal(error.state, straight_to(build(), error.state.round))  # and its arrays are there
    (note,) = error.__notes__
    assert f"{error.state.round} rounds are saved in {folder}" in note or "exception's .state" in note
    again = build()
    state = again.restore(folder)
    if "in place" not in name:
        assert state.round == error.state.round
        assert f"{state.round} rounds are saved in {folder}; to go on: state = sim.restore(" in note
        assert rounds == list(range(state.round))
    state, _ = again.run(state, 11 - state.round, evaluate=fine, run_dir=folder, **plan)
    check_equal(state, expected)
    assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "straight" / "metrics.jsonl").read_bytes()
    np.testing.assert_equal(fs.runs.read(folder).clients(), fs.runs.read(tmp_path / "straight").clients())


def straight_to(sim: fs.Simulation, rounds: int) -> fs.RoundState:
    return sim.run(sim.init(), rounds)[0]


def test_the_state_of_a_run_inside_a_callback_is_not_taken_for_the_run_s_own(tmp_path):
    inner, sim = simulation(seed=1), simulation()

    def fails(params):
        if fails.count == 1:
            inner.run(inner.init(), 3, callbacks=[lambda metrics: 1 / 0])
        fails.count += 1
        return {}

    fails.count = 0
    with pytest.raises(ZeroDivisionError) as ended:
        sim.run(sim.init(), 6, evaluate=fails, eval_every=2, run_dir=tmp_path)
    assert ended.value.state.seed == 0
    check_equal(sim.restore(tmp_path), straight_to(simulation(), ended.value.state.round))


@pytest.mark.parametrize("rounds_per_dispatch", [1, 4])
def test_an_update_that_is_not_finite_leaves_the_rounds_before_it_saved(tmp_path, rounds_per_dispatch):
    task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
    data = fs.data.FederatedData({"x": jnp.array([1.0, 2.0, jnp.nan])}, offsets=[0, 1, 2, 3])

    def build(cohorts):
        parts = fs.fedavg(task, optax.sgd(0.1)), data, fs.sampler.fixed(cohorts), fs.Batching(1)
        return fs.Simulation(
            *parts, execution=fs.Execution(rounds_per_dispatch=rounds_per_dispatch, devices=jax.devices()[:1])
        )

    sim = build([[0], [1], [0], [1], [0], [2], [0]])
    with pytest.raises(fs.NonFiniteUpdateError) as ended:
        sim.run(sim.init(), 7, run_dir=tmp_path, checkpoint_every=3)
    assert ended.value.round == ended.value.state.round == 5
    assert ended.value.history["round"].tolist() == [0, 1, 2, 3, 4]
    assert any(f"5 rounds are saved in {tmp_path}; to go on: " in note for note in ended.value.__notes__)
    assert [json.loads(line)["round"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [*range(5)]
    good = [[0], [1], [0], [1], [0], [1], [0]]
    mended, straight = build(good), build(good)
    with pytest.raises(fs.RunFolderError, match="sampler: "):  # other cohorts
        mended.restore(tmp_path)
    state, _ = mended.run(mended.restore(tmp_path, allow={"sampler"}), 2, run_dir=tmp_path / "mended")
    check_equal(state, straight.run(straight.init(), 7)[0])
    tables = [fs.runs.read(folder).clients() for folder in (tmp_path, tmp_path / "mended")]
    assert [table["round"].tolist() for table in tables] == [[*range(5)], [5, 6]]
    assert [table["client"].tolist() for table in tables] == [[0, 1, 0, 1, 0], [1, 0]]


# Reading


def test_read_gives_what_the_run_returned(tmp_path):
    sim = simulation()
    _, history = sim.run(sim.init(), 5, run_dir=tmp_path, evaluate=lambda params: {"test/a": 0.5}, eval_every=2)
    run = fs.runs.read(tmp_path)
    assert run.rounds == 5
    assert run.metrics.keys() == set(history)
    for name in history:
        np.testing.assert_array_equal(run.metrics[name], history[name])
    np.testing.assert_array_equal(run.metrics["test/a"], [np.nan, 0.5, np.nan, 0.5, 0.5])
    assert len(run.seconds) == 5
    assert (np.diff(run.seconds) >= 0).all()
    assert run.partition["sizes"].tolist() == list(toys.SIZES)


def test_a_half_written_line_is_no_round_and_is_written_again(tmp_path):
    sim, straight = simulation(), simulation()
    expected, _ = straight.run(straight.init(), 6, run_dir=tmp_path / "straight")
    state, _ = sim.run(sim.init(), 4, run_dir=tmp_path / "run", checkpoint_every=2)
    # The last round was evaluated; nothing was here. Then the process died as it wrote the fifth line.
    metrics = tmp_path / "run" / "metrics.jsonl"
    fifth = (tmp_path / "straight" / "metrics.jsonl").read_text().splitlines()[4]
    with open(metrics, "a") as file:
        file.write(fifth[:40])
    assert fs.runs.read(tmp_path / "run").metrics["round"].tolist() == [0, 1, 2, 3]
    again = simulation()
    state, _ = again.run(again.restore(tmp_path / "run"), 2, run_dir=tmp_path / "run")
    check_equal(state, expected)
    assert metrics.read_bytes() == (tmp_path / "straight" / "metrics.jsonl").read_bytes()


def test_truncate_forgets_rounds_in_every_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"round": 0}\n{"round": 1, "a": 1e999}\n{"round": 2}\n{"round": 3}')
    (tmp_path / "timing.jsonl").write_text('{"round": 0}\n{"round": 2}\n')
    logger = fs.runs.ClientTable()
    logger.open(tmp_path, {}, 0)
    for first in (0, 2):
        for round in (first, first + 1):
            logger(Round(round))
        logger.flush()
    folder = fs.runs.RunFolder(tmp_path)
    folder.truncate(3)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"round": 0}\n{"round": 1, "a": 1e999}\n{"round": 2}\n'
    table = parquet.read_table(tmp_path / "clients" / "00000002.parquet")
    assert table.to_pydict() == {"round": [2], "client": [4], "name": ["4"]}
    folder.truncate(2)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"round": 0}\n{"round": 1, "a": 1e999}\n'
    assert (tmp_path / "timing.jsonl").read_text() == '{"round": 0}\n'
    assert [path.name for path in (tmp_path / "clients").iterdir()] == ["00000000.parquet"]


class Round:
    """A round of client 4, without metrics."""

    def __init__(self, round):
        self.round, self.client_ids = round, np.array([4])

    def per_client(self):
        return {}


ODD = {
    r"holds no run: it has no config\.json\.": lambda folder: (folder / "config.json").unlink(),
    r"config\.json cannot be read: ": lambda folder: (folder / "config.json").write_text("{"),
    r"config\.json is not of a run that this version": lambda folder: (folder / "config.json").write_text("[]"),
    r"config\.json is not of a run that this version \(1\)": lambda folder: (folder / "config.json").write_text(
        '{"format": 2}'
    ),
    r"metrics\.jsonl, line 1 is no JSON: 'x'": lambda folder: (folder / "metrics.jsonl").write_text("x\n{}\n"),
    r"metrics\.jsonl cannot be read: ": lambda folder: (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\n"),
    r"timing\.jsonl cannot be read: ": lambda folder: (folder / "timing.jsonl").mkdir(),
    r"partition\.npz cannot be read: .* Delete it; plots go without\.": lambda folder: (
        folder / "partition.npz"
    ).write_bytes(b"PK\x03\x04 and no more"),
    r"partition\.npz cannot be read: File is not a zip": lambda folder: (folder / "partition.npz").write_bytes(b""),
}


@pytest.mark.parametrize("message", ODD)
def test_a_file_that_cannot_be_read_is_named(tmp_path, message):
    (tmp_path / "config.json").write_text('{"format": 1}')
    ODD[message](tmp_path)
    with pytest.raises(fs.RunFolderError, match=message):
        fs.runs.read(tmp_path)


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"format": 1}')
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "00000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(fs.RunFolderError, match=r"00000000\.parquet cannot be read: "):
        fs.runs.read(tmp_path).clients()


def test_a_folder_with_nothing_but_its_configuration_is_a_run_without_rounds(tmp_path):
    (tmp_path / "config.json").write_text('{"format": 1}')
    run = fs.runs.read(tmp_path)
    assert (run.rounds, run.metrics, run.seconds, run.partition, run.clients()) == (0, {}, None, None, {})
    assert repr(run) == f"Run({tmp_path}: a run from Python, 0 of ? rounds)"
    with pytest.raises(fs.RunFolderError, match="nothing holds no run"):
        fs.runs.read(tmp_path / "nothing")


def test_columns_have_nan_where_a_round_has_no_value_and_keep_whole_numbers(tmp_path):
    (tmp_path / "config.json").write_text('{"format": 1}')
    lines = ('{"round": 0, "a": 1, "h": [1, 2]}', '{"round": 1, "a": null, "b": -1e999}', '{"round": 2, "a": 3}')
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    metrics = fs.runs.read(tmp_path).metrics
    assert list(metrics) == ["round", "a", "h", "b"]
    assert metrics["round"].tolist() == [0, 1, 2]
    assert metrics["round"].dtype == np.int64
    np.testing.assert_array_equal(metrics["a"], [1, np.nan, 3])
    np.testing.assert_array_equal(metrics["b"], [np.nan, -math.inf, np.nan])
    assert metrics["h"].dtype == object
    assert metrics["h"][0].tolist() == [1, 2]
    assert metrics["h"][1] is None
