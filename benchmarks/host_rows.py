"""Client rows on the host against rows on the devices; and SCAFFOLD on 100,000 clients. JSON; asserts nothing.

    python benchmarks/host_rows.py W1 [--pairs 30]
    python benchmarks/host_rows.py large [--rounds 20]

W1: SCAFFOLD, rounds of the kinds alternate in one process. `large`: SCAFFOLD with the CNN of 1.2 million parameters
on 100,000 procedural clients, whose rows would take 480 GB, 10 a round; with the memory's peak.
"""

import argparse
import json
import resource
import time
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["W1", "large"])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--cohort", type=int, default=10)
    args = parser.parse_args()

    import fedjax_sim as fs

    fs.use_cpu_cores()
    print(json.dumps(large(args.rounds or 20, args.cohort) if args.what == "large" else compare(args)))


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Runs of `--rounds` rounds, timed whole, so that what overlaps with computing does."""
    import jax
    import works
    from federated_tax import make_task, spread

    import fedjax_sim as fs

    work, rounds = works.load("W1"), args.rounds or 3

    def simulation(rows: Any, **kwargs: Any) -> fs.Simulation:
        return fs.Simulation(
            fs.scaffold(make_task("W1", work), work.learning_rate, len(work.offsets) - 1),
            fs.FederatedData({"x": work.x, "y": work.y}, work.offsets),
            fs.sampler.uniform(work.cohorts.shape[1]),
            fs.Batching(work.batch_size),
            execution=fs.Execution(rows=rows),
            **kwargs,
        )

    # With "drop" the devices' table is changed in place; else it is copied each round, for the state before a failure.
    in_place = simulation("device", on_nonfinite="drop")
    sims = {"host": simulation("host"), "device": simulation("device"), "device in place": in_place}
    states = {rows: sim.run(sim.init({"layers": work.params}), 20, progress=False)[0] for rows, sim in sims.items()}
    times: dict[str, list[float]] = {rows: [] for rows in sims}
    for _ in range(args.pairs + 1):
        for rows, sim in sims.items():
            begin = time.perf_counter()
            states[rows], _ = sim.run(states[rows], rounds, progress=False)
            jax.block_until_ready(states[rows].server)
            times[rows].append((time.perf_counter() - begin) / rounds)
    ratios = {
        f"host_over_{rows}": spread([a / b for a, b in zip(times["host"][1:], times[rows][1:], strict=True)])
        for rows in ("device", "device in place")
    }
    measured = {f"{rows}_ms": spread([1e3 * t for t in values[1:]]) for rows, values in times.items()}
    losses = {rows: sim.step(states[rows])[1]["client/loss"] for rows, sim in sims.items()}
    return {"work": "W1", **ratios, **measured, "client_loss": losses}


def large(rounds: int, cohort: int) -> dict[str, Any]:
    """SCAFFOLD on clients that are many and large."""
    import numpy as np
    import works
    from federated_tax import make_task

    import fedjax_sim as fs

    work = works.load("W2")
    sizes = np.diff(work.offsets)
    clients = 100_000

    def generate(client: Any, example: Any) -> dict[str, Any]:
        at = work.offsets[client % len(sizes)] + example % sizes[client % len(sizes)]
        return {"x": work.x[at], "y": work.y[at]}

    data = fs.data.procedural(clients, 40, generate)
    sim = fs.Simulation(
        fs.scaffold(make_task("W2", work), work.learning_rate, clients),
        data,
        fs.sampler.uniform(cohort),
        fs.Batching(work.batch_size),
    )
    begin = time.perf_counter()
    state, history = sim.run(sim.init({"layers": work.params}), rounds, progress=False)
    state.rows.settle()
    return {
        "rows": sim.rows,
        "clients": clients,
        "row_mb": round(sim.parts.row_bytes / 1e6, 2),
        "dense_gb": round(sim.parts.row_bytes * clients / 1e9),
        "rounds": rounds,
        "used_rows": len(state.rows.used()),
        "file_mb": round(state.rows.file.slots * sim.parts.row_bytes / 1e6),
        "seconds": round(time.perf_counter() - begin, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "client_loss": [round(float(x), 4) for x in history["client/loss"][[0, -1]]],
    }


if __name__ == "__main__":
    main()
