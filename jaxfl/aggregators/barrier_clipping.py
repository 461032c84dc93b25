"""Barrier-portfolio clipping: one clipped step from a weighted geometric median."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxfl.aggregators.geometric_median import median_weights
from jaxfl.aggregators.prior import PriorRule, prior_mass
from jaxfl.aggregators.statistics import Statistics
from jaxfl.component import Scalar, field
from jaxfl.numerics.gram import squared_distances_to
from jaxfl.numerics.masses import mass_of_smallest
from jaxfl.numerics.rows import safe_ratio, safe_sqrt
from jaxfl.types import Context, Info, State, present_count


class BarrierClipping(PriorRule):
    """One clipped step from the weighted geometric median, held near the unweighted one.

    With weights omega (scaled to sum to 1) and c their geometric median, the answer is
    ``y = c + sum_i omega_i min(1, R / |x_i - c|) (x_i - c)``. The radius R is ``scale`` times the
    root mean square distance from c of the nearest rows, those of mass ``1 - beta``. Then the
    anchor: y is moved into the ball around the unweighted geometric median in which the nearest
    ``n - budget`` rows lie. So it stays bounded whatever the weights, as long as at most
    ``budget`` clients are Byzantine (by default the largest minority).

    ``weights`` come from a law of honest sets, once, offline (``jaxfl.robustness.barrier_clipping``
    solves for them); without them all clients weigh the same, and nothing need be known.

    ``info.scores`` holds the distances from c in units of R.

    Needs clients of a mass below ``beta`` to be Byzantine. Cost: three reads of the matrix and
    n^2 d multiply-adds, as the geometric median. Fails where honest clients form camps, which bias
    it, and where those most trusted are Byzantine. Ours, on clipping around a centre as in
    Karimireddy, He, Jaggi, "Learning from history for Byzantine robust optimization", ICML 2021.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> BarrierClipping()(updates).round(2)
    Array([2.05     , 1.9499999], dtype=float32)
    """

    beta: Scalar = field(default=0.49, at_least=0, below=0.5)
    """Mass of weights that may be Byzantine."""
    scale: Scalar = field(default=0.8, above=0)
    """The radius in units of the spread of the nearest rows."""
    budget: int | None = field(default=None, at_least=0)
    """Most Byzantine clients, for the anchor; none: the largest minority."""
    iterations: int = field(default=30, at_least=1)
    """Weiszfeld steps."""
    anchored: bool = True
    """Whether the answer is moved into the ball around the unweighted median."""

    def check(self, n: int) -> None:
        super().check(n)
        if self.budget is not None and 2 * self.budget >= n:
            raise ValueError(
                f"BarrierClipping: budget must be below n / 2; got budget = {self.budget}, n = {n}"
            )

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " n"], Info]:
        assert statistics.gram is not None
        gram, usable, dtype = statistics.gram, statistics.usable, statistics.gram.dtype
        squared = statistics.squared_distances()
        distances = safe_sqrt(jnp.where(jnp.isfinite(squared), squared, 0))
        mass = prior_mass(self.weights, usable, context, dtype)
        centre = median_weights(gram, distances, mass, self.iterations)
        away = squared_distances_to(gram, centre)
        near = mass_of_smallest(jnp.where(mass > 0, away, jnp.inf), mass, 1 - self._beta(dtype))
        spread = safe_sqrt(safe_ratio(jnp.dot(near, away, precision="highest"), jnp.sum(near)))
        radius, reach = jnp.asarray(self.scale, dtype) * spread, safe_sqrt(away)
        shares = mass * jnp.where(reach > radius, safe_ratio(radius, reach), 1)
        weights = (1 - jnp.sum(shares)) * centre + shares
        if self.anchored:
            around = centre
            if self.weights is not None:
                equal = prior_mass(None, usable, context, dtype)
                around = median_weights(gram, distances, equal, self.iterations)
            present = present_count(context, usable.shape[0])
            weights = anchor(gram, usable, weights, around, self._kept(present))
        scores = jnp.where(usable, safe_ratio(reach, radius), jnp.inf)
        return weights, Info(weights=weights, scores=scores)

    def _beta(self, dtype: jnp.dtype) -> Float[Array, ""]:
        return jnp.asarray(self.beta, dtype)

    def _kept(self, present: Array | int) -> Array | int:
        """How many of so many clients are surely honest."""
        return present - ((present - 1) // 2 if self.budget is None else self.budget)


def anchor(
    gram: Float[Array, "n n"],
    usable: Bool[Array, " n"],
    weights: Float[Array, " n"],
    around: Float[Array, " n"],
    kept: Array | int,
) -> Float[Array, " n"]:
    """Weights of the point moved into the ball of the nearest ``kept`` rows around another point.

    Args:
      gram: inner products about any centre.
      usable: rows that count.
      weights: of the point, with a sum of 1.
      around: weights of the other point.
      kept: how many rows the ball holds.
    """
    reach = jax.lax.stop_gradient(squared_distances_to(gram, around))
    count = jnp.sum(usable, dtype=jnp.int32)
    ordered = jnp.sort(jnp.where(usable, reach, jnp.inf))
    limit = ordered[jnp.clip(jnp.minimum(kept, count) - 1, 0)]
    step = weights - around
    products = jnp.matmul(gram, step, precision="highest")
    length = jnp.maximum(jnp.dot(step, products, precision="highest"), 0)
    share = jnp.where(length > limit, safe_sqrt(safe_ratio(limit, length)), 1)
    return around + share * step
