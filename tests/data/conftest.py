"""What tests of readers measure."""

import re
from pathlib import Path

import pytest


class Peak:
    """How many bytes the process grew by at most since the test, or `again`, began, as the system counts them."""

    def __init__(self):
        self.again()

    def again(self):
        Path("/proc/self/clear_refs").write_text("5")  # the highest use so far is forgotten
        self.begin = self.kilobytes("VmRSS")

    def kilobytes(self, name):
        return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

    def __call__(self):
        return 1024 * (self.kilobytes("VmHWM") - self.begin)


@pytest.fixture
def peak():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs /proc of Linux")
    return Peak()
