"""A work of `benchmarks/works.py` in one .npz, from which every peer reads the same data, cohorts and first parameters.

python benchmarks/peers/data.py W1 W1.npz
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import works


def write(name: str, path: str | Path) -> None:
    """Draw a work and write it, whole or not at all."""
    work = works.load(name)
    layers = {f"{key}{i}": value for i, layer in enumerate(work.params) for key, value in layer.items()}
    scalars = {"batch_size": work.batch_size, "learning_rate": work.learning_rate, "layers": len(work.params)}
    arrays = {"x": work.x, "y": work.y, "offsets": work.offsets, "cohorts": work.cohorts}
    rest: dict[str, Any] = {**arrays, **layers, **{key: np.asarray(value) for key, value in scalars.items()}}
    part = Path(path).with_suffix(".part.npz")
    np.savez(part, name=np.str_(name), **rest)
    part.replace(path)


if __name__ == "__main__":
    write(*sys.argv[1:3])
