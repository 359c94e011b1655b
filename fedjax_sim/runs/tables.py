"""Tables of a run for the terminal: what its metrics reached, and where the time of its rounds went."""

import re
from typing import TYPE_CHECKING

from fedjax_sim.runs.modes import lower_is_better
from fedjax_sim.runs.profile import PARTS, split

if TYPE_CHECKING:
    from rich.table import Table

    from fedjax_sim.runs.reading import Run


def metrics_table(run: "Run") -> "Table":
    """Each metric's last value and its best one."""
    from rich.table import Column, Table

    table = Table("", *(Column(each, justify="right") for each in ("last", "best", "after round")), box=None)
    for name, column in run.metrics.items():
        if column.dtype == object or re.match("round$|plan/|cohort/|population/|clock/", name):
            continue
        values = column.astype(float)
        real = values == values
        if real.any():
            best = values[real].min() if lower_is_better(name) else values[real].max()
            at = run.metrics["round"][real][list(values[real]).index(best)]
            table.add_row(name, f"{values[real][-1]:.4f}", f"{best:.4f}", str(int(at) + 1))
    return table


def profile_table(run: "Run") -> "Table":
    """The parts of a round, of a run that was profiled; without rows otherwise."""
    from rich.table import Column, Table

    table = Table("", *(Column(each, justify="right") for each in ("ms a round", "share")), "", box=None)
    if run.profile and run.profile["blocks"]:
        going, compiled = split(run.profile)
        for part, ms, share in going.rows():
            table.add_row(part, f"{ms:.2f}", f"{100 * share:.1f} %", PARTS[part])
        seconds = sum(compiled.seconds.values())
        if compiled.rounds:
            said = f"with {compiled.rounds} round{'s' if compiled.rounds > 1 else ''} in it"
            table.add_row("compilation", f"{1e3 * seconds:.0f}", "", f"all together, {said}")
    return table
