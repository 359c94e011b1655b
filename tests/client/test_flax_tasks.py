"""Tasks from Flax modules: linen and nnx alike, batch statistics, dropout, preprocessing, convolutions."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fedjax_sim as fs
from fedjax_sim import client
from fedjax_sim.client.task import evaluation as measure

KEY = jax.random.key(0)
DRAW = np.random.default_rng(0)
SIZES = (5, 3, 8)
DATA = fs.data.FederatedData(
    {
        "x": DRAW.normal(size=(16, 4)).astype(np.float32),
        "y": DRAW.integers(0, 3, 16).astype(np.int32),
    },
    np.concatenate([[0], np.cumsum(SIZES)]),
)


def gradient(task):
    return jax.jit(client.gradient(task))


def evaluation(task):
    return jax.jit(measure(task))


class Linen(nn.Module):
    norm: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(5)(x)
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.8)(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        return nn.Dense(3)(x)


class Nnx(nnx.Module):
    """The same; `train()` and `eval()` are nnx's own way to tell the mode."""

    def __init__(self, rngs, norm=False, dropout=0.0):
        self.first = nnx.Linear(4, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, momentum=0.8, rngs=rngs) if norm else None
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.last = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x, mask=None):
        x = self.first(x)
        if self.norm is not None:
            x = self.norm(x, mask=mask[:, None] > 0)
        return self.last(self.dropout(nnx.relu(x)))


def task_of(kind, *, policy=None, **kwargs):
    model = {
        "linen": lambda: Linen(**kwargs),
        "nnx": lambda: Nnx(nnx.Rngs(0), **kwargs),
        "nnx-constructor": lambda: lambda rngs: Nnx(rngs, **kwargs),
    }[kind]()
    return fs.classification(model, DATA.arrays, batch_stats=policy)


KINDS = ("linen", "nnx", "nnx-constructor")
RENAMED = {"Dense_0": "first", "Dense_1": "last", "BatchNorm_0": "norm"}


def as_nnx(params):
    """linen's variables under nnx's names."""
    return {
        collection: {RENAMED[name]: value for name, value in modules.items()} for collection, modules in params.items()
    }


def same_params(kind, **kwargs):
    """A task, and linen's initial parameters in that task's names."""
    params = task_of("linen", **kwargs).init(KEY)
    return task_of(kind, **kwargs), params if kind == "linen" else as_nnx(params)


def batch_of(rows, size):
    """A batch of some examples, padded with the first up to `size`, as the engine does."""
    rows = list(rows)
    padded = np.array(rows + [rows[0]] * (size - len(rows)))
    mask = (np.arange(size) < len(rows)).astype(np.float32)
    batch = jax.tree.map(lambda a: jnp.asarray(a[padded]), DATA.arrays)
    return {**batch, "mask": jnp.asarray(mask)}


EVERYBODY = [[0, 1, 2]] * 3


def simulation(task, cohorts=EVERYBODY, data=DATA, server_optimizer=None, shuffle=True):
    return fs.Simulation(
        fs.fedavg(task, optax.sgd(0.3), server_optimizer=server_optimizer),
        data,
        fs.sampler.fixed(cohorts),
        fs.Batching(3, shuffle=shuffle),
        execution=fs.Execution(lanes=2, devices=jax.devices()[:1]),
    )


def train(task, params):
    sim = simulation(task)
    state, history = sim.run(sim.init(params), 3)
    return jax.device_get(sim.params(state)), history


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


# linen and nnx


@pytest.fixture(scope="module", params=[None, "average", "frozen"], ids=str)
def linen_run(request):
    policy = request.param
    kwargs = {"norm": policy is not None, "policy": policy}
    task, params = same_params("linen", **kwargs)
    return kwargs, params, *train(task, params)


def test_linen_and_nnx_train_alike(linen_run):
    kwargs, _, expected, expected_history = linen_run
    kind = "nnx" if kwargs["policy"] == "average" else "nnx-constructor"
    found, history = train(*same_params(kind, **kwargs))
    expected = as_nnx(expected)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
    for name in ("client/loss", "client/accuracy"):
        np.testing.assert_allclose(history[name], expected_history[name], atol=1e-6)
    assert history["client/loss"][-1] < history["client/loss"][0]


def test_nnx_instances_start_from_what_they_hold():
    model = Nnx(nnx.Rngs(3))
    task = fs.classification(model, DATA.arrays)
    params = task.init(KEY)
    np.testing.assert_array_equal(params["params"]["last"]["kernel"], model.last.kernel[...])
    before = np.array(model.last.kernel[...])
    fs.evaluate(task, params, DATA.arrays)
    gradient(task)(params, batch_of(range(4), 4), KEY)
    np.testing.assert_array_equal(before, model.last.kernel[...])
    np.testing.assert_array_equal(params["params"]["last"]["kernel"], before)


def test_initial_params_follow_the_seed():
    for kind in ("linen", "nnx-constructor"):
        task = task_of(kind)
        a, b = flat(task.init(jax.random.key(0))), flat(task.init(jax.random.key(1)))
        assert (a != b).any()
        np.testing.assert_array_equal(a, flat(jax.jit(task.init)(jax.random.key(0))))


class Scaled(nnx.Module):
    """A module with a constant that is neither a parameter nor a statistic."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 3, rngs=rngs)
        self.scale = nnx.Variable(jnp.float32(2.0))

    def __call__(self, x):
        return self.dense(x) * self.scale[...]


@pytest.mark.parametrize("model", [Scaled, Scaled(nnx.Rngs(0))], ids=["constructor", "instance"])
def test_nnx_variables_of_other_kinds_keep_their_values(model):
    task = fs.classification(model, DATA.arrays)
    params, batch = task.init(KEY), batch_of(range(4), 4)
    logits = 2 * (DATA.arrays["x"][:4] @ params["params"]["dense"]["kernel"])
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
    found = evaluation(task)(params, batch, KEY)["loss"].compute()
    np.testing.assert_allclose(found, expected.mean(), rtol=1e-5)


def test_linen_modules_may_take_the_mask():
    class Masked(nn.Module):
        @nn.compact
        def __call__(self, x, mask):
            return nn.Dense(3)(x) + 0 * jnp.sum(mask)

    task = fs.classification(Masked(), DATA.arrays)
    assert np.isfinite(evaluation(task)(task.init(KEY), batch_of(range(3), 5), KEY)["loss"].compute())


@pytest.mark.parametrize("model", [3, lambda rngs: 3, "CNN"], ids=["int", "function", "str"])
def test_what_is_not_a_module(model):
    with pytest.raises(fs.FedSimError, match=r"must be a Flax module|must return a flax.nnx.Module"):
        fs.classification(model, DATA.arrays)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"labels": "z"}, r"labels='z': the sample has only the entries \['x', 'y'\]"),
        ({"inputs": "z"}, r"inputs='z': the sample has only"),
        ({"convolutions": "fast"}, "convolutions='fast': must be"),
    ],
    ids=str,
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(fs.FedSimError, match=message):
        fs.classification(Linen(), DATA.arrays, **kwargs)


def test_logits_of_a_wrong_shape():
    task = fs.classification(Linen(), {**DATA.arrays, "y": DATA.arrays["y"][:, None]})
    batch = batch_of(range(3), 3)
    with pytest.raises(fs.FedSimError, match=r"logits \(3, 3\) for labels \(3, 1\): must be"):
        evaluation(task)(task.init(KEY), {**batch, "y": batch["y"][:, None]}, KEY)


# Batch statistics


@pytest.mark.parametrize("kind", KINDS)
def test_batch_statistics_need_a_policy(kind):
    with pytest.raises(fs.FedSimError, match=r"\['batch_stats'\].*batch_stats=\"average\""):
        task_of(kind, norm=True)


def test_nnx_batch_norm_is_handed_the_mask():
    """As linen's is: a batch with padding gives the gradient and the statistics of the same batch without."""

    class Maskless(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.last = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            return self.last(self.norm(x))

    task = fs.classification(Maskless, DATA.arrays, batch_stats="average")
    params = task.init(KEY)
    padded, plain = (jax.device_get(gradient(task)(params, batch_of([7, 2, 5], size), KEY)) for size in (8, 3))
    for got, expected in zip(jax.tree.leaves(padded), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    mean = task.loss(params, batch_of([7, 2, 5], 8), KEY).variables["batch_stats"]["norm"]["mean"]
    np.testing.assert_allclose(mean, 0.01 * np.asarray(DATA.arrays["x"])[[7, 2, 5]].mean(0), rtol=1e-5)


def test_batch_statistics_of_ones_own_need_the_mask():
    class Maskless(nnx.Module):
        def __init__(self, rngs):
            self.mean = nnx.BatchStat(jnp.zeros(4))
            self.last = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            self.mean[...] = x.mean(0)
            return self.last(x - self.mean[...])

    with pytest.raises(fs.FedSimError, match="give its __call__ an argument `mask`"):
        fs.classification(Maskless, DATA.arrays, batch_stats="average")


def test_frozen_nnx_batch_statistics_need_no_mask():
    """They are used as they are, and padding enters nothing."""

    class Maskless(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.last = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            return self.last(self.norm(x))

    model = Maskless(nnx.Rngs(0))
    model.norm.mean[...] = jnp.arange(4.0)
    task = fs.classification(model, DATA.arrays, batch_stats="frozen")
    params = task.init(KEY)
    found = gradient(task)(params, batch_of([7, 2, 5], 8), KEY)
    expected = gradient(task)(params, batch_of([7, 2, 5], 3), KEY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)
    np.testing.assert_array_equal(found.variables["batch_stats"]["norm"]["mean"], np.arange(4.0))
    kernel, scaled = params["params"]["last"]["kernel"], (DATA.arrays["x"][:4] - np.arange(4)) / np.sqrt(1 + 1e-5)
    expected = optax.softmax_cross_entropy_with_integer_labels(scaled @ kernel, DATA.arrays["y"][:4]).mean()
    got = evaluation(task)(params, batch_of(range(4), 4), KEY)["loss"].compute()
    np.testing.assert_allclose(got, expected, rtol=1e-5)


class Pictures(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(2, (3, 3))(x)
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class NnxPictures(nnx.Module):
    def __init__(self, rngs, kind=nnx.Conv):
        self.conv = kind(1, 2, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(72, 3, rngs=rngs)

    def __call__(self, x):
        x = self.conv(x)
        return self.dense(x.reshape(x.shape[0], -1))


class Transposed(NnxPictures):
    def __init__(self, rngs):
        super().__init__(rngs, nnx.ConvTranspose)


class Wide(NnxPictures):
    """Whose channels are as many as the pictures are wide: Flax itself would take them."""

    def __init__(self, rngs):
        super().__init__(rngs, lambda _, *args, **kwargs: nnx.Conv(6, *args, **kwargs))


class OneByOne(NnxPictures):
    def __call__(self, x):
        return self.dense(jax.vmap(self.conv)(x).reshape(x.shape[0], -1))


NO_CHANNELS = r"Conv with kernel_size=\(3, 3\) gets inputs \(2, 6, 6\): must have 4 axes.*x\[..., None\]"
RANKS = {
    "other data": (Linen(), (4,), (1, 4), r"input 'x' has examples of shape \(1, 4\): the task's sample has \(4,\)"),
    "other width": (Linen(), (4,), (6,), r"input 'x', \[B, ...\] = \(2, 6\): .*sample, \(1, 4\)"),
    "a number an example": (Linen(), (), (), r"input 'x', \[B, ...\] = \(2,\): "),
    "no channels": (Pictures(), (6, 6), (6, 6), r"Conv_0 with kernel_size=\(3, 3\) gets inputs \(1, 6, 6\): .* 4 axes"),
    "nnx, no channels": (NnxPictures, (6, 6), (6, 6), NO_CHANNELS),
    "nnx, a module": (NnxPictures(nnx.Rngs(0)), (6, 6), (6, 6), NO_CHANNELS),
    "nnx, transposed": (Transposed, (6, 6), (6, 6), r"ConvTranspose with kernel_size=\(3, 3\) gets inputs \(2, 6, 6\)"),
    "nnx, as many channels": (Wide, (6, 6), (6, 6), NO_CHANNELS),
}


@pytest.mark.parametrize("case", RANKS)
def test_inputs_of_a_wrong_rank(case):
    model, sample, given, message = RANKS[case]
    y = np.zeros(2, np.int32)

    def meet():
        task = fs.classification(model, {"x": np.zeros((1, *sample), np.float32), "y": y[:1]})
        params = jax.eval_shape(task.init, KEY)
        batch = {"x": np.zeros((2, *given), np.float32), "y": y, "mask": np.ones(2, np.float32)}
        jax.eval_shape(client.gradient(task), params, batch, KEY)

    with pytest.raises(fs.FedSimError, match=message):
        meet()


def test_nnx_convolutions_that_look_at_their_inputs_compute_the_same():
    """The user's module keeps its class; a batch's axis may be the module's own vmap."""
    pictures = np.random.default_rng(0).normal(size=(4, 6, 6, 1)).astype(np.float32)
    batch = {"x": pictures, "y": np.zeros(4, np.int32), "mask": np.ones(4, np.float32)}
    given = NnxPictures(nnx.Rngs(3))
    for model in (given, OneByOne):
        task = fs.classification(model, batch)
        loss = task.loss(task.init(KEY), batch, KEY).value
        module = given if model is given else model(nnx.Rngs(KEY))
        expected = optax.softmax_cross_entropy_with_integer_labels(module(jnp.asarray(pictures)), batch["y"])
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        assert type(module.conv) is nnx.Conv


@pytest.mark.parametrize("kind", KINDS)
def test_padding_stays_out_of_batch_statistics(kind):
    """A padded batch gives the statistics, loss and gradient of the unpadded one.

    To a thousandth: a column's variance of 3 examples is what is left of E[x^2] - E[x]^2, and divides.
    """
    task, params = same_params(kind, norm=True, policy="average")
    found = gradient(task)(params, batch_of([7, 2, 5], 8), KEY)
    expected = gradient(task)(params, batch_of([7, 2, 5], 3), KEY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-3, atol=1e-4), found, expected)
    old, new = flat(params["batch_stats"]), flat(found.variables["batch_stats"])
    assert (old != new).all()
    hidden = np.asarray(batch_of([7, 2, 5], 3)["x"]) @ flat_kernel(params)
    mean = 0.2 * hidden.mean(0)  # momentum 0.8, from zero
    norm = next(iter(found.variables["batch_stats"].values()))
    np.testing.assert_allclose(norm["mean"], mean, rtol=1e-5, atol=1e-6)


def flat_kernel(params):
    params = params["params"]
    return np.asarray(params["Dense_0" if "Dense_0" in params else "first"]["kernel"])


@pytest.mark.parametrize("kind", KINDS)
def test_an_all_padding_batch_gives_zero(kind):
    task, params = same_params(kind, norm=True, policy="average")
    batch = {**batch_of([7], 4), "mask": jnp.zeros(4)}
    grads, metrics, _ = gradient(task)(params, batch, KEY)
    np.testing.assert_array_equal(flat(grads), 0)
    assert metrics["loss"].total == metrics["loss"].weight == 0


def test_averaged_plainly_even_under_fedadam():
    """Statistics become the mean by examples of the clients' own, whatever moves the parameters."""
    task, params = same_params("linen", norm=True, policy="average")
    models = {}
    for name, optimizer in (("plain", None), ("adam", fs.server.fedadam(0.01))):
        sim = simulation(task, [[0, 1, 2], [0], [1], [2]], server_optimizer=optimizer, shuffle=False)
        models[name] = []
        for r in range(4):  # the whole cohort, then each client, always from the same model
            state, _ = sim.step(dataclasses.replace(sim.init(params), round=r))
            models[name].append(jax.device_get(sim.params(state)))
    (plain, *_), (adam, *own) = models["plain"], models["adam"]
    assert (flat(adam["params"]) != flat(plain["params"])).any()
    jax.tree.map(np.testing.assert_array_equal, adam["batch_stats"], plain["batch_stats"])
    mean = np.average([flat(each["batch_stats"]) for each in own], axis=0, weights=SIZES)
    np.testing.assert_allclose(flat(adam["batch_stats"]), mean, rtol=1e-4, atol=1e-6)


def test_frozen_statistics_never_change(linen_run):
    kwargs, params, found, _ = linen_run
    if kwargs["policy"] is not None:
        same = flat(found["batch_stats"]) == flat(params["batch_stats"])
        assert same.all() if kwargs["policy"] == "frozen" else not same.any()


# Dropout


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_fresh_in_each_step_and_off_in_evaluation(kind):
    task, params = same_params(kind, dropout=0.5)
    batch = batch_of(range(6), 6)
    train, still = gradient(task), evaluation(task)
    keys = [jax.random.fold_in(KEY, s) for s in range(4)]
    losses = [float(train(params, batch, key).metrics["loss"].compute()) for key in keys]
    assert len(set(losses)) > 1
    assert losses[0] == float(train(params, batch, keys[0]).metrics["loss"].compute())
    without, _ = same_params(kind)
    expected = evaluation(without)(params, batch, KEY)["loss"].compute()
    assert {float(still(params, batch, key)["loss"].compute()) for key in keys} == {float(expected)}


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_takes_the_engines_keys(kind):
    """In local steps of one and the same batch, every step, client, round and seed has a mask of its own."""
    task, params = same_params(kind, dropout=0.5)
    rows = np.zeros(6, int)  # two clients, each holding three copies of the first example
    data = fs.data.FederatedData(DATA.arrays, [0, 3, 6], rows)
    gradient_fn = client.gradient(task)

    def train(key, server, row, batches):
        def step(at, batch, key):
            loss = gradient_fn(server, batch, key).metrics["loss"].total
            return (at[0] + 1, at[1].at[at[0]].set(loss)), {}

        (_, losses), _ = fs.local_steps(step, (jnp.int32(0), jnp.zeros(4)), batches, key)
        return fs.ClientUpdate(0.0, metrics={"losses": fs.metrics.Sum(losses)})

    algorithm = fs.Algorithm(task, lambda p: (p, None), train, lambda key, server, aggregate: server)
    sampler, batching = fs.sampler.fixed([[0, 1]] * 2), fs.Batching(3, steps=4)
    sim = fs.Simulation(algorithm, data, sampler, batching, execution=fs.Execution(devices=jax.devices()[:1]))
    start = sim.init(params)
    states = (start, dataclasses.replace(start, round=1), dataclasses.replace(start, seed=1))
    losses = [sim.step(state)[1].clients("client/losses") for state in (*states, start)]
    np.testing.assert_array_equal(losses[0], losses[3])
    assert len(np.unique(losses[:3])) > 20  # of 3 x 2 x 4; masks of few units may agree by chance


# What enters and leaves the module


def test_preprocess_scales_inside_the_step():
    stored = {"x": DRAW.integers(0, 256, (16, 4)).astype(np.uint8), "y": DATA.arrays["y"]}
    scaled = {"x": (stored["x"] / np.float32(255)).astype(np.float32), "y": DATA.arrays["y"]}
    seen = []

    def preprocess(batch):
        seen.append(batch["x"].dtype)
        return {**batch, "x": batch["x"].astype(jnp.float32) / 255}

    inside = fs.classification(Linen(), stored, preprocess=preprocess)
    outside = fs.classification(Linen(), scaled)
    params = outside.init(KEY)
    jax.tree.map(np.testing.assert_array_equal, params, inside.init(KEY))
    a, b = fs.evaluate(inside, params, stored), fs.evaluate(outside, params, scaled)
    assert a == pytest.approx(b, rel=1e-6)
    assert set(seen) == {jnp.dtype("uint8")}


def test_preprocess_may_return_the_input_alone():
    """The mask survives a `preprocess` that builds its batch anew."""
    anew = lambda batch: {"x": 2 * batch["x"], "y": batch["y"]}
    task = fs.classification(Linen(), DATA.arrays, preprocess=anew)
    doubled = {**DATA.arrays, "x": 2 * DATA.arrays["x"]}
    params = task.init(KEY)
    expected = fs.evaluate(fs.classification(Linen(), DATA.arrays), params, doubled)
    assert fs.evaluate(task, params, DATA.arrays) == pytest.approx(expected, rel=1e-6)


def test_negative_labels_are_left_out():
    task = fs.classification(Linen(), DATA.arrays)
    params, batch = task.init(KEY), batch_of(range(4), 6)
    batch = {**batch, "y": batch["y"].at[1].set(-1)}
    found = gradient(task)(params, batch, KEY)
    expected = gradient(task)(params, batch_of([0, 2, 3], 3), KEY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
    assert found.metrics["accuracy"].weight == 3


def test_flax_task_takes_any_loss():
    def squared(outputs, batch):
        error = outputs[:, 0] - batch["y"]
        return error**2, {"error": error}

    task = fs.flax_task(nn.Dense(1), DATA.arrays, squared)
    params = task.init(KEY)
    found = fs.evaluate(task, params, DATA.arrays, batch_size=5)
    kernel, bias = (np.asarray(params["params"][name]) for name in ("kernel", "bias"))
    error = (DATA.arrays["x"] @ kernel + bias)[:, 0] - DATA.arrays["y"]
    assert found == pytest.approx({"loss": (error**2).mean(), "error": error.mean()}, rel=1e-5)


def test_convolutions_as_products_train_alike():
    """Three rounds of FedAvg on a small convolutional net."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(2, (3, 3))(x))
            return nn.Dense(3)(nn.Conv(2, (2, 2), strides=2)(x).reshape(x.shape[0], -1))

    pictures = {
        "x": DRAW.normal(size=(16, 4, 4, 1)).astype(np.float32),
        "y": DATA.arrays["y"],
    }
    data = fs.data.FederatedData(pictures, DATA.offsets)
    found = {}
    for convolutions in ("xla", "matmul"):
        task = fs.classification(Net(), pictures, convolutions=convolutions)
        sim = simulation(task, data=data)
        state, history = sim.run(sim.init(), 3)
        found[convolutions] = flat(sim.params(state)), history["client/loss"]
    for a, b in zip(*found.values(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
