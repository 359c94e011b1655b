"""The directive `which`: a table of the algorithms, samplers, transforms or reducers, read from the objects themselves.

What is public is listed, in the order of its module; what a row says is its docstring's first line and what the object
that the function makes declares: a sampler its accounting event, a transform its facts, an algorithm its client's row.
"""

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
import sphinx.application
from docutils import nodes
from public import Public, plurals, public_names
from sphinx.util import logging

import fedjax_sim as fs

fs.use_cpu_cores()  # before JAX starts: the front page's lines run in this process
A = fs.aggregate
DATA = fs.data.FederatedData(
    {"x": np.ones((8, 2), np.float32), "y": np.arange(8) % 2, "domain": np.arange(8) // 4}, offsets=[0, 2, 4, 6, 8]
)
TASK = fs.classification(fs.models.LogisticRegression(2), DATA.client(0))
SGD = optax.sgd(0.1)

SHAPES = {"delta": jax.ShapeDtypeStruct((4, 4), np.float32)}
logger = logging.getLogger(__name__)

ARGUMENTS: dict[str, Any] = {
    "task": TASK,
    "client_optimizer": SGD,
    "server_optimizer": SGD,
    "optimizer": SGD,
    "inner": optax.adamw(0.1),
    "features": lambda params, batch, key: batch["x"],
    **dict.fromkeys(("client_lr", "inner_lr", "gamma", "alpha", "beta"), 0.01),
    "mixing": fs.mixing.ring(4),
    "blocks": 2,
    "chances": np.ones(4),
    "transform": A.sign(),
    "part": "delta",
    "then": A.median(),
    "server_data": {"x": np.ones((1, 2), np.float32), "y": np.zeros(1, np.int32)},
    "bound": "median",
    "cohorts": [[0, 1], [2, 3]],
    "cohort_size": 2,
    "candidates": 3,
    "domains": 2,
    "sample_steps": 1,
    "samples": 2,
    "rounds": 4,
    "bands": 2,
    "levels": 4,
    "steps": 1,
    "concurrency": 3,
    "separation": 2,
    "rank": 1,
    "clip_norm": 1.0,
    "clip_norms": 1.0,
    "multiplier": 1.0,
}
"""What required arguments of these names get; every other is a half, or one if it counts something."""

COUNTS = ("f", "s", "draws", "chosen", "buffer", "k")


class Row(typing.NamedTuple):
    """A line of a table: the function, and a cell a column."""

    function: Callable[..., Any]
    cells: tuple[str, ...]


def makers(module: types.ModuleType, kind: type) -> list[Callable[..., Any]]:
    """The functions that a module hands on and that make such an object from arguments of their own."""
    found = [value for value in vars(module).values() if inspect.isfunction(value)]
    found = [each for each in found if typing.get_type_hints(each).get("return") is kind]
    return found if kind is not fs.Algorithm else [each for each in found if _first(each) is fs.Task]


def _first(function: Callable[..., Any]) -> object:
    """The annotation of a function's first argument: what changes an algorithm into another is no algorithm."""
    hints = typing.get_type_hints(function)
    return next((hint for name, hint in hints.items() if name != "return"), None)


def made(function: Callable[..., Any], **more: Any) -> Any:
    """What a function makes of plain arguments."""
    needed = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    values = {name: ARGUMENTS.get(name, 1 if name in COUNTS else 0.5) for name in needed}
    return function(**values | more)


def _allowed(build: Callable[[], object]) -> bool:
    try:
        build()
    except fs.FedSimError:
        return False
    return True


def _numbers(shapes: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


def algorithm(function: Callable[..., Any]) -> tuple[str, ...]:
    """What an algorithm says of itself."""
    params = jax.eval_shape(TASK.init, jax.random.key(0))
    private = A.chain(A.clip_by_l2(1.0), A.gaussian_noise(1.0), reduce=A.mean("uniform"))
    made_so = made(function)
    _, row = jax.eval_shape(made_so.init, params)
    kept = _numbers(row) / _numbers(params)
    passes = made_so.passes()
    noisy = "aggregator" in inspect.signature(function).parameters and _allowed(
        lambda: fs.Simulation(made(function, aggregator=private), DATA, fs.sampler.poisson(0.5), fs.Batching(1))
    )
    whole = round(kept)  # a step's number is no model
    keeps = f"{whole} model{'s' if whole > 1 else ''}" if whole else "a number" if kept else "nothing"
    weight = "each alike" if passes[-1].aggregator.reducer.weight == "uniform" else "by examples"
    return keeps, str(len(passes)), weight, _word(noisy)


def sampler(function: Callable[..., Any]) -> tuple[str, ...]:
    """What a sampler says of itself."""
    made_so = made(function)
    event = "none" if made_so.event is None else made_so.event(4).kind.replace("_", " ")
    ahead = "no, it looks at losses" if made_so.choose else "no, it looks at metrics" if made_so.observe else "yes"
    return event, _word(made_so.event is not None), ahead, _word(made_so.repeats)


def transform(function: Callable[..., Any]) -> tuple[str, ...]:
    """What a transform says of itself, behind a clip."""
    made_so, start = made(function), A.Facts(clipped=True, bound="1")
    whole = start._replace(integers=True, largest=8.0, bits=8.0)
    before = next(each for each in (start, whole, A.Facts()) if _allowed(lambda each=each: made_so.facts(each)))
    facts = made_so.facts(before)
    noise = ", ".join(dict.fromkeys(f"{each.where} {each.kind.replace('_', ' ')}" for each in facts.noise))
    sends = f"{facts.bits:.3g} bit{'s' if facts.bits > 1 else ''} a number{', whole' if facts.integers else ''}"
    keeps = _numbers(made_so.init(SHAPES)[1]) > 0
    return sends, _word(facts.clipped), noise or "none", _word(keeps), _word(not facts.linear)


def reducer(function: Callable[..., Any]) -> tuple[str, ...]:
    """What a reducer says of itself."""
    made_so = made(function)
    noisy = _allowed(
        lambda: A.chain(A.clip_by_l2(1.0), A.gaussian_noise(1.0), reduce=made_so._replace(weight="uniform"))
    )
    needs = "the sum" if made_so.linear else "a coordinate of all" if made_so.by_coordinate else "all messages"
    return needs, _word(_numbers(made_so.init(SHAPES)) > 0), _word(noisy)


def _word(value: bool) -> str:
    return "yes" if value else "no"


class Table(typing.NamedTuple):
    """The functions of a module that make such an object, what each says, and the headings of that."""

    module: types.ModuleType
    kind: type
    tell: Callable[[Callable[..., Any]], tuple[str, ...]]
    headings: tuple[str, ...]

    def rows(self) -> Iterator[Row]:
        """A row for each; dashes for one that plain arguments do not make."""
        for function in makers(self.module, self.kind):
            try:
                cells = self.tell(function)
            except (fs.FedSimError, TypeError, ValueError) as error:
                logger.info("%s is not made by plain arguments: %s", function.__name__, error)
                cells = ("–",) * len(self.headings)
            yield Row(function, cells)


NOISE = "under central noise"
TABLES = {
    "algorithms": Table(fs.algorithms, fs.Algorithm, algorithm, ("a client keeps", "passes", "clients count", NOISE)),
    "samplers": Table(
        fs.sampler, fs.sampler.Sampler, sampler, ("accounting event", NOISE, "planned ahead", "a client twice")
    ),
    "transforms": Table(
        A, A.Transform, transform, ("sends", "bounded", "noise", "clients remember", "decoded one by one")
    ),
    "reducers": Table(A, A.Reducer, reducer, ("needs", "remembers", NOISE)),
}


def about(function: Callable[..., Any]) -> str:
    """The first line of a docstring, as reStructuredText."""
    lines = [(inspect.getdoc(function) or "").partition("\n")[0]]
    plurals(None, "", "", None, None, lines)
    return lines[0]


class Which(Public):
    """`.. which:: algorithms`: the table of that name."""

    def run(self) -> list[nodes.Node]:
        table = TABLES[self.arguments[0]]
        spelling = {id(value): name for name, value in public_names().items()}
        lines = [".. list-table::", "   :header-rows: 1", "   :class: which", ""]
        for cells in [("name", "what it is", *table.headings), *map(self.cells(spelling), table.rows())]:
            lines += [f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(cells)]
        return self.parse(lines)

    def cells(self, spelling: dict[int, str]) -> Callable[[Row], tuple[str, ...]]:
        def of(row: Row) -> tuple[str, ...]:
            name = row.function.__name__
            return f":py:obj:`{name} <{spelling[id(row.function)]}>`", about(row.function), *row.cells

        return of


def setup(app: sphinx.application.Sphinx) -> dict[str, bool]:
    app.add_directive("which", Which)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
