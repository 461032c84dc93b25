"""Clusters from distances against scikit-learn and SciPy; ties by what must hold of any answer."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from sklearn.cluster import AgglomerativeClustering

from jaxfl.numerics import linkage

SLOTS = 40

larger_of_two = jax.jit(linkage.larger_of_two, static_argnames="linkage")
smallest_level = jax.jit(linkage.smallest_level)


def draw(seed, tied=False):
    """Distances of up to 40 points: of normal points, of clusters, or of no points at all."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, SLOTS + 1))
    points = rng.normal(size=(n, 3)) + 3 * (seed % 2) * rng.integers(0, 3, (n, 1))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    if seed % 3 == 0:
        distances = rng.random((n, n))
        distances = np.triu(distances, 1) + np.triu(distances, 1).T
    return np.ceil(2 * distances) if tied else distances


def padded(distances, seed=0):
    """In random slots of a larger matrix, NaN elsewhere, and where they are."""
    n = len(distances)
    where = np.sort(np.random.default_rng(seed).permutation(SLOTS)[:n])
    slots = np.full((SLOTS, SLOTS), np.nan, np.float32)
    slots[np.ix_(where, where)] = distances
    return slots, np.isin(np.arange(SLOTS), where)


@pytest.mark.parametrize("kind", ["average", "single", "complete"])
@pytest.mark.parametrize("seed", range(0, 300, 50))
def test_two_clusters_by_every_linkage(seed, kind):
    for s in range(seed, seed + 50):
        distances = draw(s)
        slots, usable = padded(distances, s)
        got = np.asarray(larger_of_two(slots, usable, linkage=kind))
        model = AgglomerativeClustering(n_clusters=2, metric="precomputed", linkage=kind)
        labels = model.fit(distances).labels_
        first = labels == labels[0]
        np.testing.assert_array_equal(got[~usable], False)
        np.testing.assert_array_equal(
            got[usable], first if 2 * first.sum() >= len(first) else ~first
        )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(0, 200, 50))
def test_single_linkage(seed, tied):
    for s in range(seed, seed + 50):
        distances = draw(s, tied)
        n = len(distances)
        slots, usable = padded(distances, s)
        tree = hierarchy.linkage(squareform(distances), "single")
        for size in {1, n // 4 + 1, n // 2 + 1, n}:
            for level in [0, *tree[:, 2]]:
                labels = hierarchy.fcluster(tree, level, "distance")
                sizes = np.bincount(labels)
                if sizes.max() >= size:
                    break
            got = np.asarray(smallest_level(slots, usable, size))
            np.testing.assert_array_equal(got[~usable], False)
            got = got[usable]
            # Of several largest clusters any may be returned, but no mixture of them.
            assert np.sum(got) == sizes.max()
            np.testing.assert_array_equal(got, labels == labels[np.argmax(got)])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_average_linkage_of_a_tree_full_of_ties(seed):
    """Distance by the first digit in which two codes differ: any order of ties splits the first."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, [2, 3, 3, 2], size=(rng.integers(2, SLOTS + 1), 4))
    codes[:2, 0] = 0, 1
    equal = np.cumprod(codes[:, None] == codes[None], axis=-1)
    slots, usable = padded(4 - equal.sum(-1), seed)
    part = codes[:, 0] == 0
    larger = part if 2 * part.sum() >= len(part) else ~part  # the first code starts with 0
    np.testing.assert_array_equal(np.asarray(larger_of_two(slots, usable))[usable], larger)


@pytest.mark.parametrize("present", [0, 1, 2])
def test_few_points(present):
    usable = np.arange(SLOTS) < present
    distances = np.ones((SLOTS, SLOTS), np.float32)
    np.testing.assert_array_equal(
        larger_of_two(distances, usable), np.arange(SLOTS) < min(present, 1)
    )
    np.testing.assert_array_equal(smallest_level(distances, usable, 5), usable)


def test_equal_halves_give_the_one_with_the_lowest_index():
    side = np.arange(SLOTS) % 2
    distances = (side[:, None] != side[None]).astype(np.float32)
    np.testing.assert_array_equal(larger_of_two(distances, np.ones(SLOTS, bool)), side == 0)


def test_in_double_precision():
    """Differences of 1e-12 between the halves decide."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(9, 3))
    distances = 1 + 1e-12 * np.linalg.norm(points[:, None] - points[None], axis=-1)
    with jax.enable_x64(True):
        larger = larger_of_two(distances, np.ones(9, bool))
        first = smallest_level(distances, np.ones(9, bool), 5)
    model = AgglomerativeClustering(n_clusters=2, metric="precomputed", linkage="average")
    labels = model.fit(1e12 * (distances - 1)).labels_
    np.testing.assert_array_equal(larger, labels == np.argmax(np.bincount(labels)))
    tree = hierarchy.linkage(squareform(1e12 * (distances - 1), checks=False), "single")
    sizes = tree[:, 3]
    labels = hierarchy.fcluster(tree, tree[np.argmax(sizes >= 5), 2], "distance")
    np.testing.assert_array_equal(first, labels == np.argmax(np.bincount(labels)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_distances_that_are_not_finite_end_the_search(bad):
    distances = np.array(padded(draw(0))[0])
    distances[3:] = distances[:, 3:] = bad
    for got in (larger_of_two, lambda *a: smallest_level(*a, 2)):
        assert np.any(got(distances, np.ones(SLOTS, bool)))


def test_vmap():
    pairs = [padded(draw(s), s) for s in range(5)]
    stacked = tuple(map(np.stack, zip(*pairs, strict=True)))
    np.testing.assert_array_equal(
        jax.vmap(larger_of_two)(*stacked), [larger_of_two(*pair) for pair in pairs]
    )
    np.testing.assert_array_equal(
        jax.vmap(smallest_level, (0, 0, None))(*stacked, 9),
        [smallest_level(*pair, 9) for pair in pairs],
    )
