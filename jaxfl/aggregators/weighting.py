"""Rules that answer with a combination of rows: the matrix is read once for what they need of it.

Their weights depend on the updates only through sums over coordinates (norms, inner products): all
iterations happen in n-space, and the matrix is read once more for the combination.
"""

import abc
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.aggregators.base import Aggregator
from jaxfl.aggregators.mixing import (
    STREAMED,
    PreAggregator,
    context_of,
    measure_mixed,
    to_clients,
    weights_before,
)
from jaxfl.aggregators.statistics import FLAT, Space, Statistics
from jaxfl.component import capability
from jaxfl.numerics import rows
from jaxfl.numerics.noise import normal
from jaxfl.numerics.runs import in_all_runs
from jaxfl.types import Aggregated, Context, Info, State, present_mask


class WeightingRule(Aggregator):
    """A rule whose answer is ``weights @ [updates; references]``. Abstract.

    >>> jaxfl.Krum(f=0).inspect(jnp.array([[1.0], [2.0], [9.0]])).info.weights
    Array([1., 0., 0.], dtype=float32)
    """

    needs = capability(frozenset({"gram"}))
    """Statistics that ``weigh`` reads: any of "norms", "gram", "inner", "products"."""

    @capability
    def streams(self) -> bool:
        kind, base = type(self), WeightingRule
        own = kind.aggregate_mixed is base.aggregate_mixed and kind.aggregate is base.aggregate
        return own and self.needs <= STREAMED

    @capability
    def reads_once(self) -> bool:
        return self.streams and not self.needs

    def references(self, state: State, context: Context, dim: int) -> Float[Array, "r d"] | None:
        """Extra rows, measured together with the updates: a root update, the previous aggregate."""
        return None

    def columns(self, dim: int, context: Context) -> Int[Array, " s"] | None:
        """Indices of the coordinates whose values the rule reads, in ``statistics.sample``."""
        return None

    def wants_gram(self, state: State, context: Context) -> Bool[Array, ""] | None:
        """Whether the Gram matrix is needed this round; if not it is all 0, and costs no pass.

        None: it is needed in every round.
        """
        return None

    @abc.abstractmethod
    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " k"], Info]:
        """The weights of the m rows and r references, 0 wherever a row is not usable.

        Where the weights are those of the m rows only, the references get weight 0.
        """

    def noise(self, statistics: Statistics, context: Context) -> Float[Array, ""] | None:
        """Standard deviation of the Gaussian noise added to every coordinate; None: no noise."""
        return None

    def remember(
        self, state: State, output: Float[Array, " d"], statistics: Statistics, context: Context
    ) -> State:
        """The memory for the next round, given this round's output; by default unchanged."""
        return state

    def aggregate(self, updates: rows.Rows, state: State, context: Context) -> Aggregated:
        return self.aggregate_mixed((), updates, state, context)

    def aggregate_mixed(
        self,
        pre: Sequence[PreAggregator],
        updates: rows.Rows,
        state: State,
        context: Context,
    ) -> Aggregated:
        """Measures the updates, weighs n numbers, and reads the matrix once more for the answer."""
        return self.aggregate_in(FLAT, pre, updates, state, context)

    def aggregate_in(
        self,
        space: Space,
        pre: Sequence[PreAggregator],
        updates: rows.Rows,
        state: State,
        context: Context,
    ) -> Aggregated:
        """As ``aggregate_mixed``, of rows that are measured and combined as ``space`` says."""
        d = updates.shape[1]
        own = self.references(state, context, d)
        references = jnp.zeros((0, d), updates.dtype) if own is None else own.astype(updates.dtype)
        if space is FLAT and not self.needs and not pre and own is None:
            return self._aggregate_once(updates, state, context)
        statistics, mixing = measure_mixed(
            pre,
            updates,
            references,
            context,
            self.needs,
            columns=self.columns(d, context),
            gram_wanted=self.wants_gram(state, context),
            space=space,
        )
        m = statistics.usable.shape[0]
        seen = context_of(m, context)
        weights, info = self.weigh(statistics, state, seen)
        own_weights = weights[m:]
        weights = weights[:m]
        if mixing is not None:
            weights = weights_before(weights, mixing)
            info = to_clients(info, mixing)
        missing = references.shape[0] - own_weights.shape[0]
        weights = jnp.concatenate([weights, jnp.pad(own_weights, (0, missing))])
        assert statistics.clean is not None
        output = space.combine(weights, updates, references, statistics.clean)
        scale = self.noise(statistics, seen)
        if scale is not None:
            drawn = normal(context.key, (d,), scale.dtype)
            output = (output + scale * drawn).astype(updates.dtype)
        state = self.remember(state, output, statistics, seen)
        return Aggregated(update=output, state=state, info=info)

    def _aggregate_once(self, updates: rows.Rows, state: State, context: Context) -> Aggregated:
        """One read of the matrix, for a rule that only needs to know which rows are finite.

        First all rows are combined as if all were finite. Where the answer is finite, and small
        enough that no row's norm can have overflowed, they were, and it stands. Otherwise the
        rows are measured and those that are not finite are left out.
        """
        none = jnp.zeros((0, updates.shape[1]), updates.dtype)
        everyone = Statistics(usable=present_mask(context, updates.shape[0]))
        weights, info = self.weigh(everyone, state, context)
        hopeful = rows.combine(weights, updates, none, True)
        least = jnp.min(jnp.where(weights > 0, weights, 1))
        room = jnp.sum(jnp.square(hopeful.astype(weights.dtype) / least))

        def careful() -> tuple[Array, Info]:
            statistics, _ = measure_mixed((), updates, none, context, frozenset())
            weights, info = self.weigh(statistics, state, context)
            return rows.combine(weights, updates, none), info

        output, info = jax.lax.cond(
            in_all_runs(jnp.isfinite(room)), lambda: (hopeful, info), careful
        )
        return Aggregated(update=output, state=state, info=info)
