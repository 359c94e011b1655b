"""What differs from round to round: learning rates, and any other number of a method."""

from collections.abc import Callable
from typing import Any, overload

import jax
import optax

from fedjax_sim.algorithms.base import Algorithm, Pass
from fedjax_sim.client.bound import ask_for_rounds, this_round
from fedjax_sim.core.arrays import Scalar
from fedjax_sim.core.errors import ArgumentError


@overload
def by_round(make: Callable[[Scalar], optax.GradientTransformation]) -> optax.GradientTransformation: ...
@overload
def by_round(make: Callable[[Scalar], Algorithm]) -> Algorithm: ...
def by_round(make: Callable[[Scalar], Any]) -> Any:
    """An optimizer, or a whole algorithm, whose numbers are a function of the round.

    The round is traced, so that no round needs another program; it is the state's, so that a run that goes on, and a
    sweep's members, have the same numbers. An optimizer's state passes from round to round as it would: momentum of a
    server optimizer stays, with another rate.

    Args:
        make: `(round) -> optax transformation`, for `client_optimizer=` and `server_optimizer=`; or
            `(round) -> fs.Algorithm`, whose functions are made for their round and whose first state for round 0. It is
            called while programs are traced: compute with the number by jax.numpy, optax's schedules or plain
            arithmetic, and do not decide by it in Python.

    An optimizer's first state, and an algorithm's aggregator, are those of round 0; numbers that are traced cannot be
    checked, except by `fs.Simulation(debug=True)`, where they are plain.

    Raises:
        ArgumentError: an optimizer keeps its numbers in its state, `optax.inject_hyperparams`, where they would stay
            those of round 0. `make` gives something else. A number alone cannot differ by round: make the
            algorithm of it.

    Example:
        >>> import optax, fedjax_sim as fs
        >>> digits = fs.data.load("digits")
        >>> task = fs.classification(fs.models.MLP(10), digits.train)
        >>> algorithm = fs.fedavg(task, fs.by_round(lambda round: optax.sgd(0.1 * 0.99**round)))
        >>> algorithm = fs.by_round(lambda round: fs.fedprox(task, optax.sgd(0.05), mu=0.1 / (1 + round)))
    """
    ask_for_rounds()
    first = make(0)
    if isinstance(first, Algorithm):
        return _algorithm(make, first)
    if hasattr(first, "init") and hasattr(first, "update"):
        return _optimizer(make, first)
    raise ArgumentError(
        f"by_round: make(0) gave {first!r}: must be an optax transformation or an fs.Algorithm. For another number of "
        "a method make the algorithm: fs.by_round(lambda round: fs.fedprox(task, optimizer, mu=0.1 / (1 + round)))."
    )


def _optimizer(make: Callable[[Scalar], Any], first: Any) -> optax.GradientTransformation:
    def init(params: Any) -> Any:
        state = first.init(params)
        injected = lambda node: hasattr(node, "hyperparams")
        if any(map(injected, jax.tree.leaves(state, is_leaf=injected))):
            raise ArgumentError(
                "by_round: optax.inject_hyperparams keeps an optimizer's numbers in its state, where they would stay "
                "those of round 0: give by_round the optimizer without it, optax.sgd(rate(round)) say."
            )
        return state

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return optax.with_extra_args_support(make(this_round())).update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def _algorithm(make: Callable[[Scalar], Algorithm], first: Algorithm) -> Algorithm:
    """Its own functions, each made for the round that calls it."""

    def made(index: int) -> Pass:
        return make(this_round()).passes()[index]

    def of(index: int, phase: Any) -> Any:
        return phase._replace(
            client=lambda *given: made(index).client(*given), server=lambda *given: made(index).server(*given)
        )

    first = first._replace(name=first.name and f"by_round({first.name} in round 0)")
    if first.phases:
        return first._replace(phases=tuple(of(i, phase) for i, phase in enumerate(first.phases)))
    return of(0, first)
