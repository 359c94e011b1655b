"""Every algorithm of `fs.algorithms`, for the laws of test_algorithms.py. A new algorithm adds a line."""

from collections.abc import Callable

import optax

import fedjax_sim as fs
from tests.algorithms.problems import features

LR = 0.05
SGD = optax.sgd(LR)
MOMENTUM = optax.sgd(LR, momentum=0.5)

METHODS: dict[str, Callable[[fs.Task], fs.Algorithm]] = {
    "afl": lambda task: fs.afl(task, SGD, 3, gamma=0.3),
    "apfl": lambda task: fs.apfl(task, LR, alpha=0.4),
    "by_round": lambda task: fs.by_round(lambda r: fs.fedprox(task, optax.sgd(LR * 0.9**r), mu=0.5)),  # type: ignore[arg-type]
    "diloco": lambda task: fs.diloco(task, optax.adamw(LR)),
    "ditto": lambda task: fs.ditto(task, MOMENTUM, lam=0.5),
    "fedacg": lambda task: fs.fedacg(task, SGD),
    "fedasync": lambda task: fs.fedasync(task, SGD, mixing=1.0, rho=0.5),
    "fedavg": lambda task: fs.fedavg(task, MOMENTUM, fs.server.fedadam(0.1)),
    "fedavg, averaged optimizers": lambda task: fs.fedavg(task, optax.adam(LR), client_optimizer_state="average"),
    "fedavg, moving average": lambda task: fs.fedavg(task, SGD, optax.chain(optax.sgd(1.0), fs.server.ema(0.8))),
    "fedavg, private": lambda task: fs.fedavg(task, MOMENTUM, client_optimizer_state="keep", private="^b$"),
    "feddyn": lambda task: fs.feddyn(task, LR, alpha=0.5),
    "fedexp": lambda task: fs.fedexp(task, SGD, eps=0.1),
    "fednova": lambda task: fs.fednova(task, LR, momentum=0.5, mu=1.0),
    "fedpa": lambda task: fs.fedpa(task, SGD, samples=2, sample_steps=2, burn_in_rounds=1),
    "fedprox": lambda task: fs.fedprox(task, SGD, client_optimizer_state="keep", mu=1.0),
    "fedsam": lambda task: fs.fedsam(task, LR, rho=0.1, adaptive=True),
    "fedsgd": lambda task: fs.fedsgd(task, MOMENTUM),
    "gossip": lambda task: fs.gossip(task, MOMENTUM, [fs.mixing.ring(6), fs.mixing.exponential(6)]),
    "ifca": lambda task: fs.ifca(task, MOMENTUM, 2, jitter=1.0),
    "mime": lambda task: fs.mime(task, MOMENTUM),
    "mimelite": lambda task: fs.mimelite(task, MOMENTUM),
    "moon": lambda task: fs.moon(task, SGD, features),
    "perfedavg": lambda task: fs.perfedavg(task, LR, LR),
    "pfedme": lambda task: fs.pfedme(task, LR, LR, lam=5.0, inner_steps=1),
    "qfedavg": lambda task: fs.qfedavg(task, LR, q=1.0),
    "reptile": lambda task: fs.reptile(task, SGD, 0.5),
    "scaffnew": lambda task: fs.scaffnew(task, 0.5, LR),
    "scaffold": lambda task: fs.scaffold(task, LR),
}
"""A name up to its comma is the algorithm's."""

EQUAL = {"diloco", "fedasync", "fedexp", "feddyn", "perfedavg", "pfedme", "qfedavg", "reptile", "scaffnew", "scaffold"}
"""Those that count each client once."""

NO_COLLECTIONS = {"fedsgd"}
"""Those that refuse a task with collections, such as batch statistics."""

OTHER_MEANS = {"afl", "gossip", "ifca"}
"""Those of whose collections the mean is of other clients than the cohort's."""

NO_METHODS = {"compress_downlink", "hierarchical"}
"""Functions of `fs.algorithms` that make an algorithm of another one."""
