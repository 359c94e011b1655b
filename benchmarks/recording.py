"""What keeping a run costs: rounds with a run folder over the same rounds without one.

    python benchmarks/recording.py W1 [--pairs 7] [--rounds 500] [--checkpoint-every 25]

With a folder, a run writes metrics, per-client Parquet, TensorBoard events and checkpoints, prints its progress, and
draws its plots at the end; without, it returns its history, whose numbers are read in both cases. Runs alternate in one
process, and change places from pair to pair, after a warm-up pair that compiles and imports; each is timed whole. JSON
to the standard output, with the median of the pairs' ratios and their quartiles.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import optax
import works
from federated_tax import make_task

import fedjax_sim as fs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["W1", "W2", "W3"])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--checkpoint-every", type=int, default=25)
    args = parser.parse_args()
    if args.pairs < 2:
        parser.error("--pairs must be at least 2: quartiles need several ratios")
    fs.use_cpu_cores()

    work = works.load(args.work)
    cohorts = [work.cohorts[r % len(work.cohorts)] for r in range(args.rounds)]
    sim = fs.Simulation(
        fs.fedavg(make_task(args.work, work), optax.sgd(work.learning_rate)),
        fs.FederatedData({"x": work.x, "y": work.y}, work.offsets),
        fs.sampler.fixed(cohorts),
        fs.Batching(work.batch_size, shuffle=False),
    )
    start = sim.init({"layers": work.params})
    seconds: dict[str, list[float]] = {"bare": [], "recorded": []}
    sizes: list[int] = []

    def timed(name: str, rounds: int, **options: object) -> None:
        begin = time.perf_counter()
        _, history = sim.run(start, rounds, **options)  # type: ignore[arg-type]
        history["client/loss"]
        seconds[name].append(time.perf_counter() - begin)

    for pair in range(args.pairs + 1):
        rounds = args.rounds if pair else 5
        for name in ("bare", "recorded") if pair % 2 else ("recorded", "bare"):
            if name == "bare":
                timed(name, rounds, progress=False)
                continue
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                timed(name, rounds, run_dir=f"{folder}/run", checkpoint_every=args.checkpoint_every)
                sizes.append(sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()))
    bare, recorded = seconds["bare"][1:], seconds["recorded"][1:]
    ratios = [a / b for a, b in zip(recorded, bare, strict=True)]
    print(
        json.dumps(
            {
                "work": args.work,
                "rounds": args.rounds,
                "checkpoint_every": args.checkpoint_every,
                "pairs": args.pairs,
                "recorded_over_bare": statistics.median(ratios),
                "quartiles": statistics.quantiles(ratios, n=4)[::2],
                "ratios": [round(ratio, 4) for ratio in sorted(ratios)],
                "bare_ms_per_round": 1000 * statistics.median(bare) / args.rounds,
                "recorded_ms_per_round": 1000 * statistics.median(recorded) / args.rounds,
                "folder_megabytes": sizes[-1] / 1e6,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
