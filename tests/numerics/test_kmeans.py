"""k-means against scikit-learn, the gap statistic against its formula in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.numerics.kmeans import gap_count, kmeans, reference_points, scaled

N, MOST = 14, 4
fit = jax.jit(kmeans, static_argnums=3)
count_of = jax.jit(gap_count, static_argnums=(3, 5))


def draw(seed, clusters):
    random = np.random.default_rng(seed)
    centres = 6 * random.normal(size=(clusters, 2))
    return (centres[np.arange(N) % clusters] + random.normal(size=(N, 2))).astype(np.float32)


def distances(points, k):
    """To the centres of the best of 30 runs of Lloyd's algorithm, from random points."""
    random, best = np.random.default_rng(0), np.inf
    for _ in range(30):
        centres = points[random.permutation(len(points))[:k]].astype(float)
        for _ in range(10):
            own = np.linalg.norm(points[:, None] - centres[None], axis=-1).argmin(axis=1)
            centres = np.array(
                [
                    points[own == i].mean(axis=0) if (own == i).any() else centres[i]
                    for i in range(k)
                ]
            )
        away = np.linalg.norm(points[:, None] - centres[None], axis=-1).min(axis=1)
        if np.square(away).sum() < best:
            best, found = np.square(away).sum(), away
    return found


def spread(points, k, power=2):
    return np.log((distances(points, k) ** power).sum())


@pytest.mark.parametrize("k", [1, 3, 4])
def test_kmeans_finds_the_best_clusters(k):
    for seed in range(3):
        points = draw(seed, 3)
        labels = np.asarray(fit(points, np.ones(N, bool), k, MOST, jax.random.key(seed)))
        own = sum(
            np.square(points[labels == i] - points[labels == i].mean(0)).sum() for i in set(labels)
        )
        best = np.square(distances(points, k)).sum()
        assert len(set(labels)) == k
        assert own <= best * (1 + 1e-5)


def test_points_that_are_not_there_pull_nothing():
    points = draw(0, 2)
    labels = fit(points, np.ones(N, bool), 2, MOST, jax.random.key(0))
    more = np.vstack([points[:-3], 1e6 * np.ones((3, 2), np.float32)])
    usable = np.arange(N) < N - 3
    found = np.asarray(fit(more, usable, 2, MOST, jax.random.key(1)))[usable]
    same = np.asarray(labels)[:-3] == found
    assert same.all() or not same.any()


def gap(points, references, power):
    own = np.array([spread(points, k, power) for k in range(1, MOST + 1)])
    other = np.array([[spread(r, k, power) for k in range(1, MOST + 1)] for r in references])
    gaps = other.mean(axis=0) - own
    slack = other.std(axis=0) * np.sqrt(1 + 1 / len(references))
    return next((k for k in range(1, MOST) if gaps[k - 1] >= gaps[k] - slack[k]), MOST)


@pytest.mark.parametrize("power", [1, 2])
def test_the_gap_statistic(power):
    found = set()
    for seed, clusters in enumerate((1, 2, 3)):
        points = np.asarray(scaled(jnp.asarray(draw(seed, clusters)), jnp.ones(N, bool)))
        assert points.min() == 0
        assert points.max() == 1
        references = reference_points(jnp.asarray(points), 4, jax.random.key(seed))
        key = jax.random.key(9)
        got = int(count_of(points, references, np.ones(N, bool), MOST, key, power))
        assert got == gap(points, np.asarray(references), power)
        found.add(got)
    assert len(found) > 1


def test_equal_points_are_one_cluster():
    points = scaled(jnp.ones((N, 2)), jnp.ones(N, bool))
    references = reference_points(points, 6, jax.random.key(0))
    assert count_of(points, references, np.ones(N, bool), MOST, jax.random.key(0), 2) == 1
