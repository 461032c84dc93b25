"""Centred clipping: differences from the previous output, clipped."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxfl.aggregators.mixing import PreAggregator
from jaxfl.aggregators.statistics import Statistics
from jaxfl.aggregators.weighting import WeightingRule
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics import rows
from jaxfl.numerics.rows import safe_ratio, safe_sqrt
from jaxfl.types import Aggregated, Context, Info, Spec, State, present_mask


class CenteredClipping(WeightingRule):
    """``v <- v + mean_i (x_i - v) min(1, tau / |x_i - v|)``, from the previous output.

    ``tau`` is in the units of the updates; ``iterations`` steps are taken each round. The memory
    is the previous output, zero at the start.

    Needs a small f / n. Cost: two reads of the matrix an iteration; after pre-aggregators three in
    all and n^2 d multiply-adds. Each Byzantine row moves a step by at most tau / n. Fails: too
    large a tau, attacks that drag v along.
    Karimireddy, He, Jaggi, "Learning from history for Byzantine robust optimization", ICML 2021.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> CenteredClipping(tau=3.0)(updates).round(2)
    Array([2.34, 1.63], dtype=float32)
    """

    tau: Scalar = field(default=10.0, above=0)
    """Farthest that a row may pull, in the units of the updates."""
    iterations: int = field(default=3, at_least=1)
    """Steps in a round."""
    accepts_absent = capability(True)
    public_memory = capability(True)
    differentiable = capability(True)
    unanimous = capability(False)
    in_units = capability(("tau",))
    streams = capability(True)

    @classmethod
    def example(cls, f: int = 2) -> "CenteredClipping":
        return cls(tau=3.0)

    def init(self, spec: Spec) -> State:
        return jnp.zeros((spec.dim,), spec.dtype)

    def references(self, state: State, context: Context, dim: int) -> Float[Array, "1 d"]:
        return state[None]

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " k"], Info]:
        assert statistics.gram is not None
        gram, n = statistics.gram, statistics.usable.shape[0]
        tau = jnp.asarray(self.tau, gram.dtype)
        squares = jnp.diagonal(gram)
        count = jnp.maximum(jnp.sum(statistics.usable), 1)

        def step(_: Array | int, a: Array) -> Array:
            products = jnp.matmul(gram, a, precision="highest")
            own = jnp.dot(a, products, precision="highest")
            squared = jnp.maximum(squares - 2 * products + own, 0)
            share = _shares(squared[:n], statistics.usable, tau, count)
            return (1 - jnp.sum(share)) * a + jnp.pad(share, (0, a.shape[0] - n))

        start = jax.nn.one_hot(n, gram.shape[0], dtype=gram.dtype)
        weights = jax.lax.fori_loop(0, self.iterations, step, start)
        return weights, Info(weights=weights[:n])

    def remember(
        self, state: State, output: Float[Array, " d"], statistics: Statistics, context: Context
    ) -> State:
        return output.astype(state.dtype)

    def aggregate_mixed(
        self,
        pre: Sequence[PreAggregator],
        updates: rows.Rows,
        state: State,
        context: Context,
    ) -> Aggregated:
        """A few steps take fewer reads than all pairs of rows take multiplications."""
        if pre:
            return super().aggregate_mixed(pre, updates, state, context)
        n, d = updates.shape
        squares = rows.squared_norms(updates)
        usable = jnp.isfinite(squares) & present_mask(context, n)
        clean = jnp.all(jnp.isfinite(squares))
        count = jnp.maximum(jnp.sum(usable), 1)
        tau = jnp.asarray(self.tau, squares.dtype)
        none = jnp.zeros((0, d), updates.dtype)

        def step(_: Array | int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            v, weights = carry
            squared = rows.squared_offsets(updates, v)
            share = _shares(jnp.where(usable, squared, 0), usable, tau, count)
            kept = 1 - jnp.sum(share)
            moved = rows.weighted_sum(share, updates, none, clean)
            return kept * v + moved, kept * weights + share

        start = state.astype(squares.dtype), jnp.zeros_like(squares)
        v, weights = jax.lax.fori_loop(0, self.iterations, step, start)
        output = v.astype(updates.dtype)
        memory = output.astype(state.dtype)
        return Aggregated(update=output, state=memory, info=Info(weights=weights))


def _shares(
    squared: Float[Array, " n"], usable: Bool[Array, " n"], tau: Array, count: Array
) -> Float[Array, " n"]:
    """What each row adds to a step: its clipped distance over its distance and the count."""
    distances = safe_sqrt(squared)
    clipped = jnp.where(distances > tau, safe_ratio(tau, distances), 1)
    return jnp.where(usable, clipped, 0) / count
