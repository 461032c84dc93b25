"""How evenly a model serves clients, and who among them is unlike the others."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxfl.numerics import rows
from jaxfl.types import Struct

LEVELS = 100_000
"""Distances between distributions are told apart by this part of the largest, 1."""


class FairnessMetrics(Struct):
    """How evenly accuracy is spread over clients."""

    mean: Float[Array, ""]
    variance: Float[Array, ""]
    """Mean squared distance from the mean, in squared units of accuracy."""
    worst_tenth: Float[Array, ""]
    """Mean accuracy of the ``ceil(K / 10)`` clients served worst."""
    best_tenth: Float[Array, ""]
    entropy: Float[Array, ""]
    """Of the clients' shares of the total accuracy, over ``log K``: 1 where all are equal."""
    gini: Float[Array, ""]
    """Mean difference of two clients over twice the mean: 0 where all are equal."""
    jain: Float[Array, ""]
    """``(sum x)^2 / (K sum x^2)``, from 1/K to 1 where all are equal."""


def fairness_metrics(accuracy: Float[Array, " K"], counted: Bool[Array, " K"]) -> FairnessMetrics:
    """Metrics over the clients counted whose accuracy is not NaN; NaN where there are none."""
    accuracy = accuracy.astype(rows.accumulator(accuracy.dtype))
    counted = counted & ~jnp.isnan(accuracy)
    count = jnp.sum(counted)
    ordered = jnp.sort(jnp.where(counted, accuracy, jnp.inf))
    place = jnp.arange(accuracy.shape[0])
    tenth = (count + 9) // 10

    def mean(values: Array, mask: Array) -> Array:
        return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(jnp.sum(mask), 1)

    counted = place < count
    centre = mean(ordered, counted)
    # In units of the mean; all zero is all equal.
    ratios = jnp.where(counted & (centre > 0), rows.safe_ratio(ordered, centre), 1)
    divergence = mean(-jax.scipy.special.entr(ratios), counted)
    uneven = rows.safe_ratio(divergence, jnp.log(jnp.maximum(count, 1)))
    metrics = FairnessMetrics(
        mean=centre,
        variance=mean(jnp.square(ordered - centre), counted),
        worst_tenth=mean(ordered, place < tenth),
        best_tenth=mean(ordered, counted & (place >= count - tenth)),
        entropy=jnp.clip(1 - uneven, 0, 1),
        gini=jnp.clip(mean((2 * place + 1 - count) * ratios, counted) / count, 0, 1),
        jain=jnp.minimum(1 / mean(jnp.square(ratios), counted), 1),
    )
    return jax.tree.map(lambda metric: jnp.where(count > 0, metric, jnp.nan), metrics)


def minority(
    labels_histogram: Int[Array, "K C"] | Float[Array, "K C"],
    counted: Bool[Array, " K"],
    share: float = 0.2,
) -> Bool[Array, " K"]:
    """The ``ceil(share K)`` of the K clients counted whose labels are most unlike the others'.

    That is, the distribution of their labels is farthest in total variation from the mean of
    those distributions. A client without samples is not counted. Of clients equally far, up to
    rounding, those of lower number come first.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be at least 0 and at most 1; got {share}")
    totals = jnp.sum(labels_histogram, axis=1)
    counted = counted & (totals > 0)
    count = jnp.sum(counted)
    shares = jnp.where(counted[:, None], rows.safe_ratio(labels_histogram, totals[:, None]), 0)
    centre = jnp.sum(shares, axis=0) / jnp.maximum(count, 1)
    distances = jnp.sum(jnp.abs(shares - centre[None, :]), axis=1) / 2
    # Clients of one class each are all as far, but their sums are rounded differently.
    levels = jnp.where(counted, jnp.round(distances * LEVELS).astype(jnp.int32), 0)
    clients = labels_histogram.shape[0]
    sizes = np.ceil(np.arange(clients + 1) * share - 1e-9).astype(np.int32)
    wanted = jnp.asarray(sizes)[count]
    # By counting: to sort a million clients takes longer than a round of a thousand of them.
    clients_at = jnp.zeros((LEVELS + 1,), jnp.int32).at[levels].add(counted)
    at_least = jnp.cumsum(clients_at[::-1], dtype=jnp.int32)[::-1]
    last = jnp.sum(at_least >= wanted, dtype=jnp.int32) - 1  # the level of the last one chosen
    above = at_least[last] - clients_at[last]
    there = counted & (levels == last)
    place = jnp.cumsum(there, dtype=jnp.int32)
    return counted & ((levels > last) | (there & (place <= wanted - above)))
