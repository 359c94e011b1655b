"""What a sweep found: a table of settings and seeds, scores with errors, the best setting, pictures."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.core import html
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.runs.modes import Mode, mode_of
from fedjax_sim.runs.spread import SAID, half_width
from fedjax_sim.sweeps import tables
from fedjax_sim.sweeps.grid import Setting, text

_TRAINING = ("client/", "aggregate/", "cohort/")


class Member(NamedTuple):
    """One setting and seed of a sweep.

    Attributes:
        columns: name to [rounds, ...]: what an `fs.History` of it would hold; NaN from the round on in which it
            diverged, and in rounds without an evaluation.
        params: its last model.
        diverged: the round of its first update that was not finite, under `on_nonfinite="raise"`; or None.
        evaluated: rounds that were evaluated.

    Example:
        >>> import numpy as np
        >>> from fedjax_sim.sweeps import Member
        >>> Member({"round": np.arange(2), "client/loss": np.array([2.0, 1.0])}, params=0.5).diverged is None
        True
    """

    columns: dict[str, np.ndarray]
    params: PyTree
    diverged: int | None = None
    evaluated: tuple[int, ...] = ()

    def score(self, name: str, last: int = 1) -> float:
        """A metric's mean over the last `last` rounds that have it, NaN for a member that had diverged by then."""
        if name not in self.columns:
            return np.nan
        column = self.columns[name]
        if column.ndim != 1:
            raise ArgumentError(f"metric={name!r} is no number a round: it has shape {column.shape[1:]}.")
        if self.diverged is not None:
            return np.nan
        values = column[~np.isnan(column)][-last:] if column.dtype.kind == "f" else column[-last:]
        return float(values.mean()) if len(values) else np.nan


class Score(NamedTuple):
    """A setting's metric over seeds.

    Attributes:
        setting: the hyperparameters.
        mean: the seeds' mean; NaN if one of them diverged.
        standard_error: the sample standard deviation over seeds by the root of their number; NaN of one seed.
        values: [Z] a value a seed.
        diverged: how many seeds diverged.

    Example:
        >>> import numpy as np
        >>> from fedjax_sim.sweeps import Score
        >>> print(Score({"lr": 0.1}, 0.5, 0.1, np.array([0.4, 0.6])))
        lr=0.1: 0.5 ± 1.3
    """

    setting: Setting
    mean: float
    standard_error: float
    values: np.ndarray
    diverged: int = 0

    @property
    def interval(self) -> float:
        """Half of the 95 % t-interval of the mean over seeds, what tables and plots show; NaN of one seed."""
        return float(half_width(self.values))

    def __str__(self) -> str:
        error = "" if np.isnan(self.interval) else f" ± {self.interval:.2g}"
        return f"{text(self.setting)}: {self.mean:.4g}{error}" + (
            f" ({self.diverged} diverged)" if self.diverged else ""
        )


class SweepResult:
    """A sweep's members, by setting and seed; made by `fs.sweep`.

    Attributes:
        settings: [S] dicts of hyperparameters, in the grid's order.
        seeds: [Z].
        members: [S][Z] `Member`s.
        compilations: how many programs all rounds of all members needed: one a group, unless a Poisson draw exceeded
            its capacity.
        groups: sets of settings that differ in numbers alone.
        seconds: how long the sweep took, compilation included.

    Example:
        >>> import numpy as np
        >>> from fedjax_sim.sweeps import Member, SweepResult
        >>> def member(*losses):
        ...     return Member({"round": np.arange(2), "client/loss": np.array(losses)}, params=None)
        >>> members = [[member(2.0, 1.0), member(2.0, 1.2)], [member(2.0, 0.5), member(2.0, 0.7)]]
        >>> result = SweepResult([{"lr": 0.1}, {"lr": 0.2}], [0, 1], members)
        >>> print(result.best("client/loss"))
        lr=0.2: 0.6 ± 1.3
        >>> print(result.to_markdown(["client/loss"]))
        | lr | client/loss |
        | --- | ---: |
        | 0.1 | 1.1 ± 1.3 |
        | 0.2 | 0.6 ± 1.3 |
        <BLANKLINE>
        Mean ± 95 % t-interval over 2 seeds.
        <BLANKLINE>
    """

    def __init__(
        self,
        settings: list[Setting],
        seeds: list[int],
        members: list[list[Member]],
        compilations: int = 0,
        groups: int = 1,
        seconds: float = 0.0,
    ):
        self.settings, self.seeds, self.members = settings, seeds, members
        self.compilations, self.groups, self.seconds = compilations, groups, seconds

    @property
    def names(self) -> list[str]:
        """The metrics, "round" left out; evaluated ones last."""
        found = dict.fromkeys(name for row in self.members for member in row for name in member.columns)
        return [name for name in found if name != "round"]

    @property
    def diverged(self) -> list[tuple[Setting, int, int]]:
        """(setting, seed, round) of each member with an update that was not finite."""
        return [
            (setting, seed, member.diverged)
            for setting, row in zip(self.settings, self.members, strict=True)
            for seed, member in zip(self.seeds, row, strict=True)
            if member.diverged is not None
        ]

    def __getitem__(self, name: str) -> np.ndarray:
        """[S, Z, rounds, ...] a metric of all members."""
        self._check_name(name)
        for row in self.members:
            if name not in row[0].columns:
                raise ArgumentError(f"{name!r} is not a metric of all settings: use the members' own columns.")
        return np.stack([[member.columns[name] for member in row] for row in self.members])

    def table(self) -> dict[str, list[Any]]:
        """Columns with an entry a setting and seed: hyperparameters, `seed`, `diverged`, and metrics by round."""
        rows = [
            (setting, seed, member)
            for setting, row in zip(self.settings, self.members, strict=True)
            for seed, member in zip(self.seeds, row, strict=True)
        ]
        columns: dict[str, list[Any]] = {name: [setting[name] for setting, _, _ in rows] for name in self.settings[0]}
        columns["seed"] = [seed for _, seed, _ in rows]
        columns["diverged"] = [member.diverged for _, _, member in rows]
        return columns | {name: [member.columns.get(name) for _, _, member in rows] for name in self.names}

    def to_pandas(self) -> Any:
        """A DataFrame of `table()`: a row a setting and seed, histories as arrays; needs pandas."""
        try:
            import pandas
        except ImportError as error:
            raise ArgumentError('result.to_pandas() needs pandas: pip install "fedjax-sim[pandas]".') from error
        table = self.table()
        columns = {
            name: pandas.Series(values, dtype=object if name in self.names else None) for name, values in table.items()
        }
        return pandas.DataFrame(columns | {"diverged": pandas.array(table["diverged"], dtype="Int64")})

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write `table()` to a Parquet file, histories as lists."""
        import pyarrow
        import pyarrow.parquet

        def plain(value: PyTree) -> Any:
            return value.tolist() if isinstance(value, np.ndarray) else value

        columns = {name: [plain(value) for value in values] for name, values in self.table().items()}
        for name in self.settings[0]:
            if not all(value is None or isinstance(value, bool | int | float | str) for value in columns[name]):
                columns[name] = [str(value) for value in columns[name]]
        arrays = {
            name: pyarrow.array(values, pyarrow.int64() if name == "diverged" else None)
            for name, values in columns.items()
        }
        pyarrow.parquet.write_table(pyarrow.table(arrays), path)

    def to_csv(self, metrics: Sequence[str] | None = None, last: int = 1) -> str:
        """A row a setting, in CSV: each metric's mean over seeds, half of its 95 % t-interval, and how many diverged.

        Args:
            metrics: None for all that were evaluated, or the clients' loss.
            last: as in `scores`.
        """
        return tables.as_csv(self._table(metrics, last))

    def to_markdown(self, metrics: Sequence[str] | None = None, last: int = 1) -> str:
        """The same as a table for a page, mean ± half of the interval; arguments as in `to_csv`."""
        return tables.as_markdown(self._table(metrics, last))

    def to_latex(self, metrics: Sequence[str] | None = None, last: int = 1) -> str:
        """The same in LaTeX with booktabs, mean ± half of the interval; arguments as in `to_csv`."""
        return tables.as_latex(self._table(metrics, last))

    def _table(self, metrics: Sequence[str] | None, last: int) -> tables.Scores:
        columns = {name: self.scores(name, last) for name in self._shown(metrics)}
        return tables.Scores(self.settings, len(self.seeds), columns)

    def _shown(self, metrics: Sequence[str] | None) -> list[str]:
        if metrics is not None:
            return [metrics] if isinstance(metrics, str) else list(metrics)
        rows = [row[0].columns for row in self.members]
        measured = [name for name in self.names if not name.startswith(_TRAINING)]
        return [name for name in measured if all(np.ndim(each.get(name, 0.0)) < 2 for each in rows)] or ["client/loss"]

    # Scores

    def scores(self, metric: str, last: int = 1) -> list[Score]:
        """A metric's mean over seeds, with its standard error and 95 % t-interval, setting by setting.

        Args:
            metric: a metric of one number a round.
            last: rounds to average over, of those that have the metric: the last so many.
        """
        self._check_name(metric)
        check_count("last", last)
        found = []
        for setting, row in zip(self.settings, self.members, strict=True):
            values = np.asarray([member.score(metric, last) for member in row])
            error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
            gone = sum(member.diverged is not None for member in row)
            found.append(Score(setting, float(values.mean()), float(error), values, gone))
        return found

    def best(self, metric: str, mode: Mode | None = None, last: int = 1) -> Score:
        """The setting whose mean over seeds is best; one with a seed that diverged never is.

        Args:
            metric: as in `scores`.
            mode: "min" or "max"; None for "min" where the name tells of a loss or an error, else "max".
            last: as in `scores`.

        Raises:
            ArgumentError: no such metric, or no setting has a finite value of it.
        """
        mode = mode_of(metric, mode)
        scores = [score for score in self.scores(metric, last) if np.isfinite(score.mean)]
        check(scores, "metric", metric, "no setting has a finite value of it for every seed.")
        return (min if mode == "min" else max)(scores, key=lambda score: score.mean)

    def _check_name(self, name: str) -> None:
        check(name in self.names, "metric", name, f"unknown; there are {self.names}.")

    def main_metric(self) -> str:
        """What is shown unless another is named: the test accuracy, another evaluated number, or the clients' loss."""
        measured = [name for name in self.names if not name.startswith(_TRAINING)]
        first = [name for name in measured if "accuracy" in name and name.startswith("test")]
        return (first + [name for name in measured if "accuracy" in name] + measured + ["client/loss"])[0]

    # Pictures

    def heatmap(
        self, metric: str, x: str | None = None, y: str | None = None, mode: Mode | None = None, last: int = 1
    ) -> Any:
        """A metric over two hyperparameters, as a `matplotlib.figure.Figure`: means over seeds.

        With more hyperparameters a cell is the best over the others. Cells of settings that diverged are left blank.

        Args:
            metric, mode, last: as in `best`.
            x, y: hyperparameters; None for the last two that have several values.
        """
        from fedjax_sim.runs import sweep_plots

        several = [name for name in self.settings[0] if len({repr(s[name]) for s in self.settings}) > 1]
        for which, name in (("x", x), ("y", y)):
            check(
                name is None or name in self.settings[0],
                which,
                name,
                f"no such hyperparameter: {list(self.settings[0])}.",
            )
        free = [name for name in several if name not in (x, y)]
        x = x or (free.pop() if free else None)
        y = y or (free.pop() if free else None)
        if x is None or y is None or x == y:
            raise ArgumentError("a heatmap needs two hyperparameters of several values; for one, use error_bars.")
        scores, mode = self.scores(metric, last), mode_of(metric, mode)
        return sweep_plots.heatmap(self.settings, [score.mean for score in scores], x, y, metric, mode)

    def error_bars(self, metric: str, last: int = 1) -> Any:
        """A metric's mean over seeds and its 95 % t-interval, setting by setting: a `matplotlib.figure.Figure`."""
        from fedjax_sim.runs import sweep_plots

        scores = self.scores(metric, last)
        labels = [text(score.setting) for score in scores]
        return sweep_plots.error_bars(labels, [s.mean for s in scores], [s.interval for s in scores], metric)

    def curves(self, names: Sequence[str] | None = None) -> Any:
        """Metrics over rounds, a line a setting with the 95 % t-interval over its seeds: `fs.plots.curves`."""
        from fedjax_sim.runs import plots

        histories: Mapping[str, Any] = {
            text(setting): [member.columns for member in row]
            for setting, row in zip(self.settings, self.members, strict=True)
            if all(member.diverged is None for member in row)
        }
        check(histories, "settings", len(self.settings), "all of them diverged: there is nothing to draw.")
        return plots.curves(histories, names)

    def save(self, folder: str | os.PathLike[str], metric: str | None = None, last: int = 1) -> list[Path]:
        """Write sweep.parquet, sweep.csv, sweep.md, sweep.tex, error_bars.png, curves.png and perhaps heatmap.png.

        The last needs two hyperparameters of several values.

        Args:
            folder: made if need be.
            metric, last: what to draw, as in `scores`; None for `main_metric()`. Tables have all that was evaluated.

        Returns:
            The files.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        from fedjax_sim.runs.drawing import png
        from fedjax_sim.runs.writing import writing

        folder, metric = Path(folder), metric or self.main_metric()
        several = [name for name in self.settings[0] if len({repr(s[name]) for s in self.settings}) > 1]
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            files = [folder / "sweep.parquet"]
            self.to_parquet(files[0])
            shown = list(dict.fromkeys([metric, *self._shown(None)]))
            made = {
                "csv": self.to_csv(shown, last),
                "md": self.to_markdown(shown, last),
                "tex": self.to_latex(shown, last),
            }
            for kind, words in made.items():
                files.append(folder / f"sweep.{kind}")
                files[-1].write_text(words, encoding="utf-8")
            drawn = {"error_bars": lambda: self.error_bars(metric, last)}
            if len(self.diverged) < len(self.seeds) * len(self.settings):
                drawn["curves"] = lambda: self.curves([metric])
            if len(several) > 1:
                drawn["heatmap"] = lambda: self.heatmap(metric, last=last)
            for name, draw in drawn.items():
                files.append(folder / f"{name}.png")
                files[-1].write_bytes(png(draw()))
        return files

    def __repr__(self) -> str:
        gone = f", {len(self.diverged)} diverged" if self.diverged else ""
        programs = f"{self.compilations} compilation{'s' if self.compilations != 1 else ''}"
        return f"SweepResult({len(self.settings)} settings x {len(self.seeds)} seeds, {programs}{gone}, {self.names})"

    def _repr_html_(self) -> str:
        metric = self.main_metric()
        rows = [
            [*map(str, score.setting.values()), f"{score.mean:.4g}", f"{score.interval:.2g}", str(score.diverged)]
            for score in self.scores(metric)
        ]
        title = f"Sweep, {len(self.seeds)} seed{'s' if len(self.seeds) > 1 else ''}"
        return html.table(title, [*self.settings[0], metric, f"± {SAID}", "diverged"], rows)
