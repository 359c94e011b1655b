"""What is sent, up and down, in bits; and the ring of those who train."""

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.engine.plan.planner import Planner
from tests.engine import toys

PARAMETERS = 8  # of the toys' model, float32


def first_round(algorithm, cohort=(0, 2, 6)):
    sim = fs.Simulation(
        algorithm,
        toys.federation(),
        fs.sampler.fixed([list(cohort)]),
        fs.Batching(4),
        execution=fs.Execution(devices=jax.devices()[:1]),
    )
    return sim.step(sim.init())[1]


@pytest.mark.parametrize(
    "build, up, down",
    [
        # The optimizer's moments stay on the server.
        (lambda: fs.fedavg(toys.task(), optax.sgd(0.1), fs.server.fedyogi(0.1)), 1, 1),
        (lambda: fs.scaffold(toys.task(), 0.1, toys.NUM_CLIENTS), 2, 2),
        # Two phases: x and the gradient up, x down, then x and the gradient.
        (lambda: toys.two_phase(toys.task()), 2, 3),
    ],
    ids=["fedyogi", "scaffold", "two phases"],
)
def test_bits_of_each_client_and_of_the_cohort(build, up, down):
    metrics = first_round(build())
    each = 32 * PARAMETERS
    assert metrics["aggregate/uplink_bits"] == 3 * up * each
    assert metrics["aggregate/downlink_bits"] == 3 * down * each
    np.testing.assert_array_equal(metrics.clients("aggregate/downlink_bits"), [down * each] * 3)


def test_an_algorithm_may_say_what_it_sends_down():
    algorithm = fs.fedavg(toys.task(), optax.sgd(0.1))._replace(downlink=lambda server: 7.0)
    assert first_round(algorithm)["aggregate/downlink_bits"] == 21


def test_a_transform_may_not_report_bits_by_itself():
    liar = fs.aggregate.Transform(
        "liar", client=lambda key, s, row, payload, context: (payload, row, {"uplink_bits": 1.0})
    )
    with pytest.raises(fs.FedSimError, match=r"liar reports.*uplink_bits"):
        first_round(fs.fedavg(toys.task(), optax.sgd(0.1), aggregator=fs.aggregate.chain(liar)))


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("devices", [1, 2])
def test_those_who_train_form_one_ring_in_order_of_their_ids(lanes, devices):
    """Client 1 is empty and does not train; order, lanes and devices do not matter."""
    planner = Planner(toys.federation(), fs.Batching(2), devices)
    for ids in ([7, 1, 3, 0, 11], [4], [1]):
        cohort = fs.sampler.cohort(np.array(ids), 6)
        plan, _ = planner.plan(cohort, planner.shape(6, lanes), seed=0, round=0)
        of, busy = plan.lanes, plan.lanes.steps > 0
        found = dict(zip(of.client_id[busy].tolist(), of.neighbour[busy].tolist(), strict=True))
        ring = sorted(set(ids) - {1})
        assert found == dict(zip(ring, ring[1:] + ring[:1], strict=True))


def test_a_printed_chain_says_what_each_stage_sends():
    chain = fs.aggregate.chain(
        fs.aggregate.clip_by_l2(1.0),
        fs.aggregate.Transform(
            "q", facts=lambda f: f._replace(integers=True, largest=7.0, bits=4, bound="1.0, rounded")
        ),
        fs.aggregate.skellam_noise(0.5),
        fs.aggregate.secure_sum(20),
        reduce=fs.aggregate.mean("uniform"),
    )
    text = str(chain)
    assert text.splitlines()[0] == chain.name
    for words in (
        "sends floats, 32 bits a number, L2 bound: 1.0",
        "sends integers, 4 bits a number, L2 bound: 1.0, rounded",
        "noise: distributed skellam 0.5 on the value",
        "sends integers modulo 2**20, 20 bits a number",
        "weighted before the sum",
        "divided by the expected cohort",
    ):
        assert words in text, words
