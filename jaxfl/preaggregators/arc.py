"""Adaptive robust clipping."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.aggregators.base import needs_more_than
from jaxfl.aggregators.mixing import PreAggregator
from jaxfl.aggregators.statistics import Statistics
from jaxfl.component import capability, field
from jaxfl.numerics.order import smallest
from jaxfl.numerics.rows import clip_factors
from jaxfl.types import Context


class ARC(PreAggregator):
    """Clips the k = floor(2 f (n - f) / n) largest rows to the largest norm among the others.

    k = 0 leaves everything as it is. Needs n > 2f. Cost: one read of the matrix.
    Allouah et al., "Adaptive gradient clipping for robust federated learning", ICLR 2025.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> jaxfl.Pipeline(pre=[ARC(f=1)], rule=jaxfl.Mean())(updates).round(2)
    Array([2.08, 1.35], dtype=float32)
    """

    f: int = field(at_least=0)
    needs = capability(frozenset({"norms"}))
    affine = capability(False)
    scale_equivariant = capability(True)
    diagonal = capability(True)

    def check(self, n: int) -> None:
        needs_more_than(self, n, 2 * self.f + 1, "n > 2f")

    def mix(self, statistics: Statistics, context: Context) -> Float[Array, " m"]:
        norms = statistics.norms
        assert norms is not None
        n = norms.shape[0]
        clipped = 2 * self.f * (n - self.f) // n  # in integers: floats differ first at n = 242
        kept = smallest(norms[:, None], n - clipped)[:, 0] & statistics.usable
        threshold = jnp.max(jnp.where(kept, norms, 0))
        scale = clip_factors(norms, threshold)
        return jnp.where(statistics.usable, scale, 0)
