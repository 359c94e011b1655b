"""Figures of a federation: what they draw is read back from their axes."""

import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.runs import plots


def test_bars_are_the_examples_of_each_class_on_top_of_one_another():
    data = fs.data.FederatedData({"y": np.array([7, 7, 9, 9, 9])}, offsets=[0, 3, 5])
    figure = plots.class_bars(data)
    bars = [[(bar.get_y(), bar.get_height()) for bar in group] for group in figure.axes[0].containers]
    assert bars == [[(0, 2), (0, 0)], [(2, 1), (0, 2)]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["7", "9"]
    assert plots.png(figure)[1:4] == b"PNG"


def test_at_most_so_many_clients_are_shown_and_the_title_says_so():
    data = fs.data.FederatedData({"y": np.arange(120) % 12}, offsets=np.arange(121))
    axes = plots.class_bars(data).axes[0]
    assert len(axes.containers[0]) == 50
    assert axes.get_title(loc="left") == "50 of 120 clients, evenly spread; 12 classes"


def test_every_client_that_holds_anything_is_in_the_histogram_of_sizes():
    data = fs.data.FederatedData({"x": np.zeros(1111)}, offsets=[0, 1, 11, 11, 111, 1111])
    axes = plots.sizes(data).axes[0]
    assert axes.get_xscale() == "log"
    assert sum(bar.get_height() for bar in axes.patches) == 4
    assert axes.get_title(loc="left") == "5 clients (1 without an example left out)"


def test_errors_of_figures():
    data = fs.data.FederatedData({"x": np.zeros(3)}, offsets=[0, 0])
    with pytest.raises(fs.FedSimError, match="labels='y'"):
        plots.class_bars(data)
    with pytest.raises(fs.FedSimError, match="no client has an example"):
        plots.sizes(data)
