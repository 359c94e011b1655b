"""The directive `methods-table`: what each algorithm keeps, sends and goes with, asked of the algorithms themselves.

Each is built over a tiny task, and a simulation of it is assembled, which traces what its clients read and send without
computing anything. What goes with noise, secure sums and asynchronous rounds is what can be assembled. The algorithms
are those of tests/conformance/methods.py, where every new one has a line.
"""

import ast
import inspect
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sphinx.application
from docutils import nodes
from public import Public

import fedjax_sim as fs
from fedjax_sim.core import pytree
from tests.conformance import methods

A = fs.aggregate
SIZE = 1001  # numbers of the tiny model, so that one number beside a model shows

PLAIN = {
    "afl": "fs.afl(task, sgd, domains=3)",
    "diloco": "fs.diloco(task, optax.adamw(lr))",
    "fedacg": "fs.fedacg(task, sgd)",
    "fedavg": "fs.fedavg(task, sgd)",
    "feddyn": "fs.feddyn(task, lr)",
    "fedexp": "fs.fedexp(task, sgd)",
    "fednova": "fs.fednova(task, lr)",
    "fedpa": "fs.fedpa(task, sgd, samples=10, sample_steps=5)",
    "fedprox": "fs.fedprox(task, sgd, mu=0.1)",
    "fedsam": "fs.fedsam(task, lr)",
    "fedsgd": "fs.fedsgd(task, sgd)",
    "gossip": "fs.gossip(task, sgd, fs.mixing.ring(8))",
    "mime": "fs.mime(task, momentum)",
    "mimelite": "fs.mimelite(task, momentum)",
    "moon": "fs.moon(task, sgd, features)",
    "qfedavg": "fs.qfedavg(task, lr, q=1)",
    "scaffnew": "fs.scaffnew(task, p=0.1, gamma=lr)",
    "scaffold": "fs.scaffold(task, lr)",
}
"""How it is built; others as the conformance tests do."""

NO_ROWS = {"by_round"}
"""Listed there, and a way to make algorithms of others."""


class Row(NamedTuple):
    """What is told of an algorithm; sizes in numbers, of which the model has `SIZE`."""

    name: str
    code: str
    server: int
    row: int
    down: float
    up: float
    private: str
    secure: str
    late: str


def built() -> dict[str, str]:
    """Each algorithm's name and the call that makes it."""
    tree = ast.parse(inspect.getsource(methods))
    listed = next(n.value for n in tree.body if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == "METHODS")
    calls: dict[str, str] = {}
    for key, value in zip(listed.keys, listed.values, strict=True):  # type: ignore[union-attr]
        code = re.sub(r"\b(LR|SGD|MOMENTUM)\b", lambda name: name[0].lower(), ast.unparse(value.body))  # type: ignore[union-attr]
        calls.setdefault(ast.literal_eval(key).split(",")[0], code)  # type: ignore[arg-type]
    return {name: PLAIN.get(name, code) for name, code in calls.items() if name not in NO_ROWS}


def problem() -> tuple[fs.Task, fs.FederatedData]:
    """Least squares with `SIZE` parameters, over eight clients with an example each."""

    def loss(params: Any, batch: Any, key: Any) -> Any:
        return (batch["x"] @ params["w"] + params["b"] - batch["t"]) ** 2

    task = fs.Task(lambda key: {"w": jnp.zeros(SIZE - 1), "b": jnp.zeros(())}, loss)
    whole, real = np.zeros(8, np.int32), np.zeros(8, np.float32)
    arrays = {"x": np.zeros((8, SIZE - 1), np.float32), "t": real, "domain": whole, "zero": whole}
    return task, fs.data.FederatedData(arrays, np.arange(9))


NAMES = {**vars(methods), "lr": 0.1, "sgd": optax.sgd(0.1), "momentum": optax.sgd(0.1, momentum=0.9), "optax": optax}


def made(code: str, task: fs.Task, aggregator: A.Aggregator | None = None) -> fs.Algorithm:
    """The algorithm of a call, with an aggregator where one is given."""
    call = ast.parse(code, mode="eval")
    if aggregator is not None:
        call.body.keywords.append(ast.keyword("aggregator", ast.Name("aggregator", ast.Load())))  # type: ignore[attr-defined]
    code = compile(ast.fix_missing_locations(call), "a method", "eval")  # type: ignore[assignment]
    return eval(code, {**NAMES, "fs": fs, "task": task, "aggregator": aggregator})


def refused(build: Callable[[], Any]) -> bool:
    """Whether an algorithm says that it does not go with something, or has no place for it."""
    try:
        build()
    except fs.FedSimError:
        return True
    except TypeError as error:
        if "unexpected keyword argument 'aggregator'" not in str(error):
            raise
        return True
    return False


def told(name: str, code: str) -> Row:
    """A row of the table."""
    task, data = problem()
    uniform, batching = fs.sampler.uniform(2), fs.Batching(1)
    simulation = lambda algorithm, sampler=uniform: fs.Simulation(algorithm, data, sampler, batching)
    mean = A.mean("uniform")
    clip = A.clip_by_l2(1.0)
    noisy = lambda: A.chain(clip, A.gaussian_noise(1.0), reduce=mean)
    tree = lambda: A.chain(clip, A.tree_noise(1.0, separation=3), reduce=mean)
    masked = lambda: A.chain(clip, A.quantize(8), A.secure_sum(), reduce=mean)
    parts = simulation(made(code, task)).parts
    server, row = jax.eval_shape(parts.algorithm.init, parts.model)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), server)
    received = [
        sent.downlink if phase.downlink is None else float(phase.downlink(zeros))
        for sent, phase in zip(parts.sent, parts.phases, strict=True)
    ]
    apart = fs.sampler.min_separation(2, separation=3)
    private = "yes"
    if refused(lambda: simulation(made(code, task, noisy()), fs.sampler.poisson(0.3))):
        private = "no"
        if not refused(lambda: simulation(made(code, task, tree()), apart)):
            private = "DP-FTRL"
    late = lambda: simulation(made(code, task), fs.sampler.asynchronous(3, 2))
    yes = lambda build: "no" if refused(build) else "yes"
    return Row(
        name,
        code,
        server=pytree.size(server),
        row=pytree.size(row),
        down=sum(received) / 32,
        up=sum(pytree.bits(sent.payload) for sent in parts.sent) / 32,
        private=private,
        secure=yes(lambda: simulation(made(code, task, masked()))),
        late=yes(late),
    )


def rows() -> list[Row]:
    """Every algorithm's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [told(name, code) for name, code in sorted(built().items())]


def models(numbers: float) -> str:
    """So many numbers, in models and numbers beside them."""
    whole = round(numbers / SIZE)
    rest = numbers - whole * SIZE
    if abs(rest) > 0.1 * SIZE:
        return f"{numbers / SIZE:.2f}"
    return f"{whole}" + (f" + {rest:g}" if rest > 0 else f" - {-rest:g}" if rest else "")


class MethodsTable(Public):
    """`.. methods-table::`."""

    required_arguments = 0

    def run(self) -> list[nodes.Node]:
        head = ("built as", "server state", "client state", "down", "up", "DP", "secure sum", "asynchronous")
        lines = [".. list-table::", "   :header-rows: 1", ""]
        sizes = lambda row: map(models, (row.server, row.row, row.down, row.up))
        table = [head, *((f"``{r.code}``", *sizes(r), r.private, r.secure, r.late) for r in rows())]
        for cells in table:
            lines += [f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(cells)]
        return self.parse([*lines, ""])


def setup(app: sphinx.application.Sphinx) -> dict[str, bool]:
    jax.config.update("jax_platforms", "cpu")  # nothing is computed, and nobody's GPU is taken
    app.add_directive("methods-table", MethodsTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
