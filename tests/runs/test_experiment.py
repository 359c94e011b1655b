"""Experiments: found, loaded, refused with a reason; and their configs, through JSON and back."""

import dataclasses
import enum
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.runs.experiment import from_plain, to_plain

GOOD = '''"""What it is.

More about it.
"""
import dataclasses

@dataclasses.dataclass(frozen=True)
class Config:
    rounds: int = 1
    seed: int = 0

PRESETS = {"default": Config(), "long": Config(rounds=9)}

def build(config):
    return config
'''


def write(folder: Path, text: str, name: str = "config.py") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


# Finding and loading


def test_a_config_is_loaded_by_its_path_and_by_its_folder(tmp_path):
    path = write(tmp_path / "mine", GOOD)
    for name in (path, tmp_path / "mine"):
        found = fs.runs.load_experiment(str(name))
        assert (found.name, found.path, found.about) == ("mine", path, "What it is.")
        assert found.presets["long"].rounds == 9
        assert found.build(3) == 3


def test_a_file_of_another_name_lends_its_own(tmp_path):
    assert fs.runs.load_experiment(str(write(tmp_path, GOOD, "ablation.py"))).name == "ablation"


def test_a_path_may_be_relative_and_is_kept_whole(tmp_path, monkeypatch):
    path = write(tmp_path / "mine", GOOD)
    monkeypatch.chdir(tmp_path)
    assert fs.runs.load_experiment("mine/config.py").path == path


def test_experiments_of_the_working_directory_come_before_the_packages(tmp_path, monkeypatch):
    own = fs.runs.experiments()["quickstart"]
    path = write(tmp_path / "experiments" / "quickstart", GOOD)
    write(tmp_path / "experiments" / "another", GOOD)
    monkeypatch.chdir(tmp_path)
    assert fs.runs.experiments()["quickstart"] == path != own
    assert {"another", "fashion_mnist", "quickstart"} <= set(fs.runs.experiments())
    assert fs.runs.load_experiment("quickstart").about == "What it is."


def test_two_experiments_of_the_same_folder_name_keep_their_own_classes(tmp_path):
    first = fs.runs.load_experiment(str(write(tmp_path / "a" / "same", GOOD)))
    other = GOOD.replace("rounds: int = 1", "rounds: int = 2")
    second = fs.runs.load_experiment(str(write(tmp_path / "b" / "same", other)))
    assert (from_plain(first.config, {}).rounds, from_plain(second.config, {}).rounds) == (1, 2)


def test_the_digest_of_the_source_is_that_of_its_bytes(tmp_path):
    experiment = fs.runs.load_experiment(str(write(tmp_path / "mine", "# abc\n" + GOOD)))
    before = experiment.source("long")
    assert before == {"name": "mine", "path": str(experiment.path), "preset": "long", "sha256": before["sha256"]}
    assert len(before["sha256"]) == 64
    experiment.path.write_text("# abd\n" + GOOD)
    assert experiment.source("long")["sha256"] != before["sha256"]


def test_an_unknown_name_is_told_with_those_there_are(tmp_path):
    with pytest.raises(fs.FedSimError, match=r"experiment='nope': unknown; there are .*quickstart.*; or give the path"):
        fs.runs.load_experiment("nope")
    with pytest.raises(fs.FedSimError, match="unknown"):
        fs.runs.load_experiment(str(tmp_path))  # a folder without a config.py
    write(tmp_path, "", "config.txt")
    with pytest.raises(fs.FedSimError, match="unknown"):
        fs.runs.load_experiment(str(tmp_path / "config.txt"))


FAULTS = {
    "lacks build": (GOOD.replace("def build", "def make"), r"lacks build: an experiment defines Config, PRESETS and"),
    "empty": ("", "lacks Config, PRESETS, build"),
    "a syntax error": ("import os\nx = (1,\ny = 2\n", r"config\.py, line 2: SyntaxError: '\(' was never closed"),
    "raises": (GOOD + "\n\ndef f():\n    return 1 / 0\n\n\nf()\n", r"config\.py, line 19: ZeroDivisionError: division"),
    "a missing package": (
        "\n\nimport nowhere_to_be_found\n",
        "line 3: ModuleNotFoundError: No module named 'nowhere_",
    ),
    "an error of ours": (
        "import fedjax_sim as fs\nfs.partition.iid(0)\n",
        r"line 2: ArgumentError: num_clients=0",
    ),
    "no dataclass": (GOOD + "Config = int\n", r"Config=<class 'int'> must be a dataclass"),
    "no rounds": (
        GOOD.replace("rounds", "steps"),
        r"Config has the fields \['steps', 'seed'\]: it needs rounds and seed",
    ),
    "a taken field": (
        GOOD.replace("seed: int = 0", "seed: int = 0\n    preset: int = 0"),
        r"Config's fields \['preset'\] are options of every run: rename them",
    ),
    "no default preset": (GOOD.replace('"default"', '"short"'), r'must map names to Configs, "default" among them'),
    "a preset of another kind": (GOOD.replace("Config(rounds=9)", "9"), r"PRESETS\['long'\]=9 must be a Config"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_config_is_told_with_its_path_and_what_is_wrong(fault, tmp_path):
    text, message = FAULTS[fault]
    path = write(tmp_path / "mine", text)
    with pytest.raises(fs.FedSimError, match=message) as told:
        fs.runs.load_experiment(str(path))
    assert str(told.value).startswith(str(path))
    assert "\n" not in str(told.value)


def test_a_config_that_was_mended_loads_after_it_failed(tmp_path):
    path = write(tmp_path / "mine", "x = (\n")
    with pytest.raises(fs.FedSimError, match="line 1"):
        fs.runs.load_experiment(str(path))
    path.write_text(GOOD)
    assert fs.runs.load_experiment(str(path)).presets["default"].rounds == 1


# Configs, plain


class Colour(enum.Enum):
    RED = 1
    BLUE = "b"


@dataclasses.dataclass(frozen=True)
class SGD:
    rate: float = 0.1


@dataclasses.dataclass(frozen=True)
class Adam:
    rate: float = 0.1
    folder: Path = Path("a")


@dataclasses.dataclass(frozen=True)
class Config:
    rounds: int = 3
    rate: float = 0.5
    debug: bool = False
    name: str = "x"
    lanes: int | Literal["auto"] = "auto"
    mode: Literal["a", "b"] = "a"
    colour: Colour = Colour.RED
    shade: Literal[Colour.RED, "none"] = "none"
    folder: Path | None = None
    widths: tuple[int, ...] = (1, 2)
    corner: tuple[float, Path] = (0.5, Path("p"))
    deep: tuple[int, ...] | None = None
    files: list[Path] = dataclasses.field(default_factory=list)
    places: dict[str, Path] = dataclasses.field(default_factory=dict)
    optimizer: SGD | Adam = SGD()
    schedule: tuple[SGD | Adam, ...] = ()
    inner: Adam = Adam()
    bare: tuple = ()
    derived: int = dataclasses.field(init=False, default=7)


CHANGES: list[dict[str, Any]] = [
    {},
    {"lanes": 4},
    {"mode": "b", "debug": True, "name": "RED", "rounds": 0},
    {"colour": Colour.BLUE, "shade": Colour.RED},
    {"folder": Path("/data/x y")},
    {"widths": ()},
    {"corner": (1, Path("q/r"))},
    {"deep": (3, 4)},
    {"files": [Path("a"), Path("b")], "places": {"c": Path("d")}},
    {"optimizer": SGD(0.3)},
    {"optimizer": Adam(0.3)},
    {"schedule": (Adam(0.3), SGD(0.2), Adam(folder=Path("z")))},
    {"inner": Adam(1.0, Path("b"))},
    {"rate": float("inf"), "bare": (1, 2)},
]


@pytest.mark.parametrize("changes", CHANGES, ids=repr)
def test_a_config_comes_back_from_json_as_it_was(changes):
    config = Config(**changes)
    back = from_plain(Config, json.loads(json.dumps(to_plain(config))))
    assert back == config
    assert repr(back) == repr(config)  # the kinds too: 1 == 1.0 == True


numbers = st.floats(allow_nan=False)
optimizers = st.builds(SGD, numbers) | st.builds(Adam, numbers, st.sampled_from([Path("a"), Path("b/c")]))


@given(
    st.builds(
        Config,
        rounds=st.integers(),
        rate=numbers,
        name=st.text(),
        lanes=st.integers() | st.just("auto"),
        colour=st.sampled_from(Colour),
        folder=st.none() | st.sampled_from([Path("."), Path("/a/b"), Path("None")]),
        widths=st.lists(st.integers()).map(tuple),
        deep=st.none() | st.lists(st.integers()).map(tuple),
        optimizer=optimizers,
        schedule=st.lists(optimizers, max_size=3).map(tuple),
        places=st.dictionaries(st.text(), st.sampled_from([Path("a"), Path("b/c")]), max_size=3),
    )
)
def test_any_config_comes_back_from_json_as_it_was(config):
    back = from_plain(Config, json.loads(json.dumps(to_plain(config))))
    assert repr(back) == repr(config)


def test_plain_values_read_as_they_are_written():
    @dataclasses.dataclass
    class Small:
        optimizer: Any = SGD(0.3)
        colour: Any = Colour.BLUE
        sizes: Any = (1, 2.5, None)

    assert to_plain(Small()) == {
        "optimizer": {"class": "SGD", "rate": 0.3},
        "colour": "BLUE",
        "sizes": [1, 2.5, None],
    }


@pytest.mark.parametrize("value", [len, {1: 2}, {1, 2}, b"bytes", 1j], ids=repr)
def test_a_value_that_json_cannot_hold_is_named(value):
    with pytest.raises(fs.FedSimError, match=r"^name=.* cannot be kept in config\.json\. Use numbers, strings"):
        to_plain(Config(name=(value,)))  # type: ignore[arg-type]


def test_fields_that_are_gone_are_named():
    with pytest.raises(fs.FedSimError, match=r"Config no longer has the fields \['was'\]: the experiment's code has"):
        from_plain(Config, {"rounds": 1, "was": 2})
    with pytest.raises(fs.FedSimError, match=r"Adam no longer has the fields \['beta'\]"):
        from_plain(Config, {"inner": {"class": "Adam", "rate": 0.1, "beta": 0.9}})


def test_a_field_that_is_new_has_its_default_and_one_without_is_named():
    assert from_plain(Config, {"rounds": 9}) == Config(rounds=9)

    @dataclasses.dataclass
    class Required:
        rounds: int
        seed: int

    with pytest.raises(fs.FedSimError, match=r"Required: .*'seed'.* the experiment's code has changed"):
        from_plain(Required, {"rounds": 9})
