"""What is minimised where the honest set is random: worst case, expectation, and between."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxfl.arguments import integer
from jaxfl.numerics.masses import mass_of_largest, mass_of_smallest


def worst_objective(losses: Float[Array, " n"], f: int) -> Float[Array, ""]:
    """``max over |S| = n - f of the mean loss in S``: the mean of the n - f largest losses.

    No enumeration: the sets are sorted out by the losses. Differentiable, for training.

    Raises:
      ValueError: f is no integer from 0 to n - 1.

    >>> worst_objective(jnp.array([1.0, 5.0, 3.0]), f=1)
    Array(4., dtype=float32)
    """
    n = losses.shape[0]
    f = integer(f, "f", 0, n - 1)
    taken = mass_of_smallest(-losses, jnp.full((n,), 1 / n, losses.dtype), jnp.asarray(1 - f / n))
    return jnp.dot(taken, losses, precision="highest") / jnp.sum(taken)


def expected_objective(losses: Float[Array, " n"], weights: Float[Array, " n"]) -> Float[Array, ""]:
    """``E_S of the mean loss in S = sum_i w_i L_i``, with the weights of a law's moments.

    >>> expected_objective(jnp.array([1.0, 5.0]), jnp.array([0.75, 0.25]))
    Array(2., dtype=float32)
    """
    return jnp.dot(weights.astype(losses.dtype), losses, precision="highest")


def tail_objective(
    losses: Float[Array, " n"],
    sets: Bool[Array, "k n"],
    masses: Float[Array, " k"],
    alpha: float,
) -> Float[Array, ""]:
    """The conditional value at risk of the mean loss in S: its mean over the worst 1 - alpha.

    ``min_t t + E (L_S - t)_+ / (1 - alpha)``. At alpha = 0 it is the expected objective; as alpha
    goes to 1, the largest mean loss in a set that can occur.

    Args:
      losses: of the clients.
      sets: honest sets, all or drawn ones.
      masses: their probabilities.
      alpha: from 0 to below 1.

    Raises:
      ValueError: alpha is out of its range.

    >>> sets = jnp.array([[True, True, False], [True, False, True]])
    >>> tail_objective(jnp.array([1.0, 5.0, 3.0]), sets, jnp.array([0.5, 0.5]), alpha=0.5)
    Array(3., dtype=float32)
    """
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must be at least 0 and below 1; got {alpha}")
    members = sets.astype(losses.dtype)
    shares = members / jnp.sum(members, axis=1, keepdims=True)
    values = jnp.matmul(shares, losses, precision="highest")
    return tail_mean(values, masses, alpha)


def tail_mean(values: Float[Array, " k"], masses: Float[Array, " k"], alpha: float) -> Array:
    """The mean over the largest values that hold the mass 1 - alpha.

    >>> tail_mean(jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.full(4, 0.25), alpha=0.5)
    Array(3.5, dtype=float32)
    """
    masses = masses.astype(values.dtype)
    taken = mass_of_largest(values, masses, jnp.asarray(1 - alpha, values.dtype))
    return jnp.dot(taken, values, precision="highest") / jnp.sum(taken)
