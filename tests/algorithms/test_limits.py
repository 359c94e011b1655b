"""Limits in which one method is another, or is something that JAX and optax can compute on their own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.client import ClientBatches
from tests.algorithms.problems import COHORTS, SIZES, START, features, least_squares, simulate

TASK, DATA, CLIENTS = least_squares()
LR = 0.1
SGD = optax.sgd(LR)
FULL = fs.Batching(max(SIZES), shuffle=False)
UNIFORM = fs.aggregate.mean("uniform")


def examples(clients):
    """The clients' examples together, as one batch."""
    rows = np.concatenate([DATA.rows(k) for k in clients])
    batch = {name: jnp.asarray(array[rows]) for name, array in DATA.arrays.items()}
    return {**batch, "mask": jnp.ones(len(rows))}


@jax.jit
def gradient(params, batch):
    key = jax.random.key(0)
    return jax.grad(lambda p: TASK.loss(p, batch, key).mean())(params)


def descend(optimizer, batches):
    """The models of centralised descent, one step a batch."""
    params = jax.tree.map(jnp.asarray, START)
    state, out = optimizer.init(params), []
    for batch in batches:
        updates, state = optimizer.update(gradient(params, batch), state, params)
        params = optax.apply_updates(params, updates)
        out.append(params)
    return out


def models(algorithm, cohorts=COHORTS, batching=FULL, **options):
    states = simulate(algorithm, DATA, cohorts, batching, START, **options)
    return [algorithm.params(state.server) for state in states]


def assert_close(actual, expected, tolerance=1e-6):
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    jax.tree.map(close, actual, expected)


def test_one_client_one_full_batch_is_gradient_descent():
    expected = descend(SGD, [examples([2])] * 4)
    assert_close(models(fs.fedavg(TASK, SGD), [[2]] * 4, devices=1), expected)


@pytest.mark.parametrize("optimizer", [optax.sgd(0.3), optax.adam(0.1)], ids=["sgd", "adam"])
@pytest.mark.parametrize("batch_size", [3, 8])
def test_fedsgd_is_centralised_descent_on_the_cohorts_examples(optimizer, batch_size):
    expected = descend(optimizer, [examples(cohort) for cohort in COHORTS])
    batching = fs.Batching(batch_size)  # cut and shuffled in any way
    assert_close(models(fs.fedsgd(TASK, optimizer), batching=batching), expected, 1e-5)


def test_fedprox_without_its_pull_is_fedavg():
    batching = fs.Batching(3, epochs=2)
    expected = models(fs.fedavg(TASK, SGD), batching=batching)
    assert_close(models(fs.fedprox(TASK, SGD, mu=0), batching=batching), expected, 1e-7)


def test_a_clip_above_every_norm_is_the_mean():
    clipped = fs.aggregate.chain(fs.aggregate.clip_by_l2(1e6), reduce=UNIFORM)
    expected = models(fs.fedavg(TASK, SGD, aggregator=UNIFORM))
    assert_close(models(fs.fedavg(TASK, SGD, aggregator=clipped)), expected, 1e-7)


@pytest.mark.parametrize("option", [1, 2])
def test_scaffolds_first_round_is_a_plain_mean_of_fedavg(option):
    batching = fs.Batching(3, epochs=2)
    expected = models(fs.fedavg(TASK, SGD, aggregator=UNIFORM), COHORTS[:1], batching)
    ours = models(fs.scaffold(TASK, LR, len(SIZES), option), COHORTS[:1], batching)
    assert_close(ours, expected)


def test_fedavgm_is_momentum_on_the_negated_deltas():
    deltas = jax.random.normal(jax.random.key(1), (4, 3))
    ours, theirs = fs.server.fedavgm(0.5, 0.9), optax.sgd(0.5, momentum=0.9)
    x = y = jnp.ones(3)
    a, b = ours.init(x), theirs.init(y)
    for delta in deltas:
        x, a = fs.server.step(ours, x, a, delta)
        updates, b = theirs.update(-delta, b, y)
        y = optax.apply_updates(y, updates)
        assert_close(x, y, 1e-7)


def test_any_optax_client_optimizer_starts_anew_each_round():
    batching = fs.Batching(max(SIZES), epochs=3)
    ours = models(fs.fedavg(TASK, optax.adam(0.05)), [[2]] * 2, batching, devices=1)
    params = jax.tree.map(jnp.asarray, START)
    for model in ours:
        state = optax.adam(0.05).init(params)
        for _ in range(3):
            updates, state = optax.adam(0.05).update(gradient(params, examples([2])), state)
            params = optax.apply_updates(params, updates)
        assert_close(model, params, 1e-5)


EQUAL = fs.Batching(3, steps=4, shuffle=False)  # as many steps for each client
MOMENTUM = optax.sgd(LR, 0.6)
LIMITS = {
    "fednova of equal steps": (fs.fednova(TASK, LR), "fedavg", EQUAL),
    "fednova of equal steps, momentum": (fs.fednova(TASK, LR, momentum=0.6), "fedavg, momentum", EQUAL),
    "fednova of equal steps, pull": (fs.fednova(TASK, LR, mu=0.5), "fedprox", EQUAL),
    "mimelite without a state": (fs.mimelite(TASK, SGD), "fedavg", None),
    "qfedavg, q = 0": (fs.qfedavg(TASK, LR, 0), "fedavg, uniform", None),
    "afl of one domain": (fs.afl(TASK, SGD, 3, gamma=0, column="zero"), "fedavg", None),
    "fedsam, rho = 0": (fs.fedsam(TASK, LR, 0, adaptive=True), "fedavg", None),
    "fedacg without momentum": (fs.fedacg(TASK, SGD, lam=0, beta=0.5), "fedprox", None),
    "moon, mu = 0": (fs.moon(TASK, SGD, features, mu=0), "fedavg", None),
    "fedpa burning in": (fs.fedpa(TASK, SGD, 2, 2, burn_in_rounds=9), "fedavg", None),
    "diloco with an outer step of 1": (fs.diloco(TASK, SGD, 1.0, 0.0), "fedavg, uniform", None),
    "kept states of SGD": (fs.fedavg(TASK, SGD, client_optimizer_state="keep"), "fedavg", None),
    "averaged states of SGD": (fs.fedavg(TASK, SGD, client_optimizer_state="average"), "fedavg", None),
    "reptile": (fs.reptile(TASK, SGD), "fedavg, uniform", None),
    "ditto's server": (fs.ditto(TASK, SGD, lam=3.0), "fedavg", None),
    "ifca of one cluster": (fs.ifca(TASK, SGD, 1), "fedavg", None),
    "apfl's server": (fs.apfl(TASK, LR), "fedavg", None),
    "fednova under a clip above every norm": (
        fs.fednova(TASK, LR, aggregator=fs.aggregate.chain(fs.aggregate.clip_by_l2(1e6))), "fedavg", EQUAL
    ),
}  # fmt: skip
REFERENCES = {
    "fedavg": fs.fedavg(TASK, SGD),
    "fedavg, momentum": fs.fedavg(TASK, MOMENTUM),
    "fedavg, uniform": fs.fedavg(TASK, SGD, aggregator=UNIFORM),
    "fedprox": fs.fedprox(TASK, SGD, mu=0.5),
}
TWICE = fs.Batching(3, epochs=2, shuffle=False)


@functools.cache
def reference(name, batching):
    return models(REFERENCES[name], COHORTS[:3], batching)


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_fedavg(name):
    algorithm, expected, batching = LIMITS[name]
    batching = TWICE if batching is None else batching
    assert_close(models(algorithm, COHORTS[:3], batching), reference(expected, batching), 2e-6)


def test_feddyns_first_round_is_fedprox():
    ours = simulate(fs.feddyn(TASK, LR, alpha=0.5), DATA, COHORTS[:1], TWICE, START)
    expected = models(fs.fedprox(TASK, SGD, aggregator=UNIFORM, mu=0.5), COHORTS[:1], TWICE)
    assert_close([ours[0].server.params], expected)


def test_gossip_of_everybody_with_everybody_is_fedavg():
    clients = fs.data.FederatedData(DATA.arrays, np.delete(DATA.offsets, SIZES.index(0)), DATA.index)
    algorithms = fs.gossip(TASK, SGD, fs.mixing.complete(5)), REFERENCES["fedavg, uniform"]
    ours, expected = (
        [a.params(s.server) for s in simulate(a, clients, [range(5)] * 2, TWICE, START)] for a in algorithms
    )
    assert_close(ours, expected, 2e-6)


def test_fedexp_of_one_client_is_gradient_descent_and_its_mean():
    states = simulate(fs.fedexp(TASK, SGD), DATA, [[2]] * 3, FULL, START, devices=1)
    expected = descend(SGD, [examples([2])] * 3)
    assert_close([state.server.params for state in states], expected)
    halfway = jax.tree.map(lambda a, b: (a + b) / 2, *expected[1:])
    assert_close(fs.fedexp(TASK, SGD).params(states[-1].server), halfway)


@pytest.mark.parametrize("kept", ["keep", "average"])
@pytest.mark.parametrize("optimizer", [optax.lion(0.02), optax.adamw(0.05)], ids=["lion", "adamw"])
def test_one_clients_optimizer_goes_on_from_round_to_round(optimizer, kept):
    """FedLion and FedAdamW are FedAvg with these; a count of steps survives the average as a whole number."""
    algorithm = fs.fedavg(TASK, optimizer, client_optimizer_state=kept)
    ours = models(algorithm, [[2]] * 3, fs.Batching(max(SIZES), epochs=2, shuffle=False), devices=1)
    assert_close(ours, descend(optimizer, [examples([2])] * 6)[1::2], 1e-5)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: fs.fednova(TASK, LR, mu=20.0), r"mu=20.0: client_lr \* mu must be at most 1, and client_lr is 0.1"),
        (lambda: fs.fednova(TASK, LR, momentum=1.0), "momentum=1.0: must lie in"),
        (lambda: fs.feddyn(TASK, LR, alpha=0.0), r"alpha=0.0: must be positive .* use fs.fedavg"),
        (lambda: fs.feddyn(TASK, LR, num_clients=0), "num_clients=0: must be a whole number"),
        (lambda: fs.feddyn(TASK, LR, aggregator=fs.aggregate.mean()), r"h is a plain mean .*mean\(.uniform.\)"),
        (lambda: fs.fedexp(TASK, SGD, aggregator=fs.aggregate.mean()), "plain means over clients; use"),
        (lambda: fs.fedexp(TASK, SGD, aggregator=fs.aggregate.median()), "plain means over clients; use"),
        (lambda: fs.fedexp(TASK, SGD, eps=0.0), "eps=0.0: must be positive"),
        (lambda: fs.qfedavg(TASK, LR, -1.0), "q=-1.0: must be zero or more"),
        (lambda: fs.qfedavg(TASK, LR, 1.0, fs.aggregate.mean()), "a ratio of plain sums"),
        (lambda: fs.afl(TASK, SGD, 0), "domains=0: must be a whole number"),
        (lambda: fs.afl(TASK, SGD, 3, rule="softmax"), "rule='softmax': must be"),
        (lambda: fs.scaffnew(TASK, 0.0, LR), r"p=0.0: must lie in \(0, 1\]"),
        (lambda: fs.sampler.coins(1.5), r"probability=1.5: must lie in \(0, 1\]"),
        (lambda: fs.fedsam(TASK, LR, rho=-0.1), "rho=-0.1: must be zero or more"),
        (lambda: fs.fedacg(TASK, SGD, lam=1.0), "lam=1.0: must lie in"),
        (lambda: fs.fedacg(TASK, SGD, beta=-1.0), "beta=-1.0: must be zero or more"),
        (lambda: fs.mime(TASK, 0.1), "optimizer=0.1: must be an optax transformation"),
        (lambda: fs.moon(TASK, SGD, None), "features=None: must be a function"),
        (lambda: fs.moon(TASK, SGD, features, tau=0.0), "tau=0.0: must be positive"),
        (lambda: fs.fedpa(TASK, SGD, 0, 2), "samples=0: must be a whole number"),
        (lambda: fs.diloco(TASK, SGD, outer_momentum=1.0), "outer_momentum=1.0: must lie in"),
        (lambda: fs.fedavg(TASK, SGD, client_optimizer_state="kept"), "client_optimizer_state='kept': must be"),
        (lambda: fs.server.fedavgm(debias=True), "debias=True: only a moving average"),
        (lambda: fs.server.ema(1.0), "decay=1.0: must lie in"),
        (lambda: simulate(fs.feddyn(TASK, LR, num_clients=3), DATA, [[0]]), "num_clients=3: the data have 6"),
        (lambda: simulate(fs.afl(TASK, SGD, 2), DATA, [[0]]), "column='domain' holds 2: domains are 0 to 1"),
        (lambda: simulate(fs.afl(TASK, SGD, 2, column="d"), DATA, [[0]]), "column='d': examples have .*'domain'"),
        (lambda: simulate(fs.afl(TASK, SGD, 2, column="t"), DATA, [[0]]), "column='t' is float32: domains"),
    ],
)  # fmt: skip
def test_what_the_maths_forbids_is_refused(build, message):
    with pytest.raises(fs.FedSimError, match=message):
        build()


# Hyperparameters may be traced


def hand_made(client, steps):
    """One client's batches as an engine would make them: `steps` full batches."""
    count = lambda n: jnp.asarray(n, jnp.int32)
    size = SIZES[client]
    return ClientBatches(
        num_steps=count(steps),
        num_examples=jnp.float32(size),
        client_id=count(client),
        info={"weight": jnp.ones(()), "version": count(0)},
        bound=count(steps),
        arrays=jax.tree.map(jnp.asarray, DATA.arrays),
        order=jnp.tile(jnp.asarray(DATA.rows(client), jnp.int32), steps),
        start=count(0),
        stride=count(size),
        batch_size=size,
        longest=steps,
    )


def one_round(algorithm):
    """Init, the client, the chain and the server by hand, as a function that any transformation may trace."""
    aggregator = algorithm.passes()[0].aggregator
    key, params = jax.random.key(0), jax.tree.map(jnp.asarray, START)
    server, row = algorithm.init(params)
    update = algorithm.client(key, server, row, hand_made(2, steps=3))
    states, _ = aggregator.init(update.payload)
    context = fs.aggregate.Context(jnp.int32(2), jnp.int32(0), key, jnp.float32(jnp.inf))
    message, _, _ = aggregator.client(key, states, None, update.payload, context)
    total = fs.Aggregate(message, jnp.ones(()), jnp.ones(()))
    aggregate, _, _ = aggregator.server(key, states, total, None)
    return algorithm.params(algorithm.server(key, server, aggregate))


TRACED = {
    "fedprox mu": lambda h: fs.fedprox(TASK, SGD, mu=h),
    "client lr": lambda h: fs.fedavg(TASK, optax.sgd(h)),
    "scaffold client_lr": lambda h: fs.scaffold(TASK, h, len(SIZES)),
    "scaffold server_lr": lambda h: fs.scaffold(TASK, LR, len(SIZES), option=1, server_lr=h),
    "fednova": lambda h: fs.fednova(TASK, h, momentum=h, mu=h),
    "feddyn": lambda h: fs.feddyn(TASK, h, alpha=h, num_clients=len(SIZES)),
    "fedexp eps": lambda h: fs.fedexp(TASK, SGD, eps=h),
    "mimelite": lambda h: fs.mimelite(TASK, optax.sgd(h, momentum=h)),
    "qfedavg": lambda h: fs.qfedavg(TASK, h, q=h),
    "scaffnew": lambda h: fs.scaffnew(TASK, h, h),
    "fedsam": lambda h: fs.fedsam(TASK, h, rho=h),
    "fedacg": lambda h: fs.fedacg(TASK, optax.sgd(h), lam=h, beta=h),
    "moon": lambda h: fs.moon(TASK, SGD, features, mu=h, tau=h),
    "fedpa rho": lambda h: fs.fedpa(TASK, SGD, 2, 1, rho=h),
    "diloco": lambda h: fs.diloco(TASK, SGD, outer_lr=h, outer_momentum=h),
    "ditto": lambda h: fs.ditto(TASK, SGD, lam=h),
    "apfl": lambda h: fs.apfl(TASK, h, alpha=h),
    "pfedme": lambda h: fs.pfedme(TASK, h, h, lam=h, beta=h),
    "perfedavg": lambda h: fs.perfedavg(TASK, h, h),
    "reptile": lambda h: fs.reptile(TASK, SGD, server_lr=h),
    "fedavgm, ema": lambda h: fs.fedavg(TASK, SGD, fs.server.fedavgm(h, h, ema=True, debias=True)),
    "ema": lambda h: fs.fedavg(TASK, SGD, optax.chain(optax.sgd(h), fs.server.ema(h))),
    "clip_norm": lambda h: fs.fedavg(TASK, SGD, aggregator=fs.aggregate.chain(fs.aggregate.clip_by_l2(h))),
    "fedavgm lr and momentum": lambda h: fs.fedavg(TASK, SGD, fs.server.fedavgm(h, h)),
    "fedadagrad": lambda h: fs.fedavg(TASK, SGD, fs.server.fedadagrad(h, h, h)),
    "fedadam": lambda h: fs.fedavg(TASK, SGD, fs.server.fedadam(h, h, h, h, initial_accumulator=h)),
    "fedyogi": lambda h: fs.fedavg(TASK, SGD, fs.server.fedyogi(h, h, h, h, bias_correction=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", TRACED)
def test_hyperparameters_may_be_traced(name):
    build, values = TRACED[name], np.array([0.02, 0.1, 0.3], np.float32)
    together = jax.jit(jax.vmap(lambda h: one_round(build(h))))(values)
    # A value at a time, each a Python number, which the constructors then check.
    apart = jax.tree.map(lambda *m: np.stack(m), *[one_round(build(float(h))) for h in values])
    assert_close(together, apart, 1e-5)
    # One client never lets FedExP extrapolate, and in its first round knows no other model for MOON to leave.
    assert np.ptp(together["w"], axis=0).max() > 1e-4 or name in ("fedexp eps", "moon", "ditto")
