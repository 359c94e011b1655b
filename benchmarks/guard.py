"""This tree against another version of the package: the rounds of W1 and W3, in alternation. JSON; asserts nothing.

    python benchmarks/guard.py [--against REF] [--pairs 30] [--works W1,W3]

REF is a tag or a commit of this repository, the last tag where none is given, else the tree's own last commit: its
wheel is built and installed without its requirements into a folder of its own, so that both run on the same JAX. Each
version has a process, which holds its works ready and times one round whenever it is asked to; a ratio over 1 says that
this tree is slower.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="a tag or a commit")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--works", default="W1,W3")
    parser.add_argument("--serve", action="store_true", help="used by the processes")
    args = parser.parse_args()
    names = args.works.split(",")
    if args.serve:
        return serve(names)
    against = args.against or last_tag()
    with tempfile.TemporaryDirectory() as folder:
        installed = install(against, Path(folder))
        here, there = process(ROOT, names), process(installed, names)
        found = {name: compared(name, here, there, args.pairs) for name in names}
        for one in (here, there):
            one.stdin.close()
            one.wait()
    print(json.dumps({"against": against, "pairs": args.pairs, "works": found}))
    return None


def last_tag() -> str:
    """The last tag before this commit, or the commit itself."""
    asked = subprocess.run(["git", "describe", "--tags", "--abbrev=0"], cwd=ROOT, capture_output=True, text=True)
    return asked.stdout.strip() or "HEAD"


def install(ref: str, folder: Path) -> Path:
    """That version's package, from its wheel; returns the folder to import it from."""
    tree = folder / "tree"
    tree.mkdir()
    archive = subprocess.run(["git", "archive", ref], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "installed")]
    subprocess.run([*pip, str(tree)], check=True, stdout=sys.stderr)
    return folder / "installed"


def process(package: Path, names: list[str]) -> Any:
    """A process that times rounds with the package found in a folder."""
    command = [sys.executable, __file__, "--serve", "--works", ",".join(names)]
    path = {**os.environ, "PYTHONPATH": str(package), "GUARD_PACKAGE": str(package)}
    return subprocess.Popen(command, env=path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)


def asked(of: Any, name: str) -> float:
    """Seconds of one round of a work, in that process."""
    print(name, file=of.stdin, flush=True)
    return float(of.stdout.readline())


def compared(name: str, here: Any, there: Any, pairs: int) -> dict[str, Any]:
    """Both versions' rounds; their order changes from pair to pair."""
    for one in (here, there):
        for _ in range(3):
            asked(one, name)
    times: dict[str, list[float]] = {"here": [], "there": []}
    for pair in range(pairs):
        both = [("here", here), ("there", there)]
        for which, one in both if pair % 2 else both[::-1]:
            times[which].append(1e3 * asked(one, name))
    ratios = [a / b for a, b in zip(times["here"], times["there"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    medians = {f"{which}_ms": round(statistics.median(values), 2) for which, values in times.items()}
    return {"ratio": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)], **medians}


def serve(names: list[str]) -> None:
    """For each name of a work that is read, a round; its seconds are printed."""
    import jax
    import optax
    import works
    from federated_tax import make_task

    import fedjax_sim as fs

    if not Path(fs.__file__).is_relative_to(os.environ["GUARD_PACKAGE"]):
        raise SystemExit(f"{fs.__file__} was imported, not the package in {os.environ['GUARD_PACKAGE']}.")
    fs.use_cpu_cores()
    sims, states = {}, {}
    for name in names:
        work = works.load(name)
        sims[name] = fs.Simulation(
            fs.fedavg(make_task(name, work), optax.sgd(work.learning_rate)),
            fs.FederatedData({"x": work.x, "y": work.y}, work.offsets),
            fs.sampler.uniform(len(work.cohorts[0])),
            fs.Batching(work.batch_size),
        )
        states[name] = sims[name].init({"layers": work.params})
    for line in sys.stdin:
        name = line.strip()
        begin = time.perf_counter()
        states[name], _ = sims[name].step(states[name])
        jax.block_until_ready(states[name].server)
        print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main()
