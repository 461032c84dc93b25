"""Nearest-neighbour mixing of clients that do not weigh the same."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.aggregators.mixing import PreAggregator
from jaxfl.aggregators.prior import check_prior, prior_mass
from jaxfl.aggregators.statistics import Statistics
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics.masses import mass_of_smallest
from jaxfl.numerics.rows import safe_ratio
from jaxfl.types import Context, present_mask


class WeightedNNM(PreAggregator):
    """Replaces each row by the weighted mean of the rows nearest to it that hold a mass 1 - trim.

    ``weights``, one per client of the population, are scaled to sum to 1; without them all weigh
    the same, and trim = f / n is ``NNM``. The farthest of these rows may count in part.

    Needs clients of a mass below ``trim`` to be Byzantine, at most 1/2. Cost: as NNM.
    Allouah et al., "Fixing by mixing", AISTATS 2023, for equal weights.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> jaxfl.Pipeline(pre=[WeightedNNM(trim=1 / 7)], rule=jaxfl.Mean())(updates).round(2)
    Array([ 4.1 , -0.21], dtype=float32)
    """

    name = "weighted_nnm"
    trim: Scalar = field(default=0.2, at_least=0, below=0.5)
    """Mass that each row leaves out."""
    weights: Scalar | None = field(default=None, at_least=0)
    """One for each client of the population; none: all weigh the same."""
    accepts_absent = capability(True)
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)

    @capability
    def by_client(self) -> bool:
        return self.weights is not None

    def check(self, n: int) -> None:
        check_prior(self, "weights", n)

    def mix(self, statistics: Statistics, context: Context) -> Float[Array, "m m"]:
        usable, m = statistics.usable, statistics.usable.shape[0]
        distances = statistics.squared_distances()[:m, :m]
        masses = prior_mass(self.weights, present_mask(context, m), context, distances.dtype)
        high = 1 - jnp.asarray(self.trim, distances.dtype)
        near = jax.vmap(lambda row: mass_of_smallest(row, masses, high))(distances)
        near = jnp.where(usable[:, None] & usable[None, :], near, 0)
        return safe_ratio(near, jnp.sum(near, axis=1, keepdims=True))
