import sys
from pathlib import Path

import jax
import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks" / "peers"))
import data
import evaluate
import shared
import table


def summary(median, loss=2.5):
    def spread(value):
        return {"median": value, "q1": 0.9 * value, "q3": 1.2 * value, "min": 0.5 * value, "max": 2 * value}

    return {
        "s_per_round": spread(median),
        "first_round_s": spread(2.0),
        "clients_per_s": 50 / median,
        "examples_per_s": round(4900 / median),
        "peak_mb": spread(300.0),
        "final_loss": loss,
    }


def test_the_file_holds_the_works_cohorts_data_and_parameters(tmp_path):
    work = data.works.load("W3")
    data.write("W3", tmp_path / "W3.npz")
    read = shared.read(str(tmp_path / "W3.npz"), "W3")
    for name in ("x", "y", "offsets", "cohorts", "batch_size", "learning_rate"):
        np.testing.assert_array_equal(getattr(read, name), getattr(work, name), err_msg=name)
    for layer, expected in zip(read.params, work.params, strict=True):
        assert layer.keys() == expected.keys()
        assert all((layer[key] == expected[key]).all() for key in layer)
    client = int(read.cohorts[0, 0])
    x, y, mask = read.padded(client, read.steps(client) + 1)
    real = mask.reshape(-1) == 1
    np.testing.assert_array_equal(x.reshape(-1, 60)[real], read.client(client)[0])
    np.testing.assert_array_equal(y.reshape(-1)[real], read.client(client)[1])
    assert not x.reshape(-1, 60)[~real].any()
    np.savez(tmp_path / "zero.npz", w0=np.zeros((60, 10)), b0=np.zeros(10))
    assert evaluate.loss("W3", tmp_path / "W3.npz", tmp_path / "zero.npz") == round(np.log(10), 6)


def test_cifar10_is_pfl_s_model_and_all_evaluate_it_alike():
    import federated_tax
    import jax_model
    import works

    draw = np.random.default_rng(0)
    shapes = [(3, 3, 3, 32), (3, 3, 32, 64), (12544, 128), (128, 10)]
    assert sum(int(np.prod(shape)) + shape[-1] for shape in shapes) == 1_626_442
    layers = [{"w": 0.1 * draw.normal(size=s).astype("f"), "b": draw.normal(size=s[-1]).astype("f")} for s in shapes]
    x, y = draw.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8), np.array([1, 9, 4])
    with jax.numpy_rank_promotion("allow"):  # it is a peer's code
        logits = np.asarray(jax_model.logits("CIFAR10", layers, x))
        work = works.Work(x, y, np.array([0, 3]), np.zeros((1, 1), int), layers, 3, 0.1)
        losses = federated_tax.make_task("CIFAR10", work).loss({"layers": layers}, {"x": x, "y": y}, None)
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(3), y]
    np.testing.assert_allclose(losses, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(evaluate._logits("CIFAR10", layers, x), logits, rtol=1e-3, atol=1e-3)


def test_a_table_names_the_best_of_each_kind_and_those_that_failed(tmp_path):
    results = [
        {"works": {"W1": {"ours": summary(0.05), "fedjax-new": summary(0.2), "jax-scan": summary(0.1)}}},
        {"works": {"W1": {"pfl-2": summary(0.15), "flwr": {"error": "no end in 60 s"}}}},
    ]
    works_of = table.join(results)
    text = table.markdown(works_of)
    assert "The best framework, pfl, 2 processes, takes 3.00 times our time" in text
    assert "The best loop by hand, plain JAX, a scan a client, takes 2.00 times our time" in text
    assert "| flwr, an actor a core | no end in 60 s |" in text
    table.chart(works_of, tmp_path / "chart.svg")
    assert (tmp_path / "chart.svg").read_text().count("</svg>") == 1
