"""Barrier clipping that learns over the rounds whom to trust."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.aggregators.barrier_clipping import BarrierClipping
from jaxfl.aggregators.mixing import PreAggregator
from jaxfl.aggregators.portfolio import barrier_portfolio
from jaxfl.aggregators.statistics import Space, Statistics
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics.rows import Rows
from jaxfl.types import Aggregated, Context, Info, Spec, State, Struct, present_mask

FAR = 2.0
"""Radii from the centre beyond which a client counts as Byzantine in a round."""
LEAST, MOST = 0.05, 0.99
"""Between these is every client's probability of honesty, whatever was seen."""
DOUBTED_SHARE = 0.3
"""Share of Byzantine clients in the scenarios that no experience speaks for."""
STEPS = 50
"""Of the search for weights."""


class Reputation(Struct):
    """What the rule remembers of each client."""

    near: Float[Array, " K"]
    """Rounds in which it was near the centre, older ones counting less."""
    far: Float[Array, " K"]
    """Rounds in which it was not."""
    weights: Float[Array, " K"]
    """What it weighs until the next renewal; they sum to 1."""


class ReputationClipping(BarrierClipping):
    """``BarrierClipping`` with weights that follow what was seen of each client.

    A client is far in a round if its distance from the centre exceeds twice the radius R. With
    a_i and b_i the rounds in which it was near and far, each multiplied by ``decay`` a round it is
    there, it is honest with probability ``p_i = (1 + a_i) / (2 + a_i + b_i)``, kept within
    [0.05, 0.99].
    Every ``every`` rounds omega is chosen anew: it minimises ``penalty E psi(omega(B)) + |omega -
    w|^2``, with ``psi(m) = (m / (1 - 2m))^2`` and ``w_i = E[1{i in S} / |S|]``, over drawn honest
    majorities S that hold each client with probability p_i, a share ``doubt`` of them instead
    uniform, with 0.3 n Byzantine clients; no weight exceeds ``cap / n``. So whoever behaves and
    strikes later gained at most that: f clients hold ``cap f / n``. ``weights`` are those of the
    first rounds, equal unless given.

    Needs clients that come back, and what ``BarrierClipping`` needs. Cost: as ``BarrierClipping``;
    every ``every`` rounds some thousand multiply-adds a client and scenario. Fails where honest
    clients are far from most others, whom it learns to distrust; without ``cap`` and ``doubt`` by
    attackers who behave first. That learning helps is shown by experiment only. Ours; its memory:
    Jøsang, Ismail, "The beta reputation system", Bled eConference 2002.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> remembered = ReputationClipping(every=1).inspect(updates).state
    >>> remembered.far.tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    >>> bool(remembered.weights[-1] < 0.6 * remembered.weights[:-1].min())
    True
    """

    decay: Scalar = field(default=0.95, at_least=0, at_most=1)
    """Discount of a round's experience per round."""
    every: int = field(default=20, at_least=1)
    """Rounds between renewals of the weights."""
    cap: Scalar = field(default=1.25, at_least=1)
    """The largest weight, in units of 1 / n."""
    doubt: Scalar = field(default=0.3, at_least=0, at_most=1)
    """Share of scenarios drawn as if nothing had been learned."""
    penalty: Scalar = field(default=0.5, at_least=0)
    """Weight of the expected Byzantine mass against that of the bias."""
    scenarios: int = field(default=512, at_least=2)
    """Honest sets drawn for a renewal."""
    by_client = capability(True)
    differentiable = capability(True)

    def init(self, spec: Spec) -> State:
        dtype = jnp.promote_types(spec.dtype, jnp.float32)
        nothing = jnp.zeros((spec.population,), dtype)
        weights = nothing + 1 / spec.population
        if self.weights is not None:
            given = jnp.asarray(self.weights, dtype)[: spec.population]
            weights = given / jnp.sum(given)
        return Reputation(near=nothing, far=nothing, weights=weights)

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " n"], Info]:
        now = self.replace(weights=state.weights)
        return BarrierClipping.weigh(now, statistics, state, context)

    def aggregate_in(
        self,
        space: Space,
        pre: Sequence[PreAggregator],
        updates: Rows,
        state: State,
        context: Context,
    ) -> Aggregated:
        answer = super().aggregate_in(space, pre, updates, state, context)
        return answer.replace(state=self._renewed(state, answer.info, context))

    def _renewed(self, state: Reputation, info: Info, context: Context) -> Reputation:
        assert info.scores is not None
        dtype, ids = state.near.dtype, context.client_ids
        present = present_mask(context, ids.shape[0]).astype(dtype)
        far = (info.scores > FAR).astype(dtype)
        fades = 1 - present * (1 - jnp.asarray(self.decay, dtype))
        near, far = (
            seen.at[ids].multiply(fades, mode="drop").at[ids].add(present * now, mode="drop")
            for seen, now in ((state.near, 1 - far), (state.far, far))
        )
        weights = jax.lax.cond(
            (context.round + 1) % self.every == 0,
            lambda: self._portfolio(near, far, context),
            lambda: state.weights,
        )
        return Reputation(near=near, far=far, weights=weights)

    def _portfolio(self, near: Array, far: Array, context: Context) -> Float[Array, " K"]:
        n, dtype = near.shape[0], near.dtype
        honesty = jnp.clip((1 + near) / (2 + near + far), LEAST, MOST)
        believed, ranks = jax.random.uniform(context.key, (2, self.scenarios, n), dtype)
        count = jnp.minimum(jnp.ceil(DOUBTED_SHARE * n), (n - 1) // 2)
        doubted = jnp.argsort(jnp.argsort(ranks, axis=1), axis=1) >= count
        sets = jnp.concatenate([believed < honesty[None], doubted]).astype(dtype)
        sizes = jnp.sum(sets, axis=1)
        likely = (2 * sizes[: self.scenarios] > n).astype(dtype)
        doubt = jnp.where(jnp.any(likely > 0), jnp.asarray(self.doubt, dtype), 1)
        likely *= (1 - doubt) / jnp.maximum(jnp.sum(likely), 1)
        masses = jnp.concatenate([likely, jnp.full((self.scenarios,), doubt / self.scenarios)])
        shares = masses / jnp.maximum(sizes, 1)
        return barrier_portfolio(
            1 - sets,
            masses,
            jnp.matmul(shares, sets, precision="highest"),
            jnp.asarray(self.penalty, dtype),
            jnp.asarray(self.cap, dtype) / n,
            STEPS,
        )
