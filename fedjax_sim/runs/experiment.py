"""Experiments: a folder with a config.py that defines `Config`, `PRESETS` and `build(config) -> Simulation`."""

import dataclasses
import enum
import hashlib
import importlib.util
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.runs.writing import Json

Config = Any
"""A config: of whatever dataclass the experiment defines."""
Hint = Any
"""A field's annotation."""


class Experiment(NamedTuple):
    """What a config.py defines.

    Attributes:
        name: its folder's name; the file's own, if that is not config.py.
        path: the config.py.
        config: its `Config`, a frozen dataclass with at least the fields `rounds` and `seed`; `eval_every` and
            `checkpoint_every`, if it has them, are those of `sim.run`.
        presets: name to `Config`.
        build: `config -> Simulation`, with its evaluation.
        about: the first line of its docstring.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.runs.load_experiment("quickstart").presets["default"].rounds
        100
    """

    name: str
    path: Path
    config: type[Config]
    presets: Mapping[str, Config]
    build: Callable[[Config], Any]
    about: str

    def source(self, preset: str) -> dict[str, Json]:
        """Where a run comes from, for its folder."""
        return {"name": self.name, "path": str(self.path), "preset": preset, "sha256": digest(self.path)}


def places() -> list[Path]:
    """Folders of experiments: the working directory's, then the package's own, installed or in its repository."""
    package = Path(__file__).parents[1]
    in_repository = (package.parent / "pyproject.toml").exists()  # else what is beside the package is not ours
    return [Path.cwd() / "experiments", (package.parent if in_repository else package) / "experiments"]


def experiments() -> dict[str, Path]:
    """Name to config.py of every experiment that can be run by its name.

    Example:
        >>> import fedjax_sim as fs
        >>> "quickstart" in fs.runs.experiments()
        True
    """
    found: dict[str, Path] = {}
    for place in places():
        for path in sorted(place.glob("*/config.py")):
            found.setdefault(path.parent.name, path)
    return dict(sorted(found.items()))


def load_experiment(name: str) -> Experiment:
    """Load an experiment.

    Args:
        name: as `experiments()` has it; or the path of a config.py, or of its folder.

    Raises:
        ArgumentError: none of that name, one that fails while it is imported, or one that lacks a part.

    Example:
        >>> import fedjax_sim as fs
        >>> experiment = fs.runs.load_experiment("quickstart")
        >>> sim = experiment.build(experiment.presets["smoke"])
    """
    path = find(name)
    module = _executed(path)
    missing = [part for part in ("Config", "PRESETS", "build") if not hasattr(module, part)]
    if missing:
        raise ArgumentError(f"{path} lacks {', '.join(missing)}: an experiment defines Config, PRESETS and build.")
    kind, presets = module.Config, module.PRESETS
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise ArgumentError(f"{path}: Config={kind!r} must be a dataclass.")
    fields = [field.name for field in dataclasses.fields(kind)]
    if not {"rounds", "seed"} <= set(fields):
        raise ArgumentError(f"{path}: Config has the fields {fields}: it needs rounds and seed among them.")
    if taken := {"preset", "run_dir"} & set(fields):
        raise ArgumentError(f"{path}: Config's fields {sorted(taken)} are options of every run: rename them.")
    if not isinstance(presets, Mapping) or "default" not in presets:
        raise ArgumentError(f'{path}: PRESETS={presets!r} must map names to Configs, "default" among them.')
    if strangers := [preset for preset, config in presets.items() if not isinstance(config, kind)]:
        raise ArgumentError(f"{path}: PRESETS[{strangers[0]!r}]={presets[strangers[0]]!r} must be a Config.")
    name = path.parent.name if path.name == "config.py" else path.stem
    about = (module.__doc__ or "").strip().partition("\n")[0]
    return Experiment(name, path, kind, presets, module.build, about)


def _executed(path: Path) -> types.ModuleType:
    """The module of a file; what goes wrong in it is told with the line."""
    spec = importlib.util.spec_from_file_location(f"experiment {path}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up their annotations
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        place = f"{path}, line {lines[-1]}" if lines else str(path)
        if isinstance(error, SyntaxError):
            place, error = f"{error.filename}, line {error.lineno}", SyntaxError(error.msg)
        raise ArgumentError(f"{place}: {type(error).__name__}: {error}") from error
    return module


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def find(name: str) -> Path:
    """The config.py that a name or a path stands for, unread."""
    known = experiments()
    if name in known:
        return known[name].resolve()
    path = Path(name)
    path = path / "config.py" if path.is_dir() else path
    if path.suffix != ".py" or not path.is_file():
        raise ArgumentError(
            f"experiment={name!r}: unknown; there are {', '.join(known)}; or give the path of a config.py."
        )
    return path.resolve()


def to_plain(config: Config) -> dict[str, Json]:
    """A config as plain values, for config.json.

    Args:
        config: a dataclass of numbers, strings, None, paths, enum members, tuples, lists, dicts with strings as keys,
            and dataclasses of these, which are kept with the name of their class.

    Raises:
        ArgumentError: a field of another kind.

    Example:
        >>> import dataclasses, pathlib
        >>> from fedjax_sim.runs.experiment import to_plain
        >>> Config = dataclasses.make_dataclass("Config", ["rounds", "folder"])
        >>> to_plain(Config(3, pathlib.Path("data")))
        {'rounds': 3, 'folder': 'data'}
    """
    return {f.name: _to_plain(f.name, getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}


def from_plain(kind: type, values: Mapping[str, Json]) -> Config:
    """The config that `to_plain` was given.

    Args:
        kind: its class.
        values: what `to_plain` returned.

    Raises:
        ArgumentError: values that are none of the class's, as its code has changed.

    Example:
        >>> import dataclasses, pathlib
        >>> from fedjax_sim.runs.experiment import from_plain
        >>> Config = dataclasses.make_dataclass("Config", [("rounds", int), ("folder", pathlib.Path)])
        >>> from_plain(Config, {"rounds": 3, "folder": "data"}).folder.name
        'data'
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name for field in dataclasses.fields(kind) if field.init}
    if unknown := sorted(values.keys() - fields):
        raise ArgumentError(f"{kind.__name__} no longer has the fields {unknown}: the experiment's code has changed.")
    made = {name: _from_plain(hints[name], value) for name, value in values.items()}
    try:
        return kind(**made)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{kind.__name__}: {error}: the experiment's code has changed.") from error


def _to_plain(name: str, value: object) -> Json:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__name__, **to_plain(value)}  # no field can be called class
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, list | tuple):
        return [_to_plain(name, each) for each in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _to_plain(name, each) for key, each in value.items()}
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ArgumentError(
        f"{name}={value!r}: a {type(value).__name__} cannot be kept in config.json. Use numbers, strings, None, paths, "
        "enums, tuples, lists, dicts with strings as keys, and dataclasses of these."
    )


def _from_plain(kind: Hint, value: Json) -> object:
    """The value of a field of that type; one that does not fit the type is left as it is."""
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        made = [(choice, _from_plain(choice, value)) for choice in arguments]
        return next((each for choice, each in made if _is_a(choice, each)), value)
    if origin is typing.Literal:
        return next((each for each in arguments if isinstance(each, enum.Enum) and each.name == value), value)
    if origin is tuple and isinstance(value, list):
        if arguments[1:] == (...,):
            arguments = arguments[:1] * len(value)
        kinds = arguments if len(arguments) == len(value) else [Any] * len(value)
        return tuple(_from_plain(k, v) for k, v in zip(kinds, value, strict=True))
    if origin is list and isinstance(value, list):
        return [_from_plain((arguments or [Any])[0], each) for each in value]
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {key: _from_plain((arguments or [Any])[-1], each) for key, each in value.items()}
    if not isinstance(kind, type):
        return value
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping) and value.get("class") == kind.__name__:
        return from_plain(kind, {name: each for name, each in value.items() if name != "class"})
    if isinstance(value, str) and issubclass(kind, enum.Enum):
        return kind.__members__.get(value, value)
    return kind(value) if isinstance(value, str) and issubclass(kind, Path) else value


def _is_a(kind: Hint, value: object) -> bool:
    origin = typing.get_origin(kind) or kind
    if origin is typing.Literal:
        return value in typing.get_args(kind)
    return not isinstance(origin, type) or isinstance(value, origin)
