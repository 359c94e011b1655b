"""NumPy twins of the methods with models of clients' own, as those of twins.py: nothing of the project, nor JAX.

A twin returns the server's models [R, d] and the clients' own [R, K, d] after each round, or what its docstring says.
"""

import numpy as np

from tests.algorithms.twins import batches, gradient, members_of


def private(clients, x, cohorts, lr, size, epochs, private, head_steps=None, mu=0.0, mistake=""):
    """FedAvg of the coordinates that are not `private`; these are the client's (Arivazhagan et al. 2019).

    head_steps: so many first steps move the private ones alone, the others the rest alone (Collins et al. 2021).
    mu: FedProx's pull, of what was received.
    """
    own = np.tile(x, (len(clients), 1))
    mine = np.isin(np.arange(len(x)), private)
    out = []
    for cohort in cohorts:
        total, count = 0.0, 0.0
        for k in members_of(cohort, clients):
            y, n = np.where(mine, own[k], x), len(clients[k][1])
            if mistake == "begins anew":
                y = np.where(mine, own[EMPTY], x)
            begin = y
            for s, (A, t) in enumerate(batches(clients[k], size, epochs)):
                g = gradient(y, A, t) + mu * (y - begin) * (1 if mistake == "private ones pulled" else ~mine)
                if head_steps is not None:
                    head = (s >= head_steps) if mistake == "head last" else (s < head_steps)
                    g = g * (mine if head else ~mine)
                y = y - lr * g
            own[k] = y
            total, count = total + n * (y - begin), count + n
        x = x + (total / count) * (1 if mistake == "all averaged" else ~mine)
        if mistake == "all averaged":
            own[:] = x
        out.append((x, np.where(mine, own, x)))
    return tuple(np.array(column) for column in zip(*out, strict=True))


EMPTY = 3
"""A client without examples, whose row is never written."""
