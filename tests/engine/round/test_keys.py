"""Keys of a round: no two of (use, phase, place, client) coincide, nor one with what another one is folded into."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs

PLACES, K = 4, 6
CLIENTS = (0, 1, 2, 3, 5)  # in a round; places and leaves have the same numbers as they
USES = ("encode", "shared", "receive", "decode", "noise", "central", "client", "server")


def words(key):
    return jax.random.key_data(key).astype(jnp.uint32)


def probe(place):
    """Writes the keys that it is given into the payload; an odd one says that it adds noise."""
    noisy = place % 2 == 1

    def at(payload, use, key):
        return payload.at[place, USES.index(use)].set(words(key))

    def client(key, state, row, payload, context):
        payload = at(payload, "shared", context.round_key)
        return at(payload, "noise" if noisy else "encode", key), row, {}

    def server(key, state, aggregate):
        value = jax.vmap(lambda v: at(v, "central" if noisy else "decode", key))(aggregate.value)
        shared = value[:, place, USES.index("shared")]
        # The server has the clients' shared key, too: a wrong one is written over theirs.
        same = jnp.all(shared == words(aggregate.round_key)[None], axis=-1, keepdims=True)
        value = value.at[:, place, USES.index("shared")].set(jnp.where(same, shared, 0))
        return fs.Aggregate(value, aggregate.weight, aggregate.count), state, {}

    def facts(facts):
        mechanism = fs.aggregate.Mechanism("gaussian", 1.0, "local", "statistic", transform="probe")
        return facts._replace(noise=(*facts.noise, mechanism) if noisy else facts.noise)

    receive = lambda key, state, message: at(message, "receive", key)
    return fs.aggregate.Transform(f"probe {place}", client=client, receive=receive, server=server, facts=facts)


def aggregator():
    """All messages of a cohort, as they are; chains would check what noise goes with."""
    kept = fs.aggregate.Reducer("all", weight="uniform", collect=lambda c: fs.aggregate.Reduced(c.messages))
    transforms, facts, stages = tuple(probe(i) for i in range(PLACES)), fs.aggregate.Facts(), []
    for t in transforms:
        facts = t.facts(facts)
        stages.append(facts)
    return fs.aggregate.Aggregator(transforms, kept, facts, tuple(stages))


@pytest.fixture(scope="module")
def sim():
    shape = (PLACES, len(USES), 2)

    def client(key, server, row, batches):
        return fs.ClientUpdate(jnp.zeros(shape, jnp.uint32).at[:, USES.index("client")].set(words(key)), 1.0)

    def phase(p):
        def server(key, server, aggregate):
            found = aggregate.value.at[:, :, USES.index("server")].set(words(key))
            return server.at[p].set(found)

        return fs.Phase(client, server, aggregator())

    task = fs.Task(lambda key: jnp.zeros(()), lambda w, batch, key: batch["x"])
    start = lambda params: (jnp.zeros((2, len(CLIENTS), *shape), jnp.uint32), None)
    algorithm = fs.Algorithm(task, start, params=lambda server: server, phases=(phase(0), phase(1)))
    data = fs.FederatedData({"x": np.ones(K, np.float32)}, np.arange(K + 1))
    sampler = fs.sampler.fixed([CLIENTS])._replace(event=fs.sampler.poisson(0.5).event)
    return fs.Simulation(
        algorithm, data, sampler, fs.Batching(1), execution=fs.Execution(lanes=1, devices=jax.devices()[:1])
    )


def keys(sim, **seeds):
    """By (use, phase, place, client), each once: of a use without place or client only the first."""
    made = np.asarray(sim.step(dataclasses.replace(sim.init(), **seeds))[0].server)  # [phase, client, place, use, 2]
    found = {}
    for p, c, place, u in np.ndindex(*made.shape[:-1]):
        use, key = USES[u], tuple(made[p, c, place, u].tolist())
        if use in ("noise", "central", "encode", "decode") and (use in ("noise", "central")) != (place % 2 == 1):
            continue
        where = (use, p, place if use not in ("client", "server") else -1)
        where += (-1,) if use in ("shared", "decode", "central", "server") else (CLIENTS[c],)
        assert found.setdefault(where, key) == key
    return found


@pytest.fixture(scope="module")
def made(sim):
    return keys(sim, seed=5)


def test_no_two_keys_coincide_nor_a_key_with_what_another_is_folded_into(made):
    """A client's mask is its shared key folded with its id, a leaf's draw a key folded with its number."""
    fold = jax.jit(jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None)))
    parents = jax.random.wrap_key_data(jnp.asarray(list(made.values()), jnp.uint32))
    children = fold(parents, jnp.arange(K))
    grandchildren = fold(children.reshape(-1), jnp.arange(K))
    everything = [np.asarray(jax.random.key_data(keys)).reshape(-1, 2) for keys in (parents, children, grandchildren)]
    seen = set(itertools.chain.from_iterable(map(tuple, each.tolist()) for each in everything))
    assert len({use for use, *_ in made}) == len(USES)
    assert len(seen) == sum(len(each) for each in everything)
    assert (0, 0) not in seen  # the server's shared key is the clients'


def test_the_noise_seed_changes_the_keys_of_noise_and_no_others(sim, made):
    def same(other):
        return {use: all(other[at] == made[at] for at in made if at[0] == use) for use in USES}

    apart = {use: use not in ("noise", "central") for use in USES}
    assert same(keys(sim, seed=5, noise_seed=6)) == apart
    assert all(same(keys(sim, seed=5, noise_seed=5)).values())
    other = keys(sim, seed=6, noise_seed=5)
    assert same(other) == {use: not keep for use, keep in apart.items()}
    assert sim.compile_count() == 1
