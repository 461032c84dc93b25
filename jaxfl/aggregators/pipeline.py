"""Pre-aggregators before a rule, as one rule."""

import dataclasses
from collections.abc import Sequence

from jaxfl.aggregators.base import Aggregator
from jaxfl.aggregators.coordinatewise import TrimmedMean
from jaxfl.aggregators.mixing import PreAggregator
from jaxfl.aggregators.weighting import WeightingRule
from jaxfl.aggregators.wrapping import of_rule
from jaxfl.component import capability
from jaxfl.numerics.rows import Rows
from jaxfl.types import Aggregated, Context, Segments, Spec, State


class Pipeline(Aggregator):
    """``Pipeline(pre=[NNM(f=2), ...], rule=TrimmedMean(f=2))``: mix the rows, then aggregate.

    With a weighting rule the mixed rows never exist: their inner products are ``M G M^T`` and
    the answer is ``(w M) @ updates``. ``info.weights`` then holds the weight that each original
    client got, and ``info.selected`` those that got any. Pipelines nest: all stages make one list.

    Needs what the rule needs, of the rows it gets. Cost: as its parts, no read for each of them.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> Pipeline(pre=[jaxfl.NNM(f=1)], rule=jaxfl.TrimmedMean(f=1))(updates).round(2)
    Array([2., 2.], dtype=float32)
    """

    pre: tuple[PreAggregator, ...]
    """What mixes the rows, in this order."""
    rule: Aggregator
    """What aggregates the mixed rows."""
    tolerates = of_rule()
    public_memory = of_rule()
    needs_everybody = of_rule()
    needs_root = of_rule()
    follows_model = of_rule()
    needs_segments = of_rule()
    makes_inputs = of_rule()

    @capability
    def permutation_equivariant(self) -> bool:
        return self.rule.permutation_equivariant and all(
            p.permutation_equivariant for p in self.pre
        )

    @capability
    def by_samples(self) -> bool:
        return self.rule.by_samples and all(p.diagonal for p in self.pre)

    @capability
    def scale_equivariant(self) -> bool:
        return self.rule.scale_equivariant and all(p.scale_equivariant for p in self.pre)

    @capability
    def translation_equivariant(self) -> bool:
        return self.rule.translation_equivariant and all(
            p.translation_equivariant for p in self.pre
        )

    @capability
    def unanimous(self) -> bool:
        return self.rule.unanimous and all(p.unanimous for p in self.pre)

    @capability
    def unit_free(self) -> bool:
        return self.rule.unit_free and all(p.scale_equivariant for p in self.pre)

    @capability
    def streams(self) -> bool:
        if not self.pre:
            return self.rule.streams
        inner = self.rule
        while isinstance(inner, Pipeline):
            inner = inner.rule
        # Those with a way of their own have it for updates that nothing has mixed.
        plain = type(inner).aggregate_mixed is WeightingRule.aggregate_mixed
        return plain and self.rule.streams and all(p.streams for p in self.pre)

    @capability
    def reads_once(self) -> bool:
        return not self.pre and self.rule.reads_once

    @classmethod
    def example(cls, f: int = 2) -> "Pipeline":
        return cls(pre=(), rule=TrimmedMean(f=f))

    @capability
    def by_client(self) -> bool:
        return self.rule.by_client or any(p.by_client for p in self.pre)

    @capability
    def accepts_absent(self) -> bool:
        return self.rule.accepts_absent and all(p.accepts_absent for p in self.pre)

    def check_segments(self, segments: Segments) -> None:
        self.rule.check_segments(segments)

    def check(self, n: int) -> None:
        rows = n
        for part in (*self.pre, self.rule):
            if part.by_client and rows != n:
                raise ValueError(
                    f"Pipeline: {type(part).__name__} needs one row per client; it would get "
                    f"{rows} of {n} clients"
                )
            part.check(rows)
            rows = part.rows(rows) if isinstance(part, PreAggregator) else rows

    def init(self, spec: Spec) -> State:
        rows = spec.cohort
        for stage in self.pre:
            rows = stage.rows(rows)
        return self.rule.init(dataclasses.replace(spec, cohort=rows))

    def aggregate(self, updates: Rows, state: State, context: Context) -> Aggregated:
        return self.aggregate_mixed((), updates, state, context)

    def aggregate_mixed(
        self,
        pre: Sequence[PreAggregator],
        updates: Rows,
        state: State,
        context: Context,
    ) -> Aggregated:
        return self.rule.aggregate_mixed((*pre, *self.pre), updates, state, context)
