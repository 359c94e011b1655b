"""Figures: what they draw is read back from their axes, and compared with values worked out by hand or in a loop."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

import fedjax_sim as fs
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.runs import plots, report_pictures
from tests.runs import samples

NAN, INF = float("nan"), float("inf")

pytestmark = pytest.mark.usefixtures("drawn")


def lines(axes):
    return [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axes.get_lines()]


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def looks_drawn(data: bytes, path):
    """A PNG that matplotlib reads back, with more than one colour in it."""
    path.write_bytes(data)
    pixels = matplotlib.image.imread(path)
    return len(np.unique(pixels.reshape(-1, pixels.shape[-1])[:, :3], axis=0)) > 5


def test_curves_join_the_points_over_rounds_without_a_finite_value():
    figure = plots.curves({"round": [3, 4, 5, 6, 7], "test/loss": [2.0, NAN, 1.0, INF, 0.5]})
    assert isinstance(figure, Figure)
    assert lines(figure.axes[0]) == [([4, 6, 8], [2.0, 1.0, 0.5])]  # rounds completed


def test_seeds_are_a_mean_and_its_t_interval():
    seeds = [{"round": [0, 1, 2], "m": [value, 10.0, other]} for value, other in ((1.0, 5.0), (2.0, 5.0), (3.0, NAN))]
    figure = plots.curves({"three": seeds, "one": {"round": [0, 1], "m": [0.0, 0.0]}}, ["m"])
    axes = figure.axes[0]
    assert lines(axes) == [([1, 2], [2.0, 10.0]), ([1, 2], [0.0, 0.0])]  # after 3 rounds one of three has no value
    (band,) = axes.collections
    half = 4.302653 / 3**0.5  # Student's table for two degrees of freedom; the seeds' deviation is 1
    around = {(1, round(2 - half, 4)), (1, round(2 + half, 4)), (2, 10)}
    assert {tuple(point) for point in band.get_paths()[0].vertices.round(4)} == around
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["three: mean of 3, 95 % t-interval", "one"]


def test_panels_are_the_clients_and_the_evaluated_numbers_unless_told():
    columns = {
        "round": [0, 1],
        "plan/steps": [5, 5],
        "aggregate/clip_fraction": [0.0, 1.0],
        "clients/accuracy_p10": [NAN, 0.5],
        "test/confusion": np.array([None, np.eye(2)], dtype=object),
        "client/accuracy": [0.1, 0.2],
        "client/loss": [2.0, 1.0],
        "cohort/clients": [2, 2],
    }
    assert titles(plots.curves(columns)) == ["client/loss", "client/accuracy", "clients/accuracy_p10"]
    assert titles(plots.curves(columns, ["plan/steps"])) == ["plan/steps"]


def test_quantiles_share_a_panel_the_middle_one_a_line_between_the_outer_ones():
    run = {"round": [0, 1, 2], "x_p90": [NAN, 0.75, 1.0], "x_p10": [NAN, 0.25, 0.5], "x_p50": [NAN, 0.5, 0.75]}
    figure = plots.curves({**run, "y_p50": [3.0, 2.0, 1.0]}, ["x_p90", "x_p10", "x_p50", "y_p50"])
    assert titles(figure) == ["x, p10 p50 p90", "y_p50"]
    axes = figure.axes[0]
    assert lines(axes) == [([2, 3], [0.25, 0.5]), ([2, 3], [0.75, 1.0]), ([2, 3], [0.5, 0.75])]
    widths = [line.get_linewidth() for line in axes.get_lines()]
    assert widths[2] > max(widths[:2])
    (band,) = axes.collections
    assert {tuple(point) for point in band.get_paths()[0].vertices} == {(2, 0.25), (2, 0.75), (3, 0.5), (3, 1.0)}
    assert axes.get_xlim() == figure.axes[1].get_xlim()  # the first round has no quantiles, and is shown nevertheless
    assert axes.get_xlim()[0] < 1


@pytest.mark.parametrize(
    "names, panels",
    [
        (["a_p5", "a_p99.5", "a_p50"], {"a": ["a_p5", "a_p50", "a_p99.5"]}),
        (["a_p50"], {"a_p50": ["a_p50"]}),  # one alone
        (["a", "a_p10", "a_p90"], {"a": ["a"], "a_p10": ["a_p10"], "a_p90": ["a_p90"]}),  # the name is taken
        (["a_p10", "b", "a_p90", "b_p"], {"a": ["a_p10", "a_p90"], "b": ["b"], "b_p": ["b_p"]}),
    ],
)
def test_quantiles_are_told_by_their_names(names, panels):
    assert plots.families(names) == panels


def test_runs_with_and_without_a_metric_share_its_panel():
    figure = plots.curves({"a": {"round": [0], "x": [1.0]}, "b": {"round": [0, 1], "y": [1.0, 2.0]}}, ["x", "y"])
    assert [sum(len(x) > 0 for x, _ in lines(axes)) for axes in figure.axes] == [1, 1]


def test_a_single_round_is_a_visible_point():
    axes = plots.curves({"round": [7], "client/loss": [2.5]}).axes[0]
    assert axes.get_lines()[0].get_marker() == "o"
    assert axes.get_xlim() == (7, 9)


def test_a_history_of_a_simulation_is_drawn(tmp_path):
    import jax.numpy as jnp
    import optax

    task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
    data = fs.data.FederatedData({"x": jnp.arange(4.0)}, offsets=[0, 2, 4])
    sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.1)), data, fs.sampler.uniform(2), fs.Batching(2))
    history = sim.run(sim.init(), rounds=3)[1]
    ((x, y),) = lines(plots.curves(history).axes[0])
    assert x == [1, 2, 3]
    assert y[0] == 3.5  # the mean of 0, 1, 4, 9


@pytest.mark.parametrize(
    "histories, names, message",
    [
        ({"round": [0], "a": [1.0]}, ["b"], r"names='b': no history has that column; they have \['round', 'a'\]"),
        ({"round": [0], "plan/steps": [1.0]}, None, r"names=\[\]: no column to draw; .*'plan/steps'"),
        ({"round": [0, 1], "a": [NAN, INF]}, ["a"], "names='a': no round has a finite value"),
        ({"round": [0, 1], "a": [[1, 2], [3, 4]]}, ["a"], r"names='a': is no column of numbers: it has shape \(2, 2\)"),
        ({"round": [0, 1], "a": [1.0]}, ["a"], r"len\('a'\)=1: there are 2 rounds"),
        ({"run": {"client/loss": [1.0]}}, None, r"histories\['run'\]: .*'round' among them.* got \['client/loss'\]"),
        ({"run": []}, None, r"histories\['run'\]=\[\]: holds no run"),
        ({}, None, "holds no run"),
        ([1], None, r"histories=\[1\]: must be a run's columns, or label to those"),
    ],
)
def test_curves_refuse_what_they_cannot_draw(histories, names, message):
    with pytest.raises(fs.FedSimError, match=message):
        plots.curves(histories, names)


def counted_in_a_loop(data, classes, shown):
    return [[int(np.sum(data.client(int(k))["y"] == c)) for c in classes] for k in shown]


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("max_clients", [1, 5, 7, 200])
def test_label_counts_equal_a_loop_over_clients(indexed, max_clients):
    draw = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum([4, 0, 9, 1, 0, 6, 3])])
    index = draw.permutation(40)[: offsets[-1]] if indexed else None
    data = fs.data.FederatedData({"y": draw.choice([-2, 3, 900], 40).astype(np.int16)}, offsets, index)
    found = fs.runs.plots.label_counts(data, max_clients=max_clients)
    shown = found["clients"].tolist()
    assert shown == {1: [0], 5: [0, 2, 3, 4, 6]}.get(max_clients, list(range(7)))
    assert found["sizes"].tolist() == [4, 0, 9, 1, 0, 6, 3]
    assert found["labels"].tolist() == [-2, 3, 900]
    assert found["counts"].tolist() == counted_in_a_loop(data, [-2, 3, 900], shown)
    assert found["counts"].dtype == found["clients"].dtype == found["sizes"].dtype == np.int64


@pytest.mark.parametrize(
    "arrays",
    [
        {"y": np.linspace(0, 1, 2000)},
        {"y": np.zeros((2000, 2), int)},
        {"y": np.arange(2000) % 1001},
        {"x": np.zeros(2000, int)},
        (np.zeros(2000, int),),
    ],
    ids=["real", "two columns", "over 1000 classes", "no labels", "no dict"],
)
def test_without_integer_classes_only_sizes_are_counted(arrays, tmp_path):
    data = fs.data.FederatedData(arrays, [0, 1, 2000])
    assert list(plots.label_counts(data)) == ["sizes"]
    figure = plots.partition(data)
    assert [axes.get_xlabel() for axes in figure.axes] == ["examples of a client"]


def test_a_thousand_classes_are_counted_and_those_of_rows_that_nobody_holds_are_not():
    data = fs.data.FederatedData({"y": np.arange(1500)}, [0, 1000])
    assert plots.label_counts(data)["counts"].tolist() == [[1] * 1000]


def test_the_clients_counted_are_spread_evenly_from_the_first_to_the_last():
    data = fs.data.FederatedData({"y": np.zeros(5000, int)}, np.arange(5001))
    shown = plots.label_counts(data)["clients"]
    assert (len(shown), shown[0], shown[-1]) == (200, 0, 4999)
    assert set(np.diff(shown)) <= {25, 26}


def test_label_counts_refuse_no_clients():
    with pytest.raises(fs.FedSimError, match="max_clients=0: must be a whole number"):
        plots.label_counts(fs.data.FederatedData({"y": np.zeros(2, int)}, [0, 2]), max_clients=0)


def test_the_partition_draws_sizes_above_the_counts_of_classes():
    above, map_, _ = plots.partition(samples.PARTITION).axes
    assert [bar.get_height() for bar in above.patches] == [300, 200, 100, 400, 37, 400]
    drawn = map_.get_images()[0].get_array()
    assert drawn.filled(0).T.tolist() == samples.PARTITION["counts"].tolist()
    assert drawn.mask.T.tolist() == (samples.PARTITION["counts"] == 0).tolist()  # none is white
    assert [text.get_text() for text in map_.get_yticklabels()] == ["3", "5", "8"]
    assert above.get_title(loc="left") == "6 clients; 1437 examples, 37 to 400 each"


def test_the_partition_of_many_clients_says_how_many_it_shows_and_names_them():
    data = fs.data.FederatedData({"y": np.arange(5000) % 3}, np.arange(5001))
    figure = plots.partition(data, max_clients=11)
    assert titles(figure)[0] == "11 of 5000 clients, evenly spread; 5000 examples, 1 each"
    labels = [text.get_text() for text in figure.axes[1].get_xticklabels()]
    assert labels == ["0", "500", "1000", "1500", "2000", "2500", "2999", "3499", "3999", "4499", "4999"]


def test_a_partition_needs_sizes():
    with pytest.raises(fs.FedSimError, match=r"data=\['counts'\]: must be a FederatedData, or hold `sizes`"):
        plots.partition({"counts": np.zeros((1, 1))})


def test_the_clients_histogram_holds_every_finite_value_and_marks_three_percentiles():
    values = np.concatenate([np.arange(101) / 100, [NAN, INF, -INF]])
    figure = plots.clients(values, "accuracy")
    axes = figure.axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == 101
    assert axes.get_title(loc="left") == "101 clients (3 without a value left out)"
    marked = {line.get_label(): line.get_xdata()[0] for line in axes.get_lines()}
    assert marked == pytest.approx({"10th percentile 0.1": 0.1, "50th percentile 0.5": 0.5, "90th percentile 0.9": 0.9})


def test_whole_numbers_are_binned_as_many_to_a_bin():
    edges = {bar.get_x() % 1 for bar in plots.clients(np.arange(500) % 37, "sizes").axes[0].patches}
    assert edges == {0.5}


@pytest.mark.parametrize("values", [[0.5], [3, 3, 3], [1e300], [1e16, 1e16 + 2], [0.0, 5e-324]])
def test_values_that_are_all_about_the_same_are_drawn(values, tmp_path):
    figure = plots.clients(values, "x")
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == len(values)
    assert looks_drawn(plots.png(figure), tmp_path / "x.png")


@pytest.mark.parametrize(
    "values, message",
    [([NAN], "no client has a finite value"), ([[1.0]], "must be one number a client"), (["a"], "number")],
)
def test_the_clients_histogram_refuses_what_it_cannot_draw(values, message):
    with pytest.raises(fs.FedSimError, match=message):
        plots.clients(values, "x")


def test_latest_is_the_last_round_with_a_value_whatever_the_order_of_rows():
    order = np.random.default_rng(0).permutation(8)
    table = {name: np.asarray(column)[order] for name, column in samples.CLIENTS.items()}
    assert plots.latest(table, "client/accuracy").tolist() == [0.875, 0.5, 0.75, 0.25, 1.0]  # clients 0 to 4


def test_save_all_writes_what_the_run_has_data_for(tmp_path):
    run = fs.runs.read(samples.write(tmp_path / "whole"))
    written = plots.save_all(run)
    assert written == [tmp_path / "whole" / "plots" / f"{name}.png" for name in ("curves", "partition", "clients")]
    assert all(looks_drawn(path.read_bytes(), path) for path in written)
    assert plots.pictures(run)["clients"].axes[0].get_title(loc="left") == "5 clients (1 without a value left out)"

    sizes = {"sizes": np.array([1, 2])}
    bare = samples.write(tmp_path / "bare", lines=['{"round": 0, "client/loss": null}'], clients=None, partition=sizes)
    assert [path.name for path in plots.save_all(fs.runs.read(bare))] == ["partition.png"]
    assert plots.save_all(fs.runs.read(samples.write(tmp_path / "no", [], clients=None, partition=None))) == []


def test_traffic_is_what_was_sent_so_far_and_what_it_bought():
    """Megabytes by hand: 8 megabits are one."""
    run = {
        "round": [3, 4, 5],
        plots.UPLINK: [8e6, 16e6, 0.0],
        plots.DOWNLINK: [4e6, 4e6, 4e6],
        "client/loss": [3.0, 2.0, 1.0],
        "test/accuracy": [NAN, 0.5, 0.75],
    }
    figure = plots.traffic(run)
    panels = {}
    for what, row in (("sent", figure.axes[:3]), ("received", figure.axes[3:])):
        assert titles(figure)[3 * (what == "received") :][:3] == [
            f"{what} a round, MB",
            f"{what} so far, MB",
            "test/accuracy",
        ]
        assert [axes.get_xlabel() for axes in row] == ["rounds completed", "rounds completed", f"MB {what}"]
        panels[what] = [lines(axes)[0] for axes in row]
    rounds = [4, 5, 6]
    assert panels["sent"] == [(rounds, [1.0, 2.0, 0.0]), (rounds, [1.0, 3.0, 3.0]), ([3.0, 3.0], [0.5, 0.75])]
    assert panels["received"] == [(rounds, [0.5] * 3), (rounds, [0.5, 1.0, 1.5]), ([1.0, 1.5], [0.5, 0.75])]
    half = {**run, plots.UPLINK: [4e6, 8e6, 0.0], "test/accuracy": [NAN, 0.7, 0.9]}
    two = plots.traffic({"seeds": [run, half], "half": half}, "test/accuracy")
    assert lines(two.axes[1]) == [(rounds, [0.75, 2.25, 2.25]), (rounds, [0.5, 1.5, 1.5])]
    assert lines(two.axes[2]) == [([2.25, 2.25], [0.6, 0.825]), ([1.5, 1.5], [0.7, 0.9])]
    assert [text.get_text() for text in two.legends[0].get_texts()][1] == "half"
    bare = {name: run[name] for name in ("round", plots.UPLINK, plots.DOWNLINK)}
    assert titles(plots.traffic(bare)) == [f"{w} {x}, MB" for w in ("sent", "received") for x in ("a round", "so far")]
    with pytest.raises(fs.FedSimError, match="a history lacks that column"):
        plots.traffic({"round": [0], "client/loss": [1.0]})


def test_a_run_with_bits_has_a_picture_of_them(tmp_path):
    rounds = [{"round": r, "client/loss": 1.0, plots.UPLINK: 8e6, plots.DOWNLINK: 8e6} for r in range(2)]
    rows = [json.dumps(each) for each in rounds]
    run = fs.runs.read(samples.write(tmp_path / "run", lines=rows, clients=None, partition=None))
    assert list(plots.pictures(run)) == ["curves", "traffic"]
    assert "What clients have sent and received" in (fs.runs.report.write([run], tmp_path / "page.html")).read_text()


def test_clients_without_an_accuracy_are_drawn_by_their_loss(tmp_path):
    clients = {"round": [0, 0], "client": [0, 1], "client/accuracy": [NAN, NAN], "client/loss": [1.0, 2.0]}
    run = fs.runs.read(samples.write(tmp_path / "run", clients=clients))
    assert plots.pictures(run)["clients"].axes[0].get_xlabel() == "client/loss, each client's latest"


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    run = fs.runs.read(samples.write(tmp_path / "run"))
    (tmp_path / "run" / "plots").write_text("in the way")
    with pytest.raises(fs.FedSimError, match="plots cannot be written"):
        plots.save_all(run)


def test_figures_show_in_a_notebook_and_pyplot_stays_out_of_it():
    """IPython asks an object for its `_repr_png_`."""
    code = """
import sys
from fedjax_sim.runs import plots
figure = plots.curves({"round": [0, 1], "client/loss": [2.0, 1.0]})
assert figure._repr_png_()[0] == plots.png(figure) and figure._repr_png_()[0][:8] == bytes([137]) + b"PNG\\r\\n\\x1a\\n"
assert figure._repr_png_()[1] == {"alt": "Figure of client/loss, over rounds completed"}
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_scores_over_simulated_time_and_bytes():
    clock = {
        "clock/time": [3600.0, 7200.0, 9000.0],
        "clock/bytes_up": [1e9, 2e9, 3e9],
        "clock/bytes_down": [0.0, 0.0, 1e9],
    }
    run = {"round": [0, 1, 2], "client/loss": [3.0, 2.0, 1.0], "test/accuracy": [0.5, np.nan, 0.7], **clock}
    left, right = plots.timed({"one": [run, run], "other": run}).axes
    assert len(left.lines) == 3
    np.testing.assert_allclose(left.lines[0].get_xydata(), [[1, 0.5], [2.5, 0.7]])
    np.testing.assert_allclose(right.lines[0].get_xydata(), [[1, 0.5], [4, 0.7]])
    with pytest.raises(ArgumentError, match="clock/time"):
        plots.timed({"round": [0], "client/loss": [1.0]})
    with pytest.raises(ArgumentError, match="test/f1"):
        plots.timed(run, "test/f1")
    metrics = {name: np.asarray(values) for name, values in run.items()}
    assert "clock" in plots.pictures(fs.runs.Run(Path("run"), {}, metrics))
    assert "Time and bytes" in report_pictures.clock_section([fs.runs.Run(Path("run"), {}, metrics)], ["run"])
