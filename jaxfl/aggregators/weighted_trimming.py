"""The trimmed mean of clients that do not weigh the same."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.aggregators.coordinatewise import CoordinatewiseRule
from jaxfl.aggregators.prior import check_prior, prior_mass
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics.masses import mass_inside, stacked
from jaxfl.numerics.rows import safe_ratio
from jaxfl.types import Context


class WeightedTrimmedMean(CoordinatewiseRule):
    """Per coordinate, the weighted mean after dropping the mass ``trim`` at each end.

    ``weights``, one per client of the population, are scaled to sum to 1; without them all weigh
    the same, and trim = f / n is the trimmed mean. A value that lies across the border counts with
    what of its mass lies inside.

    Needs clients of a mass below ``trim`` to be Byzantine, at most 1/2. Cost: up to 64 rows n
    comparisons of each value, a sort beyond. Fails under ALIE and heterogeneity; ``WeightedNNM``
    before it helps.
    Yin et al., "Byzantine-robust distributed learning", ICML 2018, for equal weights.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> WeightedTrimmedMean(trim=1 / 7)(updates).round(2)
    Array([2.2, 1.8], dtype=float32)
    """

    trim: Scalar = field(default=0.2, at_least=0, below=0.5)
    """Mass that is dropped at each end."""
    weights: Scalar | None = field(default=None, at_least=0)
    """One for each client of the population; none: all weigh the same."""
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)
    differentiable = capability(True)

    @capability
    def by_client(self) -> bool:
        return self.weights is not None

    def check(self, n: int) -> None:
        super().check(n)
        check_prior(self, "weights", n)

    def reduce(self, block: Float[Array, "n c"], context: Context) -> Float[Array, " c"]:
        n, dtype = block.shape[0], block.dtype
        values = jnp.where(jnp.isnan(block), jnp.inf, block)
        masses = prior_mass(self.weights, jnp.ones((n,), bool), context, dtype)
        values, masses, below = stacked(values, masses)
        trim = jnp.asarray(self.trim, dtype)
        kept = mass_inside(masses, below, trim, 1 - trim)
        ones = jnp.ones((n,), dtype)
        total = jnp.matmul(ones, jnp.where(kept > 0, kept * values, 0), precision="highest")
        return safe_ratio(total, jnp.matmul(ones, kept, precision="highest"))
