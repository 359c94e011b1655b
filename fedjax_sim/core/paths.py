"""Leaves chosen by where they are: a tree cut in two by a pattern, and joined again."""

import re
from collections.abc import Callable

import jax

from fedjax_sim.core.arrays import PyTree
from fedjax_sim.core.errors import ArgumentError, check

Pattern = str | Callable[[str], bool]
"""A regular expression that is searched for in a leaf's path, "layers/1/w"; or a function `(path) -> bool`."""


def text(path: tuple) -> str:
    """A leaf's path as patterns see it.

    Example:
        >>> import jax
        >>> from fedjax_sim.core.paths import text
        >>> [text(path) for path, _ in jax.tree_util.tree_leaves_with_path({"layers": [{"w": 0}, {"w": 1}]})]
        ['layers/0/w', 'layers/1/w']
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def paths_of(tree: PyTree) -> list[str]:
    """The paths of a tree's leaves."""
    return [text(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def matcher(pattern: Pattern) -> Callable[[str], bool]:
    """Whether a path is one of the pattern's."""
    if not isinstance(pattern, str):
        return lambda path: bool(pattern(path))
    found = re.compile(pattern).search
    return lambda path: found(path) is not None


def split(pattern: Pattern, tree: PyTree) -> tuple[PyTree, PyTree]:
    """`(others, those that match)`: the tree twice, with None for the leaves of the other side.

    Example:
        >>> from fedjax_sim.core.paths import merge, split
        >>> split("b$", {"w": 1.0, "b": 2.0})
        ({'b': None, 'w': 1.0}, {'b': 2.0, 'w': None})
    """
    matches = matcher(pattern)
    side = jax.tree_util.tree_map_with_path(lambda path, leaf: matches(text(path)), tree)
    others = jax.tree.map(lambda mine, leaf: None if mine else leaf, side, tree)
    return others, jax.tree.map(lambda mine, leaf: leaf if mine else None, side, tree)


def merge(one: PyTree, other: PyTree) -> PyTree:
    """The tree of which these are the two sides."""
    return jax.tree.map(lambda a, b: b if a is None else a, one, other, is_leaf=lambda leaf: leaf is None)


def check_pattern(name: str, pattern: object) -> None:
    """A pattern that can be read, or a function."""
    check(isinstance(pattern, str) or callable(pattern), name, pattern, "must be a pattern, or (path) -> bool.")
    if isinstance(pattern, str):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ArgumentError(f"{name}={pattern!r}: is no regular expression, {error}.") from None
