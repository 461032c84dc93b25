"""An attack that climbs on the damage it does, by gradients through and trials of the defence."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxfl.attacks.base import Attack
from jaxfl.attacks.informed import InformedAttack, check_inner, mean_and_std
from jaxfl.attacks.search import harm
from jaxfl.attacks.statistical import offsets
from jaxfl.attacks.views import AttackView
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics import rows
from jaxfl.numerics.noise import normal
from jaxfl.types import Spec, State, Struct

FIRST_STEP = 0.5
"""In units of the spread."""
LONGER, SHORTER = 1.5, 0.6
"""How the step changes after an iteration that helped, and after one that did not."""


class GradientAttack(InformedAttack):
    """Moves the row that all attackers send to where the defence's answer is farthest off.

    The damage is ``|defence(updates) - mean|``, with the mean of the known updates. The row stays
    in a ball around that mean, of ``radius`` times the distance of the farthest known update.
    Every iteration tries these moves on the defence and takes the best, if it does more damage:

    - along the gradient through the defence, at a point shifted at random by ``smoothing`` times
      each coordinate's deviation: it then also sees beyond the edge of a selection;
    - along the signs of that gradient, in units of each coordinate's deviation;
    - in a random direction spanned by the known updates, as a rule that selects may have no
      gradient at all;
    - farther out, and farther in;
    - to the other side of the mean, in those coordinates where the defence gives way more there.

    It starts at the most damaging of ``starts`` (attacks on messages, cut to the ball), or, if
    there are none, at a random place around the mean.

    Cost: 8 runs of the defence and a gradient through it for each of ``iterations``. Ours.

    >>> GradientAttack().threat_model
    ('its messages', 'all honest updates; tries the defence')
    """

    name = "gradient"

    iterations: int = field(default=30, at_least=1)
    """Moves in a round."""
    radius: Scalar = field(default=1.0, above=0)
    """Of the ball, in units of the farthest known update's distance from the mean."""
    smoothing: Scalar = field(default=0.5, at_least=0)
    """Random shift of where gradients are taken, in units of each coordinate's deviation."""
    starts: tuple[Attack, ...] = ()
    """Attacks on messages whose most damaging row is the start."""
    probes = capability(True)

    @classmethod
    def example(cls) -> InformedAttack:
        return cls(iterations=3)

    def __post_init__(self) -> None:
        super().__post_init__()
        for start in self.starts:
            check_inner(self, start)

    @capability
    def follows_model(self) -> bool:
        return any(start.follows_model for start in self.starts)

    def init(self, spec: Spec) -> State:
        return tuple(start.init(spec) for start in self.starts)

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "1 d"], State]:
        known = self.known(view)
        mean, std = mean_and_std(view.updates, known)
        squares, _ = offsets(view.updates, known, mean, std)
        radius = jnp.asarray(self.radius, mean.dtype)
        climb = _Climb(
            updates=view.updates,
            rehearsed=self.rehearsal(view),
            known=known,
            mean=mean,
            std=std,
            ball=radius * jnp.sqrt(jnp.max(squares)),
            smoothing=jnp.asarray(self.smoothing, mean.dtype),
        )
        start_key, climb_key = jax.random.split(view.key)
        if self.starts:
            places, state = self._starts(view.replace(key=start_key), state)
            places = jax.vmap(climb.cut)(places.astype(mean.dtype) - mean[None])
        else:
            place = FIRST_STEP * std * normal(start_key, std.shape, mean.dtype)
            places = climb.cut(place)[None]
        values = jax.lax.map(climb.damage, places)
        best = _first_best(values)
        start = places[best], values[best], jnp.asarray(FIRST_STEP, mean.dtype)
        keys = jax.random.split(climb_key, self.iterations)
        (place, *_), _ = jax.lax.scan(climb.iterate, start, keys)
        return (mean + place)[None], state

    def _starts(self, view: AttackView, state: State) -> tuple[Array, State]:
        """The first row of each start."""
        crafted, memories = [], []
        for i, attack in enumerate(self.starts):
            own = view.replace(key=jax.random.fold_in(view.key, i))
            sent, memory = attack.craft(own, state[i])
            crafted.append(sent[0])
            memories.append(memory)
        return jnp.stack(crafted), tuple(memories)


class _Climb(Struct):
    """What all iterations of one round share. Places are offsets from the mean."""

    updates: Float[Array, "n d"]
    rehearsed: AttackView
    known: Bool[Array, " n"]
    mean: Float[Array, " d"]
    std: Float[Array, " d"]
    ball: Float[Array, ""]
    smoothing: Float[Array, ""]

    def answer(self, offset: Array) -> Array:
        """What the defence answers if all attackers send this place."""
        sent = self.rehearsed.send((self.mean + offset)[None])
        return self.rehearsed.defence.probe(sent).astype(self.mean.dtype)

    def damage(self, offset: Array) -> Array:
        return harm(self.answer(offset), self.mean)

    def slope(self, offset: Array) -> Array:
        """The gradient of the squared damage; the damage itself has none where it is 0."""
        climbed = jax.grad(lambda u: jnp.sum(jnp.square(self.answer(u) - self.mean)))(offset)
        return jnp.where(jnp.isfinite(climbed), climbed, 0)

    def cut(self, offset: Array) -> Array:
        """The nearest place within the ball."""
        length = jnp.linalg.norm(offset)
        return offset * jnp.where(length > self.ball, rows.safe_ratio(self.ball, length), 1)

    def moves(self, place: Array, step: Array, key: Array) -> Float[Array, "moves d"]:
        """The places to try next."""
        dtype, mean, std, spread = place.dtype, self.mean, self.std, jnp.linalg.norm(self.std)
        shift_key, mix_key = jax.random.split(key)
        shift = self.smoothing * std
        gradient = self.slope(self.cut(place + shift * normal(shift_key, place.shape, dtype)))
        shares = jnp.where(self.known, normal(mix_key, self.known.shape, dtype), 0)
        mix = rows.weighted_sum(shares, self.updates, mean[None][:0]) - jnp.sum(shares) * mean
        here, mirrored = (jnp.abs(self.answer(u) - mean) for u in (place, -place))
        # Where the answer is what was sent, both sides are equally far up to rounding.
        noise = _margin(dtype) * (jnp.abs(mean) + here)
        moves = jnp.stack(
            [
                place + step * std * jnp.sign(gradient),
                place + step * spread * _unit(gradient),
                place + step * spread * _unit(mix),
                place * (1 + step),
                place / (1 + step),
                jnp.where(mirrored > here + noise, -place, place),
            ]
        )
        return jax.vmap(self.cut)(moves)

    def iterate(self, carry: tuple[Array, ...], key: Array) -> tuple[tuple[Array, ...], None]:
        """One step of the scan: the best move is taken if it is better than staying."""
        place, value, step = carry
        moves = self.moves(place, step, key)
        values = jax.lax.map(self.damage, moves)
        best = _first_best(values)
        better = values[best] > value * (1 + _margin(value.dtype))
        place = jnp.where(better, moves[best], place)
        step = step * jnp.where(better, LONGER, SHORTER)
        return (place, jnp.maximum(value, values[best]), step), None


def _margin(dtype: jnp.dtype) -> float:
    """Relative differences of damage below it are rounding."""
    return 64 * float(jnp.finfo(dtype).eps)


def _first_best(values: Float[Array, " moves"]) -> Array:
    """The first of those that do the most damage.

    Far out, a median answers the same whatever it is sent: rounding, which differs by machine and
    by number of devices, must not choose among such moves.
    """
    return jnp.argmax(values >= jnp.max(values) * (1 - _margin(values.dtype)))


def _unit(vector: Array) -> Array:
    return rows.safe_ratio(vector, jnp.linalg.norm(vector))
