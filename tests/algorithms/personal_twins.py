"""NumPy twins of the methods with models of clients' own, as those of twins.py: nothing of the project, nor JAX.

A twin returns the server's models [R, d] and the clients' own [R, K, d] after each round, or what its docstring says.
"""

import numpy as np

from tests.algorithms.twins import batches, gradient, members_of

EMPTY = 3
"""A client without examples, whose row is never written."""


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


def personal(own, x):
    """The models that clients have: the server's, of those that were never trained."""
    return np.array([x if v is None else v for v in own])


def ditto(clients, x, cohorts, lr, size, epochs, lam, mistake=""):
    """Ditto (Li et al. 2021), Algorithm 1: FedAvg, and v_k -= lr (g(v_k) + lam (v_k - x)) from the last v_k on."""
    own, out = [None] * len(clients), []
    for cohort in cohorts:
        total, count = 0.0, 0.0
        for k in members_of(cohort, clients):
            n, y = len(clients[k][1]), x
            v = x if own[k] is None or mistake == "begins anew" else own[k]
            for A, t in batches(clients[k], size, epochs):
                y = y - lr * gradient(y, A, t)
                centre = {"pulled to y": y, "pulled to itself": v}.get(mistake, x)
                v = v - lr * (gradient(v, A, t) + lam * (v - centre))
            own[k], total, count = v, total + n * (y - x), count + n
        x = x + total / count
        out.append((x, personal(own, x)))
    return tuple(np.array(column) for column in zip(*out, strict=True))


def apfl(clients, x, cohorts, lr, size, epochs, alpha, adaptive=True, mistake=""):
    """APFL (Deng et al. 2020), Algorithm 1: with m = a v + (1 - a) w, all from the values before the step,

    w -= lr g(w);  v -= lr a g(m);  a -= lr <v - w, g(m)>, kept within [0, 1].
    """
    own, alphas, out = [None] * len(clients), np.full(len(clients), alpha), []
    for cohort in cohorts:
        total, count = 0.0, 0.0
        for k in members_of(cohort, clients):
            n, w, v, a = len(clients[k][1]), x, x if own[k] is None else own[k], alphas[k]
            for A, t in batches(clients[k], size, epochs):
                old, w = w, w - lr * gradient(w, A, t)
                other = w if mistake == "the new w" else old
                m = a * v + (1 - a) * other
                g = gradient(v if mistake == "v alone" else m, A, t)
                slope = (v - other) @ g
                v = v - lr * (1 if mistake == "no chain rule" else a) * g
                if adaptive:
                    a = np.clip(a - lr * slope, 0, 1)
            if mistake == "v becomes the mixture":
                v = a * v + (1 - a) * w
            own[k], alphas[k], total, count = v, a, total + n * (w - x), count + n
        x = x + total / count
        mixed = alphas[:, None] * personal(own, x) + (1 - alphas[:, None]) * x
        out.append((x, mixed))
    return tuple(np.array(column) for column in zip(*out, strict=True))


def pfedme(clients, x, cohorts, lr, size, epochs, inner_lr, lam, inner_steps, beta, mistake=""):
    """pFedMe (Dinh et al. 2020), Algorithm 1: theta -= inner_lr (g(theta) + lam (theta - w)) some times a batch, then
    w -= lr lam (w - theta); x = (1 - beta) x + beta mean w. Both begin a round at x.
    """
    own, out = [None] * len(clients), []
    for cohort in cohorts:
        ends = []
        for k in members_of(cohort, clients):
            w = theta = x
            for A, t in batches(clients[k], size, epochs):
                theta = w if mistake == "theta from w" else theta
                for _ in range(inner_steps):
                    centre = theta if mistake == "its own centre" else w
                    theta = theta - inner_lr * (gradient(theta, A, t) + lam * (theta - centre))
                w = w - lr * lam * (w - theta)
            own[k] = theta
            ends.append(theta if mistake == "theta averaged" else w)
        weights = [len(clients[k][1]) for k in members_of(cohort, clients)] if mistake == "by examples" else None
        x = (1 - beta) * x + beta * np.average(ends, axis=0, weights=weights)
        out.append((x, personal(own, x)))
    return tuple(np.array(column) for column in zip(*out, strict=True))


def perfedavg(clients, x, cohorts, alpha, size, epochs, beta, order, mistake=""):
    """Per-FedAvg (Fallah et al. 2020), Algorithm 1: w -= beta (I - alpha H(B'')) g(w - alpha g(w; B); B'), plain means.

    B, B' and B'' are batches after each other, the first ones after the last. The Hessian is A'A / n.
    """
    out = []
    for cohort in cohorts:
        ends = []
        for k in members_of(cohort, clients):
            w, all_batches = x, list(batches(clients[k], size, epochs))
            for s in range(len(all_batches)):
                ahead = 0 if mistake == "one batch" else 1
                one, two, three = (all_batches[(s + i * ahead) % len(all_batches)] for i in range(3))
                d = gradient(w - alpha * gradient(w, *one), *two)
                if order != "first" and mistake != "first order":
                    at = d if mistake != "Hessian of the first gradient" else gradient(w, *one)
                    d = d - alpha * three[0].T @ (three[0] @ at) / len(three[1])
                w = w - beta * d
            ends.append(w)
        x = np.mean(ends, axis=0)
        out.append(x)
    return (np.array(out),)


def ifca(clients, x, cohorts, lr, size, epochs, first, mistake=""):
    """IFCA (Ghosh et al. 2020), Algorithm 1, with models x_j from `first` on: each client trains the one of least loss.

    Returns the model most of the last round's examples chose, the clients' own, and all models [R, k, d].
    """
    models, own, out = np.array(first), [None] * len(clients), []
    for cohort in cohorts:
        totals, counts = np.zeros_like(models), np.zeros(len(models))
        for k in members_of(cohort, clients):
            A, t = clients[k]
            losses = [np.mean((A @ m - t) ** 2) for m in models]
            j = np.argmax(losses) if mistake == "the worst" else np.argmin(losses)
            if mistake == "chosen once" and own[k] is not None:
                j = own[k]
            y = models[j]
            for batch in batches(clients[k], size, epochs):
                y = y - lr * gradient(y, *batch)
            n = 1 if mistake == "equal weights" else len(t)
            own[k], totals[j], counts[j] = j, totals[j] + n * (y - models[j]), counts[j] + n
        divisor = np.full(len(models), counts.sum()) if mistake == "divided by the cohort" else np.maximum(counts, 1)
        models = models + totals / divisor[:, None]
        x = models[np.argmax(counts)]
        out.append((x, personal([None if j is None else models[j] for j in own], x), models))
    return tuple(np.array(column) for column in zip(*out, strict=True))


def gossip(clients, x, cohorts, lr, size, epochs, mixing, mistake=""):
    """D-PSGD (Lian et al. 2017) with local steps: x_i = sum_j W_ij y_j, W of the round; who is not drawn has y = x.

    The own model of one that never trained is the mean.
    """
    nodes, trained, out = np.tile(x, (len(clients), 1)), np.zeros(len(clients), bool), []
    for r, cohort in enumerate(cohorts):
        W = mixing[0 if mistake == "one graph for all" else r % len(mixing)]
        W = W.T if mistake == "the other way" else W
        after = nodes.copy()
        for k in members_of(cohort, clients):
            for batch in batches(clients[k], size, epochs):
                after[k] = after[k] - lr * gradient(after[k], *batch)
        mixed = W @ nodes + after - nodes if mistake == "mixed before training" else W @ after
        asleep = [k for k in range(len(clients)) if k not in cohort] if mistake == "only the cohort mixes" else []
        mixed[asleep] = nodes[asleep]
        nodes = mixed
        trained[members_of(cohort, clients)] = True
        out.append((nodes.mean(axis=0), np.where(trained[:, None], nodes, nodes.mean(axis=0))))
    return tuple(np.array(column) for column in zip(*out, strict=True))
