"""Two CPU devices, or two processes of a device each, against one device on one core. JSON; asserts nothing.

    python benchmarks/devices.py W1 [--pairs 30]

A worker waits for a word, trains so many rounds and says how long they took; workers of the three kinds take turns.
One device is confined to one core, two devices have two cores, and each of two processes has a core of its own.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

KINDS = {"one device": [[0]], "two devices": [[0, 1]], "two processes": [[0], [1]]}
"""The cores of each process."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["W1", "W2", "W3"])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--worker", default=None, help="used by the workers")
    args = parser.parse_args()
    if args.worker:
        worker(args.work, args.rounds, **json.loads(args.worker))
        return
    from federated_tax import spread

    begun = {kind: begin(args, cores) for kind, cores in KINDS.items()}
    losses = {kind: max([float(told(each)) for each in workers]) for kind, workers in begun.items()}
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(args.pairs + 1):
        for kind, workers in begun.items():
            for each in workers:
                print("go", file=each.stdin, flush=True)
            times[kind].append(max(float(told(each)) for each in workers))
    for workers in begun.values():
        for each in workers:
            each.kill()
    times = {kind: values[1:] for kind, values in times.items()}
    one = times.pop("one device")
    ratios = {kind: [a / b for a, b in zip(one, values, strict=True)] for kind, values in times.items()}
    report = {
        "work": args.work,
        "faster": {kind: spread(values) for kind, values in ratios.items()},
        "round_ms": {
            kind: spread([1e3 * t / args.rounds for t in values])
            for kind, values in {"one device": one, **times}.items()
        },
        "client_loss": losses,
    }
    print(json.dumps(report))


def begin(args: Any, cores: list[list[int]]) -> list[Any]:
    """Processes of one kind, each confined to its cores."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = []
    for i, mine in enumerate(cores):
        facts = {"cores": mine, "port": port, "num_processes": len(cores), "process_id": i}
        words = [sys.executable, __file__, args.work, "--rounds", str(args.rounds), "--worker", json.dumps(facts)]
        started.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    return started


def told(process: Any) -> str:
    """What a worker says; JAX's processes print lines of their own."""
    for line in process.stdout:
        if line.startswith("says "):
            return line.removeprefix("says ")
    raise SystemExit(f"a worker ended with status {process.wait()}")


def worker(name: str, rounds: int, cores: list[int], port: int, num_processes: int, process_id: int) -> None:
    os.sched_setaffinity(0, cores)  # before JAX counts cores
    import jax
    import optax
    import works
    from federated_tax import make_task

    import fedjax_sim as fs

    fs.use_cpu_cores(len(cores))
    if num_processes > 1:
        fs.use_processes(f"127.0.0.1:{port}", num_processes, process_id)
    work = works.load(name)
    sim = fs.Simulation(
        fs.fedavg(make_task(name, work), optax.sgd(work.learning_rate)),
        fs.FederatedData({"x": work.x, "y": work.y}, work.offsets),
        fs.sampler.uniform(work.cohorts.shape[1]),
        fs.Batching(work.batch_size),
    )
    state, history = sim.run(sim.init({"layers": work.params}), rounds, progress=False)
    print("says", history["client/loss"][-1], flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        after, _ = sim.run(state, rounds, progress=False)
        jax.block_until_ready(after.server)
        print("says", time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main()
