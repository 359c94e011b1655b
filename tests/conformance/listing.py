"""Every transform of `fs.aggregate`, each in a chain that may hold it. A new transform adds a line."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_sim as fs

A = fs.aggregate


def whole(step: float = 0.01) -> A.Transform:
    """A plain quantiser for what stands behind one: nearest multiples of a step."""

    def client(key, state, row, payload, context):
        return jax.tree.map(lambda p: jnp.round(p / step).astype(jnp.int32), payload), row, {}

    def server(key, state, aggregate):
        value = jax.tree.map(lambda total: step * total.astype(jnp.float32), aggregate.value)
        return dataclasses.replace(aggregate, value=value), state, {}

    return A.Transform(
        "whole",
        client=client,
        server=server,
        facts=lambda facts: facts._replace(integers=True, bits=16.0, largest=400.0),
        bound=lambda state, incoming, dim: incoming + 0.5 * step * dim**0.5,
        step=lambda state, incoming, bound, dim: step,
    )


class Case(NamedTuple):
    """A chain under the laws.

    Attributes:
        transforms: builds its transforms.
        event: what the cohorts claim to be, for noise that asks.
        exact: decoded sums do not depend on the order of addition, so that results are equal bit for bit.
    """

    transforms: Callable[[], tuple[A.Transform, ...]]
    exact: bool = False
    event: Callable[[int], Any] = fs.sampler.poisson(0.3).event  # type: ignore[assignment]


APART = fs.sampler.min_separation(2, separation=4).event

CASES: dict[str, Case] = {
    "clip_by_l2": Case(lambda: (A.clip_by_l2(2.0),)),
    "clip_by_layer": Case(lambda: (A.clip_by_layer(2.0),)),
    "adaptive_clip": Case(lambda: (A.adaptive_clip(1.0), A.gaussian_noise(0.1))),
    "gaussian_noise": Case(lambda: (A.clip_by_l2(2.0), A.gaussian_noise(0.1))),
    "local_gaussian_noise": Case(lambda: (A.clip_by_l2(2.0), A.local_gaussian_noise(0.1))),
    "local_laplace_noise": Case(lambda: (A.local_laplace_noise(2.0, 0.1),)),
    "bfloat16": Case(lambda: (A.bfloat16(),)),
    "binary": Case(lambda: (A.binary(),)),
    "drive": Case(lambda: (A.drive(),)),
    "eden": Case(lambda: (A.eden(3),)),
    "error_feedback": Case(lambda: (A.error_feedback(A.sign()),)),
    "k_level": Case(lambda: (A.k_level(16),)),
    "power_sgd": Case(lambda: (A.power_sgd(1),)),
    "power_sgd without feedback": Case(lambda: (A.power_sgd(1, feedback=False),)),
    "qsgd": Case(lambda: (A.qsgd(8),)),
    "quantize": Case(lambda: (A.clip_by_l2(2.0), A.quantize(8), A.secure_sum()), exact=True),
    "random_k": Case(lambda: (A.random_k(0.3),)),
    "rotate": Case(lambda: (A.clip_by_l2(2.0), A.rotate(), A.quantize(8), A.secure_sum())),
    "sign": Case(lambda: (A.sign(),)),
    "terngrad": Case(lambda: (A.terngrad(),)),
    "top_k": Case(lambda: (A.error_feedback(A.top_k(0.3)),)),
    "secure_sum": Case(lambda: (A.clip_by_l2(2.0), whole(), A.secure_sum()), exact=True),
    "discrete_gaussian_noise": Case(
        lambda: (A.clip_by_l2(2.0), whole(), A.discrete_gaussian_noise(0.1), A.secure_sum()), exact=True
    ),
    "skellam_noise": Case(lambda: (A.clip_by_l2(2.0), whole(), A.skellam_noise(0.1), A.secure_sum()), exact=True),
    "tree_noise": Case(lambda: (A.clip_by_l2(2.0), A.tree_noise(0.1, separation=4)), event=APART),
    "banded_noise": Case(
        lambda: (A.clip_by_l2(2.0), A.banded_noise(0.1, bands=2, rounds=9, coefficients=(1.0, 0.4))), event=APART
    ),
    "on": Case(lambda: (A.on("w", A.clip_by_l2(1.0)), A.on("b", A.clip_by_l2(1.0)), A.gaussian_noise(0.1))),
}

REDUCERS: dict[str, Callable[[], A.Reducer]] = {
    "mean": A.mean,
    "mean of equals": lambda: A.mean("uniform"),
    "median": A.median,
    "trimmed_mean": lambda: A.trimmed_mean(1),
    "krum": lambda: A.krum(1),
    "multi_krum": lambda: A.multi_krum(1),
    "bulyan": lambda: A.bulyan(0),
    "geometric_median": A.geometric_median,
    "centered_clipping": lambda: A.centered_clipping(1.0),
    "norm_bound": lambda: A.norm_bound("median"),
    "dnc": lambda: A.dnc(1),
    "fltrust": lambda: A.fltrust({"x": np.array([2.0], np.float32)}, steps=1),
    "bucketing": lambda: A.bucketing(1, A.trimmed_mean(1)),
    "nnm": lambda: A.nnm(1, A.median()),
}
"""Every reducer, as it takes five clients."""

COLLECTING = [name for name, make in REDUCERS.items() if not make().linear and name != "fltrust"]
"""Those that make do without examples of the server's, whose form a test must know."""

NO_REDUCERS = {"chain", "as_aggregator", "explain"}
NO_TRANSFORMS = NO_REDUCERS | {*REDUCERS} - {"mean of equals"}
"""Functions of `fs.aggregate` that make no transform."""
