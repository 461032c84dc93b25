"""The geometric median, found in n-space."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxfl.aggregators.base import WeightingRule
from jaxfl.aggregators.statistics import Statistics
from jaxfl.component import Scalar, field
from jaxfl.numerics.order import smallest
from jaxfl.numerics.rows import safe_ratio, safe_sqrt
from jaxfl.types import Context, Info, State


def weiszfeld(
    gram: Float[Array, "n n"],
    usable: Bool[Array, " n"],
    start: Float[Array, " n"],
    iterations: int,
    nu: Float[Array, ""],
) -> Float[Array, " n"]:
    """Weights a, summing to 1, of the geometric median ``a @ rows`` after smoothed steps.

    Each step is ``a_i = b_i / sum b``, ``b_i = 1 / max(nu, |x_i - z|)``, with the distances taken
    from the inner products: ``|x_i - z|^2 = G_ii - 2 (G a)_i + a^T G a``.
    """
    squares = jnp.diagonal(gram)

    def step(_: Array | int, a: Array) -> Array:
        products = jnp.matmul(gram, a, precision="highest")
        squared = jnp.maximum(squares - 2 * products + jnp.dot(a, products), 0)
        reach = jnp.maximum(safe_sqrt(squared), nu)
        # In units of the nearest row: where rows coincide, a sum of 1 / nu overflows.
        nearest = jax.lax.stop_gradient(jnp.min(jnp.where(usable, reach, jnp.inf)))
        b = jnp.where(usable, nearest / reach, 0)
        return safe_ratio(b, jnp.sum(b))

    return jax.lax.fori_loop(0, iterations, step, start)


class GeometricMedian(WeightingRule):
    """The point with the smallest sum of distances to the updates, by smoothed Weiszfeld steps.

    Starts from the mean of the majority of rows nearest the medoid (which needs no f and no
    origin), smooths distances below ``nu`` times the median distance, and takes ``iterations``
    steps, each O(n^2) whatever d.

    Cost: three reads of the matrix and n^2 d multiply-adds. Needs an honest majority. Fails:
    ALIE, f equal points, clusters of heterogeneous clients.
    Pillutla, Kakade, Harchaoui, "Robust aggregation for federated learning", IEEE TSP 2022.
    """

    iterations: int = field(default=32, at_least=1)
    nu: Scalar = field(default=1e-6, above=0)
    accepts_absent: ClassVar[bool] = True

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " k"], Info]:
        usable = statistics.usable
        m = usable.shape[0]
        squared = statistics.squared_distances()[:m, :m]
        distances = safe_sqrt(jnp.where(jnp.isfinite(squared), squared, 0))
        medoid = jnp.argmin(jnp.where(usable, jnp.sum(distances, axis=1), jnp.inf))
        count = jnp.sum(usable, dtype=jnp.int32)
        near = smallest(squared[medoid][:, None], count // 2 + 1)[:, 0] & usable
        start = safe_ratio(near.astype(squared.dtype), jnp.sum(near))
        scale = jnp.max(jnp.where(near, distances[medoid], 0))
        floor = jnp.maximum(jnp.asarray(self.nu, scale.dtype) * scale, jnp.finfo(scale.dtype).tiny)
        assert statistics.gram is not None
        gram = statistics.gram[:m, :m]
        weights = weiszfeld(gram, usable, start, self.iterations, floor)
        return weights, Info(weights=weights)
