"""Sweeps: all settings of a grid, and all seeds, trained by one compiled program."""

import functools
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fedjax_sim.aggregate.collecting import ABANDONED
from fedjax_sim.core import rng
from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.core.types import Params
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.engine.round.returned import check_params
from fedjax_sim.simulation.loop import Evaluate, evaluated
from fedjax_sim.simulation.simulation import Simulation
from fedjax_sim.sweeps.grid import Setting, check_accepts, groups_of, settings_of
from fedjax_sim.sweeps.members import Members, same_data
from fedjax_sim.sweeps.result import Member, SweepResult

AHEAD = 2  # dispatches that may wait for the devices


def sweep(
    build: Callable[..., Simulation],
    grid: Mapping[str, Sequence[Any]] | Sequence[Setting],
    rounds: int,
    seeds: int | Sequence[int] = 1,
    *,
    static: Sequence[str] = (),
    share_cohorts: bool = False,
    reseed: Sequence[str] = ("model", "cohorts"),
    params: Params | None = None,
    evaluate: Evaluate | None = None,
    eval_every: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SweepResult:
    """Train every setting of a grid from every seed, all of them in one compiled program.

    Whole experiments are vmapped: members that share a seed share its cohorts and plans, are trained on the same
    batches, and differ in the numbers that `build` puts into the algorithm. `build` is called once with the first
    setting and once with tracers in place of numbers, for each group of settings that agree in everything else.
    Each member is, within float tolerance, what `build(**setting)` with its seed would give by itself.

    Args:
        build: `(**setting) -> Simulation`. Data, sampler and batching must not depend on traced numbers. The
            simulation's `debug` is ignored, and `lanes="auto"` counts all members' models.
        grid: dict of name to values, for all combinations; or a list of settings, dicts of the same names.
        rounds: rounds of each member.
        seeds: a count, from the simulation's own seed on; or the seeds. What they redraw, `reseed` says.
        static: names whose values `build` needs as such: what gives a shape or a count (a width, epochs, lanes) or
            what data are made from. Each combination is a program of its own, as are values that are not numbers.
        share_cohorts: `reseed=("model",)`, or what it is without "cohorts". Faster, and a paired comparison.
        reseed: what each seed redraws; all else is of the first seed. "model": the first model and what clients draw
            in their steps. "cohorts": who takes part, and the order of examples. "data": whatever `build` draws with
            the argument `seed`, which it then takes, its partition say; each seed is then a program of its own.
        params: the first model of all members; None for each seed's own.
        evaluate: `params -> dict of numbers`; None for the simulation's own. All members are evaluated in one program
            where it can be traced, as `fs.evaluate` and `fs.evaluate_clients` can, otherwise one by one.
        eval_every: rounds between evaluations; None for after the last round alone.
        progress: called with (rounds done, rounds in all), all groups counted.

    Returns:
        A `SweepResult`. A member with an update that is not finite goes on without those clients' updates, as under
        `on_nonfinite="drop"`; under "raise" it counts as diverged from that round on, as does one whose reducer refuses
        a round under `on_few="error"`. Others are not touched.

    Raises:
        ArgumentError: a grid that is empty, or that names what `build` does not take or does not use; a build that
            needs a traced number's value, or that gives other data when it is called again; a sampler that observes;
            data that are streamed.

    Example:
        >>> import numpy as np, optax, fedjax_sim as fs
        >>> data = fs.data.FederatedData({"x": np.arange(4, dtype=np.float32)}, offsets=[0, 2, 4])
        >>> task = fs.Task(lambda key: np.zeros((), np.float32), lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> def build(lr):
        ...     return fs.Simulation(fs.fedavg(task, optax.sgd(lr)), data, fs.sampler.uniform(2), fs.Batching(2))
        >>> result = fs.sweep(build, {"lr": [0.01, 0.1, 0.3]}, rounds=5, seeds=2)
        >>> result.compilations, result.best("client/loss").setting
        (1, {'lr': 0.3})
    """
    begin = time.perf_counter()
    check_count("rounds", rounds)
    if eval_every is not None:
        check_count("eval_every", eval_every)
    settings = settings_of(grid)
    drawn = _drawn(reseed, share_cohorts)
    check_accepts(build, {**settings[0], "seed": 0} if "data" in drawn else settings[0])
    check(
        "data" not in drawn or "seed" not in settings[0], "grid", "seed", 'is what reseed=("data", ...) gives to build.'
    )
    groups = groups_of(settings, [static] if isinstance(static, str) else static)
    rows: list[list[Member]] = [[] for _ in settings]
    compilations, done = 0, 0
    chosen = _seeds(seeds, _own_seed(build)) if "data" in drawn else []
    for group in groups:
        first, datas = settings[group.places[0]], []
        for part in [[seed] for seed in chosen] if "data" in drawn else [[]]:
            make = functools.partial(build, seed=part[0]) if part else build
            base = make(**first)
            check(isinstance(base, Simulation), "build's value", base, "must be a fs.Simulation.")
            chosen = chosen or _seeds(seeds, base.seed)
            _check_other(datas, base, part)
            if params is not None:
                check_params(base.parts.model, params)
            of = lambda name, part=part: part or chosen if name in drawn else chosen[:1] * len(part or chosen)
            members = Members(make, base, first, group, of("model"), of("cohorts"), params, evaluate)
            total = rounds * len(groups) * (len(chosen) if part else 1)
            tell = lambda r, done=done, total=total: progress and progress(done + r, total)
            trained = _train(members, rounds, eval_every, tell)
            one_by_one = (evaluate or base.evaluate) is not None and not members.evaluates
            for s, place in enumerate(group.places):
                by_hand = _evaluator(make, base, settings[place], s, evaluate) if one_by_one else None
                rows[place] += [_member(trained, z, s, members, by_hand) for z in range(len(members.seeds))]
            compilations += members.compile_count()
            done += rounds
    return SweepResult(settings, chosen, rows, compilations, len(groups), time.perf_counter() - begin)


def _drawn(reseed: Sequence[str], share_cohorts: bool) -> set[str]:
    """What each seed redraws."""
    names = {reseed} if isinstance(reseed, str) else set(reseed)
    known = {"data", "model", "cohorts"}
    check(bool(names) and names <= known, "reseed", reseed, f"must hold some of {sorted(known)}.")
    names -= {"cohorts"} if share_cohorts else set()
    check(bool(names), "reseed", reseed, "nothing is left for seeds to redraw, as share_cohorts says.")
    return names


def _own_seed(build: Callable[..., Simulation]) -> int:
    """The default of `build`'s seed, or 0."""
    given = inspect.signature(build).parameters.get("seed")
    return given.default if given is not None and isinstance(given.default, int) else 0


def _check_other(datas: list[FederatedData], base: Simulation, part: Sequence[int]) -> None:
    """Of a seed that is to redraw the data: they are other data than those of the seed before."""
    if part and datas and same_data(datas[-1], base.data):
        raise ArgumentError(
            f'reseed names "data", and build(seed={part[0]}) gives the data of the seed before: draw the partition '
            "with that seed, or leave it out."
        )
    datas.append(base.data)


def _seeds(seeds: int | Sequence[int], own: int) -> list[int]:
    """The seeds, of a count from the simulation's own on."""
    if isinstance(seeds, int | np.integer):
        check_count("seeds", seeds)
        seeds = range(own, own + int(seeds))
    chosen = [int(seed) for seed in seeds]
    check(len(chosen) > 0, "seeds", seeds, "must hold at least one seed.")
    check(len(set(chosen)) == len(chosen), "seeds", seeds, "names a seed more than once.")
    for seed in chosen:
        rng.check_seed(seed)
    return chosen


class _Trained:
    """What a group's training left: reports by round, [Z, S] a leaf, and (round, models, evaluation)."""

    def __init__(self) -> None:
        self.rounds: list[Any] = []
        self.measured: list[tuple[int, Any, dict[str, Any]]] = []


def _train(members: Members, rounds: int, eval_every: int | None, tell: Callable[[int], Any]) -> _Trained:
    """All rounds of a group; the host plans while the devices compute."""
    base, found = members.base, _Trained()
    samplers = [base.parts.sampler_state] * (1 if members.same_cohorts else len(members.seeds))
    waiting: list[list[Any]] = []
    state, now = None, 0
    while now < rounds:
        count = min(members.slots, rounds - now, eval_every - now % eval_every if eval_every else rounds)
        plan, samplers = members.plan(samplers, now, count)
        state = members.start(plan) if state is None else state
        state, reports = members.rounds(state, plan)
        now += count
        waiting.append(reports[:count])
        if now == rounds or (eval_every and now % eval_every == 0):
            found.measured.append((now - 1, *members.measure(state, plan)))
        while len(waiting) > (AHEAD if now < rounds else 0):
            found.rounds += jax.device_get(waiting.pop(0))
            tell(len(found.rounds))
    return found


def _evaluator(build: Any, base: Simulation, setting: Setting, s: int, evaluate: Evaluate | None) -> Evaluate:
    """A setting's own evaluation, which may look at its numbers."""
    if evaluate is not None:
        return evaluate
    own = (base if s == 0 else build(**setting)).evaluate
    assert own is not None  # the group's first setting has one
    return own


def _member(trained: _Trained, z: int, s: int, members: Members, by_hand: Evaluate | None) -> Member:
    """One member's columns over rounds, and its last model."""
    pick = lambda tree: jax.tree.map(lambda leaf: leaf[z, s], tree)
    reports = [pick(report) for report in trained.rounds]
    columns: dict[str, np.ndarray] = {"round": np.arange(len(reports))}
    for name in reports[0]["merged"]:
        columns[name] = np.asarray([report["merged"][name].compute() for report in reports])
    columns["cohort/contributed"] = np.asarray([int(report["count"]) for report in reports])
    columns["cohort/weight"] = np.asarray([float(report["weight"]) for report in reports])
    columns["cohort/nonfinite"] = bad = np.asarray([int(report["nonfinite"]) for report in reports])
    evaluated_in: list[int] = []
    for round, models, values in trained.measured:
        values = evaluated(by_hand, pick(models)) if by_hand else pick(jax.device_get(values))
        for name, value in values.items():
            columns.setdefault(name, np.full(len(reports), np.nan))[round] = float(value)
        evaluated_in += [round] if values else []
    ends = (bad > 0) & (members.base.parts.on_nonfinite == "raise")
    if members.base.parts.must_not_refuse:
        ends |= columns[f"aggregate/{ABANDONED}"] > 0
    diverged = int(ends.argmax()) if ends.any() else None
    if diverged is not None:
        for name, column in columns.items():
            if column.dtype.kind == "f":
                columns[name] = np.where(
                    (columns["round"] >= diverged).reshape(-1, *[1] * (column.ndim - 1)), np.nan, column
                )
    return Member(columns, pick(trained.measured[-1][1]), diverged, tuple(evaluated_in))
