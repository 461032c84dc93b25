"""FoundationFL: copies of one trusted update before a coordinatewise rule."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.aggregators.base import Aggregator
from jaxfl.aggregators.coordinatewise import CoordinatewiseRule, Median
from jaxfl.aggregators.mixing import context_of
from jaxfl.aggregators.wrapping import Wrapper
from jaxfl.component import capability, field
from jaxfl.numerics import columns, rows
from jaxfl.types import Aggregated, Context, Info, State


class FoundationFL(Wrapper):
    """A coordinatewise rule over the updates and ``copies`` of the one farthest from all extremes.

    With the largest and smallest value of each coordinate, hi and lo, the copied update has the
    largest ``min(|g_i - hi|, |g_i - lo|)``. ``copies`` is floor(n / 2) unless given. ``rule`` is
    the median or a trimmed mean; what it trims stays as it is. ``info.scores`` holds these
    distances.

    Needs an honest client to be copied. Cost: three reads of the matrix, a copy of it with n +
    copies rows, and the rule on that. Fails: where two extreme rows steer the choice to a third
    attacker, its copies join the f, and the median breaks at f = n / 4 already.
    Fang, Nabavirazavi, Liu, Sun, Iyengar, Yang, "Do we really need to design new Byzantine-robust
    aggregation rules?", NDSS 2025.

    >>> updates = jnp.array([[0.0], [1.0], [2.0], [3.0], [10.0]])
    >>> rules = jaxfl.Median(), jaxfl.TrimmedMean(f=1)
    >>> [f"{FoundationFL(rule=rule, copies=2)(updates)[0]:.1f}" for rule in rules]
    ['3.0', '2.4']
    """

    name = "foundation_fl"
    rule: Aggregator = Median()
    """What aggregates updates and copies: the median or a trimmed mean."""
    copies: int | None = field(default=None, at_least=0)
    """How often the chosen update is added; none: floor(n / 2) times."""
    tolerates = capability(False)
    accepts_absent = capability(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.rule, CoordinatewiseRule):
            name = type(self.rule).__name__
            raise ValueError(f"FoundationFL: rule must be a coordinatewise rule; got {name}")
        if self.rule.by_client:
            raise ValueError(
                "FoundationFL: rule must treat all clients alike, as copies are nobody's; "
                f"{type(self.rule).__name__} has weights of clients"
            )

    def aggregate(self, updates: Float[Array, "n d"], state: State, context: Context) -> Aggregated:
        n = updates.shape[0]
        copies = n // 2 if self.copies is None else self.copies
        usable = jnp.isfinite(rows.squared_norms(updates))

        def extremes(block: Array) -> Array:
            high = jnp.where(usable[:, None], block, -jnp.inf)
            low = jnp.where(usable[:, None], block, jnp.inf)
            return jnp.stack([jnp.max(high, axis=0), jnp.min(low, axis=0)])

        high, low = columns.map_columns(extremes, updates, width=rows.WIDTH)
        squares = [rows.squared_offsets(updates, end) for end in (high, low)]
        scores = rows.safe_sqrt(jnp.minimum(*squares))
        scores = jax.lax.stop_gradient(jnp.where(usable, scores, -1))
        chosen = jnp.take(updates, jnp.argmax(scores), axis=0)
        more = jnp.broadcast_to(chosen, (copies, updates.shape[1]))
        several = context_of(n + copies, context)
        result = self.rule.aggregate(jnp.concatenate([updates, more]), state, several)
        info = Info(scores=jnp.where(usable, scores, 0))
        return result.replace(info=info)
