"""Streamed rounds against resident ones, and ten million clients against ten thousand. JSON; asserts nothing.

    python benchmarks/streaming.py W1 [--pairs 30]           # or W2
    python benchmarks/streaming.py population [--pairs 30]

Works: pictures in a `.npy` file, of which each round reads its cohort's, against the same in memory; runs of
`--rounds` rounds, so that reading overlaps with computing, alternate in one process and are timed whole.
Population: rounds of two procedural populations alternate in one process; memory is measured in a process for each.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["W1", "W2", "population"])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", type=int, default=None, help="used by the processes")
    args = parser.parse_args()

    import fedjax_sim as fs

    fs.use_cpu_cores()
    if args.one is not None:
        sim = procedural(args.one)
        sim.run(sim.init(), 5, progress=False)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps(peak))
    elif args.work == "population":
        peaks = {}
        for clients in (10_000, 10_000_000):
            command = [sys.executable, __file__, "population", "--one", str(clients)]
            peaks[clients] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        report = compare(procedural(10_000_000), procedural(10_000), args)
        print(json.dumps({**report, "peak_mb": peaks, "more_mb": peaks[10_000_000] - peaks[10_000]}))
    else:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({"work": args.work, **compare(*pictures(args.work, Path(folder)), args)}))


def procedural(clients: int) -> Any:
    """Logistic regression on clients whose 20 examples are made on demand; 1000 clients a round."""
    import numpy as np
    import optax

    import fedjax_sim as fs

    def generate(client: Any, example: Any) -> dict[str, Any]:
        phase = (client % 1009 + 31 * example)[:, None] * np.linspace(0.1, 1.0, 60)
        return {"x": np.sin(phase).astype(np.float32), "y": ((client + example) % 10).astype(np.int32)}

    data = fs.data.procedural(clients, 20, generate)
    task = fs.classification(fs.models.LogisticRegression(10), data.client(0))
    return fs.Simulation(fs.fedavg(task, optax.sgd(0.1)), data, fs.sampler.uniform(1000), fs.Batching(10))


def pictures(name: str, folder: Path) -> tuple[Any, Any]:
    """The work's simulation, streamed and resident."""
    import numpy as np
    import optax
    import works
    from federated_tax import make_task

    import fedjax_sim as fs

    work = works.load(name)
    np.save(folder / "x.npy", work.x)

    def simulation(x: Any, residency: Any) -> fs.Simulation:
        return fs.Simulation(
            fs.fedavg(make_task(name, work), optax.sgd(work.learning_rate)),
            fs.FederatedData({"x": x, "y": work.y}, work.offsets),
            fs.sampler.uniform(len(work.cohorts[0])),
            fs.Batching(work.batch_size),
            execution=fs.Execution(residency=residency),
        )

    return simulation(fs.data.on_disk(folder / "x.npy"), "stream"), simulation(work.x, "device")


def compare(first: Any, second: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Times of a round of each, and their ratio, over alternating pairs after a warm-up of each."""
    import jax

    states = [sim.run(sim.init(), args.rounds, progress=False)[0] for sim in (first, second)]
    times: list[list[float]] = [[], []]
    for pair in range(args.pairs):
        for i in (0, 1) if pair % 2 == 0 else (1, 0):
            begin = time.perf_counter()
            states[i], _ = (first, second)[i].run(states[i], args.rounds, progress=False)
            jax.block_until_ready(states[i].server)
            times[i].append((time.perf_counter() - begin) / args.rounds)
    ratios = sorted(a / b for a, b in zip(*times, strict=True))
    return {
        "first_ms": round(1e3 * statistics.median(times[0]), 2),
        "second_ms": round(1e3 * statistics.median(times[1]), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(ratios[len(ratios) // 4], 3), round(ratios[3 * len(ratios) // 4], 3)],
        "pairs": args.pairs,
        "compiled": [first.compile_count(), second.compile_count()],
    }


if __name__ == "__main__":
    main()
