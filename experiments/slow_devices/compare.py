"""The table and the picture of the README: `python experiments/slow_devices/compare.py [hours] [seeds]`."""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from config import Config, build

import fedjax_sim as fs

ARMS: dict[str, dict[str, Any]] = {
    "deadline": {"way": "deadline"},
    "over-selection": {"way": "over_select"},
    "FedProx, partial work": {"way": "partial_work"},
    "Oort": {"way": "oort"},
    "FedBuff, all awake": {"way": "fedbuff"},
    "deadline, all awake": {"way": "deadline", "awake": "always"},
}
SCORE, LEVEL = "test/accuracy", 0.7
Columns = dict[str, np.ndarray]


def trained(config: Config, hours: float) -> Columns:
    """The columns of a run of so many simulated hours."""
    late = lambda metrics: fs.runs.Stop("time is up") if metrics["clock/time"] >= 3600 * hours else None
    sim = build(config)
    _, history = sim.run(sim.init(), 10_000, eval_every=config.eval_every, callbacks=[late], progress=False)
    names = ("round", SCORE, "clock/time", "clock/bytes_up", "clock/bytes_down", "clock/waste", "population/trained")
    return {name: np.asarray(history[name], np.float64) for name in names}


def row(runs: list[Columns]) -> list[str]:
    """Of the seeds: hours and gigabytes until the level, accuracies of the second half, share wasted, and rounds."""
    hours, gigabytes, means, lows, highs, wastes, rounds = [], [], [], [], [], [], []
    for run in runs:
        at, sent = run["clock/time"] / 3600, (run["clock/bytes_up"] + run["clock/bytes_down"]) / 1e9
        reached = run[SCORE] >= LEVEL
        hours.append(at[np.argmax(reached)] if reached.any() else np.inf)
        gigabytes.append(sent[np.argmax(reached)] if reached.any() else np.inf)
        half = run[SCORE][(at > at[-1] / 2) & np.isfinite(run[SCORE])]
        means.append(half.mean())
        lows.append(half.min())
        highs.append(half.max())
        wastes.append(run["clock/waste"].mean())
        rounds.append(len(at))
    spread = lambda values, digits: (
        f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
    )
    return [
        spread(hours, 1),
        spread(gigabytes, 2),
        spread(means, 3),
        f"{np.mean(lows):.3f} to {np.mean(highs):.3f}",
        f"{np.mean(wastes):.2f}",
        f"{np.mean(rounds):.0f}",
    ]


def spread(values: list[float], digits: int) -> str:
    """The seeds' mean, least and most."""
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main(hours: float, seeds: int) -> None:
    fs.use_cpu_cores()
    found, begin = {}, time.process_time()
    for arm, changes in ARMS.items():
        found[arm] = [trained(Config(seed=seed, **changes), hours) for seed in range(seeds)]
        print(f"| {arm} | {' | '.join(row(found[arm]))} |", flush=True)
    print(f"{(time.process_time() - begin) / 60:.1f} minutes of CPU time")
    picture = Path(__file__).parent / "hours_and_gigabytes.png"
    fs.plots.timed(found, SCORE).savefig(picture, dpi=110)


if __name__ == "__main__":
    main(float(sys.argv[1]) if sys.argv[1:] else 24.0, int(sys.argv[2]) if sys.argv[2:] else 3)
