"""The auto-weighted geometric median."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxfl.aggregators.geometric_median import at_a_row, near_medoid, shares, weiszfeld
from jaxfl.aggregators.statistics import Statistics
from jaxfl.aggregators.weighting import WeightingRule
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics.gram import squared_distances_to
from jaxfl.numerics.rows import safe_ratio, safe_sqrt
from jaxfl.types import Context, Info, State


def simplex_weights(
    distances: Float[Array, " n"], usable: Bool[Array, " n"], lamb: Float[Array, ""]
) -> Float[Array, " n"]:
    """The weights a >= 0 of sum 1 that minimise ``sum_i a_i d_i + lamb / 2 |a|^2``.

    They are ``max(eta - d_i, 0) / lamb``, the projection of ``-d / lamb`` on the simplex, with
    eta such that they sum to 1. Rows that are not usable get 0.
    """
    nearest = jnp.min(jnp.where(usable, distances, jnp.inf))
    # Subtracting the smallest keeps lamb from being rounded away beside large distances.
    distances = jnp.where(usable, distances - nearest, jnp.inf)
    ascending = jnp.sort(distances)
    counts = jnp.arange(1, ascending.shape[0] + 1, dtype=ascending.dtype)
    etas = (jnp.cumsum(jnp.where(jnp.isfinite(ascending), ascending, 0)) + lamb) / counts
    used = jnp.sum(etas > ascending, dtype=jnp.int32)
    weights = jnp.where(usable, jnp.maximum(etas[jnp.maximum(used, 1) - 1] - distances, 0), 0)
    return safe_ratio(weights, jnp.sum(weights))


class AutoGM(WeightingRule):
    """A weighted geometric median whose weights minimise their cost themselves.

    Minimises ``sum_i a_i |x_i - z| + lamb / 2 |a|^2`` over z and weights a >= 0 of sum 1, from
    the geometric median, in turns: a in closed form, far rows getting 0; z by ``steps`` Weiszfeld
    steps. ``iterations`` turns are taken, each of which lowers the cost, which is not convex in
    both: the answer is a minimum in either.

    ``lamb`` is in the units of the updates' distances: with ``lamb > sum_i (max d - d_i)`` all
    rows have weight, as lamb grows they become equal (the geometric median), and as it vanishes
    one row remains. The simulator Blades takes 2, or n where it is not given.

    Cost: three reads of the matrix and n^2 d multiply-adds; O(n^2) a step. Needs an honest
    majority. Fails: as the geometric median; too small a lamb follows a tight minority.
    Li, Ngai, Voigt, "Byzantine-robust aggregation in federated learning empowered industrial
    IoT", IEEE Transactions on Industrial Informatics 2023.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> AutoGM(lamb=20.0)(updates).round(2)
    Array([2., 2.], dtype=float32)
    """

    lamb: Scalar = field(default=2.0, above=0)
    """Weight of the penalty, in the units of the updates' distances."""
    iterations: int = field(default=16, at_least=1)
    """Turns of weights and median."""
    steps: int = field(default=32, at_least=1)
    """Weiszfeld steps in a turn."""
    accepts_absent = capability(True)
    translation_equivariant = capability(True)
    differentiable = capability(True)
    in_units = capability(("lamb",))

    @classmethod
    def example(cls, f: int = 2) -> "AutoGM":
        return cls(lamb=20.0)

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " n"], Info]:
        assert statistics.gram is not None
        usable, gram = statistics.usable, statistics.gram
        squared = statistics.squared_distances()
        distances = safe_sqrt(jnp.where(jnp.isfinite(squared), squared, 0))
        start, reach = near_medoid(distances, usable.astype(distances.dtype))
        nu = jnp.maximum(1e-6 * reach, jnp.finfo(gram.dtype).tiny)
        lamb = jnp.asarray(self.lamb, gram.dtype)

        def median(mass: Array, start: Array) -> Array:
            found, row = at_a_row(gram, distances, mass)
            return jnp.where(found, row, weiszfeld(gram, mass, start, self.steps, nu))

        def turn(_: Array | int, weights: Array) -> Array:
            away = safe_sqrt(squared_distances_to(gram, weights))
            return median(simplex_weights(away, usable, lamb), weights)

        equal = shares(context, usable, False, gram.dtype)
        weights = jax.lax.fori_loop(0, self.iterations, turn, median(equal, start))
        return weights, Info(weights=weights)
