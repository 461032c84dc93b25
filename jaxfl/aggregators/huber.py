"""The Huber centre: the mean of near updates, the geometric median of far ones."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxfl.aggregators.base import Aggregator
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics import columns, order, rows
from jaxfl.numerics.gram import centred_gram, squared_distances_to
from jaxfl.types import Aggregated, Context, Info, State, present_mask


class Huber(Aggregator):
    """The point of least Huber loss of its distances to the updates.

    ``argmin_w sum_i N_i phi_i(|g_i - w|)`` with ``phi_i(r) = r^2 / 2`` up to T_i and
    ``T_i r - T_i^2 / 2`` beyond, where N_i is the client's number of samples (1 for all unless
    ``weighted``). Every row more than T_i away pulls as one at T_i would. T_i is ``threshold``, in
    the units of the updates, or ``factor`` times the median distance to the coordinatewise median;
    times ``sqrt(mean N / N_i)``, as a client with more samples is less noisy. Solved by
    ``iterations`` steps ``w <- sum_i N_i a_i g_i / sum_i N_i a_i`` from the coordinatewise median,
    ``a_i = min(1, T_i / |g_i - w|)``. Centred clipping taken to convergence has the same answer.

    Needs an honest majority by weight. Cost: n^2 d multiply-adds, three reads of the matrix and a
    selection in each column. Fails: colluders just beyond T move it by about f T / (n - f).
    Zhao, Yu, Wan, "A Huber loss minimization approach to Byzantine robust federated learning",
    AAAI 2024.

    >>> Huber(threshold=1.0)(jnp.array([[0.0], [0.0], [0.0], [10.0]])).round(3)
    Array([0.333], dtype=float32)
    """

    threshold: Scalar | None = field(default=None, above=0)
    """Distance from which rows pull no harder, in the units of the updates; none: see `factor`."""
    factor: Scalar = field(default=1.0, above=0)
    """The threshold in units of the median distance to the median, where none is given."""
    weighted: bool = False
    """Whether clients count by their samples."""
    iterations: int = field(default=50, at_least=1)
    """Steps of the solution."""
    accepts_absent = capability(True)
    translation_equivariant = capability(True)

    @capability
    def by_samples(self) -> bool:
        return self.weighted

    @capability
    def scale_equivariant(self) -> bool:
        return self.threshold is None

    @capability
    def in_units(self) -> tuple[str, ...]:
        return () if self.threshold is None else ("threshold",)

    def aggregate(self, updates: Float[Array, "n d"], state: State, context: Context) -> Aggregated:
        n = updates.shape[0]
        squares = rows.squared_norms(updates)
        usable = jnp.isfinite(squares) & present_mask(context, n)
        sizes = jnp.where(usable, context.weights if self.weighted else 1, 0).astype(squares.dtype)
        centre = _coordinatewise_median(updates, usable)
        pilot = rows.median_row(jnp.where(usable, squares, jnp.inf), usable)
        gram = centred_gram(updates, centre[None], usable, pilot)
        reach = self._reach(gram, usable, sizes)

        def step(_: Array | int, weights: Array) -> Array:
            distances = rows.safe_sqrt(squared_distances_to(gram, weights)[:n])
            pull = sizes * jnp.where(distances > reach, rows.safe_ratio(reach, distances), 1)
            return jnp.pad(rows.safe_ratio(pull, jnp.sum(pull)), (0, 1))

        start = jax.nn.one_hot(n, n + 1, dtype=gram.dtype)
        weights = jax.lax.fori_loop(0, self.iterations, step, start)[:n]
        none, clean = (
            jnp.zeros((0, updates.shape[1]), updates.dtype),
            jnp.all(jnp.isfinite(squares)),
        )
        output = rows.combine(weights, updates, none, clean)
        return Aggregated(update=output, state=state, info=Info(weights=weights))

    def _reach(
        self, gram: Float[Array, "m m"], usable: Bool[Array, " n"], sizes: Float[Array, " n"]
    ) -> Float[Array, " n"]:
        """T_i of every client."""
        n = usable.shape[0]
        own = jnp.diagonal(gram)
        distances = rows.safe_sqrt(jnp.maximum(own[:n] + own[n] - 2 * gram[:n, n], 0))
        reach = jnp.asarray(self.factor, gram.dtype) * rows.masked_median(distances, usable)
        if self.threshold is not None:
            reach = jnp.asarray(self.threshold, gram.dtype)
        mean = jnp.sum(sizes) / jnp.maximum(jnp.sum(usable), 1)
        return reach * rows.safe_sqrt(rows.safe_ratio(mean, sizes))


def _coordinatewise_median(
    updates: Float[Array, "n d"], usable: Bool[Array, " n"]
) -> Float[Array, " d"]:
    dtype = rows.accumulator(updates.dtype)
    return columns.map_columns(
        lambda block: order.median_where(block.astype(dtype), usable),
        updates,
        width=order.column_width(updates.shape[0]),
    )
