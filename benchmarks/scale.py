"""What grows with the cohort, and what with the population: seconds a round, and memory. JSON; asserts nothing.

    python benchmarks/scale.py [--cohorts 1000,10000,100000] [--populations 100000,1000000,10000000] [--rounds 3]
    python benchmarks/scale.py --chart docs/scale.svg

Clients have W3's model, and its examples over again: client k holds those of W3's client k modulo 5000, read when k
takes part. Cohorts are of the largest population, populations have the smallest cohort; each is a process of its own,
whose rounds are timed whole after the first two. `prepared_s` is the time from the data to the first round's begin.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole = lambda words: [int(word) for word in words.split(",")]
    parser.add_argument("--cohorts", type=whole, default=[1000, 10_000, 100_000])
    parser.add_argument("--populations", type=whole, default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chart", type=Path, help="where to draw it")
    parser.add_argument("--one", type=whole, help="used by the processes")
    args = parser.parse_args()
    if args.one is not None:
        population, cohort = args.one
        print(json.dumps(measured(population, cohort, args.rounds)))
        return
    most, least = max(args.populations), min(args.cohorts)
    settings = {(most, cohort) for cohort in args.cohorts} | {(population, least) for population in args.populations}
    found = []
    for population, cohort in sorted(settings):
        command = [sys.executable, __file__, "--one", f"{population},{cohort}", "--rounds", str(args.rounds)]
        found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    if args.chart is not None:
        draw(found, most, least, args.chart)
    print(json.dumps(found))


def measured(population: int, cohort: int, rounds: int) -> dict[str, Any]:
    """Rounds of one setting, in this process."""
    import jax
    import optax
    import works
    from federated_tax import make_task

    import fedjax_sim as fs

    fs.use_cpu_cores()
    work = works.load("W3")
    kinds = len(work.offsets) - 1

    def generate(client: np.ndarray, example: np.ndarray) -> dict[str, np.ndarray]:
        rows = work.offsets[client % kinds] + example
        return {"x": work.x[rows], "y": work.y[rows]}

    begin = time.perf_counter()
    sizes = np.resize(np.diff(work.offsets), population)
    sim = fs.Simulation(
        fs.fedavg(make_task("W3", work), optax.sgd(work.learning_rate)),
        fs.data.procedural(population, sizes, generate),
        fs.sampler.uniform(cohort),
        fs.Batching(work.batch_size),
    )
    state = sim.init({"layers": work.params})
    prepared = time.perf_counter() - begin
    seconds, planning = [], []
    for _ in range(rounds + 2):
        begin = time.perf_counter()
        state, _ = sim.step(state)
        jax.block_until_ready(state.server)
        seconds.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        sim.executor.pack(state, 1, 1)
        planning.append(time.perf_counter() - begin)
    return {
        "population": population,
        "cohort": cohort,
        "prepared_s": round(prepared, 3),
        "round_s": round(statistics.median(seconds[2:]), 4),
        "round_s_all": [round(s, 4) for s in seconds[2:]],
        "planning_s": round(statistics.median(planning[2:]), 4),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def draw(found: list[dict[str, Any]], most: int, least: int, path: Path) -> None:
    """Seconds a round and peak memory, over the cohort and over the population."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "scale"
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    sides = [(panels[0], "cohort", "population", most), (panels[1], "population", "cohort", least)]
    for panel, of, fixed, value in sides:
        rows = sorted((row for row in found if row[fixed] == value), key=lambda row: row[of])
        over = [row[of] for row in rows]
        panel.loglog(over, [row["round_s"] for row in rows], "o-", label="a round, s")
        panel.loglog(over, [row["planning_s"] for row in rows], "s-", label="of it, drawing and planning, s")
        panel.loglog(over, [row["peak_mb"] / 1024 for row in rows], "^--", label="peak memory, GiB")
        panel.set(xlabel=f"{of}, clients", title=f"{fixed} of {value:,}")
        panel.grid(alpha=0.3)
    low, high = min(p.get_ylim()[0] for p in panels), max(p.get_ylim()[1] for p in panels)
    for panel in panels:
        panel.set_ylim(low, high)
    panels[0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
