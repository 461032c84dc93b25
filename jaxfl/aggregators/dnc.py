"""Divide and conquer: outliers along the main direction of sampled coordinates."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.aggregators.base import needs_more_than
from jaxfl.aggregators.statistics import Statistics
from jaxfl.aggregators.weighting import WeightingRule
from jaxfl.component import capability, field
from jaxfl.numerics.eigen import top_eigenpair
from jaxfl.numerics.gram import inner_products
from jaxfl.numerics.order import smallest
from jaxfl.numerics.permutation import permute
from jaxfl.numerics.rows import safe_ratio
from jaxfl.types import Context, Info, State


def outlier_scores(sample: Float[Array, "n b"], usable: Bool[Array, " n"]) -> Float[Array, " n"]:
    """Squared projections ``<x_i - mean, v>^2`` on the top right singular vector v; +inf unusable.

    v is not formed: with u the top eigenvector of the centred n x n Gram matrix and l its
    eigenvalue, the projections are ``sqrt(l) u_i``.
    """
    count = jnp.maximum(jnp.sum(usable, dtype=sample.dtype), 1)
    # In units of the largest element: squares must not overflow.
    largest = jnp.max(jnp.abs(jnp.where(usable[:, None], sample, 0)))
    scaled = safe_ratio(jnp.where(usable[:, None], sample, 0), largest)
    mean = jnp.sum(scaled, axis=0, keepdims=True) / count
    centred = jnp.where(usable[:, None], scaled - mean, 0)
    gram = inner_products(centred)
    value, vector = top_eigenpair(gram, jnp.sum(gram, axis=1))
    return jnp.where(usable, value * jnp.square(vector) * jnp.square(largest), jnp.inf)


class DnC(WeightingRule):
    """Divide and conquer: the mean of the rows that are no outliers in any of several samples.

    Each of ``iterations`` times: take ``columns_per_sample`` random coordinates, project the
    centred rows on their top right singular vector, and keep the n - c f of smallest squared
    projection. The rows kept every time are averaged; where there are none, those that were kept
    most often. f = 0 is the mean. SignGuard's code has iterations = 1, columns_per_sample = 1000
    and c = (n - 1) / n.

    Needs n > 2f. Cost: two reads of the matrix and ``iterations`` Gram matrices of the sampled
    coordinates. Fails: ByzMean: half of its attackers make the outlying direction and are dropped,
    and the others, who send what they want the mean to be, hide behind them.
    Shejwalkar, Houmansadr, "Manipulating the Byzantine", NDSS 2021.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> DnC(f=1).inspect(updates).info.selected.tolist()
    [True, True, True, True, True, True, False]
    """

    name = "dnc"
    f: int = field(at_least=0)
    iterations: int = field(default=5, at_least=1)
    """How many samples of coordinates are looked at."""
    columns_per_sample: int = field(default=10_000, at_least=1)
    """Coordinates in a sample."""
    c: float = field(default=1.0, above=0)
    """Rows dropped in each of them, in units of f."""
    streams = capability(False)  # its columns are as large as the updates
    needs = capability(frozenset({"norms"}))
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)

    def check(self, n: int) -> None:
        needs_more_than(self, n, 2 * self.f + 1, "n > 2f")
        if self._kept(n) < 1:
            raise ValueError(
                f"DnC: c must keep at least one of n = {n} clients; got c = {self.c}, f = {self.f}"
            )

    def _kept(self, n: int) -> int:
        return math.floor(n - Fraction(str(self.c)) * self.f)

    def columns(self, dim: int, context: Context) -> Int[Array, " s"]:
        width = min(dim, self.columns_per_sample)
        if width == dim:
            return jnp.arange(dim, dtype=jnp.int32)
        place = jnp.arange(width, dtype=jnp.int32)
        keys = jax.random.split(context.key, self.iterations)
        drawn = jax.vmap(lambda key: jnp.sort(permute(place, dim, key)))(keys)
        return drawn.reshape(-1)

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " m"], Info]:
        assert statistics.sample is not None
        usable = statistics.usable
        m, s = statistics.sample.shape
        # With all coordinates in each, the samples are the same.
        times = 1 if s < self.iterations * self.columns_per_sample else self.iterations
        samples = jnp.moveaxis(statistics.sample.reshape(m, times, s // times), 1, 0)
        scores = jax.lax.map(lambda sample: outlier_scores(sample, usable), samples)
        kept = smallest(scores.T, self._kept(m)) & usable[:, None]
        often = jnp.sum(kept, axis=1, dtype=jnp.int32)
        selected = (often == jnp.max(often)) & usable
        weights = selected.astype(scores.dtype)
        weights = safe_ratio(weights, jnp.sum(weights))
        worst = jnp.max(jnp.where(usable[None, :], scores, -jnp.inf), axis=0)
        return weights, Info(selected=selected, weights=weights, scores=worst)
