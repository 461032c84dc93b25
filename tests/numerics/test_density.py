"""HDBSCAN against scikit-learn's; where distances are equal, against what must then hold."""

import jax
import numpy as np
import pytest
from sklearn.cluster import HDBSCAN

from jaxfl.numerics import density

SLOTS = 40
SETTINGS = [(5, 3, False), (5, 3, True), (3, 1, False)]

density_clusters = jax.jit(
    density.density_clusters, static_argnames=("smallest", "neighbours", "whole")
)


def clusters(distances, smallest, neighbours, whole, usable=None):
    usable = np.ones(len(distances), bool) if usable is None else usable
    given = {"smallest": smallest, "neighbours": neighbours, "whole": whole}
    return np.asarray(density_clusters(distances, usable, **given))


def draw(seed):
    """Distances of 8 to 40 points in the plane: in no, three or five groups, some far away."""
    random = np.random.default_rng(seed)
    n = int(random.integers(8, SLOTS + 1))
    centres = 6 * random.normal(size=((1, 3, 5)[seed % 3], 2))
    spread = random.uniform(0.1, 2, len(centres))
    group = random.integers(len(centres), size=n)
    points = centres[group] + spread[group][:, None] * random.normal(size=(n, 2))
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


def padded(distances, seed):
    where = np.sort(np.random.default_rng(seed).permutation(SLOTS)[: len(distances)])
    slots = np.full((SLOTS, SLOTS), np.nan)
    slots[np.ix_(where, where)] = distances
    return slots, np.isin(np.arange(SLOTS), where)


def together(labels):
    """Which pairs share a cluster."""
    return (labels[:, None] == labels[None]) & (labels >= 0)[:, None]


def components(reach, points, level):
    """The connected sets of points at most a level apart."""
    left, found = set(points), []
    while left:
        group, new = set(), {left.pop()}
        while new:
            group |= new
            near = {int(j) for i in new for j in np.flatnonzero(reach[i] <= level)}
            new = near & left
            left -= new
        found.append(sorted(group))
    return found


def chosen(reach, points, birth, smallest):
    """The stability of the clusters within a cluster, which they are, and its own core."""
    levels = np.unique(reach[np.ix_(points, points)][~np.eye(len(points), dtype=bool)])
    lifetime, alive = -birth * len(points), points
    for level, below in zip(levels[::-1], [*levels[::-1][1:], -1], strict=True):
        parts = [p for p in components(reach, alive, below) if len(p) >= smallest]
        if len(parts) != 1:
            break
        lifetime += (len(alive) - len(parts[0])) / level
        alive = parts[0]
    lifetime += len(alive) / level
    within = [chosen(reach, part, 1 / level, smallest) for part in parts]
    best = sum(stability for stability, _, _ in within)
    if best > lifetime:
        return best, [c for _, several, _ in within for c in several], alive
    return lifetime, [points], alive


def reference(distances, smallest, neighbours, whole):
    core = np.sort(distances, axis=1)[:, neighbours]
    reach = np.maximum(distances, np.maximum(core[:, None], core[None]))
    points = list(range(len(reach)))
    _, found, alive = chosen(reach, points, 0 if whole else np.inf, smallest)
    labels = np.full(len(reach), -1)
    for i, cluster in enumerate(found):
        labels[alive if len(cluster) == len(reach) else cluster] = i
    return labels


@pytest.mark.parametrize(("smallest", "neighbours", "whole"), SETTINGS)
def test_clusters_are_those_of_the_definition_and_of_scikit_learn(smallest, neighbours, whole):
    """scikit-learn joins two at a time where several meet at one distance, in no said order."""
    found, same = set(), 0
    with jax.enable_x64(True):
        for seed in range(10):
            distances = draw(seed)
            slots, usable = padded(distances, seed)
            got = clusters(slots, smallest, neighbours, whole, usable)
            expected = reference(distances, smallest, neighbours, whole)
            np.testing.assert_array_equal(together(got[usable]), together(expected), str(seed))
            assert (got[~usable] == -1).all()
            found.add(expected.max())
            model = HDBSCAN(
                min_cluster_size=smallest,
                min_samples=neighbours + 1,
                metric="precomputed",
                allow_single_cluster=whole,
                copy=True,
            )
            theirs = together(model.fit(distances).labels_)
            same += np.array_equal(theirs, together(expected))
    assert len(found) >= 2
    assert same == 10 if neighbours == 1 else same >= 7


def test_equal_distances_are_joined_at_once():
    """Two groups of points in one place each, and one point between: any order, one answer."""
    place = np.array([0] * 6 + [1] * 6 + [2])
    between = np.array([[0, 1, 0.9], [1, 0, 0.9], [0.9, 0.9, 0]])
    distances = between[np.ix_(place, place)]
    order = np.random.default_rng(0).permutation(len(place))
    for chosen in (np.arange(len(place)), order):
        labels = clusters(distances[np.ix_(chosen, chosen)], 5, 3, False)
        expected = together(np.where(place == 2, -1, place))[np.ix_(chosen, chosen)]
        np.testing.assert_array_equal(together(labels), expected)


def test_one_cluster_only_where_that_may_be():
    equal = np.zeros((8, 8)), np.ones((8, 8))
    for distances in equal:
        assert (clusters(distances, 5, 3, False) == -1).all()
        assert len(set(clusters(distances, 5, 3, True))) == 1
        assert (clusters(distances, 5, 3, True) >= 0).all()
    far = np.ones((8, 8))
    far[7] = far[:, 7] = 2
    assert (clusters(far, 5, 3, True) >= 0).tolist() == [True] * 7 + [False]
    few = np.arange(8) < 4
    assert (clusters(np.ones((8, 8)), 5, 3, True, few) == -1).all()
