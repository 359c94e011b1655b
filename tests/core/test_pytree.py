"""Frozen dataclasses as pytrees, and the few tree functions."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim.core import types
from fedjax_sim.core.pytree import pytree, size, squared_norm, static, where


@pytree
class Point:
    x: Any
    y: Any = 2.0
    name: str = static(default="p")


def test_fields_are_children_and_static_fields_structure():
    point = Point(jnp.ones(3), name="q")
    assert len(jax.tree.leaves(point)) == 2
    doubled = jax.tree.map(lambda leaf: 2 * leaf, point)
    assert isinstance(doubled, Point)
    assert (doubled.y, doubled.name) == (4, "q")
    assert jax.tree.structure(point) != jax.tree.structure(Point(1.0))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(point)]
    assert paths == [".x", ".y"]


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Point(1.0).x = 2.0


def test_a_static_field_retraces_and_a_leaf_does_not():
    traced = []

    @jax.jit
    def read(point):
        traced.append(point.name)
        return point.x + point.y

    for point in Point(1.0), Point(2.0, 3.0), Point(1.0, name="q"), Point(5.0):
        assert read(point) == point.x + point.y
    assert traced == ["p", "q"]


@pytest.mark.parametrize(
    "record, leaves",
    [
        (types.ClientUpdate({"w": 1.0}, 2.0, state=3.0), 3),
        (types.ClientUpdate(1.0), 2),
        (types.Aggregate(1.0, 2.0, 3.0), 3),
        (types.Cohort(1, 2, 3), 3),
        (types.Cohort(1, 2, 3, arrives=4), 4),
    ],
)
def test_the_records_pass_through_transformations(record, leaves):
    assert len(jax.tree.leaves(record)) == leaves
    again = jax.jit(lambda r: r)(record)
    assert jax.tree.structure(again) == jax.tree.structure(record)
    assert type(again) is type(record)


def test_later_fields_are_keyword_only():
    with pytest.raises(TypeError):
        types.Cohort(1, 2, 3, 4)
    with pytest.raises(TypeError):
        types.ClientUpdate(1, 2, 3)


def test_where_keeps_nan_out():
    good, bad = {"a": jnp.ones(2), "b": (jnp.zeros(()),)}, {"a": jnp.full(2, jnp.nan), "b": (1.0,)}
    chosen = jax.jit(where)(jnp.array(False), bad, good)
    assert jax.tree.map(np.asarray, chosen)["a"].tolist() == [1, 1]
    assert np.isnan(where(True, bad, good)["a"]).all()


@pytest.mark.parametrize(
    "tree, value",
    [
        ({}, 0),
        ({"a": jnp.array([3.0, 4.0]), "b": jnp.full((2, 2), 2.0)}, 41),
        (jnp.array([1, 2], jnp.int32), 5),
        (jnp.full(4, 200, jnp.uint8), 160_000),
        (jnp.full(300, 0.5, jnp.bfloat16), 75),
        ((jnp.ones(2), jnp.array(jnp.nan)), np.nan),
        ((jnp.ones(2), jnp.array([jnp.inf, -jnp.inf])), np.inf),
        (jnp.array([1e30]), np.inf),
    ],
    ids=str,
)
def test_squared_norm(tree, value):
    made = jax.jit(squared_norm)(tree)
    assert made.dtype == jnp.float32
    assert made.shape == ()
    np.testing.assert_allclose(made, value, rtol=1e-6)


@pytest.mark.parametrize(
    "tree, value",
    [
        ({}, 0),
        (1.0, 1),
        ({"a": jnp.ones((2, 3)), "b": [jnp.ones(())]}, 7),
        (jax.ShapeDtypeStruct((4, 5), jnp.float32), 20),
        (jnp.ones((0, 3)), 0),
    ],
    ids=str,
)
def test_size(tree, value):
    assert size(tree) == value
