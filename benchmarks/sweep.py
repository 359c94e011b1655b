"""A sweep of 16 members on W3 against sixteen runs: steady rounds in one process, and whole processes.

    python benchmarks/sweep.py [--pairs 10] [--processes 16] [--members settings|seeds|both]

*Steady*: rounds of the sweep's program, with planning and reports, over sixteen times as many rounds of `sim.run`,
alternating in one process after two warm-up pairs. *Processes*: a process that sweeps, from its start to its end, over
sixteen that run one member each (`--processes n` of them, scaled up to sixteen; 0 leaves this out). Members are 16
settings with the cohorts of one seed; or 16 seeds, each with its own; or 4 by 4. JSON to the standard output.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import works
from federated_tax import make_task, spread

import fedjax_sim as fs
from fedjax_sim.sweeps.grid import groups_of, settings_of
from fedjax_sim.sweeps.members import Members

ROUNDS = 10
RATES = np.geomspace(0.002, 0.02, 16).tolist()
GRIDS = {
    "settings": ({"client_lr": RATES[::4], "server_lr": [0.5, 0.7, 0.8, 1.0]}, 1),
    "both": ({"client_lr": RATES[::4]}, 4),
    "seeds": ({"client_lr": [0.01]}, 16),
}


def make_build(rounds: int):
    work = works.load("W3")
    task = make_task("W3", work)
    data = fs.FederatedData({"x": work.x, "y": work.y}, work.offsets)
    cohorts = [work.cohorts[r % len(work.cohorts)] for r in range(rounds)]

    def build(client_lr: float = 0.01, server_lr: float = 1.0) -> fs.Simulation:
        algorithm = fs.fedavg(task, optax.sgd(client_lr), optax.sgd(server_lr))
        return fs.Simulation(algorithm, data, fs.sampler.fixed(cohorts), fs.Batching(work.batch_size, shuffle=False))

    return build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--members", choices=list(GRIDS), default="settings")
    parser.add_argument("--alone", choices=["one", "sweep"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    fs.use_cpu_cores()
    if args.alone:
        return alone(args.alone, args.members)

    rounds = ROUNDS * (args.pairs + 4)
    build = make_build(rounds)
    one = build()
    state, _ = one.run(one.init(), 3, progress=False)
    grid, seeds = GRIDS[args.members]
    settings = settings_of(grid)
    base = build(**settings[0])
    everyone = list(range(seeds))
    members = Members(build, base, settings[0], groups_of(settings)[0], everyone, everyone, None, None)
    samplers = [base.parts.sampler_state] * (1 if members.same_cohorts else seeds)
    swept, now = None, 0
    times: dict[str, list[float]] = {"sweep": [], "sixteen": []}
    for _ in range(args.pairs + 2):
        begin = time.perf_counter()
        reports = []
        for _ in range(ROUNDS):
            plan, samplers = members.plan(samplers, now, 1)
            swept = members.start(plan) if swept is None else swept
            swept, report = members.rounds(swept, plan)
            reports.append(report)
            now += 1
        jax.device_get(reports)
        times["sweep"].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        for _ in range(16):
            after, _ = one.run(state, ROUNDS, progress=False)
            jax.block_until_ready(after.server)
        times["sixteen"].append(time.perf_counter() - begin)
    times = {name: values[2:] for name, values in times.items()}
    ratios = [a / b for a, b in zip(times["sweep"], times["sixteen"], strict=True)]
    report = {
        "members": args.members,
        "devices": f"{len(one.devices)} {one.devices[0].device_kind}",
        "lanes": base.lanes,
        "steady_ratio": spread(ratios),
        "steady_ratio_of_medians": round(statistics.median(times["sweep"]) / statistics.median(times["sixteen"]), 3),
        **{f"{name}_round_ms": spread([1e3 * t / ROUNDS for t in values]) for name, values in times.items()},
        "compilations": members.compile_count(),
        "jax": jax.__version__,
    }
    if args.processes:
        report |= processes(args.processes, args.members)
    print(json.dumps(report))


def processes(count: int, members: str) -> dict[str, float]:
    """Seconds of a process that sweeps and of sixteen that run, alternating: a sweep in every fourth place."""
    times: dict[str, list[float]] = {"one": [], "sweep": []}
    for i in range(count):
        for kind in ["one", "sweep"] if i % 4 == 0 else ["one"]:
            begin = time.perf_counter()
            subprocess.run([sys.executable, __file__, "--alone", kind, "--members", members], check=True)
            times[kind].append(time.perf_counter() - begin)
    sweep, sixteen = statistics.median(times["sweep"]), 16 * statistics.mean(times["one"])
    return {
        "sweep_process_s": round(sweep, 2),
        "sixteen_processes_s": round(sixteen, 1),
        "process_ratio": round(sweep / sixteen, 3),
    }


def alone(kind: str, members: str) -> None:
    """What one process does."""
    build = make_build(ROUNDS)
    if kind == "sweep":
        grid, seeds = GRIDS[members]
        fs.sweep(build, grid, ROUNDS, seeds)
    else:
        sim = build()
        sim.run(sim.init(), ROUNDS, progress=False)


if __name__ == "__main__":
    main()
