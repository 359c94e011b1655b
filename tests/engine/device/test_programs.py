"""Compiled programs on the disk: the second process compiles nothing long; a bad folder stops no run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = ["run", "quickstart", "--preset", "smoke", "--run-dir"]
COUNT = """
import sys
import jax.monitoring
events = []
jax.monitoring.register_event_listener(lambda name, **more: events.append(name))
from fedjax_sim.cli import main
from fedjax_sim.engine.device import programs
programs.SECONDS = 0.0  # all that is compiled is kept: what a slow machine takes longer for is then no other program
status = main(sys.argv[1:])
kept = [name.rsplit("/", 1)[-1] for name in events if "compilation_cache" in name]
print("HITS", kept.count("cache_hits"), "MISSES", kept.count("cache_misses"))
sys.exit(status)
"""


def run(folder: Path, name: str, **variables: str):
    """The exit status, hits and misses of the cache, and standard error of a small run."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("JAX_COMPILATION")}
    environment = {**clean, "FEDJAX_SIM_CACHE": str(folder / "cache"), **variables}
    command = [sys.executable, "-c", COUNT, *RUN, str(folder / name)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    counts = [line.split() for line in done.stdout.splitlines() if line.startswith("HITS")]
    return done.returncode, [int(counts[0][1]), int(counts[0][3])] if counts else [], done.stderr


def losses(folder: Path, name: str) -> str:
    return (folder / name / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    return folder, run(folder, "first")


def test_the_second_process_loads_what_the_first_compiled(first):
    folder, (status, (hits, misses), error) = first
    assert (status, hits) == (0, 0), error
    assert misses
    kept = sorted((folder / "cache" / "programs").rglob("*"))
    status, (hits, misses), error = run(folder, "second")
    assert (status, error.count("cache"), misses) == (0, 0, 0), error
    assert hits
    assert [path for path in sorted((folder / "cache" / "programs").rglob("*")) if path not in kept] == []
    assert losses(folder, "second") == losses(folder, "first")


def test_damage_stops_no_run(first):
    folder, _ = first
    for path in (folder / "cache" / "programs").rglob("*-cache"):
        path.write_bytes(path.read_bytes()[:100])
    status, _, error = run(folder, "damaged")
    assert status == 0, error
    assert losses(folder, "damaged") == losses(folder, "first")


def kept_in(folder: Path, **variables: str) -> str:
    code = "import sys, pathlib; from fedjax_sim.engine.device.programs import keep_programs\n"
    code += "print(keep_programs(pathlib.Path(sys.argv[1])))"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_COMPILATION")} | variables
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_where_programs_are_kept(tmp_path):
    (tmp_path / "file").write_text("")
    assert Path(kept_in(tmp_path)).parent == tmp_path / "programs"
    assert Path(kept_in(tmp_path, FEDJAX_SIM_PROGRAMS=str(tmp_path / "mine"))).parent == tmp_path / "mine"
    assert kept_in(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "jax")) == str(tmp_path / "jax")
    assert kept_in(tmp_path, FEDJAX_SIM_PROGRAMS="off") == "None"
    assert kept_in(tmp_path / "file") == "None"  # it cannot be written
