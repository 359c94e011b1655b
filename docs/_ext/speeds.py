"""The directive `speeds`: seconds a round beside other frameworks, read from the tables of docs/benchmarks.md.

`.. speeds::` gives a table of all frameworks; `.. speeds:: pfl` every configuration of that one, and ours beside it.
"""

import re
from pathlib import Path

import sphinx.application
from docutils import nodes
from public import Public

PAGE = Path(__file__).resolve().parents[1] / "benchmarks.md"
OURS = "fedjax_sim"
NAMES = {OURS: "fedjax-sim", "fedjax": "FedJAX", "drjax": "DrJAX", "pfl": "pfl-research", "flwr": "Flower"}
HANDS = {"plain JAX": "a loop by hand, JAX", "plain PyTorch": "a loop by hand, PyTorch"}


def measured(text: str) -> dict[str, dict[str, float]]:
    """Work to configuration to seconds a round, as the page has them."""
    works: dict[str, dict[str, float]] = {}
    between = text.partition("<!-- peers: begin -->")[2].partition("<!-- peers: end -->")[0]
    for table in re.findall(r"(?:^\|.*\|\n)+", between, re.M):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        works[head[0]] = {row[0]: float(row[head.index("s/round")]) for row in rows}
    return works


def fastest(work: dict[str, float], name: str) -> float | None:
    """The least seconds of any configuration of a framework."""
    found = [seconds for peer, seconds in work.items() if peer.partition(",")[0] == name]
    return min(found, default=None)


def shown(seconds: float | None, ours: float) -> str:
    """Seconds as people read them, and how many times ours that is."""
    if seconds is None:
        return "–"
    text = f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
    return text if seconds == ours else f"{text} ({seconds / ours:.2g} ×)"


class Speeds(Public):
    """The table of all, or of the named framework."""

    required_arguments, optional_arguments = 0, 1

    def run(self) -> list[nodes.Node]:
        self.state.document.settings.env.note_dependency(str(PAGE))
        works = measured(PAGE.read_text())
        if self.arguments:
            works = {work: each for work, each in works.items() if fastest(each, self.arguments[0]) is not None}
            peers = dict.fromkeys(
                p for each in works.values() for p in each if p.partition(",")[0] == self.arguments[0]
            )
            rows = {OURS: OURS, **{peer: peer for peer in peers}}
        else:
            rows = {**NAMES, **HANDS}
        works = dict(sorted(works.items(), key=lambda item: (not item[0].startswith("W"), item[0])))
        lines = [".. list-table::", "   :header-rows: 1", "   :class: speeds", ""]
        cells = [["", *works]]
        for name in rows:
            mine = [(fastest(each, name) if "," not in name else each.get(name), each[OURS]) for each in works.values()]
            words = NAMES.get(name.partition(",")[0], "") + "".join(name.partition(",")[1:])
            cells.append([HANDS.get(name, words), *(shown(*each) for each in mine)])
        for row in cells:
            lines += [f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(row)]
        return self.parse(lines)


def setup(app: sphinx.application.Sphinx) -> dict[str, bool]:
    app.add_directive("speeds", Speeds)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
