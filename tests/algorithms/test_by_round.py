"""Numbers that are functions of the round: against loops by hand, without another program, exact where runs go on."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from tests.engine import toys

DATA = fs.data.FederatedData({"x": np.array([1.0, 3.0, 2.0, 6.0], np.float32)}, offsets=[0, 2, 4])
RATES = [0.4, 0.2, 0.1, 0.05]


def quadratic() -> fs.Task:
    return fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2 / 2)


def simulation(algorithm, **options):
    return fs.Simulation(algorithm, DATA, fs.sampler.uniform(2), fs.Batching(2, epochs=3), **toys.executed(**options))


def halving(round):
    return 0.4 * 0.5**round


def by_hand(client_rates, server_rates=(1.0,) * 4, mu=(0.0,) * 4, momentum=0.0):
    w, v, seen = 0.0, 0.0, []
    for lr, server_lr, pull in zip(client_rates, server_rates, mu, strict=True):
        deltas = []
        for centre in (2.0, 4.0):
            y = w
            for _ in range(3):
                y -= lr * ((y - centre) + pull * (y - w))
            deltas.append(y - w)
        v = momentum * v + np.mean(deltas)
        w += server_lr * v
        seen.append(w)
    return seen


CASES = {
    "client": (lambda: fs.fedavg(quadratic(), fs.by_round(lambda r: optax.sgd(halving(r)))), (RATES,), {}),
    "schedule": (
        lambda: fs.fedavg(quadratic(), fs.by_round(lambda r: optax.sgd(optax.exponential_decay(0.4, 1, 0.5)(r)))),
        (RATES,),
        {},
    ),
    "server": (
        lambda: fs.fedavg(quadratic(), optax.sgd(0.1), fs.by_round(lambda r: optax.sgd(2 * halving(r), momentum=0.5))),
        ([0.1] * 4, [2 * rate for rate in RATES]),
        {"momentum": 0.5},
    ),
    "algorithm": (
        lambda: fs.by_round(lambda r: fs.fedprox(quadratic(), optax.sgd(0.1), mu=halving(r))),
        ([0.1] * 4, [1.0] * 4, RATES),
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_a_loop_by_hand(case):
    make, given, more = CASES[case]
    sim = simulation(make())
    state, seen = sim.init(), []
    for _ in RATES:
        state, _ = sim.step(state)
        seen.append(float(sim.params(state)))
    np.testing.assert_allclose(seen, by_hand(*given, **more), rtol=1e-5)
    assert sim.compile_count() == 1


def test_blocks_resume_and_pure_rounds(tmp_path):
    make, given, _ = CASES["client"]
    sim = simulation(make(), rounds_per_dispatch=3)
    expected = by_hand(*given)
    sim.run(sim.init(), 2, run_dir=tmp_path / "run")
    state, _ = sim.run(sim.restore(tmp_path / "run"), 2)
    np.testing.assert_allclose(float(sim.params(state)), expected[-1], rtol=1e-5)
    f, pure = sim.round_function(), sim.pure_state(sim.init())
    plans, arrays = sim.round_plan(sim.init(), rounds=4)
    pure, _ = jax.lax.scan(lambda pure, plan: f(pure, plan, arrays), pure, plans)
    np.testing.assert_allclose(float(pure.server.params), expected[-1], rtol=1e-5)


def test_a_sweep_of_the_decay():
    def build(decay):
        return simulation(fs.fedavg(quadratic(), fs.by_round(lambda r: optax.sgd(0.4 * decay**r))))

    members = fs.sweep(build, {"decay": [0.5, 1.0]}, rounds=4).members
    for [member], rates in zip(members, (RATES, [0.4] * 4), strict=True):
        np.testing.assert_allclose(float(member.params), by_hand(rates)[-1], rtol=1e-5)


@pytest.mark.skipif(not hasattr(jax, "make_user_context"), reason="JAX of before 0.9 keeps traces of such functions")
def test_within_a_jit_of_ones_own():
    """What JAX keeps of one program's trace does not serve another's."""
    optimizer = fs.by_round(lambda r: optax.sgd(halving(r)))
    update = jax.jit(optimizer.update)
    algorithm = fs.fedavg(quadratic(), optax.GradientTransformation(optimizer.init, update))
    for lanes in (1, 2):
        sim = simulation(algorithm, lanes=lanes)
        state, _ = sim.run(sim.init(), 4)
        np.testing.assert_allclose(float(sim.params(state)), by_hand(RATES)[-1], rtol=1e-5)


def test_a_fingerprint_tells_another_schedule(tmp_path):
    run = lambda decay: simulation(fs.fedavg(quadratic(), fs.by_round(lambda r: optax.sgd(0.4 * decay**r))))
    first = run(0.5)
    first.run(first.init(), 1, run_dir=tmp_path / "run")
    assert run(0.5).restore(tmp_path / "run").round == 1
    with pytest.raises(fs.RunFolderError, match=r"decay was 0\.5 there and is 0\.6 here"):
        run(0.6).restore(tmp_path / "run")


def test_a_number_alone_is_refused():
    with pytest.raises(ArgumentError, match=r"make\(0\) gave 0.1: must be an optax transformation or an fs.Algorithm"):
        fs.by_round(lambda round: 0.1)


@pytest.mark.parametrize("side", ["client", "server"])
def test_numbers_that_a_state_would_keep_are_refused(side):
    """They would be round 0's in every round, without a word."""
    injected = lambda r: optax.chain(optax.identity(), optax.inject_hyperparams(optax.sgd)(learning_rate=halving(r)))
    optimizers = {"client": (fs.by_round(injected),), "server": (optax.sgd(0.1), fs.by_round(injected))}
    with pytest.raises(ArgumentError, match="would stay those of round 0"):
        simulation(fs.fedavg(quadratic(), *optimizers[side]))


# Schedules that restart


@pytest.mark.parametrize("rate", [optax.linear_schedule(0.1, 0.0, 10), 0.1])
def test_a_client_s_schedule_is_told_once_and_nothing_else_is(rate):
    """adam counts steps and inject_hyperparams keeps numbers: neither is a schedule."""
    makers = (optax.sgd, optax.adam, optax.inject_hyperparams(optax.sgd))
    for optimizer in (make(rate) for make in makers):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(2):
                simulation(fs.fedavg(quadratic(), optimizer))
        said = [str(each.message) for each in told if "begins anew" in str(each.message)]
        assert len(said) == (0 if rate == 0.1 else 1)
        assert all("fs.by_round(" in each for each in said)


def test_a_schedule_that_clients_keep_or_a_server_has_is_right():
    rate = optax.linear_schedule(0.1, 0.0, 10)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*begins anew")
        simulation(fs.fedavg(quadratic(), optax.sgd(rate), client_optimizer_state="keep"))
        simulation(fs.fedavg(quadratic(), optax.sgd(0.1), optax.sgd(rate)))
        simulation(fs.fedavg(quadratic(), fs.by_round(lambda round: optax.sgd(rate(round)))))
