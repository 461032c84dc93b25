"""Centred clipping: differences from the previous output, clipped."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.aggregators.base import WeightingRule
from jaxfl.aggregators.statistics import Statistics
from jaxfl.component import Scalar, field
from jaxfl.numerics.rows import safe_ratio, safe_sqrt
from jaxfl.types import Context, Info, Spec, State


class CenteredClipping(WeightingRule):
    """``v <- v + mean_i (x_i - v) min(1, tau / |x_i - v|)``, from the previous output.

    ``tau`` is in the units of the updates; ``iterations`` steps are taken each round. The memory
    is the previous output, zero at the start.

    Needs a small f / n. Cost: three reads of the matrix and n^2 d multiply-adds; steps are O(n^2).
    Each Byzantine row moves a step by at most tau / n. Fails: too large a tau, attacks that drag
    v along.
    Karimireddy, He, Jaggi, "Learning from history for Byzantine robust optimization", ICML 2021.
    """

    tau: Scalar = field(default=10.0, above=0)
    iterations: int = field(default=3, at_least=1)
    accepts_absent: ClassVar[bool] = True

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
            squared = jnp.maximum(squares - 2 * products + jnp.dot(a, products), 0)
            distances = safe_sqrt(squared[:n])
            clipped = jnp.where(distances > tau, safe_ratio(tau, distances), 1)
            share = jnp.where(statistics.usable, clipped, 0) / count
            return (1 - jnp.sum(share)) * a + jnp.pad(share, (0, a.shape[0] - n))

        start = jax.nn.one_hot(n, gram.shape[0], dtype=gram.dtype)
        weights = jax.lax.fori_loop(0, self.iterations, step, start)
        return weights, Info(weights=weights[:n])

    def remember(
        self, state: State, output: Float[Array, " d"], statistics: Statistics, context: Context
    ) -> State:
        return output.astype(state.dtype)
