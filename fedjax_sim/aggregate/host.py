"""What the host says in a round, for protocols that need it: before clients train, and between them and the server."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from fedjax_sim.core.arrays import Array, PyTree, Scalar
from fedjax_sim.core.errors import ArgumentError
from fedjax_sim.core.shown import record
from fedjax_sim.core.types import Cohort


class HostRound(NamedTuple):
    """A round that a host stage speaks in.

    Attributes:
        round: its number.
        seed: the run's, or of the noise its own; what is drawn, is drawn from these and the clients' ids.
        cohort: who takes part; after `before`, with its columns.

    Example:
        >>> import fedjax_sim as fs
        >>> host = fs.aggregate.HostRound(round=3, seed=0, cohort=fs.sampler.cohort([4, 2], capacity=2))
        >>> host.cohort.ids.tolist()
        [4, 2]
    """

    round: int
    seed: int
    cohort: Cohort


class HostSum(NamedTuple):
    """What has come from a round's clients.

    Attributes:
        value: pytree of NumPy arrays, the sum of the messages, as the chain's server sides would see it.
        contributes: [C] bool, the places of the cohort whose message is in it.
        weight: the sum of the effective weights.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> came = fs.aggregate.HostSum(np.array([3.0]), np.array([True, True, False]), weight=2.0)
        >>> int(came.contributes.sum())
        2
    """

    value: PyTree
    contributes: np.ndarray
    weight: float


class HostResult(NamedTuple):
    """What the server's side goes on with.

    Attributes:
        value: the sum, of the same structure, shapes and dtypes.
        metrics: dict of name to number, `aggregate/NAME` of the round; a name with a slash stands as it is.
        refused: the round is abandoned: model, transforms' states and clients' rows stay as they were before it.
        released: False where a refused round's server saw nothing of the sum: the ledger then counts no noise as spent.

    Example:
        >>> import numpy as np, fedjax_sim as fs
        >>> fs.aggregate.HostResult(np.zeros(1), {"came": 1}, refused=True).refused
        True
    """

    value: PyTree
    metrics: Mapping[str, float] = {}
    refused: bool = False
    released: bool = True


StageColumns = Mapping[str, Array | Scalar] | Callable[[int], Mapping[str, Array | Scalar]]
"""Name to what an empty place holds; or `(places) -> ` that."""


class HostStage(NamedTuple):
    """What the host of a transform does in each round, such as to agree on keys, and to take masks off a sum.

    Attributes:
        before: `(HostRound) -> Cohort`, before the clients train and as early as rounds are planned: the cohort with
            the columns that are declared, and perhaps with fewer that arrive (`arrives`); who is in it, and with what
            weight, is the sampler's to say. None for nothing.
        between: `(HostRound, HostSum) -> HostResult`, after the sum and before the server's side: the round is cut in
            two programs there, between which the host waits for the devices. None keeps the round whole.
        columns: dict of name to what an empty place holds, a number or a small array, as of a sampler's columns: a
            transform's client side finds its client's in `context.columns[name]`. Or `(places) -> dict`, of a cohort's
            places, where shapes depend on them.
        check: `(places) -> None`, raises where a cohort of at most so many places could not be served; or None.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, numpy as np, fedjax_sim as fs
        >>> def before(host):  # each client hides its message behind a number that the host knows
        ...     pads = np.random.default_rng((host.seed, host.round)).normal(size=len(host.cohort.ids))
        ...     return dataclasses.replace(host.cohort, columns={"pad": pads.astype(np.float32)})
        >>> def between(host, total):
        ...     pads = np.sum(host.cohort.columns["pad"], where=total.contributes)
        ...     return fs.aggregate.HostResult(jax.tree.map(lambda leaf: leaf - pads, total.value))
        >>> def client(key, state, row, payload, context):
        ...     return jax.tree.map(lambda leaf: leaf + context.columns["pad"], payload), row, {}
        >>> stage = fs.aggregate.HostStage(before, between, columns={"pad": 0.0})
        >>> hidden = fs.aggregate.chain(fs.aggregate.Transform("hidden", client=client, host=stage))
    """

    before: Callable[[HostRound], Cohort] | None = None
    between: Callable[[HostRound, HostSum], HostResult] | None = None
    columns: StageColumns = lambda places: {}
    check: Callable[[int], None] | None = None

    def __repr__(self) -> str:
        return record(self)


SMALLEST = 3
"""Places of a cohort for which columns are asked where none is known: what is sent does not depend on them."""


def declared_columns(stage: HostStage | None, places: int = SMALLEST) -> Mapping[str, Array | Scalar]:
    """A stage's columns in cohorts of so many places.

    Args:
        stage: or None.
        places: of a cohort.

    Example:
        >>> import numpy as np
        >>> from fedjax_sim.aggregate.host import HostStage, declared_columns
        >>> declared_columns(HostStage(columns=lambda places: {"seen": np.zeros(places)}), 2)["seen"].tolist()
        [0.0, 0.0]
    """
    if stage is None:
        return {}
    return stage.columns(places) if callable(stage.columns) else stage.columns


def told_before(stage: HostStage, host: HostRound, name: str) -> Cohort:
    """The round's cohort after what the stage says before it, checked.

    Args:
        stage: one with a `before`.
        host: the round.
        name: of the chain, for messages.

    Raises:
        ArgumentError: no cohort, or one of other clients, weights, steps or versions: noise is accounted for those that
            the sampler drew.

    Example:
        >>> import fedjax_sim as fs
        >>> from fedjax_sim.aggregate.host import HostRound, HostStage, told_before
        >>> host = HostRound(round=3, seed=0, cohort=fs.sampler.cohort([4, 2], capacity=2))
        >>> told_before(HostStage(lambda host: host.cohort), host, "nothing").ids.tolist()
        [4, 2]
    """
    assert stage.before is not None
    said = stage.before(host)
    if not isinstance(said, Cohort):
        raise ArgumentError(f"{name}: its host stage's before returned {said!r}: must be a cohort, host.cohort say.")
    drawn, changed = host.cohort, []
    for field in dataclasses.fields(Cohort):
        old, new = getattr(drawn, field.name), getattr(said, field.name)
        if field.name == "arrives":
            lost = None if old is None else ~np.asarray(old, bool)
            same = lost is None or (new is not None and not np.asarray(new, bool)[lost].any())
        elif field.name == "columns":
            same = True  # the plan holds them against what is declared
        else:
            same = new is old or (old is not None and new is not None and np.array_equal(old, new))
        changed += [] if same else [field.name]
    if changed:
        raise ArgumentError(
            f"{name}: its host stage's before changed the cohort's {', '.join(changed)}, which are the sampler's: "
            "let it add columns and say by arrives= whose update is lost."
        )
    return said
