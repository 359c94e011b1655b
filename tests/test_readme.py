"""The README's Python blocks run as they are written."""

import re
from pathlib import Path

import pytest

from tests import programs

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


def test_the_readme_shows_a_simulation():
    assert any("fs.Simulation(" in block for block in BLOCKS)
    assert any("rounds=100" in block for block in BLOCKS)


def whole_programs():
    """A block goes on from those before it, back to the one that imports the package."""
    found = []
    for block in BLOCKS:
        found = [*found, block] if "import fedjax_sim" in block else [*found[:-1], found[-1] + block]
    return found


@pytest.mark.parametrize("program", whole_programs())
def test_readme(program):
    done = programs.python(re.sub(r"rounds=\d+", "rounds=2", program))  # for time, and nothing else
    assert done.status == 0, done.err
    assert "Traceback" not in done.err
    if "print(" in program:
        assert "accuracy" in done.out
