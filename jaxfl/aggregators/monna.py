"""Mean around a trusted row."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxfl.aggregators.base import Aggregator, PreAggregator, needs_more_than
from jaxfl.aggregators.coordinatewise import CoordinatewiseRule
from jaxfl.aggregators.statistics import Statistics
from jaxfl.aggregators.weighting import WeightingRule
from jaxfl.component import capability, field
from jaxfl.numerics import rows
from jaxfl.numerics.gram import squared_distances_to, tame_gram
from jaxfl.numerics.order import smallest
from jaxfl.numerics.rows import safe_ratio
from jaxfl.types import Aggregated, Context, Info, State


class MoNNA(WeightingRule):
    """The mean of the n - f updates nearest to a trusted one, itself included.

    ``trusted`` is the index of that update. ``pivot``, a weighting or coordinatewise rule without
    memory, takes its place where given: nearness is to the rule's answer. The trusted update must
    be usable: if it is not finite, the answer is 0.

    Needs n > 2f; f = 0 is the mean. Cost: two reads of the matrix, with a pivot or after
    pre-aggregators three and n^2 d multiply-adds. Fails: a Byzantine or outlying pivot.
    Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, "Robust collaborative learning with
    linear gradient overhead", ICML 2023.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> MoNNA(f=1)(updates).round(2)
    Array([2., 2.], dtype=float32)
    """

    name = "monna"
    f: int = field(at_least=0)
    trusted: int = field(default=0, at_least=0)
    """Index of the update that nearness is to."""
    pivot: Aggregator | None = None
    """A rule whose answer takes that update's place."""
    differentiable = capability(True)

    @capability
    def permutation_equivariant(self) -> bool:
        return self.pivot is not None and self.pivot.permutation_equivariant

    @capability
    def scale_equivariant(self) -> bool:
        return self.pivot is None or self.pivot.scale_equivariant

    @capability
    def translation_equivariant(self) -> bool:
        return self.pivot is None or self.pivot.translation_equivariant

    @capability
    def by_client(self) -> bool:
        return self.pivot is None

    @capability
    def needs(self) -> frozenset[str]:
        pivot = self.pivot
        return frozenset({"gram"}) | (
            pivot.needs if isinstance(pivot, WeightingRule) else frozenset()
        )

    def check(self, n: int) -> None:
        needs_more_than(self, n, 2 * self.f + 1, "n > 2f")
        if self.trusted >= n:
            raise ValueError(f"MoNNA needs trusted < n; got trusted = {self.trusted}, n = {n}")
        if self.pivot is None:
            return
        if not isinstance(self.pivot, WeightingRule | CoordinatewiseRule):
            raise ValueError(
                "MoNNA: pivot must be a weighting or a coordinatewise rule, "
                f"not {type(self.pivot).__name__}"
            )
        if type(self.pivot).init is not Aggregator.init:
            raise ValueError(
                f"MoNNA: pivot must have no memory; {type(self.pivot).__name__} has one"
            )
        self.pivot.check(n)

    def references(self, state: State, context: Context, dim: int) -> Float[Array, "r d"] | None:
        if not isinstance(self.pivot, WeightingRule):
            return None
        return self.pivot.references(state, context, dim)

    def columns(self, dim: int, context: Context) -> Int[Array, " s"] | None:
        if not isinstance(self.pivot, WeightingRule):
            return None
        return self.pivot.columns(dim, context)

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " n"], Info]:
        assert statistics.gram is not None
        m, gram = statistics.usable.shape[0], jax.lax.stop_gradient(statistics.gram)
        if isinstance(self.pivot, WeightingRule):
            at, _ = self.pivot.weigh(statistics, state, context)
            at = jnp.pad(jax.lax.stop_gradient(at), (0, gram.shape[0] - at.shape[0]))
            gram, usable = tame_gram(gram, statistics.usable_rows(gram.shape[0] - m))
            squared = squared_distances_to(gram, at)[:m]
            squared = jnp.where(usable[:m], squared, jnp.inf)
        else:
            squared = jax.lax.stop_gradient(statistics.squared_distances()[self.trusted, :m])
        return self._nearest(squared)

    def _nearest(self, squared: Float[Array, " m"]) -> tuple[Float[Array, " m"], Info]:
        kept = squared.shape[0] - self.f
        selected = smallest(squared[:, None], kept)[:, 0] & jnp.isfinite(squared)
        weights = selected.astype(squared.dtype)
        weights = safe_ratio(weights, jnp.sum(weights))
        return weights, Info(selected=selected, weights=weights)

    def aggregate_mixed(
        self,
        pre: Sequence[PreAggregator],
        updates: rows.Rows,
        state: State,
        context: Context,
    ) -> Aggregated:
        """Distances to one point take one read; in n-space they would take all pairs'."""
        updates = rows.held(updates)
        coordinatewise = isinstance(self.pivot, CoordinatewiseRule)
        if pre and coordinatewise:  # its answer is no combination of rows: they are formed
            return Aggregator.aggregate_mixed(self, pre, updates, state, context)
        if pre or isinstance(self.pivot, WeightingRule):
            return super().aggregate_mixed(pre, updates, state, context)
        pivot = updates[self.trusted]
        if self.pivot is not None:
            pivot = jax.lax.stop_gradient(self.pivot.aggregate(updates, state, context).update)
        squared = rows.squared_offsets(updates, pivot)
        # A row is at distance 0 of itself even where its norm overflows.
        near = jnp.isfinite(squared) & jnp.isfinite(rows.squared_norms(pivot[None]))
        squared = jax.lax.stop_gradient(jnp.where(near, squared, jnp.inf))
        weights, info = self._nearest(squared)
        none = jnp.zeros((0, updates.shape[1]), updates.dtype)
        output = rows.combine(weights, updates, none, jnp.all(jnp.isfinite(squared)))
        return Aggregated(update=output, state=state, info=info)
