"""The house of docs/design.md: who may import whom, and how large a module may be. Read with `ast`, never run."""

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "fedjax_sim"
ROOT = Path(__file__).parents[1] / PACKAGE
FLOORS = {
    "core": 0,
    "secure": 0.5,  # sums words, and knows of no chain
    **dict.fromkeys(["data", "population", "client", "aggregate", "privacy", "server"], 1),
    "models": 1.5,  # pretrained ones are fetched as data are
    **dict.fromkeys(["algorithms", "runs"], 2),
    **dict.fromkeys(["attacks", "lora"], 2.5),
    "engine": 3,
    "simulation": 3.3,
    "sweeps": 3.6,
    "": 4.5,  # the public names: the command line may use them, no other part
    "cli": 5,
}
ROOMS = {"engine": {"device": 0, "plan": 1, "store": 1, "parts": 2, "round": 3}}
"""The floors of a folder's own folders and modules; one that is not named is above all."""
EVERYWHERE = {*sys.stdlib_module_names, PACKAGE, "jax", "flax", "optax", "numpy"}
LONGEST = 400
LARGEST = 60


class Import(NamedTuple):
    target: str  # dotted, from the package or outside of it
    line: int
    lazy: bool  # inside a function, or for type checkers alone


def read_tree(root):
    """Module name to (is an `__init__`, source) for every file under a package's folder."""
    modules = {}
    for path in sorted(root.rglob("*.py")):
        parts = [root.name, *path.relative_to(root).with_suffix("").parts]
        package = parts[-1] == "__init__"
        modules[".".join(parts[:-1] if package else parts)] = (package, path.read_text())
    return modules


def imports_of(name, modules):
    """Every import of a module; `from package import module` is an import of the module."""
    package, source = modules[name]

    def visit(node, lazy):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, lazy)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = name.split(".")[: None if package else -1]
                here = here[: len(here) - node.level + 1]
                base = ".".join([*here, *filter(None, [base])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield Import(inner if inner in modules else base, node.lineno, lazy)
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        lazy = lazy or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for child in ast.iter_child_nodes(node):
            yield from visit(child, lazy)

    return list(visit(ast.parse(source), False))


def part_of(module):
    """The folder or module on the first level under the package."""
    return [*module.split("."), ""][1]


def inside(target):
    return target.split(".")[0] == PACKAGE


def broken_floors(modules):
    """Imports that do not go to a lower floor or stay in their folder."""
    for name in modules:
        part = part_of(name)
        if part not in FLOORS:
            yield f"{name}: no floor for {part!r}; give it one in docs/design.md and here"
            continue
        for target, line, _ in imports_of(name, modules):
            other = part_of(target)
            if inside(target) and other != part and FLOORS.get(other, 99) >= FLOORS[part]:
                yield f"{name}:{line} imports {target}, which is not on a lower floor"


def broken_rooms(modules):
    """Imports within a folder that do not go to one of its lower rooms, or stay in theirs."""
    for name in modules:
        part, room = [*name.split("."), "", ""][1:3]
        for target, line, _ in imports_of(name, modules) if part in ROOMS else []:
            if part_of(target) != part:
                continue
            other = [*target.split("."), ""][2]
            rooms = ROOMS[part]
            if other != room and rooms.get(other, 99) >= rooms.get(room, 99):
                yield f"{name}:{line} imports {target}, which is not in a lower room"


def circles(modules):
    """Circles among modules; an `__init__` hands on names, so that importing it is importing all it names."""
    graph = {name: {t.target for t in imports_of(name, modules) if inside(t.target)} for name in modules}
    inits = {name for name, (package, _) in modules.items() if package}
    for name in set(modules) - inits:
        folder = name
        while folder := folder.rpartition(".")[0]:
            if folder in graph[name] and folder != PACKAGE:  # that one is a matter of floors
                yield f"{name} imports {folder}, whose names it makes: a circle"
    try:
        TopologicalSorter({n: graph[n] - {n} for n in set(modules) - inits}).prepare()
    except CycleError as error:
        yield "a circle: " + " -> ".join(error.args[1])


def heavy_imports(modules):
    """Packages imported at module level, below the fourth floor, that not every user has or needs."""
    for name in modules:
        if FLOORS.get(part_of(name), 0) < 4:
            for target, line, lazy in imports_of(name, modules):
                if not lazy and target.split(".")[0] not in EVERYWHERE:
                    yield f"{name}:{line} imports {target}: do it inside the function that needs it"


def busy_inits(modules):
    """An `__init__` holds a docstring, imports and other names of what it imported, and no more."""
    for name, (package, source) in modules.items():
        for i, node in enumerate(ast.parse(source).body if package else []):
            docstring = i == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            alias = isinstance(node, ast.Assign) and isinstance(node.value, ast.Name)
            if not (docstring or alias or isinstance(node, ast.Import | ast.ImportFrom)):
                yield f"{name}.__init__:{node.lineno} does more than hand on names"


def long_modules(modules):
    for name, (_, source) in modules.items():
        if source.count("\n") > LONGEST:
            yield f"{name} has {source.count(chr(10))} lines, over {LONGEST}: split it"


def long_functions(modules):
    """Functions that do not fit a screen, their docstrings aside."""
    for name, (_, source) in modules.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                told = ast.get_docstring(node) is not None
                lines = _lines(node) - (_lines(first) if told else 0)
                if lines > LARGEST:
                    yield f"{name}.{node.name} has {lines} lines, over {LARGEST}: split it"


def _lines(node):
    return (node.end_lineno or node.lineno) - node.lineno + 1


def private_members(modules):
    """Private members of our objects that another module reads; a NamedTuple's `_replace` and `_fields` are none."""
    own = {name: set(_made_privately(ast.parse(source))) for name, (_, source) in modules.items()}
    ours = set().union(*own.values()) - {"_replace", "_fields"}
    for name, (_, source) in modules.items():
        for node in ast.walk(ast.parse(source)):
            if (
                isinstance(node, ast.Attribute)
                and node.attr in ours - own[name] - {"_replace", "_fields"}
                and not _of_self(node)
            ):
                yield f"{name}:{node.lineno} reads {ast.unparse(node)}, which is private"


def _made_privately(tree):
    """Names with an underscore that a module's classes define or set, and its functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and re.match(r"_[a-z]", node.name):
            yield node.name
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr) and _of_self(node):
            yield node.attr


def _of_self(node):
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


RULES = [broken_floors, broken_rooms, circles, heavy_imports, busy_inits, long_modules, long_functions, private_members]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_stands(rule):
    modules = read_tree(ROOT)
    assert len(modules) > 30
    assert list(rule(modules)) == []


GOOD = {
    "__init__": '"""Names."""\nfrom fedjax_sim.data import plan as plan',
    "core/__init__": "from fedjax_sim.core import rng\nrandom = rng",
    "core/rng": "import enum\nimport numpy as np",
    "core/errors": "from . import rng\nfrom .rng import key",
    "data/__init__": "from fedjax_sim.data.plan import Plan as Plan",
    "data/plan": "import jax.numpy as jnp\nfrom fedjax_sim.core import rng, errors",
    "data/load": "from .plan import Plan\ndef load():\n    import sklearn",
    "server": "import optax\nfrom fedjax_sim.core.rng import key",
    "algorithms/fedavg": "from fedjax_sim.data import Plan\nimport fedjax_sim.server",
    "cli": "import tyro\nimport fedjax_sim as fs",
}


def made_tree(folder, changes):
    for name, source in {**GOOD, **changes}.items():
        path = folder / PACKAGE / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source + "\n")
    return read_tree(folder / PACKAGE)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rules_accept_a_good_house(rule, tmp_path):
    assert list(rule(made_tree(tmp_path, {}))) == []


@pytest.mark.parametrize(
    "rule, changes, message",
    [
        (broken_floors, {"core/rng": "from fedjax_sim.data import plan"}, "core.rng:1 .*data.plan"),
        (broken_floors, {"core/rng": "from ..data.plan import Plan"}, "core.rng:1 .*data.plan"),
        (broken_floors, {"core/rng": "def f():\n  import fedjax_sim.server"}, "core.rng:2 .*server"),
        (broken_floors, {"data/plan": "import fedjax_sim.server"}, "data.plan:1 .*server"),
        (broken_floors, {"data/plan": "from .. import server"}, "data.plan:1 .*server"),
        (broken_floors, {"data/plan": "import fedjax_sim as fs"}, "data.plan:1 .*fedjax_sim,"),
        (broken_floors, {"data/plan": "from fedjax_sim import Plan"}, "data.plan:1 .*fedjax_sim,"),
        (broken_floors, {"attic/box": ""}, "no floor for 'attic'"),
        (broken_floors, {"server": "from fedjax_sim.attic import x"}, "server:1 .*attic"),
        (broken_rooms, {"engine/device/mesh": "from fedjax_sim.engine.plan import words"}, "device.mesh:1 .*plan"),
        (broken_rooms, {"engine/plan/words": "def f():\n  from ..store import rows"}, "plan.words:2 .*store"),
        (broken_rooms, {"engine/parts": "from fedjax_sim.engine.round import sums"}, "parts:1 .*round"),
        (circles, {"core/rng": "from fedjax_sim.core import errors"}, "circle.*core"),
        (circles, {"core/rng": "def f():\n  from . import errors"}, "circle.*core"),
        (circles, {"data/plan": "from fedjax_sim.data import Plan"}, "plan imports fedjax_sim.data,"),
        (heavy_imports, {"data/load": "import sklearn"}, "data.load:1 imports sklearn"),
        (heavy_imports, {"core/rng": "if True:\n  from pandas import x"}, "core.rng:2 .*pandas"),
        (heavy_imports, {"core/rng": "class A:\n  import scipy.stats"}, "core.rng:2 .*scipy.stats"),
        (busy_inits, {"core/__init__": "x = 1"}, "core.__init__:1"),
        (busy_inits, {"core/__init__": "import jax\n'late'"}, "core.__init__:2"),
        (private_members, {"server": "def _x(self):\n  self._y = 1", "core/rng": "a._y"}, "rng:1 reads a._y"),
        (long_functions, {"core/rng": "def f():\n" + " 1\n" * LARGEST}, f"core.rng.f has {LARGEST + 1} lines"),
        (long_modules, {"core/rng": "\n" * LONGEST}, f"core.rng has {LONGEST + 1} lines"),
    ],
)  # fmt: skip
def test_the_rules_see_a_broken_house(rule, changes, message, tmp_path):
    found = list(rule(made_tree(tmp_path, changes)))
    assert any(re.search(message, each) for each in found), found
