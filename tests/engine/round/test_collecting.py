"""Reducers that collect: what they are told, what they keep, rounds that they refuse, coordinates in blocks."""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.core import rng
from fedjax_sim.engine.device.placement import client_mesh
from fedjax_sim.engine.round import collected as collected_lib
from fedjax_sim.engine.store.row_file import HostRows
from fedjax_sim.runs.report_words import rounds_done
from fedjax_sim.simulation.fingerprint import compare
from tests.engine import toys

A = fs.aggregate
COHORTS = ((6, 2, 4, 0, 9, 3), (1, 5, 10), (11, 6, 0, 3, 5, 4), (2, 8), (7, 2, 8, 10))
FEWEST = 3
REFUSED = [False, True, False, True, False]  # client 1 is empty
SHARE = 0.7


def told(fewest: int = FEWEST) -> A.Reducer:
    """Needs all that there is: a draw for each client, ids, a state, metrics; refuses rounds of few clients."""

    def collect(collected):
        draw = jax.vmap(lambda client: jax.random.uniform(jax.random.fold_in(collected.key, client)))(collected.ids)
        kept, n = collected.contributes & (draw < SHARE), jnp.sum(collected.contributes)
        factors = jnp.where(kept, collected.weights, 0)
        factors = factors / jnp.maximum(jnp.sum(factors), 1)
        mean = jax.tree.map(lambda leaf: jnp.tensordot(factors, leaf, 1), collected.messages)
        value = jax.tree.map(lambda new, old: new + 0.5 * old, mean, collected.state["mean"])
        state = {"mean": mean, "rounds": collected.state["rounds"] + 1}
        metrics = {
            "kept": fs.metrics.Sum(jnp.sum(kept)),
            "largest_id": fs.metrics.Max(jnp.max(jnp.where(collected.contributes, collected.ids, -1))),
            "turn": fs.metrics.Sum(collected.state["rounds"] + 10 * collected.round),
        }
        return A.Reduced(value, state, metrics, refused=n < fewest)

    def init(shapes):
        return {"mean": jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes), "rounds": 0}

    return A.Reducer(f"told({fewest})", collect=collect, init=init)


def server_function(key, server, aggregate):
    return jax.tree.map(jnp.add, server, aggregate.value)


def plain(chain) -> fs.Algorithm:
    """Clients whose payload is of their id and of the model, and whose rows count their rounds."""

    def client(key, server, row, batches):
        one = jnp.sin(batches.client_id + 1.0 + jnp.arange(8.0)) + 0.1 * row["rounds"]
        payload = {"w": one[:6].reshape(3, 2) - 0.2 * server["w"], "b": one[6:] - 0.2 * server["b"]}
        new = {"rounds": row["rounds"] + 1}
        return fs.ClientUpdate(payload, batches.num_examples, state=new, metrics={"seen": row["rounds"]})

    row = {"rounds": np.int32(0)}
    return fs.Algorithm(toys.task(), lambda params: (params, row), client, server_function, chain)


def simulation(chain=None, algorithm=None, lanes=2, devices=1, cohorts=COHORTS, **kwargs):
    chain = told() if chain is None else chain
    return fs.Simulation(
        plain(chain) if algorithm is None else algorithm,
        toys.federation(),
        toys.script(cohorts),
        fs.Batching(3),
        seed=3,
        **toys.executed(lanes=lanes, devices=jax.devices()[:devices], **kwargs),
    )


def by_hand(start):
    """The rounds in NumPy: models, reducer's state and rows after each, and what is reported."""
    model, rows = toys.flat(start), np.zeros(toys.NUM_CLIENTS, int)
    mean, turns, found = np.zeros(8), 0, []
    split = lambda v: np.concatenate([v[6:], v[:6]])  # leaves go by name: b, then w
    for r, cohort in enumerate(COHORTS):
        members = [k for k in cohort if toys.SIZES[k]]
        sent = {k: split(np.sin(k + 1.0 + np.arange(8.0)) + 0.1 * rows[k]) - 0.2 * model for k in members}
        key = jax.random.fold_in(rng.key(3, rng.Purpose.REDUCE, r), 0)
        kept = [k for k in members if float(jax.random.uniform(jax.random.fold_in(key, k))) < SHARE]
        refused = len(members) < FEWEST
        report = {"kept": len(kept), "largest_id": max(members), "turn": turns + 10 * r, "abandoned": float(refused)}
        if not refused:
            weights = [toys.SIZES[k] for k in kept]
            now = np.average([sent[k] for k in kept], axis=0, weights=weights) if kept else np.zeros(8)
            model, mean, turns = model + now + 0.5 * mean, now, turns + 1
            rows[members] += 1
        found.append((model.copy(), mean.copy(), turns, rows.copy(), report))
    return found


@pytest.mark.parametrize("lanes, devices", [(1, 1), (3, 2), (2, 3)])
def test_a_reducer_is_told_all_that_it_needs(lanes, devices):
    sim = simulation(lanes=lanes, devices=devices)
    state = sim.init()
    for r, (model, mean, turns, rows, report) in enumerate(by_hand(state.server)):
        before = jax.device_get(state)
        state, metrics = sim.step(state)
        np.testing.assert_allclose(toys.flat(state.server), model, rtol=1e-5, atol=1e-6)
        kept = state.aggregator[0][-1]
        np.testing.assert_allclose(toys.flat(kept["mean"]), mean, rtol=1e-5, atol=1e-6)
        assert int(kept["rounds"]) == turns
        np.testing.assert_array_equal(state.rows.client["rounds"][: toys.NUM_CLIENTS], rows)
        assert {name: metrics[f"aggregate/{name}"] for name in report} == report
        assert metrics.abandoned == REFUSED[r]
        if REFUSED[r]:
            jax.tree.map(
                np.testing.assert_array_equal, (state.server, state.aggregator), (before.server, before.aggregator)
            )
    assert sim.compile_count() == 1
    assert state.round == len(COHORTS) == sum(entry["rounds"] for entry in state.ledger)


ALGORITHMS = {
    "rows of the algorithm": lambda: fs.scaffold(toys.task(noisy=True), toys.LR, toys.NUM_CLIENTS, aggregator=told()),
    "rows of the chain": lambda: toys.fedavg(
        toys.task(noisy=True), aggregator=A.chain(A.error_feedback(A.top_k(0.3)), reduce=told())
    ),
    "a transform's state": lambda: toys.fedavg(
        toys.task(noisy=True), aggregator=A.chain(A.adaptive_clip(0.5, bit_noise=0), reduce=told())
    ),
    "a server's optimizer": lambda: toys.fedavg(
        toys.task(noisy=True), server_optimizer=fs.server.fedadam(0.1), aggregator=told()
    ),
}


def table(state):
    rows = state.rows.gather(range(toys.NUM_CLIENTS)) if isinstance(state.rows, HostRows) else state.rows
    return toys.flat(jax.tree.map(lambda leaf: leaf[: toys.NUM_CLIENTS], rows))


@pytest.mark.parametrize("rows, on_nonfinite", [("device", "drop"), ("device", "raise"), ("host", "raise")])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_abandoned_round_changes_no_bit(name, rows, on_nonfinite):
    if rows == "host" and not name.startswith("rows"):
        pytest.skip("no rows")
    sim = simulation(algorithm=ALGORITHMS[name](), devices=2, rows=rows, on_nonfinite=on_nonfinite)
    state, seen = sim.init(), []
    for refused in REFUSED:
        before = toys.flat((state.server, state.aggregator)), table(state)
        state, metrics = sim.step(state)
        after = toys.flat((state.server, state.aggregator)), table(state)
        seen.append(metrics["aggregate/abandoned"])
        if refused:
            np.testing.assert_array_equal(after[0], before[0])
            np.testing.assert_array_equal(after[1], before[1])
        else:
            assert (after[0] != before[0]).any()
            assert not before[1].size or (after[1] != before[1]).any()
    assert seen == REFUSED


@pytest.mark.parametrize("which", [0, 1])
def test_all_phases_of_a_refused_round_are_undone(which):
    two = toys.two_phase(toys.task(noisy=True))
    phases = [phase._replace(aggregator=told()) if i == which else phase for i, phase in enumerate(two.phases)]
    sim = simulation(algorithm=two._replace(phases=tuple(phases)), devices=2)
    state = sim.init()
    for refused in REFUSED:
        before = toys.flat((state.server, state.aggregator))
        state, metrics = sim.step(state)
        assert (toys.flat((state.server, state.aggregator)) == before).all() == refused
        assert metrics["aggregate/abandoned"] == refused


def test_a_run_says_so_and_goes_on_from_a_checkpoint(tmp_path, capsys):
    sim = simulation(rounds_per_dispatch=2)
    straight, history = sim.run(sim.init(), 5, run_dir=tmp_path / "straight", checkpoint_every=2)
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("[")
    assert "2 abandoned" in repr(history)
    assert "abandoned" in repr(history.rounds[1])
    assert "abandoned" not in repr(history.rounds[0])
    assert history["aggregate/abandoned"].tolist() == REFUSED
    run = fs.runs.read(tmp_path / "straight")
    assert rounds_done(run) == "5, 2 abandoned"
    lines = (tmp_path / "straight" / "metrics.jsonl").read_text()
    assert [json.loads(line)["aggregate/abandoned"] for line in lines.splitlines()] == REFUSED

    half, _ = sim.run(sim.init(), 2, run_dir=tmp_path / "halves")
    again = simulation(rounds_per_dispatch=2)
    restored = again.restore(tmp_path / "halves")
    jax.tree.map(np.testing.assert_array_equal, restored.aggregator, half.aggregator)
    resumed, _ = again.run(restored, 3, run_dir=tmp_path / "halves")
    of = lambda state: jax.device_get((state.server, state.aggregator, state.rows))
    jax.tree.map(np.testing.assert_array_equal, of(resumed), of(straight))
    assert (tmp_path / "halves" / "metrics.jsonl").read_text() == lines
    with pytest.raises(fs.FedSimError, match="aggregator"):
        simulation(told(fewest=4)).restore(tmp_path / "halves")


def test_progress_counts_abandoned_rounds():
    from fedjax_sim.runs.progress import Progress

    class Metrics(dict):
        round = 0

    with Progress("run", 0, 1, display="lines", clock=lambda: 0.0) as progress:
        progress.round(Metrics({"aggregate/abandoned": 1.0}))
        assert progress._status.line() == "round 1/1: 1 abandoned"


def test_members_of_a_sweep_refuse_their_own_rounds():
    def build(server_lr):
        algorithm = fs.fedavg(toys.task(noisy=True), optax.sgd(0.1), optax.sgd(server_lr), aggregator=told())
        return simulation(algorithm=algorithm, devices=2)

    result = fs.sweep(build, {"server_lr": [0.5, 1.0]}, rounds=4, seeds=[3, 8])
    assert result.compilations == 1
    abandoned = result["aggregate/abandoned"]
    np.testing.assert_array_equal(abandoned, np.broadcast_to(REFUSED[:4], abandoned.shape))
    _, history = build(0.5).run(build(0.5).init(), 4)
    np.testing.assert_allclose(result["client/loss"][0, 0], history["client/loss"], rtol=1e-5)


def test_a_round_as_a_function_refuses_too():
    sim = simulation()
    state, f = sim.init(), sim.round_function(static=True)
    pure = sim.pure_state(state)
    for refused in REFUSED[:3]:
        plan, arrays = sim.round_plan(state)
        state, _ = sim.step(state)
        pure, numbers = f(pure, plan, arrays)
        assert numbers["aggregate/abandoned"] == refused
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        jax.tree.map(close, (state.server, state.aggregator, state.rows), (pure.server, pure.aggregator, pure.rows))


def test_gradients_go_through_robust_rules():
    """Of the model after a round by its learning rate: against differences."""
    for reducer in (A.trimmed_mean(1), A.geometric_median(), A.centered_clipping(0.3)):
        sim = simulation(algorithm=toys.fedavg(toys.task(), aggregator=reducer), lanes=1)
        state, (plan, arrays) = sim.pure_state(sim.init()), sim.round_plan(sim.init())
        f = sim.round_function(static=True)

        def total(scale, f=f, state=state, plan=plan, arrays=arrays):
            params = jax.tree.map(lambda p: scale * p, state.server.params)
            moved = dataclasses.replace(state, server=state.server._replace(params=params))
            return jnp.sum(f(moved, plan, arrays)[0].server.params["w"])

        slope = (total(1.01) - total(0.99)) / 0.02
        np.testing.assert_allclose(jax.grad(total)(1.0), slope, rtol=1e-2, err_msg=reducer.name)


# A server that trains

ROOT = {
    "x": np.array([[1.0, 0.5, -1.0], [0.2, -0.3, 0.8], [-1.0, 1.0, 0.4], [0.0, 2.0, 1.0]], np.float32),
    "y": np.array([[0.5, 1.0], [-0.2, 0.3], [0.7, -0.9], [1.0, 1.5]], np.float32),
}


@pytest.mark.parametrize("devices", [1, 2])
def test_the_server_trains_as_a_client_would(devices):
    """FLTrust against its formula: one full batch a step, so that the order of examples does not matter."""
    algorithm = toys.watched(fs.fedavg(toys.task(), optax.sgd(0.1), aggregator=A.fltrust(ROOT, steps=3)))
    sim = fs.Simulation(
        algorithm, toys.federation(), toys.script(COHORTS), fs.Batching(20), seed=3,
        **toys.executed(lanes=2, devices=jax.devices()[:devices]),
    )  # fmt: skip
    state = sim.init()
    for _ in range(2):
        before = jax.device_get(state.server.params)
        w, b = before["w"].astype(float), before["b"].astype(float)
        for _ in range(3):
            error = ROOT["x"] @ w + b - ROOT["y"]
            w, b = w - 0.1 * ROOT["x"].T @ error / 4, b - 0.1 * error.mean(axis=0)
        own = np.concatenate([b - before["b"], (w - before["w"]).ravel()])
        state, metrics = sim.step(state)
        sent = [values["client/payload0"] for values in toys.by_client(metrics).values()]
        sent = np.array([each for each in sent if each.any()], float)
        trust = np.maximum(sent @ own / np.linalg.norm(sent, axis=1) / np.linalg.norm(own), 0)
        scaled = sent / np.linalg.norm(sent, axis=1)[:, None] * np.linalg.norm(own)
        moved = toys.flat(state.server.params) - toys.flat(before)
        np.testing.assert_allclose(moved, np.average(scaled, axis=0, weights=trust), rtol=1e-4, atol=1e-6)
        assert metrics["aggregate/trust"] == pytest.approx(trust.mean(), rel=1e-4)
        assert metrics["aggregate/abandoned"] == 0


def test_without_anybody_to_trust_the_model_stays():
    nothing = {"x": np.zeros((2, 3), np.float32), "y": np.zeros((2, 2), np.float32)}
    task = toys.task()._replace(init=lambda key: {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)})
    sim = simulation(algorithm=fs.fedavg(task, optax.sgd(0.1), aggregator=A.fltrust(nothing, steps=1)))
    state, metrics = sim.step(sim.init())
    np.testing.assert_array_equal(state.server.params["w"], 1)
    assert (metrics["aggregate/abandoned"], metrics["aggregate/trust"]) == (1, 0)


def test_the_server_s_message_passes_the_chain():
    """Clipped as a client's, decoded, with a client's row: the same length and the same space."""
    for transforms in ((A.clip_by_l2(0.01),), (A.k_level(64),), (A.error_feedback(A.top_k(0.5)),)):
        chain = A.chain(*transforms, reduce=A.fltrust(ROOT, steps=2))
        sim = simulation(algorithm=fs.fedavg(toys.task(), optax.sgd(0.1), aggregator=chain))
        state, metrics = sim.step(sim.init())
        moved = np.linalg.norm(toys.flat(state.server.params) - toys.flat(sim.init().server.params))
        assert 0 < moved < (0.0101 if transforms[0].name.startswith("clip") else 1)
        assert 0 < metrics["aggregate/trust"] <= 1


# What a user may return, and the form of before


@pytest.mark.parametrize(
    ("collect", "message"),
    [
        (lambda c: c.messages, "collect returned dict: must be a fs.aggregate.Reduced"),
        (lambda c: A.Reduced(c.messages, metrics={"abandoned": 1.0}), "'abandoned'.*rename"),
        (lambda c: A.Reduced(c.messages, refused=c.contributes), r"refused has shape \(6,\): must be a scalar"),
        (lambda c: A.Reduced(c.messages, state=1.0), "the state that collect returned has"),
    ],
)
def test_wrong_returns_are_told(collect, message):
    sim = simulation(A.Reducer("mine", collect=collect))
    with pytest.raises(fs.FedSimError, match=f"mine.*{message}"):
        sim.step(sim.init())


def test_a_state_keeps_its_kind():
    counting = A.Reducer("count", collect=lambda c: A.Reduced(c.messages, c.state + 0.5), init=lambda shapes: 0)
    sim = simulation(counting)
    with pytest.raises(fs.FedSimError, match=r"count: the state.*float32, which int32 would cut"):
        sim.step(sim.init())


def test_combinations_that_cannot_be():
    both = A.Reducer("both", collect=lambda c: A.Reduced(c.messages), init=lambda shapes: 0, by_coordinate=True)
    with pytest.raises(fs.FedSimError, match="by_coordinate=True is for"):
        A.chain(reduce=both)
    with pytest.raises(fs.FedSimError, match="has init= and no collect="):
        A.chain(reduce=A.mean()._replace(init=lambda shapes: 0))
    first = lambda c: A.Reduced(jax.tree.map(lambda leaf: leaf[0], c.messages), metrics={"clip_fraction": 0.0})
    sim = simulation(A.chain(A.clip_by_l2(1.0), reduce=A.Reducer("bad", collect=first)))
    with pytest.raises(fs.FedSimError, match="clip_fraction"):
        sim.step(sim.init())


def test_collect_of_three_arguments_works_with_a_warning():
    def former(messages, weights, contributes):
        return jax.tree.map(lambda leaf: jnp.tensordot(weights / jnp.sum(weights), leaf, 1), messages)

    with pytest.warns(DeprecationWarning, match="mine: collect.messages, weights, contributes.*fs.aggregate.Collected"):
        chain = A.chain(reduce=A.Reducer("mine", lambda aggregate, expected: aggregate.value, "examples", former))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        states = [sim.run(sim.init(), 3)[0] for sim in (simulation(chain), simulation(A.mean()))]
    np.testing.assert_allclose(*(toys.flat(state.server) for state in states), rtol=1e-5, atol=1e-6)


def test_a_rule_of_another_f_is_another_simulation():
    prints = [simulation(reducer).executor.fingerprint for reducer in (A.krum(1), A.krum(2), A.trimmed_mean(1))]
    for a in range(3):
        for b in range(3):
            assert bool(compare(prints[a], prints[b]).differences) == (a != b)


# Coordinates in blocks

SHAPES = {"a": (40,), "b": (7, 5), "c": (), "d": (0, 3), "e": (1,)}


def lanes_of(devices, chunks=2, lanes=2, seed=0):
    draw = np.random.default_rng(seed)
    n = devices * chunks * lanes
    there = draw.random(n) < 0.8
    there[:2] = True
    ids = draw.permutation(n).astype(np.int32)
    messages = {k: draw.normal(size=(n, *shape)).astype(np.float32) for k, shape in SHAPES.items()}
    laid = lambda leaf: jnp.asarray(leaf).reshape(devices, chunks, lanes, *leaf.shape[1:])
    places = A.Collected(
        jax.tree.map(laid, messages), laid(there * np.float32(1)), laid(there), laid(ids), jax.random.key(0)
    )
    return places, jax.tree.map(lambda leaf: leaf[there], messages), ids[there]


@pytest.mark.parametrize("in_order", [None, 8])
@pytest.mark.parametrize("block", [8, 60, 2**18])
@pytest.mark.parametrize("devices", [1, 2, 3])
def test_blocks_of_coordinates_are_the_whole(devices, block, in_order, monkeypatch):
    monkeypatch.setattr(collected_lib, "BLOCK", block)
    places, rows, ids = lanes_of(devices)
    if in_order is not None and len(ids) > in_order:
        in_order = len(ids)
    mesh = client_mesh(jax.devices()[:devices])
    widths = []

    def by_coordinate(collected):
        widths.append(collected.messages.shape)
        return A.median().collect(collected)

    reducer = A.median()._replace(collect=by_coordinate)
    chain = A.chain(reduce=reducer)
    run = jax.jit(lambda places: collected_lib.reduce_collected(chain, (), places, mesh, in_order)[0].value)
    value = run(places)
    for name, leaf in rows.items():
        np.testing.assert_allclose(value[name], np.median(leaf, axis=0), rtol=1e-6, err_msg=name)
    n = 4 * devices
    assert all(count * width <= max(block, n) for count, width in widths)
    assert any(width == 0 for _, width in widths)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("name", ["krum", "geometric_median", "centered_clipping", "bulyan", "dnc", "nnm"])
def test_rules_on_dealt_coordinates_are_the_rules(name, devices):
    make = {
        "krum": lambda: A.krum(1),
        "geometric_median": A.geometric_median,
        "centered_clipping": lambda: A.centered_clipping(1.0),
        "bulyan": lambda: A.bulyan(1),
        "dnc": lambda: A.dnc(1),
        "nnm": lambda: A.nnm(1, A.trimmed_mean(1)),
    }[name]()
    chain = A.chain(reduce=make)
    places, _, _ = lanes_of(devices, chunks=4, lanes=4 // devices)
    alone, _, _ = lanes_of(1, chunks=4, lanes=4)
    alone = alone._replace(**{k: jax.tree.map(lambda leaf: leaf.reshape(1, 4, 4, *leaf.shape[3:]), getattr(places, k))
                              for k in ("messages", "weights", "contributes", "ids")})  # fmt: skip
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[3:], leaf.dtype), places.messages)
    states = chain.init(like)[0]
    meshes = [client_mesh(jax.devices()[:d]) for d in (devices, 1)]
    run = lambda places, mesh: jax.jit(
        lambda states, places: collected_lib.reduce_collected(chain, states, places, mesh, None)[0].value
    )(states, places)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, run(places, meshes[0]), run(alone, meshes[1]))


@pytest.mark.parametrize(
    "make",
    [A.median, lambda: A.trimmed_mean(2), lambda: A.krum(2), A.geometric_median, lambda: A.centered_clipping(1.0)],
    ids=["median", "trimmed_mean", "krum", "geometric_median", "centered_clipping"],
)
def test_memory_beside_the_messages_is_small(make):
    """Of the compiled program: what it needs besides its arguments and its results."""
    n, size = 40, 2_000_000
    chain = A.chain(reduce=make())
    states = jax.eval_shape(lambda: chain.init({"w": jax.ShapeDtypeStruct((size // 100, 100), jnp.float32)})[0])
    one = lambda dtype, *shape: jax.ShapeDtypeStruct((1, n // 4, 4, *shape), dtype)
    key = jax.eval_shape(lambda: jax.random.key(0))
    places = A.Collected(
        {"w": one(jnp.float32, size // 100, 100)}, one(jnp.float32), one(jnp.bool_), one(jnp.int32), key
    )
    mesh = client_mesh(jax.devices()[:1])
    run = jax.jit(lambda states, places: collected_lib.reduce_collected(chain, states, places, mesh, None)[0].value)
    memory = run.lower(states, places).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.3 * n * size * 4
