"""Zeno: updates that lower the loss on the server's own samples."""

import jax
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
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics import rows
from jaxfl.numerics.permutation import permute
from jaxfl.types import Aggregated, Batch, Context, State


class Zeno(Aggregator):
    """The mean of the n - b updates that most lower the loss on the server's own samples.

    ``score_i = L(w) - L(w - learning_rate g_i) - rho |g_i|^2``, L the mean loss over ``samples``
    of the root samples, drawn anew each round (None: all, also where there are fewer). The b
    lowest scores are dropped (b = f unless given). ``mean_square`` takes the mean of squares
    ``|g_i|^2 / d`` in place of ``|g_i|^2``, as the authors' code does.

    Needs n > b >= f, also with f > n / 2; ``context.root_batch``, and ``context.learning_rate``,
    the server's.

    ``info.scores`` holds the scores, higher is better, -inf where a row is not usable.

    Cost: n + 1 forward passes over the samples and two reads of the matrix. Fails: b < the number
    of Byzantine clients, updates that help on the samples and harm elsewhere, rho = 0 with
    arbitrarily long ones among these.
    Xie, Koyejo, Gupta, "Zeno: distributed stochastic gradient descent with suspicion-based
    fault-tolerance", ICML 2019.

    >>> objective = jaxfl.models.Objective.of(jaxfl.models.Softmax(), (1,), 2)
    >>> batch = jaxfl.types.Batch(jnp.ones((1, 1)), jnp.array([1]), jnp.array([True]))
    >>> context = jaxfl.Context.of(3, objective=objective, params=jnp.zeros(4), root_batch=batch)
    >>> good = jnp.array([0.5, -0.5, 0.5, -0.5])
    >>> updates = jnp.stack([good, good, -good])
    >>> Zeno(f=1).inspect(updates, context=context).info.selected.tolist()
    [True, True, False]
    """

    f: int = field(at_least=0)
    b: int | None = field(default=None, at_least=0)
    """How many updates are dropped; none: f."""
    rho: Scalar = field(default=0.0005, at_least=0)
    """What a unit of the squared norm takes off a score."""
    mean_square: bool = False
    """Whether that norm is a mean over coordinates, not a sum."""
    samples: int | None = field(default=None, at_least=1)
    """Root samples drawn in a round; none: all."""

    accepts_absent = capability(True)
    needs_root = capability(frozenset({"batch"}))
    follows_model = capability(True)

    def check(self, n: int) -> None:
        needs_more_than(self, n, self.f + 1, "n > f")
        if not self.f <= self._dropped < n:
            raise ValueError(
                f"Zeno needs n > b >= f; got n = {n}, b = {self._dropped}, f = {self.f}"
            )

    def aggregate(self, updates: Float[Array, "n d"], state: State, context: Context) -> Aggregated:
        assert context.root_batch is not None
        assert context.params is not None
        dtype = rows.accumulator(updates.dtype)
        params = context.params.astype(dtype)
        batch = self._draw(context.root_batch, context)
        usable = usable_rows(updates, context)
        step = context.learning_rate.astype(dtype)
        before = evaluate(params, batch, context)
        rise, _ = evaluate_each(params, -step, updates, batch, before, context)
        squares = rows.squared_norms(updates)
        if self.mean_square:
            squares = squares / updates.shape[1]
        scores = -rise - jnp.asarray(self.rho, dtype) * squares
        scores = jnp.where(usable & ~jnp.isnan(scores), scores, -jnp.inf)
        kept = usable & ~rejected(scores, usable, context, self._dropped)
        return mean_of_kept(kept, usable, updates, jax.lax.stop_gradient(scores), state)

    @property
    def _dropped(self) -> int:
        return self.f if self.b is None else self.b

    def _draw(self, root: Batch, context: Context) -> Batch:
        size = root.labels.shape[0]
        if self.samples is None or self.samples >= size:
            return root
        place = jnp.arange(self.samples, dtype=jnp.int32)
        drawn = permute(place, size, context.key)
        return jax.tree.map(lambda leaf: leaf[drawn], root)
