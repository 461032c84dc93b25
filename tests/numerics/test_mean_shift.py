"""Mean-Shift against scikit-learn, and where scikit-learn has no answer against the definition."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn import config_context
from sklearn.cluster import MeanShift, estimate_bandwidth
from threadpoolctl import threadpool_limits

from jaxfl.numerics import mean_shift as ms

SLOTS, FEATURES = 48, 4
KEY = jax.random.key(0)


def draw(seed):
    """A feature set of one of ten kinds, of up to 40 points."""
    rng = np.random.default_rng(seed)
    n, p = rng.integers(4, 41), rng.integers(2, 5)
    noise = rng.normal(size=(n, p))
    signs = np.sign(rng.normal(0.2 * rng.normal(size=(n, 1)), 1, size=(n, rng.integers(5, 99))))
    signs *= rng.random(signs.shape) > 0.02
    fractions = np.stack([(signs > 0).mean(1), (signs == 0).mean(1), (signs < 0).mean(1)], axis=1)
    few = rng.normal(size=(max(n // 3, 1), p))
    kinds = {
        "normal": noise,
        "uniform": rng.uniform(size=(n, p)),
        "two clusters": 3 * rng.integers(0, 2, (n, 1)) + 0.1 * noise,
        "three clusters": 9 * rng.normal(size=(3, p))[rng.integers(0, 3, n)] + noise,
        "heavy tails": rng.standard_t(1.5, size=(n, p)),
        "lattice": rng.integers(0, 4, (n, p)) / 4,
        "thirds": rng.integers(0, 4, (n, p)) / 3,
        "duplicates": few[rng.integers(0, len(few), n)],
        "colluding": np.where(np.arange(n)[:, None] < n // 3, noise[:1], noise),
        "signs": fractions / (fractions.max(0) + 1e-8),
    }
    name = list(kinds)[seed % len(kinds)]
    scale = 2.0 ** rng.integers(-12, 13) if name == "lattice" else 10.0 ** rng.integers(-4, 5)
    return kinds[name] * (1 if name == "signs" else scale)


def padded(points, seed=0):
    """The points in random slots of a larger array, NaN elsewhere, and where they are."""
    n, p = points.shape
    where = np.sort(np.random.default_rng(seed).permutation(SLOTS)[:n])
    slots = np.full((SLOTS, FEATURES), np.nan)
    slots[where] = 0
    slots[where, :p] = points
    return slots, np.isin(np.arange(SLOTS), where)


@jax.jit
def cluster_all(slots, usable):
    def cluster(points_and_usable):
        points, usable = points_and_usable
        width = ms.bandwidth(points, usable)
        largest = ms.largest_cluster(points, usable, points[:, 0], KEY)
        return width, ms.mean_shift(points, usable, width, KEY), largest

    return jax.lax.map(cluster, (slots, usable))


@pytest.fixture(autouse=True)
def _one_thread():
    with threadpool_limits(1):  # scikit-learn's threads cost more than such small problems
        yield


def scikit(points, width):
    with warnings.catch_warnings(), config_context(assume_finite=True):
        warnings.filterwarnings("ignore", "Binning data failed")
        return MeanShift(bandwidth=width, bin_seeding=True, cluster_all=False).fit(points)


def groups_of_equals(points):
    return np.unique(points, axis=0, return_inverse=True, return_counts=True)[1:]


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_random_sets_against_scikit_learn(count):
    sets = [draw(seed) for seed in range(count)]
    slots, usable = map(np.stack, zip(*(padded(x, i) for i, x in enumerate(sets)), strict=True))
    with jax.enable_x64(True):
        widths, clusters, largest = jax.tree.map(np.asarray, cluster_all(slots, usable))
    assert slots.dtype == widths.dtype == np.float64
    for i, points in enumerate(sets):
        np.testing.assert_array_equal(clusters.labels[i][~usable[i]], -1)
        np.testing.assert_array_equal(largest[i][~usable[i]], False)
        # scikit-learn expands the squares, and loses half the digits of points close to each other.
        cancels = 1e-7 * np.abs(points).max()
        assert abs(estimate_bandwidth(points, quantile=0.5) - widths[i]) <= cancels
        if widths[i] == 0:
            assert np.min(groups_of_equals(points)[1]) >= len(points) // 2
            continue
        farthest_of_half = np.sort(cdist(points, points), axis=1)[:, len(points) // 2 - 1]
        np.testing.assert_allclose(widths[i], farthest_of_half.mean(), rtol=1e-12)
        reference = scikit(points, widths[i])
        labels, centres = reference.labels_, reference.cluster_centers_
        assert clusters.found[i] == len(centres)
        np.testing.assert_array_equal(clusters.labels[i][usable[i]], labels)
        got = clusters.centres[i][: len(centres), : centres.shape[1]]
        np.testing.assert_allclose(got, centres, rtol=0, atol=1e-9 * widths[i])
        first_of_largest = np.argmax(np.bincount(labels[labels >= 0]))
        np.testing.assert_array_equal(largest[i][usable[i]], labels == first_of_largest)

    assert np.mean(widths == 0) < 0.1
    assert len(np.unique(clusters.found)) > 3
    single = cluster_all(slots.astype(np.float32), usable)[2]
    np.testing.assert_array_equal(single, largest)


@pytest.mark.parametrize(("n", "p"), [(1, 2), (2, 3), (3, 2), (7, 1), (65, 3), (600, 3)])
def test_sizes(n, p):
    points = np.random.default_rng(n).normal(size=(n, p))

    @jax.jit
    def cluster(points, usable):
        width = jnp.maximum(ms.bandwidth(points, usable), 0.5)
        return width, ms.mean_shift(points, usable, width, KEY)

    with jax.enable_x64(True):
        width, clusters = cluster(points, np.ones(n, bool))
    reference = scikit(points, float(width))
    np.testing.assert_array_equal(clusters.labels, reference.labels_)
    assert clusters.centres.shape[1] == p


def test_of_more_than_512_cells_a_random_sample_is_followed():
    points = 10 * np.stack(np.divmod(np.arange(600), 25), axis=1).astype(np.float32)
    shift = jax.jit(ms.mean_shift)
    one, other = (
        shift(points, np.ones(600, bool), jnp.float32(1), jax.random.key(k)) for k in (0, 1)
    )
    for clusters in (one, other):
        assert clusters.found == 512
        assert np.sum(clusters.labels == -1) == 88
        np.testing.assert_array_equal(np.sort(clusters.labels)[88:], np.arange(512))
    assert np.any((one.labels == -1) != (other.labels == -1))


chosen = jax.jit(lambda x, u, deviations: ms.largest_cluster(x, u, deviations, KEY))


@pytest.mark.parametrize("swapped", [False, True])
def test_of_two_equal_groups_the_less_deviating_wins(swapped):
    points = np.repeat(np.float32([[0.25, 0.5], [0.75, 0.5]]), 3, axis=0)
    deviations = np.float32([9, 1, 2, 3, 2.5, 0])  # medians 2 and 2.5
    if swapped:
        deviations = deviations[::-1].copy()
    assert jax.jit(ms.bandwidth)(points, np.ones(6, bool)) == 0
    np.testing.assert_array_equal(
        chosen(points, np.ones(6, bool), deviations), (np.arange(6) < 3) ^ swapped
    )


def test_of_unequal_groups_the_larger_wins():
    points = np.repeat(np.float32([[0.25, 0.5], [0.75, 0.5]]), [2, 3], axis=0)
    deviations = np.float32([0, 0, 9, 9, 9])
    np.testing.assert_array_equal(chosen(points, np.ones(5, bool), deviations), np.arange(5) >= 2)


def test_three_different_points_are_three_groups():
    points = np.float32([[0, 0], [1, 0], [5, 0]])
    deviations = np.float32([3, 1, 2])
    np.testing.assert_array_equal(chosen(points, np.ones(3, bool), deviations), [0, 1, 0])


@pytest.mark.parametrize("present", [0, 1, 5])
def test_few_or_no_usable_points(present):
    usable = np.arange(5) < present
    points = np.where(usable[:, None], np.float32([[1, 2]]), np.nan)
    np.testing.assert_array_equal(chosen(points, usable, np.zeros(5, np.float32)), usable)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
@example(271)
@example(2493)
@example(10959)
def test_neither_order_nor_ties_nor_scale_matter(seed):
    """Points on a lattice lie on the rims of balls; rounding must not decide."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(rng.integers(2, 6), [0.5, 0.2, 0.3], size=11)
    points = (counts / np.maximum(counts.max(0), 1)).astype(np.float32)
    deviations = rng.random(11).astype(np.float32)
    usable = rng.random(11) > 0.2
    expected = np.asarray(chosen(points, usable, deviations))
    order = rng.permutation(11)
    permuted = chosen(points[order], usable[order], deviations[order])
    np.testing.assert_array_equal(permuted, expected[order])
    for scale in np.float32([0.3, 2e6]):
        np.testing.assert_array_equal(chosen(scale * points, usable, deviations), expected)


def test_inside_a_scan_a_vmap_and_a_gradient():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(3, 11, 3)).astype(np.float32)
    points[1] = points[1, 0]  # one of bandwidth 0 among others
    usable, deviations = np.ones((3, 11), bool), np.ones((3, 11), np.float32)
    apart = np.stack([chosen(*each) for each in zip(points, usable, deviations, strict=True)])
    _, scanned = jax.jit(lambda *sets: jax.lax.scan(lambda c, each: (c, chosen(*each)), 0, sets))(
        points, usable, deviations
    )
    np.testing.assert_array_equal(scanned, apart)
    np.testing.assert_array_equal(jax.vmap(chosen)(points, usable, deviations), apart)

    def total(points):
        selected = chosen(points, usable[0], points[:, 0])
        return jnp.sum(jnp.where(selected[:, None], points, 0))

    selected = np.broadcast_to(chosen(points[0], usable[0], points[0, :, 0])[:, None], (11, 3))
    np.testing.assert_array_equal(jax.grad(total)(points[0]), selected)
