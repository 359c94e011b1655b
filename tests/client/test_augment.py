"""Functions of single examples inside the step: laws of the draws, and literal pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs

KEY = jax.random.key(0)


def seen(task, batch, key=KEY, evaluate=False):
    """The batch's entry "x" as the task sees it: the task's losses are its sums."""
    return np.asarray((task.evaluate if evaluate else task.loss)(jnp.zeros(()), batch, key))


def pixels(task_function, *functions):
    """A task whose per-example loss is the first pixel."""
    task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: batch["x"].reshape(len(batch["mask"]), -1)[:, 0])
    return task_function(task, *functions)


def batch(x, **more):
    return {"x": jnp.asarray(x), "mask": jnp.ones(len(x)), **more}


def test_an_examples_draw_does_not_depend_on_the_batch():
    task = pixels(fs.client.augment, fs.client.random_crop(padding=2), fs.client.random_flip())
    x = np.random.default_rng(0).normal(size=(12, 5, 5, 1)).astype(np.float32)
    all_, few = seen(task, batch(x)), seen(task, batch(x[:4]))
    np.testing.assert_array_equal(all_[:4], few)
    assert len({*seen(task, batch(np.repeat(x[:1], 12, 0))).tolist()}) > 4  # each example its own
    assert seen(task, batch(x), jax.random.key(1)).tolist() != all_.tolist()


def test_evaluation_sees_augmented_data_as_they_are_and_transformed_ones_transformed():
    negative = lambda example, key: {**example, "x": -example["x"]}
    x = np.arange(3.0)
    assert seen(pixels(fs.client.augment, negative), batch(x)).tolist() == [0, -1, -2]
    assert seen(pixels(fs.client.augment, negative), batch(x), evaluate=True).tolist() == [0, 1, 2]
    assert seen(pixels(fs.client.transform, negative), batch(x), evaluate=True).tolist() == [0, -1, -2]
    task = fs.Task(lambda key: 0, lambda *a: a[1]["x"], evaluate=lambda *a: 10 * a[1]["x"])
    assert seen(fs.client.augment(task, negative), batch(x), evaluate=True).tolist() == [0, 10, 20]


def test_flips_come_half_of_the_time():
    flips = jax.vmap(lambda key: fs.client.random_flip()({"x": jnp.array([[0, 1]])}, key)["x"][0, 0])
    count = int(flips(jax.random.split(KEY, 4000)).sum())
    assert abs(count - 2000) < 5 * 4000**0.5 / 2


def test_crops_are_windows_of_the_padded_picture_each_place_alike():
    x = np.arange(1, 13, dtype=np.uint8).reshape(3, 4, 1)
    crop = jax.jit(jax.vmap(lambda key: fs.client.random_crop(2, 3, padding=1)({"x": x}, key)["x"]))
    made = np.asarray(crop(jax.random.split(KEY, 6000)))
    assert made.dtype == np.uint8
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    places = {padded[i : i + 2, j : j + 3].tobytes(): 0 for i in range(4) for j in range(4)}
    for window in made:
        places[window.tobytes()] += 1
    assert len(places) == 16
    expected, spread = 6000 / 16, (6000 / 16 * 15 / 16) ** 0.5
    assert all(abs(count - expected) < 5 * spread for count in places.values())


def test_without_padding_a_whole_crop_is_the_picture():
    x = np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(fs.client.random_crop()({"x": x}, KEY)["x"], x)
    np.testing.assert_array_equal(fs.client.centre_crop(1, 2)({"x": x}, KEY)["x"], [[5, 6]])


def numbered(x, clients):
    return batch(x, client=jnp.asarray(clients), example=jnp.arange(len(x)))


def test_noise_has_each_clients_deviation_and_stays_with_its_example():
    K = 4
    deviations = np.sqrt(0.5 * np.arange(1, K + 1) / K)
    task = pixels(fs.client.transform, fs.client.noise(deviations, seed=3))
    clients = np.arange(8000) % K
    made = seen(task, numbered(np.zeros((8000, 1), np.float32), clients))
    for k in range(K):
        own = made[clients == k]
        assert abs(own.mean()) < 5 * deviations[k] / 2000**0.5
        assert abs((own**2).mean() / deviations[k] ** 2 - 1) < 5 * (2 / 2000) ** 0.5
    again = seen(task, numbered(np.zeros((8000, 1), np.float32), clients), jax.random.key(9))
    np.testing.assert_array_equal(again, made)
    other = pixels(fs.client.transform, fs.client.noise(deviations, seed=4))
    assert seen(other, numbered(np.zeros((8, 1), np.float32), clients[:8])).tolist() != made[:8].tolist()


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4, -1])
def test_right_angles_are_exact(turns):
    x = np.random.default_rng(0).integers(0, 255, (5, 5, 2)).astype(np.uint8)
    made = fs.client.rotation([0, 90 * turns])({"x": x, "client": 1}, KEY)["x"]
    np.testing.assert_allclose(made, np.rot90(x, turns), atol=1e-3)


def test_other_angles_are_those_of_scipy():
    from scipy.ndimage import rotate

    x = np.random.default_rng(0).normal(size=(9, 12)).astype(np.float32)
    made = fs.client.rotation([30.0])({"x": x, "client": 0}, KEY)["x"]
    want = rotate(x, 30.0, reshape=False, order=1, mode="constant")
    # At the very edge scipy's "constant" gives zero where ours still mixes with the zeros outside.
    np.testing.assert_allclose(made[2:-2, 2:-2], want[2:-2, 2:-2], atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fs.client.random_crop(9)({"x": np.zeros((4, 4))}, KEY), "height=9: of a picture of 4"),
        (lambda: fs.client.random_crop()({"x": np.zeros(4)}, KEY), r"must be \[H, W, ...\]"),
        (lambda: fs.client.noise([-1.0]), "must not be negative"),
        (lambda: fs.client.noise(1.0), r"must be \[K\]"),
        (lambda: fs.client.noise([1.0])({"x": np.zeros(1)}, KEY), "number the data by fs.data.numbered"),
        (lambda: fs.client.rotation([np.inf]), "must be finite"),
    ],
)
def test_what_cannot_be_augmented(call, message):
    with pytest.raises(fs.FedSimError, match=message):
        call()


def test_a_round_with_augmentation_and_skew_does_not_see_its_padding():
    rng = np.random.default_rng(1)
    arrays = {"x": rng.integers(0, 255, (40, 6, 6, 1)).astype(np.uint8), "y": rng.integers(0, 3, 40).astype(np.int32)}
    data = fs.data.numbered(fs.data.FederatedData(arrays, [0, 3, 11, 40]))
    scale = lambda b: {**b, "x": b["x"].astype(jnp.float32) / 255}
    task = fs.classification(fs.models.LogisticRegression(num_classes=3), arrays, preprocess=scale)
    task = fs.client.augment(task, fs.client.random_crop(padding=1), fs.client.random_flip())
    task = fs.client.transform(task, fs.client.rotation([0, 90, 180]), fs.client.noise([0.0, 5.0, 10.0]))

    def trained(lanes):
        algorithm = fs.fedavg(task, optax.sgd(0.1))
        sim = fs.Simulation(
            algorithm,
            data,
            fs.sampler.uniform(3),
            fs.Batching(4, epochs=2),
            seed=1,
            execution=fs.Execution(lanes=lanes),
        )
        state, _ = sim.run(sim.init(), 2)
        return state.server.params

    for one, three in zip(*(jax.tree.leaves(trained(lanes)) for lanes in (1, 3)), strict=True):
        np.testing.assert_allclose(one, three, rtol=1e-5, atol=1e-6)
