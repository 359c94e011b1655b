"""What data, simulations, rounds and histories show of themselves, in a line and as an HTML table."""

import dataclasses
import html.parser

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.core import html as tables

NASTY = '<script>alert("x")</script>&'


class Reader(html.parser.HTMLParser):
    """The rows of one table. Fails where a tag is not closed, and at any tag or attribute that a table without scripts
    and colours of its own does not need."""

    TAGS = ("table", "caption", "tr", "th", "td", "svg", "polyline")
    ATTRIBUTES = ("scope", "width", "height", "role", "aria-label", "points", "stroke-width")

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.caption, self.curves = [], [], "", 0
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert tag in self.TAGS
        for name, value in attributes:
            assert name in self.ATTRIBUTES or (name, value) in [("fill", "none"), ("stroke", "currentColor")]
        self.curves += tag == "polyline"
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "caption" in self.open:
            self.caption += data
        else:
            assert self.open[-1] in ("th", "td")
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def sim():
    """Clients of one example, 1 and 3: their models go half of the way, the server's to 1 and then 1.5."""

    def loss(w, batch, key):
        return (w - batch["x"]) ** 2, {"seen": jnp.ones_like(batch["x"])}

    def client(key, server, row, batches):
        update = algorithm.client(key, server, row, batches)
        first = batches.batch(0)
        values = fs.metrics.Histogram.of(first["x"], (0.0, 2.0, 4.0), first["mask"])
        return dataclasses.replace(update, metrics={**update.metrics, "values": values})

    algorithm = fs.fedavg(fs.Task(lambda key: jnp.zeros(()), loss), optax.sgd(0.25))
    data = fs.data.FederatedData({"x": np.array([1.0, 3.0], np.float32)}, offsets=[0, 1, 2])
    return fs.Simulation(algorithm._replace(client=client), data, fs.sampler.uniform(2), fs.Batching(4), seed=7)


@pytest.fixture(scope="module")
def history(sim):
    return sim.run(sim.init(), 3, evaluate=lambda w: {"test/w": w}, eval_every=2)[1]


def test_data_tell_clients_examples_spread_and_arrays():
    arrays = {"x": np.zeros((9, 2, 3), np.uint8), "y": np.zeros(9, np.int64)}
    data = fs.data.FederatedData(arrays, offsets=[0, 0, 1, 5, 9])
    assert repr(data) == (
        "FederatedData(4 clients, 9 examples (min 0, median 2.5, max 4 a client; 1 without any), "
        "x: uint8[9,2,3], y: int64[9])"
    )
    table = Reader(data._repr_html_())
    assert table.caption == "FederatedData"
    assert table.rows == [
        ["clients", "4"],
        ["examples", "9"],
        ["examples of a client", "min 0, median 2.5, max 4; 1 without any"],
        ["array x", "uint8[9,2,3]"],
        ["array y", "int64[9]"],
    ]


def test_arrays_may_be_any_tree():
    nested = fs.data.FederatedData({"in": (np.zeros(2), np.zeros((2, 3)))}, offsets=[0, 2])
    assert repr(nested).endswith("in/0: float64[2], in/1: float64[2,3])")
    assert repr(fs.data.FederatedData(np.zeros(2), offsets=[0, 2])).endswith("array: float64[2])")


def test_names_of_arrays_are_escaped():
    data = fs.data.FederatedData({NASTY: np.zeros(2)}, offsets=[0, 2])
    assert Reader(data._repr_html_()).rows[-1] == [f"array {NASTY}", "float64[2]"]
    assert "<script" not in data._repr_html_()


def test_a_simulation_is_one_line(sim):
    assert repr(sim) == (
        "Simulation(clients: 2, examples: 2, parameters: 1, sampler: uniform(2), batch_size: 4, devices: 8 cpu, "
        "residency: device, lanes: 1, seed: 7)"
    )


def test_a_simulation_shows_what_of_its_batching_is_not_the_default(sim):
    other = fs.Simulation(
        sim.algorithm, sim.data, sim.sampler, fs.Batching(2, steps=3, shuffle=False), execution=fs.Execution(lanes=1)
    )
    table = Reader(other._repr_html_())
    assert table.caption == "Simulation"
    assert table.rows[3:7] == [["sampler", "uniform(2)"], ["batch_size", "2"], ["steps", "3"], ["shuffle", "False"]]


def test_a_round_shows_its_main_numbers(history):
    # Losses of w = 1: 0 and 4, mean 2. The histogram is no number and is left out.
    assert repr(history.rounds[1]) == "RoundMetrics(after round 2, 2 clients, client/loss 2, client/seen 1, test/w 1.5)"
    assert repr(history.rounds[0]) == "RoundMetrics(after round 1, 2 clients, client/loss 5, client/seen 1)"


def test_a_round_shows_all_it_has_as_a_table(history):
    table = Reader(history.rounds[1]._repr_html_())
    assert table.caption == "After round 2"
    assert [name for name, _ in table.rows] == list(history.rounds[1])
    values = dict(table.rows)
    assert values["client/loss"] == "2"
    assert values["cohort/clients"] == "2"
    assert values["client/values"] == "float32[2]"


def test_a_history_goes_from_its_first_values_to_its_last(history):
    # w = 0, 1, 1.5 before the rounds; losses (1 + 9) / 2, (0 + 4) / 2, (0.25 + 2.25) / 2; then w = 1.75
    assert repr(history) == (
        "History(3 rounds (1 to 3); client/loss 5 -> 1.25; client/seen 1 -> 1; test/w 1.5 -> 1.75)"
    )


def test_short_histories(history):
    assert repr(fs.History()) == "History(no rounds)"
    assert Reader(fs.History()._repr_html_()).rows == [["rounds", "0"]]
    one = fs.History(history.rounds[2:])
    assert repr(one) == "History(1 round (3); client/loss 1.25; client/seen 1; test/w 1.75)"
    assert Reader(one._repr_html_()).curves == 0


def test_a_history_shows_its_rounds_and_a_curve_of_each_column(history):
    table = Reader(history._repr_html_())
    assert table.caption == "History, 3 rounds (1 to 3)"
    assert table.rows == [
        ["round", "client/loss", "client/seen", "test/w"],
        ["all", "", "", ""],
        ["1", "5", "1", ""],  # not evaluated
        ["2", "2", "1", "1.5"],
        ["3", "1.25", "1", "1.75"],
    ]
    assert table.curves == 3


def test_a_long_history_shows_its_last_ten_rounds(sim):
    history = sim.run(sim.init(), 13)[1]
    rows = Reader(history._repr_html_()).rows
    assert [row[0] for row in rows] == ["round", "all", *map(str, range(4, 14))]


def test_names_of_evaluations_are_escaped(sim):
    history = sim.run(sim.init(), 1, evaluate=lambda w: {NASTY: 0.5})[1]
    assert Reader(history._repr_html_()).rows[0] == ["round", "client/loss", "client/seen", NASTY]
    assert dict(Reader(history.rounds[0]._repr_html_()).rows)[NASTY] == "0.5"
    assert "<script" not in history._repr_html_() + history.rounds[0]._repr_html_()


def points(values):
    text = tables.sparkline(values).split('points="')[1].split('"')[0]
    return [tuple(map(float, pair.split(","))) for pair in text.split()]


def test_a_sparkline_rises_where_its_values_do():
    assert points([1.0, 3.0, 2.0]) == [(1, 17), (45, 1), (89, 9)]
    assert points([5, 5]) == [(1, 9), (89, 9)]  # pixels count from the top; level lines lie in the middle


def test_a_sparkline_skips_what_is_not_finite_and_keeps_its_place():
    assert points([np.nan, 1.0, np.inf, np.nan, 2.0]) == [(23, 17), (89, 1)]
    assert tables.sparkline([np.nan, 1.0, np.inf]) == tables.sparkline([]) == ""


def test_a_sparkline_of_many_values_is_thinned_with_both_ends_kept():
    drawn = points(np.arange(10_000))
    assert len(drawn) == tables.POINTS
    assert drawn[0] == (1, 17)
    assert drawn[-1] == (89, 1)
