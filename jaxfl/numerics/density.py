"""HDBSCAN: clusters of a density of their own, with what lies between them left out."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.numerics.linkage import finite, runs_of, spanning_tree


class _Level(NamedTuple):
    """The components at one level; points are in the order of the spanning tree."""

    starts: Int[Array, " n"]
    """Where the run of points that is each point's component starts."""
    lifetime: Float[Array, " n"]
    """Of the cluster that the component is: the sum of 1 / level at which its points leave it."""
    best: Float[Array, " n"]
    """The most stability that clusters within that cluster have together."""
    labels: Int[Array, " n"]
    core: Bool[Array, " n"]
    """Points that the component's cluster had when it came into being."""


def density_clusters(
    distances: Float[Array, "n n"],
    usable: Bool[Array, " n"],
    smallest: int,
    neighbours: int,
    whole: bool = False,
) -> Int[Array, " n"]:
    """A number for each point's cluster, -1 where it has none, by HDBSCAN.

    Two points are as far apart as the larger of their distance and their distances to the
    ``neighbours``-th nearest other point. Of the components of all graphs of pairs up to a
    level, those of ``smallest`` or more points are clusters, for as long as no two of that size
    are joined; a cluster's stability is the sum over its points of 1 / level where they join it
    less that where it is joined. The clusters chosen, none within another, have the most stability
    together. ``whole``: all points may be one cluster, of those that are there when it begins.

    Components that meet at equal distance are joined at once, so that the answer does not depend
    on the order of the points. Campello, Moulavi, Sander, "Density-based clustering based on
    hierarchical density estimates", PAKDD 2013.

    Args:
      distances: symmetric; NaN counts as infinite.
      usable: which points exist.
      smallest: least points of a cluster, at least 2.
      neighbours: as above; the farthest where there are fewer.
      whole: as above.

    Cost: ``O(n^2 log n)``: rows are sorted, Prim's algorithm, then a step of O(n) for each level.
    """
    n = usable.shape[0]
    count = jnp.sum(usable, dtype=jnp.int32)
    gaps, places = spanning_tree(_reach(distances, usable, count, neighbours), usable, count)
    levels, indices = jnp.sort(gaps), jnp.arange(n, dtype=jnp.int32)

    def join(i: Array | int, before: _Level) -> _Level:
        return _joined(before, runs_of(gaps, levels[i]), levels[i], smallest)

    none = jnp.zeros((n,), gaps.dtype)
    start = _Level(indices, none, none, jnp.full((n,), -1, jnp.int32), jnp.zeros((n,), bool))
    end = jax.lax.fori_loop(0, count - 1, join, start)
    labels = end.labels
    if whole:
        one = (end.best[0] <= end.lifetime[0]) & (count >= smallest)
        labels = jnp.where(one, jnp.where(end.core, 0, -1), labels)
    return labels.at[places].get(mode="fill", fill_value=-1)


def _joined(
    before: _Level, starts: Int[Array, " n"], level: Float[Array, ""], smallest: int
) -> _Level:
    """What becomes of clusters whose components are joined at a level."""
    n = starts.shape[0]
    rate = 1 / jnp.maximum(level, jnp.finfo(level.dtype).tiny ** 0.75)

    def total(values: Array, groups: Array) -> Array:
        return jax.ops.segment_sum(values, groups, n)[groups]

    ones = jnp.ones_like(before.lifetime)
    old, size = total(ones, before.starts), total(ones, starts)
    large = old >= smallest
    # Each cluster counts once, at the first of its points.
    first = large & (before.starts == jnp.arange(n, dtype=jnp.int32))
    parts = total(first.astype(jnp.int32), starts)
    stability = before.lifetime - rate * old
    kept = stability >= before.best
    value = total(jnp.where(first, jnp.maximum(stability, before.best), 0), starts)
    best = total(jnp.where(first, before.best, 0), starts)
    born = size >= smallest
    grown = total(jnp.where(first, before.lifetime, 0), starts)
    grown += rate * (size - total(jnp.where(first, old, 0), starts))
    return _Level(
        starts=starts,
        lifetime=jnp.where(parts == 1, grown, jnp.where(born, rate * size, 0)),
        best=jnp.where(parts == 1, best, value),
        labels=jnp.where((parts > 1) & large & kept, before.starts, before.labels),
        core=jnp.where(parts == 1, before.core, born),
    )


def _reach(
    distances: Float[Array, "n n"],
    usable: Bool[Array, " n"],
    count: Int[Array, ""],
    neighbours: int,
) -> Float[Array, "n n"]:
    """Mutual reachability: distances, none below what it takes to have enough neighbours."""
    distances = finite(distances)
    others = usable[None, :] & ~jnp.eye(usable.shape[0], dtype=bool)
    nearest = jnp.sort(jnp.where(others, distances, jnp.inf), axis=1)
    enough = nearest[:, jnp.clip(neighbours, 1, jnp.maximum(count - 1, 1)) - 1]
    return jnp.maximum(distances, finite(jnp.maximum(enough[:, None], enough[None, :])))
