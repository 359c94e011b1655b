"""The words of a command line: experiments with their fields, folders and options."""

import argparse
import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fedjax_sim.cli.start import prepare
from fedjax_sim.core.errors import ArgumentError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from fedjax_sim.runs.experiment import Experiment


def configured(command: str, words: list[str], defaults: "DataclassInstance") -> tuple["Experiment", str, Any, Any]:
    """The experiment that the words name, the preset, its config with the words' values, and the command's options."""
    import tyro

    from fedjax_sim.runs.experiment import load_experiment

    prepare()  # before the experiment's own code can start JAX
    named = bool(words) and not words[0].startswith("-")
    name, words = (words[0], words[1:]) if named else ("quickstart", words)
    experiment = load_experiment(name)
    preset = _preset(words)
    if preset not in experiment.presets:
        raise ArgumentError(f"preset={preset!r}: {experiment.name} has {', '.join(experiment.presets)}.")
    own = {field.name for field in dataclasses.fields(defaults)} & {
        f.name for f in dataclasses.fields(experiment.config)
    }
    if own:
        raise ArgumentError(
            f"{experiment.path}: Config's fields {sorted(own)} are options of `{command}`: rename them."
        )

    def both(config: Any, options: Any) -> tuple[Any, Any]:
        return config, options

    flat = tyro.conf.arg(name="")
    both.__annotations__ = {
        "config": Annotated[experiment.config, flat],
        "options": Annotated[type(defaults), flat, tyro.conf.UseAppendAction],
    }
    both.__defaults__ = (experiment.presets[preset], defaults)
    prog = f"fedjax-sim {command} {name}"
    (config, options), unknown = tyro.cli(
        both, prog=prog, description=experiment.about, args=words, use_underscores=False, return_unknown_args=True
    )
    if unknown:
        known = ", ".join([*_flags(config), *_flags(options)])
        raise ArgumentError(f"{shlex.join(unknown)}: {experiment.name} has {known}. See {prog} --help")
    return experiment, preset, config, options


def parsed(command: str, about: str | None, words: list[str], *arguments: tuple[str, str | None]) -> argparse.Namespace:
    """The words of a command without fields: a folder or several, and options."""
    parser = argparse.ArgumentParser(prog=f"fedjax-sim {command}", description=about)
    for name, meant in arguments:
        if name == "--changed":
            parser.add_argument(name, action="store_true", help=meant)
        elif name.startswith("--"):
            parser.add_argument(name, metavar=name[2:].upper(), help=meant)
        else:
            parser.add_argument(name, nargs=meant, help="the folder of a run")
    return parser.parse_args(words)


def _preset(words: list[str]) -> str:
    """The preset must be known before the flags, whose defaults it gives."""
    found = [word.removeprefix("--preset=") for word in words if word.startswith("--preset=")]
    found += [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--preset"]
    return found[-1] if found else "default"


def _flags(config: "DataclassInstance | type[DataclassInstance]", prefix: str = "--") -> Iterator[str]:
    for field in dataclasses.fields(config):
        flag, value = prefix + field.name.replace("_", "-"), getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _flags(value, f"{flag}.")
        else:
            yield flag


def whole_number(name: str, text: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise ArgumentError(f"{name}={text!r}: must be a whole number, at least 1.")
    return int(text)


def quoted(folder: Path) -> str:
    return shlex.quote(str(folder))
