"""A few laws as users' programs are compiled: all other tests here turn XLA's optimisation off, to compile fast."""

import os
import subprocess
import sys

KEPT = ("XLA_", "PYTEST_", "JAX_COMPILATION_CACHE")  # by this process

LAWS = {
    "tests/engine/round/test_invariance.py": "scaffold and (neighbours or empty_places)",
    "tests/engine/round/test_phases.py": "against_numpy",
    "tests/algorithms/test_twins.py": "trajectory and (momentum or scaffold)",
}


def test_laws_hold_at_full_optimisation():
    words = " or ".join(f"({law})" for law in LAWS.values())
    environment = {name: value for name, value in os.environ.items() if not name.startswith(KEPT)}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", words, *LAWS],
        env={**environment, "TESTS_COMPILE": "fully"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
    assert " passed" in run.stdout
