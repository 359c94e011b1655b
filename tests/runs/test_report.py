"""The report, opened in a headless Chromium: what its page holds after the script has run."""

import base64
import csv
import html
import itertools
import json
import os
import re
import shutil
import subprocess
import urllib.parse
from html.parser import HTMLParser

import jax.numpy as jnp
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.runs import metric_words, report
from tests.runs import samples

BAD_METRIC = "</script x><script>document.title = 1"
EVIL = "<script>document.title='taken'<!--&\"'"


def chromium(page, folder, width=1280):
    """The DOM of a page once its scripts have run, as HTML."""
    program = shutil.which("chromium")
    if program is None:
        said = "chromium is missing: run tests/install-debian-packages"
        pytest.fail(said) if os.environ.get("CI") else pytest.skip(said)
    options = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking dump-dom"
    options += f" disable-component-update disable-sync virtual-time-budget=3000 window-size={width},900"
    profile = folder / "profile"
    command = [program, *(f"--{option}" for option in options.split()), f"--user-data-dir={profile}", page.as_uri()]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    shutil.rmtree(profile, ignore_errors=True)
    return out


class Page(HTMLParser):
    """The elements of a page in order: [tag, attributes, text directly inside]."""

    VOID = ("meta", "img", "input", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.source = [], [], text
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        element = [tag, dict(attrs), ""]
        self.elements.append(element)
        if tag not in self.VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag, **wanted):
        wanted = {key.strip("_").replace("_", "-"): value for key, value in wanted.items()}
        return [e for e in self.elements if e[0] == tag and all(e[1].get(k) == v for k, v in wanted.items())]

    def rows(self):
        """What to its cells' texts, of all tables."""
        found, cells = {}, []
        for tag, attributes, text in self.elements:
            if tag == "tr":
                cells = []
            elif tag == "th" and attributes.get("scope") == "row":
                cells = found.setdefault(text, [])
            elif tag == "td":
                cells.append(text)
        return found

    def curves(self):
        """Metric to (run, number of points) of each curve drawn."""
        found, metric = {}, None
        for tag, attributes, _ in self.elements:
            if tag == "figure" and "data-metric" in attributes:
                metric = attributes["data-metric"]
                found[metric] = []
            elif tag == "path":
                found[metric].append((int(attributes["data-run"]), len(re.findall("[ML]", attributes["d"]))))
        return found

    @property
    def root(self):
        return self.elements[0][1]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The report of one run, opened."""
    folder = tmp_path_factory.mktemp("one")
    path = report.write([fs.runs.read(samples.write(folder / "run-1"))], folder / "report.html")
    return Page(chromium(path, folder))


@pytest.fixture(scope="module")
def three_path(tmp_path_factory):
    """The report of three runs; the second has another seed, the third is from Python and has the worst of names."""
    folder = tmp_path_factory.mktemp("three")
    first = samples.write(folder / "a")
    config = {**samples.CONFIG["config"], "seed": 1, "model": EVIL}
    second = samples.write(folder / "b", lines=samples.ROUNDS[:2], config=config, partition=None)
    line = samples.ROUNDS[0].replace("client/norms", BAD_METRIC)
    line = line.replace("[1, 0]", "1")
    third = samples.write(folder / EVIL, [line], clients=None, experiment=None, git=None, config=None)
    return report.write([fs.runs.read(each) for each in (first, second, third)], folder / "page" / "report.html")


@pytest.fixture(scope="module")
def three(three_path):
    return Page(chromium(three_path, three_path.parent))


def plain_run(folder, lines=samples.ROUNDS, **config):
    """A run without what pictures are made of."""
    return fs.runs.read(samples.write(folder, lines, None, None, None, **config))


def driven(path, script, folder, width=1280):
    """A copy of the page with a script of ours at its end, which the policy of the page itself would forbid."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text())
    copy = folder / "driven.html"
    copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    return Page(chromium(copy, folder, width))


def test_the_page_draws_every_point_of_the_main_metrics(one):
    assert one.root.get("data-ready") == "yes"
    assert "data-error" not in one.root
    assert one.curves() == {
        "client/loss": [(0, 3)],  # NaN in round 2
        "client/accuracy": [(0, 4)],
        "test/loss": [(0, 1)],  # infinite in round 3
        "test/accuracy": [(0, 2)],
    }
    captions = [text for _, _, text in one.all("figcaption")]
    assert captions[:4] == ["client/loss", "client/accuracy", "test/loss (1 point off the scale)", "test/accuracy"]
    assert [option[2] for option in one.all("option")] == [
        "overview (4 panels)", "client/loss", "client/accuracy", "test/loss", "test/accuracy", "cohort/clients"
    ]  # fmt: skip


def test_the_summary_holds_the_runs_values(one):
    rows = one.rows()
    assert [text for _, _, text in one.all("h1")] == ["quickstart"]
    assert rows["preset"] == ["default"]
    assert rows["started"] == ["2026-11-23 22:30"]
    assert rows["rounds"][0] == "4"
    assert rows["client/loss"] == ["1after round 4; best 1 after round 4"]
    assert rows["test/loss"] == ["infafter round 4; best 1.25 after round 2"]
    assert rows["test/accuracy"] == ["0.6875after round 4; best 0.75 after round 2"]
    assert rows["training"] == ["3.2 s"]  # 2.0 s before the run was resumed, 1.25 s after
    assert rows["cohort"] == ["2"]
    assert rows["sampler"] == ["uniform(2)"]
    assert rows["devices"] == ["2 × cpu"]
    assert rows["commit"] == ["31add28c0ffee"]
    assert rows["jax"] == ["0.10.2"]
    assert rows["simulation: batching"] == ["batch_size 20, epochs 5"]
    assert one.all("tr", class_="differs") == []


def test_the_commands_to_reproduce_and_to_go_on(one, three):
    run, resume = (text for _, _, text in one.all("pre"))
    assert run == "fedjax-sim run quickstart --preset default --rounds 4 --alpha 0.3 --model cnn --no-nesterov --seed 0"
    assert re.fullmatch(r"fedjax-sim resume \S*/run-1 --rounds 8", resume)
    _, _, evil, unfinished, python = (text for _, _, text in three.all("pre"))
    assert "--model '<script>" in evil  # quoted for the shell
    assert re.fullmatch(r"fedjax-sim resume \S*/b", unfinished)
    assert python.startswith("state = sim.restore(")


def test_the_pictures_are_embedded_and_those_that_runs_share_stand_once(one, three):
    shown = [attributes for _, attributes, _ in one.all("img")]
    still = "Curves of the main metrics over rounds."  # for readers without scripts
    assert [image["alt"] for image in shown] == [
        still, "Each client's latest training metric", "Who holds which examples"
    ]  # fmt: skip
    for image in shown:  # vectors
        kind, data = image["src"].split(",", 1)
        assert kind == "data:image/svg+xml;base64"
        assert "</svg>" in base64.b64decode(data).decode()
    alts = [attributes["alt"] for _, attributes, _ in three.all("img")]
    assert alts == [still, "Each client's latest training metric: a, b", f"Who holds which examples: a, {EVIL}"]


def test_nothing_outside_the_file_is_asked_for(three_path):
    text = three_path.read_text()
    assert (
        re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)|url\(|@import|https?://(?!www\.w3\.org/2000/svg)""", text) == []
    )
    assert "default-src 'none'" in text


def test_names_from_a_run_do_not_run(three):
    assert three.root.get("data-ready") == "yes"
    assert "data-error" not in three.root
    assert [text for _, _, text in three.all("title")] == ["3 runs"]
    assert len(three.all("script")) == 2
    assert [text for _, _, text in three.all("button")] == ["a", "b", EVIL]
    assert three.rows()["model"] == ["cnn", EVIL, "–"] * 2  # among what differs, and in the configuration
    data = json.loads(three.all("script", type="application/json")[0][2])
    assert data["runs"][2]["name"] == EVIL
    assert BAD_METRIC in data["runs"][2]["curves"]


def test_runs_are_compared(three):
    rows = three.rows()
    assert rows["experiment"] == ["quickstart", "quickstart", "from Python"]
    assert rows["rounds"][:3] == ["4", "2 of 4", "1 of 4"]
    assert rows["test/accuracy"] == [
        "0.6875after round 4; best 0.75 after round 2", "0.75after round 2; best 0.75 after round 2", "–"
    ]  # fmt: skip
    assert [text for _, _, text in three.all("strong")] == ["1", "0.875", "1.25", "0.75"]  # each row's best final value
    differing = re.findall(r'<tr class="differs"><th scope="row">([^<]*)', three.source)
    config = ["rounds", "alpha", "model", "nesterov", "seed", "experiment: name", "experiment: preset"]
    assert differing == [*config, "commit"]
    apart = three.source.split('id="differences"', 1)[1].split("</table>", 1)[0]
    assert re.findall(r'<th scope="row">([^<]*)', apart) == [*config, "commit"]
    assert three.curves()["client/accuracy"] == [(0, 4), (1, 2), (2, 1)]
    assert three.curves()["test/accuracy"] == [(0, 2), (1, 1)]


def test_the_metric_is_chosen_and_the_legend_hides_a_run(three_path, tmp_path):
    script = """
      const select = document.getElementById("metric");
      select.value = "client/accuracy";
      select.dispatchEvent(new Event("change"));
      document.querySelector("#legend button[data-run='1']").click();
    """
    page = driven(three_path, script, tmp_path)
    assert "data-error" not in page.root
    assert page.curves() == {"client/accuracy": [(0, 4), (2, 1)]}
    assert [e[1]["aria-pressed"] for e in page.all("button")] == ["true", "false", "true"]


def test_a_logarithmic_axis_has_equal_steps_for_equal_factors(tmp_path):
    lines = [json.dumps({"round": i, "client/loss": value}) for i, value in enumerate([1000, 100, 10, 1, 0, -1])]
    run = plain_run(tmp_path / "run", lines)
    path = report.write([run], tmp_path / "report.html")
    script = """
      document.documentElement.dataset.before = document.querySelector("path").getAttribute("d");
      document.getElementById("log").click();
    """
    page = driven(path, script, tmp_path)
    for d, even in ((page.root["data-before"], False), (page.all("path")[0][1]["d"], True)):
        heights = [float(each) for each in re.findall(r"[ML]\S+ (\S+?)(?=[ML]|$)", d)][:4]
        steps = [b - a for a, b in itertools.pairwise(heights)]
        assert (max(steps) - min(steps) < 0.1) is even
    assert page.all("figcaption")[0][2] == "client/loss (2 points off the scale)"


def test_quantiles_share_a_panel_and_all_panels_span_the_same_rounds(tmp_path):
    late = {"clients/x_p90": 0.75, "clients/x_p50": 0.5, "clients/x_p10": 0.25}
    lines = [json.dumps({"round": i, "client/loss": 1.0 + i, **(late if i > 1 else {})}) for i in range(4)]
    path = report.write([plain_run(tmp_path / "run", lines)], tmp_path / "report.html")
    script = """
      const svg = document.querySelector("[data-metric='clients/x'] svg");
      svg.dispatchEvent(new KeyboardEvent("keydown", {key: "End"}));
    """
    page = driven(path, script, tmp_path)
    assert "data-error" not in page.root
    assert page.curves() == {"client/loss": [(0, 4)], "clients/x": [(0, 2)] * 3}
    assert [text for _, _, text in page.all("figcaption")] == ["client/loss", "clients/x, p10 p50 p90"]
    ((_, band, _),) = page.all("polygon")
    corners = [tuple(map(float, corner.split(","))) for corner in band["points"].split(" ")]
    assert len(corners) == 4
    starts = [float(re.match(r"M(\S+) ", e[1]["d"])[1]) for e in page.all("path")]
    assert starts[1] > starts[0] + 100  # round 2 of the quantiles is not where round 0 of the losses is
    assert page.all("p", id="said")[0][2] == "clients/x, round 4: p10: 0.25; p50: 0.5; p90: 0.75"


def test_pointer_and_arrow_keys_read_values(three_path, tmp_path):
    script = """
      const first = document.querySelector("[data-metric='client/loss'] svg");
      first.focus();
      for (const key of ["ArrowRight", "ArrowRight"]) first.dispatchEvent(new KeyboardEvent("keydown", {key}));
      const svg = document.querySelector("[data-metric='client/accuracy'] svg"), box = svg.getBoundingClientRect();
      const at = {clientX: box.right - 12, clientY: box.top + 20, bubbles: true};
      svg.dispatchEvent(new PointerEvent("pointermove", at));
    """
    page = driven(three_path, script, tmp_path)
    assert page.all("p", id="said")[0][2] == f"client/loss, round 2: a: 1.5; b: 1.5; {EVIL}: 2.25 (round 1)"
    said = [text for _, attributes, text in page.all("div", class_="tip") if "hidden" not in attributes]
    assert said == [f"round 4a: 0.875b: 0.5 (round 2){EVIL}: 0.125 (round 1)"]  # the panel under the pointer alone
    assert len(page.all("line", class_="cursor")) == 4  # and the round in all, but for one that ends before it


def test_only_what_differs_can_be_shown(three_path, tmp_path):
    script = """
      document.getElementById("differing").click();
      const shown = [...document.querySelectorAll("#config tbody tr")].filter((row) => row.offsetHeight > 0);
      document.documentElement.dataset.shown = shown.map((row) => row.firstChild.textContent).join(" ");
    """
    assert driven(three_path, script, tmp_path).root["data-shown"] == (
        "rounds alpha model nesterov seed experiment: name experiment: preset"
    )


def test_every_field_of_the_configuration_is_shown(one):
    """A line for each but the versions and the commit, which stand under Software; nested ones are spelt out."""
    rows = one.rows()
    for part, value in samples.CONFIG.items():
        for field, each in value.items() if isinstance(value, dict) else [("", value)]:
            if part in ("versions", "git"):
                continue
            what = field if part == "config" else f"{part}: {field}" if field else f"run: {part}"
            said = "batch_size 20, epochs 5" if isinstance(each, dict) else each if isinstance(each, str) else None
            assert rows[what][-1] == (json.dumps(each) if said is None else said)
    assert rows["python"] == ["3.11.9"]


def test_what_a_name_means_is_said_where_the_pointer_is(one):
    titles = {text: attributes["title"] for _, attributes, text in one.all("th") if "title" in attributes}
    assert titles["test/accuracy"] == "Share of examples classified rightly, on held-out data."
    assert titles["client/loss"].startswith("Loss in training")
    assert {"rounds", "sampler", "parameters"} <= set(titles)
    captions = {text: attributes.get("title") for _, attributes, text in one.all("figcaption")}
    assert captions["client/accuracy"] == metric_words.MEANINGS["client/accuracy"]


def test_what_rounds_report_is_in_the_table_of_words():
    task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
    data = fs.data.FederatedData({"x": jnp.arange(4.0)}, offsets=[0, 2, 4])
    sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.1)), data, fs.sampler.uniform(2), fs.Batching(2))
    _, metrics = sim.step(sim.init())
    assert [name for name in metrics if not metric_words.meaning(name)] == []


def test_the_numbers_of_pictures_are_links(one, three):
    """As CSV, which the standard library reads."""

    def rows_of(page, name):
        link = next(attributes["href"] for _, attributes, _ in page.all("a") if attributes["download"] == name)
        kind, text = link.split(",", 1)
        text = base64.b64decode(text).decode() if kind.endswith("base64") else urllib.parse.unquote(text)
        return list(csv.reader(text.splitlines()))

    assert rows_of(one, "client-loss.csv") == [
        ["run", "rounds completed", "client/loss"], ["run-1", "1", "2.25"], ["run-1", "2", "1.5"], ["run-1", "4", "1"]
    ]  # fmt: skip
    assert rows_of(one, "clients.csv")[:3] == [["client", "client/accuracy"], ["0", "0.875"], ["1", "0.5"]]
    held = rows_of(one, "partition.csv")
    assert held[0] == ["client", "examples", "class 3", "class 5", "class 8"]
    assert held[2] == ["1", "200", "100", "100", "0"]
    assert {row[0] for row in rows_of(three, "client-accuracy.csv")[1:]} == {"a", "b", EVIL}


@pytest.mark.parametrize("width", [1280, 420])
def test_the_page_fits_its_width(three_path, tmp_path, width):
    """Nothing sticks out: what is wide scrolls within itself."""
    script = """
      document.documentElement.dataset.wide = document.documentElement.scrollWidth;
      document.documentElement.dataset.inner = innerWidth;
      document.documentElement.dataset.columns = getComputedStyle(document.getElementById("panels"))
        .gridTemplateColumns.split(" ").length;
    """
    root = driven(three_path, script, tmp_path, width).root
    assert "data-error" not in root
    assert int(root["data-wide"]) <= int(root["data-inner"])
    assert int(root["data-columns"]) == (2 if width > 720 else 1)


def test_the_test_would_see_an_error_on_the_page(three_path, tmp_path):
    assert "broken" in driven(three_path, "throw new Error('broken')", tmp_path).root["data-error"]


def test_the_pages_policy_stops_a_script_that_is_not_its_own(three_path, tmp_path):
    copy = tmp_path / "copy.html"
    script = "<script>document.documentElement.dataset.taken = 'yes'</script></body>"
    copy.write_text(three_path.read_text().replace("</body>", script))
    root = Page(chromium(copy, tmp_path)).root
    assert root.get("data-ready") == "yes"
    assert "data-taken" not in root


def test_long_curves_are_thinned_and_keep_their_ends(tmp_path):
    lines = [json.dumps({"round": i, "client/loss": i / 7, "client/one": i if i == 17 else None}) for i in range(5000)]
    run = plain_run(tmp_path / "run", lines)
    text = report.page([run])
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert found
    curves = json.loads(found[1])["runs"][0]["curves"]
    rounds, values = curves["client/loss"]
    assert (len(rounds), rounds[0], rounds[-1]) == (2000, 1, 5000)
    assert values == pytest.approx([(each - 1) / 7 for each in rounds], rel=1e-5)
    assert curves["client/one"] == [[18], [17.0]]
    assert "thinned evenly" in text


@pytest.mark.parametrize("lines", [[], ['{"round": 0, "client/loss": null}']], ids=["no round", "NaN alone"])
def test_a_run_without_a_value_has_a_report_too(lines, tmp_path):
    run = plain_run(tmp_path / "run", lines, experiment=None, config=None, rounds=9)
    page = Page(chromium(report.write([run], tmp_path / "report.html"), tmp_path))
    assert page.root.get("data-ready") == "yes"
    assert "data-error" not in page.root
    assert page.rows()["rounds"] == [f"{len(lines)} of 9"]
    assert page.all("svg") == page.all("img") == []


def test_runs_of_one_name_are_told_apart_by_their_parents(tmp_path):
    runs = [plain_run(tmp_path / each / "run", []) for each in "ab"]
    headings = re.findall(r"<h3>(.*?)</h3>", report.page([*runs, runs[0]]))
    assert headings == ["a/run (1)", "b/run", "a/run (2)"]


@pytest.mark.parametrize(
    "seconds, said",
    [([0.04], "0.0 s"), ([99.94], "99.9 s"), ([100.4], "1 min 40 s"), ([59, 7199.6, 1], "2 h 0 min"), ([], "–")],
)
def test_time_is_said_in_fit_units(seconds, said, tmp_path):
    run = fs.runs.read(samples.write(tmp_path / "run", [], seconds, None, None))
    rows = Page(report.page([run])).rows()
    assert rows.get("training", ["–"]) == [said]


def test_flags_spell_out_nested_fields_lists_and_switches(tmp_path):
    config = {
        "model": {"num_layers": 2, "use_bias": False},
        "sizes": [1, 2],
        "nesterov": True,
        "note": "it's",
        "lr": None,
    }
    source = {"name": "mine", "preset": "fast", "path": "/home/me/my work/config.py"}
    run = plain_run(tmp_path / "run", [], config=config, experiment=source)
    assert html.escape(
        "fedjax-sim run '/home/me/my work/config.py' --preset fast --model.num-layers 2 --model.no-use-bias "
        """--sizes 1 2 --nesterov --note 'it'"'"'s' --lr None"""
    ) in report.page([run])


def test_no_run_and_no_place_are_errors(tmp_path):
    with pytest.raises(fs.FedSimError, match=r"runs=\[\]: must hold at least one run"):
        report.write([], tmp_path / "report.html")
    run = plain_run(tmp_path / "run", [])
    with pytest.raises(fs.FedSimError, match="cannot be written"):
        report.write([run], tmp_path / "run" / "config.json" / "report.html")
    assert report.write([run], tmp_path / "new" / "folder" / "r.html") == tmp_path / "new" / "folder" / "r.html"
