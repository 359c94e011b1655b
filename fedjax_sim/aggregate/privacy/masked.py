"""A secure sum by the protocol: what its host says in a round, and how its clients mask their words."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.aggregate.host import HostResult, HostRound, HostStage, HostSum
from fedjax_sim.core.arrays import Array, PyTree
from fedjax_sim.core.types import Cohort
from fedjax_sim.secure import chacha, rounds
from fedjax_sim.secure.faults import STEPS
from fedjax_sim.secure.protocol import Protocol
from fedjax_sim.secure.server import masked

KEYS, SIGNS = "secure_keys", "secure_signs"
"""Columns: a client's own seed and its key with each neighbour, [1 + k, 8] uint32, and their signs, [1 + k] uint32."""


def hidden(payload: PyTree, columns: Any, bits: int) -> PyTree:
    """A client's integers behind the masks of its columns, as uint32 words modulo 2^bits."""
    leaves, structure = jax.tree.flatten(payload)
    sizes = [leaf.size for leaf in leaves]
    mask = chacha.mask(columns[KEYS], columns[SIGNS], sum(sizes))
    parts = jnp.split(mask, np.cumsum(sizes)[:-1].tolist())
    cut = np.uint32((1 << bits) - 1)
    words = [
        (leaf.astype(jnp.uint32) + part.reshape(leaf.shape)) & cut for leaf, part in zip(leaves, parts, strict=True)
    ]
    return jax.tree.unflatten(structure, words)


def stage(protocol: Protocol, bits: int) -> HostStage:
    """The host's part: keys and shares before the clients train, and the masks off their sum."""

    def columns(places: int) -> dict[str, Array]:
        shape = (1 + protocol.degree(places),)
        return {KEYS: np.zeros((*shape, 8), np.uint32), SIGNS: np.zeros(shape, np.uint32)}

    def before(host: HostRound) -> Cohort:
        cohort, ids = host.cohort, _members(host.cohort)
        made = rounds.agree(protocol, host.seed, host.round, tuple(cohort.ids[ids].tolist()))
        arrives = np.zeros(len(cohort.ids), bool)
        arrives[ids] = made.uploads
        if cohort.arrives is not None:
            arrives &= np.asarray(cohort.arrives, bool)
        degree = 1 + protocol.degree(len(cohort.ids))
        keys = np.zeros((len(cohort.ids), degree, 8), np.uint32)
        signs = np.zeros((len(cohort.ids), degree), np.uint32)
        for place in np.flatnonzero(arrives):
            masks = rounds.upload(made.masks[int(cohort.ids[place])])
            keys[place, : len(masks)] = [np.frombuffer(mask.key, "<u4") for mask in masks]
            signs[place, : len(masks)] = np.array([mask.sign for mask in masks]).astype(np.uint32)
        return dataclasses.replace(cohort, arrives=arrives, columns={**cohort.columns, KEYS: keys, SIGNS: signs})

    def between(host: HostRound, total: HostSum) -> HostResult:
        cohort = host.cohort
        made = rounds.agree(protocol, host.seed, host.round, tuple(cohort.ids[_members(cohort)].tolist()))
        came = cohort.ids[np.asarray(cohort.arrives, bool)].tolist()
        said = rounds.unmask(protocol, host.seed, host.round, made, came)
        leaves, structure = jax.tree.flatten(total.value)
        words = np.concatenate([np.asarray(leaf).reshape(-1) for leaf in leaves])
        metrics = _metrics(made, said, cohort, -(-bits * len(words) // 8))
        if said.aborted is not None:
            return HostResult(total.value, metrics, refused=True, released=False)
        parts = np.split(masked(words, said.masks, 0, bits), np.cumsum([leaf.size for leaf in leaves])[:-1])
        off = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        return HostResult(jax.tree.unflatten(structure, off), metrics)

    return HostStage(before, between, columns, protocol.check)


def _members(cohort: Cohort) -> np.ndarray:
    """Places of those who take part."""
    return np.flatnonzero(np.asarray(cohort.valid, bool) & (np.asarray(cohort.weight) > 0))


def _metrics(made: rounds.Agreement, said: rounds.Unmasked, cohort: Cohort, upload: int) -> dict[str, float]:
    """Bytes of each of the protocol's rounds, up and down, in all and for a client; who was recovered."""
    came = int(np.sum(np.asarray(cohort.arrives, bool)))
    clients = max(len(_members(cohort)), 1)
    found = {"secure/survivors": float(came), "secure/recovered": float(said.recovered)}
    for step in STEPS:
        costs = {**made.costs, **said.costs}.get(step, rounds.Costs())
        size = upload * came if step == "upload" else costs.sent + costs.received
        found |= {f"secure/bytes_{step}": float(size), f"secure/client_bytes_{step}": size / clients}
    return {**found, "secure/aborted": float(said.aborted is not None)}
