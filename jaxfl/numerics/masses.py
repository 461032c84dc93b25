"""Masses stacked on top of each other: what of each lies between two heights.

Fractional trimming: where each of n rows has the mass 1 / n, leaving out the lowest f / n is
leaving out f rows; otherwise a row can be left out in part.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.numerics import network

ROUNDINGS = 4
"""A part of so many roundings a row is none: an infinite value must not count for a rounding."""


def mass_between(
    masses: Float[Array, "n ..."], low: Float[Array, ""], high: Float[Array, ""]
) -> Float[Array, "n ..."]:
    """What of each mass lies between the two heights, stacked down the leading axis.

    Args:
      masses: at least 0, of a sum of about 1.
      low: nothing below it counts.
      high: nothing above it counts.
    """
    upper = jnp.cumsum(masses, axis=0)
    inside = jnp.minimum(upper, high) - jnp.maximum(upper - masses, low)
    noise = ROUNDINGS * masses.shape[0] * jnp.finfo(masses.dtype).eps
    inside = jnp.where(masses - inside < noise, masses, inside)
    return jnp.where(inside > noise, inside, 0)


def mass_of_smallest(
    values: Float[Array, " n"], masses: Float[Array, " n"], high: Float[Array, ""]
) -> Float[Array, " n"]:
    """What each value has of the mass ``high`` of the smallest ones; the first of equals go first.

    No gradient: a selection is a constant.
    """
    order = jnp.argsort(jax.lax.stop_gradient(values))
    inside = mass_between(masses[order], jnp.zeros((), masses.dtype), high)
    return jnp.zeros_like(masses).at[order].set(inside)


def in_order_with(
    values: Float[Array, "n c"], masses: Float[Array, " n"]
) -> tuple[Float[Array, "n c"], Float[Array, "n c"]]:
    """Per column, the values in ascending order, and their rows' masses. None may be NaN.

    Cost: three times a sorting network up to 64 rows, a sort of pairs beyond.
    """
    n = values.shape[0]
    spread = jnp.broadcast_to(masses[:, None], values.shape)
    if n > network.ROWS:
        ordered, moved = jax.lax.sort((values, spread), dimension=0, num_keys=1)
        return ordered, moved
    kept, own = jnp.split(values, n), jnp.split(spread, n)
    for i, j in network.sorting_network(n):
        swap = kept[i] > kept[j]
        own[i], own[j] = jnp.where(swap, own[j], own[i]), jnp.where(swap, own[i], own[j])
        kept[i], kept[j] = jnp.minimum(kept[i], kept[j]), jnp.maximum(kept[i], kept[j])
    return jnp.concatenate(kept), jnp.concatenate(own)
