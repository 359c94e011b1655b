"""What tests of readers measure."""

import re
from pathlib import Path

import pytest


@pytest.fixture
def peak():
    """How many bytes the process grew by at most since the test began, as the system counts them."""

    def kilobytes(name):
        return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

    Path("/proc/self/clear_refs").write_text("5")  # the highest use so far is forgotten
    begin = kilobytes("VmRSS")
    return lambda: 1024 * (kilobytes("VmHWM") - begin)
