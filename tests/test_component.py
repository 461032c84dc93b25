import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.component import Component, Scalar, field


class Part(Component):
    rate: Scalar = field(default=1.0, above=0)


class Whole(Component):
    size: int = field(at_least=0, below=10)
    scale: Scalar = field(default=2.0, at_least=0, at_most=5)
    name: str = field(default="a", choices=("a", "b"))
    limit: float | None = None
    steps: tuple[float, ...] = ()
    flag: bool = False
    widths: tuple[int, ...] = (1, 2)
    part: Part = Part()


def test_is_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Whole(size=1).size = 2
    with pytest.raises(TypeError):
        Whole(1)


def test_only_scalars_are_leaves():
    leaves = jax.tree.leaves(Whole(size=1, scale=3, part=Part(rate=4)))
    assert [float(leaf) for leaf in leaves] == [3, 4]


def test_leaf_paths_name_the_fields():
    paths = jax.tree_util.tree_leaves_with_path(Whole(size=1))
    assert [jax.tree_util.keystr(path) for path, _ in paths] == [".scale", ".part.rate"]


def test_flatten_and_unflatten_are_inverse():
    whole = Whole(size=3, scale=0.5, name="b", limit=1.5, widths=[7, 8])
    leaves, treedef = jax.tree.flatten(whole)
    assert jax.tree.unflatten(treedef, leaves) == whole


@pytest.mark.parametrize(
    "change",
    [
        {"size": 2},
        {"scale": 2.5},
        {"name": "b"},
        {"limit": 1.0},
        {"steps": (1.0,)},
        {"flag": True},
        {"widths": (1,)},
        {"part": Part(rate=2.0)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_counts_in_equality(change):
    whole = Whole(size=1)
    assert whole.replace(**change) != whole
    assert whole.replace(**change).replace(**{n: getattr(whole, n) for n in change}) == whole


def test_equal_values_hash_alike():
    a, b = Whole(size=1, scale=1), Whole(size=np.int64(1), scale=np.float32(1))
    assert a == b
    assert hash(a) == hash(b)
    assert len({a, b, Whole(size=2)}) == 2


def test_classes_with_equal_fields_differ():
    class Other(Component):
        rate: Scalar = field(default=1.0, above=0)

    assert Part() != Other()
    assert Part() != "Part"


def test_repr_shows_plain_values():
    expected = "Part(rate=2.0)"
    assert repr(Part(rate=2)) == expected
    assert expected in repr(Whole(size=1, part=Part(rate=2)))
    assert "widths=[1, 2]" in repr(Whole(size=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": -1}, "Whole: size must be at least 0 and below 10; got -1"),
        ({"size": 10}, "Whole: size must be at least 0 and below 10; got 10"),
        ({"size": 1.0}, "Whole: size must be an integer; got 1.0"),
        ({"size": True}, "Whole: size must be an integer; got True"),
        ({"size": "1"}, "Whole: size must be an integer; got '1'"),
        ({"size": None}, "Whole: size must be an integer; got None"),
        ({"scale": 5.1}, "Whole: scale must be at least 0 and at most 5; got 5.1"),
        ({"scale": np.array([1.0, -1.0])}, "Whole: scale must be at least 0 and at most 5"),
        ({"scale": np.nan}, "Whole: scale must be finite; got nan"),
        ({"scale": "2"}, "Whole: scale must be a number; got '2'"),
        ({"scale": True}, "Whole: scale must be a number; got True"),
        ({"scale": None}, "Whole: scale must be a number; got None"),
        ({"name": "c"}, "Whole: name must be one of a, b; got 'c'"),
        ({"limit": "1"}, "Whole: limit must be a number or None; got '1'"),
        ({"limit": True}, "Whole: limit must be a number or None; got True"),
        ({"limit": False}, "Whole: limit must be a number or None; got False"),
        ({"limit": np.nan}, "Whole: limit must be finite; got nan"),
        ({"limit": np.float32(np.inf)}, "Whole: limit must be finite; got inf"),
        ({"steps": [1.0, np.nan]}, "Whole: steps must be finite; got [1.0, nan]"),
        ({"flag": 1}, "Whole: flag must be true or false; got 1"),
        ({"widths": 3}, "Whole: widths must be a list of an integer; got 3"),
        ({"widths": [1, 2.5]}, "Whole: widths must be a list of an integer; got [1, 2.5]"),
        ({"part": 1.0}, "Whole: part must be Part; got 1.0"),
        ({"part": Whole}, "Whole: part must be Part"),
    ],
)
def test_bad_values_are_named(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Whole(**({"size": 1} | change))


def test_strict_bounds_exclude_the_bound():
    with pytest.raises(ValueError, match="rate must be above 0"):
        Part(rate=0)
    Whole(size=0, scale=5)


def test_replace_checks_again():
    with pytest.raises(ValueError, match="size"):
        Whole(size=1).replace(size=-1)


def test_every_way_to_write_a_number_compiles_once():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(part):
        return part.rate * 2

    values = [1, 2.0, np.float32(3), np.float64(4), np.int32(5), jnp.float32(6), jnp.int32(7)]
    assert [float(run(Part(rate=v))) for v in values] == [2, 4, 6, 8, 10, 12, 14]


def test_static_fields_are_part_of_the_program():
    traced = []

    @jax.jit
    def run(whole):
        traced.append(whole.size)
        return whole.scale

    for size in (1, 2, 1):
        run(Whole(size=size))
    assert traced == [1, 2]


def test_scalars_are_swept_by_vmap():
    rates = jnp.arange(1.0, 4)
    swept = jax.vmap(lambda rate: Part(rate=rate).rate ** 2)(rates)
    stacked = jax.vmap(lambda part: part.rate**2)(Part(rate=np.arange(1.0, 4)))
    np.testing.assert_allclose(swept, [1, 4, 9])
    np.testing.assert_allclose(stacked, [1, 4, 9])


def test_gradient_reaches_scalars():
    gradient = jax.grad(lambda part: part.rate**2)(jax.tree.map(jnp.float32, Part(rate=3)))
    assert isinstance(gradient, Part)
    assert float(gradient.rate) == 6


def test_subclasses_inherit_fields():
    class Child(Part):
        extra: int = 0

    assert Child(rate=2, extra=1) == Child(rate=2.0, extra=1)
    assert len(jax.tree.leaves(Child())) == 1
    with pytest.raises(ValueError, match="Child: rate must be above 0"):
        Child(rate=-1)
