"""Inner products of rows, changed as if the rows had been."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxfl.numerics.rows import safe_ratio


def weighted_gram(gram: Float[Array, "n n"], weights: Float[Array, " n"]) -> Float[Array, "n n"]:
    """Inner products about the weighted mean of the rows; weights are at least 0."""
    shares = safe_ratio(weights, jnp.sum(weights))
    to_mean = jnp.matmul(gram, shares, precision="highest")
    mean = jnp.dot(shares, to_mean, precision="highest")
    return gram - to_mean[:, None] - to_mean[None, :] + mean


def tame_gram(
    gram: Float[Array, "n n"], usable: Bool[Array, " n"]
) -> tuple[Float[Array, "n n"], Bool[Array, " n"]]:
    """The Gram matrix without the rows whose sums could overflow, and which rows are left."""
    limit = jnp.finfo(gram.dtype).max / (8 * gram.shape[0])
    usable = usable & (jnp.diagonal(gram) <= limit)
    return jnp.where(usable[:, None] & usable[None, :], gram, 0), usable


def squared_distances_to(
    gram: Float[Array, "n n"], weights: Float[Array, " n"]
) -> Float[Array, " n"]:
    """From every row to the point ``weights @ rows``; weights sum to 1."""
    products = jnp.matmul(gram, weights, precision="highest")
    own = jnp.dot(weights, products, precision="highest")
    return jnp.maximum(jnp.diagonal(gram) - 2 * products + own, 0)
