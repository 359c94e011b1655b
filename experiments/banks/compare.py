"""The tables of the README: `python experiments/banks/compare.py cards|loans [seeds]`."""

import dataclasses
import sys
from typing import Any

import numpy as np
from config import PRESETS, Config, alone, build

ARMS: dict[str, dict[str, Any]] = {
    "each bank alone": {},
    "all payments in one place": {"how": "pooled"},
    "federated": {},
    "federated, plain loss": {"loss": "plain"},
    "federated, focal loss": {"loss": "focal"},
    "trimmed mean": {"how": "robust"},
    "federated, one dishonest bank": {"dishonest": True},
    "trimmed mean, one dishonest bank": {"how": "robust", "dishonest": True},
    "private": {"how": "private"},
}
NAMES = ("average_precision", "recall")


def found(arm: str, config: Config) -> list[float]:
    """The figures on payments that are held out, and epsilon."""
    if arm.startswith("each"):
        return [*(alone(config)[name] for name in NAMES), np.nan]
    sim = build(config)
    state, history = sim.run(sim.init(), config.rounds, progress=False)
    epsilon = sim.epsilon(state=state).epsilon if config.how == "private" else np.nan
    return [*(history[f"test/{name}"][-1] for name in NAMES), epsilon]


def main(data: str, seeds: int) -> None:
    for arm, changes in ARMS.items():
        config = dataclasses.replace(PRESETS["loans" if data == "loans" else "default"], **changes)
        values = np.array([found(arm, dataclasses.replace(config, seed=seed)) for seed in range(seeds)])
        told = "" if np.isnan(values[0, 2]) else f" (ε = {values[0, 2]:.1f})"
        print(f"| {arm}{told} | {spread(values[:, 0])} | {spread(values[:, 1])} |", flush=True)


def spread(values: np.ndarray) -> str:
    """Mean and the 95 % interval of a mean over seeds, by Student's law; of one seed its value."""
    from scipy import stats

    if len(values) == 1:
        return f"{values[0]:.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():.3f} ± {half:.3f}"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if sys.argv[2:] else 3)
