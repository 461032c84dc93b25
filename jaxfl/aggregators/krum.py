"""Krum and Multi-Krum: updates that lie close to many others."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.aggregators.base import WeightingRule, needs_more_than
from jaxfl.aggregators.statistics import Statistics
from jaxfl.component import field
from jaxfl.numerics.order import smallest
from jaxfl.numerics.rows import safe_ratio
from jaxfl.types import Context, Info, State, present_mask


def krum_scores(
    squared_distances: Float[Array, "n n"], neighbours: Int[Array, ""] | int
) -> Float[Array, " n"]:
    """Sum of each row's squared distances to its nearest other rows; +inf where undefined.

    Args:
      squared_distances: symmetric, +inf to rows that do not count.
      neighbours: how many of the other rows to sum over, at least 1.
    """
    n = squared_distances.shape[0]
    others = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, squared_distances)
    near = smallest(others, jnp.maximum(neighbours, 1))
    return jnp.sum(jnp.where(near, others, 0), axis=0)


def _scores(statistics: Statistics, context: Context, f: int) -> tuple[Array, Array]:
    m = statistics.usable.shape[0]
    # Absent slots are no clients; rows dropped as non-finite are, and count among the f.
    present = present_mask(context, m)
    neighbours = jnp.sum(present, dtype=jnp.int32) - f - 2
    distances = statistics.squared_distances()[:m, :m]
    return krum_scores(distances, neighbours), neighbours


def _answer(
    statistics: Statistics, selected: Bool[Array, " n"], scores: Float[Array, " n"]
) -> tuple[Array, Info]:
    selected = selected & statistics.usable
    weights = selected.astype(scores.dtype)
    weights = safe_ratio(weights, jnp.sum(weights))
    info = Info(selected=selected, weights=weights, scores=scores)
    references = 0 if statistics.gram is None else statistics.gram.shape[0] - scores.shape[0]
    return jnp.pad(weights, (0, references)), info


class Krum(WeightingRule):
    """The one update with the smallest sum of squared distances to its n - f - 2 nearest.

    Needs n >= 2f + 3. Among equal scores the first client wins. ``info.scores`` holds the scores,
    lower is better.

    Cost: three reads of the matrix and n^2 d multiply-adds. Fails: inner-product manipulation
    with a small factor, ALIE, any f equal updates near the cluster; and it follows one client,
    so its variance is that of one client.
    Blanchard et al., "Machine learning with adversaries", NeurIPS 2017.
    """

    f: int = field(at_least=0)
    accepts_absent: ClassVar[bool] = True

    def check(self, n: int) -> None:
        needs_more_than(self, n, 2 * self.f + 3, "n >= 2f + 3")

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " k"], Info]:
        scores, _ = _scores(statistics, context, self.f)
        best = jax.nn.one_hot(jnp.argmin(scores), scores.shape[0], dtype=bool)
        return _answer(statistics, best, scores)


class MultiKrum(WeightingRule):
    """The mean of the q updates with the best Krum scores; q = n - f - 2 unless given.

    Needs n >= 2f + 3 and q <= n - f. Cost and weaknesses as Krum, with less variance.
    Blanchard et al., "Machine learning with adversaries", NeurIPS 2017.
    """

    f: int = field(at_least=0)
    q: int | None = field(default=None, at_least=1)
    accepts_absent: ClassVar[bool] = True

    def check(self, n: int) -> None:
        needs_more_than(self, n, 2 * self.f + 3, "n >= 2f + 3")
        if self.q is not None and self.q > n - self.f:
            raise ValueError(f"MultiKrum needs q <= n - f; got q = {self.q}, n = {n}, f = {self.f}")

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " k"], Info]:
        scores, neighbours = _scores(statistics, context, self.f)
        kept = jnp.maximum(neighbours, 1) if self.q is None else self.q
        return _answer(statistics, smallest(scores[:, None], kept)[:, 0], scores)
