"""Rules broken on purpose, and the test that must see it: `python -m tests.mutations [NAME ...]`.

Each mutation changes one text in a copy of the package and runs a test against the copy: the test must fail there, and
pass with the package as it is. Not part of the suite, as each takes a test's start.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutation(NamedTuple):
    """A text of a file of the package, what stands there instead, and the test that must fail."""

    file: str
    text: str
    instead: str
    test: str


MUTATIONS = {
    "wrong sign of the pseudo-gradient": Mutation(
        "server.py",
        "gradient = jax.tree.map(jnp.negative, delta)",
        "gradient = delta",
        "tests/algorithms/test_twins.py::test_trajectory_is_the_twins",
    ),
    "weight by padded size": Mutation(
        "engine/round/cohort_map.py",
        "num_examples=lane.size.astype(jnp.float32)",
        "num_examples=(lane.steps * batching.batch_size).astype(jnp.float32)",
        "tests/engine/round/test_phases.py::test_effective_weights",
    ),
    "a mask left out of the loss": Mutation(
        "client/task.py",
        "weight = mask if weight is None else",
        "weight = jnp.ones_like(mask) if weight is None else",
        "tests/client/test_task.py",
    ),
    "key by the place in the cohort": Mutation(
        "engine/round/client_side.py",
        "own = lambda purpose: jax.random.fold_in(keys[purpose], lane.client_id)",
        "own = lambda purpose: jax.random.fold_in(keys[purpose], lane.neighbour)",
        "tests/engine/round/test_invariance.py::test_neighbours",
    ),
    "psum of the denominator left out": Mutation(
        "engine/round/cohort_map.py",
        "total, weight, count, sums = self._over_devices(mine)",
        "total, _, count, sums = self._over_devices(mine)",
        "tests/engine/round/test_invariance.py::test_lanes_and_devices",
    ),
    "noise by the bound before rounding": Mutation(
        "aggregate/compress/quantize.py",
        "    def bound(part: jax.Array, incoming: Scalar, dim: int) -> Scalar:\n",
        "    def bound(part: jax.Array, incoming: Scalar, dim: int) -> Scalar:\n        return incoming\n",
        "tests/aggregate/test_compression.py::test_noise_is_scaled_by_the_bound_after_rounding",
    ),
    "stale row": Mutation(
        "engine/round/client_side.py",
        "where(contributes, new_rows, rows)",
        "rows",
        "tests/engine/round/test_phases.py::test_rows_start_from_the_template_and_stay_their_clients_own",
    ),
    "ledger not restored": Mutation(
        "engine/store/checkpoint.py",
        '"ledger": record["ledger"]}',
        '"ledger": []}',
        "tests/privacy/test_ledger.py::test_a_run_that_goes_on_with_more_noise_keeps_what_it_spent",
    ),
    "wrong device's row": Mutation(
        "engine/round/cohort_map.py",
        "lane.client_id - first",
        "lane.client_id",
        "tests/engine/round/test_phases.py::test_rows_start_from_the_template_and_stay_their_clients_own",
    ),
    "shuffled order across epochs": Mutation(
        "engine/plan/planner.py",
        "draw = rng.hash32(seed, Purpose.SHUFFLE, round, ids[client], counter)",
        "draw = rng.hash32(seed, Purpose.SHUFFLE, round, ids[client], rank)",
        "tests/engine/plan/test_plan.py::test_shuffles_differ",
    ),
    "rows of an abandoned round": Mutation(
        "engine/round/abandoned.py",
        "places = jnp.where(abandoned, places, _length(rows))",
        "places = jnp.full_like(places, _length(rows))",
        "tests/engine/round/test_collecting.py"
        "::test_an_abandoned_round_changes_no_bit[rows of the algorithm-device-drop]",
    ),
    "a transform's state of an abandoned round": Mutation(
        "engine/round/abandoned.py",
        "new if on else old",
        "new",
        "tests/engine/round/test_collecting.py"
        "::test_an_abandoned_round_changes_no_bit[a transform's state-device-drop]",
    ),
    "ties by place": Mutation(
        "aggregate/robust/distances.py",
        "jnp.lexsort((collected.ids, scores, ~collected.contributes))",
        "jnp.lexsort((scores, ~collected.contributes))",
        "tests/aggregate/test_robust.py::test_ties_go_by_client_id",
    ),
    "a neighbour too many": Mutation(
        "aggregate/robust/krum.py",
        "n - bad(n) - 2)",
        "n - bad(n) - 1)",
        "tests/aggregate/test_robust.py::test_values_of_a_fixed_matrix[krum]",
    ),
    "distances around the mean": Mutation(
        "aggregate/robust/distances.py",
        "return _distances(collected, jnp.arange(len(valid)) == chosen)",
        "return rough",
        "tests/aggregate/test_robust.py::test_independent_twins[krum]",
    ),
    "a block too few": Mutation(
        "engine/round/collected.py",
        "starts_of = lambda size: [min(i * step, size - step) for i in range(-(-size // step))]",
        "starts_of = lambda size: [min(i * step, size - step - 1) for i in range(-(-size // step))]",
        "tests/engine/round/test_collecting.py::test_blocks_of_coordinates_are_the_whole",
    ),
}


def passes(tree: Path, test: str) -> bool:
    """Whether a test passes against the package in a tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True).returncode == 0


def seen(name: str) -> bool:
    """Whether a mutation's test passes on the package and fails on the mutated copy; prints what came of it."""
    mutation = MUTATIONS[name]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for part in ("fedjax_sim", "tests"):
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("conftest.py", "pyproject.toml"):
            shutil.copy(ROOT / part, tree)
        file = tree / "fedjax_sim" / mutation.file
        source = file.read_text()
        if source.count(mutation.text) != 1:
            print(f"{name}: {mutation.file} holds {mutation.text!r} {source.count(mutation.text)} times, not once")
            return False
        before = passes(tree, mutation.test)
        file.write_text(source.replace(mutation.text, mutation.instead))
        found = before and not passes(tree, mutation.test)
    print(
        f"{name}: {'seen by' if found else 'NOT seen by' if before else 'fails without it:'} {mutation.test}",
        flush=True,
    )
    return found


if __name__ == "__main__":
    sys.exit(not all([seen(name) for name in sys.argv[1:] or MUTATIONS]))
