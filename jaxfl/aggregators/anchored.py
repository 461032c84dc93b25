"""Any rule, held near the geometric median."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.aggregators.base import Aggregator
from jaxfl.aggregators.geometric_median import GeometricMedian
from jaxfl.aggregators.mean import Mean
from jaxfl.aggregators.wrapping import Wrapper
from jaxfl.component import capability, field
from jaxfl.numerics import rows
from jaxfl.types import Aggregated, Context, State, present_count, present_mask


class Anchored(Wrapper):
    """A rule whose answer is moved into the ball that holds n - budget rows around their median.

    With c the geometric median of the rows and R the distance from c of the (n - budget)-th nearest
    row, the answer is ``c + min(1, R / |y - c|) (y - c)`` of what the ``rule`` answers, y. So it
    stays bounded whatever the rule believes, as long as at most ``budget`` clients are Byzantine
    (the largest minority by default). ``info`` is the rule's.

    Needs what the rule needs. Cost: that of the rule and of the geometric median, and a read of the
    matrix. Fails: by as much as the rule may within the ball.
    Karimireddy, He, Jaggi, "Learning from history for Byzantine robust optimization", ICML 2021,
    for clipping around a robust centre.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> Anchored(rule=jaxfl.Mean())(updates).round(2)
    Array([2.69, 1.28], dtype=float32)
    """

    rule: Aggregator = field(default=Mean(weighted=False))
    """The rule inside."""
    budget: int | None = field(default=None, at_least=0)
    """Most Byzantine clients; none: the largest minority."""

    tolerates = capability(True)  # whatever the rule does

    @capability
    def differentiable(self) -> bool:
        return self.rule.differentiable

    def check(self, n: int) -> None:
        super().check(n)
        if self.budget is not None and 2 * self.budget >= n:
            raise ValueError(
                f"Anchored: budget must be below n / 2; got budget = {self.budget}, n = {n}"
            )

    def aggregate(self, updates: rows.Rows, state: State, context: Context) -> Aggregated:
        held = rows.held(updates)
        answer = self.rule.checked(held, state, context)
        centre = GeometricMedian().aggregate(held, (), context).update
        update = _within(held, answer.update, centre, self.budget, context)
        return answer.replace(update=update.astype(held.dtype))


def _within(
    updates: Float[Array, "n d"],
    answer: Float[Array, " d"],
    centre: Float[Array, " d"],
    budget: int | None,
    context: Context,
) -> Float[Array, " d"]:
    present = present_mask(context, updates.shape[0])
    squared = rows.squared_offsets(updates, centre)
    usable = present & jnp.isfinite(squared)
    count = present_count(context, updates.shape[0])
    kept = count - ((count - 1) // 2 if budget is None else budget)
    kept = jnp.minimum(kept, jnp.sum(usable, dtype=jnp.int32))
    limit = rows.safe_sqrt(jnp.sort(jnp.where(usable, squared, jnp.inf))[jnp.clip(kept - 1, 0)])
    wide = rows.accumulator(updates.dtype)
    step = answer.astype(wide) - centre.astype(wide)
    # In units of the largest coordinate, whose square cannot overflow.
    largest = jnp.max(jnp.abs(step))
    unit = rows.safe_ratio(step, largest)
    length = largest * rows.safe_sqrt(jnp.sum(jnp.square(unit)))
    share = jnp.where(length > limit, rows.safe_ratio(limit, length), 1)
    moved = jnp.where(jnp.isfinite(step), share * step, 0)
    return centre.astype(wide) + jnp.where(jnp.isfinite(share), moved, 0)
