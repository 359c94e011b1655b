"""The README's Python blocks run as they are written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


def test_the_readme_shows_a_simulation():
    assert any("fs.Simulation(" in block for block in BLOCKS)
    assert any("rounds=100" in block for block in BLOCKS)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme(number):
    block = BLOCKS[number]
    before = "" if "import fedjax_sim" in block else BLOCKS[0]  # a block goes on from the first one
    code = (before + block).replace("rounds=100", "rounds=2")  # for time, and nothing else
    run = [sys.executable, "-c", code]
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    out = subprocess.run(run, cwd=ROOT, env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert "Traceback" not in out.stderr
    if "print(" in block:
        assert "accuracy" in out.stdout
