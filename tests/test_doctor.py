"""`fedjax-sim doctor`: what a bug report needs, and what is slow here."""

import os
from importlib import metadata
from pathlib import Path

import jax
import pytest

from fedjax_sim.cli import doctor, main


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDJAX_SIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "NO_USE", (*doctor.NO_USE, "wandb"))


def test_it_says_what_is_here(capsys, monkeypatch):
    monkeypatch.setenv("JAX_SOMETHING", "1")
    monkeypatch.setattr("fedjax_sim.cli.commands.prepare", lambda: None)  # the tests' own devices stay
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for package in ("jax", "flax", "optax", "numpy"):
        assert f"{package} {metadata.version(package)}" in " ".join(said.split())
    assert f"{len(jax.devices())} cpu" in said
    assert "JAX_SOMETHING=1" in said
    assert len(said.splitlines()) < 60


def test_extras_that_are_there_and_not(monkeypatch):
    told = dict(line.split(": ", 1) for line in doctor._extras())
    assert told["privacy"].startswith("dp-accounting")
    assert "wandb" not in told
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    assert all("pip install" in line for line in doctor._extras())


def test_what_is_slow(monkeypatch):
    advised = lambda **environment: " ".join(doctor.advice(environment))
    assert "double precision" in advised(JAX_ENABLE_X64="true")
    assert "optimisation off" in advised(XLA_FLAGS="--xla_backend_optimization_level=0")
    assert "double" not in advised()
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert "fedjax-sim[cuda]" in advised()
    monkeypatch.setattr("fedjax_sim.engine.device.placement.cpu_cores", lambda: len(jax.devices()) + 1)
    assert "fs.use_cpu_cores() first" in advised()
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0, 0))
    assert "99.0 processes" in advised()


def test_folders_that_are_written_to_or_closed(tmp_path, monkeypatch):
    """Another process removes a file between its listing and its size; a folder of somebody else's."""
    (tmp_path / "kept").write_bytes(b"x" * 2**20)
    (tmp_path / "gone").touch()
    whole = Path.is_file

    def is_file(path):
        found = whole(path)
        if path.name == "gone":
            path.unlink()
        return found

    monkeypatch.setattr(Path, "is_file", is_file)
    assert doctor._folder(tmp_path) == f"{tmp_path}, 1 files, 1 MiB"

    def closed(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", closed)
    assert "cannot be read: " in doctor._folder(tmp_path)
    assert doctor._folder(tmp_path / "none") == f"{tmp_path / 'none'}, 0 files, 0 MiB"
