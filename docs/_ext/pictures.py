"""The directive `picture`: what the front page's own lines make, drawn when the pages are built, light and dark.

`docs/index.md`'s first block of Python is run once; what it prints must be what the page says, else a warning fails the
build. Of its variables a learning curve and the partition are drawn, and a report of the run is photographed
where there is a Chromium. Files go to docs/pictures/, which is not kept.
"""

import contextlib
import io
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import sphinx.application
from docutils import nodes
from docutils.parsers.rst import Directive, directives
from sphinx.util import logging

DOCS = Path(__file__).resolve().parents[1]
FOLDER = DOCS / "pictures"
BLOCK = re.compile(r"^```python\n(.*?)^```\n.*?^```text\n(.*?)^```", re.M | re.S)
DARK = {
    "INK": "#e4e7eb",
    "GRID": "#343a42",
    "FILL": "#4aa8e0",
    "COLOURS": ("#4aa8e0", "#f2803a", "#2fc49a", "#e39bc4", "#f0b43c", "#8fd0f5", "#e4e7eb"),
    "BLUES": ("#1d2f40", "#3f8fc4", "#d3e6f4"),
}
"""What takes the place of the plots' colours on a dark page."""

TOLERANCE = 0.05
"""Of printed numbers: machines round differently, and training amplifies it."""

logger = logging.getLogger(__name__)


def program(page: str) -> tuple[str, str]:
    """The front page's lines, and what it says they print."""
    found = BLOCK.search(page)
    assert found, "index.md has a block of Python, and one of text below it"
    return found[1], found[2]


def played(code: str) -> tuple[dict[str, Any], str]:
    """The variables of a program, and what it printed; how far it is, which slow machines say, is no part of that."""
    from fedjax_sim.runs import progress

    progress.QUIET["lines"] = 86_400.0
    out, variables = io.StringIO(), {"__name__": "front_page"}
    with contextlib.redirect_stdout(out):
        exec(compile(code, "docs/index.md", "exec"), variables)
    return variables, out.getvalue()


def differs(said: str, printed: str) -> bool:
    """Whether two texts differ by more than roundings do in their numbers, or in anything else."""
    number = re.compile(r"\d+\.\d+")
    pairs = zip(number.findall(said), number.findall(printed), strict=False)
    return number.sub("#", said).split() != number.sub("#", printed).split() or any(
        abs(float(a) - float(b)) > TOLERANCE for a, b in pairs
    )


@contextlib.contextmanager
def dark() -> Iterator[None]:
    """The plots' modules with colours for a dark page."""
    from fedjax_sim.runs import client_plots, drawing, plots

    before = [(module, name, getattr(module, name)) for module in (drawing, plots, client_plots) for name in DARK
              if hasattr(module, name)]  # fmt: skip
    for module, name, _ in before:
        setattr(module, name, DARK[name])
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def draw(variables: dict[str, Any]) -> None:
    """The curve and the partition, light and dark, as vectors."""
    import fedjax_sim as fs

    for mode, colours in (("light", contextlib.nullcontext()), ("dark", dark())):
        with colours:
            names = [name for name in fs.plots.main_names([variables["history"]]) if name == "client/accuracy"]
            figures = {
                "curve": fs.plots.curves(variables["history"], names or None),
                "partition": fs.plots.partition(variables["clients"]),
            }
        for name, figure in figures.items():
            _ink(figure, "#e4e7eb" if mode == "dark" else None)
            figure.savefig(FOLDER / f"{name}-{mode}.svg", transparent=True)


def _ink(figure: Any, colour: str | None) -> None:
    """Words that have no colour of their own, in the page's."""
    if colour is None:
        return
    for axes in figure.axes:
        for word in (axes.xaxis.label, axes.yaxis.label, *axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels()):
            word.set_color(colour)
        axes.tick_params(colors=colour)


def photograph(variables: dict[str, Any]) -> None:
    """The report of a short run, light and dark, where there is a Chromium."""
    import fedjax_sim as fs

    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        logger.info("no Chromium: the pages have no picture of a report")
        return
    sim = variables["sim"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with contextlib.redirect_stdout(io.StringIO()):
            sim.run(sim.init(), rounds=variables["state"].round, run_dir=folder / "fedavg-on-digits")
        page = fs.runs.report.write([fs.runs.read(folder / "fedavg-on-digits")], folder / "report.html")
        for mode, scheme in (("light", "1"), ("dark", "0")):
            options = "headless no-sandbox disable-gpu no-first-run hide-scrollbars virtual-time-budget=3000"
            options += f" window-size=1200,950 blink-settings=preferredColorScheme={scheme}"
            command = [browser, *(f"--{option}" for option in options.split()), f"--user-data-dir={folder / 'profile'}"]
            command += [f"--screenshot={FOLDER / f'report-{mode}.png'}", page.as_uri()]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            if done.returncode:
                logger.info("Chromium took no picture of a report: %s", done.stderr[-500:])
                return


def make(app: sphinx.application.Sphinx) -> None:
    """Run the front page's lines, compare what they print, and draw."""
    if app.builder.name != "html":
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    code, said = program((DOCS / "index.md").read_text())
    variables, printed = played(code)
    if differs(said, printed):
        logger.warning("index.md says that its lines print\n%s\nand they print\n%s", said, printed)
    draw(variables)
    photograph(variables)


class Picture(Directive):
    """`.. picture:: NAME` with `:alt:`: two images, of which a page shows the one for its colours."""

    required_arguments = 1
    option_spec: ClassVar = {"alt": directives.unchanged_required, "width": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        found = []
        for mode in ("light", "dark"):
            paths = sorted(FOLDER.glob(f"{self.arguments[0]}-{mode}.*"))
            for path in paths:
                uri = f"/pictures/{path.name}"
                image = nodes.image(uri=uri, alt=self.options["alt"], classes=[f"only-{mode}"])
                if "width" in self.options:
                    image["width"] = self.options["width"]
                found.append(image)
        return [nodes.paragraph("", "", *found)] if found else []


def setup(app: sphinx.application.Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", make)
    app.add_directive("picture", Picture)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
