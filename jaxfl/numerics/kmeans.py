"""k-means of a few points, and the gap statistic that says how many clusters there are."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

STEPS = 30
"""Of Lloyd's algorithm: few points settle in fewer."""
RESTARTS = 16


class _Fit(NamedTuple):
    labels: Int[Array, " n"]
    squares: Float[Array, " n"]
    """Squared distance of each point to its centre; 0 of one not usable."""


def kmeans(
    points: Float[Array, "n p"],
    usable: Bool[Array, " n"],
    count: Int[Array, ""] | int,
    most: int,
    key: Key[Array, ""],
) -> Int[Array, " n"]:
    """The cluster of each point, from 0: the best of several starts by k-means++.

    Args:
      points: n points.
      usable: which of them exist; the labels of the others mean nothing.
      count: how many clusters, at most ``most``.
      most: static bound of ``count``.
      key: of the starts.

    Arthur, Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.
    """
    return _best(points, usable, count, most, key).labels


def _best(points: Array, usable: Array, count: Array | int, most: int, key: Array) -> _Fit:
    fits = jax.vmap(lambda k: _one_start(points, usable, count, most, k))(
        jax.random.split(key, RESTARTS)
    )
    best = jnp.argmin(jnp.sum(fits.squares, axis=1))
    return jax.tree.map(lambda x: x[best], fits)


def _one_start(points: Array, usable: Array, count: Array | int, most: int, key: Array) -> _Fit:
    active = jnp.arange(most) < count
    tiny = jnp.finfo(points.dtype).tiny

    def squares(centres: Array) -> Float[Array, "n most"]:
        away = points[:, None, :] - centres[None, :, :]
        return jnp.where(active[None, :], jnp.sum(jnp.square(away), axis=-1), jnp.inf)

    def seed(i: Array | int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        centres, nearest = carry
        logits = jnp.where(usable, jnp.log(jnp.maximum(nearest, tiny)), -jnp.inf)
        chosen = points[jax.random.categorical(jax.random.fold_in(key, i), logits)]
        away = jnp.sum(jnp.square(points - chosen[None]), axis=1)
        return centres.at[i].set(chosen), jnp.minimum(nearest, away)

    # All points are equally far from no centre: the first one is drawn uniformly.
    far = jnp.ones(points.shape[:1], points.dtype), jnp.zeros((most, points.shape[1]), points.dtype)
    first = seed(0, (far[1], far[0]))
    start = first[0], jnp.sum(jnp.square(points - first[0][:1]), axis=1)
    centres, _ = jax.lax.fori_loop(1, most, seed, start)

    def lloyd(_: Array | int, centres: Array) -> Array:
        labels = jnp.argmin(squares(centres), axis=1)
        own = (labels[None, :] == jnp.arange(most)[:, None]) & usable[None, :]
        own = own.astype(points.dtype)
        size = jnp.sum(own, axis=1, keepdims=True)
        means = jnp.matmul(own, points, precision="highest") / jnp.maximum(size, 1)
        return jnp.where(size > 0, means, centres)

    found = squares(jax.lax.fori_loop(0, STEPS, lloyd, centres))
    labels = jnp.argmin(found, axis=1).astype(jnp.int32)
    return _Fit(labels, jnp.where(usable, jnp.min(found, axis=1), 0))


def scaled(points: Float[Array, "n p"], usable: Bool[Array, " n"]) -> Float[Array, "n p"]:
    """Each column from 0 to 1 over the usable points; 0 where all are equal."""
    low = jnp.min(jnp.where(usable[:, None], points, jnp.inf), axis=0, keepdims=True)
    high = jnp.max(jnp.where(usable[:, None], points, -jnp.inf), axis=0, keepdims=True)
    wide = high > low
    shifted = (points - jnp.where(wide, low, 0)) / jnp.where(wide, high - low, 1)
    return jnp.where(usable[:, None] & wide, shifted, 0)


def reference_points(
    points: Float[Array, "n p"], draws: int, key: Key[Array, ""]
) -> Float[Array, "b n p"]:
    """Uniform points from 0 to 1 in every column in which the scaled points are not all equal."""
    uniform = jax.random.uniform(key, (draws, *points.shape), points.dtype)
    return uniform * (jnp.max(points, axis=0) > 0)[None, None, :]


def gap_count(
    points: Float[Array, "n p"],
    references: Float[Array, "b n p"],
    usable: Bool[Array, " n"],
    most: int,
    key: Key[Array, ""],
    power: int = 2,
) -> Int[Array, ""]:
    """How many clusters there are, by the gap statistic; at least 1, at most ``most``.

    With W_k the sum of distances of points to the centres of k clusters to the ``power``,
    ``Gap(k) = mean_b log W_kb - log W_k`` over the references, and s_k their standard deviation
    times ``sqrt(1 + 1 / b)``, the answer is the least k with ``Gap(k) >= Gap(k + 1) - s_{k+1}``.

    Cost: ``b + 1`` clusterings for each of ``most`` numbers of clusters, all at once.
    Tibshirani, Walther, Hastie, "Estimating the number of clusters in a data set via the gap
    statistic", Journal of the Royal Statistical Society B 2001.
    """
    sets = jnp.concatenate([points[None], references])
    counts = jnp.minimum(jnp.arange(1, most + 1), jnp.maximum(jnp.sum(usable), 1))
    tiny = jnp.finfo(points.dtype).tiny

    def spread(own: Array, count: Array, key: Array) -> Array:
        squares = _best(own, usable, count, most, key).squares
        total = jnp.sum(squares if power == 2 else jnp.sqrt(squares))
        return jnp.log(jnp.maximum(total, tiny))

    keys = jax.random.split(key, (sets.shape[0], most))
    each_count = jax.vmap(spread, (None, 0, 0))
    logs = jax.vmap(each_count, (0, None, 0))(sets, counts, keys)
    gap = jnp.mean(logs[1:], axis=0) - logs[0]
    slack = jnp.std(logs[1:], axis=0) * (1 + 1 / references.shape[0]) ** 0.5
    enough = jnp.append(gap[:-1] >= gap[1:] - slack[1:], True)
    return counts[jnp.argmax(enough)]
