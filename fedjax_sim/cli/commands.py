"""The command line, `fedjax-sim`: run an experiment, go on with a run, show and compare runs."""

import contextlib
import dataclasses
import re
import sys
import time
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fedjax_sim.cli.data import data
from fedjax_sim.cli.start import join, prepare, processes
from fedjax_sim.cli.terminal import bar, complain, draw, reader, say, told
from fedjax_sim.cli.words import configured, parsed, quoted, whole_number
from fedjax_sim.core.errors import ArgumentError, FedSimError, RunInterrupted, check_count

if TYPE_CHECKING:
    from fedjax_sim.runs.experiment import Experiment
    from fedjax_sim.runs.reading import Run

USAGE = """usage: fedjax-sim COMMAND

  run [EXPERIMENT] [--preset NAME] [--run-dir DIR] [--profile] [--FIELD VALUE ...]
                           train; EXPERIMENT is a name of `list` or the path of a config.py, quickstart if left out;
                           `run EXPERIMENT --help` shows its fields
  sweep EXPERIMENT --grid NAME=VALUE,VALUE ... [--seeds N] [--static NAME ...] [--FIELD VALUE ...]
                           train all combinations of the values, and N seeds, in one program; a table of them, and a
                           folder; `sweep EXPERIMENT --help` shows the rest
  new NAME [--from EXPERIMENT] [--FIELD VALUE ...]
                           keep an experiment, with those values, as experiments/NAME/config.py, to be edited
  list                     the experiments and their presets
  resume DIR [--rounds N]  go on with an interrupted run; with N rounds in all, extend it; --changed if its config.py is
                           another than when it was begun
                           run and resume take --coordinator HOST:PORT --num-processes N --process-id I, to train in
                           several processes; in a cluster that JAX knows they find each other
  show DIR                 what a run reached; draws its plots again
  report DIR [DIR ...]     an HTML page of one run, or of several beside each other
  data list                the data sets and pretrained models that go by a name
  data info NAME           licence, source, size, what a client is, options of fs.data.load
  data fetch NAME [--cache-dir DIR]
                           bring its files into the cache folder, and check them
  doctor                   versions, devices, extras, caches, and what is slow here: for a bug report
  version                  the version
"""


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `fedjax-sim`.

    Args:
        arguments: the words after `fedjax-sim`; None for those of this process.

    Returns:
        The exit status: 0; 2 for an error that a message tells of; 130 or 143 when stopped by Ctrl-C or SIGTERM.

    Example:
        >>> from fedjax_sim.cli import main
        >>> main(["show", "no/such/run"])  # the message goes to standard error
        2
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    words = ["version", *words[1:]] if words[:1] == ["--version"] else words
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *rest, **more: complain(f"fedjax-sim: {message}")
            return _command(words)
    except KeyboardInterrupt as stop:
        notes = getattr(stop, "__notes__", [])
        complain("\n".join([f"\nfedjax-sim: {str(stop) or 'stopped by Ctrl-C.'}", *notes]))
        return 143 if isinstance(stop, RunInterrupted) and "SIGTERM" in str(stop) else 130
    except FedSimError as error:
        complain("\n".join([f"fedjax-sim: {error}", *getattr(error, "__notes__", [])]))
        processes().leave(error, 2)
        return 2
    finally:
        with reader():
            sys.stdout.flush()


def _command(words: list[str]) -> int:
    if words[:1] in (["-h"], ["--help"]):
        say(USAGE.rstrip())
    elif words and words[0] in COMMANDS:
        COMMANDS[words[0]](words[1:])
    else:
        complain("".join(f"fedjax-sim: {word!r} is no command\n" for word in words[:1]) + USAGE.rstrip())
        return 2
    return 0


def run(words: list[str]) -> None:
    """Train an experiment from its first round on."""
    from fedjax_sim.runs.options import RunOptions

    join(words)
    experiment, preset, config, options = configured("run", words, RunOptions())
    folder = options.run_dir or Path("runs") / f"{experiment.name}-{datetime.now():%Y%m%d-%H%M%S}"
    if processes().first() and (folder / "config.json").exists():
        raise ArgumentError(f"run_dir={str(folder)!r} holds a run already: fedjax-sim resume {quoted(folder)}")
    _train(experiment, preset, config, folder, fresh=True, profile=options.profile)


def sweep(words: list[str]) -> None:
    """Train a grid of settings, and seeds, in one program."""
    from fedjax_sim.runs.options import SweepOptions

    experiment, preset, config, options = configured("sweep", words, SweepOptions())
    from fedjax_sim.runs.sweep_words import grid_of_words, score_table, write_config

    grid, static = grid_of_words(config, options.grid, options.static)
    folder = options.run_dir or Path("runs") / f"{experiment.name}-sweep-{datetime.now():%Y%m%d-%H%M%S}"
    if (folder / "config.json").exists():
        raise ArgumentError(f"run_dir={str(folder)!r} holds a run or a sweep already: name another folder.")
    check_count("rounds", config.rounds)
    say(f"{experiment.name}: {experiment.about}")
    import fedjax_sim as fs

    with bar(f"sweep of {experiment.name}") as tell, told("static=(", "On the command line: --static NAME"):
        result = fs.sweep(
            lambda **setting: experiment.build(dataclasses.replace(config, **setting)),
            grid,
            config.rounds,
            options.seeds,
            static=static,
            share_cohorts=options.share_cohorts,
            reseed=options.reseed,
            eval_every=getattr(config, "eval_every", None),
            progress=tell,
        )
    metric = options.metric or result.main_metric()
    scores = result.scores(metric, options.last)
    folder_facts = {"grid": grid, "static": list(static), "seeds": result.seeds, "share_cohorts": options.share_cohorts}
    folder_facts |= {"reseed": list(options.reseed)}
    write_config(folder, experiment.source(preset), _experiments().to_plain(config), folder_facts)
    files = result.save(folder, metric, options.last)
    draw(score_table(list(grid), metric, scores))
    for setting, seed, round in result.diverged:
        complain(f"fedjax-sim: {setting} of seed {seed} diverged in round {round + 1}.")
    if any(score.mean == score.mean for score in scores):
        say(f"best: {result.best(metric, options.mode, options.last)}")
    for path in files:
        say(str(path))
    say(
        f"{len(result.settings)} settings x {len(result.seeds)} seeds, {config.rounds} rounds: "
        f"{result.seconds:.1f} s in all, {result.compilations} compilation{'s' if result.compilations > 1 else ''}"
    )


def resume(words: list[str]) -> None:
    """Go on with a run from its newest checkpoint."""
    import fedjax_sim as fs

    changed = "run its config.py though it is another than when the run was begun"
    options = (("--rounds", "N rounds in all, to extend the run"), ("--changed", changed))
    given = parsed("resume", resume.__doc__, join(words), ("DIR", None), *options)
    folder = Path(given.DIR)
    kept = fs.runs.read(folder).config
    source = kept.get("experiment") or {}
    whole = all(source.get(name) for name in ("name", "path", "preset", "sha256")) and kept.get("rounds")
    if not whole or not kept.get("config"):
        raise ArgumentError(
            f"{folder} was not begun by `fedjax-sim run`: build the same fs.Simulation in Python, and go on from "
            f"state = sim.restore({str(folder)!r})."
        )
    total = kept["rounds"] if given.rounds is None else whole_number("rounds", given.rounds)
    done = 0
    if processes().first():
        with fs.runs.RunFolder(folder).held():  # of a run that goes on, checkpoints come and go
            done = _rounds_saved(folder)
    done = processes().told(done)
    if total < done:
        raise ArgumentError(f"rounds={total}: {folder} has {done} rounds already; N counts all of a run's rounds.")
    if total == done:
        say(f"{folder} has all its {done} rounds. For N rounds in all: fedjax-sim resume {quoted(folder)} --rounds N")
        return
    library = _experiments()
    path = library.find(source["path"] if Path(source["path"]).exists() else source["name"])
    if library.digest(path) != source["sha256"]:  # before it is run
        told = f"{path} is not what it was when {folder} was begun"
        if not given.changed:
            raise ArgumentError(f"{told}, and was not run. To run it: fedjax-sim resume {quoted(folder)} --changed")
        complain(f"fedjax-sim: {told}.")
    experiment = library.load_experiment(str(path))
    config = library.from_plain(experiment.config, kept["config"])
    _train(experiment, source["preset"], dataclasses.replace(config, rounds=total), folder, fresh=False)


def _train(
    experiment: "Experiment", preset: str, config: Any, folder: Path, fresh: bool, profile: bool = False
) -> None:
    """Train to the config's rounds; from the folder's newest checkpoint on, unless the run is fresh."""
    begin = time.perf_counter()
    check_count("rounds", config.rounds)
    say(f"{experiment.name}: {experiment.about}")  # before what takes seconds
    import fedjax_sim as fs

    run_dir = fs.runs.RunFolder(folder, experiment.source(preset), _experiments().to_plain(config))
    sim = experiment.build(config)
    if not isinstance(sim, fs.Simulation):
        raise ArgumentError(f"{experiment.path}: build(config) gave {sim!r}: it must give an fs.Simulation.")
    say(f"{sim!r}\nin {folder}")
    state = sim.init() if fresh or not processes().told(_rounds_saved(folder)) else sim.restore(folder)
    rounds = config.rounds - state.round
    sim.run(
        state,
        rounds,
        eval_every=getattr(config, "eval_every", None),
        checkpoint_every=getattr(config, "checkpoint_every", 10),
        run_dir=run_dir,
        profile=profile,
    )
    if not processes().first():
        return
    found = fs.runs.read(folder)
    _print_run(found)
    training = 0.0 if found.seconds is None or not rounds else found.seconds[-1]  # of this process
    spent = f"training {training:.1f} s of {time.perf_counter() - begin:.1f} s in all"
    say(f"{rounds} rounds: {spent}. A page of it: fedjax-sim report {quoted(folder)}")


def _rounds_saved(folder: Path) -> int:
    """Rounds of the newest checkpoint; 0 without any."""
    from fedjax_sim.engine.store.checkpoint import Checkpoints

    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    with contextlib.closing(checkpoints):
        return max(checkpoints.rounds(), default=0)


def new(words: list[str]) -> None:
    """Keep an experiment under another name, with the values that are given, to be edited."""
    from fedjax_sim.runs.options import NewOptions

    named = bool(words) and not words[0].startswith("-")
    if not named or not re.fullmatch(r"\w+", words[0]):
        raise ArgumentError(f"{(words or ['new'])[0]!r}: `fedjax-sim new NAME` needs a name of letters, digits and _.")
    place = Path("experiments") / words[0] / "config.py"
    if place.exists():
        raise ArgumentError(f"{place} is there already: choose another name.")
    source, words = _source(words[1:])
    experiment, preset, config, _ = configured("new", [source, *words], NewOptions())
    default = experiment.presets["default"]
    fields = [field.name for field in dataclasses.fields(config)]
    changed = {name: getattr(config, name) for name in fields if getattr(config, name) != getattr(default, name)}
    text = experiment.path.read_text().rstrip("\n") + "\n"
    if changed:
        values = ", ".join(f"{name}={value!r}" for name, value in changed.items())
        text += f'\n\nPRESETS["default"] = dataclasses.replace(PRESETS["default"], {values})\n'
    place.parent.mkdir(parents=True)
    place.write_text(text)
    say(f"{place}, from {source} {preset}. To run it: fedjax-sim run {place.parent.name}")


def _source(words: list[str]) -> tuple[str, list[str]]:
    """The experiment that `--from` names, and the other words."""
    if "--from" not in words[:-1]:
        return "quickstart", words
    at = words.index("--from")
    return words[at + 1], words[:at] + words[at + 2 :]


def show_list(words: list[str]) -> None:
    """The experiments."""
    from rich.table import Table
    from rich.text import Text

    parsed("list", show_list.__doc__, words)
    library = _experiments()
    table = Table("experiment", "presets", "what it is", box=None, pad_edge=False)
    for name in library.experiments():
        try:
            experiment = library.load_experiment(name)
            table.add_row(name, ", ".join(experiment.presets), Text(experiment.about))
        except ArgumentError as error:  # one that cannot be loaded hides no other
            table.add_row(name, "", Text(str(error), overflow="fold"))
    draw(table)


def show(words: list[str]) -> None:
    """What a run reached."""
    from fedjax_sim.runs import plots, read, sweep_words

    found = read(parsed("show", show.__doc__, words, ("DIR", None)).DIR)
    if found.config.get("sweep"):
        return draw(sweep_words.saved_table(found))
    _print_run(found)
    for path in plots.save_all(found):
        say(str(path))


def report(words: list[str]) -> None:
    """An HTML page of runs."""
    from fedjax_sim.runs import read
    from fedjax_sim.runs.report import write

    given = parsed("report", report.__doc__, words, ("DIR", "+"), ("--output", "the page to write"))
    runs = [read(folder) for folder in given.DIR]
    path = given.output or (runs[0].path / "report.html" if len(runs) == 1 else Path("report.html"))
    say(str(write(runs, Path(path))))


def doctor(words: list[str]) -> None:
    """Versions, devices, extras, caches, and what is slow here."""
    from rich.table import Table
    from rich.text import Text

    from fedjax_sim.cli import doctor as examination

    parsed("doctor", doctor.__doc__, words)
    prepare()
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, words_of_it in examination.findings().items():
        table.add_row(name, Text(words_of_it))
    draw(table)
    for line in examination.advice() or ["nothing that is known to be slow"]:
        say(f"- {line}")


def show_version(words: list[str]) -> None:
    """The version."""
    from importlib.metadata import version

    parsed("version", show_version.__doc__, words)
    say(version("fedjax-sim"))


def _print_run(found: "Run") -> None:
    from fedjax_sim.runs import tables

    say(str(found))
    for table in (tables.metrics_table(found), tables.profile_table(found)):
        if table.row_count:
            draw(table)


def _experiments() -> ModuleType:
    from fedjax_sim.runs import experiment

    return experiment


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "run": run,
    "sweep": sweep,
    "new": new,
    "list": show_list,
    "resume": resume,
    "show": show,
    "report": report,
    "data": data,
    "doctor": doctor,
    "version": show_version,
}
