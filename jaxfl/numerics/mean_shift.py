"""Mean-Shift clustering of a few features per point, as a program of fixed shape.

Comaniciu and Meer, "Mean shift: a robust approach toward feature space analysis", IEEE TPAMI
2002, in scikit-learn's form: a flat kernel, seeds on a grid, and a bandwidth from neighbours.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxfl.numerics import columns, order

MAX_SEEDS = 512
"""Seeds that are followed; of more grid cells than this, a random sample is."""
_TOGETHER = 64  # Seeds followed at once: the memory is _TOGETHER * n.
_ITERATIONS = 300
_ROUNDINGS = 8  # Coordinates are equal up to so many roundings of the largest one.
_STOP = 1e-3  # A seed has converged when it moves by less than this part of the bandwidth.


class Clusters(NamedTuple):
    """What Mean-Shift found."""

    labels: Int[Array, " n"]
    """Index of each point's nearest centre; -1: none within the bandwidth, or not usable."""
    centres: Float[Array, "s p"]
    """Centres by falling number of points around them; the first ``found`` rows are used."""
    found: Int[Array, ""]


def bandwidth(points: Float[Array, "n p"], usable: Bool[Array, " n"]) -> Float[Array, ""]:
    """The mean over points of the distance to half of all points.

    ``mean_i d_i(k)``, with ``d_i(k)`` the distance from point i to its k-th nearest neighbour,
    itself included, and ``k = max(1, floor(n / 2))``; then widened by a few roundings, so that
    points of a lattice that lie exactly that far apart are always within it. It is 0 exactly
    where every usable point equals k - 1 others. Otherwise equal to scikit-learn's
    ``estimate_bandwidth(quantile=0.5)``.

    Args:
      points: n points; rows that are not usable count for nothing, whatever they hold.
      usable: which points exist.

    Cost: ``n^2 p`` for the distances and one pass over them per bit, in blocks.
    """
    points = jnp.where(usable[:, None], points, 0)
    count = jnp.sum(usable, dtype=jnp.int32)
    k = jnp.maximum(count // 2, 1)

    def kth(block: Float[Array, "p c"]) -> Float[Array, " c"]:
        squares = jnp.where(usable[:, None], _squared_distances(points, block.T), jnp.inf)
        return order.of_rank(squares, k - 1)

    width = order.column_width(points.shape[0])
    squares = columns.map_columns(kth, points.T, width=width)
    return _widened(jnp.sum(jnp.where(usable, jnp.sqrt(squares), 0)) / jnp.maximum(count, 1))


def mean_shift(
    points: Float[Array, "n p"],
    usable: Bool[Array, " n"],
    bandwidth: Float[Array, ""],
    key: Key[Array, ""],
) -> Clusters:
    """Clusters around the local maxima of the density: points within a ball that climbs.

    Every seed moves to the mean of the points within the bandwidth of it until it moves by no
    more than 1e-3 bandwidths, 300 times at most. Of the positions reached, the one with most
    points (then the largest coordinates) becomes a centre and all within a bandwidth of it are
    dropped, until none is left. Seeds are the occupied cells of a grid as wide as the bandwidth,
    or the points themselves where no two share a cell.

    Equal to scikit-learn's ``MeanShift(bandwidth, bin_seeding=True, cluster_all=False)`` while
    at most 512 cells are occupied; a point that rounding may have put just outside a ball counts
    as on its rim, which is within.

    Args:
      points: n points with a few features each, of a scale whose squares neither over- nor
        underflow; rows that are not usable count for nothing.
      usable: which points exist.
      bandwidth: radius of the ball, above 0.
      key: chooses the seeds among more than 512.

    Cost: ``iterations * seeds * n * p``, usually a few dozen times ``n``; memory ``64 n``.
    """
    points = jnp.where(usable[:, None], points, 0)
    seeds, active = _seeds(points, usable, bandwidth, key)
    positions, around = _climb(points, usable, seeds, active, bandwidth)
    return _clusters(points, usable, positions, around, bandwidth)


def largest_cluster(
    points: Float[Array, "n p"],
    usable: Bool[Array, " n"],
    deviations: Float[Array, " n"],
    key: Key[Array, ""],
) -> Bool[Array, " n"]:
    """The points of the largest cluster by Mean-Shift with the estimated bandwidth.

    Of clusters of equal size the one around the densest centre wins. Where the bandwidth is 0
    the clusters are the groups of equal points, and of groups of equal size the one with the
    smallest median of ``deviations`` wins.

    Args:
      points: n points with a few features each; rows that are not usable count for nothing.
      usable: which points exist; where none does, the cluster is empty.
      deviations: a number per point that is small where the point is credible.
      key: chooses the seeds among more than 512.
    """
    points = jax.lax.stop_gradient(points)
    width = bandwidth(points, usable)

    def by_density() -> Bool[Array, " n"]:
        clusters = mean_shift(points, usable, width, key)
        names = jnp.arange(clusters.centres.shape[0], dtype=jnp.int32)
        sizes = jnp.sum(clusters.labels[:, None] == names[None], axis=0, dtype=jnp.int32)
        return (clusters.labels == jnp.argmax(sizes)) & usable

    def by_equality() -> Bool[Array, " n"]:
        return _largest_group(points, usable, jax.lax.stop_gradient(deviations))

    return jax.lax.cond(width > 0, by_density, by_equality)


def _widened(radius: Float[Array, ""]) -> Float[Array, ""]:
    return radius * (1 + 32 * jnp.finfo(radius.dtype).eps)


def _squared_distances(a: Float[Array, "m p"], b: Float[Array, "n p"]) -> Float[Array, "m n"]:
    """By differences: points that are equal, or exactly on the rim of a ball, stay so."""
    pairs = zip(a.T, b.T, strict=True)
    return functools.reduce(jnp.add, (jnp.square(x[:, None] - y[None, :]) for x, y in pairs))


def _seeds(
    points: Array, usable: Array, bandwidth: Array, key: Array
) -> tuple[Float[Array, "s p"], Bool[Array, " s"]]:
    n = points.shape[0]
    cells = jnp.round(points / bandwidth)
    cells = jnp.where(cells == 0, 0, cells)  # sorting tells -0.0 from 0.0
    keys = (~usable, *cells.T, jnp.arange(n, dtype=jnp.int32))
    *ordered, index = jax.lax.sort(keys, num_keys=len(keys) - 1)
    differs = functools.reduce(jnp.logical_or, (c[1:] != c[:-1] for c in ordered))
    first = ~ordered[0] & jnp.concatenate([jnp.ones((1,), bool), differs])
    own_cell = jnp.sum(first) == jnp.sum(usable)

    # Chosen cells come first, in random order.
    rank = jnp.argsort(jnp.where(first, jax.random.uniform(key, (n,)), jnp.inf))
    slots = min(n, MAX_SEEDS)
    slots = -(-slots // min(slots, _TOGETHER)) * min(slots, _TOGETHER)
    rank = rank[jnp.minimum(jnp.arange(slots), n - 1)]
    active = first[rank] & (jnp.arange(slots) < n)
    index = index[rank]
    return jnp.where(own_cell, points[index], cells[index] * bandwidth), active


def _climb(
    points: Array, usable: Array, seeds: Array, active: Array, bandwidth: Array
) -> tuple[Float[Array, "s p"], Float[Array, " s"]]:
    """Where each seed ends, and how many points were around it; 0 for seeds that are not active."""
    slots, together = seeds.shape[0], min(seeds.shape[0], _TOGETHER)
    counted = jnp.concatenate([points, jnp.ones_like(points[:, :1])], axis=1)
    reach = jnp.square(_widened(bandwidth))

    def climbing(carry: tuple[Array, Array, Array, Array]) -> Array:
        _, _, moving, step = carry
        return jnp.any(moving) & (step <= _ITERATIONS)

    def climb(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        position, around, moving, step = carry
        inside = _squared_distances(position, points) <= reach
        inside = (inside & usable[None]).astype(points.dtype)
        sums = jnp.matmul(inside, counted, precision="highest")
        count = sums[:, -1]
        mean = jnp.where(count[:, None] > 0, sums[:, :-1] / count[:, None], position)
        move = jnp.sqrt(jnp.sum(jnp.square(mean - position), axis=1))
        position = jnp.where(moving[:, None], mean, position)
        around = jnp.where(moving, count, around)
        return position, around, moving & (move > _STOP * bandwidth), step + 1

    def climb_some(i: Array | int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        positions, counts = carry
        start = i * together
        position, moving = (
            jax.lax.dynamic_slice_in_dim(a, start, together) for a in (positions, active)
        )
        first = (position, jnp.zeros((together,), points.dtype), moving, jnp.int32(0))
        position, around, _, _ = jax.lax.while_loop(climbing, climb, first)
        positions = jax.lax.dynamic_update_slice_in_dim(positions, position, start, 0)
        return positions, jax.lax.dynamic_update_slice_in_dim(counts, around, start, 0)

    needed = -(-jnp.sum(active, dtype=jnp.int32) // together)
    counts = jnp.zeros((slots,), points.dtype)
    return jax.lax.fori_loop(0, needed, climb_some, (seeds, counts))


def _clusters(
    points: Array, usable: Array, positions: Array, around: Array, bandwidth: Array
) -> Clusters:
    """Centres chosen among the positions that the seeds reached, and their points."""
    reach = jnp.square(_widened(bandwidth))
    largest = jnp.maximum(jnp.max(jnp.abs(points)), bandwidth)
    slack = _ROUNDINGS * jnp.finfo(points.dtype).eps * largest

    def keep_best(carry: tuple[Array, Array, Clusters]) -> tuple[Array, Array, Clusters]:
        left, nearest, (labels, centres, found) = carry
        centre = positions[_first_in_order(positions, around, left, slack)]
        left &= _squared_distances(positions, centre[None])[:, 0] > reach
        squares = _squared_distances(points, centre[None])[:, 0]
        nearer = (squares <= reach) & (squares < nearest - 4 * bandwidth * slack)
        labels = jnp.where(nearer, found, labels)
        centres = jax.lax.dynamic_update_index_in_dim(centres, centre, found, 0)
        return left, jnp.where(nearer, squares, nearest), Clusters(labels, centres, found + 1)

    none = Clusters(
        jnp.full((points.shape[0],), -1, jnp.int32), jnp.zeros_like(positions), jnp.int32(0)
    )
    nearest = jnp.where(usable, jnp.asarray(jnp.inf, points.dtype), 0)
    _, _, clusters = jax.lax.while_loop(
        lambda carry: jnp.any(carry[0]), keep_best, (around > 0, nearest, none)
    )
    return clusters


def _first_in_order(positions: Array, around: Array, left: Array, slack: Array) -> Int[Array, ""]:
    """Among those left, the index of the largest count, then the largest coordinates.

    Coordinates that differ by no more than the slack are equal.
    """
    left &= around == jnp.max(jnp.where(left, around, 0))
    for values in positions.T:
        left &= values >= jnp.max(jnp.where(left, values, -jnp.inf)) - slack
    return jnp.argmax(left)


def _largest_group(points: Array, usable: Array, deviations: Array) -> Bool[Array, " n"]:
    """The largest group of equal points, where there are at most three."""

    def compare(
        _: Array | int, carry: tuple[Array, Array, Array, Array]
    ) -> tuple[Array, Array, Array, Array]:
        left, best, best_size, best_deviation = carry
        group = left & jnp.all(points == points[jnp.argmax(left)][None], axis=1)
        size = jnp.sum(group, dtype=jnp.int32)
        ranked = jnp.sort(jnp.where(group, deviations, jnp.inf))
        middle = (ranked[jnp.maximum(size - 1, 0) // 2] + ranked[size // 2]) / 2
        better = (size > best_size) | ((size == best_size) & (middle < best_deviation))
        return (
            left & ~group,
            jnp.where(better, group, best),
            jnp.where(better, size, best_size),
            jnp.where(better, middle, best_deviation),
        )

    # A bandwidth of 0 puts max(1, floor(n / 2)) points or more in every group.
    nothing = (usable, jnp.zeros_like(usable), jnp.int32(0), jnp.array(jnp.inf, deviations.dtype))
    return jax.lax.fori_loop(0, 3, compare, nothing)[1]
