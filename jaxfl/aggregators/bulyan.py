"""Bulyan: Krum's picks, then what is near their median in every coordinate."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxfl.aggregators.base import Aggregator, PreAggregator, needs_more_than
from jaxfl.aggregators.coordinatewise import CoordinatewiseRule
from jaxfl.aggregators.krum import krum_picks, krum_scores
from jaxfl.aggregators.statistics import Statistics
from jaxfl.component import capability, field
from jaxfl.numerics import order
from jaxfl.numerics.rows import Rows
from jaxfl.types import Aggregated, Context, State


def selection_size(n: int, f: int, variant: str) -> int:
    """How many rows the selection hands on, theta."""
    if variant == "epfl":
        return n - 2 * f - 2
    # The NDSS 2021 code stops once no more than f + 2 rows are left.
    return n - 2 * f if variant == "paper" else min(n - 2 * f, n - f - 2)


def bulyan_selection(
    squared_distances: Float[Array, "n n"], usable: Bool[Array, " n"], f: int, variant: str
) -> Float[Array, "theta n"]:
    """The matrix that makes Bulyan's selection out of the rows.

    ``"paper"``: theta = n - 2f winners of Krum, each removed before the next round, with
    ``max(1, left - f - 2)`` neighbours. ``"ndss21"``: the same with ``left - f - 3`` neighbours,
    stopping once f + 2 rows are left. ``"epfl"``: theta = n - 2f - 2 means; the t-th is that of
    the rows of rank t, ..., n - f - 3 by one scoring with n - f - 2 plain distances.

    Cost: O(n^2) for each of the theta rounds, once for ``"epfl"``.
    """
    n = usable.shape[0]
    theta = selection_size(n, f, variant)
    if variant != "epfl":
        spare, least = (2, 1) if variant == "paper" else (3, 0)
        picks = krum_picks(squared_distances, usable, theta, n - f - spare, least=least)
        return picks.astype(squared_distances.dtype)
    scores = krum_scores(squared_distances, n - f - 2, power=1)
    order = jnp.argsort(jnp.where(usable, scores, jnp.inf))
    rank = jnp.zeros((n,), order.dtype).at[order].set(jnp.arange(n, dtype=order.dtype))
    first = jnp.arange(theta)[:, None]
    averaged = (rank[None] >= first) & (rank[None] < n - f - 2) & usable[None]
    weights = averaged.astype(squared_distances.dtype)
    return weights / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1)


class KrumSelection(PreAggregator):
    """Bulyan's first stage as a matrix on the left; see ``bulyan_selection``."""

    f: int = field(at_least=0)
    variant: str = field(default="paper", choices=("paper", "ndss21", "epfl"))
    selects = capability(True)
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)

    def rows(self, n: int) -> int:
        return selection_size(n, self.f, self.variant)

    def mix(self, statistics: Statistics, context: Context) -> Float[Array, "theta m"]:
        m = statistics.usable.shape[0]
        distances = statistics.squared_distances()[:m, :m]
        matrix = bulyan_selection(distances, statistics.usable, self.f, self.variant)
        return jax.lax.stop_gradient(matrix)


class NearestMedian(CoordinatewiseRule):
    """Bulyan's second stage: per coordinate, the mean of all but ``dropped`` values, those
    farthest from the median (the lower one of two, with ``lower``).
    """

    dropped: int = field(at_least=0)
    lower: bool = False
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)

    def reduce(self, block: Float[Array, "n c"], context: Context) -> Float[Array, " c"]:
        n = block.shape[0]
        return order.mean_of_nearest(block, *order.middle(n, lower=self.lower), n - self.dropped)


class Bulyan(Aggregator):
    """Selects n - 2f rows by Krum, then averages the n - 4f values nearest their median.

    ``variant``: ``"paper"`` picks the rows one after the other; ``"ndss21"`` and ``"epfl"`` are
    what the codes of Shejwalkar and Houmansadr and of EPFL do, both with the lower of two middle
    values as the median; see ``bulyan_selection``. ``info.selected`` says who passed the first
    stage.

    Needs n >= 4f + 3. Cost: n^2 d multiply-adds, O(n^2) a pick, and as MeaMed. Fails: Min-Max,
    mimicry, and wherever a quarter of the clients or more is Byzantine: not defined there.
    El Mhamdi, Guerraoui, Rouault, "The hidden vulnerability of distributed learning in
    Byzantium", ICML 2018.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> Bulyan(f=1)(updates).round(2)
    Array([2., 2.], dtype=float32)
    """

    f: int = field(at_least=0)
    variant: str = field(default="paper", choices=("paper", "ndss21", "epfl"))
    """How the n - 2f rows are picked: as the paper or one of two codes does."""
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)

    def check(self, n: int) -> None:
        needs_more_than(self, n, 4 * self.f + 3, "n >= 4f + 3")

    def aggregate(self, updates: Float[Array, "n d"], state: State, context: Context) -> Aggregated:
        return self.aggregate_mixed((), updates, state, context)

    def aggregate_mixed(
        self,
        pre: Sequence[PreAggregator],
        updates: Rows,
        state: State,
        context: Context,
    ) -> Aggregated:
        first = KrumSelection(f=self.f, variant=self.variant)
        second = NearestMedian(dropped=2 * self.f, lower=self.variant != "paper")
        return second.aggregate_mixed((*pre, first), updates, state, context)
