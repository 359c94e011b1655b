"""Every algorithm against its NumPy twin, over ragged rounds; and the known mistakes, which must be told apart."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.algorithms import twins
from tests.algorithms.problems import BATCHING, COHORTS, DOMAINS, SIZES, START, features, flat, least_squares, simulate

TASK, DATA, CLIENTS = least_squares()
X0 = flat(START)
LR, MU, TOLERANCE = 0.1, 2.0, 1e-5
LOCAL = (CLIENTS, X0, COHORTS, LR, BATCHING.batch_size, BATCHING.epochs)
SGD = optax.sgd(LR)
PAPER = dict(b1=0.9, b2=0.99, tau=1e-2)
RELEASED = dict(b1=0.9, b2=0.999, tau=1e-2)


class Case(NamedTuple):
    ours: fs.Algorithm
    twin: Callable  # mistake -> [R, d], or a tuple with that first


def server_case(optimizer, twin_server, *args, **kwargs):
    """FedAvg with that server optimizer."""
    return Case(
        fs.fedavg(TASK, SGD, optimizer),
        lambda mistake="": twins.fedavg(*LOCAL, server=twin_server(*args, **kwargs, mistake=mistake), mistake=mistake),
    )


def scaffold_case(**options):
    return Case(
        fs.scaffold(TASK, LR, num_clients=len(SIZES), **options),
        lambda mistake="": twins.scaffold(*LOCAL, **options, mistake=mistake),
    )


def of_local_sgd(ours, twin, **options):
    """A method of plain local SGD, and its twin, of the same options."""
    return Case(ours(**options), lambda mistake="": twin(*LOCAL, **options, mistake=mistake))


def momentum_case(kept):
    algorithm = fs.fedavg(TASK, optax.sgd(LR, 0.7), client_optimizer_state=kept)
    return Case(algorithm, lambda: twins.local_momentum(*LOCAL, 0.7, kept))


MOON = dict(mu=2.0, tau=0.5)
PA = dict(samples=3, steps=2, burn_in=1, rounds=1, rho=0.4)

CASES = {
    "fedavg": Case(fs.fedavg(TASK, SGD), lambda mistake="": twins.fedavg(*LOCAL, mistake=mistake)),
    "fedprox": Case(
        fs.fedprox(TASK, SGD, mu=MU),
        lambda mistake="": twins.fedprox(*LOCAL, mu=MU, mistake=mistake),
    ),
    "fedsgd": Case(
        fs.fedsgd(TASK, fs.server.fedavgm(0.2, 0.5)),
        lambda: twins.fedsgd(CLIENTS, X0, COHORTS, twins.fedavgm(0.2, 0.5)),
    ),
    "fedavgm": server_case(fs.server.fedavgm(0.5, 0.8), twins.fedavgm, 0.5, 0.8),
    "fedadagrad": server_case(fs.server.fedadagrad(0.2, tau=1e-2), twins.fedopt, "adagrad", 0.2, b1=0, b2=0, tau=1e-2),
    "fedadagrad, m, v0": server_case(
        fs.server.fedadagrad(0.2, b1=0.5, tau=1e-2, initial_accumulator=0.1),
        *(twins.fedopt, "adagrad", 0.2, 0.5, 0, 1e-2, 0.1),
    ),
    "fedadam": server_case(fs.server.fedadam(0.1, **PAPER), twins.fedopt, "adam", 0.1, **PAPER),
    "fedyogi": server_case(fs.server.fedyogi(0.1, **PAPER), twins.fedopt, "yogi", 0.1, **PAPER),
    "fedadam, released": server_case(
        fs.server.fedadam(0.1, **RELEASED, bias_correction=True, initial_accumulator=0),
        *(twins.fedopt, "adam", 0.1),
        **RELEASED,
        v0=0,
        corrected=True,
    ),
    "fedyogi, released": server_case(
        fs.server.fedyogi(0.1, **RELEASED, bias_correction=True, initial_accumulator=0),
        *(twins.fedopt, "yogi", 0.1),
        **RELEASED,
        v0=0,
        corrected=True,
    ),
    "fedavgm, ema": server_case(fs.server.fedavgm(0.5, 0.8, ema=True), twins.fedavgm, 0.5, 0.8, ema=True),
    "fedavgm, debiased": server_case(
        fs.server.fedavgm(0.5, 0.8, ema=True, debias=True), twins.fedavgm, 0.5, 0.8, ema=True, debias=True
    ),
    "momentum reset": momentum_case("reset"),
    "momentum kept": momentum_case("keep"),
    "momentum averaged": momentum_case("average"),
    "diloco": Case(
        fs.diloco(TASK, optax.sgd(LR, 0.7)),
        lambda mistake="": twins.local_momentum(*LOCAL, 0.7, "keep, equal", twins.nesterov(0.7, 0.9, mistake=mistake)),
    ),
    "fednova": of_local_sgd(lambda **o: fs.fednova(TASK, LR, **o), twins.fednova),
    "fednova, momentum": of_local_sgd(lambda **o: fs.fednova(TASK, LR, **o), twins.fednova, momentum=0.8),
    "fednova, mu": of_local_sgd(lambda **o: fs.fednova(TASK, LR, **o), twins.fednova, mu=3.0),
    "fednova, both": of_local_sgd(lambda **o: fs.fednova(TASK, LR, **o), twins.fednova, momentum=0.8, mu=3.0),
    "feddyn": of_local_sgd(lambda **o: fs.feddyn(TASK, LR, **o), twins.feddyn, alpha=0.5),
    "fedexp": of_local_sgd(lambda **o: fs.fedexp(TASK, SGD, **o), twins.fedexp, eps=1e-3),
    "mimelite": Case(
        fs.mimelite(TASK, optax.sgd(LR / 2, 0.7)),
        lambda mistake="": twins.mime(CLIENTS, X0, COHORTS, LR / 2, 3, 2, 0.7, lite=True, mistake=mistake),
    ),
    "mime": Case(
        fs.mime(TASK, optax.sgd(LR / 2, 0.7)),
        lambda mistake="": twins.mime(CLIENTS, X0, COHORTS, LR / 2, 3, 2, 0.7, lite=False, mistake=mistake),
    ),
    "qfedavg": of_local_sgd(lambda **o: fs.qfedavg(TASK, LR, **o), twins.qfedavg, q=2.0),
    "qfedavg, q below 1": of_local_sgd(lambda **o: fs.qfedavg(TASK, LR, **o), twins.qfedavg, q=0.4),
    "afl": Case(
        fs.afl(TASK, SGD, 3, gamma=0.5),
        lambda mistake="": twins.afl(CLIENTS, DOMAINS, *LOCAL[1:], 0.5, "exponentiated", mistake),
    ),
    "afl, projected": Case(
        fs.afl(TASK, SGD, 3, gamma=0.1, rule="projected"),
        lambda mistake="": twins.afl(CLIENTS, DOMAINS, *LOCAL[1:], 0.1, "projected", mistake),
    ),
    "fedsam": of_local_sgd(lambda **o: fs.fedsam(TASK, LR, **o), twins.fedsam, rho=0.3, adaptive=False),
    "fedasam": of_local_sgd(lambda **o: fs.fedsam(TASK, LR, **o), twins.fedsam, rho=0.3, adaptive=True),
    "fedacg": of_local_sgd(lambda **o: fs.fedacg(TASK, SGD, **o), twins.fedacg, lam=0.6, beta=0.5),
    "moon": Case(
        fs.moon(TASK, SGD, features, **MOON),
        lambda mistake="": twins.moon(*LOCAL, **MOON, features=lambda y, A: np.tanh(A * y), mistake=mistake),
    ),
    "fedpa": Case(
        fs.fedpa(TASK, SGD, PA["samples"], PA["steps"], PA["burn_in"], PA["rounds"], PA["rho"]),
        lambda mistake="": twins.fedpa(*LOCAL, **PA, mistake=mistake),
    ),
    "scaffold 1": scaffold_case(option=1),
    "scaffold 2": scaffold_case(option=2),
    "scaffold 2, server_lr": scaffold_case(option=2, server_lr=0.5),
}


@functools.cache
def states(case):
    return simulate(CASES[case].ours, DATA, COHORTS, params=START)


def models(case):
    """[R, d], ours."""
    return np.array([flat(CASES[case].ours.params(state.server)) for state in states(case)])


def twin_models(case, mistake=""):
    result = CASES[case].twin(mistake) if mistake else CASES[case].twin()
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("case", CASES)
def test_trajectory_is_the_twins(case):
    np.testing.assert_allclose(models(case), twin_models(case), rtol=TOLERANCE, atol=TOLERANCE)
    # A coordinate that no example moves stays, bit for bit, whatever the server optimizer.
    assert (models(case)[:, 3] == X0[3]).all()
    assert np.ptp(models(case), axis=0)[[0, 1, 2, 4]].min() > 0.01, "the others should move"


@pytest.mark.parametrize("case", ["scaffold 1", "scaffold 2", "scaffold 2, server_lr"])
def test_control_variates_are_the_twins(case):
    _, c, own = CASES[case].twin()
    for r, state in enumerate(states(case)):
        rows = flat(state.rows.client)[: len(SIZES)]
        np.testing.assert_allclose(flat(state.server.control), c[r], rtol=1e-4, atol=TOLERANCE)
        np.testing.assert_allclose(rows, own[r], rtol=1e-4, atol=TOLERANCE)
        np.testing.assert_allclose(rows.mean(axis=0), c[r], rtol=1e-4, atol=TOLERANCE)


def test_feddyns_states_are_the_twins():
    _, sent, h, own = CASES["feddyn"].twin()
    for r, state in enumerate(states("feddyn")):
        rows = flat(state.rows.client)[: len(SIZES)]
        np.testing.assert_allclose(flat(state.server.sent), sent[r], rtol=1e-4, atol=TOLERANCE)
        np.testing.assert_allclose(flat(state.server.h), h[r], rtol=1e-4, atol=TOLERANCE)
        np.testing.assert_allclose(rows, own[r], rtol=1e-4, atol=TOLERANCE)
        np.testing.assert_allclose(rows.mean(axis=0), h[r], rtol=1e-4, atol=TOLERANCE)


def test_other_states_are_the_twins():
    of = {
        "fedexp": lambda server: (flat(server.params), server.server_lr),
        "mimelite": lambda server: (flat(server.optimizer[0].trace),),
        "mime": lambda server: (flat(server.optimizer[0].trace),),
        "afl": lambda server: (server.domain_weights,),
        "afl, projected": lambda server: (server.domain_weights,),
    }
    for case, seen in of.items():
        for column, twin in enumerate(CASES[case].twin()[1:]):
            ours = np.array([seen(state.server)[column] for state in states(case)])
            np.testing.assert_allclose(ours, twin, rtol=1e-4, atol=TOLERANCE, err_msg=case)


@pytest.mark.parametrize("case", ["momentum reset", "momentum kept", "momentum averaged"])
def test_what_becomes_of_momentum_is_told_apart(case):
    for other in {"momentum reset", "momentum kept", "momentum averaged"} - {case}:
        assert_told_apart(case, twin_models(other))


MISTAKES = [
    *[
        (case, mistake)
        for case in ("fedavg", "fedprox")
        for mistake in (
            "padding in the loss mean",
            "padding in n_k",
            "divided by the population",
            "dropped last batch",
            "straddling batches",
        )
    ],
    ("fedprox", "norm not squared"),
    *[("fednova", mistake) for mistake in ("equal weights", "models averaged", "scaled by the population")],
    *[("fednova, " + rule, "the number of steps for |a|") for rule in ("momentum", "mu", "both")],
    *[
        ("feddyn", mistake)
        for mistake in (
            "g_k added",
            "accumulates x - y",
            "alpha twice",
            "x once for all",
            "h divided by |S|",
            "weights by examples",
            "the sent model is evaluated",
        )
    ],
    *[
        ("fedexp", mistake)
        for mistake in (
            "weights by examples",
            "square of the mean norm",
            "without the 2",
            "below 1",
            "the last model",
        )
    ],
    ("mime", "another batch at x"),
    *[
        (case, mistake)
        for case in ("mime", "mimelite")
        for mistake in ("momentum moves in the round", "momentum from the deltas")
    ],
    *[
        (case, mistake)
        for case in ("qfedavg", "qfedavg, q below 1")
        for mistake in ("summed while training", "loss after training", "norm not squared")
    ],
    *[("afl", mistake) for mistake in ("sizes of domains ignored", "losses of the new model", "absent domains fall")],
    *[
        (case, mistake)
        for case in ("fedsam", "fedasam")
        for mistake in ("a norm for each leaf", "not normalised", "descent first")
    ],
    *[("fedacg", mistake) for mistake in ("starts at x", "pulled to x")],
    *[("moon", mistake) for mistake in ("pushed from the received model", "the last model is the first")],
    *[("fedpa", mistake) for mistake in ("biased covariance", "covariance not shrunk")],
    ("diloco", "heavy ball"),
    *[("fedavgm, ema", mistake) for mistake in ("first delta lost", "seeded with the first delta")],
    ("fedprox", "aliased reference"),
    ("fedavgm", "moving average"),
    *[
        (case, mistake)
        for case in ("fedadam", "fedyogi", "fedadagrad, m, v0")
        for mistake in ("delta for m", "epsilon inside the root")
    ],
    ("fedyogi", "sign of v - delta"),
    ("fedadam, released", "exponent off by one"),
    ("fedyogi, released", "exponent off by one"),
    *[
        ("scaffold 2", mistake)
        for mistake in (
            "flipped correction",
            "wrong sign in option II",
            "K without epochs",
            "c divided by |S|",
            "c_k sent in full",
            "weights by examples",
        )
    ],
    *[("scaffold 1", mistake) for mistake in ("flipped correction", "c divided by |S|", "c_k sent in full")],
]


def assert_told_apart(case, wrong):
    gap = np.abs(models(case) - wrong).max()
    assert np.isnan(gap) or gap > 100 * TOLERANCE, f"only {gap:.1e} from the mistaken twin"


@pytest.mark.parametrize("case, mistake", MISTAKES)
def test_mistake_is_told_apart(case, mistake):
    assert_told_apart(case, twin_models(case, mistake))


@pytest.mark.parametrize(
    "case, optimizer",
    [
        ("fedadam", optax.adam(0.1, 0.9, 0.99, eps=1e-2)),
        ("fedyogi", optax.yogi(0.1, 0.9, 0.99, eps=1e-2)),
        ("fedadagrad", optax.adagrad(0.2, initial_accumulator_value=1e-4, eps=1e-2)),
        ("fedyogi, released", optax.yogi(0.1, 0.9, 0.999, eps=1e-2)),
    ],
)
def test_optax_namesakes_are_other_rules(case, optimizer):
    state = optimizer.init(X0.astype(np.float32))

    def server(x, delta):
        nonlocal state
        updates, state = optimizer.update(-delta.astype(np.float32), state)
        return x + np.asarray(updates, np.float64)

    wrong = twins.fedavg(*LOCAL, server=server)
    assert_told_apart(case, wrong)
    if "yogi" in case:  # optax starts both moments at 1e-6, so that a coordinate without any delta moves
        assert (wrong[:, 3] != X0[3]).all()


def test_released_adam_is_optax_adam():
    """With v0 = 0 and bias correction FedAdam differs from optax.adam in where epsilon enters alone."""
    ours = fs.server.fedadam(0.1, 0.9, 0.999, 1e-8, bias_correction=True, initial_accumulator=0)
    theirs = optax.adam(0.1, 0.9, 0.999, eps=1e-8)
    x, a, b = X0.astype(np.float32), ours.init(X0), theirs.init(X0.astype(np.float32))
    for delta in (0.3, -0.7, 0.2):
        update, a = ours.update(-delta * x, a)
        expected, b = theirs.update(-delta * x, b)
        np.testing.assert_allclose(update, expected, rtol=1e-4)
