"""What cannot change results is one argument; the keywords of before work still, and say that they go."""

import jax
import numpy as np
import pytest

import fedjax_sim as fs
from tests.engine import toys


def simulation(**given):
    return fs.Simulation(toys.fedavg(toys.task()), toys.federation(), fs.sampler.uniform(4), fs.Batching(3), **given)


def test_a_former_keyword_warns_and_does_what_it_did():
    with pytest.warns(DeprecationWarning, match=r"write execution=fs\.Execution\(lanes=\.\.\., devices=\.\.\.\)"):
        former = simulation(lanes=3, devices=jax.devices()[:1])
    now = simulation(execution=fs.Execution(lanes=3, devices=jax.devices()[:1]))
    assert former.lanes == now.lanes == 3
    assert former.devices == now.devices
    one, other = (sim.step(sim.init())[0].server for sim in (former, now))
    np.testing.assert_array_equal(toys.flat(one), toys.flat(other))


def test_a_former_keyword_beside_the_argument_joins_it():
    with pytest.warns(DeprecationWarning, match="rounds_per_dispatch"):
        sim = simulation(rounds_per_dispatch=3, execution=fs.Execution(lanes=2, devices=jax.devices()[:1]))
    assert (sim.lanes, sim.rounds_per_dispatch) == (2, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lane": 3}, r"lane=3: fs\.Simulation has no such argument"),
        ({"lanes": 3, "execution": fs.Execution(lanes=2)}, "lanes=3: execution= has it too"),
        ({"execution": 3}, r"execution=3: must be a fs\.Execution"),
    ],
)
def test_what_is_no_execution_is_told(given, message):
    with pytest.raises(fs.FedSimError, match=message):
        simulation(**given)


@pytest.mark.parametrize("field", ["lanes", "rounds_per_dispatch"])
def test_counts_are_checked_where_they_are_given(field):
    with pytest.raises(fs.FedSimError, match=f"{field}=0"):
        fs.Execution(**{field: 0})


def test_former_attributes_are_those_of_the_parts_and_say_so():
    sim = simulation()
    with pytest.warns(DeprecationWarning, match=r"sim\.shared is deprecated: write sim\.parts\.multi_process"):
        assert sim.shared is False
    with pytest.warns(DeprecationWarning, match=r"write sim\.parts\.on_nonfinite"):
        assert sim.on_nonfinite == "raise"
    assert not hasattr(sim, "no_such_thing")
