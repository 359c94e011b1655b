"""Server optimizers: three rounds by hand, the paper's start and the released code's, and what is refused."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs

X0 = np.array([1.0, -1.0, 0.5, 2.0])
DELTAS = np.array([[0.5, -0.2, 1.0, 0.0], [0.1, 0.4, -3.0, 0.0], [-0.3, 0.4, 0.02, 0.0]])


def trajectory(optimizer, deltas=DELTAS, x=X0):
    """x after each server step, two leaves deep."""

    def split(x):
        return {"a": jnp.asarray(x[:1], jnp.float32), "b": {"c": jnp.asarray(x[1:], jnp.float32)}}

    params, out = split(x), []
    state = optimizer.init(params)
    for delta in deltas:
        params, state = fs.server.step(optimizer, params, state, split(delta))
        out.append(np.concatenate([params["a"], params["b"]["c"]]))
    return np.array(out)


def test_fedavgm_by_hand():
    v1 = DELTAS[0]
    v2 = 0.9 * v1 + DELTAS[1]
    v3 = 0.9 * v2 + DELTAS[2]
    x1 = X0 + 0.5 * v1
    x2 = x1 + 0.5 * v2
    x3 = x2 + 0.5 * v3
    np.testing.assert_allclose(trajectory(fs.server.fedavgm(0.5)), [x1, x2, x3], rtol=1e-6)


def test_fedavgms_conventions():
    """A delta of 0.4 for three rounds at momentum 0.9: the sum, the average, and the average without its bias."""
    moved = {}
    for convention in ({}, {"ema": True}, {"ema": True, "debias": True}):
        optimizer = fs.server.fedavgm(1.0, 0.9, **convention)
        moved[len(convention)] = trajectory(optimizer, np.full((3, 4), 0.4), np.zeros(4))[-1, 0]
    assert moved == pytest.approx({0: 2.244, 1: 0.2244, 2: 1.2})


@pytest.mark.parametrize("debias, expected", [(False, [1, 1.1, 1.29]), (True, [1, 1.5263158, 2.0701107])])
def test_ema_of_the_models_one_two_and_three(debias, expected):
    """Debiased, of what came after the first model; else from the first model, which is 1 too."""
    optimizer = optax.chain(optax.sgd(1.0), fs.server.ema(0.9, debias))
    x = {"w": jnp.zeros(1), "b": jnp.zeros(())} if debias else {"w": jnp.ones(1), "b": jnp.ones(())}
    state, seen = optimizer.init(x), []
    for delta in [1.0, 1.0, 1.0] if debias else [0.0, 1.0, 1.0]:
        x, state = fs.server.step(optimizer, x, state, {"w": jnp.full(1, delta), "b": jnp.float32(delta)})
        mean = fs.server.averaged(state, x)
        assert mean["w"][0] == mean["b"]
        seen.append(mean["b"])
    np.testing.assert_allclose(seen, expected, rtol=1e-6)
    assert x["b"] == 3


def test_ema_before_the_first_round_is_the_model():
    for debias in (True, False):
        x = jnp.array([2.0])
        assert fs.server.averaged(fs.server.ema(0.9, debias).init(x), x) == x


def test_ema_leaves_collections_as_they_are():
    params = {"params": {"w": jnp.ones(1)}, "batch_stats": {"mean": jnp.full(1, 5.0)}}
    state = fs.server.EmaState({"params": {"w": jnp.full(1, 2.0)}}, jnp.float32(0.5))
    found = fs.server.averaged(state, params)
    assert found == {"params": {"w": jnp.full(1, 4.0)}, "batch_stats": params["batch_stats"]}


def test_ema_that_nobody_keeps():
    with pytest.raises(fs.FedSimError, match=r"keeps 0 moving averages; give the algorithm a server optimizer"):
        fs.server.averaged(optax.sgd(1.0).init(jnp.ones(1)), jnp.ones(1))
    with pytest.raises(fs.FedSimError, match="needs them in update"):
        fs.server.ema().update(jnp.ones(1), fs.server.ema().init(jnp.ones(1)))


def test_fedadagrad_by_hand():
    d1, d2, d3 = DELTAS
    v1 = 0.01**2 + d1**2
    v2 = v1 + d2**2
    v3 = v2 + d3**2
    x1 = X0 + 0.1 * d1 / (np.sqrt(v1) + 0.01)
    x2 = x1 + 0.1 * d2 / (np.sqrt(v2) + 0.01)
    x3 = x2 + 0.1 * d3 / (np.sqrt(v3) + 0.01)
    np.testing.assert_allclose(trajectory(fs.server.fedadagrad(0.1, tau=0.01)), [x1, x2, x3], rtol=1e-6)


def test_fedadam_by_hand():
    d1, d2, d3 = DELTAS
    m1, v1 = 0.1 * d1, 0.99 * 0.01**2 + 0.01 * d1**2
    m2, v2 = 0.9 * m1 + 0.1 * d2, 0.99 * v1 + 0.01 * d2**2
    m3, v3 = 0.9 * m2 + 0.1 * d3, 0.99 * v2 + 0.01 * d3**2
    x1 = X0 + 0.1 * m1 / (np.sqrt(v1) + 0.01)
    x2 = x1 + 0.1 * m2 / (np.sqrt(v2) + 0.01)
    x3 = x2 + 0.1 * m3 / (np.sqrt(v3) + 0.01)
    np.testing.assert_allclose(trajectory(fs.server.fedadam(0.1, tau=0.01)), [x1, x2, x3], rtol=1e-5)


def test_fedyogi_by_hand():
    """From v0 = 0.04 both signs occur: Δ² lies below v in some places, and above it in others."""
    optimizer = fs.server.fedyogi(0.1, b1=0.5, b2=0.5, tau=0.01, initial_accumulator=0.0625)
    # Coordinate 0: Δ² = 0.25 > v = 0.0625, so v grows by half of it; then 0.01 < v, so v falls; and so on.
    v1 = [0.0625 + 0.125, 0.0625 - 0.02, 0.0625 + 0.5, 0.0625]
    v2 = [v1[0] - 0.005, v1[1] + 0.08, v1[2] + 4.5, 0.0625]
    v3 = [v2[0] - 0.045, v2[1] + 0.08, v2[2] - 0.0002, 0.0625]
    m1 = [0.25, -0.1, 0.5, 0]
    m2 = [0.175, 0.15, -1.25, 0]
    m3 = [-0.0625, 0.275, -0.615, 0]
    x = X0 + np.cumsum(0.1 * np.array([m1, m2, m3]) / (np.sqrt([v1, v2, v3]) + 0.01), axis=0)
    np.testing.assert_allclose(trajectory(optimizer), x, rtol=1e-5)


SCHEDULES = {
    "cosine": optax.cosine_decay_schedule(0.5, 3),
    "warm-up": optax.linear_schedule(0.0, 0.1, 2),
    "steps": optax.piecewise_constant_schedule(0.3, {1: 0.1}),
    "own": lambda count: 0.2 / (1 + count),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("make", [fs.server.fedavgm, fs.server.fedadagrad, fs.server.fedadam, fs.server.fedyogi])
def test_a_schedule_scales_each_step(make, name):
    """The moments do not depend on the rate, so that a step is that of rate 1 times the schedule's (momentum none)."""
    schedule = SCHEDULES[name]
    fixed = {"momentum": 0.0} if make is fs.server.fedavgm else {}
    moves = np.diff(trajectory(make(1.0, **fixed)), axis=0, prepend=X0[None])
    rates = np.array([float(schedule(t)) for t in range(3)])
    expected = X0 + np.cumsum(rates[:, None] * moves, axis=0)
    np.testing.assert_allclose(trajectory(make(schedule, **fixed)), expected, rtol=1e-4, atol=1e-6)
    assert len(set(rates)) > 1


@pytest.mark.parametrize("bad", [lambda count: -0.1, lambda count: jnp.ones(2), lambda count: math.nan])
def test_schedules_of_no_rate(bad):
    for make in (fs.server.fedavgm, fs.server.fedadam):
        with pytest.raises(fs.FedSimError, match=r"learning_rate\(0\)="):
            make(bad)


@pytest.mark.parametrize("make", [fs.server.fedadam, fs.server.fedyogi])
def test_bias_correction_counts_the_first_round_as_one(make):
    """From v0 = 0, m and sqrt(v) are then exactly corrected: the first step is η sign(Δ), up to τ."""
    optimizer = make(0.1, 0.9, 0.999, tau=1e-6, bias_correction=True, initial_accumulator=0)
    first = trajectory(optimizer)[0]
    np.testing.assert_allclose(first - X0, 0.1 * np.sign(DELTAS[0]), rtol=1e-3)
    # Without it the step is larger by (1 - b1) / sqrt(1 - b2), some 3.16.
    first = trajectory(make(0.1, 0.9, 0.999, tau=1e-6, initial_accumulator=0))[0]
    np.testing.assert_allclose(first - X0, 0.1 * math.sqrt(10) * np.sign(DELTAS[0]), rtol=1e-3)


def test_fedadagrad_corrects_its_first_moment_alone():
    optimizer = fs.server.fedadagrad(0.1, b1=0.9, tau=1e-6, bias_correction=True)
    np.testing.assert_allclose(trajectory(optimizer)[0] - X0, 0.1 * np.sign(DELTAS[0]), rtol=1e-3, atol=1e-6)


def test_state_starts_as_in_the_paper():
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(())}
    state = fs.server.fedadam(0.1, tau=0.1).init(params)
    assert int(state.count) == 0
    assert {k: v.shape for k, v in state.v.items()} == {"w": (2, 3), "b": ()}
    np.testing.assert_allclose(state.v["w"], 0.01, rtol=1e-6)
    np.testing.assert_allclose(state.m["w"], 0)
    assert float(fs.server.fedyogi(0.1, initial_accumulator=0.0).init(params).v["b"]) == 0


def test_step_negates_once():
    """`delta` is added by SGD at rate 1, and is what a gradient transformation sees with a minus sign."""
    seen = []
    spy = optax.stateless(lambda g, p: seen.append(g) or g)
    x, _ = fs.server.step(spy, jnp.zeros(2), spy.init(None), jnp.array([1.0, -2.0]))
    np.testing.assert_array_equal(seen[0], [-1, 2])
    x, _ = fs.server.step(optax.sgd(1.0), jnp.ones(2), optax.sgd(1.0).init(jnp.ones(2)), jnp.ones(2))
    np.testing.assert_array_equal(x, [2, 2])


ADAPTIVE = (fs.server.fedadagrad, fs.server.fedadam, fs.server.fedyogi)
BAD = {
    "learning_rate": (0, -1.0, math.nan, math.inf, "0.1", None),
    "b1": (1, 1.0, -0.1, math.nan, "0.9", None),
    "b2": (1.0, -0.5, 2, math.inf),
    "tau": (0, 0.0, -1e-3, math.nan, None),
    "initial_accumulator": (-1e-9, math.nan, math.inf),
    "momentum": (1.0, -0.1, math.nan),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_arguments_are_named(name):
    makers = {"momentum": [fs.server.fedavgm], "b2": ADAPTIVE[1:]}.get(name, ADAPTIVE)
    if name == "learning_rate":
        makers = (*makers, fs.server.fedavgm)
    for make in makers:
        for value in BAD[name]:
            arguments = {"learning_rate": 0.1, name: value}
            with pytest.raises(fs.FedSimError, match=f"{name}={value!r}"):
                make(**arguments)


@pytest.mark.parametrize("value", [0.1, np.float32(0.1), np.array(0.1), jnp.array(0.1)], ids=repr)
def test_scalars_of_any_kind_are_welcome(value):
    for make in ADAPTIVE:
        assert np.isfinite(trajectory(make(value, b1=value, tau=value))).all()
