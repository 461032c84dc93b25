"""Hierarchical clustering from a matrix of distances, cut where the caller wants it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

LINKAGES = ("average", "single", "complete")


class _Chain(NamedTuple):
    """A nearest-neighbour chain: distinct clusters, each the nearest of the one before."""

    distances: Float[Array, "n n"]
    row: Float[Array, " n"]
    """What row and column ``at`` become: written a step later, so that XLA copies no matrix."""
    at: Int[Array, ""]
    sizes: Float[Array, " n"]
    """Points of the cluster that each index stands for; 0: none."""
    names: Int[Array, " n"]
    """The index that stands for each point's cluster."""
    chain: Int[Array, " n"]
    length: Int[Array, ""]
    clusters: Int[Array, ""]


def larger_of_two(
    distances: Float[Array, "n n"], usable: Bool[Array, " n"], linkage: str = "average"
) -> Bool[Array, " n"]:
    """The larger of two clusters by average, single or complete linkage.

    Clusters are merged until two are left, always the two whose points are nearest on average,
    whose nearest points are nearest (``"single"``), or whose farthest are (``"complete"``).
    Of two equal halves the one with the lowest index wins. Fewer than two points are one cluster.

    Args:
      distances: symmetric; NaN counts as infinite.
      usable: which points exist; the others belong to no cluster.
      linkage: one of ``LINKAGES``.

    Cost: ``O(n^2)``: at most ``3 n`` steps that read a row, by the nearest-neighbour chain
    (Murtagh, "A survey of recent advances in hierarchical clustering algorithms", Computer
    Journal 1983): merging nearest neighbours of each other in any order gives the same tree,
    and the merge that completes the tree is its root.
    """
    indices = jnp.arange(usable.shape[0], dtype=jnp.int32)
    distances = finite(distances)
    count = jnp.sum(usable, dtype=jnp.int32)
    start = _Chain(
        distances=distances,
        row=distances[0],
        at=jnp.int32(0),
        sizes=usable.astype(distances.dtype),
        names=indices,
        chain=jnp.zeros_like(indices),
        length=jnp.int32(0),
        clusters=count,
    )
    names = jax.lax.while_loop(
        lambda s: s.clusters > 2, lambda s: _grow_or_merge(s, linkage), start
    ).names
    first = usable & (names == names[jnp.argmax(usable)])
    return jnp.where(2 * jnp.sum(first, dtype=jnp.int32) >= count, first, usable & ~first)


def _grow_or_merge(s: _Chain, linkage: str) -> _Chain:
    """Adds the nearest cluster of the chain's tip; merges the last two that are each other's."""
    indices = jnp.arange(s.names.shape[0], dtype=jnp.int32)
    distances = jax.lax.dynamic_update_index_in_dim(s.distances, s.row, s.at, axis=0)
    distances = jax.lax.dynamic_update_index_in_dim(distances, s.row, s.at, axis=1)

    first = jnp.argmax(s.sizes > 0).astype(jnp.int32)
    chain = s.chain.at[0].set(jnp.where(s.length == 0, first, s.chain[0]))
    length = jnp.maximum(s.length, 1)
    tip, before = chain[length - 1], chain[jnp.maximum(length - 2, 0)]
    row = _row(distances, tip)
    others = jnp.where((s.sizes > 0) & (indices != tip), row, jnp.inf)
    nearest = jnp.argmin(others).astype(jnp.int32)
    # Among equals the one it came from, or the chain would never end.
    mutual = (length > 1) & (others[before] <= others[nearest])
    mate = jnp.where(mutual, before, nearest)

    size = s.sizes[tip] + s.sizes[mate]
    share = s.sizes[tip] / jnp.maximum(size, 1)
    other = _row(distances, mate)
    least = jnp.minimum(row, other)
    # A mean that rounding put below both could close the chain to a circle.
    merged = {
        "single": least,
        "average": jnp.maximum(share * row + (1 - share) * other, least),
        "complete": jnp.maximum(row, other),
    }[linkage]
    grown = jnp.where(indices == tip, size, jnp.where(indices == mate, 0, s.sizes))
    return _Chain(
        distances=distances,
        row=jnp.where(mutual, merged, row),
        at=tip,
        sizes=jnp.where(mutual, grown, s.sizes),
        names=jnp.where(mutual & (s.names == mate), tip, s.names),
        chain=chain.at[jnp.minimum(length, s.names.shape[0] - 1)].set(mate),
        length=jnp.where(mutual, length - 2, length + 1),
        clusters=s.clusters - mutual,
    )


def smallest_level(
    distances: Float[Array, "n n"], usable: Bool[Array, " n"], size: Int[Array, ""] | int
) -> Bool[Array, " n"]:
    """The first cluster of at least ``size`` points, by single linkage.

    The level t is the smallest at which the graph of all pairs with distance at most t has a
    component that large; the largest component at that level is returned. With more than half
    of the points as ``size`` there is only one.

    Args:
      distances: symmetric; NaN counts as infinite.
      usable: which points exist; the others belong to no cluster.
      size: least points of the cluster; all points where there are fewer.

    Cost: ``O(n^2)``: n steps of Prim's algorithm, each reading one row. The components at any
    level are runs in the order in which Prim's algorithm adds the points.
    """
    n = usable.shape[0]
    indices = jnp.arange(n, dtype=jnp.int32)
    count = jnp.sum(usable, dtype=jnp.int32)
    gaps, places = spanning_tree(finite(distances), usable, count)

    def runs(level: Array) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
        """Where the run of each place starts, and how long it is up to there."""
        starts = runs_of(gaps, level)
        return starts, jnp.where(indices < count, indices - starts + 1, 0)

    wanted = jnp.clip(size, 1, count)
    levels = jnp.sort(gaps.at[0].set(0))

    def halve(_: Array | int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) // 2
        enough = jnp.max(runs(levels[middle])[1]) >= wanted
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    bounds = jnp.int32(0), jnp.maximum(count - 1, 0)
    _, level = jax.lax.fori_loop(0, n.bit_length(), halve, bounds)
    starts, lengths = runs(levels[level])
    last = jnp.argmax(lengths)
    return usable & (places >= starts[last]) & (places <= last)


def runs_of(gaps: Float[Array, " n"], level: Float[Array, ""]) -> Int[Array, " n"]:
    """Where the component at a level starts that each place of a spanning tree is in."""
    return jax.lax.cummax(jnp.where(gaps > level, jnp.arange(gaps.shape[0], dtype=jnp.int32), 0))


def spanning_tree(
    distances: Float[Array, "n n"], usable: Bool[Array, " n"], count: Int[Array, ""]
) -> tuple[Float[Array, " n"], Int[Array, " n"]]:
    """Prim's algorithm: the usable points, each time the one nearest to those before it.

    Returns the distance at which the i-th point was reached (infinite for the first), and the
    place of each point in this order (n where it is not usable).
    """
    n = usable.shape[0]

    def add(i: Array | int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        gaps, places, reached = carry
        left = usable & (places == n)
        # +inf marks the first point and what is out of reach.
        closest = jnp.argmin(jnp.where(left, reached, jnp.inf)).astype(jnp.int32)
        closest = jnp.where(i == 0, jnp.argmax(usable), closest)
        gaps = gaps.at[i].set(reached[closest])
        places = places.at[closest].set(i)
        return gaps, places, jnp.minimum(reached, _row(distances, closest))

    endless = jnp.full((n,), jnp.inf, distances.dtype)
    start = endless, jnp.full((n,), n, jnp.int32), endless
    gaps, places, _ = jax.lax.fori_loop(0, count, add, start)
    return gaps, places


def finite(distances: Array) -> Array:
    """Distances as constants, NaN and infinite ones as large as can be."""
    most = jnp.finfo(distances.dtype).max
    return jnp.nan_to_num(jax.lax.stop_gradient(distances), nan=most, posinf=most)


def _row(matrix: Array, i: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(matrix, i, keepdims=False)
