"""Time from a process's start to the end of round 1, and the import's own time; a fresh process for each measurement.

python benchmarks/startup.py [--runs 5]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

LIBRARIES = "import jax, flax, optax"
PACKAGE = "import jax, flax, optax, fedjax_sim"
ROUND = """
import optax, fedjax_sim as fs
fs.use_cpu_cores()
digits = fs.data.load("digits")
clients = fs.data.federate(digits.train, fs.partition.dirichlet(0.3, 100))
task = fs.classification(fs.models.CNN(num_classes=10), digits.train)
sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.05)), clients, fs.sampler.uniform(20), fs.Batching(20, epochs=5))
sim.run(sim.init(), 1, progress=False)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    programs = {"import_libraries": LIBRARIES, "import_package": PACKAGE, "end_of_round_1": ROUND}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for run in range(args.runs + 1):
        for name, program in programs.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True)
            if run:  # the first one fills the disk cache
                times[name].append(time.perf_counter() - begin)
    extra = [b - a for a, b in zip(times["import_libraries"], times["import_package"], strict=True)]
    report = {
        f"{name}_s": {"median": round(statistics.median(v), 3), "min": round(min(v), 3), "max": round(max(v), 3)}
        for name, v in {**times, "import_over_libraries": extra}.items()
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
