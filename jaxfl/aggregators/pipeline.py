"""Pre-aggregators before a rule, as one rule."""

from jaxtyping import Array, Float

from jaxfl.aggregators.base import (
    Aggregator,
    CoordinatewiseRule,
    PreAggregator,
    WeightingRule,
    run_rule,
)
from jaxfl.aggregators.mean import Oracle
from jaxfl.types import Aggregated, Context, Spec, State


class Pipeline(Aggregator):
    """``Pipeline(pre=[NNM(f=2), ...], rule=TrimmedMean(f=2))``: mix the rows, then aggregate.

    With a weighting rule the mixed rows never exist: their inner products are ``M G M^T`` and
    the answer is ``(w M) @ updates``. ``info.weights`` then holds the weight that each original
    client got, and ``info.selected`` those that got any.
    """

    pre: tuple[PreAggregator, ...]
    rule: Aggregator

    @property
    def tolerates(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.rule.tolerates

    @property
    def accepts_absent(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.rule.accepts_absent and all(p.accepts_absent for p in self.pre)

    def check(self, n: int) -> None:
        if not isinstance(self.rule, WeightingRule | CoordinatewiseRule):
            raise ValueError(
                "Pipeline: rule must be a weighting or coordinatewise rule, not "
                f"{type(self.rule).__name__}; put all pre-aggregators in one list"
            )
        rows = n
        for stage in self.pre:
            stage.check(rows)
            rows = stage.rows(rows)
        if isinstance(self.rule, Oracle) and rows != n:
            raise ValueError(
                f"Pipeline: Oracle needs one row per client; it would get {rows} of {n} clients"
            )
        self.rule.check(rows)

    def init(self, spec: Spec) -> State:
        return self.rule.init(spec)

    def aggregate(self, updates: Float[Array, "n d"], state: State, context: Context) -> Aggregated:
        return run_rule(self.pre, self.rule, updates, state, context)
