"""A few hundred damaged files; `python -m tests.data.fuzz_readers 5000` reads more of them."""

import sys

import numpy as np
import pytest

from tests.data import fuzz_readers


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space, and /proc")
def test_no_damaged_file_crashes_hangs_or_reads_as_other_data_in_silence():
    outcomes, failures = fuzz_readers.fuzz(200, seed=1)
    assert failures == []
    assert sum(outcomes.values()) == 200
    assert {name for name, _ in outcomes} == set(fuzz_readers.FORMATS)


def test_the_fuzz_finds_what_it_looks_for(monkeypatch, tmp_path):
    """Readers that return other data, raise, or take memory are failures."""

    def run(read):
        monkeypatch.setitem(fuzz_readers.FORMATS, "npy", fuzz_readers.Format(fuzz_readers.npy, read, True))
        return fuzz_readers.one("npy", 0, 0, {"npy": (whole, "a.npy", content, "wanted")}, tmp_path)

    whole = tmp_path / "whole"
    whole.mkdir()
    content = fuzz_readers.npy(whole).read_bytes()
    assert run(lambda path, cache: np.zeros(3)) == "WRONG: other data, in silence"
    assert run(lambda path, cache: 1 / 0).startswith("WRONG: ZeroDivisionError")
    monkeypatch.setattr(fuzz_readers, "MEMORY", 1 << 20)
    assert run(lambda path, cache: np.ones(1 << 24)).startswith("WRONG: grew by")
