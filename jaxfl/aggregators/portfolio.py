"""Weights of clients that keep little mass in Byzantine hands, chosen inside a compiled round.

``jaxfl.robustness.barrier_portfolio`` solves the same problem offline, in float64, by the same
steps: why they are judged by slopes is said there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BORDER = 0.4
"""Masses from which the barrier goes on as a line."""
HALVINGS = 60
"""Of an interval, until float64 cannot tell its ends apart."""


def barrier(mass: Float[Array, "*k"]) -> Float[Array, "*k"]:
    """``(m / (1 - 2m))^2`` of Byzantine masses m up to 0.4, then its tangent: convex and smooth."""
    inside = jnp.minimum(mass, BORDER)
    slope = 2 * inside / (1 - 2 * inside) ** 3
    return (inside / (1 - 2 * inside)) ** 2 + slope * (mass - inside)


def on_simplex(point: Float[Array, " n"], top: Float[Array, ""]) -> Float[Array, " n"]:
    """The nearest vector of numbers from 0 to ``top`` that sum to 1; needs ``top * n >= 1``."""

    def halve(_: Int[Array, ""], ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        heavy = jnp.sum(jnp.clip(point - middle, 0, top)) > 1
        return jnp.where(heavy, middle, low), jnp.where(heavy, high, middle)

    ends = jnp.min(point) - top, jnp.max(point)
    low, high = jax.lax.fori_loop(0, HALVINGS, halve, ends)
    return jnp.clip(point - (low + high) / 2, 0, top)


class _At(NamedTuple):
    point: Float[Array, " n"]
    ahead: Float[Array, " n"]
    momentum: Float[Array, ""]
    step: Float[Array, ""]


def barrier_portfolio(
    outside: Float[Array, "k n"],
    masses: Float[Array, " k"],
    weights: Float[Array, " n"],
    penalty: Float[Array, ""],
    cap: Float[Array, ""],
    steps: int,
) -> Float[Array, " n"]:
    """The omega that minimises ``penalty E psi(omega(B)) + |omega - weights|^2`` on the simplex.

    psi is ``barrier``, omega(B) the mass of the Byzantine clients. Accelerated projected gradients
    with backtracking, begun anew where the momentum points uphill.

    Args:
      outside: 1 for every Byzantine client of each of k scenarios.
      masses: the scenarios' probabilities.
      weights: of the expected objective.
      penalty: of corruption.
      cap: the largest weight, at least 1 / n.
      steps: taken.
    """

    def value(omega: Float[Array, " n"]) -> Float[Array, ""]:
        held = jnp.matmul(outside, omega, precision="highest")
        corrupt = jnp.dot(masses, barrier(held), precision="highest")
        return penalty * corrupt + jnp.sum(jnp.square(omega - weights))

    def advance(_: Int[Array, ""], at: _At) -> _At:
        slope = jax.grad(value)(at.ahead)

        def landing(step: Float[Array, ""]) -> Float[Array, " n"]:
            return on_simplex(at.ahead - step * slope, cap)

        def too_far(step: Float[Array, ""]) -> Array:
            there = landing(step)
            moved = there - at.ahead
            turned = jnp.dot(jax.grad(value)(there) - slope, moved, precision="highest")
            return turned > jnp.sum(jnp.square(moved)) / (2 * step)

        step = jax.lax.while_loop(too_far, lambda step: step / 2, at.step)
        new = landing(step)
        uphill = jnp.dot(at.ahead - new, new - at.point, precision="highest") > 0
        following = (1 + jnp.sqrt(1 + 4 * jnp.square(at.momentum))) / 2
        carried = new + (at.momentum - 1) / following * (new - at.point)
        return _At(
            new, jnp.where(uphill, new, carried), jnp.where(uphill, 1, following), 1.1 * step
        )

    one = jnp.ones((), weights.dtype)
    start = on_simplex(weights, cap)
    found = jax.lax.fori_loop(0, steps, advance, _At(start, start, one, one))
    return found.point / jnp.sum(found.point)
