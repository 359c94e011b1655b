"""What can go wrong: a clear error with value and remedy, or exactly nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from tests.engine import toys

DATA = toys.federation()


def simulation(algorithm=None, data=DATA, sampler=None, batching=None, **kwargs):
    """A simulation on one device; every part can be replaced by a bad one."""
    kwargs = {"devices": jax.devices()[:1], **kwargs}
    return fs.Simulation(
        toys.fedavg(toys.task()) if algorithm is None else algorithm,
        data,
        fs.sampler.fixed([[0, 2, 4], [6, 2, 8]]) if sampler is None else sampler,
        fs.Batching(3) if batching is None else batching,
        **toys.executed(**kwargs),
    )


def step(*args, **kwargs):
    sim = simulation(*args, **kwargs)
    return sim.step(sim.init())


def custom(client=None, server=None, init=None, task=None):
    """An algorithm from one bad function; the others do nothing."""
    return fs.Algorithm(
        task or toys.task(),
        init or (lambda params: (params, None)),
        client or (lambda key, server, row, batches: fs.ClientUpdate(server)),
        server or (lambda key, server, aggregate: server),
    )


def local(step, **kwargs):
    """An algorithm whose clients run one bad local step."""

    def client(key, server, row, batches):
        return fs.ClientUpdate(fs.local_steps(step, server, batches, key, **kwargs)[0])

    return custom(client)


def losing(loss):
    """FedAvg on a task with a bad loss."""
    return toys.fedavg(fs.Task(toys.task().init, loss))


# Parts that do not fit together: each line is a way to go wrong and what must be said of it.

PARTS = {
    "algorithm": (lambda: simulation(toys.task()), r"algorithm=Task\(.*must be an? Algorithm"),
    "data": (lambda: simulation(data=DATA.arrays), r"data=(?s:.*)must be a FederatedData"),
    "sampler": (lambda: simulation(sampler=20), "sampler=20: must be a Sampler"),
    "batching": (lambda: simulation(batching=20), "batching=20: must be a Batching"),
    "lanes": (lambda: simulation(lanes=0), "lanes=0: must be a whole number, at least 1"),
    "lanes-str": (lambda: simulation(lanes="all"), "lanes='all': .*\"auto\""),
    "block": (lambda: simulation(rounds_per_dispatch=0), "rounds_per_dispatch=0: must be"),
    "nonfinite": (
        lambda: simulation(on_nonfinite="skip"),
        "on_nonfinite='skip': must be \"raise\"",
    ),
    "devices": (lambda: simulation(devices=[]), r"devices=\[\]: must hold at least one"),
    "no-server": (
        lambda: simulation(fs.Algorithm(toys.task(), lambda p: (p, None), lambda *a: None)),
        "needs both client= and server=",
    ),
    "large-cohort": (
        lambda: simulation(sampler=fs.sampler.uniform(13)),
        "cohort_size=13: the population has only 12 clients; draw fewer",
    ),
    "stranger": (
        lambda: simulation(sampler=fs.sampler.fixed([[0], [3, 12]])),
        r"cohorts\[1\]=.*12.*must lie in 0..11",
    ),
    "stranger-custom": (
        lambda: step(sampler=toys.script([[0, 12]])),
        r"cohort.ids span 0..12: must lie in 0..11",
    ),
    "twice": (lambda: fs.sampler.fixed([[0, 2, 0]]), r"cohorts\[0\]=.*more than once"),
    "twice-custom": (
        lambda: step(sampler=toys.script([[2, 2]])),
        "more than once: raise its weight",
    ),
    "mask": (
        lambda: simulation(data=fs.data.FederatedData({**DATA.arrays, "mask": DATA.arrays["y"]}, DATA.offsets)),
        'entry "mask": the name is reserved; rename it',
    ),
    "rounds": (lambda: simulation().run(simulation().init(), -1), "rounds=-1: must be"),
    "eval-every": (lambda: simulation().run(simulation().init(), 1, eval_every=0), "eval_every=0"),
    "cohorts-over": (
        lambda: simulation(sampler=fs.sampler.fixed([[1]])).run(simulation().init(), 2),
        "round=1: .*given 1 cohorts; give one row a round",
    ),
    **{
        f"seed{seed}": (lambda seed=seed: simulation(seed=seed), f"seed={seed!r}: must be")
        for seed in (-1, 2**32, 1.5, True, "one")
    },
}

FUNCTIONS = {
    "scalar-loss": (
        lambda: losing(lambda params, batch, key: jnp.mean(batch["x"])),
        r"losses are a scalar: must be one number an example, shape \(3,\).*unreduced",
    ),
    "column-loss": (
        lambda: losing(lambda params, batch, key: batch["x"]),
        r"losses are shape \(3, 3\)",
    ),
    "weights": (
        lambda: losing(lambda params, batch, key: fs.Loss(batch["x"][:, 0], jnp.ones(()))),
        "weights are a scalar",
    ),
    "metric": (
        lambda: losing(lambda params, batch, key: (batch["x"][:, 0], {"top": batch["x"]})),
        r"metric 'top' are shape \(3, 3\): must be one number an example",
    ),
    "variables": (
        lambda: losing(lambda params, batch, key: fs.Loss(batch["x"][:, 0], variables={"s": 1})),
        r"Loss.variables hold \['s'\].*collections=\(\)",
    ),
    "reduction": (
        lambda: toys.fedavg(toys.task()._replace(reduction="total")),
        'task.reduction=\'total\': must be "mean" or "sum"',
    ),
    "step-dtype": (
        lambda: local(lambda v, batch, key: ({**v, "b": v["b"].astype(int)}, {})),
        r"step turned value\['b'\] from float32\(2,\) into int32\(2,\): it must keep",
    ),
    "step-shape": (
        lambda: local(lambda v, batch, key: ({**v, "w": v["w"][:1]}, {})),
        r"step turned value\['w'\] from float32\(3, 2\) into float32\(1, 2\)",
    ),
    "step-structure": (
        lambda: local(lambda v, batch, key: (v["w"], {})),
        "step turned PyTreeDef.*must keep the structure",
    ),
    "step-pair": (
        lambda: local(lambda v, batch, key: v),
        r"returned dict: must be \(value, metrics\)",
    ),
    "step-metrics": (lambda: local(lambda v, batch, key: (v, 3)), "metrics=int: must be a dict"),
    "static-steps": (
        lambda: local(lambda v, batch, key: (v, {}), static_steps=3),
        "static_steps=3: the longest client takes 4 steps; give at least that many",
    ),
    "update": (
        lambda: custom(lambda key, server, row, batches: server),
        "client function returned dict: must be a fs.ClientUpdate",
    ),
    "update-weight": (
        lambda: custom(lambda key, server, row, batches: fs.ClientUpdate(server, jnp.ones(2))),
        r"ClientUpdate.weight has shape \(2,\): must be a scalar",
    ),
    "row-structure": (
        lambda: custom(
            lambda key, server, row, batches: fs.ClientUpdate(server, state={"b": row["a"]}),
            init=lambda params: (params, {"a": jnp.zeros(3)}),
        ),
        "ClientUpdate.state has structure .*'b'.*must be that of the row .*init returned.*'a'",
    ),
    "row-shape": (
        lambda: custom(
            lambda key, server, row, batches: fs.ClientUpdate(server, state={"a": jnp.zeros(2)}),
            init=lambda params: (params, {"a": jnp.zeros(3)}),
        ),
        r"ClientUpdate.state\['a'\] has shape \(2,\): must be \(3,\)",
    ),
    "params-integer": (
        lambda: toys.fedavg(fs.Task(lambda key: {"w": jnp.ones(3), "n": 2}, lambda p, b, key: b["x"] @ p["w"])),
        r"params\['n'\] is int32: gradients train floats alone",
    ),
    "params-function": (
        lambda: custom(task=fs.Task(lambda key: {"w": [jnp.ones(3), jax.nn.relu]}, toys.task().loss)),
        r"task.init's params\['w'\]\[1\] is a .*: must be an array or a number",
    ),
    "params-text": (
        lambda: custom(task=fs.Task(lambda key: {"w": "relu"}, toys.task().loss)),
        r"task.init's params\['w'\] is a str, 'relu': must be an array",
    ),
    "init-function": (
        lambda: custom(init=lambda params: (params, {"a": len})),
        r"algorithm.init's \(server_state, row\)\[1\]\['a'\] is a builtin",
    ),
    "payload-function": (
        lambda: custom(lambda key, server, row, batches: fs.ClientUpdate({"a": {"b": len}})),
        r"ClientUpdate.payload\['a'\]\['b'\] is a builtin",
    ),
    "row-cut": (
        lambda: custom(
            lambda key, server, row, batches: fs.ClientUpdate(server, state={"n": row["n"] + 0.5}),
            init=lambda params: (params, {"n": jnp.zeros((), jnp.int32)}),
        ),
        r"ClientUpdate.state\['n'\] is float32, which int32 would cut: .*Begin with a float \(0.0\), or round",
    ),
    "server-cut": (
        lambda: custom(
            lambda key, server, row, batches: fs.ClientUpdate(batches.num_examples),
            lambda key, server, aggregate: {"n": server["n"] + aggregate.value},
            lambda params: ({"n": jnp.zeros((), jnp.int32)}, None),
        ),
        r"the server function's result\['n'\] is float32, which int32 would cut",
    ),
    "server-cut-bool": (
        lambda: custom(
            lambda key, server, row, batches: fs.ClientUpdate(1.0),
            lambda key, server, aggregate: server + 1,
            lambda params: (jnp.zeros((), bool), None),
        ),
        "the server function's result is int32, which bool would cut",
    ),
    "server-structure": (
        lambda: custom(server=lambda key, server, aggregate: {"w": server["w"]}),
        "server function's result has structure .*must be that of the server state",
    ),
    "server-shape": (
        lambda: custom(server=lambda key, server, aggregate: {**server, "b": jnp.zeros(3)}),
        r"server function's result\['b'\] has shape \(3,\): must be \(2,\)",
    ),
}


@pytest.mark.parametrize("case", PARTS)
def test_parts(case):
    build, message = PARTS[case]
    with pytest.raises(ArgumentError, match=message) as caught:
        build()
    assert isinstance(caught.value, fs.FedSimError)


@pytest.mark.parametrize("case", FUNCTIONS)
def test_functions(case):
    build, message = FUNCTIONS[case]
    with pytest.raises(ArgumentError, match=message):
        step(build())


@pytest.mark.parametrize(
    "params, message",
    [
        ({"w": jnp.zeros((3, 2))}, "params have structure .*the task's have .*'b'"),
        (
            {"w": jnp.zeros((2, 2)), "b": jnp.zeros(2)},
            r"params\['w'\] has shape \(2, 2\): .*\(3, 2\)",
        ),
        (None, None),
        ({"w": np.ones((3, 2)), "b": [1, 2]}, "params have structure"),
        ({"w": np.ones((3, 2)), "b": len}, r"params\['b'\] is a builtin"),
        ({"w": np.ones((3, 2)), "b": np.ones(2, complex)}, r"params\['b'\] is complex\w+, which float32 would cut"),
    ],
)
def test_params_of_init(params, message):
    sim = simulation()
    if message is None:
        assert sim.init(params).round == 0
        return
    with pytest.raises(ArgumentError, match=message):
        sim.init(params)


def test_params_of_init_are_copied_in_the_tasks_dtypes():
    given = {"w": np.ones((3, 2)), "b": np.arange(2)}
    state = simulation().init(given)
    given["w"][:] = 7
    assert {leaf.dtype for leaf in jax.tree.leaves(state.server.params)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(state.server.params["w"], np.ones((3, 2)))


def test_traced_hyperparameters_are_not_checked():
    """A sweep traces them; the same values are errors on the host."""

    def build(rate):
        fs.scaffold(toys.task(), client_lr=rate, num_clients=12, server_lr=rate)
        fs.algorithms.fedprox(toys.task(), optax.sgd(rate), mu=rate)
        fs.server.fedadam(rate, b1=rate, b2=rate, tau=rate)
        fs.server.fedavgm(rate, momentum=rate)
        fs.aggregate.clip_by_l2(rate)
        return rate

    jax.jit(build)(-1.0)
    with pytest.raises(ArgumentError, match=r"client_lr=-1\.0: must be positive"):
        build(-1.0)


def test_server_may_return_python_numbers():
    algorithm = custom(
        init=lambda params: ({"x": params, "rate": 0.5}, None),
        client=lambda key, server, row, batches: fs.ClientUpdate(server["x"]),
        server=lambda key, server, aggregate: {**server, "rate": 0.25},
    )
    assert step(algorithm)[0].server["rate"] == 0.25


@pytest.mark.parametrize("name, exact", [("fedavg", False), ("scaffold", True), ("fedsgd", False)])
def test_leaves_without_numbers_change_nothing(name, exact):
    """Parameters with a leaf of size 0, and with none at all but that."""
    more = {"none": jnp.zeros((0, 3)), "empty": {}}
    plain = toys.task()
    loss = lambda params, batch, key: plain.loss({k: params[k] for k in "wb"}, batch, key)
    padded = fs.Task(lambda key: {**plain.init(key), **more}, loss)
    make = toys.ALGORITHMS.get(name, lambda task: fs.fedsgd(task, optax.sgd(0.1)))
    after = []
    for task in (plain, padded):
        sim = simulation(make(task), exact=exact)
        after.append(sim.params(sim.run(sim.init(), 2)[0]))
    assert after[1]["none"].shape == (0, 3)
    for leaf in "wb":
        np.testing.assert_array_equal(after[0][leaf], after[1][leaf])
    nothing = fs.Task(lambda key: jnp.zeros(0), lambda params, batch, key: batch["x"][:, 0])
    if name == "fedavg":
        assert step(make(nothing), exact=exact)[1]["cohort/contributed"] == 3


def test_a_population_given_twice_must_agree():
    for wrap in (lambda algorithm: algorithm, lambda algorithm: fs.compress_downlink(algorithm, BFLOAT16, SENT)):
        with pytest.raises(ArgumentError, match="num_clients=600: the data have 12; leave it out"):
            simulation(wrap(fs.scaffold(toys.task(), 0.1, num_clients=600)))
    told, found = (step(fs.scaffold(toys.task(), 0.1, n))[0].server for n in (12, None))
    np.testing.assert_array_equal(toys.flat(told), toys.flat(found))
    assert toys.flat(found.control).any()


BFLOAT16, SENT = fs.aggregate.bfloat16(), lambda server: (server.params, server.control)


# Clients whose function fails


def fails_for_client_4(key, server, row, batches):
    """Fails on values, so only where there are any."""
    batches.batch(0)
    if not isinstance(batches.client_id, jax.core.Tracer) and int(batches.client_id) == 4:
        raise ValueError("what a client")
    return fs.ClientUpdate(server)


def fails_always(key, server, row, batches):
    raise ValueError("what a client")


@pytest.mark.parametrize("client", [fails_for_client_4, fails_always])
def test_debug_names_the_client_and_its_batch(client):
    """A function that fails when it is traced fails for every client alike."""
    with pytest.raises(fs.ClientError, match="ValueError: what a client") as caught:
        step(custom(client), debug=True)
    assert isinstance(caught.value.__cause__, ValueError)
    caught.match(r"'x': 'float32\[3, 3\]'.*'y': 'float32\[3, 2\]'")
    if client is fails_for_client_4:
        caught.match(r"client 4 \(id 4, 7 examples, 3 steps\) failed in round 0")


@pytest.mark.parametrize("debug", [True, False])
def test_a_client_that_reads_values_is_told_that_it_is_traced(debug):
    """Under the guard that is advised, the client is found."""

    def reads(key, server, row, batches):
        if int(batches.client_id) == 4:
            raise ValueError("what a client")
        return fs.ClientUpdate(server)

    with pytest.raises(Exception, match=r"client_id|int32") as caught:
        simulation(custom(reads), debug=debug)
    words = " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert isinstance(caught.value, fs.ClientError) == debug
    assert "every client fails alike" not in words
    guard = "not isinstance(batches.client_id, jax.core.Tracer) and int(batches.client_id) == 3"
    assert guard in words
    assert "traced once for all clients" in words

    def guarded(key, server, row, batches):
        if eval(guard.replace("3", "4")):
            raise ValueError("what a client")
        return fs.ClientUpdate(server)

    with pytest.raises(fs.ClientError, match=r"client 4 .* failed in round 0.*what a client"):
        step(custom(guarded), debug=True)


def test_debug_changes_no_result():
    def client(key, server, row, batches):
        def step(value, batch, key):
            noise = jax.random.normal(key, (3,))
            return value + jnp.dot(batch["mask"], batch["x"]) + noise, {"count": batch["mask"].sum()}

        value, metrics = fs.local_steps(step, jnp.zeros(3), batches, key)
        return fs.ClientUpdate(value, metrics=metrics)

    algorithm = fs.Algorithm(
        toys.task(),
        lambda params: (jnp.zeros(3), None),
        client,
        lambda key, server, aggregate: aggregate.value,
    )
    plain, checked = step(algorithm)[0], step(algorithm, debug=True)[0]
    assert toys.flat(plain.server).all()
    np.testing.assert_array_equal(toys.flat(plain.server), toys.flat(checked.server))


@pytest.mark.parametrize("where", ["client", "server"])
def test_errors_of_users_functions_pass_with_a_note(where):
    def bad(key, *rest):
        raise ValueError("what a function")

    with pytest.raises(ValueError, match="what a function") as caught:
        step(custom(**{where: bad}))
    assert not isinstance(caught.value, fs.FedSimError)
    assert any("Simulation(debug=True)" in note for note in caught.value.__notes__)


def test_debug_does_not_blame_clients_for_the_server():
    def bad(key, server, aggregate):
        raise ValueError("what a server")

    with pytest.raises(ValueError, match="what a server"):
        step(custom(server=bad), debug=True)


# Nobody, and nothing


@pytest.fixture(scope="module", params=["fedavg", "scaffold", "two_phase", "median"])
def scripted(request):
    """A simulation whose cohorts are changed in its state."""
    algorithm = toys.ALGORITHMS[request.param](toys.task())
    return simulation(algorithm, sampler=toys.script([[0, 1, 2]], capacity=4), lanes=2)


def test_a_client_without_examples_contributes_nothing(scripted):
    start = scripted.init()
    outcomes = []
    for cohort in ([0, 2, 4], [1, 0, 2, 4]):
        state, metrics = scripted.step(toys.with_cohorts(start, [cohort]))
        assert metrics["cohort/contributed"] == metrics["cohort/clients"] == 3
        outcomes.append((toys.on_device(state), metrics))
    (a, _), (b, metrics) = outcomes
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    loss = metrics.clients("client/loss")
    assert metrics.client_ids.tolist() == [1, 0, 2, 4]
    assert np.isnan(loss[0])
    assert np.isfinite(loss[1:]).all()
    np.testing.assert_array_equal(metrics["client/loss"], outcomes[0][1]["client/loss"])


@pytest.mark.parametrize("cohort", [[], [1]], ids=["empty", "of an empty client"])
def test_an_empty_cohort_changes_nothing(scripted, cohort):
    state, history = scripted.run(toys.with_cohorts(scripted.init(), [[0, 2]]), 2)
    assert np.isfinite(history["client/loss"]).all()
    before = toys.on_device(state)
    state, metrics = scripted.step(toys.with_cohorts(state, [cohort]))
    assert state.round == 3
    assert metrics["cohort/contributed"] == metrics["cohort/weight"] == metrics["plan/steps"] == 0
    assert np.isnan(metrics["client/loss"])
    for name, value in toys.on_device(state).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_an_empty_cohort_does_not_move_by_momentum():
    algorithm = toys.fedavg(toys.task(), server_optimizer=fs.server.fedadam(0.1))
    sim = simulation(algorithm, sampler=fs.sampler.fixed([[0, 2], [], [0, 2]]))
    state, _ = sim.step(sim.init())
    assert toys.flat(state.server.optimizer.m).any()
    after, _ = sim.step(state)
    np.testing.assert_array_equal(toys.flat(after.server), toys.flat(state.server))
    moved, history = sim.run(after, 1)
    assert (toys.flat(moved.server) != toys.flat(after.server)).any()
    assert history["round"].tolist() == [2]
    assert sim.compile_count() == 1


# Updates that are not finite


def poisoned(client, value=np.nan):
    x = DATA.arrays["x"].copy()
    x[DATA.rows(client)[0]] = value
    return fs.data.FederatedData({**DATA.arrays, "x": x}, DATA.offsets, client_ids=[f"user{k}" for k in range(12)])


COHORTS = [[0, 2, 4], [2, 6, 9], [0, 6, 9], [2, 4, 8], [0, 2, 4], [8, 9, 10]]
BAD = 8  # first drawn in round 3


@pytest.mark.parametrize(
    "algorithm, value",
    [("fedavg", np.inf), ("fedavg", 1e30), *((name, np.nan) for name in toys.ALGORITHMS)],
)
def test_drop_is_the_cohort_without_that_client(algorithm, value):
    algorithm = toys.ALGORITHMS[algorithm](toys.task())
    sampler = toys.script(COHORTS, capacity=4)
    sim = simulation(algorithm, poisoned(BAD, value), sampler, lanes=2, on_nonfinite="drop")
    state, history = sim.run(sim.init(), 6)
    without = [[k for k in cohort if k != BAD] for cohort in COHORTS]
    other, expected = sim.run(toys.with_cohorts(sim.init(), without), 6)
    for name, value in toys.on_device(state).items():
        np.testing.assert_allclose(value, toys.on_device(other)[name], rtol=1e-5, atol=1e-6)
    assert np.isfinite(toys.flat(state.server)).all()
    assert np.isfinite(toys.flat(state.rows)).all()
    assert history["cohort/nonfinite"].tolist() == [0, 0, 0, 1, 0, 1]
    assert history["cohort/contributed"].tolist() == [3, 3, 3, 2, 3, 2]
    assert [m.nonfinite_clients() for m in history.rounds][3:] == [[BAD], [], [BAD]]
    np.testing.assert_allclose(history["client/loss"], expected["client/loss"], rtol=1e-5)


@pytest.fixture(scope="module", params=["fedavg-1", "fedavg-2", "scaffold-4"])
def poisonous(request):
    """A simulation of 1, 2 or 4 rounds a dispatch, in whose round 3 a client fails."""
    algorithm, block = request.param.split("-")
    return simulation(
        toys.ALGORITHMS[algorithm](toys.task()),
        poisoned(BAD),
        fs.sampler.fixed(COHORTS),
        rounds_per_dispatch=int(block),
    )


def run_into_error(sim):
    seen = []
    with pytest.raises(fs.NonFiniteUpdateError, match=r"round 3: .*client user8 is not") as caught:
        sim.run(sim.init(), 6, callbacks=[lambda metrics: seen.append(metrics.round)])
    return caught.value, seen


def test_raise_names_the_client_and_keeps_the_last_good_state(poisonous):
    error, _ = run_into_error(poisonous)
    assert (error.round, error.client_ids) == (3, [BAD])
    assert error.history["round"].tolist() == [0, 1, 2]
    state, losses = poisonous.init(), []
    for _ in range(3):
        state, metrics = poisonous.step(state)
        losses.append(metrics["client/loss"])
    assert error.state.round == 3
    for name, value in toys.on_device(error.state).items():
        np.testing.assert_array_equal(value, toys.on_device(state)[name], err_msg=name)
    assert error.history["client/loss"].tolist() == losses
    skipped = dataclasses.replace(error.state, round=4)  # as a user may go on
    assert poisonous.step(skipped)[0].round == 5


def test_callbacks_have_seen_every_good_round(poisonous):
    error, seen = run_into_error(poisonous)
    assert seen == error.history["round"].tolist() == [0, 1, 2]


def test_step_raises_with_the_state_it_was_given(poisonous):
    state = dataclasses.replace(poisonous.init(), round=3)
    with pytest.raises(fs.NonFiniteUpdateError, match='on_nonfinite="drop"') as caught:
        poisonous.step(state)
    assert (caught.value.round, caught.value.client_ids) == (3, [BAD])
    assert caught.value.history is None
    assert caught.value.state is state


def test_an_error_while_planning_loses_no_finished_round():
    sim = simulation(sampler=fs.sampler.fixed([[0, 2], [4], [2, 4]]), lanes=1)
    good, _ = sim.run(sim.init(), 3)
    with pytest.raises(fs.FedSimError, match="was given 3 cohorts") as caught:
        sim.run(sim.init(), 5)
    assert caught.value.state.round == len(caught.value.history.rounds) == 3
    np.testing.assert_array_equal(toys.flat(caught.value.state.server), toys.flat(good.server))
