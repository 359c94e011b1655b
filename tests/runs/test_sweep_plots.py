"""Pictures and tables of sweeps, of members made by hand."""

import csv
import dataclasses
import io

import numpy as np
import pyarrow.parquet
import pytest

import fedjax_sim as fs
from fedjax_sim.runs import sweep_plots
from fedjax_sim.runs.spread import half_width
from fedjax_sim.runs.sweep_words import grid_of_words
from fedjax_sim.sweeps import Member

GRID = [{"lr": lr, "mu": mu} for lr in (0.2, 0.1) for mu in (0.0, 1.0)]


def member(loss, diverged=None):
    losses = np.array([loss + 2, loss + 1, loss], float)
    if diverged is not None:
        losses[diverged:] = np.nan
    accuracy = np.array([np.nan, 1 - loss, np.nan])
    return Member({"round": np.arange(3), "client/loss": losses, "test/accuracy": accuracy}, None, diverged, (1,))


@pytest.fixture
def result():
    rows = [
        [member(0.4), member(0.6)],
        [member(0.1), member(0.3)],
        [member(0.9), member(0.1)],
        [member(0), member(0, 1)],
    ]
    return fs.SweepResult(GRID, [5, 6], rows, compilations=1)


def test_scores(result):
    scores = result.scores("client/loss")
    np.testing.assert_allclose([s.mean for s in scores], [0.5, 0.2, 0.5, np.nan])
    np.testing.assert_allclose([s.standard_error for s in scores], [0.1, 0.1, 0.4, np.nan])
    np.testing.assert_allclose(result.scores("client/loss", last=2)[0].values, [0.9, 1.1])
    np.testing.assert_allclose(result.scores("test/accuracy", last=2)[1].values, [0.9, 0.7])
    assert [s.diverged for s in scores] == [0, 0, 0, 1]
    assert result.best("client/loss").setting == {"lr": 0.2, "mu": 1.0}
    assert result.best("client/loss", mode="max").mean == 0.5
    assert result.best("test/accuracy").setting == {"lr": 0.2, "mu": 1.0}
    assert result.main_metric() == "test/accuracy"
    assert result.diverged == [(GRID[3], 6, 1)]


def test_table(result, tmp_path):
    frame = result.to_pandas()
    assert frame.columns.tolist() == ["lr", "mu", "seed", "diverged", "client/loss", "test/accuracy"]
    assert (frame["seed"].tolist(), frame["lr"].tolist()) == ([5, 6] * 4, [0.2] * 4 + [0.1] * 4)
    np.testing.assert_array_equal(frame["client/loss"][2], [2.1, 1.1, 0.1])
    files = {path.name for path in result.save(tmp_path / "sweep")}
    assert files == {f"sweep.{kind}" for kind in ("parquet", "csv", "md", "tex")} | {
        "error_bars.png",
        "curves.png",
        "heatmap.png",
    }
    table = pyarrow.parquet.read_table(tmp_path / "sweep" / "sweep.parquet").to_pydict()
    assert table["client/loss"][2] == [2.1, 1.1, 0.1]
    assert table["diverged"] == [None] * 7 + [1]


def test_heatmap_frames_the_best_and_sorts_numbers(result):
    axes = result.heatmap("client/loss").axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0.1", "0.2"]
    assert [word.get_text() for word in axes.texts] == ["0.5", "0.5", "0.2"]
    assert axes.patches[0].get_xy() == (0.5, 0.5)  # mu=1, lr=0.2
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("mu", "lr")


def test_tables_say_means_and_their_t_intervals(result):
    """Student's table has 12.706 for one degree of freedom: 12.706 x 0.1 is the half of the first interval."""
    rows = list(csv.reader(io.StringIO(result.to_csv(["client/loss"]))))
    assert rows[0] == [
        "lr",
        "mu",
        "seeds",
        "client/loss mean",
        "client/loss half of the 95 % t-interval",
        "client/loss diverged",
    ]
    assert [row[:3] for row in rows[1:]] == [
        ["0.2", "0.0", "2"],
        ["0.2", "1.0", "2"],
        ["0.1", "0.0", "2"],
        ["0.1", "1.0", "2"],
    ]
    np.testing.assert_allclose([float(row[4]) for row in rows[1:4]], 12.7062 * np.array([0.1, 0.1, 0.4]), rtol=1e-5)
    assert rows[4][3:] == ["nan", "nan", "1"]
    assert "| 0.2 | 0.0 | 0.5 ± 1.3 |\n" in result.to_markdown("client/loss")
    assert result.to_markdown().startswith("| lr | mu | test/accuracy |")
    table = result.to_latex()
    assert r"0.2 & 0.0 & 0.5 $\pm$ 1.3 \\" in table
    assert table.startswith("% Mean ± 95 % t-interval over 2 seeds\n")
    assert str(result.scores("client/loss")[0]).endswith("0.5 ± 1.3")
    assert "± 95 % t-interval" in result._repr_html_()


def test_the_interval_holds_the_mean_in_95_of_100_cases():
    """Of 4000 samples of four normal numbers about 200 miss, give or take 14; 1560 would with the standard error."""
    values = np.random.default_rng(0).normal(3.0, 2.0, (4, 4000))
    missed = np.count_nonzero(np.abs(values.mean(0) - 3.0) > half_width(values))
    assert abs(missed - 200) < 60
    assert np.isnan(half_width(np.ones((1, 3)))).all()


def test_bars_are_as_long_as_they_are_said_to_be():
    axes = sweep_plots.error_bars(["a", "b"], [1.0, 2.0], [0.5, np.nan], "loss").axes[0]
    segments = axes.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(segments[0][:, 0], [0.5, 1.5])
    np.testing.assert_allclose(segments[1][:, 0], [2.0, 2.0])


def test_bad_input(result):
    with pytest.raises(fs.FedSimError, match="metric='loss': unknown"):
        result.best("loss")
    with pytest.raises(fs.FedSimError, match='mode=\'least\': must be "min", "max"'):
        result.best("client/loss", mode="least")
    with pytest.raises(fs.FedSimError, match="needs two hyperparameters"):
        result.heatmap("client/loss", x="lr", y="lr")
    with pytest.raises(fs.FedSimError, match="no setting has a finite value"):
        fs.SweepResult(GRID[3:], [5, 6], result.members[3:]).best("client/loss")


@pytest.mark.parametrize(
    ("words", "static", "message"),
    [
        ([], [], "give at least one"),
        (["lr"], [], "must be NAME=VALUE"),
        (["rate=1"], [], "unknown field; there are lr, rounds, seed"),
        (["seed=1,2"], [], "use --seeds N"),
        (["rounds=1,2"], [], "use --rounds N"),
        (["lr=1", "lr=2"], [], "stands there twice"),
        (["lr=fast"], [], "must be a number"),
        (["lr=1"], ["mu"], "is none of the grid's fields"),
    ],
)
def test_words_that_make_no_grid(words, static, message):

    made = dataclasses.make_dataclass("Config", ["lr", "rounds", "seed"])(0.1, 5, 0)
    with pytest.raises(fs.FedSimError, match=message):
        grid_of_words(made, words, static)
