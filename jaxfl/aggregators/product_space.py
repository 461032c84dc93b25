"""Adapters judged and combined by what they do to their layers."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.aggregators.base import Aggregator
from jaxfl.aggregators.krum import MultiKrum
from jaxfl.aggregators.mean import Mean
from jaxfl.aggregators.mixing import PreAggregator
from jaxfl.aggregators.pipeline import Pipeline
from jaxfl.aggregators.statistics import Space, Statistics
from jaxfl.aggregators.weighting import WeightingRule
from jaxfl.aggregators.wrapping import Wrapper
from jaxfl.component import capability
from jaxfl.numerics import low_rank, rows
from jaxfl.numerics.low_rank import Factors
from jaxfl.types import Aggregated, Context, Segment, Segments, State, present_mask

Pair = tuple[Segment, Segment]
"""The factors A and B of one adapter."""


def adapters_of(segments: Segments) -> list[Pair]:
    """The adapters of which both factors are trained."""
    factors = [s for s in segments if s.kind in ("lora_a", "lora_b")]
    found = []
    for _, group in itertools.groupby(factors, key=lambda segment: segment.layer):
        own = {segment.kind: segment for segment in group}
        if len(own) == 2:
            found.append((own["lora_a"], own["lora_b"]))
    return found


def factors_of(vector: Float[Array, "*m d"], pair: Pair) -> Factors:
    """One adapter's factors in a vector or in rows."""
    a, b = (vector[..., s.offset : s.end].reshape(*vector.shape[:-1], *s.shape) for s in pair)
    return Factors(a, b)


class ProductSpace(Wrapper):
    """A weighting rule that sees what each client does to the adapted layers.

    A row holds updates a, b of an adapter's factors; alone, it would change the layer A B to
    ``(A - rate a)(B - rate b)``. The ``rule`` is given norms and inner products of these changes
    over ``rate``, ``P_i = a_i B + A b_i - rate a_i b_i``, and of all other parameters as they are.
    No change is formed. Its weighted sum of changes is put back as the adapter of the same rank
    that is nearest to the layer it asks for, so it is exact up to the rank; the sum over all other
    parameters is exact. Averages of factors are not that: the mean of products is not the product
    of means, and (c A, B / c), which is the same layer as (A, B), is another row.

    ``rate`` is ``context.learning_rate``, the server's, of plain SGD: with momentum or another
    optimiser the step does not end at that adapter. Where nothing is adapted, or ``LoRA`` freezes
    A, a change is linear in the row, and this is the ``rule``.

    Pre-aggregators before it see these changes, too, as those inside it.

    Needs a weighting rule that reads norms and inner products only, after any pre-aggregators: not
    one that samples coordinates, keeps an answer or adds noise. Cost: products as of a Gram matrix
    of n r rows of length in + out for each adapter, and the SVD of a layer, or of n r x n r where
    that is smaller. Fails: with the rule; where honest changes need a higher rank than the
    adapter's, what is beyond it is lost.
    Singhal et al., "FedEx-LoRA", ACL 2025, for the mean of products, which they put into the base.

    >>> moves = jnp.array([1.0, 2.0, 3.0, 9.0])[:, None, None] * jnp.ones((1, 1, 2))
    >>> rows = {"lora_a": jnp.zeros((4, 3, 1)), "lora_b": moves}
    >>> context = jaxfl.Context.of(4, params=jnp.array([1.0, 1, 1, 0, 0]))
    >>> ProductSpace(rule=jaxfl.Krum(f=0))(rows, context=context)["lora_b"].round(2)
    Array([[2., 2.]], dtype=float32)
    """

    rule: Aggregator = Mean()
    """The rule that sees changes of layers."""
    needs_segments = capability(True)
    follows_model = capability(True)
    scale_equivariant = capability(False)
    translation_equivariant = capability(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        _, rule = _taken_apart(self.rule)
        name, base = type(rule).__name__, WeightingRule
        if not isinstance(rule, WeightingRule):
            raise ValueError(
                f"ProductSpace needs a weighting rule, such as Mean or Krum, which combines rows "
                f"by their inner products; got {name}"
            )
        own = ("columns", "remember", "aggregate", "aggregate_mixed", "aggregate_in")
        kept = [what for what in own if getattr(type(rule), what) is not getattr(base, what)]
        noisy = [f for f in ("noise_std", "noise_factor") if getattr(rule, f, None) is not None]
        if kept or noisy:
            raise ValueError(
                f"ProductSpace needs a rule that reads norms and inner products only; {name} "
                f"has {', '.join([*kept, *noisy])} of its own"
            )

    @classmethod
    def example(cls, f: int = 2) -> "ProductSpace":
        return cls(rule=MultiKrum(f=f))

    def aggregate(self, updates: rows.Rows, state: State, context: Context) -> Aggregated:
        return self.aggregate_mixed((), updates, state, context)

    def aggregate_mixed(
        self,
        pre: Sequence[PreAggregator],
        updates: rows.Rows,
        state: State,
        context: Context,
    ) -> Aggregated:
        """Mixes changes of layers, too: mixed factors would be another model's."""
        own, rule = _taken_apart(self.rule)
        pre = (*pre, *own)
        assert isinstance(rule, WeightingRule)
        adapters = adapters_of(context.segments)
        if not adapters:
            return rule.aggregate_mixed(pre, updates, state, context)
        if context.params is None:
            raise ValueError(
                "ProductSpace needs the model's adapters: pass context=Context.of(n, params=...)"
            )
        params = context.params.astype(rows.accumulator(updates.dtype))
        space = _Layers(adapters, params, context.learning_rate.astype(params.dtype))
        return rule.aggregate_in(space, pre, rows.held(updates), state, context)


def _taken_apart(rule: Aggregator) -> tuple[tuple[PreAggregator, ...], Aggregator]:
    """The pre-aggregators of nested pipelines, and the rule after them."""
    pre: tuple[PreAggregator, ...] = ()
    while isinstance(rule, Pipeline):
        pre, rule = (*pre, *rule.pre), rule.rule
    return pre, rule


class _Layers(Space):
    """Rows measured and combined as changes of layers."""

    def __init__(
        self, adapters: Sequence[Pair], params: Float[Array, " d"], rate: Float[Array, ""]
    ) -> None:
        self.adapters, self.params, self.rate = adapters, params, rate
        inside = jnp.zeros(params.shape, bool)
        for pair in adapters:
            for segment in pair:
                inside = inside.at[segment.offset : segment.end].set(True)
        self.inside = inside

    def measure(
        self,
        updates: Any,
        references: Float[Array, "r d"],
        context: Context,
        needs: frozenset[str],
        columns: Int[Array, " s"] | None,
        gram_wanted: Bool[Array, ""] | None,
        centred: bool,
    ) -> Statistics:
        m = updates.shape[0]
        finite = jnp.isfinite(rows.squared_norms(updates))
        wide = self.params.dtype
        own = jnp.where(finite[:, None], updates, 0).astype(wide)
        squares = self._squared_norms(own)
        usable = finite & jnp.isfinite(squares) & present_mask(context, m)
        own = jnp.where(usable[:, None], own, 0)
        everything = jnp.concatenate([own, references.astype(wide)])
        norms = jnp.where(usable, rows.safe_sqrt(squares), jnp.inf)
        gram = products = reference_norms = None
        if "gram" in needs:
            gram = self._gram(everything, usable, rows.median_row(norms, usable), centred)
            gram = gram if gram_wanted is None else jnp.where(gram_wanted, gram, 0)
        if "products" in needs:
            products = self._products(self.params, own, everything[m:])
            products = jnp.where(usable[:, None], products, 0)
            reference_norms = rows.safe_sqrt(self._squared_norms(everything[m:]))
        return Statistics(
            usable=usable,
            clean=jnp.all(finite & jnp.isfinite(squares)),
            norms=norms,
            gram=gram,
            products=products,
            reference_norms=reference_norms,
        )

    def combine(
        self,
        weights: Float[Array, " k"],
        updates: Any,
        references: Float[Array, "r d"],
        clean: Bool[Array, ""] | bool,
    ) -> Float[Array, " d"]:
        total = rows.weighted_sum(weights, updates, references, clean)
        used = jnp.where(weights[: updates.shape[0], None] != 0, updates, 0)
        changes = jnp.concatenate([used, references]).astype(total.dtype)
        shares = weights.astype(total.dtype)
        for pair in self.adapters:
            base, change = factors_of(self.params, pair), factors_of(changes, pair)
            for segment, value in zip(
                pair, low_rank.combined(base, change, shares, self.rate), strict=True
            ):
                total = total.at[segment.offset : segment.end].set(value.ravel())
        return total.astype(updates.dtype)

    def _squared_norms(self, changes: Float[Array, "m d"]) -> Float[Array, " m"]:
        total = rows.squared_norms(jnp.where(self.inside[None], 0, changes))
        for pair in self.adapters:
            base, change = factors_of(self.params, pair), factors_of(changes, pair)
            total += low_rank.squared_norms(base, change, self.rate)
        return total

    def _products(
        self, params: Float[Array, " d"], left: Float[Array, "m d"], right: Float[Array, "k d"]
    ) -> Float[Array, "m k"]:
        """Inner products of changes of the model with these parameters."""
        total = rows.products(jnp.where(self.inside[None], 0, left), right)
        for pair in self.adapters:
            base, left_own = factors_of(params, pair), factors_of(left, pair)
            total += low_rank.inner_products(base, left_own, factors_of(right, pair), self.rate)
        return total

    def _gram(
        self,
        changes: Float[Array, "k d"],
        usable: Bool[Array, " m"],
        pilot: Int[Array, ""],
        centred: bool,
    ) -> Float[Array, "k k"]:
        """Inner products of all changes; about the pilot's where they are centred.

        What one client changes beyond another is the change that the difference of their rows
        makes to the other's model: nothing cancels.
        """
        centre = changes[pilot] if centred else jnp.zeros_like(changes[0])
        keep = jnp.concatenate([usable, jnp.ones((changes.shape[0] - usable.shape[0],), bool)])
        away = jnp.where(keep[:, None], changes - centre[None], 0)
        return self._products(self.params - self.rate * centre, away, away)
