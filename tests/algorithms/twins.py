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


def fednova(clients, x, cohorts, lr, size, epochs, momentum=0.0, mu=0.0, mistake=""):
    """FedNova (Wang et al. 2020), equation 8: x += (sum_k p_k |a_k|) sum_k p_k (y_k - x) / |a_k|, p_k by examples.

    a_k are the weights of a client's gradients in x - y_k, over lr: with m = momentum m + g, y -= lr (m + mu (y - x)) a
    gradient of step s enters a later step's m with momentum^(steps since), and what entered y shrinks by 1 - lr mu.
    """
    out = []
    for cohort in cohorts:
        members = members_of(cohort, clients)
        n = np.array([len(clients[k][1]) for k in members], float)
        if mistake == "equal weights":
            n = np.ones(len(members))
        p, deltas, lengths = n / n.sum(), [], []
        for k in members:
            y, m, a = x, 0.0, []
            for A, t in batches(clients[k], size, epochs):
                m = momentum * m + gradient(y, A, t)
                y = y - lr * (m + mu * (y - x))
                a = [w * (1 - lr * mu) for w in a] + [0.0]
                a = [w + momentum ** (len(a) - 1 - s) for s, w in enumerate(a)]
            if mistake == "the number of steps for |a|":
                a = np.ones(len(a))
            deltas.append(y - x)
            lengths.append(np.sum(a))
        deltas, lengths = np.array(deltas), np.array(lengths)
        length = p @ lengths
        if mistake == "models averaged":  # with weights p tau / |a|, which do not sum to 1
            x = (p * length / lengths) @ (x + deltas)
            out.append(x)
            continue
        if mistake == "scaled by the population":
            length = length * len(clients) / len(members)
        x = x + length * ((p / lengths) @ deltas)
        out.append(x)
    return np.array(out)


def feddyn(clients, x, cohorts, lr, size, epochs, alpha, mistake=""):
    """FedDyn (Acar et al. 2021), Algorithm 1. Returns the clients' mean [R, d], the sent models, h, and all g_k.

    y -= lr (g(y) - g_k + alpha (y - x));  g_k -= alpha (y_k - x);  h -= alpha / N sum_S (y_k - x);
    x = mean_S y_k - h / alpha.
    """
    h, own = np.zeros_like(x), np.zeros((len(clients), len(x)))
    out = []
    for cohort in cohorts:
        members, models = members_of(cohort, clients), []
        for k in members:
            bend = lambda y, x=x, k=k: alpha * (y - x) - own[k]
            if mistake == "g_k added":
                bend = lambda y, x=x, k=k: alpha * (y - x) + own[k]
            y, _ = local_sgd(x, clients[k], lr, size, epochs, bend)
            models.append(y)
            if mistake == "accumulates x - y":
                own[k] = own[k] - alpha * (x - y)
            else:
                own[k] = own[k] - alpha * (alpha if mistake == "alpha twice" else 1) * (y - x)
        moved = sum(models) - (x if mistake == "x once for all" else len(members) * x)
        h = h - alpha * moved / (len(members) if mistake == "h divided by |S|" else len(clients))
        weights = [len(clients[k][1]) if mistake == "weights by examples" else 1 for k in members]
        mean = np.average(models, axis=0, weights=weights)
        x = mean - h / alpha
        out.append((x if mistake == "the sent model is evaluated" else mean, x, h, own.copy()))
    return tuple(np.array(column) for column in zip(*out, strict=True))


def fedexp(clients, x, cohorts, lr, size, epochs, eps, mistake=""):
    """FedExP (Jhunjhunwala et al. 2023), equation 5. Returns the mean of the last two models, x, and the steps.

    step = max(1, sum_S |D_k|^2 / (2 M (|D|^2 + eps))), D the plain mean; x += step D.
    """
    out = []
    for cohort in cohorts:
        members = members_of(cohort, clients)
        deltas = np.array([local_sgd(x, clients[k], lr, size, epochs, lambda y: 0.0)[0] - x for k in members])
        weights = [len(clients[k][1]) if mistake == "weights by examples" else 1 for k in members]
        mean = np.average(deltas, axis=0, weights=weights)
        square = (deltas**2).sum() / len(members)
        if mistake == "square of the mean norm":
            square = np.mean(np.linalg.norm(deltas, axis=1)) ** 2
        step = square / ((1 if mistake == "without the 2" else 2) * (mean @ mean + eps))
        if mistake != "below 1":
            step = max(1.0, step)
        last, x = x, x + step * mean
        out.append((x if mistake == "the last model" else (x + last) / 2, x, step))
    return tuple(np.array(column) for column in zip(*out, strict=True))


def mime(clients, x, cohorts, lr, size, epochs, momentum, lite, mistake=""):
    """Mime and MimeLite (Karimireddy et al. 2020) with momentum, weighted by examples. Returns models and momenta.

    y -= lr (g + momentum m), with g = g(y) (MimeLite) or g(y) - g(x) + c of one batch; m = momentum m + c after the
    round, c = sum_k n_k grad f_k(x) / sum_k n_k.
    """
    m = np.zeros_like(x)
    out = []
    for cohort in cohorts:
        members = members_of(cohort, clients)
        n = np.array([len(clients[k][1]) for k in members], float)
        c = n @ np.array([gradient(x, *clients[k]) for k in members]) / n.sum()
        deltas, ends = [], []
        for k in members:
            y, own = x, m
            for A, t in batches(clients[k], size, epochs):
                g = gradient(y, A, t)
                if not lite:
                    there = gradient(x, *clients[k]) if mistake == "another batch at x" else gradient(x, A, t)
                    g = g - there + c
                y = y - lr * (g + momentum * own)
                if mistake == "momentum moves in the round":
                    own = momentum * own + g
            deltas.append(y - x)
            ends.append(own)
        if mistake == "momentum from the deltas":
            m = momentum * m - n @ np.array(deltas) / n.sum() / lr
        elif mistake == "momentum moves in the round":
            m = n @ np.array(ends) / n.sum()
        else:
            m = momentum * m + c
        x = x + n @ np.array(deltas) / n.sum()
        out.append((x, m))
    return tuple(np.array(column) for column in zip(*out, strict=True))


def loss(x, A, t):
    """The mean loss over the rows of A."""
    return np.mean((A @ x - t) ** 2) / 2


def qfedavg(clients, x, cohorts, lr, size, epochs, q, mistake=""):
    """q-FedAvg (Li et al. 2020), Algorithm 2: with L = 1/lr and u_k = L (x - y_k),

    x -= sum_S F_k^q u_k / sum_S (q F_k^(q-1) |u_k|^2 + L F_k^q), F_k the loss at x before training.
    """
    out = []
    for cohort in cohorts:
        top, bottom = 0.0, 0.0
        for k in members_of(cohort, clients):
            y, _ = local_sgd(x, clients[k], lr, size, epochs, lambda y: 0.0)
            F, u = loss(x, *clients[k]), (x - y) / lr
            if mistake == "summed while training":
                F, at = 0.0, x
                for A, t in batches(clients[k], size, epochs):
                    F, at = F + loss(at, A, t), at - lr * gradient(at, A, t)
            if mistake == "loss after training":
                F = loss(y, *clients[k])
            square = np.linalg.norm(u) if mistake == "norm not squared" else u @ u
            top = top + F**q * u
            bottom = bottom + q * F ** (q - 1) * square + F**q / lr
        x = x - top / bottom
        out.append(x)
    return np.array(out)


def projected(v, total=1.0):
    """The nearest point of {w >= 0, sum w = total}: by bisection on what is taken off all."""
    low, high = v.min() - total, v.max()
    for _ in range(200):
        level = (low + high) / 2
        low, high = (level, high) if np.maximum(v - level, 0).sum() > total else (low, level)
    return np.maximum(v - level, 0)


def afl(clients, domains, x, cohorts, lr, size, epochs, gamma, rule, mistake=""):
    """Agnostic averaging (Mohri et al. 2019; Ro et al. 2021). Returns models and domain weights.

    `domains` are each client's examples' domains. Examples weigh lambda_d / N_d, N_d the round's examples of d; a
    client's loss is the weighted mean of a batch, its delta weighs the sum of its examples' weights.
    """
    count = 1 + max(d.max() for d in domains if len(d))
    lam = np.full(count, 1 / count)
    out = []
    for cohort in cohorts:
        members = members_of(cohort, clients)
        N, L = np.zeros(count), np.zeros(count)
        for k in members:
            A, t = clients[k]
            np.add.at(N, domains[k], 1.0)
            np.add.at(L, domains[k], (A @ x - t) ** 2 / 2)
        present = N > 0
        L[present] /= N[present]
        alpha = np.where(present, lam / np.maximum(N, 1), 0.0)
        if mistake == "sizes of domains ignored":
            alpha = np.where(present, lam, 0.0)
        total, weight = 0.0, 0.0
        for k in members:
            A, t = clients[k]
            a, y = alpha[domains[k]], x
            for _ in range(epochs):
                for i in range(0, len(t), size):
                    part = slice(i, i + size)
                    y = y - lr * A[part].T @ (a[part] * (A[part] @ y - t[part])) / max(a[part].sum(), 1e-30)
            total, weight = total + a.sum() * (y - x), weight + a.sum()
        at = x + total / weight if mistake == "losses of the new model" else x
        if mistake:
            for d in np.flatnonzero(present):
                each = [(clients[k][0][domains[k] == d], clients[k][1][domains[k] == d]) for k in members]
                L[d] = sum(((A @ at - t) ** 2 / 2).sum() for A, t in each) / N[d]
        x = x + total / weight
        if mistake == "absent domains fall":
            lam = lam * np.exp(gamma * L)
            lam = lam / lam.sum()
        elif rule == "exponentiated":
            new = np.where(present, lam * np.exp(gamma * L), 0.0)
            lam = np.where(present, new / new.sum() * lam[present].sum(), lam)
        else:
            lam = lam.copy()
            lam[present] = projected(lam[present] + gamma * L[present], lam[present].sum())
        out.append((x, lam))
    return tuple(np.array(column) for column in zip(*out, strict=True))


def fedsam(clients, x, cohorts, lr, size, epochs, rho, adaptive, mistake=""):
    """FedSAM, FedASAM (Caldarola et al. 2022): y -= lr g(y + rho T^2 g / |T g|), T = 1 or |y| + 0.01."""
    out = []
    for cohort in cohorts:
        total, count = 0.0, 0.0
        for k in members_of(cohort, clients):
            y, n = x, len(clients[k][1])
            for A, t in batches(clients[k], size, epochs):
                g = gradient(y, A, t)
                T = np.abs(y) + 0.01 if adaptive else np.ones_like(y)
                norm = np.linalg.norm(T * g)
                if mistake == "a norm for each leaf":
                    norm = np.array([np.linalg.norm((T * g)[:-1])] * (len(x) - 1) + [abs((T * g)[-1])])
                up = rho * T**2 * g / (1.0 if mistake == "not normalised" else norm)
                y = y - lr * gradient(y - up if mistake == "descent first" else y + up, A, t)
            total, count = total + n * (y - x), count + n
        x = x + total / count
        out.append(x)
    return np.array(out)


def fedacg(clients, x, cohorts, lr, size, epochs, lam, beta, mistake=""):
    """FedACG (Kim et al. 2024): from z = x + lam m with beta (y - z) on gradients; m = lam m + mean (y - z); x += m."""
    m = np.zeros_like(x)
    out = []
    for cohort in cohorts:
        z = x if mistake == "starts at x" else x + lam * m
        total, count = 0.0, 0.0
        for k in members_of(cohort, clients):
            n, centre = len(clients[k][1]), x if mistake == "pulled to x" else z
            y, _ = local_sgd(z, clients[k], lr, size, epochs, lambda y, c=centre: beta * (y - c))
            total, count = total + n * (y - z), count + n
        m = lam * m + total / count
        x = x + m
        out.append(x)
    return np.array(out)


def local_momentum(clients, x, cohorts, lr, size, epochs, momentum, kept, server=plain_sum, mistake=""):
    """FedAvg of clients with momentum, v = momentum v + g, y -= lr v, whose v a round leaves: "reset", kept by each
    client ("keep") or averaged by examples ("average"); with kept="keep, equal" clients also weigh the same.
    """
    own, shared = np.zeros((len(clients), len(x))), np.zeros_like(x)
    out = []
    for cohort in cohorts:
        total, ends, count = 0.0, 0.0, 0.0
        for k in members_of(cohort, clients):
            n = 1 if kept == "keep, equal" else len(clients[k][1])
            v = {"reset": 0 * x, "average": shared}.get(kept, own[k])
            y = x
            for A, t in batches(clients[k], size, epochs):
                v = momentum * v + gradient(y, A, t)
                y = y - lr * v
            own[k] = v
            total, ends, count = total + n * (y - x), ends + n * v, count + n
        shared = ends / count
        x = server(x, total / count)
        out.append(x)
    return np.array(out)


def cosine(a, b):
    """Row by row."""
    return (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))


def moon(clients, x, cohorts, lr, size, epochs, mu, tau, features, mistake=""):
    """MOON (Li et al. 2021): the mean of l + mu con, con = -log(e^(s_x/tau) / (e^(s_x/tau) + e^(s_o/tau))).

    s are cosines of features with the received model's and the client's last one's; con's gradient is by differences.
    """
    own = np.tile(x, (len(clients), 1))
    out = []
    for cohort in cohorts:
        total, count = 0.0, 0.0
        for k in members_of(cohort, clients):

            def contrast(y, A, k=k, x=x):
                near, far = (cosine(features(y, A), features(m, A)) / tau for m in (x, own[k]))
                if mistake == "pushed from the received model":
                    near, far = far, near
                return mu * np.mean(-np.log(np.exp(near) / (np.exp(near) + np.exp(far))))

            y, n = x, len(clients[k][1])
            for A, t in batches(clients[k], size, epochs):
                steps = 1e-5 * np.eye(len(x))
                slope = np.array([(contrast(y + h, A) - contrast(y - h, A)) / 2e-5 for h in steps])
                y = y - lr * (gradient(y, A, t) + slope)
            if mistake != "the last model is the first":
                own[k] = y
            total, count = total + n * (y - x), count + n
        x = x + total / count
        out.append(x)
    return np.array(out)


def fedpa(clients, x, cohorts, lr, size, epochs, samples, steps, burn_in, rounds, rho, mistake=""):
    """FedPA (Al-Shedivat et al. 2021): delta = Sigma^-1 (mean - x), Sigma = rho_n I + (1 - rho_n) Cov, dense.

    rho_n = 1 / (1 + (n - 1) rho); samples are means of iterates over `steps` steps after `burn_in`.
    """
    out = []
    for r, cohort in enumerate(cohorts):
        total, count = 0.0, 0.0
        for k in members_of(cohort, clients):
            y, path = x, []
            for A, t in batches(clients[k], size, epochs):
                y = y - lr * gradient(y, A, t)
                path.append(y)
            path = np.array(path[burn_in:])
            drawn = [path[i * steps : (i + 1) * steps] for i in range(samples)]
            drawn = np.array([d.mean(0) for d in drawn if len(d) == steps])
            delta, n = y - x, len(clients[k][1])
            if len(drawn) and r >= rounds:
                shrink = 1 / (1 + (len(drawn) - 1) * rho)
                apart = drawn - drawn.mean(0)
                cov = apart.T @ apart / max(len(drawn) - (mistake != "biased covariance"), 1)
                weight = 1.0 if mistake == "covariance not shrunk" else 1 - shrink
                delta = np.linalg.solve(shrink * np.eye(len(x)) + weight * cov, drawn.mean(0) - x)
            total, count = total + n * delta, count + n
        x = x + total / count
        out.append(x)
    return np.array(out)


# Server optimizers: each makes a fresh, stateful `server(x, delta) -> x`.


def fedavgm(lr, momentum, ema=False, debias=False, mistake=""):
    """FedAvgM (Hsu et al. 2019): v = beta v + Delta, x += lr v: heavy ball. As a moving average Delta enters with
    1 - beta, and v is divided by 1 - beta^t if its bias is taken off.
    """
    v, t = 0.0, 0

    def server(x, delta):
        nonlocal v, t
        t += 1
        if mistake == "first delta lost" and t == 1:
            return x
        if mistake == "seeded with the first delta" and t == 1:
            v = delta
        v = momentum * v + (1 - momentum if ema or mistake == "moving average" else 1) * delta
        return x + lr * v / (1 - momentum**t if debias else 1)

    return server


def nesterov(lr, momentum, mistake=""):
    """DiLoCo's outer step (Douillard et al. 2023): v = beta v - Delta, x -= lr (beta v - Delta)."""
    v = 0.0

    def server(x, delta):
        nonlocal v
        v = momentum * v - delta
        return x - lr * (v if mistake == "heavy ball" else momentum * v - delta)

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
