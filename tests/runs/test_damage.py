"""Folders that are damaged, gone, odd or of another kind: an error of ours, or what was saved."""

import contextlib
import functools
import json
import shutil
import tempfile
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.engine.store import checkpoint
from fedjax_sim.runs import checksums, report
from tests.engine import toys
from tests.runs import fuzz, samples

ODD = ("a[*]", "back\\slash", "n\0l", "half \ud800", "x/y", "..", "", "a['b']", "10", "é", "x" * 300)


def build(task=None, **kwargs) -> fs.Simulation:
    parts = (toys.federation(), fs.sampler.uniform(3), fs.Batching(4))
    return fs.Simulation(
        fs.fedavg(task or toys.task(), optax.sgd(0.1)), *parts, **toys.executed(devices=jax.devices()[:1], **kwargs)
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Not to be changed."""
    return fuzz.make(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def test_damage_is_found_wherever_it_is(folder):
    faults, ends = fuzz.fuzz(folder, 200)
    assert faults == []
    assert min(ends["refused"], ends["left out"], ends["warned"]) > 10, ends


def places(tree, at=()):
    """The way to each value within dicts and lists."""
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield (*at, key)
        yield from places(tree[key], (*at, key))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_config_whose_values_are_of_wrong_types_is_refused_or_told(folder):
    path, refused = folder / "config.json", 0
    whole = path.read_text()
    for at in places(json.loads(whole)):
        for word in fuzz.WORDS:
            config = json.loads(whole)
            functools.reduce(lambda tree, key: tree[key], at[:-1], config)[at[-1]] = json.loads(word)
            path.write_text(json.dumps(config))
            try:
                fuzz.look(folder, False)
            except fs.FedSimError:
                refused += 1
    assert refused > 100


# The record of a checkpoint


def edited(folder, of, sealed=False, /, **changes):
    """A checkpoint's record with other entries, and with the digest that goes with them."""
    path = folder / "checkpoints" / str(of) / "record" / "metadata"
    record = {**json.loads(path.read_text()), **changes}
    record = {name: value for name, value in record.items() if value is not ...}
    if sealed:
        record["digest"] = checkpoint._digest_of_record(record)
    path.write_text(json.dumps(record))


def read(folder, round):
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints", read_only=True)
    with contextlib.closing(checkpoints):
        return checkpoints.read(round)


@pytest.mark.parametrize("change", [{"seed": 1}, {"ledger": {}}, {"digest": ...}, {"fingerprint": ...}], ids=str)
def test_a_record_that_is_not_what_was_saved_is_refused(folder, change):
    assert read(folder, 3)[1]["seed"] == 0
    edited(folder, 3, **change)
    with pytest.raises(fs.RunFolderError, match=r"round 3 in .* is damaged: its record is not what was saved"):
        read(folder, 3)


WRONG = {
    "round": ["3", None, -1, 3.0, True],
    "seed": ["0", 2**32, None],
    "ledger": [3, "", [3]],
    "digests": [None, [], {"a": 1}],
    "names": [{}, [1], "ab", None],
    "layout": [None, {}, {"devices": "1", "lanes": 1}],
    "simulation": [[], ...],
    "slots": [3, ["a"], None],
    "empty": [3],
    "fingerprint": [[]],
}


def test_a_record_of_wrong_types_is_refused(folder):
    whole = folder / "checkpoints" / "2" / "record" / "metadata"
    text = whole.read_text()
    for name, values in WRONG.items():
        for value in values:
            edited(folder, 2, True, **{name: value})
            with pytest.raises(fs.RunFolderError, match="round 2 in"):
                read(folder, 2)
            whole.write_text(text)
            assert read(folder, 2)
    edited(folder, 3, True)
    assert read(folder, 3)
    edited(folder, 3, True, round=2)
    with pytest.raises(fs.RunFolderError, match=r"round 3 in .* is damaged: it is of round 2"):
        read(folder, 3)


# Names


def odd_task() -> fs.Task:
    def loss(params, batch, key):
        return (batch["x"][:, 0] - params["a[*]"]) ** 2 + sum(jnp.sum(leaf**2) for leaf in params.values())

    return fs.Task(lambda key: {name: jnp.float32(i) for i, name in enumerate(ODD)}, loss)


def test_parameters_of_any_name_are_saved_and_come_back(tmp_path):
    sim = build(odd_task())
    state, _ = sim.run(sim.init(), 1, run_dir=tmp_path)
    again = sim.params(build(odd_task()).restore(tmp_path))
    assert list(again) == list(sim.params(state))
    assert all(np.array_equal(again[name], sim.params(state)[name]) for name in ODD)
    assert fs.runs.read(tmp_path).rounds == 1


@pytest.mark.parametrize("name", ["n\0l", "half \ud800"])
def test_a_folder_that_no_disk_can_have_is_refused_before_the_first_round(tmp_path, name):
    sim = build()
    for use in (
        lambda: sim.run(sim.init(), 1, run_dir=tmp_path / name),
        lambda: sim.save(tmp_path / name, sim.init()),
        lambda: sim.restore(tmp_path / name),
        lambda: fs.runs.read(tmp_path / name),
        lambda: report.write([fs.runs.Run(tmp_path, {}, {})], tmp_path / name),
    ):
        with pytest.raises(fs.RunFolderError):
            use()


def test_words_with_half_a_character_are_refused_before_they_are_written(tmp_path):
    folder = fs.runs.RunFolder(tmp_path, config={"rounds": 1, "note": "half \ud800"})
    sim = build()
    with pytest.raises(ArgumentError, match=r"what config\.json is to hold: .* is no Unicode"):
        sim.run(sim.init(), 1, run_dir=folder)
    with pytest.raises(ArgumentError, match=r"a metric's name: .* is no Unicode") as error:
        sim.run(sim.init(), 1, run_dir=tmp_path / "run", evaluate=lambda params: {"\ud800": 1})
    assert error.value.state.round == 0
    assert fs.runs.read(tmp_path / "run").rounds == 0


def test_a_client_of_any_name_is_in_the_table(tmp_path):
    data = fs.data.FederatedData(toys.federation().arrays, np.arange(4), client_ids=["\ud800", "n\0", "$x$"])
    sim = fs.Simulation(fs.fedavg(toys.task(), optax.sgd(0.1)), data, fs.sampler.uniform(3), fs.Batching(4))
    sim.run(sim.init(), 1, run_dir=tmp_path)
    assert sorted(fs.runs.read(tmp_path).clients()["name"]) == ["$x$", "\\ud800", "n\0"]


# What happens meanwhile


@pytest.mark.parametrize("how", ["a file", "gone", "another"])
def test_a_folder_that_is_replaced_in_mid_run_is_told_of_with_the_truth(tmp_path, how):
    def replace(metrics):
        if metrics.round == 1:
            shutil.rmtree(tmp_path / "run")
            if how == "a file":
                (tmp_path / "run").write_text("")
            if how == "another":
                samples.write(tmp_path / "run")

    sim = build()
    with pytest.raises(fs.RunFolderError, match="was moved, removed or replaced") as error:
        sim.run(sim.init(), 4, run_dir=tmp_path / "run", checkpoint_every=2, callbacks=[replace])
    assert error.value.state.round == 2
    assert "What was saved there before stays" not in str(error.value)
    notes = " ".join(getattr(error.value, "__notes__", []))
    assert "saved in" not in notes
    assert "is this exception's .state" in notes


def test_a_folder_for_temporary_files_that_cannot_be_written_is_told_of(tmp_path, monkeypatch):
    task = toys.ALGORITHMS["scaffold"](toys.task())
    sim = fs.Simulation(
        task, toys.federation(), fs.sampler.uniform(3), fs.Batching(4), execution=fs.Execution(rows="host")
    )
    sim.save(tmp_path, sim.init())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    for use in (sim.init, lambda: sim.restore(tmp_path)):
        with pytest.raises(fs.RunFolderError, match=r"clients' rows need a temporary file.* Let TMPDIR name a folder"):
            use()
    monkeypatch.undo()
    assert sim.restore(tmp_path).round == 0


@pytest.mark.parametrize("left", ["all", "state", "record", "commit_success.txt", "nothing"])
def test_what_a_killed_process_left_of_checkpoints_goes(tmp_path, left):
    sim = build()
    sim.run(sim.init(), 3, run_dir=tmp_path, checkpoint_every=1)
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(checkpoints / "1", checkpoints / "0")
    for path in (checkpoints / "0").iterdir():
        if left not in ("all", path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (checkpoints / "4.orbax-checkpoint-tmp-0").mkdir()
    state = build().restore(tmp_path)
    assert (checkpoints / "0").exists()  # who reads changes nothing
    sim.run(state, 0, run_dir=tmp_path)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["1", "2", "3"]


def test_a_damaged_checkpoint_can_be_saved_again(tmp_path):
    sim = build()
    sim.save(tmp_path, sim.init())
    shutil.rmtree(tmp_path / "checkpoints" / "0" / "state")
    sim.save(tmp_path, sim.init())
    assert sim.restore(tmp_path).round == 0


# Files of a run


LINES = {
    r"metrics\.jsonl, line 2 is no round's record: '\[\]'": '{"round": 0}\n[]\n',
    r"metrics\.jsonl, line 1 is no round's record": '{"a": 1}\n',
    r"metrics\.jsonl, line 2 is of round 0, after one of round 0": '{"round": 0}\n{"round": 0}\n',
    r"metrics\.jsonl, line 1 has something else than a number as a": '{"round": 0, "a": "1"}\n',
    r"metrics\.jsonl, line 1 has something else than a number as b": '{"round": 0, "b": ' + "1" * 30 + "}\n",
    r"metrics\.jsonl, line 1 has no array as h": '{"round": 0, "h": [[1], 2]}\n',
    r"metrics\.jsonl, line 1 is no JSON": "[" * 100_000 + "\n",
    r"metrics\.jsonl cannot be read: .* can't decode byte 0xff": b'{"round": 0}\n\xff\n',
}


@pytest.mark.parametrize("message", LINES)
def test_a_line_that_no_run_wrote_is_named(tmp_path, message):
    folder = samples.write(tmp_path / "run")
    text = LINES[message]
    (folder / "metrics.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(fs.RunFolderError, match=message):
        fs.runs.read(folder)


def test_a_digit_that_changed_is_told_of(tmp_path):
    sim = build()
    sim.run(sim.init(), 3, run_dir=tmp_path, checkpoint_every=2)
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(metrics + b'{"round": 3}\n')  # what comes later is not covered yet
    assert checksums.damaged(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_bytes(metrics.replace(b'"cohort/clients": 3', b'"cohort/clients": 2'))
    with pytest.warns(UserWarning, match=r"was changed since its last checkpoint, in metrics\.jsonl: "):
        fs.runs.read(tmp_path)
    with pytest.warns(UserWarning, match=r"in metrics\.jsonl: numbers may be wrong"):
        sim.run(sim.restore(tmp_path), 1, run_dir=tmp_path)


def test_a_partition_that_says_more_than_it_holds_is_refused_before_it_is_read(tmp_path):
    folder = samples.write(tmp_path / "run")
    path = folder / "partition.npz"
    with zipfile.ZipFile(path) as whole:
        arrays = {name: whole.read(name) for name in whole.namelist()}
    arrays["sizes.npy"] = arrays["sizes.npy"].replace(b"(6,), }  ", b"(999,), }")
    with zipfile.ZipFile(path, "w") as lying:
        for name, data in arrays.items():
            lying.writestr(name, data)
    with pytest.raises(fs.RunFolderError, match=r"partition\.npz cannot be read: sizes\.npy says that it holds more"):
        fs.runs.read(folder)


def test_a_sweep_s_folder_has_no_report(tmp_path):
    folder = samples.write(tmp_path / "sweep", sweep={"grid": {"lr": [0.1]}})
    with pytest.raises(fs.RunFolderError, match="holds a sweep, and reports are of runs"):
        report.write([fs.runs.read(folder)], tmp_path / "page.html")
    sim = build()
    with pytest.raises(fs.RunFolderError, match="sweep holds another run"):
        sim.run(sim.init(), 1, run_dir=folder)


def test_metrics_and_folders_may_have_names_that_look_like_formulas(tmp_path):
    runs = []
    for name in (r"$\frac$", "<b>"):
        lines = [json.dumps({"round": 0, r"$\frac$": 1.0, "test/$x_{$": 2.0})]
        runs.append(fs.runs.read(samples.write(tmp_path / name, lines=lines, clients=None, partition=None)))
    assert "frac" in report.page(runs)
