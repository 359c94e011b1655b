"""Checkpoints: what is saved comes back bit by bit, a run goes on from it as if it had not stopped, damage is found."""

import contextlib
import json
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.engine import toys


def leaves(state: fs.RoundState) -> dict[str, np.ndarray]:
    """All of a state by path, on the host."""
    tree = (state.round, state.seed, state.server, state.aggregator, state.sampler, state.rows, state.ledger)
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in paths}


def check_equal(one: fs.RoundState, other: fs.RoundState) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    one_leaves, other_leaves = leaves(one), leaves(other)
    assert one_leaves.keys() == other_leaves.keys()
    for name, leaf in one_leaves.items():
        assert (leaf.dtype, leaf.shape) == (other_leaves[name].dtype, other_leaves[name].shape), name
        assert leaf.tobytes() == other_leaves[name].tobytes(), name


def rounds_of(history: fs.History) -> list[dict]:
    return [{name: np.asarray(value).tolist() for name, value in metrics.items()} for metrics in history.rounds]


def counting() -> fs.sampler.Sampler:
    """The k clients that were drawn least; its state is host numbers, arrays among them, of 64 bits."""

    def init(num_clients):
        return {"draws": 0, "last": 2**40, "share": 1 / 3, "on": True, "counts": np.zeros(num_clients, np.int64)}

    def sample(state, round, seed):
        ids = np.argsort(state["counts"] * 1.0 + 1e-3 * ((np.arange(12) * 7 + seed) % 12), kind="stable")[:4]
        counts = state["counts"].copy()
        counts[ids] += 2**33 + round
        made = {"draws": state["draws"] + 1, "last": state["last"] + int(ids[0]), "share": state["share"] / 2}
        return fs.sampler.cohort(ids, 4), {**state, **made, "counts": counts}

    return fs.sampler.Sampler(init, sample, lambda num_clients: 4, lambda num_clients: 4.0, name="counting")


ALGORITHMS = {
    "fedavg": lambda: toys.fedavg(toys.task(noisy=True)),
    "scaffold": lambda: fs.scaffold(toys.task(noisy=True), toys.LR, toys.NUM_CLIENTS),
    "fedyogi": lambda: toys.fedavg(toys.task(noisy=True), server_optimizer=fs.server.fedyogi(0.1)),
}


def build(algorithm="fedavg", sampler=None, batching=None, sizes=toys.SIZES, **kwargs) -> fs.Simulation:
    algorithm = ALGORITHMS[algorithm]() if isinstance(algorithm, str) else algorithm
    kwargs = {"devices": jax.devices()[:2], **kwargs}
    return fs.Simulation(
        algorithm,
        toys.federation(sizes),
        sampler or fs.sampler.uniform(5),
        batching or fs.Batching(3),
        **toys.executed(**kwargs),
    )


@pytest.mark.parametrize("sampler", [None, counting()], ids=["uniform", "counting"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_saved_state_comes_back_bit_by_bit_into_a_simulation_built_anew(tmp_path, algorithm, sampler):
    sim = build(algorithm, sampler)
    state, _ = sim.run(sim.init(), 2)
    sim.save(tmp_path / "state", state)
    again = build(algorithm, sampler)
    restored = again.restore(tmp_path / "state")
    check_equal(restored, state)
    assert restored.round == 2
    if sampler is not None:
        assert [type(restored.sampler[name]) for name in ("draws", "last", "share", "on")] == [int, int, float, bool]
        assert restored.sampler["counts"].sum() == 4 * (2 * 2**33 + 1)
    for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert type(one) is type(other)
        assert getattr(one, "sharding", None) == getattr(other, "sharding", None)


def odd_types() -> fs.Algorithm:
    """Federated averaging whose server also keeps one leaf of each kind."""
    base = toys.fedavg(toys.task())
    kinds = ("bfloat16", "float16", "int8", "uint32", "bool", "complex64", "float8_e4m3fn")

    def init(params):
        server, row = base.init(params)
        kept = {kind: jnp.asarray([0, 1, 3], kind) for kind in kinds}
        return {
            "server": server,
            "kept": {**kept, "a/b.c": jnp.ones(2), "scalar": jnp.float32(2.5)},
            "none": {"dict": {}, "tuple": (), "none": None, "zero": jnp.zeros((0, 3), jnp.int8)},
            "key": jax.random.key(3),
        }, row

    def server(key, server, aggregate):
        kept = {**server["kept"], "bfloat16": server["kept"]["bfloat16"] / 3}
        return {**server, "server": base.server(key, server["server"], aggregate), "kept": kept}

    def client(key, server, row, batches):
        return base.client(key, server["server"], row, batches)

    return base._replace(init=init, client=client, server=server, params=lambda server: base.params(server["server"]))


def test_every_type_of_number_and_empty_containers_come_back(tmp_path):
    sim = build(odd_types())
    state, _ = sim.run(sim.init(), 2)
    sim.save(tmp_path, state)
    restored = build(odd_types()).restore(tmp_path)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert restored.server["key"].dtype == state.server["key"].dtype
    assert jax.random.key_data(restored.server["key"]).tolist() == [0, 3]
    for kind in ("bfloat16", "float16", "int8", "uint32", "bool", "complex64", "float8_e4m3fn", "a/b.c", "scalar"):
        one, other = restored.server["kept"][kind], state.server["kept"][kind]
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    assert restored.server["kept"]["bfloat16"].tolist() == np.asarray([0, 1 / 9, 1 / 3]).astype(jnp.bfloat16).tolist()
    assert restored.server["none"]["zero"].shape == (0, 3)
    assert restored.server["none"]["zero"].dtype == jnp.int8
    assert build(odd_types()).run(restored, 1)[0].round == 3


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
@pytest.mark.parametrize("rounds_per_dispatch", [1, 4])
def test_a_run_goes_on_from_its_folder_as_if_it_had_not_ended(tmp_path, algorithm, rounds_per_dispatch):
    made = lambda: build(algorithm, counting(), rounds_per_dispatch=rounds_per_dispatch)
    sim = made()
    straight, expected = sim.run(sim.init(), 6)
    first = made()
    _, before = first.run(first.init(), 3, run_dir=tmp_path, checkpoint_every=3)
    second = made()
    state = second.restore(tmp_path)
    assert state.round == 3
    state, after = second.run(state, 3, run_dir=tmp_path, checkpoint_every=3)
    check_equal(state, straight)
    assert rounds_of(before) + rounds_of(after) == rounds_of(expected)
    assert second.compile_count() == 1
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(6))
    assert [line["client/loss"] for line in lines] == expected["client/loss"].tolist()


@pytest.mark.parametrize("rounds_per_dispatch", [1, 4])
def test_blocks_end_at_checkpoints_and_the_newest_three_are_kept(tmp_path, rounds_per_dispatch):
    sim, alone = (build(rounds_per_dispatch=rounds_per_dispatch) for _ in range(2))
    state, _ = sim.run(sim.init(), 14, run_dir=tmp_path, checkpoint_every=3)
    assert sorted(int(each.name) for each in (tmp_path / "checkpoints").iterdir()) == [9, 12, 14]
    for rounds in (9, 12, 14):
        check_equal(sim.restore(tmp_path, rounds), alone.run(alone.init(), rounds)[0])
    check_equal(sim.restore(tmp_path), state)
    assert sim.compile_count() == 1
    with pytest.raises(fs.RunFolderError, match=r"holds checkpoints of rounds \[9, 12, 14\], and none of round 10\."):
        sim.restore(tmp_path, 10)


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
def test_a_state_moves_to_another_number_of_devices(tmp_path, algorithm):
    two, five = build(algorithm), build(algorithm, devices=jax.devices()[:5])  # rows: 2 x 6, and 5 x 3 with padding
    state, _ = two.run(two.init(), 2)
    two.save(tmp_path, state)
    restored = five.restore(tmp_path)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves((restored.server, restored.rows))} == {5}
    for name, part in toys.on_device(restored).items():
        assert part.tobytes() == toys.on_device(state)[name].tobytes(), name
    assert all(table.shape[0] == 15 for table in jax.tree.leaves(restored.rows))
    after, expected = five.run(restored, 3)[0], two.run(state, 3)[0]
    assert five.compile_count() == 1
    for name, part in toys.on_device(after).items():
        np.testing.assert_allclose(part, toys.on_device(expected)[name], rtol=1e-5, atol=1e-6)
    five.save(tmp_path, after)  # and back
    for name, part in toys.on_device(two.restore(tmp_path)).items():
        assert part.tobytes() == toys.on_device(after)[name].tobytes(), name


def test_lanes_that_were_chosen_automatically_are_chosen_as_they_were(tmp_path):
    sim = build(lanes=3)
    sim.save(tmp_path, sim.init())
    automatic = build(lanes="auto")
    assert automatic.lanes < 3
    automatic.restore(tmp_path)
    assert automatic.lanes == 3
    other_devices = build(lanes="auto", devices=jax.devices()[:1])
    chosen = other_devices.lanes
    other_devices.restore(tmp_path)
    assert other_devices.lanes == chosen < 3
    explicit = build(lanes=1)
    explicit.restore(tmp_path)
    assert explicit.lanes == 1


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(folder: Path) -> None:
    data = largest(folder).read_bytes()
    largest(folder).write_bytes(data[: len(data) // 2])


def flip(folder: Path) -> None:
    path = largest(folder)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 8] = bytes(byte ^ 0xFF for byte in data[middle : middle + 8])
    path.write_bytes(bytes(data))


def lose_metadata(folder: Path) -> None:
    (folder / "state" / "_METADATA").unlink()


def lose_record(folder: Path) -> None:
    shutil.rmtree(folder / "record")


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize("damage", [truncate, flip, lose_metadata, lose_record, empty])
def test_a_damaged_checkpoint_is_left_for_the_one_before_it(tmp_path, damage):
    sim = build("scaffold")
    straight, _ = sim.run(sim.init(), 6, run_dir=tmp_path, checkpoint_every=2)
    expected = (tmp_path / "metrics.jsonl").read_bytes()
    damage(tmp_path / "checkpoints" / "6")
    again = build("scaffold")
    with pytest.warns(UserWarning, match=r"round 6 in .* is damaged: .*\. Going on from round 4\.") as warned:
        state = again.restore(tmp_path)
    assert len(warned) == 1
    assert state.round == 4
    state, _ = again.run(state, 2, run_dir=tmp_path, checkpoint_every=2)
    check_equal(state, straight)
    assert (tmp_path / "metrics.jsonl").read_bytes() == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_equal(build("scaffold").restore(tmp_path), straight)


def test_flipped_bytes_are_found_wherever_they_are(tmp_path):
    sim = build("scaffold")
    sim.save(tmp_path, sim.init())
    files = [path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file() and path.stat().st_size > 100]
    assert len(files) >= 4
    for path in files:
        whole = path.read_bytes()
        flip_in = bytearray(whole)
        flip_in[len(whole) // 2] ^= 0x55
        path.write_bytes(bytes(flip_in))
        with contextlib.suppress(fs.RunFolderError):  # what does not matter to the state may pass
            check_equal(build("scaffold").restore(tmp_path), sim.init())
        path.write_bytes(whole)


def test_only_damaged_checkpoints_are_an_error(tmp_path):
    sim = build()
    sim.run(sim.init(), 2, run_dir=tmp_path, checkpoint_every=1)
    for round in (0, 1, 2):
        flip(tmp_path / "checkpoints" / str(round))
    with pytest.raises(fs.RunFolderError, match=r"holds no checkpoint that can be read: the checkpoint of round 2"):
        sim.restore(tmp_path)
    with pytest.raises(fs.RunFolderError, match=r"the checkpoint of round 1 in .* is damaged: "):
        sim.restore(tmp_path, 1)
    with pytest.raises(fs.RunFolderError, match=r"holds no checkpoint that can be read: .* Choose another folder\."):
        sim.run(sim.init(), 2, run_dir=tmp_path)
    with pytest.raises(fs.RunFolderError, match=r"nothing holds no checkpoint\."):
        sim.restore(tmp_path / "nothing")


OTHERS = {
    "seed was 0 there and is 1 here": lambda: build(seed=1),
    r"sampler was 'uniform\(5\)' there and is 'uniform\(4\)' here": lambda: build(sampler=fs.sampler.uniform(4)),
    r"batching was .*'batch_size': 3.* there and is .*'batch_size': 2.* here": lambda: build(batching=fs.Batching(2)),
    "clients was 12 there and is 13 here": lambda: build(sizes=(*toys.SIZES, 1)),
    "sizes was ": lambda: build(sizes=(9, 0, 5, *toys.SIZES[3:])),
    "algorithm: num_clients was None there and is 12 here": lambda: build("scaffold"),
    "algorithm: .*optimizer": lambda: build("fedyogi"),
    "parameters was 8 there and is 6 here": lambda: build(toys.fedavg(smaller())),
}


def smaller() -> fs.Task:
    """The regression without a bias."""

    def loss(params, batch, key):
        return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2, axis=1)

    return fs.Task(lambda key: {"w": jnp.zeros((3, 2))}, loss)


@pytest.mark.parametrize("message", OTHERS)
def test_a_checkpoint_of_another_simulation_names_the_difference(tmp_path, message):
    sim = build()
    sim.save(tmp_path, sim.init())
    with pytest.raises(fs.RunFolderError, match=message):
        OTHERS[message]().restore(tmp_path)


@pytest.mark.parametrize("other", ["scaffold", "fedyogi"])
def test_another_algorithm_that_is_allowed_needs_a_state_of_the_same_parts(tmp_path, other):
    sim = build()
    sim.save(tmp_path, sim.init())
    with pytest.raises(fs.RunFolderError, match=r"is of another algorithm, model or sampler: it lacks"):
        build(other).restore(tmp_path, allow=ANOTHER)


ANOTHER = {"algorithm", "aggregator"}


def test_a_leaf_of_another_shape_or_type_is_named(tmp_path):
    of = lambda value: fs.Task(lambda key: {"w": value}, lambda params, batch, key: batch["x"][:, 0])
    build_one = lambda value: build(fs.fedavg(of(value), optax.sgd(0.1)))
    sim = build_one(jnp.zeros((2, 3)))
    sim.save(tmp_path, sim.init())
    with pytest.raises(fs.RunFolderError, match=r"'w'\] is float32\[2, 3\]: this simulation's is float32\[3, 2\]\. "):
        build_one(jnp.zeros((3, 2))).restore(tmp_path, allow=ANOTHER)
    with pytest.raises(fs.RunFolderError, match=r"'w'\] is float32\[2, 3\]: this simulation's is bfloat16\[2, 3\]\. "):
        build_one(jnp.zeros((2, 3), jnp.bfloat16)).restore(tmp_path, allow=ANOTHER)


def test_another_state_of_a_saved_round_is_an_error_and_the_old_one_stays(tmp_path):
    sim = build()
    state = sim.init()
    sim.save(tmp_path, state)
    sim.save(tmp_path, state)  # the same once more is no error
    with pytest.raises(fs.RunFolderError, match=r"holds another state of round 0: go on from state = sim\.restore\("):
        sim.save(tmp_path, sim.init(jax.tree.map(lambda p: p + 1, sim.params(state))))
    check_equal(sim.restore(tmp_path), state)


def test_save_keeps_the_newest_three(tmp_path):
    sim = build()
    state = sim.init()
    for _ in range(5):
        sim.save(tmp_path, state)
        state, _ = sim.step(state)
    assert sorted(int(each.name) for each in (tmp_path / "checkpoints").iterdir()) == [2, 3, 4]


def test_run_and_save_leave_the_state_usable_and_the_checkpoint_apart_from_it(tmp_path):
    sim = build("scaffold", on_nonfinite="drop")  # rows in place
    state, _ = sim.run(sim.init(), 2)
    copy = leaves(state)
    sim.save(tmp_path, state)
    sim.run(state, 2, run_dir=tmp_path, checkpoint_every=1)
    assert all(leaf.tobytes() == copy[name].tobytes() for name, leaf in leaves(state).items())
    straight = build("scaffold", on_nonfinite="drop")
    for rounds in (2, 3, 4):
        check_equal(sim.restore(tmp_path, rounds), straight.run(straight.init(), rounds)[0])


def test_a_checkpoint_that_a_running_process_removes_meanwhile_is_no_error(tmp_path, monkeypatch):
    from orbax import checkpoint as ocp

    sim = build()
    sim.save(tmp_path, sim.init())
    real, failures = ocp.CheckpointManager, [FileNotFoundError("3")] * 2

    def racing(*arguments, **options):
        if failures:
            raise failures.pop()
        return real(*arguments, **options)

    monkeypatch.setattr(ocp, "CheckpointManager", racing)
    assert sim.restore(tmp_path).round == 0
    assert not failures
