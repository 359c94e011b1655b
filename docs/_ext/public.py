"""The directives `public` and `public-table`: pages that list the package's public names by themselves.

A public name is one that a package's `__init__` or a public module hands on (`import X as X`), or that a public module
defines. It is shown once, under its shortest spelling: `fedjax_sim.fedavg`, not `fedjax_sim.algorithms.fedavg`. A page
claims names by the module that defines them; the page without arguments takes what no other page claims.
"""

import inspect
import re
import types
from typing import Any

import sphinx.application
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

import fedjax_sim

PACKAGE = fedjax_sim.__name__
CLAIMS: dict[str, tuple[str, ...]] = {
    "records": ("core.types",),
    "errors": ("core.errors",),
    "metrics": ("core.metrics",),
    "preprocessing": ("data.text.tokens", "data.text.chats", "data.preprocess", "client.augmentation"),
    "tasks": ("client", "core.convolution"),
    "data": (
        "data.federated",
        "data.selection",
        "data.store",
        "data.batching",
        "data.text.strings",
        "data.partition.measures",
    ),
    "sources": ("data.sources", "data.fetch"),
    "partition": ("data.partition",),
    "sampler": ("population",),
    "models": ("models",),
    "aggregate": ("aggregate",),
    "privacy": ("privacy",),
    "secure": ("secure",),
    "server": ("server",),
    "algorithms": ("algorithms",),
    "lora": ("lora",),
    "attacks": ("attacks",),
    "engine": ("engine", "simulation", "sweeps"),
    "runs": ("runs",),
}
"""Page to the modules whose names it shows."""


def public_names() -> dict[str, Any]:
    """Shortest spelling to object, in the order of the source."""
    spelling: dict[int, tuple[str, Any]] = {}
    seen: set[str] = set()
    level: list[tuple[str, types.ModuleType]] = [(PACKAGE, fedjax_sim)]
    while level:
        below = []
        for path, module in level:
            if module.__name__ in seen:
                continue
            seen.add(module.__name__)
            source = inspect.getsource(module)
            for name, value in vars(module).items():
                package = hasattr(module, "__path__")
                handed_on = f" as {name}\n" in source if package else f" import {name} as {name}\n" in source
                alias = package and f"\n{name} = " in source
                if name.startswith("_"):
                    continue
                if inspect.ismodule(value) and value.__name__.startswith(PACKAGE + ".") and (handed_on or alias):
                    below.append((f"{path}.{name}", value))
                made_here = getattr(value, "__module__", None) == module.__name__
                if (handed_on or made_here) and (inspect.isclass(value) or inspect.isfunction(value)):
                    spelling.setdefault(id(value), (f"{path}.{name}", value))
        level = below
    return dict(spelling.values())


def page_of(value: Any) -> str:
    """The page that claims an object; "other" where none does."""
    home = value.__module__.removeprefix(PACKAGE + ".")
    for page, modules in CLAIMS.items():
        if any(home == m or home.startswith(m + ".") for m in modules):
            return page
    return "other"


class Public(Directive):
    """`.. public:: PAGE`: the documentation of every public name of a page."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        page = self.arguments[0]
        lines: list[str] = []
        for name, value in public_names().items():
            if page_of(value) == page:
                kind = "function"
                if inspect.isclass(value):
                    kind = "exception" if issubclass(value, BaseException) else "class"
                lines += [f".. auto{kind}:: {name}", *(["   :members:"] if kind != "function" else []), ""]
        if not lines:
            lines = ["None."]
        return self.parse(lines)

    def parse(self, lines: list[str]) -> list[nodes.Node]:
        node = nodes.section()
        node.document = self.state.document
        self.state.nested_parse(StringList(lines, source="public"), self.content_offset, node)
        return node.children


class PublicTable(Public):
    """`.. public-table:: PREFIX`: names of that prefix, each with its docstring's first line."""

    def run(self) -> list[nodes.Node]:
        prefix = self.arguments[0] + "."
        names = [n for n in public_names() if n.startswith(prefix) and "." not in n.removeprefix(prefix)]
        return self.parse([".. autosummary::", "", *(f"   {name}" for name in names)])


def skip_fields(app: Any, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """NamedTuple fields are told by `Attributes:`, without "Alias for field number 0"."""
    return True if type(value).__name__ == "_tuplegetter" else None


def plurals(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Docstrings write `Cohort`s; reStructuredText wants a space, or a backslash and a space, after the backtick."""
    apart = lambda match: match[0] if match[1] is None else f"{match[1]}\\ {match[2]}"
    text = re.sub(r"``.+?``|((?::[\w:]+:)?`[^`]+`)(?=\w)(\w)|(?::[\w:]+:)?`[^`]+`", apart, "\n".join(lines), flags=re.S)
    lines[:] = text.split("\n")


def defaults(app: Any, what: str, name: str, value: Any, options: Any, signature: str | None, returns: str | None):
    """A default that is a private function is shown as `...`; what Flax adds to each module is left out."""
    if signature:
        signature = re.sub(r"<function \w+>", "...", signature)
        signature = re.sub(r", parent: [^=]*= <[^>]*_Sentinel object>, name: [^=]*= None", "", signature)
    return signature, returns


def setup(app: sphinx.application.Sphinx) -> dict[str, bool]:
    app.setup_extension("sphinx.ext.autodoc")
    app.add_directive("public", Public)
    app.add_directive("public-table", PublicTable)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-docstring", plurals)
    app.connect("autodoc-process-signature", defaults)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
