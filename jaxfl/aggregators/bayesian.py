"""Bayesian aggregation: each update counts by the probability that it is honest."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.aggregators.statistics import Statistics
from jaxfl.aggregators.weighting import WeightingRule
from jaxfl.component import capability, field
from jaxfl.numerics.gram import squared_distances_to
from jaxfl.numerics.rows import safe_ratio
from jaxfl.types import Context, Info, State

TOLERANCE = 1e-3
"""Relative change of the answer at which the authors' code stops."""


class BayesianAggregation(WeightingRule):
    """The mean under honesty probabilities, which follow from distances to it.

    In turn, from equal probabilities p: ``theta = sum_i p_i g_i / sum_i p_i``, ``D_i = |g_i -
    theta|^2``, ``s^2 = sum_i p_i D_i / sum_i p_i``, ``p_i`` in proportion to ``exp(-D_i / 2 s^2)``,
    until theta moves by less than a thousandth of its length or ``iterations`` are over. That is
    what the authors' second likelihood comes to (the first, which is not of one scale, turns into
    the mean where updates are short). f need not be known.

    Needs an honest majority that is no looser than the attackers. Cost: n^2 d multiply-adds and
    three reads of the matrix. Fails: attackers that agree more closely than honest clients, also
    below n / 2; in few dimensions the probabilities contract around one point if not stopped.
    Karakulev, Zafar, Toor, Singh, "Bayesian robust aggregation for federated learning",
    arXiv:2505.02490, 2025.

    >>> updates = jnp.array([[-1.0], [1.0], [-1.0], [1.0], [100.0]])
    >>> BayesianAggregation()(updates).round(4)
    Array([0.0104], dtype=float32)
    """

    iterations: int = field(default=100, at_least=1)
    """Most turns of mean and probabilities."""
    needs = capability(frozenset({"gram", "inner"}))
    accepts_absent = capability(True)
    scale_equivariant = capability(True)

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " n"], Info]:
        assert statistics.gram is not None
        assert statistics.inner is not None
        usable = statistics.usable
        n = usable.shape[0]
        gram, inner = (
            jax.lax.stop_gradient(g[:n, :n]) for g in (statistics.gram, statistics.inner)
        )
        equal = usable.astype(gram.dtype) / jnp.maximum(jnp.sum(usable), 1)

        def step(now: _Step) -> _Step:
            weights = _honesty(squared_distances_to(gram, now.weights), now.weights, usable)
            moved = weights - now.weights
            change = jnp.dot(
                moved, jnp.matmul(gram, moved, precision="highest"), precision="highest"
            )
            length = jnp.matmul(inner, now.weights, precision="highest")
            length = jnp.dot(now.weights, length, precision="highest")
            still = change > TOLERANCE**2 * jnp.maximum(length, 0)
            return _Step(weights, now.taken + 1, still)

        start = _Step(equal, jnp.int32(0), jnp.bool_(True))
        found = jax.lax.while_loop(
            lambda now: now.moving & (now.taken < self.iterations), step, start
        )
        return found.weights, Info(weights=found.weights)


class _Step(NamedTuple):
    weights: Float[Array, " n"]
    taken: Int[Array, ""]
    moving: Bool[Array, ""]


def _honesty(
    squares: Float[Array, " n"], weights: Float[Array, " n"], usable: Bool[Array, " n"]
) -> Float[Array, " n"]:
    """Shares in proportion to ``exp(-D / 2 s^2)``; as they were where all distances are 0."""
    squares = jnp.where(usable, squares, 0)
    spread = jnp.dot(weights, squares, precision="highest")
    exponent = jnp.where(usable, -safe_ratio(squares, 2 * spread), -jnp.inf)
    shares = jnp.exp(exponent - jnp.max(exponent))
    shares = jnp.where(usable, shares, 0)
    return jnp.where(spread > 0, safe_ratio(shares, jnp.sum(shares)), weights)
