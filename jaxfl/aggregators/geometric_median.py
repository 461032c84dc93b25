"""The geometric median, found in n-space."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxfl.aggregators.statistics import Statistics
from jaxfl.aggregators.weighting import WeightingRule
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics.gram import squared_distances_to
from jaxfl.numerics.rows import safe_ratio, safe_sqrt
from jaxfl.types import Context, Info, State


def weiszfeld(
    gram: Float[Array, "n n"],
    mass: Float[Array, " n"],
    start: Float[Array, " n"],
    iterations: int,
    nu: Float[Array, ""],
) -> Float[Array, " n"]:
    """Weights a, summing to 1, of the geometric median ``a @ rows`` after smoothed steps.

    Each step is ``a_i = b_i / sum b``, ``b_i = mass_i / max(nu, |x_i - z|)``, with the distances
    taken from the inner products: ``|x_i - z|^2 = G_ii - 2 (G a)_i + a^T G a``. Rows of mass 0 do
    not count.
    """

    def step(_: Array | int, a: Array) -> Array:
        reach = jnp.maximum(safe_sqrt(squared_distances_to(gram, a)), nu)
        # In units of the nearest row: where rows coincide, a sum of 1 / nu overflows.
        nearest = jax.lax.stop_gradient(jnp.min(jnp.where(mass > 0, reach, jnp.inf)))
        b = jnp.where(mass > 0, mass * (nearest / reach), 0)
        return safe_ratio(b, jnp.sum(b))

    return jax.lax.fori_loop(0, iterations, step, start)


def at_a_row(
    gram: Float[Array, "n n"], distances: Float[Array, "n n"], mass: Float[Array, " n"]
) -> tuple[Bool[Array, ""], Float[Array, " n"]]:
    """Whether the geometric median is one of the rows, and the weights of that row.

    If the median is a row, it is the medoid x, the row with the smallest sum of distances. That
    is so if the other rows pull x less than the mass at x holds it:
    ``|sum_j mass_j (x_j - x) / |x_j - x|| < sum of the masses at x``. Weiszfeld's steps approach
    such a row without reaching it.

    Args:
      gram: inner products about any centre.
      distances: plain ones; those of rows without mass must be finite.
      mass: weight of each row in the sum of distances.
    """
    gram, distances, mass = jax.lax.stop_gradient((gram, distances, mass))
    cost = jnp.matmul(distances, mass, precision="highest")
    medoid = jnp.argmin(jnp.where(mass > 0, cost, jnp.inf))
    squares, reach = jnp.diagonal(gram), distances[medoid]
    # Distances of equal rows are 0 only up to the rounding of their inner products.
    noise = 8 * jnp.finfo(gram.dtype).eps * (squares + squares[medoid])
    here = (jnp.square(reach) <= noise) & (mass > 0)
    pull = jnp.where(here, 0, safe_ratio(mass, reach))
    products = jnp.matmul(gram, pull, precision="highest")
    total = jnp.sum(pull)
    pulled = jnp.dot(pull, products, precision="highest")
    squared = total**2 * squares[medoid] - 2 * total * products[medoid] + pulled
    held = jnp.sum(jnp.where(here, mass, 0))
    weights = here.astype(gram.dtype) / jnp.maximum(jnp.sum(here), 1)
    # On a draw, as between two rows, every point between them will do: the steps decide.
    margin = 1 - 64 * jnp.finfo(gram.dtype).eps
    return squared < margin * held**2, weights


def shares(
    context: Context, usable: Bool[Array, " n"], weighted: bool, dtype: jnp.dtype
) -> Float[Array, " n"]:
    """The rows' masses, which sum to 1: equal, or the clients' shares of the samples."""
    mass = usable.astype(dtype)
    mass = mass * context.weights.astype(dtype) if weighted else mass
    return safe_ratio(mass, jnp.sum(mass))


def near_medoid(
    distances: Float[Array, "n n"], mass: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """Weights of the mean of the majority nearest the medoid, by mass, and its reach from it."""
    cost = jnp.sum(jnp.where(mass[None, :] > 0, mass[None, :] * distances, 0), axis=1)
    row = distances[jnp.argmin(jnp.where(mass > 0, cost, jnp.inf))]
    order = jnp.argsort(jax.lax.stop_gradient(jnp.where(mass > 0, row, jnp.inf)))
    before = jnp.cumsum(mass[order]) - mass[order]
    # Up to the row at which the mass passes half.
    upto = before <= (0.5 + 16 * jnp.finfo(mass.dtype).eps) * jnp.sum(mass)
    near = jnp.zeros(mass.shape, bool).at[order].set(upto) & (mass > 0)
    weights = jnp.where(near, mass, 0)
    return safe_ratio(weights, jnp.sum(weights)), jnp.max(jnp.where(near, row, 0))


def median_weights(
    gram: Float[Array, "n n"],
    distances: Float[Array, "n n"],
    mass: Float[Array, " n"],
    iterations: int,
) -> Float[Array, " n"]:
    """Weights of the geometric median of rows of these masses, from the mean near the medoid.

    Args:
      gram: inner products about any centre.
      distances: plain ones; those of rows without mass must be finite.
      mass: of each row; they sum to 1, or to 0, which gives 0.
      iterations: steps.

    Distances below a millionth of the reach of the majority nearest the medoid count as that.
    """
    start, reach = near_medoid(distances, mass)
    least = jnp.maximum(1e-6 * reach, jnp.finfo(gram.dtype).tiny)
    weights = weiszfeld(gram, mass, start, iterations, least)
    found, row = at_a_row(gram, distances, mass)
    return jnp.where(found, row, weights)


class GeometricMedian(WeightingRule):
    """The point with the smallest sum of distances to the updates, by smoothed Weiszfeld steps.

    Takes ``iterations`` steps, each O(n^2) whatever d, from ``start``: ``"medoid"``, the mean of
    the majority of rows nearest the medoid (which needs no f and no origin), ``"mean"`` or
    ``"zero"``. Distances below ``nu`` times the reach of that majority count as that; where the
    point is one of the updates, the answer is that update, without steps towards it. With
    ``absolute``, nu is a distance in the units of the updates and nothing but the steps is
    taken, as other codes do (EPFL's: start="zero", nu=0.1, iterations=8; ByzFL: 3 iterations).
    ``weighted`` weighs the distances by the clients' sample counts.

    ``reweightings`` times, weights are multiplied by ``exp(-|x_i - z|)`` and the median is taken
    again: SignGuard's rival "GeoMed" has 2. It is for reproduction: where distances are large the
    row nearest to the first median takes all the weight.

    Cost: three reads of the matrix and n^2 d multiply-adds. Needs an honest majority. Fails:
    ALIE, f equal points, clusters of heterogeneous clients.
    Pillutla, Kakade, Harchaoui, "Robust aggregation for federated learning", IEEE TSP 2022.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> GeometricMedian()(updates).round(2)
    Array([2., 2.], dtype=float32)
    """

    iterations: int = field(default=32, at_least=1)
    """Weiszfeld steps."""
    nu: Scalar = field(default=1e-6, above=0)
    """Least distance that counts, in units of the majority's reach."""
    start: str = field(default="medoid", choices=("medoid", "mean", "zero"))
    """Where the steps begin."""
    absolute: bool = False
    """Whether nu is in the units of the updates, and nothing but the steps is taken."""
    weighted: bool = False
    """Whether distances are weighed by the clients' numbers of samples."""
    reweightings: int = field(default=0, at_least=0)
    """How often weights fall with the distance and the median is taken again."""
    accepts_absent = capability(True)
    differentiable = capability(True)

    @capability
    def by_samples(self) -> bool:
        return self.weighted

    @capability
    def scale_equivariant(self) -> bool:
        return not self.absolute and self.reweightings == 0

    @capability
    def translation_equivariant(self) -> bool:
        return self.start != "zero"

    @capability
    def in_units(self) -> tuple[str, ...]:
        return ("nu",) if self.absolute and self.reweightings == 0 else ()

    def references(self, state: State, context: Context, dim: int) -> Float[Array, "1 d"] | None:
        return jnp.zeros((1, dim)) if self.start == "zero" else None

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " k"], Info]:
        assert statistics.gram is not None
        gram, usable = statistics.gram, statistics.usable
        m, k = usable.shape[0], gram.shape[0]
        squared = statistics.squared_distances()
        distances = safe_sqrt(jnp.where(jnp.isfinite(squared), squared, 0))
        start, reach = near_medoid(distances[:m, :m], usable.astype(gram.dtype))
        nu = jnp.asarray(self.nu, gram.dtype) * (1 if self.absolute else reach)
        nu = jnp.maximum(nu, jnp.finfo(gram.dtype).tiny)
        mass = shares(context, usable, self.weighted, gram.dtype)
        start = jnp.pad(mass if self.start == "mean" else start, (0, k - m))
        if self.start == "zero":
            start = jax.nn.one_hot(k - 1, k, dtype=gram.dtype)
        mass = jnp.pad(mass, (0, k - m))

        weights = start
        for again in range(self.reweightings + 1):
            if again:
                away = safe_sqrt(squared_distances_to(gram, weights))
                # Only ratios matter; relative to the nearest row they cannot all vanish.
                nearest = jnp.min(jnp.where(mass > 0, away, jnp.inf))
                mass = jnp.where(mass > 0, mass * jnp.exp(nearest - away), 0)
            weights = weiszfeld(gram, mass, start, self.iterations, nu)
            if not self.absolute:
                found, row = at_a_row(gram, distances, mass)
                weights = jnp.where(found, row, weights)
        return weights, Info(weights=weights[:m])
