"""Where a task meets its data: labels without a class, text, NaN; in memory, streamed, made, in evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.engine import toys

DEVICES = jax.devices()[:1]
X = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
Y = (np.arange(400) % 3).astype(np.int32)
OFFSETS = np.arange(0, 401, 10)
SAMPLE = {"x": X[:1], "y": Y[:1]}
TASK = fs.classification(fs.models.LogisticRegression(3), SAMPLE)
ZEROS = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(TASK.init, jax.random.key(0)))


def simulation(data, task=TASK, cohorts=((0, 7), (7, 9), (0, 9)), **kwargs):
    algorithm = fs.fedavg(task, optax.sgd(0.1))
    return fs.Simulation(
        algorithm, data, fs.sampler.fixed(cohorts), fs.Batching(10), **toys.executed(devices=DEVICES, **kwargs)
    )


def federation(y, **more):
    return fs.data.FederatedData({"x": X, "y": y, **more}, OFFSETS)


def procedural(y):
    rows = lambda client, example: {"x": X[10 * client + example], "y": y[10 * client + example]}
    return fs.data.procedural(40, 10, rows)


class Lazy:
    """An array whose rows come from elsewhere."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.ndim = array, array.shape, array.dtype, array.ndim

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        return self.array[rows]


MEET = {
    "in memory": lambda y: simulation(federation(y)),
    "streamed": lambda y: simulation(federation(y), residency="stream"),
    "lazy": lambda y: simulation(fs.data.FederatedData({"x": Lazy(X), "y": Lazy(y)}, OFFSETS)),
    "procedural": lambda y: simulation(procedural(y)),
    "evaluate": lambda y: fs.evaluate(TASK, ZEROS, {"x": X, "y": y}, devices=DEVICES),
    "evaluate clients": lambda y: fs.evaluate_clients(TASK, ZEROS, federation(y), devices=DEVICES),
}


@pytest.mark.parametrize("where", MEET)
@pytest.mark.parametrize("change", [lambda y: y + 1, lambda y: 10 * y, lambda y: y - 1, lambda y: y + 0.5])
def test_labels_without_a_class_are_refused(where, change):
    with pytest.raises(fs.FedSimError, match=r"labels 'y'"):
        MEET[where](change(Y))


def test_whole_floats_train_like_integers():
    runs = [simulation(federation(Y.astype(kind))) for kind in (np.int32, np.float64)]
    losses = [sim.run(sim.init(), 3)[1]["client/loss"] for sim in runs]
    np.testing.assert_array_equal(*losses)
    assert np.isfinite(losses).all()


def test_rows_that_no_client_holds_are_not_looked_at():
    y = Y.copy()
    y[::2] = -1  # without a label
    index = np.arange(1, 400, 2)
    held = fs.data.FederatedData({"x": X, "y": y}, np.arange(0, 201, 5), index)
    simulation(held)
    with pytest.raises(fs.FedSimError, match="run from -1 to 2"):
        simulation(federation(y))
    beyond = fs.data.FederatedData({"x": X, "y": np.where(np.arange(400) < 300, Y, 9)}, OFFSETS[:31])
    simulation(beyond)


def test_preprocess_may_make_the_labels():
    shift = lambda batch: {**batch, "y": batch["y"] - 1}
    task = fs.classification(fs.models.LogisticRegression(3), SAMPLE, preprocess=shift)
    found = fs.evaluate(task, ZEROS, {"x": X, "y": Y + 1}, devices=DEVICES)
    assert found == fs.evaluate(TASK, ZEROS, {"x": X, "y": Y}, devices=DEVICES)
    scaled = lambda batch: {**batch, "x": batch["x"] / 255}
    task = fs.classification(fs.models.LogisticRegression(3), SAMPLE, preprocess=scaled)
    with pytest.raises(fs.FedSimError, match="labels 'y' run from 1 to 3"):
        simulation(federation(Y + 1), task)


def test_tokens_are_labels_too():
    tokens = np.random.default_rng(0).integers(0, 6, (20, 5)).astype(np.int32)
    model = fs.models.LSTM(vocab_size=6, embedding=2, width=2, layers=1)
    for pad, labels, good in ((0, tokens, True), (0, tokens + 1, False), (255, np.where(tokens, tokens, 255), True)):
        arrays = {"x": tokens, "y": labels}
        task = fs.next_token(model, arrays, pad=pad)
        data = fs.data.FederatedData(arrays, [0, 10, 20])
        if good:
            simulation(data, task, [[0]])
            continue
        with pytest.raises(fs.FedSimError, match="labels 'y' run from 1 to 6: must be 0 to 5"):
            simulation(data, task, [[0]])


@pytest.mark.parametrize("text", [np.array(["ab"] * 400), np.array([b"ab"] * 400), np.array(["ab"] * 400, object)])
def test_a_column_of_text_is_named(text):
    for build in (
        lambda: simulation(federation(Y, city=text)),
        lambda: fs.evaluate(TASK, ZEROS, {"x": X, "y": Y, "city": text}, devices=DEVICES),
    ):
        with pytest.raises(fs.FedSimError, match=r"column 'city' holds text.*categories=\{\"city\".*leave the column"):
            build()
    fs.classification(fs.models.LogisticRegression(3), {**SAMPLE, "city": text})  # a sample may hold more
    for entry in ("x", "y"):
        with pytest.raises(fs.FedSimError, match=f"column '{entry}' holds text"):
            fs.classification(fs.models.LogisticRegression(3), {**SAMPLE, entry: text})


def test_a_column_of_dates_is_named():
    with pytest.raises(fs.FedSimError, match="column 'day' holds dates"):
        simulation(federation(Y, day=np.zeros(400, "M8[D]")))


# A label of one client, past what is looked at when a simulation of streamed data is built


def one_bad():
    y = Y.copy()
    y[79] = 7  # of client 7, its last example
    return y


@pytest.mark.parametrize("data", [lambda: federation(one_bad()), lambda: procedural(one_bad())], ids=["stored", "made"])
def test_a_streamed_block_is_looked_at(data):
    sim = simulation(data(), cohorts=[[0, 9], [7, 9]], residency="stream")
    with pytest.raises(fs.ClientError, match=r"client 7 \(id 7, 10 examples\).*labels 'y' run from 0 to 7") as caught:
        sim.run(sim.init(), 2)
    assert caught.value.state.round == 1


def test_streamed_evaluation_is_looked_at():
    with pytest.raises(fs.ClientError, match=r"labels 'y' run from 0 to 7"):
        fs.evaluate_clients(TASK, ZEROS, procedural(one_bad()), devices=DEVICES)


# A loss that is NaN


def unchecked(data):
    """The same task with a loss of its own: nobody knows what its labels are."""
    return simulation(data, TASK._replace(check=None), on_nonfinite="drop")


def test_a_loss_of_nan_is_dropped_like_an_update():
    sim = unchecked(federation(one_bad()))
    state, history = sim.run(sim.init(), 3)
    assert history["cohort/nonfinite"].tolist() == [1, 1, 0]
    assert np.isfinite(history["client/loss"]).all()
    assert [m.nonfinite_clients() for m in history.rounds] == [[7], [7], []]
    other = simulation(federation(Y), cohorts=[[0], [9], [0, 9]])
    expected, _ = other.run(other.init(), 3)
    np.testing.assert_allclose(toys.flat(state.server), toys.flat(expected.server), rtol=1e-5, atol=1e-7)


ALGORITHMS = {
    "fedsgd": lambda task: fs.fedsgd(task, optax.sgd(0.1)),
    "scaffold": lambda task: fs.scaffold(task, 0.1),
    "median": lambda task: fs.fedavg(task, optax.sgd(0.1), aggregator=fs.aggregate.median()),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_loss_of_nan_is_raised_for_every_algorithm(name):
    algorithm = ALGORITHMS[name](TASK._replace(check=None))
    sampler = fs.sampler.fixed([[0, 9], [0, 7]])
    sim = fs.Simulation(
        algorithm, federation(one_bad()), sampler, fs.Batching(10), execution=fs.Execution(devices=DEVICES)
    )
    with pytest.raises(fs.NonFiniteUpdateError, match="round 1: the update of client 7 is not finite") as caught:
        sim.run(sim.init(), 2)
    assert (caught.value.round, caught.value.client_ids) == (1, [7])


# What is advised


def said(sim):
    with pytest.raises(fs.NonFiniteUpdateError) as caught:
        sim.step(sim.init())
    return str(caught.value)


def test_advice_looks_at_the_data_first():
    x = X.copy()
    x[73, 2] = np.nan
    data = fs.data.FederatedData({"x": x, "y": Y, "age": np.where(np.arange(400) == 5, np.inf, 1.0)}, OFFSETS)
    assert "Of client 7 column 'x' holds NaN or infinity in 1 of its 10 examples. Mend the data, or" in said(
        simulation(data)
    )
    wild = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (jnp.exp(w + 100) * batch["x"][:, 0]) ** 2)
    words = said(simulation(federation(Y), wild))
    assert "Its data are finite: lower the client's learning rate" in words
    nan = TASK._replace(check=lambda columns: None if len(columns["y"]) != 10 else _no())
    sim = simulation(federation(one_bad()), nan)
    assert "Of client 7 no good. Mend the data" in said(sim)


def _no():
    raise fs.FedSimError("no good.")
