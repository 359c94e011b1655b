r"""Server optimizers: adaptive federated optimization (Reddi et al. 2021, Algorithm 2), as optax transformations.

The gradient that they are given is the pseudo-gradient :math:`g = -\Delta`, the negated mean of the clients' deltas
:math:`\Delta_k = y_k - x`; any optax transformation takes their place. The paper's form has no bias correction, starts
the accumulator at :math:`\tau^2`, and adds :math:`\tau` outside the root. `optax.adam`, `optax.yogi` and
`optax.adagrad` are other rules: bias-corrected, started elsewhere, or with epsilon inside the root.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.core.arrays import PyTree, Scalar
from fedjax_sim.core.errors import ArgumentError, check, check_fraction, check_not_negative, check_positive
from fedjax_sim.core.types import Params

Rate = float | jax.Array | optax.Schedule
"""A number, traced or not, or an optax schedule: `(steps [] int32) -> []`."""

Accumulate = Callable[[jax.Array, jax.Array, Any], jax.Array]
"""`(accumulator, squared delta, b2) -> accumulator`, leaf by leaf."""


class AdaptiveState(NamedTuple):
    """State of the adaptive server optimizers: step count, first moment and accumulator.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> optimizer = fs.server.fedadagrad(0.1, tau=0.5)
        >>> _, state = optimizer.update(jnp.array([-1.0]), optimizer.init(jnp.zeros(1)))
        >>> print(state.count, state.m, state.v)
        1 [-1.] [1.25]
    """

    count: Any  # a method of tuples by its name
    m: PyTree
    v: PyTree


def fedavgm(
    learning_rate: Rate = 1.0, momentum: Scalar = 0.9, *, ema: bool = False, debias: bool = False
) -> optax.GradientTransformation:
    r"""FedAvg with server momentum (Hsu, Qi and Brown 2019): the heavy-ball form, or a moving average.

    .. math::

        v \leftarrow \beta v + \Delta, \qquad x \leftarrow x + \eta v

    With `ema` it is the average :math:`v \leftarrow \beta v + (1 - \beta) \Delta`, which moves
    :math:`1 - \beta` times as far in the long run; with `debias` too, v over :math:`1 - \beta^t` in round t = 1, 2,
    ..., whose first steps are as long as later ones.

    Args:
        learning_rate: :math:`\eta`, or an optax schedule, as in `fedadam`.
        momentum: :math:`\beta` in [0, 1).
        ema: a moving average in place of the sum.
        debias: only with `ema`.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> optimizer = fs.server.fedavgm(1.0, momentum=0.5)
        >>> state = optimizer.init(jnp.zeros(1))
        >>> for _ in range(2):
        ...     update, state = optimizer.update(jnp.array([-1.0]), state)
        >>> print(update)
        [1.5]
    """
    _check_rate(learning_rate)
    check_fraction("momentum", momentum)
    check(ema or not debias, "debias", debias, "only a moving average, ema=True, has a bias to take off.")
    if not ema:
        return optax.sgd(learning_rate, momentum)
    return optax.chain(optax.ema(momentum, debias), optax.scale_by_learning_rate(learning_rate))


def fedadagrad(
    learning_rate: Rate,
    b1: Scalar = 0.0,
    tau: Scalar = 1e-3,
    *,
    bias_correction: bool = False,
    initial_accumulator: Scalar | None = None,
) -> optax.GradientTransformation:
    r"""FedAdagrad: :math:`v \leftarrow v + \Delta^2`; arguments as in `fedadam`.

    Example:
        >>> import fedjax_sim as fs
        >>> optimizer = fs.server.fedadagrad(0.1)
    """
    return _adaptive(
        lambda v, square, b2: v + square,
        learning_rate,
        b1,
        None,
        tau,
        bias_correction,
        initial_accumulator,
    )


def fedadam(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    tau: Scalar = 1e-3,
    *,
    bias_correction: bool = False,
    initial_accumulator: Scalar | None = None,
) -> optax.GradientTransformation:
    r"""FedAdam.

    .. math::

        m \leftarrow \beta_1 m + (1 - \beta_1) \Delta, \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2) \Delta^2, \qquad
        x \leftarrow x + \eta \frac{m}{\sqrt{v} + \tau}

    Args:
        learning_rate: :math:`\eta`; or an optax schedule, a function of the server steps taken so far (0 in the first
            round; rounds to which nobody contributed do not count), as `optax.cosine_decay_schedule(0.1, 100)`.
        b1, b2: decay rates in [0, 1).
        tau: :math:`\tau`, the degree of adaptivity, outside the root.
        bias_correction: multiply :math:`\eta` by :math:`\sqrt{1 - \beta_2^t} / (1 - \beta_1^t)`, t = 1 in the first
            round, as the code released with the paper does (where also b2=0.999, initial_accumulator=0).
        initial_accumulator: :math:`v_0`; None for the paper's :math:`\tau^2`.

    Every argument may be traced. With a coordinate whose delta is always 0, x stays as it is.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> optimizer = fs.server.fedadam(1.0, tau=0.1)
        >>> update, _ = optimizer.update(jnp.array([-1.0]), optimizer.init(jnp.zeros(1)))
        >>> print(update.round(4))
        [0.4148]
    """
    return _adaptive(
        lambda v, square, b2: b2 * v + (1 - b2) * square,
        learning_rate,
        b1,
        b2,
        tau,
        bias_correction,
        initial_accumulator,
    )


def fedyogi(
    learning_rate: Rate,
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    tau: Scalar = 1e-3,
    *,
    bias_correction: bool = False,
    initial_accumulator: Scalar | None = None,
) -> optax.GradientTransformation:
    r"""FedYogi: :math:`v \leftarrow v - (1 - \beta_2) \Delta^2 \mathrm{sign}(v - \Delta^2)`; arguments as in `fedadam`.

    Example:
        >>> import fedjax_sim as fs
        >>> optimizer = fs.server.fedyogi(1e-2)
    """
    return _adaptive(
        lambda v, square, b2: v - (1 - b2) * square * jnp.sign(v - square),
        learning_rate,
        b1,
        b2,
        tau,
        bias_correction,
        initial_accumulator,
    )


class EmaState(NamedTuple):
    """State of `ema`: the models' weighted sum, and the sum of the weights.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> print(fs.server.ema(0.9).init(jnp.ones(1)))
        EmaState(total=Array([0.], dtype=float32), weight=Array(0., dtype=float32))
    """

    total: Params
    weight: jax.Array


def ema(decay: Scalar = 0.999, debias: bool = True) -> optax.GradientTransformation:
    r"""A moving average of the models after each round, beside the model; the last link of an optax chain.

    .. math:: z \leftarrow \beta z + (1 - \beta) x

    It changes no update. `sim.params(state, ema=True)` gives the average, and a checkpoint holds it. Collections (batch
    statistics) are not averaged over rounds.

    Args:
        decay: :math:`\beta` in [0, 1); may be traced.
        debias: z starts at 0 and is read over :math:`1 - \beta^t`, so that the first model has no weight. Otherwise z
            starts at the first model.

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: (w - batch["x"]) ** 2)
        >>> data = fs.data.FederatedData({"x": jnp.arange(4.0)}, offsets=[0, 2, 4])
        >>> server = optax.chain(fs.server.fedavgm(1.0), fs.server.ema(0.9))
        >>> sim = fs.Simulation(fs.fedavg(task, optax.sgd(0.1), server), data, fs.sampler.uniform(2), fs.Batching(2))
        >>> state, _ = sim.run(sim.init(), rounds=2)
        >>> print(f"{sim.params(state):.4f} {sim.params(state, ema=True):.4f}")
        0.8100 0.5684
    """
    check_fraction("decay", decay)
    check(isinstance(debias, bool), "debias", debias, "must be True or False.")

    def init(params: Params) -> EmaState:
        if debias:
            return EmaState(jax.tree.map(jnp.zeros_like, params), jnp.zeros(()))
        return EmaState(params, jnp.ones(()))

    def update(updates: Params, state: EmaState, params: Params | None = None):
        if params is None:
            raise ArgumentError("params=None: fs.server.ema averages models, and needs them in update.")
        model = optax.apply_updates(params, updates)
        mix = lambda z, x: (decay * z + (1 - decay) * x).astype(z.dtype)
        weight = decay * state.weight + (1 - decay)
        return updates, EmaState(jax.tree.map(mix, state.total, model), jnp.asarray(weight, jnp.float32))

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def averaged(server: PyTree, params: Params) -> Params:
    """The moving average that `ema` keeps in a server state; `params` before the first round, and for collections.

    Raises:
        ArgumentError: no average, or more than one, in the state.

    Example:
        >>> import jax.numpy as jnp, fedjax_sim as fs
        >>> state = fs.server.EmaState(total=jnp.array([1.0]), weight=jnp.array(0.5))
        >>> print(fs.server.averaged(state, params=jnp.zeros(1)))
        [2.]
    """
    is_ema = lambda node: isinstance(node, EmaState)
    found = [node for node in jax.tree.leaves(server, is_leaf=is_ema) if is_ema(node)]
    if len(found) != 1:
        raise ArgumentError(
            f"ema=True: the server state keeps {len(found)} moving averages; give the algorithm a server optimizer "
            "with one, as optax.chain(optax.sgd(1.0), fs.server.ema())."
        )
    total, weight = found[0]
    collections = {}
    if jax.tree.structure(total) != jax.tree.structure(params):  # a model with collections, which are not averaged
        collections = {name: leaf for name, leaf in params.items() if name not in total}
        params = {name: params[name] for name in total}
    scale = 1 / jnp.where(weight > 0, weight, 1.0)
    mean = jax.tree.map(lambda z, x: jnp.where(weight > 0, (scale * z).astype(x.dtype), x), total, params)
    return {**mean, **collections} if collections else mean


def step(
    optimizer: optax.GradientTransformation, params: Params, state: optax.OptState, delta: Params
) -> tuple[Params, optax.OptState]:
    """One server step: the only place where a delta becomes a (pseudo-)gradient.

    Args:
        optimizer: any optax transformation.
        params: x.
        state: the optimizer's state.
        delta: the clients' mean delta, client - server.

    Returns:
        (params, state).

    Example:
        >>> import jax.numpy as jnp, optax, fedjax_sim as fs
        >>> sgd = optax.sgd(1.0)
        >>> print(fs.server.step(sgd, jnp.ones(1), sgd.init(jnp.ones(1)), delta=jnp.array([0.5]))[0])
        [1.5]
    """
    gradient = jax.tree.map(jnp.negative, delta)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state


def _check_rate(learning_rate: Rate) -> None:
    if not callable(learning_rate):
        check_positive("learning_rate", learning_rate, "Or an optax schedule: steps -> rate.")
        return
    first: Any = learning_rate(jnp.zeros((), jnp.int32))
    check(jnp.shape(first) == (), "learning_rate(0)", first, "a schedule must give one number for a count of steps.")
    check_not_negative("learning_rate(0)", first, "It is the rate of the first server step.")


def _adaptive(
    accumulate: Accumulate,
    learning_rate: Rate,
    b1: Scalar,
    b2: Scalar | None,
    tau: Scalar,
    bias_correction: bool,
    initial_accumulator: Scalar | None,
) -> optax.GradientTransformation:
    _check_rate(learning_rate)
    check_fraction("b1", b1)
    if b2 is not None:
        check_fraction("b2", b2)
    check_positive("tau", tau, "It keeps the step finite where the accumulator is small.")
    if initial_accumulator is not None:
        check_not_negative("initial_accumulator", initial_accumulator)
    start = tau**2 if initial_accumulator is None else initial_accumulator

    def init(params: Params) -> AdaptiveState:
        return AdaptiveState(
            jnp.zeros((), jnp.int32),
            jax.tree.map(jnp.zeros_like, params),
            jax.tree.map(lambda p: jnp.full_like(p, start), params),
        )

    def update(gradient: Params, state: AdaptiveState, params: Params | None = None):
        del params
        count = state.count + 1
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.m, gradient)
        v = jax.tree.map(lambda v, g: accumulate(v, g**2, b2), state.v, gradient)
        rate: Any = learning_rate(state.count) if callable(learning_rate) else learning_rate
        if bias_correction:
            rate = rate / (1 - b1**count)
            rate = rate if b2 is None else rate * jnp.sqrt(1 - b2**count)
        step = lambda m, v: (-rate * m / (jnp.sqrt(v) + tau)).astype(m.dtype)
        return jax.tree.map(step, m, v), AdaptiveState(count, m, v)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]
