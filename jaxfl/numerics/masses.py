"""Masses stacked on top of each other: what of each lies between two heights.

Fractional trimming: where each of n rows has the mass 1 / n, leaving out the lowest f / n is
leaving out f rows; otherwise a row can be left out in part.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.numerics import network
from jaxfl.numerics.rows import safe_ratio

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
    return mass_inside(masses, jnp.cumsum(masses, axis=0) - masses, low, high)


def mass_inside(
    masses: Float[Array, "n ..."],
    below: Float[Array, "n ..."],
    low: Float[Array, ""],
    high: Float[Array, ""],
) -> Float[Array, "n ..."]:
    """The same, of masses that lie on top of these others."""
    inside = jnp.minimum(below + masses, high) - jnp.maximum(below, low)
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


def mass_of_largest(
    values: Float[Array, " n"], masses: Float[Array, " n"], part: Float[Array, ""]
) -> Float[Array, " n"]:
    """What each value has of the largest ones, those that hold a part of the whole mass.

    Values that are equal give the same share of their masses. Where the part is less than a
    rounding of the masses, all of it is the largest value's. The sum is 0 only without any mass.

    No gradient: a selection is a constant.
    """
    masses = safe_ratio(masses, jnp.sum(masses))
    taken = mass_of_smallest(-values, masses, part)
    here = jnp.any(taken > 0)
    counted = jnp.where(here, taken > 0, masses > 0)
    end = jnp.where(here, 1, -1)
    # The least of what is taken, or the largest of all.
    edge = end * jnp.min(jnp.where(counted, end * values, jnp.inf))
    last = jnp.where(values == edge, masses, 0)
    above = jnp.where(values > edge, masses, 0)
    share = safe_ratio(jnp.sum(jnp.where(last > 0, taken, 0)), jnp.sum(last))
    return above + jnp.where(jnp.any(above > 0), share, 1) * last


def stacked(
    values: Float[Array, "n c"], masses: Float[Array, " n"]
) -> tuple[Float[Array, "n c"], Float[Array, "n c"], Float[Array, "n c"]]:
    """Per column, in some order: the values, their rows' masses, and the mass below each of them.

    Of equal values the first lie below. None may be NaN.

    Cost: up to 64 rows n comparisons of each value, which compile at once and stay in cache where
    a network that moves masses along took minutes to compile; a sort of pairs beyond.
    """
    n = values.shape[0]
    spread = jnp.broadcast_to(masses[:, None], values.shape)
    if n > network.ROWS:
        ordered, moved = jax.lax.sort((values, spread), dimension=0, num_keys=1)
        return ordered, moved, jnp.cumsum(moved, axis=0) - moved
    places = jnp.arange(n)[:, None]

    def add(j: Array | int, below: Array) -> Array:
        smaller = (values[j][None] < values) | ((values[j][None] == values) & (j < places))
        return below + jnp.where(smaller, masses[j], 0)

    return values, spread, jax.lax.fori_loop(0, n, add, jnp.zeros_like(spread))
