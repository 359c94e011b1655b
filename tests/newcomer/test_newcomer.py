"""Twelve tasks of a first hour, each a script of at most 20 lines (blank ones aside), written from the docs alone."""

import os
import runpy
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.cli import main
from tests import programs

HERE = Path(__file__).parent
TASKS = {
    "own_csv", "own_cnn", "schedule", "fedavg_or_fedadam", "resume", "sweep", "report", "epsilon", "own_transform",
    "own_sampler", "partition_picture", "gpu",
}  # fmt: skip


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Runs a script by its name, in a folder of its own, in this process; gives its variables."""
    shutil.copy(HERE / "patients.csv", tmp_path)
    monkeypatch.chdir(tmp_path)
    return lambda name: runpy.run_path(str(HERE / f"{name}.py"))


def test_each_task_is_a_script_of_at_most_20_lines():
    scripts = [path for path in HERE.iterdir() if path.suffix in (".py", ".sh") and path.stem != "test_newcomer"]
    assert {path.stem for path in scripts} == TASKS
    lines = {path.name: len([line for line in path.read_text().splitlines() if line.strip()]) for path in scripts}
    assert {name: count for name, count in lines.items() if count > 20} == {}


def test_own_csv(script):
    made = script("own_csv")
    assert made["outcomes"] == ("died", "home")
    assert not np.isnan(made["train"].arrays["x"]).any()
    assert np.isfinite(made["history"]["client/loss"]).all()


def test_own_cnn(script):
    made = script("own_cnn")
    assert set(made["sim"].params(made["state"])) == {"params", "batch_stats"}


def test_schedule(script):
    assert len(script("schedule")["history"].rounds) == 3


def test_fedavg_or_fedadam(script, capsys):
    script("fedavg_or_fedadam")
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(" & ")[0] for row in rows] == ["FedAvg", "FedAdam"]
    assert all(r"\pm" in row and row.endswith(r"\\") for row in rows)


def test_resume(script, monkeypatch):
    """Ctrl-C in round 2 of 6; the same script again trains the rest."""
    run = fs.Simulation.run
    press = lambda metrics: metrics.round == 2 and os.kill(os.getpid(), signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(fs.Simulation, "run", lambda *given, **more: run(*given, callbacks=[press], **more))
        with pytest.raises(KeyboardInterrupt):
            script("resume")
    made = script("resume")
    assert made["history"].rounds[0].round > 2
    assert fs.runs.read("runs/mine").metrics["round"].tolist() == list(range(6))


def test_sweep(script, tmp_path):
    made = script("sweep")
    assert len(made["result"].settings) == 6
    assert (tmp_path / "heatmap.png").stat().st_size > 1000


def test_report(script, tmp_path):
    script("report")
    page = (tmp_path / "comparison.html").read_text()
    assert "slow" in page
    assert "fast" in page


def test_epsilon(script):
    made = script("epsilon")
    assert 3.9 < made["spent"].epsilon <= 4.0


def test_own_transform(script):
    made = script("own_transform")
    length = 0.01 * np.sqrt(650)  # all of a digit's 65 x 10 parameters, at most
    first = made["sim"].params(made["sim"].init())
    moved = sum(
        np.sum((np.asarray(a) - np.asarray(b)) ** 2)
        for a, b in zip(*map(jax.tree.leaves, (made["sim"].params(made["state"]), first)), strict=True)
    )
    assert 0 < moved <= (2 * length) ** 2


def test_own_sampler(script):
    made = script("own_sampler")
    drawn = np.stack([metrics.client_ids for metrics in made["history"].rounds])
    assert drawn.shape == (2, 5)
    assert made["clients"].sizes[drawn].mean() > made["clients"].sizes.mean()


def test_partition_picture(script, tmp_path):
    script("partition_picture")
    assert (tmp_path / "partition.pdf").read_bytes().startswith(b"%PDF")


def test_gpu(tmp_path, monkeypatch, capsys):
    """As far as a CPU goes: the flags are read and trained with, and the missing GPU is told in words."""
    doctor, run = (HERE / "gpu.sh").read_text().splitlines()[1:]
    assert doctor == "fedjax-sim doctor"
    platform, command, *words = run.split()
    assert (platform, command) == ("JAX_PLATFORMS=cuda", "fedjax-sim")
    monkeypatch.chdir(tmp_path)
    for module in ("start", "words"):
        monkeypatch.setattr(f"fedjax_sim.cli.{module}.prepare", lambda: None)  # the tests' own devices stay
    assert main([*words, "--preset", "smoke", "--rounds", "1", "--model", "logistic_regression"]) == 0
    assert "1 rounds" in capsys.readouterr().out
    words += ["--preset", "smoke"]
    code = (
        f"import jax; jax.config.update('jax_platforms', 'cuda'); from fedjax_sim.cli import main; exit(main({words}))"
    )
    done = programs.python(code, cwd=tmp_path)
    assert done.status == 2
    assert 'pip install "fedjax-sim[cuda]"' in done.err
    assert "Traceback" not in done.err
