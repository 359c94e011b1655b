"""Unbiased quantisers whose scale is each client's own, sent with the message: k-level, binary, QSGD, TernGrad."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate.base import Transform
from fedjax_sim.aggregate.compress.drive import Growth
from fedjax_sim.aggregate.compress.messages import decoded_singly, each_code, each_leaf
from fedjax_sim.aggregate.numerics.elias import gamma_length, omega_length, run_lengths
from fedjax_sim.aggregate.numerics.rounding import round_up_or_down
from fedjax_sim.core.arrays import Key, Scalar
from fedjax_sim.core.errors import check, check_count


class _Levels(NamedTuple):
    """One leaf: whole numbers, and the affine map back, `low + step x levels`."""

    levels: jax.Array
    low: jax.Array
    step: jax.Array


def k_level(levels: int) -> Transform:
    r"""Stochastic k-level quantisation between each leaf's own least and greatest number (Suresh et al. 2017).

    .. math:: x_j \mapsto m + \Delta \operatorname{round}((x_j - m) / \Delta), \qquad \Delta = (M - m) / (k - 1)

    Rounded at random, without bias: the expected squared error is
    :math:`\Delta^2 \sum_j f_j (1 - f_j) \le d \Delta^2/4`
    with f the fractional parts. m and M are sent (64 bits a leaf), so messages are decoded one by one; a leaf whose
    numbers are all equal comes back as it was.

    Args:
        levels: k, 2 to 65,536; each number takes the whole bits that k levels need.

    Raises:
        ArgumentError: it stands after a quantiser or what is decoded message by message.

    Example:
        >>> import fedjax_sim as fs
        >>> aggregator = fs.aggregate.chain(fs.aggregate.k_level(16))
        >>> aggregator.facts.bits
        4.0
    """
    check_count("levels", levels, minimum=2)
    check(levels <= 2**16, "levels", levels, "must be 65,536 at most.")
    return _k_level(f"k_level({levels})", levels)


def binary() -> Transform:
    r"""Stochastic binary quantisation: each number becomes its leaf's least or greatest one (Suresh et al. 2017).

    One bit a number, and 64 a leaf; `k_level` with k = 2.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.aggregate.chain(fs.aggregate.binary()).facts.bits
        1.0
    """
    return _k_level("binary()", 2)


def _k_level(name: str, levels: int) -> Transform:
    each = (levels - 1).bit_length()

    def encode(key: Key, x: jax.Array) -> _Levels:
        x = x.astype(jnp.float32)
        low, high = (jnp.min(x), jnp.max(x)) if x.size else (jnp.zeros(()), jnp.zeros(()))
        step = (high - low) / (levels - 1)
        scaled = (x - low) * _inverse(step)
        return _Levels(round_up_or_down(key, jnp.clip(scaled, 0, levels - 1)).astype(jnp.uint16), low, step)

    return _of_leaves(
        name,
        encode,
        nominal=float(each),
        count=lambda code: float(each * code.levels.size + 64),
        growth=lambda dim: 1 + (2 * dim) ** 0.5 / (levels - 1),
    )


def qsgd(levels: int, code: Literal["omega", "gamma"] = "omega") -> Transform:
    r"""QSGD: s levels between zero and each leaf's L2 norm, entropy coded (Alistarh et al. 2017).

    .. math:: x_j \mapsto \lVert x \rVert\, \operatorname{sgn}(x_j)\,
        \operatorname{round}(s |x_j| / \lVert x \rVert) / s

    Rounded at random, without bias: the expected squared error is
    :math:`(\lVert x \rVert / s)^2 \sum_j f_j (1 - f_j) \le \min(d / s^2, \sqrt d / s) \lVert x \rVert^2`. The norm is
    each leaf's own, as layers differ in scale.

    Bits are those of the code, computed from the integers: of each leaf's nonzero numbers the distance from the one
    before, a sign and the level, or of all numbers the level plus one and a sign if it is not zero (the paper's
    codes of few and of many), whichever is shorter, a bit that says which, 32 for the norm, and the count of
    nonzero numbers for the first.

    Args:
        levels: s, 1 to 65,535; about :math:`\sqrt d` gives some three bits a number.
        code: Elias' "omega" code, as in the paper, or the simpler "gamma".

    Example:
        >>> import fedjax_sim as fs
        >>> aggregator = fs.aggregate.chain(fs.aggregate.qsgd(16))
    """
    check_count("levels", levels)
    check(levels < 2**16, "levels", levels, "must be below 65,536.")
    lengths = {"omega": omega_length, "gamma": gamma_length}
    check(code in lengths, "code", code, 'must be "omega" or "gamma".')
    length = lengths[code]

    def encode(key: Key, x: jax.Array) -> _Levels:
        x = x.astype(jnp.float32)
        norm = jnp.sqrt(jnp.vdot(x, x))
        rounded = round_up_or_down(key, jnp.minimum(jnp.abs(x) * (levels * _inverse(norm)), levels))
        signed = jnp.where(x < 0, -rounded, rounded).astype(jnp.int32)
        return _Levels(signed, jnp.zeros(()), norm / levels)

    def count(coded: _Levels) -> jax.Array:
        flat = jnp.abs(jnp.ravel(coded.levels))
        sent = flat > 0
        number = jnp.sum(sent.astype(jnp.int32))
        ones = jnp.where(sent, length(jnp.maximum(flat, 1)) + length(run_lengths(sent)) + 1, 0)
        few = jnp.sum(ones.astype(jnp.float32)) + length(number + 1)
        many = jnp.sum((length(flat + 1) + sent).astype(jnp.float32))
        return 33 + jnp.minimum(few, many)

    name = f"qsgd({levels})" if code == "omega" else f'qsgd({levels}, "{code}")'
    nominal = float((2 * levels).bit_length())
    return _of_leaves(name, encode, nominal, count, growth=lambda dim: 1 + dim**0.5 / levels)


def terngrad() -> Transform:
    r"""TernGrad: each number becomes -M, 0 or M, with M the leaf's greatest magnitude (Wen et al. 2017).

    .. math:: x_j \mapsto M \operatorname{sgn}(x_j)\, b_j, \qquad \Pr[b_j = 1] = |x_j| / M

    Unbiased, with an expected squared error of :math:`M \lVert x \rVert_1 - \lVert x \rVert^2`. The paper first clips
    at 2.5 standard deviations, which is biased, and is left to a clip in the chain. Five numbers go into a byte.

    Example:
        >>> import fedjax_sim as fs
        >>> fs.aggregate.chain(fs.aggregate.terngrad()).facts.bits
        1.6
    """

    def encode(key: Key, x: jax.Array) -> _Levels:
        x = x.astype(jnp.float32)
        peak = jnp.max(jnp.abs(x), initial=0.0)
        hit = round_up_or_down(key, jnp.minimum(jnp.abs(x) * _inverse(peak), 1.0))
        return _Levels(jnp.where(x < 0, -hit, hit).astype(jnp.int8), jnp.zeros(()), peak)

    count = lambda code: 8.0 * -(-code.levels.size // 5) + 32
    return _of_leaves("terngrad()", encode, 1.6, count, growth=lambda dim: dim**0.5)


def _of_leaves(
    name: str,
    encode: Callable[[Key, jax.Array], _Levels],
    nominal: float,
    count: Callable[[_Levels], Scalar],
    growth: Growth,
) -> Transform:
    """A compressor of each leaf by itself: `count` its bits, `growth` of the L2 norm at most."""

    def receive(key, state, message):
        decode = lambda code: code.low + code.step * code.levels.astype(jnp.float32)
        return each_code(decode, message, _Levels)

    def bits(message, incoming):
        codes = jax.tree.leaves(message, is_leaf=lambda part: isinstance(part, _Levels))
        return jnp.asarray(sum(count(code) for code in codes), jnp.float32)

    return Transform(
        name,
        client=lambda key, state, row, payload, context: (each_leaf(encode, key, payload), row, {}),
        receive=receive,
        facts=decoded_singly(name, nominal),
        bound=lambda state, incoming, dim: incoming * growth(dim),
        bits=bits,
    )


def _inverse(x: jax.Array) -> jax.Array:
    """1 / x; zero for zero."""
    return jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1.0), 0.0)
