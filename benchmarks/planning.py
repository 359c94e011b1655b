"""Sampling and planning a cohort of 1000 out of 1,000,000 clients, on the host alone.

python benchmarks/planning.py [--population 1000000] [--cohort 1000] [--rounds 100]
"""

import argparse
import json
import statistics
import time

import numpy as np

import fedjax_sim as fs
from fedjax_sim.engine.plan.planner import Planner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--population", type=int, default=1_000_000)
    parser.add_argument("--cohort", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=100)
    args = parser.parse_args()

    sizes = np.random.default_rng(0).integers(10, 61, args.population)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    data = fs.FederatedData({"x": np.zeros(int(offsets[-1]), np.uint8)}, offsets)
    sampler, planner = fs.sampler.uniform(args.cohort), Planner(data, fs.Batching(10), devices=2)
    shape, state = planner.shape(args.cohort, lanes=16), sampler.init(args.population)
    sampling, planning = [], []
    for r in range(args.rounds + 3):
        begin = time.perf_counter()
        cohort, state = sampler.sample(state, r, 0)
        drawn = time.perf_counter()
        planner.plan(cohort, shape, 0, r)
        sampling.append(1e3 * (drawn - begin))
        planning.append(1e3 * (time.perf_counter() - drawn))
    both = [a + b for a, b in zip(sampling, planning, strict=True)][3:]
    low, middle, high = statistics.quantiles(both, n=4)
    print(
        json.dumps(
            {
                "population": args.population,
                "cohort": args.cohort,
                "sampling_ms_median": round(statistics.median(sampling[3:]), 3),
                "planning_ms_median": round(statistics.median(planning[3:]), 3),
                "both_ms": {"median": round(middle, 3), "q1": round(low, 3), "q3": round(high, 3)},
                "numpy": np.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
