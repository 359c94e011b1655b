"""NumPy twins of the algorithms, written from the papers' rules. They import nothing of the project, nor JAX.

A client is a pair (A [n, d], t [n]); its loss is the mean over its examples of (A x - t)^2 / 2. All is float64. A twin
returns the models after each round, [R, d]. Where it takes `mistake`, the name of a known mistake makes it wrong in
just that way: what is right is what stands without any.
"""

import numpy as np


def gradient(x, A, t):
    """The gradient of the mean loss over the rows of A."""
    return A.T @ (A @ x - t) / len(t)


def batches(client, size, epochs, mistake=""):
    """Stored order, cut every `size` examples; an epoch's last batch is short, and none straddles two epochs."""
    A, t = client
    if mistake == "straddling batches":
        A, t, epochs = np.tile(A, (epochs, 1)), np.tile(t, epochs), 1
    for _ in range(epochs):
        for i in range(0, len(t), size):
            if mistake == "dropped last batch" and i + size > len(t):
                continue
            yield A[i : i + size], t[i : i + size]


def local_sgd(x, client, lr, size, epochs, extra, mistake=""):
    """K steps y -= lr (g(y) + extra(y)) from x, g a batch's mean over its real examples. Returns (y, K)."""
    y, steps = x, 0
    for A, t in batches(client, size, epochs, mistake):
        g = gradient(y, A, t)
        if mistake == "padding in the loss mean":
            g = g * len(t) / size
        y, steps = y - lr * (g + extra(y)), steps + 1
    return y, steps


def members_of(cohort, clients):
    """The clients that take part: those with examples."""
    return [k for k in cohort if len(clients[k][1])]


def plain_sum(x, delta):
    """FedAvg's own server: x += delta."""
    return x + delta


# Algorithms


def fedavg(clients, x, cohorts, lr, size, epochs, server=plain_sum, extra=None, mistake=""):
    """FedAvg (McMahan et al. 2017): x += sum_S n_k (y_k - x) / sum_S n_k, y_k after local SGD from x.

    `server` takes the place of the last addition; `extra(y, x)` adds to each local gradient.
    """
    out = []
    for cohort in cohorts:
        total, count = 0.0, 0.0
        for k in members_of(cohort, clients):
            n = len(clients[k][1])
            if mistake == "padding in n_k":
                n = -(-n // size) * size
            pull = (lambda y: 0.0) if extra is None else (lambda y, x=x: extra(y, x))
            y, _ = local_sgd(x, clients[k], lr, size, epochs, pull, mistake)
            total, count = total + n * (y - x), count + n
        if mistake == "divided by the population":
            count = sum(len(t) for _, t in clients)
        x = server(x, total / count)
        out.append(x)
    return np.array(out)


def fedprox(clients, x, cohorts, lr, size, epochs, mu, server=plain_sum, mistake=""):
    """FedProx (Li et al. 2020): FedAvg on f_k(y) + mu/2 |y - x|^2, which adds mu (y - x) to each gradient."""

    def extra(y, x):
        if mistake == "aliased reference":
            x = y
        if mistake == "norm not squared":
            return mu / 2 * (y - x) / max(np.linalg.norm(y - x), 1e-30)
        return mu * (y - x)

    return fedavg(clients, x, cohorts, lr, size, epochs, server, extra, mistake)


def fedsgd(clients, x, cohorts, server):
    """FedSGD (McMahan et al. 2017): the server is fed -sum_S n_k grad f_k(x) / sum_S n_k; no local steps."""
    out = []
    for cohort in cohorts:
        members = members_of(cohort, clients)
        sizes = [len(clients[k][1]) for k in members]
        total = sum(n * gradient(x, *clients[k]) for n, k in zip(sizes, members, strict=True))
        x = server(x, -total / sum(sizes))
        out.append(x)
    return np.array(out)


def scaffold(clients, x, cohorts, lr, size, epochs, option, server_lr=1.0, mistake=""):
    """SCAFFOLD (Karimireddy et al. 2020), Algorithm 1. Returns x [R, d], c [R, d] and all c_k [R, N, d].

    y -= lr (g(y) - c_k + c);  c_k+ = grad f_k(x) (option 1) or c_k - c + (x - y) / (K lr) (option 2);
    x += server_lr mean_S (y_k - x);  c += 1/N sum_S (c_k+ - c_k), N the whole population, K real steps.
    """
    c, own = np.zeros_like(x), np.zeros((len(clients), len(x)))
    out = []
    for cohort in cohorts:
        members, deltas, changes = members_of(cohort, clients), [], []
        for k in members:
            drift = own[k] - c if mistake == "flipped correction" else c - own[k]
            y, steps = local_sgd(x, clients[k], lr, size, epochs, lambda y, drift=drift: drift)
            if mistake == "K without epochs":
                steps = steps / epochs
            moved = (y - x if mistake == "wrong sign in option II" else x - y) / (steps * lr)
            new = gradient(x, *clients[k]) if option == 1 else own[k] - c + moved
            deltas.append(y - x)
            changes.append(new if mistake == "c_k sent in full" else new - own[k])
            own[k] = new
        weights = [len(clients[k][1]) if mistake == "weights by examples" else 1 for k in members]
        x = x + server_lr * np.average(deltas, axis=0, weights=weights)
        c = c + sum(changes) / (len(members) if mistake == "c divided by |S|" else len(clients))
        out.append((x, c, own.copy()))
    return tuple(np.array(column) for column in zip(*out, strict=True))


# Server optimizers: each makes a fresh, stateful `server(x, delta) -> x`.


def fedavgm(lr, momentum, mistake=""):
    """FedAvgM (Hsu et al. 2019): v = beta v + Delta, x += lr v: heavy ball."""
    v = 0.0

    def server(x, delta):
        nonlocal v
        v = momentum * v + (1 - momentum if mistake == "moving average" else 1) * delta
        return x + lr * v

    return server


def fedopt(rule, lr, b1, b2, tau, v0=None, corrected=False, mistake=""):
    """FedOpt (Reddi et al. 2021), Algorithm 2: m = b1 m + (1 - b1) Delta, x += lr m / (sqrt(v) + tau), v0 = tau^2.

    v by the rule: adagrad v + Delta^2; adam b2 v + (1 - b2) Delta^2; yogi v - (1 - b2) Delta^2 sign(v - Delta^2).
    The released code's Adam also multiplies lr by sqrt(1 - b2^t) / (1 - b1^t), t = 1 in the first round, from v0 = 0.
    """
    m, v, t = 0.0, tau**2 if v0 is None else v0, 0

    def server(x, delta):
        nonlocal m, v, t
        t += 1
        exponent = t + 1 if mistake == "exponent off by one" else t
        m = b1 * m + (1 - b1) * delta
        if rule == "adagrad":
            v = v + delta**2
        elif rule == "adam":
            v = b2 * v + (1 - b2) * delta**2
        else:
            against = delta if mistake == "sign of v - delta" else delta**2
            # The right rule never falls below 0; the mistaken one does.
            v = np.maximum(v - (1 - b2) * delta**2 * np.sign(v - against), 0)
        rate = lr * np.sqrt(1 - b2**exponent) / (1 - b1**exponent) if corrected else lr
        root = np.sqrt(v + tau**2) if mistake == "epsilon inside the root" else np.sqrt(v) + tau
        return x + rate * (delta if mistake == "delta for m" else m) / root

    return server
