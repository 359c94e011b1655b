"""A profiled run: where its time goes is said right, and its numbers are those of any run."""

import gzip
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.runs import report, tables
from fedjax_sim.runs.profile import PARTS, split
from tests.engine import toys

WAIT = 0.02


def slow_sampler(seconds):
    quick = fs.sampler.uniform(2)

    def sample(*args):
        time.sleep(seconds)
        return quick.sample(*args)

    return quick._replace(sample=sample)


def simulation(slow="", **options):
    """Two clients a round; planning, reading, computing or evaluating waits for `WAIT` at least."""

    def generate(client, example):
        time.sleep(WAIT if slow == "transfer" else 0)
        return {"x": client.astype(np.float32)}

    def wait(w):
        time.sleep(WAIT)
        return w

    def loss(w, batch, key):
        if slow == "compute":
            w = jax.pure_callback(wait, jax.ShapeDtypeStruct((), jnp.float32), jax.lax.stop_gradient(w)) * 0 + w
        return (w - batch["x"]) ** 2

    def evaluate(w):
        time.sleep(WAIT if slow == "evaluation" else 0)
        return {"model": float(w)}

    return fs.Simulation(
        fs.fedavg(fs.Task(lambda key: jnp.zeros(()), loss), optax.sgd(0.1)),
        fs.data.procedural(4, 2, generate),
        slow_sampler(WAIT if slow == "planning" else 0),
        fs.Batching(2),
        evaluate=evaluate,
        **toys.executed(devices=jax.devices()[:1], lanes=1, **options),
    )


def rows(profile):
    return dict((part, ms) for part, ms, _ in split(profile)[0].rows())


@pytest.mark.parametrize("slow", ["planning", "transfer", "compute", "evaluation"])
def test_time_counts_for_the_part_that_takes_it(slow, tmp_path):
    sim = simulation(slow)
    begin = time.perf_counter()
    sim.run(sim.init(), 6, eval_every=1, run_dir=tmp_path / "run", profile=True)
    whole = time.perf_counter() - begin
    profile = fs.runs.read(tmp_path / "run").profile
    assert profile
    blocks = profile["blocks"]
    assert [block["round"] for block in blocks] == list(range(6))
    assert [block["compiled"] for block in blocks] == [True, *[False] * 5]
    assert [block["traced"] for block in blocks] == [False, True, True, True, False, False]
    # Sleep is never shorter; and examples are read from the moment on when a plan knows them, while it is packed.
    parts = ("planning", "transfer") if slow == "transfer" else (slow,)
    assert all(sum(block[part] for part in parts) >= WAIT for block in blocks)
    assert max(block[slow] for block in blocks) >= WAIT / 4
    assert 0 < sum(block[part] for block in blocks for part in PARTS) < whole
    assert min(block[part] for block in blocks for part in PARTS) >= 0


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """A run in blocks of two rounds, and the same without a profile."""
    place = tmp_path_factory.mktemp("profiled")
    for name in ("with", "without"):
        sim = simulation(rounds_per_dispatch=2)
        sim.run(sim.init(), 8, eval_every=8, run_dir=place / name, profile=name == "with")
    return place


def test_a_profile_changes_no_number(profiled):
    assert (profiled / "with" / "metrics.jsonl").read_bytes() == (profiled / "without" / "metrics.jsonl").read_bytes()
    assert fs.runs.read(profiled / "without").profile is None


def test_the_trace_names_the_parts(profiled):
    (path,) = (profiled / "with" / "trace").rglob("*.trace.json.gz")
    names = [event.get("name") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]]
    assert [names.count(part) for part in ("planning", "transfer", "compute")] == [2, 2, 2]  # two blocks hold 3 rounds


def test_the_tables_and_the_report_show_it(profiled):
    run, plain = (fs.runs.read(profiled / name) for name in ("with", "without"))
    assert tables.profile_table(run).row_count == len(PARTS) + 1
    assert tables.profile_table(plain).row_count == 0
    page = report.page([run, plain])
    assert "Time of a round" in page
    assert all(f"{part}: {what}" in page for part, what in PARTS.items())
    assert "Time of a round" not in report.page([plain])


def block(**changes):
    return {"rounds": 1, "compiled": False, "traced": False, **dict.fromkeys(PARTS, 0.0), **changes}


def test_the_mean_leaves_out_what_compiled_or_was_traced():
    first = block(compiled=True, compute=9.0)
    traced = block(traced=True, compute=5.0)
    going = [block(rounds=2, compute=3.0, planning=1.0), block(rounds=1, compute=1.5, planning=0.5)]
    found, compiled = split({"blocks": [first, traced, *going]})
    assert found.rows()[0] == ("planning", 500.0, 0.25)
    assert found.rows()[2] == ("compute", 1500.0, 0.75)
    assert (found.rounds, compiled.rounds, compiled.seconds["compute"]) == (3, 1, 9.0)
    assert rows({"blocks": [first, traced]})["compute"] == 5000.0
    assert rows({"blocks": [first]})["compute"] == 9000.0
    assert rows({"blocks": []})["compute"] == 0.0


def test_a_failing_run_keeps_its_profile_and_ends_its_trace(tmp_path):
    def fail(metrics):
        if metrics.round == 1:
            raise OSError("full")

    sim = simulation()
    with pytest.raises(OSError, match="full"):
        sim.run(sim.init(), 6, run_dir=tmp_path / "run", profile=True, callbacks=[fail])
    profile = fs.runs.read(tmp_path / "run").profile
    assert profile
    assert len(profile["blocks"]) >= 2
    assert profile["trace"] == "trace"
    with jax.profiler.trace(tmp_path / "free"):  # none is going on
        pass


def test_a_trace_of_the_callers_is_left_alone(tmp_path):
    sim = simulation()
    with jax.profiler.trace(tmp_path / "mine"), pytest.warns(UserWarning, match="no trace of the rounds"):
        sim.run(sim.init(), 3, run_dir=tmp_path / "run", profile=True)
    assert list((tmp_path / "mine").rglob("*.xplane.pb"))
    profile = fs.runs.read(tmp_path / "run").profile
    assert profile
    assert (profile["trace"], len(profile["blocks"])) == (None, 3)


def test_what_cannot_be_is_said(tmp_path, profiled):
    sim = simulation()
    with pytest.raises(ArgumentError, match=r"profile=True: needs run_dir="):
        sim.run(sim.init(), 1, profile=True)
    for text in ("{", "[]", '{"blocks": [{}]}'):
        (profiled / "without" / "profile.json").write_text(text)
        with pytest.raises(fs.RunFolderError, match=r"profile\.json cannot be read: .* Delete it"):
            fs.runs.read(profiled / "without")
    (profiled / "without" / "profile.json").unlink()
