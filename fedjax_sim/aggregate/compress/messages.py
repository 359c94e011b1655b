"""What compressors have in common: their place in a chain, and messages that are decoded leaf by leaf."""

from collections.abc import Callable
from typing import TypeVar

import jax

from fedjax_sim.aggregate.base import Facts, Message
from fedjax_sim.core.arrays import Key, PyTree
from fedjax_sim.core.errors import ArgumentError

Code = TypeVar("Code")


def check_floats(name: str, facts: Facts) -> None:
    """A compressor's payload is numbers: neither integers nor messages that the server must decode first."""
    if facts.integers:
        raise ArgumentError(
            f"{name} stands after a quantiser, whose integers it would treat as numbers: use one of them."
        )
    if not facts.linear:
        raise ArgumentError(
            f"{name} stands after a transform whose messages are decoded one by one: it would compress a message "
            "instead of the update. Use one of them."
        )


def decoded_singly(name: str, bits: float) -> Callable[[Facts], Facts]:
    """The facts of a compressor whose messages cannot be summed before they are decoded."""

    def facts(facts: Facts) -> Facts:
        check_floats(name, facts)
        return facts._replace(linear=False, bits=bits)

    return facts


def each_leaf(encode: Callable[[Key, jax.Array], PyTree], key: Key, payload: PyTree) -> Message:
    """`encode(key, leaf)` of every leaf, each with a key of its own: shared, it would correlate their errors."""
    leaves, structure = jax.tree.flatten(payload)
    coded = [encode(jax.random.fold_in(key, i), leaf) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, coded)


def each_code(decode: Callable[[Code], jax.Array], message: Message, kind: type[Code]) -> PyTree:
    """`decode(code)` of every code of that type in a message: the inverse of `each_leaf`."""
    return jax.tree.map(decode, message, is_leaf=lambda part: isinstance(part, kind))
