"""Attacks of fake clients, which have no data and see but the models and the server's rate."""

import abc
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxfl.attacks.base import NOTHING, Attack
from jaxfl.attacks.views import AttackView
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics import rows
from jaxfl.numerics.noise import normal
from jaxfl.numerics.runs import in_all_runs
from jaxfl.types import Segments, Spec, State, Struct

CERTAIN = 2.3263478740408408
"""Of a standard normal variable, what is exceeded once in a hundred."""


class _FakeClients(Attack):
    """Fake clients that steer the model. Abstract."""

    crafts = capability(True)
    streams = capability(True)
    knows = capability(NOTHING)
    follows_model = capability(True)

    @abc.abstractmethod
    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "1 d"], State]: ...

    def sent(self, view: AttackView, move: Float[Array, " d"]) -> Float[Array, "1 d"]:
        """The update by which the server would move the parameters so, were it alone.

        0 in a round in which it does not move, at a rate of 0.
        """
        return -rows.safe_ratio(move, view.learning_rate.astype(move.dtype))[None]


class MPAF(_FakeClients):
    """All fake clients pull the model to a base model: ``factor (w_t - w')``.

    ``base`` is what w' is: ``"random"``, the first model they receive with the coordinates of each
    parameter permuted, which is as good as drawing another one; or ``"initial"``, that model
    itself. With as many as all clients, ``factor`` 1 and a mean, the next model is w'.

    Cao, Gong, "MPAF: model poisoning attacks to federated learning based on fake clients",
    CVPR Workshops 2022.

    >>> MPAF().threat_model
    ('its messages', 'nothing')
    """

    name = "mpaf"
    factor: Scalar = field(default=1e6, above=0)
    """How many times the way to the base model is sent."""
    base: str = field(default="random", choices=("random", "initial"))
    """The model that they pull to."""

    @classmethod
    def example(cls) -> Attack:
        return cls(factor=5.0)

    def init(self, spec: Spec) -> State:
        return jnp.zeros((spec.dim,), spec.dtype), jnp.array(False)

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "1 d"], State]:
        assert view.params is not None
        target, known = state
        params = view.params

        def chosen() -> Array:
            random = self.base == "random"
            fresh = _permuted(params, view.segments, view.key) if random else params
            return jnp.where(known, target, fresh.astype(target.dtype))

        # Only in the first round: a permutation takes longer than all else.
        target = jax.lax.cond(in_all_runs(known), lambda: target, chosen)
        move = target - params.astype(target.dtype)
        factor = jnp.asarray(self.factor, move.dtype)
        return self.sent(view, factor * move), (target, jnp.array(True))


def _permuted(
    params: Float[Array, " d"], segments: Segments, key: Key[Array, ""]
) -> Float[Array, " d"]:
    """The parameters, each with its coordinates in a random order; all as one if none are known."""
    ends = [(s.offset, s.end) for s in segments] or [(0, params.shape[0])]
    parts = [
        jax.random.permutation(jax.random.fold_in(key, i), params[a:b])
        for i, (a, b) in enumerate(ends)
    ]
    return jnp.concatenate(parts)


class PoisonedFLState(Struct):
    """What the fake clients of PoisonedFL remember."""

    signs: Float[Array, " d"]
    """The direction, drawn once: -1 or 1 in every coordinate."""
    before: Float[Array, " d"]
    """The model of the last round."""
    start: Float[Array, " d"]
    """The model after the first round of this period."""
    pushed: Float[Array, " d"]
    """By how much they last asked the model to move."""
    factor: Float[Array, ""]
    rounds: Int[Array, ""]


class PoisonedFL(_FakeClients):
    """Pushes the model in one random direction for the whole run, as hard as goes unnoticed.

    All fake clients ask for the move ``c |g| v s``, g being the model's last move and s signs that
    are drawn once. Magnitudes are large where others moved the model: v is ``|g - k |g| / |k||``,
    coordinate by coordinate and of norm 1, with k what they asked for last. Every ``period`` rounds
    they count the coordinates that have moved the way of s. Where that count is below the 99 %
    quantile for fair coins, the rule is resisting, and c becomes ``decay`` c, but not less than
    ``least``. In their first round they send zeros.

    Knows no honest update and no rule; aims at defences that judge every round by itself.
    Xie, Fang, Gong, "Model poisoning attacks to federated learning via multi-round consistency",
    CVPR 2025.

    >>> PoisonedFL().threat_model
    ('its messages', 'nothing')
    """

    name = "poisoned_fl"
    factor: Scalar = field(default=8.0, above=0)
    """The first c, in units of the last move."""
    period: int = field(default=50, at_least=2)
    """Rounds between two looks at how far the model has followed."""
    decay: Scalar = field(default=0.7, above=0, at_most=1)
    """What c is multiplied by where it has not."""
    least: Scalar = field(default=0.5, at_least=0)
    """The smallest c."""
    knows = capability(NOTHING)

    def init(self, spec: Spec) -> State:
        dtype = rows.accumulator(jnp.dtype(spec.dtype))
        zero = jnp.zeros((spec.dim,), dtype)
        return PoisonedFLState(
            signs=zero,
            before=zero,
            start=zero,
            pushed=zero,
            factor=jnp.asarray(self.factor, dtype),
            rounds=jnp.int32(0),
        )

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "1 d"], State]:
        assert view.params is not None
        dtype = state.before.dtype
        params, first = view.params.astype(dtype), state.rounds == 0
        drawn = jnp.where(normal(view.key, params.shape, dtype) < 0, -1, 1).astype(dtype)
        signs = jnp.where(first, drawn, state.signs)
        start = jnp.where((state.rounds - 1) % self.period == 0, params, state.start)
        factor = self._factor(state, params, signs)
        move = jnp.where(first, 0, params - state.before)
        length, asked = jnp.linalg.norm(move), jnp.linalg.norm(state.pushed)
        hidden = jnp.abs(move - state.pushed * rows.safe_ratio(length, asked))
        hidden = rows.safe_ratio(hidden, jnp.linalg.norm(hidden))
        push = factor * length * hidden * signs
        memory = PoisonedFLState(
            signs=signs,
            before=params,
            start=start,
            pushed=jnp.where(view.count > 0, push, state.pushed),
            factor=factor,
            rounds=state.rounds + 1,
        )
        return self.sent(view, push), memory

    def observe(self, view: AttackView, state: State) -> State:
        assert view.params is not None
        return state.replace(before=view.params.astype(state.before.dtype))

    def _factor(
        self, state: PoisonedFLState, params: Float[Array, " d"], signs: Float[Array, " d"]
    ) -> Float[Array, ""]:
        """c, after the test of the period where this round ends one."""
        d = params.shape[0]
        moved = params - state.start
        moved = jnp.where(moved == 0, params, moved)
        along = jnp.sum(jnp.sign(moved) == signs)
        held_back = along < math.ceil(d / 2 + CERTAIN * math.sqrt(d) / 2)
        smaller = state.factor * jnp.asarray(self.decay, state.factor.dtype)
        ends: Bool[Array, ""] = (state.rounds > 0) & (state.rounds % self.period == 0)
        allowed = smaller >= jnp.asarray(self.least, smaller.dtype)
        return jnp.where(ends & held_back & allowed, smaller, state.factor)
