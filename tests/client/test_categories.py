"""Codes mean the same in training and in evaluation: a task knows what those of its sample stand for."""

import tempfile
from pathlib import Path

import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.core.kinds import categories_of, with_categories
from fedjax_sim.engine.store.data_checks import check_all

MODEL = fs.models.LogisticRegression(3)
OTHERS = r"column 'y': the codes of 'outcome' stand for .*, but in the task's sample for .*Read these data with cat"
TEXTS = st.lists(st.sampled_from(["home", "died", "moved"]), min_size=2, max_size=6)


def read(texts, name="outcome", **options):
    """Clients' outcomes by `table`, with an input of numbers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stays.csv"
        lines = [f"{'ab'[i % 2]},{i}.5,{text}" for i, text in enumerate(texts)]
        path.write_text("\n".join([f"who,age,{name}", *lines]) + "\n")
        given = {"columns": {"x": ["age"], "y": name}, "categories": True, **options}
        return fs.data.sources.table(path, client="who", **given)


def task(data):
    return fs.classification(MODEL, data.arrays)


TRAIN, TEST = read(["died", "home", "moved"]), read(["home", "moved", "home"])
TASK = task(TRAIN)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(TEXTS, TEXTS, st.booleans(), st.booleans())
def test_data_meet_a_task_where_their_codes_agree(one, other, same, streamed):
    """By values sorted in each file, or by the training file's."""
    train = read(one)
    other = [text for text in other if text in one] or one[:2]
    test = read(other, categories=train if same else True)
    agree = same or set(one) == set(other)
    for data in (test, fs.data.limit(test, maximum=2)):
        if agree:
            check_all(task(train), data, streamed)
        else:
            with pytest.raises(fs.FedSimError, match=OTHERS):
                check_all(task(train), data, streamed)


PARTS = (fs.sampler.uniform(1), fs.Batching(2))
MEETINGS = {
    "evaluate": lambda data: fs.evaluate(TASK, None, data),
    "evaluate columns": lambda data: fs.evaluate(TASK, None, data.arrays),
    "evaluate a client": lambda data: fs.evaluate(TASK, None, data.client(0)),
    "evaluate clients": lambda data: fs.evaluate_clients(TASK, None, data),
    "a simulation": lambda data: fs.Simulation(fs.fedavg(TASK, optax.sgd(0.1)), data, *PARTS),
    "a simulation, streamed": lambda data: fs.Simulation(
        fs.fedavg(TASK, optax.sgd(0.1)), data, *PARTS, execution=fs.Execution(residency="stream")
    ),
}


@pytest.mark.parametrize("name", MEETINGS)
def test_codes_of_other_categories_are_refused_where_they_meet(name):
    assert TRAIN.arrays["y"].dtype == TEST.arrays["y"].dtype == np.int32
    with pytest.raises(fs.FedSimError, match=OTHERS):
        MEETINGS[name](TEST)


def test_training_and_evaluation_with_one_code_book():
    test = read(["home", "moved", "home"], categories=TRAIN)
    sim = fs.Simulation(fs.fedavg(TASK, optax.sgd(0.1)), TRAIN, *PARTS)
    state, _ = sim.run(sim.init(), 1)
    assert 0 <= fs.evaluate(TASK, sim.params(state), test)["accuracy"] <= 1


def test_inputs_that_are_codes_are_compared_too():
    columns = {"columns": {"x": ["age", "ward"], "y": "age"}}
    train, other = (read(texts, "ward", **columns) for texts in (["a", "b"], ["b", "c"]))
    made = fs.flax_task(MODEL, train.arrays, lambda outputs, batch: outputs[:, 0])
    assert train.arrays["x"].dtype.kind == "f"
    check_all(made, train, False)
    with pytest.raises(fs.FedSimError, match=r"column 'x': the codes of 'ward' stand for \[\"b\", \"c\"\]"):
        check_all(made, other, False)


def test_what_is_looked_up_by_codes_knows_nothing_of_them():
    y = with_categories(np.arange(3, dtype=np.int32), {"y": '["a"]'})
    assert all(categories_of(found) == {"y": '["a"]'} for found in (y, y[1:], y[[2, 0]], y.copy(), np.array(y[:1])))
    assert all(categories_of(found) == {} for found in (np.eye(3)[y], np.array([2, 0, 1])[y], y > 1, None))
    check_all(TASK, fs.FederatedData({"x": np.zeros((3, 1)), "y": np.array([2, 0, 1])[y]}, [0, 3]), False)
