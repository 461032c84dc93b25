"""Rejection by the harm that an update does on the server's own samples."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.aggregators.base import Aggregator, needs_more_than
from jaxfl.aggregators.root_losses import (
    evaluate,
    evaluate_each,
    mean_of_kept,
    rejected,
    usable_rows,
)
from jaxfl.component import capability, field
from jaxfl.numerics import rows
from jaxfl.types import Aggregated, Context, State


class LossRejection(Aggregator):
    """The mean of the updates whose presence in it harms least on the server's own samples.

    With ``w - learning_rate mean(all)`` and ``w - learning_rate mean(all but i)`` evaluated on
    the root samples, the impact of client i is by how much i makes it worse. ``method`` "err"
    removes the f clients of largest impact on the error rate, "lfr" those of largest impact on
    the loss, "union" both sets. Rows that are not finite are removed first and count among the f;
    among equals the lowest index is removed. Needs n > 2f, ``context.root_batch``, and
    ``context.learning_rate``, the server's.

    ``info.scores`` holds the impacts, lower is better, +inf where a row is not usable: on the
    error rate for "err", otherwise on the loss.

    Cost: n + 1 forward passes over the root samples, four reads of the matrix. Fails: with many
    clients one changes the mean so little that its impact drowns in the noise of the samples;
    Byzantine rows that cancel or hide one another; one row some 10^6 times longer than the others
    hides them in rounding.
    Fang, Cao, Jia, Gong, "Local model poisoning attacks to Byzantine-robust federated learning",
    USENIX Security 2020.

    >>> objective = jaxfl.models.Objective.of(jaxfl.models.Softmax(), (1,), 2)
    >>> batch = jaxfl.types.Batch(jnp.ones((1, 1)), jnp.array([1]), jnp.array([True]))
    >>> context = jaxfl.Context.of(3, objective=objective, params=jnp.zeros(4), root_batch=batch)
    >>> good = jnp.array([0.5, -0.5, 0.5, -0.5])
    >>> updates = jnp.stack([good, good, -good])
    >>> LossRejection(f=1).inspect(updates, context=context).info.selected.tolist()
    [True, True, False]
    """

    f: int = field(at_least=0)
    method: str = field(default="union", choices=("err", "lfr", "union"))
    """Impact on the error rate, on the loss, or either."""

    tolerates = capability(False)
    accepts_absent = capability(True)
    needs_root = capability(frozenset({"batch"}))
    follows_model = capability(True)

    @classmethod
    def example(cls, f: int = 2) -> "LossRejection":
        return cls(f=f, method="lfr")

    def check(self, n: int) -> None:
        needs_more_than(self, n, 2 * self.f + 1, "n > 2f")

    def aggregate(self, updates: Float[Array, "n d"], state: State, context: Context) -> Aggregated:
        batch = context.root_batch
        assert batch is not None
        assert context.params is not None
        dtype = rows.accumulator(updates.dtype)
        params = context.params.astype(dtype)
        usable = usable_rows(updates, context)
        count = jnp.sum(usable).astype(dtype)
        none = jnp.zeros((0, updates.shape[1]), updates.dtype)
        total = rows.combine(usable.astype(dtype), updates, none, jnp.all(usable)).astype(dtype)
        step = context.learning_rate.astype(dtype)
        whole = evaluate(params - step * rows.safe_ratio(total, count), batch, context)
        # Without client i: w - step (total - g_i) / (count - 1).
        share = step / jnp.maximum(count - 1, 1)
        without = evaluate_each(params - share * total, share, updates, batch, whole, context)

        rise, error = (jnp.where(jnp.isnan(x), jnp.inf, x) for x in without)
        kept = usable
        if self.method != "lfr":
            kept &= ~rejected(error, usable, context, self.f)
        if self.method != "err":
            kept &= ~rejected(rise, usable, context, self.f)
        impact = whole.error - error if self.method == "err" else -rise
        return mean_of_kept(kept, usable, updates, jnp.where(usable, impact, jnp.inf), state)
