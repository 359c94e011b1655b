"""Secure aggregation: a modular sum of integers behind masks that cancel, or that a protocol takes off."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.aggregate.base import Facts, Transform
from fedjax_sim.aggregate.privacy import masked
from fedjax_sim.core import pytree
from fedjax_sim.core.errors import ArgumentError, check, check_count
from fedjax_sim.secure.protocol import Protocol


def secure_sum(
    modulus_bits: int = 32, max_weight: int = 1, protocol: Protocol | Literal["simulated"] = "simulated"
) -> Transform:
    r"""The sum of integers modulo :math:`2^b`, of which the server sees nothing but the sum.

    .. math:: y_k = w_k u_k + r_k - r_{k+1} \bmod 2^b, \qquad \sum_k y_k = \sum_k w_k u_k \bmod 2^b

    Simulated, the clients that train form a ring by their ids; :math:`r_k` is a mask of uniform words, which client k
    shares with its neighbour, so that each upload looks uniform and the masks cancel bit by bit in the sum. A client
    whose update is dropped (not finite) sends its mask, and its share of noise, alone. The sum is taken back to
    :math:`[-2^{b-1}, 2^{b-1})` and is exact: a simulation checks that its cohort's integers, weights and noise cannot
    pass that range.

    It computes what a secure aggregation protocol computes, at its cost in bits, and tests that a chain can live with
    the sum alone. It protects nobody: one process holds every mask, made from the run's seed by Threefry.

    With a protocol (`fs.secure.bonawitz`, `fs.secure.secagg_plus`; the extra `secure`) keys, shares and masks are those
    of the paper, dropouts included; masks are ChaCha20's key streams, made inside the compiled round. All that are
    drawn and arrive send, also those without examples or whose update is dropped. Where too few clients are left in one
    of the protocol's rounds, the round is abandoned. The host speaks within each round, so that one process runs them,
    with rows on the devices. Metrics, of a round: `secure/survivors`, `secure/recovered` (lost clients whose masks were
    rebuilt), `secure/aborted`, and for each of the protocol's rounds `secure/bytes_STEP` up and down, of all, and
    `secure/client_bytes_STEP` of a client, where STEP is advertise, share, upload, consistency or unmask.

    Args:
        modulus_bits: b, from 2 to 32.
        max_weight: weights are rounded to whole numbers and counted as at most this; 1 for uniform weights.
        protocol: "simulated", or a protocol of `fs.secure`.

    Raises:
        ArgumentError: in a chain, messages that are no integers, that must be decoded one by one, or a reducer that
            needs each of them; in a simulation, a cohort that could pass the modulus, or one
            of fewer than 3 clients or than the threshold of a protocol.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.aggregate.secure_sum().name
        'secure_sum(simulated, 32 bits)'
        >>> fs.aggregate.secure_sum(20, protocol=fs.secure.secagg_plus(neighbours=20, threshold=12)).name
        'secure_sum(secagg_plus(20 neighbours, t = 12), 20 bits)'
    """
    check_count("modulus_bits", modulus_bits, minimum=2)
    check(modulus_bits <= 32, "modulus_bits", modulus_bits, "must be at most 32, the words that devices compute with.")
    check_count("max_weight", max_weight)
    real = isinstance(protocol, Protocol)
    check(real or protocol == "simulated", "protocol", protocol, 'must be "simulated", or a protocol of fs.secure.')
    name = f"secure_sum({protocol.name if isinstance(protocol, Protocol) else protocol}, {modulus_bits} bits)"
    cut = np.uint32((1 << modulus_bits) - 1)
    spare = 32 - modulus_bits

    def client(key, state, row, payload, context):
        if real:
            return masked.hidden(payload, context.columns, modulus_bits), row, {}
        mine, next_one = (jax.random.fold_in(context.round_key, k) for k in (context.client_id, context.neighbour))
        leaves, structure = jax.tree.flatten(payload)
        sent = []
        for i, leaf in enumerate(leaves):
            add, take = (jax.random.bits(jax.random.fold_in(k, i), leaf.shape, jnp.uint32) for k in (mine, next_one))
            sent.append((leaf.astype(jnp.uint32) + add - take) & cut)
        return jax.tree.unflatten(structure, sent), row, {}

    def server(key, state, aggregate):
        def centre(total):
            return jax.lax.shift_right_arithmetic(_signed(total << spare), jnp.int32(spare))

        return dataclasses.replace(aggregate, value=jax.tree.map(centre, aggregate.value)), state, {}

    def facts(facts: Facts) -> Facts:
        if facts.modulus is not None:
            raise ArgumentError(f"{name} stands after another secure sum: keep one.")
        if not facts.integers:
            raise ArgumentError(
                f"{name} sums integers, and gets floats: masks hide whole numbers only. Put a quantiser before it."
            )
        if facts.largest is None:
            raise ArgumentError(f"{name}: the integers before it have no largest value, so that they could wrap.")
        return facts._replace(
            modulus=1 << modulus_bits,
            weighted=True,
            max_weight=float(max_weight),
            bits=float(modulus_bits),
            masked=real,
            loses=isinstance(protocol, Protocol) and protocol.dropouts.before_upload,
        )

    return Transform(
        name=name,
        client=client,
        server=server,
        facts=facts,
        bits=lambda message, incoming: float(modulus_bits * pytree.size(message)),
        host=masked.stage(protocol, modulus_bits) if isinstance(protocol, Protocol) else None,
    )


def _signed(words: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(words, jnp.int32)
