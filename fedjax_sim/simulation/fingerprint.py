"""What a simulation is, kept with its checkpoints: so that no state goes on in another one unnoticed.

Where it trains (lanes, devices, residency, the place of rows) is no part of it. Whether an algorithm is the same, its
programs decide, where JAX and the packages are the same; the constants in its functions say what differs.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.aggregate import Collected, Context
from fedjax_sim.aggregate.folded import empty_columns
from fedjax_sim.client.bound import bound
from fedjax_sim.core import canonical
from fedjax_sim.core.arrays import PyTree, Shapes
from fedjax_sim.core.errors import ArgumentError, RunFolderError
from fedjax_sim.core.types import Aggregate, Lane
from fedjax_sim.data.federated import FederatedData
from fedjax_sim.engine.parts import Parts
from fedjax_sim.engine.plan import given
from fedjax_sim.engine.round.cohort_map import client_batches
from fedjax_sim.engine.round.returned import checked_update
from fedjax_sim.engine.store.residency import Constants
from fedjax_sim.population.sampling import Sampler
from fedjax_sim.runs.folder import FREE, differing, versions

Fingerprint = dict[str, Any]
"""`versions` and `given`, under which `programs` are compared; and words by name of each part."""

PARTS = ("algorithm", "aggregator", "sampler", "data")
_COMPARED = (
    ("algorithm", "frozen", "algorithm"),
    ("aggregator", "chains", "aggregator"),
    ("sampler", "sampler", ""),
    ("data", "data", ""),
)
"""A part, its words that are always compared, and its constants, which say what differs where programs do."""
CLIENTS, BYTES = 256, 1 << 24
"""Of the data, the first examples of so many clients are read, and about so many bytes."""
_TOLD = 3
_UNASKED = {"None", "False", "0"}
_PACKAGES = ("python", "fedjax-sim", "jax", "jaxlib", "flax", "optax", "numpy")


def fingerprint(parts: Parts) -> Fingerprint:
    """Of a simulation, in plain values."""
    found = versions()
    alone = lambda made: made._replace(aggregator=None)
    algorithm = alone(parts.algorithm)._replace(phases=tuple(map(alone, parts.algorithm.phases)))
    task = parts.algorithm.task._replace(frozen=None, sample=None, name=None)
    algorithm = algorithm._replace(task=task, personal=None, name=None)  # of no round
    sections: dict[str, Callable[[], dict[str, str]]] = {
        "programs": lambda: programs(parts),
        "algorithm": lambda: canonical.constants(algorithm),
        "aggregator": lambda: _of_chains(parts, _constants),
        "chains": lambda: _of_chains(parts, _words),
        "sampler": lambda: _of_sampler(parts.sampler),
        "data": lambda: _data(parts.data),
    }
    if parts.algorithm.task.frozen is not None:
        sections["frozen"] = lambda: _frozen(parts.algorithm.task.frozen)
    made: Fingerprint = {
        "versions": {
            **{name: found[name] for name in _PACKAGES if name in found},
            "platform": parts.devices[0].platform,
        },
        "given": {
            "batching": repr(parts.batching),
            "shapes": {name: f"{dtype}{list(shape[1:])}" for name, dtype, shape in _shapes(parts.data)},
            "cohort": [parts.capacity, parts.expected],
            "x64": bool(jax.config.jax_enable_x64),  # type: ignore[attr-defined]
        },
    }
    for name, tell in sections.items():
        made[name] = {}
        with contextlib.suppress(Exception):  # what cannot be told is not compared: no run ends for it
            made[name] = tell()
    return made


def _of_sampler(sampler: Sampler) -> dict[str, str]:
    """A sampler's words; of a transformed one those of what it is made of, and of its fleet."""
    if sampler.made is None:
        return canonical.constants(sampler._replace(pool=None, timed=None), code=True)
    base, stages, timing = sampler.made
    words = canonical.constants(base._replace(pool=None, timed=None), code=True)
    for i, stage in enumerate(stages):
        words |= {f"{i}: {name}": word for name, word in canonical.constants(stage, code=True).items()}
    fleet = None if timing is None or timing.fleet is None else canonical.constants(timing.fleet, code=True)
    return words | {f"fleet: {name}": word for name, word in (fleet or {}).items()}


def _of_chains(parts: Parts, tell: Callable[[Any], dict[str, str]]) -> dict[str, str]:
    chains = [phase.aggregator for phase in parts.phases]
    several = len(chains) > 1
    return {
        f"phase {i}: {name}" if several else name: word
        for i, chain in enumerate(chains)
        for name, word in tell(chain).items()
    }


def _constants(chain: Any) -> dict[str, str]:
    return canonical.constants(chain._replace(facts=None, stages=None))


def _words(chain: Any) -> dict[str, str]:
    """What accounting and the engine read of a chain, which need not show in a program."""
    words = {"chain": chain.name, "weights": chain.reducer.weight, "linear": str(chain.reducer.linear)}
    host = {} if chain.host is None else canonical.constants(chain.host, code=True)  # in no program
    return words | canonical.constants(chain.facts) | {f"host: {name}": word for name, word in host.items()}


def programs(parts: Parts) -> dict[str, str]:
    """Digests of what clients and the server compute, by part and function; traced, without computing."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    whole, real = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.float32)
    arrays = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), parts.data.arrays)
    frozen = parts.algorithm.task.frozen
    constants = Constants(arrays, frozen)
    found = {}

    def traced(name: str, function: Any, *arguments: Any) -> Any:
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        found[name] = canonical.program(program)
        return shapes

    server, row = traced("algorithm: the first state", parts.algorithm.init, parts.model)
    if parts.algorithm.edges is not None:  # in no function's program
        found["algorithm: edges"] = str(sorted(canonical.constants(parts.algorithm.edges).items()))
    for i, phase in enumerate(parts.phases):
        chain, of = phase.aggregator, f" {i}" if len(parts.phases) > 1 else ""

        def client(
            key: jax.Array, server: PyTree, row: PyTree, constants: Constants, zero: jax.Array, phase: Any = phase
        ) -> Any:
            of_zero = lambda dtype, shape: jnp.broadcast_to(zero.astype(dtype), shape)
            lane = Lane.of(of_zero, given.kinds(parts.planner.columns))
            made: Any = dict(bound=zero, longest=0, alone=False)
            batches = client_batches(lane, zero, zero[None], constants, parts.batching, **made)
            with bound(frozen, batches.frozen, zero):
                return checked_update(phase.client(key, server, row, batches), row)

        def server_side(key: jax.Array, server: PyTree, aggregate: PyTree, here: PyTree, phase: Any = phase) -> Any:
            some = lambda: jnp.asarray(aggregate.count, jnp.int32)  # a number that is an argument already
            with bound(frozen, here, some):
                return phase.server(key, server, aggregate)

        payload = traced(f"algorithm: client{of}", client, key, server, row, constants, whole).payload
        aggregate = _chain_programs(chain, of, payload, server, parts, traced, key, whole, real)
        traced(f"algorithm: server{of}", server_side, key, server, aggregate, frozen)
    return found


def _chain_programs(
    chain: Any,
    of: str,
    payload: PyTree,
    model: PyTree,
    parts: Parts,
    traced: Any,
    key: jax.Array,
    whole: Shapes,
    real: Shapes,
) -> Any:
    """Those of a chain's two sides, of a cohort: shapes of what the server function gets."""
    states, rows = traced(f"aggregator: the first state{of}", lambda: chain.init(payload))
    receive_key = jax.random.key(0)  # no argument: folders of before know of none

    def client(
        key: jax.Array, round_key: Any, states: PyTree, rows: PyTree, payload: PyTree, zero: jax.Array, one: jax.Array
    ) -> Any:
        told = {"neighbour": zero, "weight": one, "expected": parts.expected, "receive_key": receive_key}
        context = Context(zero, zero, round_key, one, **told, columns=empty_columns(chain.host))
        encoded = chain.encode(key, states, rows, payload, context)
        return chain.receive(key, states, encoded.message), encoded.sums

    def server(
        key: jax.Array,
        states: PyTree,
        messages: PyTree,
        sums: PyTree,
        weights: jax.Array,
        contributes: jax.Array,
        clients: Any,
        model: PyTree = None,
    ) -> Any:
        total = jax.tree.map(lambda leaf: jnp.sum(leaf, 0), messages)
        if not chain.reducer.linear:
            ids = jnp.full(contributes.shape, clients)
            given = {"round": clients, "bound": weights[0], "server": model}
            train = lambda examples, steps: jax.tree.map(lambda leaf: leaf[0], messages)
            places = Collected(messages, weights, contributes, ids, key, train=train, **given)
            made, states = chain.reduce(states, places)
            total = made.value
        elif not chain.facts.weighted:
            total = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), total)
        bound, step = chain.bound_and_step(states, payload)
        weight, count = jnp.sum(weights), jnp.sum(contributes).astype(jnp.float32)
        known = {"shares": count if parts.everyone else None, "population": clients}
        seen = Aggregate(total, weight, count, bound=bound, step=step, sums=sums, round_key=key, **known)
        return chain.server(key, states, seen, parts.expected)[:2]

    message, sums = traced(f"aggregator: client{of}", client, key, key, states, rows, payload, whole, real)
    many = lambda leaf: jax.ShapeDtypeStruct((parts.capacity, *leaf.shape), leaf.dtype)
    flags = jax.ShapeDtypeStruct((parts.capacity,), bool)
    messages, weights = jax.tree.map(many, message), many(real)
    seen = () if chain.reducer.linear else (model,)
    return traced(f"aggregator: server{of}", server, key, states, messages, sums, weights, flags, whole, *seen)[0]


def _shapes(data: FederatedData) -> list[tuple[str, str, tuple[int, ...]]]:
    paths = jax.tree_util.tree_leaves_with_path(data.arrays)
    return [(jax.tree_util.keystr(path), str(leaf.dtype), tuple(leaf.shape)) for path, leaf in paths]


def _frozen(frozen: PyTree) -> dict[str, str]:
    """A digest of each leaf, by its place."""
    leaves = jax.tree_util.tree_leaves_with_path(frozen)
    return {
        f"frozen{jax.tree_util.keystr(path)}": f"{leaf.dtype}{list(leaf.shape)} {canonical.digest(leaf)}"
        for path, leaf in leaves
    }


def _data(data: FederatedData) -> dict[str, str]:
    """Shapes, and digests of the first examples of clients all over the population: of all, where these are few."""
    found = {f"shape of {name}": f"{dtype}{list(shape[1:])}" for name, dtype, shape in _shapes(data)}
    size = sum(math.prod(shape[1:]) * np.dtype(dtype).itemsize for _, dtype, shape in _shapes(data))
    clients = np.unique(np.linspace(0, data.num_clients - 1, min(data.num_clients, CLIENTS)).astype(np.int64))
    most = -(-max(BYTES // max(size, 1), len(clients)) // len(clients))
    read = data.read(clients, np.minimum(data.sizes_of(clients), most))
    for path, leaf in jax.tree_util.tree_leaves_with_path(read):
        found[f"values of {jax.tree_util.keystr(path)}"] = canonical.digest(np.asarray(leaf))
    if data.client_ids is not None:
        found["client_ids"] = canonical.digest(np.array([data.name(int(client)) for client in clients]))
    return found


class Comparison(NamedTuple):
    """Of a simulation with the one that a checkpoint was saved by.

    Attributes:
        differences: what differs, in words, by part.
        doubts: what cannot be compared as JAX or a package is another, in words; or empty.
    """

    differences: dict[str, str]
    doubts: str = ""


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> Comparison:
    """Two fingerprints."""
    same_versions = old["versions"] == new["versions"]
    comparable = same_versions and old["given"] == new["given"] and bool(old["programs"]) and bool(new["programs"])
    differences, doubtful = {}, []
    for part, plain, traced in _COMPARED:
        found = _Found.of(old.get(plain, {}), new.get(plain, {})) if plain else _Found()
        constants = _Found.of(old[traced], new[traced]) if traced else _Found()
        programs = [name for name in _unequal(old["programs"], new["programs"]) if name.startswith(f"{part}: ")]
        words = {**found.changed, **(found.others if same_versions else {})}
        if comparable and programs:
            words |= constants.changed or constants.others or dict.fromkeys(programs, ("", ""))
        elif not comparable:
            words |= {**constants.changed, **(constants.others if same_versions else {})}
        if words:
            differences[part] = _told(words)
        elif not same_versions and (found.others or constants.others or programs):
            doubtful.append(part)
    if not doubtful:
        return Comparison(differences)
    one, other = old["versions"], new["versions"]
    made = ", ".join(f"{name} was {one.get(name)} and is {other.get(name)}" for name in _unequal(one, other))
    return Comparison(differences, f"whether its {' and its '.join(doubtful)} is the same cannot be told, as {made}")


class _Found(NamedTuple):
    """Names whose words differ: `changed` where they are constants of both, `others` that one lacks, and code."""

    changed: Mapping[str, tuple[PyTree, PyTree]] = {}
    others: Mapping[str, tuple[PyTree, PyTree]] = {}

    @classmethod
    def of(cls, old: Mapping[str, Any], new: Mapping[str, Any]) -> "_Found":
        if not old or not new:  # it could not be told
            return cls()
        pairs = {name: (old.get(name), new.get(name)) for name in _unequal(old, new)}
        # What an earlier version did not have, and nobody asked for, is no difference.
        pairs = {name: pair for name, pair in pairs.items() if None not in pair or not _UNASKED & {*pair}}
        plain = {name for name, pair in pairs.items() if not any(word is None or word[:1] == "<" for word in pair)}
        return cls(
            {name: pair for name, pair in pairs.items() if name in plain},
            {name: pair for name, pair in pairs.items() if name not in plain},
        )


def _unequal(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [name for name in {**old, **new} if old.get(name) != new.get(name)]


def _told(words: Mapping[str, tuple[PyTree, PyTree]]) -> str:
    """In words; a number that several functions hold is told once."""
    told: dict[Any, str] = {}
    for name, (was, now) in words.items():
        if (was, now) == ("", ""):
            told[name] = f"what {name.partition(': ')[2]} computes differs"
        else:
            key = name.rpartition(".")[2], was, now
            told.setdefault(key, f"{name} was {was or 'not there'} there and is {now or 'not there'} here")
    first = [*told.values()][:_TOLD]
    return "; ".join(first) + (f"; and {len(told) - _TOLD} more" if len(told) > _TOLD else "")


FACTS = {"clients": "data", "examples": "data", "sizes": "data", "parameters": "algorithm"}
"""The part that a fact of `recorder.facts` belongs to; any other is one of its own."""


def check(
    where: Any, record: Mapping[str, Any], here: Fingerprint, facts: Mapping[str, Any], allow: Iterable[str] | None
) -> set[str]:
    """A checkpoint is of this simulation, but for parts that may differ (None: of a run in its folder): those that do.

    Raises:
        ArgumentError: `allow` names no part.
        RunFolderError: another part differs, or one cannot.
    """
    in_folder, allow = allow is None, set(allow or ())
    known = {*PARTS, "delta", "exact", *(FACTS.get(n, n) for n in facts if n not in (*FREE, "rows"))}
    if allow - known:
        raise ArgumentError(f"allow={sorted(allow)}: must be among {sorted(known)}, what may be another.")
    differences: dict[str, str] = {}
    for name in {**record["simulation"], **facts}:
        words = differing({name: record["simulation"].get(name)}, {name: facts.get(name)})
        if words:
            part = str(FACTS.get(name, name))
            differences[part] = f"{differences[part]}, {words}" if part in differences else words
    if "fingerprint" not in record:
        warnings.warn(
            f"{where} was saved by an earlier version, which did not keep what its simulation was: see yourself that "
            "this one is the same.",
            stacklevel=5,
        )
    else:
        try:
            found = compare(record["fingerprint"], here)
        except (LookupError, TypeError, AttributeError) as error:
            raise RunFolderError(f"{where}: what it says of its simulation cannot be read: {error!r}.") from error
        differences = {**{part: f"{part}: {words}" for part, words in found.differences.items()}, **differences}
        if found.doubts and not set(differences) - allow:
            warnings.warn(f"{where} was saved with other packages: {found.doubts}.", stacklevel=5)
    if refused := {part: words for part, words in differences.items() if part not in allow}:
        if in_folder:
            words = "; ".join(refused.values())
            raise RunFolderError(f"{where} holds another run: {words}. Choose another folder for this one.")
        names = ", ".join(f'"{part}"' for part in sorted(set(differences) & known))
        raise RunFolderError(
            f"{where} holds a run of another simulation: {'; '.join(refused.values())}. Build it as it was built then; "
            f"or go on with another deliberately: sim.restore(..., allow={{{names}}}), and in another folder."
        )
    return set(differences)
