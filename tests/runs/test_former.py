"""A run folder of the version before goes on."""

import tarfile
from pathlib import Path

import numpy as np

import fedjax_sim as fs
from tests.runs.former.simulation import build

FORMER = Path(__file__).parent / "former" / "former.tar.gz"
WEIGHTS = [0.8070483803749084, -0.436654269695282, 1.2211180925369263]
LOSSES = [1.399563471476237, 1.103773593902588]
"""What the version before went on to from there, in two more rounds."""


def test_a_run_of_the_version_before_goes_on_as_it_would_have(tmp_path):
    with tarfile.open(FORMER) as archive:
        archive.extractall(tmp_path, filter="data")
    sim = build()
    state = sim.restore(tmp_path)
    assert state.round == 4
    state, history = sim.run(state, 2, run_dir=tmp_path)
    np.testing.assert_allclose(sim.params(state)["w"], WEIGHTS, rtol=1e-5)
    np.testing.assert_allclose(history["client/loss"], LOSSES, rtol=1e-5)
    assert len(fs.runs.read(tmp_path).metrics["client/loss"]) == 6
