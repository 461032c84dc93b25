"""Nearest-neighbour mixing."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.aggregators.base import needs_more_than
from jaxfl.aggregators.mixing import PreAggregator
from jaxfl.aggregators.statistics import Statistics
from jaxfl.component import capability, field
from jaxfl.numerics.order import smallest
from jaxfl.numerics.rows import safe_ratio
from jaxfl.types import Context, present_count


class NNM(PreAggregator):
    """Replaces each row by the mean of the n - f rows nearest to it, itself included.

    Needs n > 2f. Cost: n^2 d multiply-adds for the distances and as many for the mixed rows
    where a coordinatewise rule follows. It makes any standard rule optimal, up to a constant,
    under heterogeneity.
    Allouah et al., "Fixing by mixing", AISTATS 2023.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> jaxfl.Pipeline(pre=[NNM(f=1)], rule=jaxfl.Mean())(updates).round(2)
    Array([ 4.1 , -0.21], dtype=float32)
    """

    f: int = field(at_least=0)
    accepts_absent = capability(True)
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)

    def check(self, n: int) -> None:
        needs_more_than(self, n, 2 * self.f + 1, "n > 2f")

    def mix(self, statistics: Statistics, context: Context) -> Float[Array, "m m"]:
        m = statistics.usable.shape[0]
        distances = statistics.squared_distances()[:m, :m]
        count = present_count(context, m)
        near = smallest(distances, count - self.f).T
        near &= statistics.usable[:, None] & statistics.usable[None, :]
        weights = near.astype(distances.dtype)
        return safe_ratio(weights, jnp.sum(weights, axis=1, keepdims=True))
