"""Climbing on the damage itself, through the actual defence."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxfl.attacks.base import (
    Attack,
    AttackView,
    Defence,
    InformedAttack,
    check_inner,
    mean_and_std,
)
from jaxfl.attacks.search import harm
from jaxfl.attacks.statistical import offsets
from jaxfl.component import Scalar, field
from jaxfl.numerics import rows
from jaxfl.numerics.noise import normal
from jaxfl.types import Spec, State

FIRST_STEP = 0.5
"""In units of the spread."""
LONGER, SHORTER = 1.5, 0.6
"""How the step changes after an iteration that helped, and after one that did not."""


class GradientAttack(InformedAttack):
    """Moves the row that all attackers send to where the defence's answer is farthest off.

    The damage ``|defence(updates) - mean|`` is climbed within the ball of ``radius`` times the
    distance of the farthest known update around the mean of the known. Every iteration tries
    out several moves on the defence and keeps the best, if it is better: along the gradient
    through the defence, taken at a randomly shifted point (``smoothing`` times the deviation of
    each coordinate, so that it also sees what lies beyond the edge of a selection); along its
    signs, in units of each coordinate's deviation; in a random direction spanned by the known
    updates, where a rule that selects gives no gradient at all; farther out and farther in; and,
    coordinate by coordinate, on whichever side of the mean the defence gives way more.

    It starts at the strongest of ``starts`` (attacks on messages, cut to the ball), or where
    there are none at a random place within the spread.

    Cost: 8 runs of the defence and a gradient through it for each of ``iterations``. Ours.
    """

    iterations: int = field(default=30, at_least=1)
    radius: Scalar = field(default=1.0, above=0)
    smoothing: Scalar = field(default=0.5, at_least=0)
    starts: tuple[Attack, ...] = ()
    probes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for start in self.starts:
            check_inner(self, start)

    @property
    def follows_model(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(start.follows_model for start in self.starts)

    def init(self, spec: Spec) -> State:
        return tuple(start.init(spec) for start in self.starts)

    def craft(
        self,
        updates: Float[Array, "n d"],
        state: State,
        view: AttackView,
        key: Key[Array, ""],
        defence: Defence,
    ) -> tuple[Float[Array, "1 d"], State]:
        known = self.known(view)
        mean, std = mean_and_std(updates, known)
        dtype, spread = mean.dtype, jnp.linalg.norm(std)
        squares, _ = offsets(updates, known, mean, std)
        ball = jnp.asarray(self.radius, dtype) * jnp.sqrt(jnp.max(squares))
        rehearsed = self.rehearsal(updates, view)

        def answer(offset: Array) -> Array:
            return defence.probe(view.send(rehearsed, (mean + offset)[None])).astype(dtype)

        def damage(offset: Array) -> Array:
            return harm(answer(offset), mean)

        def slope(offset: Array) -> Array:
            # Of the square: that of the root has none where the damage is 0.
            climbed = jax.grad(lambda u: jnp.sum(jnp.square(answer(u) - mean)))(offset)
            return jnp.where(jnp.isfinite(climbed), climbed, 0)

        def unit(vector: Array) -> Array:
            return rows.safe_ratio(vector, jnp.linalg.norm(vector))

        def cut(offset: Array) -> Array:
            length = jnp.linalg.norm(offset)
            return offset * jnp.where(length > ball, rows.safe_ratio(ball, length), 1)

        def iterate(carry: tuple[Array, ...], key: Array) -> tuple[tuple[Array, ...], None]:
            place, value, step = carry
            shift_key, mix_key = jax.random.split(key)
            shift = jnp.asarray(self.smoothing, dtype) * std
            gradient = slope(cut(place + shift * normal(shift_key, place.shape, dtype)))
            shares = jnp.where(known, normal(mix_key, known.shape, dtype), 0)
            mix = rows.weighted_sum(shares, updates, mean[None][:0]) - jnp.sum(shares) * mean
            here, mirrored = (jnp.abs(answer(u) - mean) for u in (place, -place))
            moves = jnp.stack(
                [
                    place + step * std * jnp.sign(gradient),
                    place + step * spread * unit(gradient),
                    place + step * spread * unit(mix),
                    place * (1 + step),
                    place / (1 + step),
                    jnp.where(mirrored > here, -place, place),
                ]
            )
            moves = jax.vmap(cut)(moves)
            values = jax.lax.map(damage, moves)
            best = jnp.argmax(values)
            better = values[best] > value
            place = jnp.where(better, moves[best], place)
            step = step * jnp.where(better, LONGER, SHORTER)
            return (place, jnp.maximum(value, values[best]), step), None

        start_key, climb_key = jax.random.split(key)
        if self.starts:
            places, state = self._starts(updates, state, view, start_key, defence)
            places = jax.vmap(cut)(places.astype(dtype) - mean[None])
        else:
            place = FIRST_STEP * std * normal(start_key, std.shape, dtype)
            places = cut(place)[None]
        values = jax.lax.map(damage, places)
        best = jnp.argmax(values)
        start = places[best], values[best], jnp.asarray(FIRST_STEP, dtype)
        keys = jax.random.split(climb_key, self.iterations)
        (place, *_), _ = jax.lax.scan(iterate, start, keys)
        return (mean + place)[None], state

    def _starts(
        self, updates: Array, state: State, view: AttackView, key: Array, defence: Defence
    ) -> tuple[Array, State]:
        """The first row of each start."""
        crafted, memories = [], []
        for i, attack in enumerate(self.starts):
            own_key = jax.random.fold_in(key, i)
            sent, memory = attack.craft(updates, state[i], view, own_key, defence)
            crafted.append(sent[0])
            memories.append(memory)
        return jnp.stack(crafted), tuple(memories)
