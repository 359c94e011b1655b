"""Peak memory against the cohort size: W3 widened to 30,000 clients, a process for each cohort size.

python benchmarks/memory.py [--cohorts 200 20000] [--rounds 3]
"""

import argparse
import json
import resource
import subprocess
import sys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, nargs="+", default=[200, 20_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", type=int, default=None, help="used by the processes")
    args = parser.parse_args()
    if args.one is not None:
        return measure(args.one, args.rounds)
    peaks = {}
    for cohort in args.cohorts:
        command = [sys.executable, __file__, "--one", str(cohort), "--rounds", str(args.rounds)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[cohort] = json.loads(done.stdout)
    first, last = (peaks[c]["peak_mb"] for c in (args.cohorts[0], args.cohorts[-1]))
    print(json.dumps({"cohorts": peaks, "ratio_of_last_to_first": round(last / first, 3)}))
    return None


def measure(cohort: int, rounds: int) -> None:
    """Run a few rounds and report this process's peak."""
    import optax
    import works
    from federated_tax import make_task

    import fedjax_sim as fs

    fs.use_cpu_cores()
    work = works._w3(clients=30_000)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sim = fs.Simulation(
        fs.fedavg(make_task("W3", work), optax.sgd(work.learning_rate)),
        fs.FederatedData({"x": work.x, "y": work.y}, work.offsets),
        fs.sampler.uniform(cohort),
        fs.Batching(work.batch_size),
    )
    _, history = sim.run(sim.init(), rounds, progress=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    loss = float(history["client/loss"][-1])
    print(json.dumps({"peak_mb": peak, "peak_mb_before_training": loaded, "loss": loss}))


if __name__ == "__main__":
    main()
