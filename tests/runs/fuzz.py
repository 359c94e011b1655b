"""Damage to every file of a run's folder, by `python -m tests.runs.fuzz [MUTATIONS] [SEED]`; the suite tries a few.

Whoever reads a damaged folder gets what was saved, an error of ours, or a warning that names the file. Never anything
else: no other exception, no hang, no memory beyond a limit, and no number that is another without a word.

Formats without a checksum, where another number may come out in silence: profile.json, and the names and the schema of
per-client Parquet files (their values have one).
"""

import contextlib
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import fedjax_sim as fs
from fedjax_sim.core.errors import FedSimError
from fedjax_sim.engine.store.checkpoint import Checkpoints
from fedjax_sim.runs import checksums, report, tables
from tests.engine import toys

SECONDS, MEGABYTES = 20, 1024
UNPROTECTED = ("profile.json", "clients")
WORDS = ('"x"', "null", "[]", "{}", "-1", "1e999", "NaN", "true", "1" * 400, "0.5", '"\\ud800"', "[[1], 2]", "1e17")


def make(folder: Path) -> Path:
    """A run of three rounds with all that a folder can hold, and a state with rows on the host."""
    scaffold = lambda: toys.watched(toys.ALGORITHMS["scaffold"](toys.task()))
    parts = (toys.federation(), fs.sampler.uniform(3), fs.Batching(4))
    sim = fs.Simulation(scaffold(), *parts, evaluate=lambda params: {"test/loss": 0.5})
    sim.run(sim.init(), 3, run_dir=folder, checkpoint_every=2, eval_every=1)
    block = {"first": 0, "rounds": 3, "compiled": False, "traced": False}
    block |= dict.fromkeys(("planning", "transfer", "compute", "evaluation", "rest"), 0.25)
    (folder / "profile.json").write_text(json.dumps({"blocks": [block]}))
    host = fs.Simulation(scaffold(), *parts, execution=fs.Execution(rows="host"))
    host.save(folder / "host", host.step(host.init())[0])
    for name in ("plots", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return folder


def files(folder: Path) -> list[Path]:
    """All that are read."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")


def damage(path: Path, draw: random.Random) -> str:
    """Change a file in one way, by chance: how."""
    data = bytearray(path.read_bytes())
    at = draw.randrange(len(data)) if data else 0
    end = min(len(data), at + draw.choice([1, 2, 8, 100]))
    digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
    ways: dict[str, Callable[[], Any]] = {
        "a bit": lambda: data.__setitem__(at, data[at] ^ 1 << draw.randrange(8)),
        "some bytes": lambda: data.__setitem__(slice(at, end), draw.randbytes(end - at)),
        "zeros": lambda: data.__setitem__(slice(at, end), bytes(end - at)),
        "cut": lambda: data.__delitem__(slice(at, None)),
        "left out": lambda: data.__delitem__(slice(at, end)),
        "put in": lambda: data.__setitem__(slice(at, at), draw.randbytes(draw.choice([1, 7, 300]))),
        "twice": lambda: data.__setitem__(slice(at, at), data[:end]),
        "a digit": lambda: data.__setitem__(draw.choice(digits), ord(draw.choice("0123456789"))),
        "a word": lambda: data.__setitem__(slice(at, draw.choice([at, end])), draw.choice(WORDS).encode()),
        "a value": lambda: _value(data, draw),
        "empty": data.clear,
    }
    way = draw.choice(list(ways) + ["gone", "a folder"] * (draw.random() < 0.2))
    if way == "gone":
        path.unlink()
    elif way == "a folder":
        path.unlink()
        path.mkdir()
    else:
        with contextlib.suppress(IndexError):  # too short for that
            ways[way]()
        path.write_bytes(data)
    return way


def _value(data: bytearray, draw: random.Random) -> None:
    """Another value in a line of JSON."""
    lines = data.split(b"\n")
    i = draw.randrange(len(lines))
    with contextlib.suppress(ValueError):
        found = json.loads(bytes(data)) if data[:2] == b"{\n" else json.loads(lines[i])
        at = found
        while isinstance(at, dict) and at:
            key = draw.choice(sorted(at))
            if not isinstance(at[key], dict) or not at[key] or draw.random() < 0.3:
                at[key] = json.loads(draw.choice(WORDS))
                break
            at = at[key]
        text = json.dumps(found).encode()
        data[:] = text if data[:2] == b"{\n" else b"\n".join([*lines[:i], text, *lines[i + 1 :]])


def look(folder: Path, drawn: bool) -> dict[str, Any]:
    """What `show` and `report` say of a run; `drawn` with its pictures."""
    run = fs.runs.read(folder)
    table = run.clients()
    found = {
        "config.json": run.config,
        "metrics.jsonl": {name: [np.asarray(v).tolist() for v in column] for name, column in run.metrics.items()},
        "timing.jsonl": None if run.seconds is None else run.seconds.tolist(),
        "partition.npz": None if run.partition is None else {k: v.tolist() for k, v in run.partition.items()},
        "profile.json": run.profile,
        "clients": {name: column.tolist() for name, column in table.items()},
    }
    for tell in (repr, fs.runs.Run._repr_html_, tables.metrics_table, tables.profile_table):
        tell(run)
    if drawn:
        report.page([run]).encode()
    return found


def restore(folder: Path, rounds: list[int] | None = None) -> dict[str, Any]:
    """What the checkpoints of those rounds hold, or all, as bytes and words; nothing of damaged ones."""
    found: dict[str, Any] = {}
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    with contextlib.closing(checkpoints):
        for round in checkpoints.rounds() if rounds is None else rounds:
            with contextlib.suppress(FedSimError):
                leaves, found[f"record {round}"] = checkpoints.read(round)
                found[str(round)] = {
                    name: (leaf.dtype.str, leaf.shape, leaf.tobytes()) for name, leaf in leaves.items()
                }
    return found


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """So many seconds of work, and six times as many of waiting, as machines are shared."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"longer than {SECONDS} s")

    timers = {signal.SIGPROF: signal.ITIMER_PROF, signal.SIGALRM: signal.ITIMER_REAL}
    before = {number: signal.signal(number, late) for number in timers}
    for number, timer in timers.items():
        signal.setitimer(timer, SECONDS if number == signal.SIGPROF else 6 * SECONDS)
    try:
        yield
    finally:
        for number, timer in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def fuzz(folder: Path, mutations: int, seed: int = 0, draw_every: int = 100, tell: Any = lambda fault: None) -> Any:
    """Faults found, each told at once, and how the mutations ended.

    Args:
        folder: what `make` gave.
        mutations: how many.
        draw_every: pictures are drawn for one in so many.
        tell: called with each fault.
    """
    draw, ends = random.Random(seed), Counter()
    faults: list[str] = []
    fault = lambda words: (faults.append(words), tell(words))
    seen = {name: repr(value) for name, value in look(folder, True).items()}
    kept = {place: restore(place) for place in (folder, folder / "host")}
    places = files(folder)
    few = [path for path in places if "checkpoints" not in path.parts]  # there are many of those
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(mutations):
        path = draw.choice(draw.choice([places, few]))
        whole, inside = path.read_bytes(), path.relative_to(folder)
        way = damage(path, draw)
        what = f"mutation {number} of seed {seed}, {inside}, {way}"
        try:
            with limited(), warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                if "checkpoints" in inside.parts or "host" in inside.parts:
                    place = folder / "host" if inside.parts[0] == "host" else folder
                    read = [int(each) for each in inside.parts if each.isdigit()][:1]
                    found = restore(place, read or None)
                    differs = [name for name in found if found[name] != kept[place].get(name)]
                    ends["the same" if found else "left out"] += 1
                else:
                    found = look(folder, number % draw_every == 0)
                    differs = [name for name in found if repr(found[name]) != seen[name] and name not in UNPROTECTED]
                    ends["warned" if warned else "the same" if not differs else "another"] += 1
                told = [str(each.message) for each in warned]
                if differs and not any(checksums.FILE in each for each in told):
                    fault(f"{what}: {differs} differ in silence")
        except FedSimError:
            ends["refused"] += 1
        except Exception as error:
            fault(f"{what}: {type(error).__name__}: {str(error)[:200]}")
        finally:
            if path.is_dir():
                path.rmdir()
            path.write_bytes(whole)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) // 1024
    if grown > MEGABYTES:
        fault(f"{grown} MB more memory")
    return faults, ends


def main() -> None:
    """The number of mutations and a seed from the command line."""
    given = [int(word) for word in sys.argv[1:]] + [5000, 0][len(sys.argv) - 1 :]
    with tempfile.TemporaryDirectory() as folder:
        faults, ends = fuzz(make(Path(folder) / "run"), *given, tell=lambda fault: print(fault, flush=True))
    print(f"{sum(ends.values())} mutations, {len(faults)} faults:", dict(ends))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
