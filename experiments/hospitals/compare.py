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
    """AUC and calibration error of each hospital's patients that are held out, and of all of them; and epsilon."""
    epsilon = np.full(1, np.nan)
    if arm.startswith("each alone"):
        clients: Any = alone(config)
    else:
        sim = build(config)
        state, history = sim.run(sim.init(), config.rounds)
        if config.how in ("secure", "private"):
            assert not history["secure/aborted"].any()
        if config.how == "private":
            epsilon[0] = sim.epsilon(state=state).epsilon
        train, test = standardised(config)
        clients = fs.evaluate_clients(task_of(train), sim.params(state), test)
    pooled = clients.pooled()
    figures = {name: np.append(np.asarray(clients[name]), pooled[name]) for name in ("auc", "ece")}
    return {**figures, "epsilon": epsilon}


def main(data: str, seeds: int) -> None:
    for arm, changes in ARMS.items():
        made = [found(arm, Config(data=data, seed=s, **changes)) for s in range(seeds)]  # type: ignore[arg-type]
        cells = []
        for name in ("auc", "ece"):
            values = np.stack([each[name] for each in made])  # [seeds, sites + 1]
            sites = np.nanmean(values[:, :-1], axis=1)
            cells += [spread(sites), spread(values[:, -1])]
            if values.shape[1] < 9:
                cells += [", ".join(spread(v, 2) for v in values[:, :-1].T)]
        epsilon = made[0]["epsilon"][0]
        told = "" if np.isnan(epsilon) else f" (ε = {epsilon:.1f})"
        print(f"| {arm}{told} | {' | '.join(cells)} |", flush=True)


def spread(values: np.ndarray, digits: int = 3) -> str:
    """Mean and the 95 % interval of a mean over seeds that have a value, by Student's law."""
    from scipy import stats

    values = values[np.isfinite(values)]
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():.{digits}f} ± {half:.{digits}f}"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if sys.argv[2:] else 5)
