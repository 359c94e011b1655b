"""The members of a sweep: whole experiments under `vmap`, seeds outside and settings inside.

`build` is traced once, with its numbers as tracers, in one function that makes a member's first state, trains its
rounds and measures it. That function's jaxpr holds all that is kept of the trace; three programs are cut out of it.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_jaxpr
from jax.errors import JAXTypeError

from fedjax_sim.core import rng
from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import ArgumentError, check, deferring, is_traced
from fedjax_sim.core.rng import Purpose
from fedjax_sim.core.types import ClientRows, Params, RoundState
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.engine.device import placement
from fedjax_sim.engine.plan.planner import PlanShape
from fedjax_sim.engine.plan.words import place_plans
from fedjax_sim.engine.round.block import block, pack
from fedjax_sim.engine.round.phase import make_round
from fedjax_sim.engine.store.residency import Constants
from fedjax_sim.population.sampling import Sampler
from fedjax_sim.simulation import first_state
from fedjax_sim.simulation.host_stages import check_fused
from fedjax_sim.simulation.lanes import for_simulation
from fedjax_sim.simulation.loop import Evaluate
from fedjax_sim.simulation.simulation import Simulation
from fedjax_sim.sweeps.grid import Group, Setting

AXIS = "members"  # of the vmap over seeds


class Traced(NamedTuple):
    """What the one trace of a member gives.

    Attributes:
        start: its first state.
        checks: (ok, value) of each check that `build` made of a traced number.
        after: its state after the rounds.
        rounds: what each round reports.
        params: the model in the state before the rounds.
        measured: what `evaluate` says of that model; empty where it cannot be traced.
    """

    start: PyTree
    checks: Any
    after: PyTree
    rounds: Any
    params: PyTree
    measured: Any


class Members:
    """The members of a group, [Z seeds, S settings].

    Args:
        build: `(**setting) -> Simulation`.
        base: `build` of the group's first setting.
        first: that setting.
        group: the settings.
        seeds: [Z] of first models, and of what clients draw.
        planned: [Z] of cohorts and the order of examples; the same for all is one plan for all.
        params: the first model, or None for each seed's own.
        evaluate: what to evaluate instead of the simulation's own, or None.
    """

    def __init__(
        self,
        build: Callable[..., Simulation],
        base: Simulation,
        first: Setting,
        group: Group,
        seeds: Sequence[int],
        planned: Sequence[int],
        params: Params | None,
        evaluate: Evaluate | None,
    ):
        parts = base.parts
        check_fused(parts, "a sweep")
        if parts.sampler.waits:
            raise ArgumentError(
                f"{parts.sampler.name} observes rounds or models, so that each member of a sweep would draw its own "
                "cohorts from what it saw: run these simulations one by one."
            )
        if parts.multi_process:
            raise ArgumentError(
                "a sweep trains in one process: give its simulations "
                "execution=fs.Execution(devices=jax.local_devices())."
            )
        if parts.rows == "host":
            raise ArgumentError(
                "a sweep keeps its members' rows on the devices, and this simulation's are on the host: give it "
                'rows="device" where they fit, or run these simulations one by one.'
            )
        if parts.residency == "stream":
            raise ArgumentError(
                "a sweep's members share arrays that are kept on the devices, and this simulation's data are streamed: "
                'give it residency="device" where they fit, or run these simulations one by one.'
            )
        _check_fleet(parts.sampler, planned)
        self.build, self.base, self.first, self.group = build, base, first, group
        self.seeds, self.planned, self.evaluate = seeds, planned, evaluate
        self.same_cohorts = len(set(planned)) == 1
        self.given = params
        self.shape = (len(seeds), len(group.places))
        executor = base.executor
        several = len(seeds) * len(group.places)
        self.lanes = for_simulation(parts, several) if executor.lanes_chosen else executor.lanes
        self.slots = executor.rounds_per_dispatch
        self._aggregator = first_state.aggregators(parts.phases, parts.sent)[0]
        self.evaluates = False  # all members at once, which a trace finds out
        self._traces: dict[PlanShape, _Trace] = {}
        self._programs: dict[tuple[PlanShape, str], Any] = {}
        self._everyone = (
            {name: jnp.asarray(column) for name, column in group.traced.items()},
            jnp.asarray(np.asarray(seeds, np.uint32)),
            params,
        )

    # What the sweep calls

    def plan(self, samplers: list[Any], first: int, count: int) -> tuple[Any, list[Any]]:
        """The next rounds' plans, placed, and the samplers' states: one of each, or one a seed."""
        seeds = self.planned[:1] if self.same_cohorts else self.planned
        states = [
            RoundState(first, seed, None, self._aggregator, sampler, ClientRows())
            for seed, sampler in zip(seeds, samplers, strict=True)
        ]
        plans = [pack(self.base.parts, state, count, self.slots, self.lanes) for state in states]
        widest = max(plan.shape.capacity for plan in plans)
        for i, state in enumerate(states):
            if plans[i].shape.capacity < widest:
                plans[i] = pack(self.base.parts, state, count, self.slots, self.lanes, widest)
        words = plans[0].words if self.same_cohorts else np.stack([plan.words for plan in plans])
        placed = plans[0]._replace(words=place_plans(self.base.parts.mesh, words))
        return placed, [plan.sampler_state for plan in plans]

    def start(self, plan: Any) -> Any:
        """The first states, once the settings' numbers have passed the checks that `build` makes of them."""
        state, checks = self._program(plan, "start")(*self._everyone)
        for (ok, value), (name, advice) in zip(jax.device_get(checks), self._traces[plan.shape].checks, strict=True):
            for wrong in np.argwhere(~ok)[:1]:
                check(False, name, value[tuple(wrong)].item() if value.shape == ok.shape else value, advice)
        return state

    def rounds(self, state: Any, plan: Any) -> tuple[Any, list[Any]]:
        """Train: the states after, and what each round reports."""
        count = np.int32(len(plan.cohorts))
        return self._program(plan, "rounds")(*self._everyone, state, plan.words, count, self.base.executor.constants)

    def measure(self, state: Any, plan: Any) -> tuple[Any, dict[str, Any]]:
        """The models, and what `evaluate` says of them, where it can be traced."""
        return self._program(plan, "measure")(*self._everyone, state)

    def compile_count(self) -> int:
        """Programs that the rounds have needed."""
        return sum(program.func._cache_size() for (_, part), program in self._programs.items() if part == "rounds")

    # The trace and its programs

    def _program(self, plan: Any, part: Literal["start", "rounds", "measure"]) -> Any:
        """The compiled program of a part of the trace."""
        if plan.shape not in self._traces:
            self._traces[plan.shape] = self._trace(plan)
        closed, tree, _ = self._traces[plan.shape]
        if (plan.shape, part) not in self._programs:

            def run(consts: Any, *arguments: Any) -> Any:
                leaves = jax.tree.leaves(arguments)
                absent = [jnp.zeros(aval.shape, aval.dtype) for aval in closed.in_avals[len(leaves) :]]
                made: Traced = jax.tree.unflatten(tree, eval_jaxpr(closed.jaxpr, consts, *leaves, *absent))
                parts = {
                    "start": (made.start, made.checks),
                    "rounds": (made.after, made.rounds),
                    "measure": (made.params, made.measured),
                }
                return parts[part]

            out = None if part == "measure" else (self._placement(), None)
            compiled = jax.jit(run, out_shardings=out, donate_argnums=(4,) if part == "rounds" else ())
            self._programs[plan.shape, part] = functools.partial(compiled, closed.consts)
        return self._programs[plan.shape, part]

    def _placement(self) -> Any:
        """Members' states, where rounds leave them."""
        mesh, like = self.base.parts.mesh, first_state.shapes(self.base.parts)
        everywhere, dealt = placement.everywhere(mesh), placement.dealt(mesh, axis=2)
        placed = jax.tree.map(lambda _: everywhere, like)
        return dataclasses.replace(placed, rows=jax.tree.map(lambda _: dealt, like.rows))

    def _trace(self, plan: Any) -> "_Trace":
        """All members' trace, checked: it needs no number's value, and each number matters."""
        try:
            trace = self._traced(plan, tuple(self.group.traced))
        except (TypeError, ValueError) as error:
            told = self._blamed(plan, error)
            if told is None:
                raise
            raise told from error
        jaxpr = trace.closed.jaxpr
        used = {id(v) for eqn in jaxpr.eqns for v in eqn.invars} | {id(v) for v in jaxpr.outvars}
        columns = sorted(self.group.traced)  # as JAX orders a dict
        ignored = [name for name, v in zip(columns, jaxpr.invars, strict=False) if id(v) not in used]
        if ignored:
            raise ArgumentError(
                f"grid names {ignored}, on which nothing in the simulation depends: build ignores it. Use it in build, "
                "or leave it out."
            )
        return trace

    def _traced(self, plan: Any, tracing: tuple[str, ...]) -> "_Trace":
        """The trace, with those of the numbers as tracers and the others as they are in the first setting."""
        base, names = self.base, []
        fixed = {name: value for name, value in self.first.items() if name not in tracing}

        def member(
            values: Any, seed: Any, params: PyTree, state: Any, words: jax.Array, count: jax.Array, constants: Constants
        ) -> Traced:
            with deferring() as checks:
                sim = self.build(**fixed, **values)
            _check_same(base, sim)
            names[:] = [(each.name, each.advice) for each in checks]
            first = sim.algorithm.task.init(rng.key(seed, Purpose.INIT)) if params is None else params
            one_round = _reporting(make_round(sim.parts, plan.shape.capacity, None if self.same_cohorts else AXIS))
            noise = seed if sim.parts.noise_seed is None else jnp.asarray(sim.parts.noise_seed).astype(jnp.uint32)
            seeds = jnp.stack([seed, noise])
            after, rounds = block(one_round, plan.shape, self.slots)(seeds, state, words, count, constants)
            model = sim.params(state)
            measured = self._measured(self.evaluate or sim.evaluate, model)
            return Traced(
                first_state.make(sim.parts, first), [(c.ok, c.value) for c in checks], after, rounds, model, measured
            )

        plans = None if self.same_cohorts else 0
        settings = jax.vmap(member, in_axes=(0, None, None, 0, None, None, None))
        seeds = jax.vmap(settings, in_axes=(None, 0, None, 0, plans, None, None), axis_name=AXIS)
        shaped = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        wide = lambda leaf: jax.ShapeDtypeStruct((*self.shape, *leaf.shape), leaf.dtype)
        weak = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=True)
        closed, out = jax.make_jaxpr(seeds, return_shape=True)(
            {name: weak(self.group.traced[name]) for name in tracing},  # weak, as Python's numbers
            shaped(self._everyone[1]),
            self.given,
            jax.tree.map(wide, first_state.shapes(base.parts)),
            shaped(plan.words),
            jax.ShapeDtypeStruct((), jnp.int32),
            jax.tree.map(shaped, base.executor.constants),
        )
        return _Trace(closed, jax.tree.structure(out), tuple(names))

    def _measured(self, evaluate: Evaluate | None, model: Params) -> dict[str, Any]:
        """`evaluate` under the trace; nothing where it needs numbers: then members are evaluated one by one."""
        if evaluate is None:
            return {}
        try:
            with placement.default_devices(self.base.devices):
                values = evaluate(model)
            made = {str(name): jnp.asarray(value, jnp.float32) for name, value in values.items()}
        except TypeError:  # what JAX raises where a number is needed, too
            return {}
        self.evaluates = True
        return made

    def _blamed(self, plan: Any, error: Exception) -> ArgumentError | None:
        """The error that names the hyperparameters without whose values `build` cannot do; None for one of its own."""
        what = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        if self._fails(plan, ()):
            if not isinstance(error, JAXTypeError):
                return None
            return ArgumentError(
                "build computes with jax.numpy what a Simulation needs as numbers, such as its data: make it with "
                f"NumPy, or outside build. ({what})"
            )
        names = [name for name in self.group.traced if self._fails(plan, (name,))] or list(self.group.traced)
        static = ", ".join(repr(name) for name in names) + ("," if len(names) == 1 else "")
        return ArgumentError(
            f"grid: build needs the value of {' and '.join(names)} while the program is made, as of what gives a "
            f"shape, a count or a choice. Train a program for each value: static=({static}). ({what})"
        )

    def _fails(self, plan: Any, tracing: tuple[str, ...]) -> bool:
        try:
            self._traced(plan, tracing)
        except (TypeError, ValueError):
            return True
        return False


class _Trace(NamedTuple):
    """A jaxpr, the structure of what it gives, and (name, advice) of its checks."""

    closed: Any
    tree: PyTree
    checks: tuple[tuple[str, str], ...]


def _reporting(one_round: Callable[..., Any]) -> Callable[..., Any]:
    """The round, reporting what a sweep keeps: nothing for each client."""

    def run(seeds: jax.Array, state: Any, plan: Any, constants: Constants):
        state, output = one_round(seeds, state, plan, constants)
        bad = jnp.sum(~output.finite)
        return state, {"merged": output.merged, "count": output.count, "weight": output.weight, "nonfinite": bad}

    return run


def _check_fleet(sampler: Sampler, planned: Sequence[int]) -> None:
    """Asynchronous clients have their devices from the simulation's own seed, and one simulation draws all cohorts."""
    timing = None if sampler.made is None else sampler.made.timing
    if timing is None or timing.fleet is None or not sampler.repeats:
        return
    ids = np.arange(timing.work.population)
    took = lambda seed: np.stack(timing._replace(seed=seed).seconds(ids, timing.work.steps(ids), 0, seed)[0])
    own = took(timing.seed)
    for seed in set(planned) - {timing.seed}:
        if not np.array_equal(took(seed), own):
            raise ArgumentError(
                f"{timing.fleet.name} draws other devices by seed {seed} than by the simulation's own, "
                f"{timing.seed}, and {sampler.name} would keep those: sweep with share_cohorts=True and seeds from "
                "the simulation's own on, or run these simulations one by one."
            )


def _check_same(base: Simulation, sim: Any) -> None:
    """What `build` gave under the trace is the simulation that it gave before, but for the numbers in it."""
    check(isinstance(sim, Simulation), "build's value", sim, "must be a fs.Simulation.")
    for name in ("batching", "devices", "on_nonfinite"):
        before, now = getattr(base.parts, name), getattr(sim.parts, name)
        if before != now:
            raise ArgumentError(f"build gave {name}={before!r}, and then {now!r}: it must give the same each time.")
    if (base.sampler.name, base.parts.capacity, base.parts.expected) != (
        sim.sampler.name,
        sim.parts.capacity,
        sim.parts.expected,
    ):
        raise ArgumentError(
            f"build gave the sampler {base.sampler.name}, and then {sim.sampler.name}: it must be the same each time."
        )
    if not _same_leaves(base.algorithm.task.frozen, sim.algorithm.task.frozen):
        raise ArgumentError(
            "build gave a task with other frozen constants than before: all members read the same. Make them outside "
            "build."
        )
    if not same_data(base.data, sim.data):
        raise ArgumentError(
            f"build gave {base.data!r}, and then other data, {sim.data!r}: all members train on the same. Draw them "
            "with a fixed seed, or make them outside build."
        )


def same_data(a: FederatedData, b: FederatedData) -> bool:
    """The same examples, held by the same clients."""
    if a is b:
        return True
    return _same_leaves((a.arrays, a.offsets, a.index), (b.arrays, b.offsets, b.index))


def _same_leaves(a: PyTree, b: PyTree) -> bool:
    one, other = jax.tree.leaves(a), jax.tree.leaves(b)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x is y or (not is_traced(y) and np.array_equal(x, y, equal_nan=x.dtype.kind == "f"))
        for x, y in zip(one, other, strict=True)
    )
