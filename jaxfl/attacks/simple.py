"""Attacks on messages that need no more than the attacker's own update."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxfl.attacks.base import ALL, NOTHING, OWN, Attack
from jaxfl.attacks.informed import mean_of_known
from jaxfl.attacks.views import AttackView
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics.noise import normal
from jaxfl.numerics.rows import accumulator
from jaxfl.types import State


def _normal(view: AttackView) -> Array:
    shape = (view.attackers.shape[0], view.updates.shape[1])
    return normal(view.key, shape, accumulator(view.updates.dtype))


class Gaussian(Attack):
    """Independent ``N(mean, std^2)`` noise in every coordinate instead of an update.

    Xu et al., "Byzantine-robust federated learning through collaborative malicious gradient
    filtering", ICDCS 2022 (as "random", with std 0.5).

    >>> Gaussian().threat_model
    ('its messages', 'nothing')
    """

    mean: Scalar = field(default=0.0)
    """Of every coordinate."""
    std: Scalar = field(default=0.5, at_least=0)
    """Of every coordinate, a standard deviation."""
    knows = capability(NOTHING)
    crafts = capability(True)
    streams = capability(True)

    @classmethod
    def example(cls) -> Attack:
        return cls(mean=1.0, std=2.0)

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "a d"], State]:
        noise = _normal(view)
        mean, std = jnp.asarray(self.mean, noise.dtype), jnp.asarray(self.std, noise.dtype)
        return mean + std * noise, state


class Noise(Attack):
    """Each attacker's own honest update plus independent ``N(0, std^2)`` in every coordinate.

    Xu et al., "Byzantine-robust federated learning through collaborative malicious gradient
    filtering", ICDCS 2022.

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) == 4
    >>> changed = Noise()(updates, byzantine) != updates
    >>> changed.any(axis=1).tolist()
    [False, False, False, False, True]
    """

    std: Scalar = field(default=0.5, at_least=0)
    """Standard deviation of the noise."""
    crafts = capability(True)
    knows = capability(OWN)
    streams = capability(True)

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "a d"], State]:
        noise = _normal(view)
        return view.own_rows() + jnp.asarray(self.std, noise.dtype) * noise, state


class SignFlip(Attack):
    """The negative of an honest update: of each attacker's own, or of the honest mean.

    With ``of="own"`` norms stay as they are, so no screening by norms can see it.

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) == 4
    >>> SignFlip()(updates, byzantine)[4].round(2)
    Array([-4., -4.], dtype=float32)
    """

    of: str = field(default="own", choices=("own", "mean"))
    """Whose update is turned around: each attacker's own, or the honest mean."""
    crafts = capability(True)
    streams = capability(True)

    @capability
    def knows(self) -> str:
        return OWN if self.of == "own" else ALL

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "a_or_1 d"], State]:
        if self.of == "own":
            return -view.own_rows(), state
        return -mean_of_known(view.updates, view.honest)[None], state


class Scaling(Attack):
    """Each attacker's own update times ``factor``: model replacement.

    ``Combined(data=Backdoor(), message=Scaling(factor=...))`` also poisons what they train on.
    With the factor ``n / (m * learning_rate)``, of the server's learning rate, the mean becomes
    the attackers' own model.
    Bagdasaryan et al., "How to backdoor federated learning", AISTATS 2020.

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) == 4
    >>> Scaling(factor=10.0)(updates, byzantine)[4].round(2)
    Array([40., 40.], dtype=float32)
    """

    factor: Scalar = field(above=0)
    """Multiplies the attackers' updates."""
    crafts = capability(True)
    knows = capability(OWN)
    streams = capability(True)

    @classmethod
    def example(cls) -> Attack:
        return cls(factor=3.0)

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "a d"], State]:
        own = view.own_rows()
        return jnp.asarray(self.factor, own.dtype) * own, state


class ReverseScaling(Attack):
    """Each attacker's own honest update times ``-factor``.

    Xu et al., "Byzantine-robust federated learning through collaborative malicious gradient
    filtering", ICDCS 2022 (there the factor is 100, or what a clipping defence lets through).

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) == 4
    >>> ReverseScaling(factor=10.0)(updates, byzantine)[4].round(2)
    Array([-40., -40.], dtype=float32)
    """

    factor: Scalar = field(default=100.0, at_least=0)
    """Multiplies the attackers' updates, which are turned around."""
    crafts = capability(True)
    knows = capability(OWN)
    streams = capability(True)

    @classmethod
    def example(cls) -> Attack:
        return cls(factor=3.0)

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "a d"], State]:
        own = view.own_rows()
        return -jnp.asarray(self.factor, own.dtype) * own, state


class _Constant(Attack):
    """The same number in every coordinate. Abstract."""

    value: ClassVar[float]
    knows = capability(NOTHING)
    crafts = capability(True)
    streams = capability(True)

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "1 d"], State]:
        return jnp.full((1, view.updates.shape[1]), self.value, view.updates.dtype), state


class Zero(_Constant):
    """Zeros: a client that contributes nothing.

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) == 4
    >>> Zero()(updates, byzantine)[4].round(2)
    Array([0., 0.], dtype=float32)
    """

    value: ClassVar[float] = 0.0


class NaN(_Constant):
    """Not-a-number in every coordinate: crashed clients, or the cheapest sabotage.

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) == 4
    >>> NaN()(updates, byzantine)[4].round(2)
    Array([nan, nan], dtype=float32)
    """

    name = "nan"

    value: ClassVar[float] = np.nan


class Infinity(_Constant):
    """Plus infinity in every coordinate.

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) == 4
    >>> Infinity()(updates, byzantine)[4].round(2)
    Array([inf, inf], dtype=float32)
    """

    value: ClassVar[float] = np.inf


class BitFlip(Attack):
    """Flips bits of each attacker's own update, in the first ``coordinates`` (None: all).

    ``bits`` are positions in a float32, 0 the least significant; by default the 22nd, 30th, 31st
    and 32nd bit.
    A number that would become NaN stays as it is.
    Xie, Koyejo, Gupta, "Generalized Byzantine-tolerant SGD", arXiv:1802.10116, 2018.

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) == 4
    >>> BitFlip(bits=(31,))(updates, byzantine)[4].round(2)
    Array([-4., -4.], dtype=float32)
    """

    bits: tuple[int, ...] = (21, 29, 30, 31)
    """Positions in a float32, 0 the least significant."""
    coordinates: int | None = field(default=1000, at_least=1)
    """How many coordinates, from the first; none: all."""
    crafts = capability(True)
    knows = capability(OWN)
    streams = capability(True)

    @classmethod
    def example(cls) -> Attack:
        return cls(bits=(31,), coordinates=7)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.bits or not all(0 <= bit < 32 for bit in self.bits):
            raise ValueError(
                f"BitFlip: bits must be positions from 0 to 31, at least one; got {self.bits}"
            )

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "a d"], State]:
        own = view.own_rows()
        flips = np.uint32(sum(1 << bit for bit in set(self.bits)))
        raw = jax.lax.bitcast_convert_type(own.astype(jnp.float32), jnp.uint32)
        flipped = jax.lax.bitcast_convert_type(raw ^ flips, jnp.float32)
        reach = own.shape[1] if self.coordinates is None else self.coordinates
        hit = (jnp.arange(own.shape[1]) < reach)[None] & ~jnp.isnan(flipped)
        return jnp.where(hit, flipped.astype(own.dtype), own), state
