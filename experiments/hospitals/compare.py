"""The table of the README: `python experiments/hospitals/compare.py heart_disease|dialysis [seeds]`."""

import sys
from typing import Any

import numpy as np
from config import Config, alone, build, standardised, task_of

import fedjax_sim as fs

ARMS: dict[str, dict[str, Any]] = {
    "each alone, its own moments": {"statistics": "site"},
    "all patients in one place": {"how": "pooled"},
    "federated": {"how": "federated"},
    "federated, each its own moments": {"how": "federated", "statistics": "site"},
    "federated under a secure sum": {"how": "secure"},
    "that with distributed noise": {"how": "private"},
}


def found(arm: str, config: Config) -> dict[str, np.ndarray]:
    """AUC and calibration error of each hospital's patients that are held out, and of all of them."""
    if arm.startswith("each alone"):
        clients: Any = alone(config)
    else:
        sim = build(config)
        state, history = sim.run(sim.init(), config.rounds)
        if config.how in ("secure", "private"):
            assert not history["secure/aborted"].any()
        train, test = standardised(config)
        clients = fs.evaluate_clients(task_of(train), sim.params(state), test)
    pooled = clients.pooled()
    return {name: np.append(np.asarray(clients[name]), pooled[name]) for name in ("auc", "ece")}


def main(data: str, seeds: int) -> None:
    for arm, changes in ARMS.items():
        made = [found(arm, Config(data=data, seed=s, **changes)) for s in range(seeds)]  # type: ignore[arg-type]
        cells = []
        for name in ("auc", "ece"):
            values = np.stack([each[name] for each in made])  # [seeds, sites + 1]
            sites = np.nanmean(values[:, :-1], axis=1)
            cells += [spread(sites), spread(values[:, -1])]
            if values.shape[1] < 9:
                cells += [" ".join(f"{np.nanmean(v):.2f}" for v in values[:, :-1].T)]
        print(f"| {arm} | {' | '.join(cells)} |", flush=True)


def spread(values: np.ndarray) -> str:
    """Mean and the 95 % interval of a mean over seeds, by Student's law."""
    from scipy import stats

    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():.3f} ± {half:.3f}"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if sys.argv[2:] else 5)
