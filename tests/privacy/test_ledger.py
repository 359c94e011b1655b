"""The ledger: rounds cost what they cost when they were run, whatever the simulation is that is asked."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.simulation import ledger as ledger_lib
from tests.engine import toys

dp = pytest.importorskip("dp_accounting")
pld = pytest.importorskip("dp_accounting.pld")
K = 50
DATA = fs.data.FederatedData({"x": jnp.linspace(-1.0, 1.0, K)}, offsets=range(K + 1))
TASK = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
CLIP = fs.aggregate.clip_by_l2(0.5)


def simulation(*noise, sampler=None, **options):
    aggregator = fs.aggregate.chain(CLIP, *noise, reduce=fs.aggregate.mean("uniform"))
    algorithm = fs.fedavg(TASK, optax.sgd(0.1), aggregator=aggregator)
    return fs.Simulation(
        algorithm, DATA, sampler or fs.sampler.poisson(0.2), fs.Batching(1), **toys.executed(**options)
    )


def gaussian(z, sampler=None, **options):
    return simulation(fs.aggregate.gaussian_noise(z), sampler=sampler, **options)


def after(*runs):
    """A state behind which simulations have rounds, which were not computed: `(sim, rounds)`."""
    ledger, total = None, 0
    for sim, rounds in runs:
        total += rounds
        for _ in range(rounds):
            ledger = ledger_lib.entered(ledger, sim.executor.released, 10, 10)
    return fs.RoundState(total, 0, None, None, None, None, json.loads(json.dumps(ledger)))


def theirs(delta, *parts, relation="ADD_OR_REMOVE_ONE"):
    """dp-accounting's own epsilon of Gaussians, (q, z, rounds) each; q is None for one that is not sampled."""
    accountant = pld.PLDAccountant(getattr(dp.NeighboringRelation, relation))
    for q, z, rounds in parts:
        event = dp.GaussianDpEvent(z)
        accountant.compose(event if q is None else dp.PoissonSampledDpEvent(q, event), rounds)
    return accountant.get_epsilon(delta)


def test_a_run_that_goes_on_with_more_noise_keeps_what_it_spent(tmp_path):
    """Saved under a multiplier of 1, gone on with under one of 10; in blocks, and round by round."""
    loud, quiet, folders = gaussian(1.0, rounds_per_dispatch=3), gaussian(10.0), [tmp_path / "1", tmp_path / "10"]
    state, _ = loud.run(loud.init(), rounds=5, run_dir=folders[0])
    restored = loud.restore(folders[0])
    assert restored.ledger == state.ledger
    spent = quiet.epsilon(state=restored)
    assert (spent, spent.rounds) == (loud.epsilon(rounds=5), 5)
    np.testing.assert_allclose(spent.epsilon, 2.267, atol=5e-4)
    np.testing.assert_allclose(spent.epsilon, theirs(1e-3, (0.2, 1.0, 5)), rtol=1e-9)
    both, _ = quiet.run(restored, rounds=2, run_dir=folders[1])
    assert both.ledger == after((loud, 5), (quiet, 2)).ledger
    lines = [line for folder in folders for line in (folder / "metrics.jsonl").read_text().splitlines()]
    column = [json.loads(line)["privacy/epsilon"] for line in lines]
    assert len(column) == 7
    assert (np.diff(column) > 0).all()
    expected = theirs(1e-3, (0.2, 1.0, 5), (0.2, 10.0, 2))
    for sim in (quiet, gaussian(3.0, fs.sampler.uniform(5))):
        np.testing.assert_allclose(sim.epsilon(state=both, delta=1e-3).epsilon, expected, rtol=1e-9)
    assert column[-1] >= expected
    # Planned rounds come after what happened, with the settings of the simulation that is asked.
    planned = quiet.epsilon(rounds=3, state=state)
    np.testing.assert_allclose(planned.epsilon, theirs(1e-3, (0.2, 1.0, 5), (0.2, 10.0, 3)), rtol=1e-9)
    assert (planned.rounds, loud.epsilon(rounds=0, state=state)) == (8, spent)


def test_other_noise_and_another_sampler_compose():
    state = after((gaussian(0.5, fs.sampler.poisson(0.5)), 50), (gaussian(5.0, fs.sampler.poisson(0.05)), 1))
    spent = gaussian(5.0).epsilon(state=state, delta=1e-5)
    assert spent.epsilon >= 77.2
    np.testing.assert_allclose(spent.epsilon, theirs(1e-5, (0.5, 0.5, 50), (0.05, 5.0, 1)), rtol=1e-9)
    assert (spent.rounds, spent.sampler) == (51, "poisson(0.5) of 50, then poisson(0.05) of 50")
    by_rdp = gaussian(5.0).epsilon(state=state, delta=1e-5, accountant="rdp").epsilon
    assert by_rdp > spent.epsilon


def test_rounds_of_a_poisson_and_of_a_fixed_cohort_have_replace_one_in_common():
    poisson, fixed = gaussian(3.0), gaussian(3.0, fs.sampler.uniform(K))  # everybody: a Gaussian at distance 2
    spent = poisson.epsilon(state=after((poisson, 4), (fixed, 2)), delta=1e-4)
    assert (spent.adjacency, spent.accountant) == ("replace-one", "PLD")
    expected = theirs(1e-4, (0.2, 3.0, 4), (None, 3.0, 2), relation="REPLACE_ONE")
    np.testing.assert_allclose(spent.epsilon, expected, rtol=2e-3)
    with pytest.raises(fs.FedSimError, match="no Rényi curve of Poisson sampling is known under replace-one"):
        poisson.epsilon(state=after((poisson, 4), (fixed, 2)), accountant="rdp")


def test_participations_are_counted_setting_by_setting():
    apart = fs.sampler.min_separation(5, 5)
    one, other = gaussian(3.0, apart), gaussian(4.0, apart)
    spent = one.epsilon(state=after((one, 7), (other, 8)), delta=1e-4)
    expected = theirs(1e-4, (None, 3.0, 2), (None, 4.0, 2), relation="REPLACE_SPECIAL")
    np.testing.assert_allclose(spent.epsilon, expected, rtol=1e-9)
    assert spent.adjacency == "zero-out"
    assert one.epsilon(rounds=3, state=after((one, 7))) == one.epsilon(rounds=10)  # one stretch, two participations


@pytest.mark.parametrize("kind", ["tree", "banded"])
def test_correlated_noise_is_one_stretch_of_one_setting(kind):
    pytest.importorskip("jax_privacy")

    def correlated(z, efficient=True):
        if kind == "tree":
            noise = fs.aggregate.tree_noise(z, 4, efficient=efficient)
        else:
            coefficients = [1.0, 0.5 if efficient else 0.25]
            noise = fs.aggregate.banded_noise(z, bands=2, rounds=8, separation=4, coefficients=coefficients)
        return simulation(noise, sampler=fs.sampler.min_separation(5, 4))

    sim, plain = correlated(2.0), gaussian(1.0, fs.sampler.min_separation(5, 4))
    assert sim.epsilon(rounds=5, state=after((sim, 3)), delta=1e-4) == sim.epsilon(rounds=8, delta=1e-4)
    more = sim.epsilon(state=after((sim, 8), (plain, 1)), delta=1e-4).epsilon
    assert more > sim.epsilon(rounds=8, delta=1e-4).epsilon
    for runs in ([(sim, 3), (correlated(3.0), 5)], [(sim, 3), (correlated(2.0, False), 5)], [(plain, 2), (sim, 4)]):
        with pytest.raises(fs.FedSimError, match=rf"rounds {runs[0][1]} to \d .*{kind}.*: their noise is correlated"):
            sim.epsilon(state=after(*runs))


def test_what_no_epsilon_covers_is_refused_with_its_rounds():
    poisson, apart, bare = gaussian(1.0), gaussian(1.0, fs.sampler.min_separation(5, 5)), simulation()
    with pytest.raises(
        fs.FedSimError, match=r"rounds 4 to 6 \(poisson\(0\.2\) of 50, no noise\): released without noise"
    ):
        poisson.epsilon(state=after((poisson, 4), (bare, 3)))
    words = r"rounds 0 to 3 \(poisson.*'add-or-remove-one' or 'replace-one'; round 4 \(min_sep.*: 'zero-out'"
    with pytest.raises(fs.FedSimError, match=words):
        poisson.epsilon(state=after((poisson, 4), (apart, 1)))
    with pytest.raises(fs.FedSimError, match="adjacency='zero-out': no epsilon covers"):
        poisson.epsilon(state=after((poisson, 4), (gaussian(2.0), 1)), adjacency="zero-out")
    with pytest.raises(fs.FedSimError, match="adds no noise"):
        bare.epsilon(rounds=2, state=after((poisson, 4)))
    assert bare.epsilon(state=after((poisson, 4)), delta=1e-3) == poisson.epsilon(rounds=4, delta=1e-3)


def test_a_round_without_noise_is_infinite_in_the_metric_from_then_on():
    noisy, bare = gaussian(1.0), simulation()
    state, _ = bare.step(bare.init())
    assert [(entry["rounds"], entry["mechanisms"]) for entry in state.ledger] == [(1, [])]
    _, metrics = noisy.step(dataclasses.replace(noisy.init(), round=1, ledger=state.ledger))
    assert metrics["privacy/epsilon"] == np.inf


@pytest.mark.parametrize(
    "ledger",
    [None, [], {"contributed": {"8": 5}}, [{"rounds": 4}], [{"rounds": "many"}], [{"rounds": 5}], "text", [5]],
    ids=repr,
)
def test_a_state_whose_ledger_lacks_rounds_is_refused(ledger):
    sim = gaussian(1.0)
    state = dataclasses.replace(after((sim, 5)), ledger=ledger)
    with pytest.raises(fs.FedSimError, match=r"ledger (knows \d of its 5 rounds|is none that this version writes)"):
        sim.epsilon(state=state)
    assert sim.epsilon(state=after(), rounds=2) == sim.epsilon(rounds=2)


def test_a_ledger_grows_with_settings_not_with_rounds():
    sim = simulation(
        fs.aggregate.quantize(8),
        fs.aggregate.skellam_noise(1.0),
        fs.aggregate.secure_sum(),
        sampler=fs.sampler.uniform(10),
    )
    ledger = None
    for round in range(100):
        before = json.dumps(ledger)
        ledger, old = ledger_lib.entered(ledger, sim.executor.released, 10, 8 + round % 3), ledger
        assert json.dumps(old) == before  # an earlier state's stays
    assert [entry["counts"] for entry in ledger or []] == [[[10, 8, 34], [10, 9, 33], [10, 10, 33]]]


def test_a_sampler_that_observes_is_refused_under_noise():
    sampler = fs.sampler.uniform(5)._replace(observe=lambda state, cohort, metrics: state)
    with pytest.raises(fs.FedSimError, match=r"uniform\(5\) draws by what it observes"):
        gaussian(1.0, sampler)
