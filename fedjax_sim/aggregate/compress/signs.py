"""One bit a number: the sign, under the scale that loses least. Biased, so best with error feedback."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.aggregate.base import Transform
from fedjax_sim.aggregate.compress.messages import decoded_singly, each_code, each_leaf
from fedjax_sim.core.arrays import Key


class _Signs(NamedTuple):
    positive: jax.Array
    scale: jax.Array


def sign() -> Transform:
    r"""Send signs, and each leaf's mean magnitude: :math:`x \mapsto \frac{\lVert x \rVert_1}{d} \operatorname{sgn}(x)`.

    Of all scales that one loses least, :math:`\lVert x \rVert^2 - \lVert x \rVert_1^2 / d`. It is biased: alone it may
    never converge, with `error_feedback(sign())` it does (Seide et al. 2014; Karimireddy et al. 2019). Zero counts as
    positive. A bit a number, and 32 a leaf.

    Example:
        >>> import fedjax_sim as fs
        >>> aggregator = fs.aggregate.chain(fs.aggregate.error_feedback(fs.aggregate.sign()))
    """

    def encode(key: Key, x: jax.Array) -> _Signs:
        return _Signs(x >= 0, jnp.sum(jnp.abs(x.astype(jnp.float32))) / max(x.size, 1))

    def receive(key, state, message):
        return each_code(lambda code: jnp.where(code.positive, code.scale, -code.scale), message, _Signs)

    def bits(message, incoming):
        codes = jax.tree.leaves(message, is_leaf=lambda part: isinstance(part, _Signs))
        return float(sum(code.positive.size + 32 for code in codes))

    return Transform(
        "sign()",
        client=lambda key, state, row, payload, context: (each_leaf(encode, key, payload), row, {}),
        receive=receive,
        facts=decoded_singly("sign()", 1.0),
        bits=bits,
    )
