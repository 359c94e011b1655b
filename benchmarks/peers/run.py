"""The works on every peer: environments made, peers run one after another in alternating repetitions, one JSON printed.

    python benchmarks/peers/run.py --repetitions 5 > peers.json

Run it by the Python of an environment that holds this project, where `ours.py` and `plain_jax.py` run too.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import data
import evaluate
from configurations import CONFIGURATIONS, Configuration

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", default="W1,W2,W3")
    parser.add_argument("--only", default=",".join(CONFIGURATIONS), help="configurations, by name")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one process")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "fedjax_sim_peers")
    args = parser.parse_args()
    names = args.only.split(",")
    args.folder.mkdir(parents=True, exist_ok=True)
    pythons = {name: environment(CONFIGURATIONS[name], args.folder) for name in names}
    load = os.getloadavg()
    results = {work: compare(work, names, pythons, args) for work in args.works.split(",")}
    loads = [round(x, 1) for x in (*load, *os.getloadavg())]
    print(json.dumps({"command": sys.argv[1:], "machine": machine(), "load_before_and_after": loads, "works": results}))


def environment(configuration: Configuration, folder: Path) -> str:
    """The Python of a configuration's environment, which is made where it is missing or other than its requirements."""
    if configuration.environment is None:
        return sys.executable
    requirements = HERE / "requirements" / f"{configuration.environment}.txt"
    home = folder / configuration.environment
    stamp = home / "installed.txt"
    if not stamp.exists() or stamp.read_text() != requirements.read_text():
        say(f"installing {requirements.name}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        pip = [home / "bin" / "pip", "install", "--quiet", "--no-deps", "--requirement", requirements]
        subprocess.run(pip, check=True, stdout=sys.stderr)
        stamp.write_text(requirements.read_text())
    return str(home / "bin" / "python")


def compare(work: str, names: list[str], pythons: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """Run a work on all configurations, repetition by repetition; a configuration that failed is not tried again."""
    file = args.folder / f"{work}.npz"
    if not file.exists():
        data.write(work, file)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    for repetition in range(args.repetitions):
        for name in (n for n in names if n not in failed):
            with tempfile.TemporaryDirectory() as temporary:
                final = Path(temporary) / "final.npz"
                arguments = [file, work, *CONFIGURATIONS[name].options, "--final", final]
                run, error = one(CONFIGURATIONS[name], pythons[name], arguments, args.timeout)
                if run is None:
                    failed[name] = error
                    say(f"{work} {name} {error}")
                    continue
                if repetition == 0:
                    run["final_loss"] = evaluate.loss(work, file, final)
                runs[name].append(run)
                say(f"{work} {name} {statistics.median(run['rounds_s'][1:])}")
    return {name: {"error": failed[name]} if name in failed else summary(runs[name]) for name in names}


def one(configuration: Configuration, python: str, arguments: list[Any], timeout: float):
    """Run one process to its end: its line and its memory's peak, or None and what went wrong."""
    variables = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HERE.parents[1]), "CUDA_VISIBLE_DEVICES": ""}
    if configuration.threads:
        variables["OMP_NUM_THREADS"] = str(configuration.threads)
    command = [*configuration.command(python, str(HERE)), *map(str, arguments)]
    process = subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    memory = Memory(process.pid)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        memory.end_all()
        process.communicate()
        return None, f"no end in {timeout:.0f} s"
    finally:
        memory.stop()
    lines = [line for line in out.splitlines() if line.startswith('{"work"')]
    if process.returncode or not lines:
        return None, (err.strip().splitlines() or ["no output"])[-1]
    return {**json.loads(lines[-1]), "peak_mb": round(memory.peak / 2**20)}, ""


class Memory(threading.Thread):
    """The peak of a process and its descendants: private pages of all, and the largest of their shared ones (Linux)."""

    def __init__(self, pid: int, every: float = 0.05) -> None:
        super().__init__(daemon=True)
        self.pid, self.every, self.peak = pid, every, 0
        self._end = threading.Event()
        self.start()

    def run(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._end.wait(self.every):
            private, shared = 0, 0
            for pid in self.tree():
                try:
                    _, resident, common = Path(f"/proc/{pid}/statm").read_text().split()[:3]
                except OSError:
                    continue
                private, shared = private + int(resident) - int(common), max(shared, int(common))
            self.peak = max(self.peak, page * (private + shared))

    def tree(self) -> list[int]:
        """The process and its descendants."""
        found = [self.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                try:
                    found += map(int, children.read_text().split())
                except OSError:
                    continue
        return found

    def end_all(self) -> None:
        """Kill the process and its descendants."""
        for pid in reversed(self.tree()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def stop(self) -> None:
        """End the watch."""
        self._end.set()
        self.join()


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and spreads over the repetitions' later rounds."""
    later = [t for run in runs for t in run["rounds_s"][1:]]
    examples = sum(n for run in runs for n in run["examples"][1:])
    middle = statistics.median(later)
    return {
        "s_per_round": spread(later),
        "first_round_s": spread([run["rounds_s"][0] for run in runs]),
        "clients_per_s": round(runs[0]["cohort"] / middle, 1),
        "examples_per_s": round(examples / sum(later)),
        "peak_mb": spread([run["peak_mb"] for run in runs]),
        "final_loss": runs[0]["final_loss"],
        "versions": runs[0]["versions"],
        "repetitions": len(runs),
        "medians_of_repetitions": [round(statistics.median(run["rounds_s"][1:]), 5) for run in runs],
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, quartiles and extremes."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    named = {"median": statistics.median(values), "q1": low, "q3": high, "min": min(values), "max": max(values)}
    return {name: round(value, 5) for name, value in named.items()}


def machine() -> dict[str, Any]:
    """What the comparison ran on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    widest = next((name for name in ("avx512f", "avx2", "avx") if name in flags), "")
    cores = len(os.sched_getaffinity(0))
    return {"cpu": model, "vectors": widest, "cores": cores, "python": platform.python_version()}


def say(text: str) -> None:
    """To the standard error, as the JSON is on the other."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
