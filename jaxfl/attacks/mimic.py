"""Attackers that only repeat: another client's update, or the server's last step."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxfl.attacks.base import ALL, NOTHING, Attack
from jaxfl.attacks.informed import mean_of_known
from jaxfl.attacks.views import AttackView
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics import rows
from jaxfl.numerics.noise import normal
from jaxfl.types import Spec, State, Struct


class MimicState(Struct):
    """What Mimic has seen: the running mean and direction, and whom it settled on."""

    mean: Float[Array, " d"]
    direction: Float[Array, " d"]
    chosen: Int[Array, ""]
    """Id of the client that is copied; -1 before it is settled."""
    rounds: Int[Array, ""]


class Mimic(Attack):
    """All attackers send the update of one honest client: its data count too much.

    ``target`` is that client's index among the honest clients of the cohort. With None the
    attackers choose it: for ``warmup`` rounds they estimate the direction in which honest updates
    vary most (one power iteration a round) and copy the client farthest along it; then they keep
    to the last one chosen. In a round where that client is absent, they copy the farthest present.

    The copies lie among the honest updates, so robust rules keep them. Where clients' data
    differ, the other clients then count too little.
    Karimireddy, He, Jaggi, "Byzantine-robust learning on heterogeneous datasets via bucketing",
    ICLR 2022.

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) == 4
    >>> Mimic(target=2)(updates, byzantine)[4]
    Array([2., 2.], dtype=float32)
    """

    target: int | None = field(default=0, at_least=0)
    """Index of the client that is copied, among the honest of the cohort; none: chosen."""
    warmup: int = field(default=1, at_least=1)
    """Rounds before a client is chosen for good."""
    crafts = capability(True)
    knows = capability(ALL)

    @classmethod
    def example(cls) -> Attack:
        return cls(target=None, warmup=2)

    def init(self, spec: Spec) -> State:
        if self.target is not None:
            return ()
        zero = jnp.zeros((spec.dim,), jnp.promote_types(spec.dtype, "f4"))
        return MimicState(zero, zero, jnp.int32(-1), jnp.int32(0))

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "1 d"], State]:
        if self.target is not None:
            order = jnp.nonzero(view.honest, size=view.updates.shape[0], fill_value=0)[0]
            last = jnp.maximum(jnp.sum(view.honest) - 1, 0)
            row = view.updates[order[jnp.minimum(self.target, last)]]
            return jnp.where(jnp.any(view.honest), row, 0)[None], state

        learning = state.rounds < self.warmup
        learned = self._learn(view, state)
        state = jax.tree.map(lambda new, old: jnp.where(learning, new, old), learned, state)
        along = rows.products(view.updates, state.direction[None])[:, 0]
        farthest = jnp.argmax(jnp.where(view.honest, along, -jnp.inf))
        here = (view.client_ids == state.chosen) & view.honest
        source = jnp.where(jnp.any(here) & ~learning, jnp.argmax(here), farthest)
        settled = jnp.where(learning, view.client_ids[farthest], state.chosen)
        row = jnp.where(jnp.any(view.honest), view.updates[source], 0)
        return row[None], state.replace(chosen=settled, rounds=state.rounds + 1)

    def _learn(self, view: AttackView, state: MimicState) -> MimicState:
        """One step of the power method on all updates seen so far."""
        t = state.rounds.astype(state.mean.dtype)
        mean = (t * state.mean + mean_of_known(view.updates, view.honest)) / (t + 1)
        start = normal(view.key, mean.shape, mean.dtype)
        before = jnp.where(state.rounds == 0, start, state.direction)
        before = rows.safe_ratio(before, jnp.linalg.norm(before))
        # c = sum_i <g_i - mean, z> (g_i - mean)
        along = jnp.dot(mean, before, precision="highest")
        shares = rows.products(view.updates, before[None])[:, 0] - along
        shares = jnp.where(view.honest, shares, 0)
        change = rows.weighted_sum(shares, view.updates, mean[None][:0]) - jnp.sum(shares) * mean
        change = rows.safe_ratio(change, jnp.linalg.norm(change))
        direction = (t * before + change) / (t + 1)
        direction = rows.safe_ratio(direction, jnp.linalg.norm(direction))
        return state.replace(mean=mean, direction=direction)


class FreeRider(Attack):
    """Contributes nothing and pretends to: sends the last aggregate, disguised by noise.

    The message is ``scale * (w_before - w_now) / rate``, from the parameters received in the last
    two rounds and the server's learning rate, plus ``std * (t + 1)^-decay`` times standard normal
    noise; in round t = 0 it is the noise alone. With a scale of 1 it is the last aggregate.

    Lin, Du, Liu, "Free-riders in federated learning: attacks and defenses", arXiv:1911.12560,
    2019; the decaying disguise: Fraboni, Vidal, Lorenzi, AISTATS 2021.

    >>> FreeRider().threat_model
    ('its messages', 'nothing')
    """

    scale: Scalar = field(default=1.0, at_least=0)
    """Multiplies the last aggregate."""
    std: Scalar = field(default=0.0, at_least=0)
    """Standard deviation of the disguise in round 0."""
    decay: Scalar = field(default=1.0, at_least=0)
    """Power of the round by which the disguise shrinks."""
    crafts = capability(True)
    streams = capability(True)
    knows = capability(NOTHING)
    follows_model = capability(True)

    @classmethod
    def example(cls) -> Attack:
        return cls(std=0.1)

    def init(self, spec: Spec) -> State:
        return jnp.zeros((spec.dim,), spec.dtype), jnp.zeros(())

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "a d"], State]:
        assert view.params is not None
        before, rate = state
        last = rows.safe_ratio(before - view.params, rate).astype(view.updates.dtype)
        dtype = rows.accumulator(view.updates.dtype)
        noise = normal(view.key, (view.attackers.shape[0], view.updates.shape[1]), dtype)
        std = jnp.asarray(self.std, dtype) * (view.round + 1.0).astype(dtype) ** -jnp.asarray(
            self.decay, dtype
        )
        sent = jnp.asarray(self.scale, dtype) * last[None] + std * noise
        return sent, self.observe(view, state)

    def observe(self, view: AttackView, state: State) -> State:
        assert view.params is not None
        seen = view.params, view.learning_rate
        return tuple(new.astype(old.dtype) for new, old in zip(seen, state, strict=True))
