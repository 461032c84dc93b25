"""Attacks that search along a line for the strength that hurts the actual defence most."""

import abc
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.attacks.informed import InformedAttack, mean_and_std
from jaxfl.attacks.statistical import DIRECTIONS, direction_of
from jaxfl.attacks.views import AttackView
from jaxfl.component import capability, field
from jaxfl.numerics import rows
from jaxfl.types import State

Damage = Callable[[Array], Array]
GOLDEN = 0.6180339887498949


def grid_then_golden(damage: Damage, low: float, high: float, probes: int) -> Float[Array, ""]:
    """Where the damage is largest: the best of a logarithmic grid, then golden sections around it.

    Two thirds of the probes go to the grid. The best place probed is returned, so a damage with
    several peaks is never answered with less than the best of the grid.
    """
    count = max(2, probes * 2 // 3)
    grid = jnp.geomspace(low, high, count)
    values = jax.lax.map(damage, grid)
    best = jnp.argmax(values)
    left, right = grid[jnp.maximum(best - 1, 0)], grid[jnp.minimum(best + 1, count - 1)]

    def narrow(carry: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], None]:
        left, right, place, value = carry
        # The new probe lies in the longer part beside the best one.
        longer = right - place > place - left
        part = jnp.where(longer, right - place, left - place)
        probe = place + (1 - GOLDEN) * part
        hurt = damage(probe)
        better = hurt > value
        new_left = jnp.where(better, jnp.where(longer, place, left), jnp.where(longer, left, probe))
        new_right = jnp.where(
            better, jnp.where(longer, right, place), jnp.where(longer, probe, right)
        )
        place, value = jnp.where(better, probe, place), jnp.where(better, hurt, value)
        return (new_left, new_right, place, value), None

    start = (left, right, grid[best], values[best])
    (_, _, place, _), _ = jax.lax.scan(narrow, start, None, length=probes - count)
    return place


def expand_then_contract(damage: Damage, step: float, probes: int) -> Float[Array, ""]:
    """Where the damage is largest: doubling steps from 0 while it grows, then shrinking ones.

    Every step starts from the best place so far. From the first that does not help on, each is
    0.8 times as long as the one before.
    """

    def probe(carry: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], None]:
        place, value, step, expanding = carry
        hurt = damage(place + step)
        better = hurt > value
        expanding = expanding & better
        place = jnp.where(better, place + step, place)
        step = jnp.where(expanding, 2 * step, 0.8 * step)
        return (place, jnp.maximum(hurt, value), step, expanding), None

    zero = jnp.zeros(())
    start = (zero, damage(zero), jnp.asarray(step), jnp.array(True))
    (place, *_), _ = jax.lax.scan(probe, start, None, length=probes - 1)
    return place


def harm(answer: Float[Array, " d"], mean: Float[Array, " d"]) -> Float[Array, ""]:
    """How far the defence's answer is from the honest mean; 0 if the answer is not finite."""
    distance = jnp.linalg.norm(answer.astype(mean.dtype) - mean)
    return jnp.where(jnp.isfinite(distance), distance, 0)


class LineSearch(InformedAttack):
    """Sends the point of a line at which the defence's answer is farthest from the honest mean.

    Abstract: a subclass says which line. ``search``: ``"grid"`` (a logarithmic grid, then golden
    sections) or ``"expansion"`` (doubling, then contracting steps; what ByzFL does). Each probe
    runs the defence once on the whole matrix; ``evaluations`` of them a round.
    """

    search: str = field(default="grid", choices=("grid", "expansion"))
    """How points of the line are tried."""
    evaluations: int = field(default=32, at_least=4)
    """Runs of the defence in a round."""
    probes = capability(True)

    @classmethod
    def example(cls) -> InformedAttack:
        return cls(evaluations=9)

    @abc.abstractmethod
    def line(
        self, mean: Float[Array, " d"], std: Float[Array, " d"]
    ) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """Where the line starts, and its direction."""

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "1 d"], State]:
        known = self.known(view)
        mean, std = mean_and_std(view.updates, known)
        start, direction = self.line(mean, std)
        rehearsed = self.rehearsal(view)

        def damage(strength: Array) -> Array:
            row = start + strength.astype(mean.dtype) * direction
            return harm(rehearsed.defence.probe(rehearsed.send(row[None])), mean)

        if self.search == "expansion":
            strength = expand_then_contract(damage, 10.0, self.evaluations)
        else:
            strength = grid_then_golden(damage, 1e-2, 1e2, self.evaluations)
        return (start + strength.astype(mean.dtype) * direction)[None], state


class AGRTailored(LineSearch):
    """``mean + gamma p`` with the gamma that moves the actual defence farthest from the mean.

    ``direction`` p as in MinMax, here scaled to the length of the vector of standard deviations,
    so that gamma is in units of the spread. The paper tailors the attack to each rule by hand;
    trying out the defence works for every rule.
    Shejwalkar, Houmansadr, "Manipulating the Byzantine", NDSS 2021.

    >>> AGRTailored().threat_model
    ('its messages', 'all honest updates; tries the defence')
    """

    direction: str = field(default="std", choices=DIRECTIONS)
    """Minus the deviations, the unit mean, or the mean's signs."""

    def line(
        self, mean: Float[Array, " d"], std: Float[Array, " d"]
    ) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        p = direction_of(self.direction, mean, std)
        return mean, rows.safe_ratio(jnp.linalg.norm(std), jnp.linalg.norm(p)) * p


class OptimizedALIE(LineSearch):
    """ALIE with the z that moves the actual defence farthest: ``mean + sign z std``.

    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by mixing", AISTATS 2023
    (where the search is ``"expansion"`` with 20 evaluations, as in ByzFL).

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) == 4
    >>> [f"{x:.2f}" for x in OptimizedALIE()(updates, byzantine, defence=jaxfl.Mean())[4]]
    ['-79.65', '-80.65']
    """

    sign: int = field(default=-1, choices=(-1, 1))
    """Which side of the mean."""

    def line(
        self, mean: Float[Array, " d"], std: Float[Array, " d"]
    ) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        return mean, self.sign * std


class OptimizedIPM(LineSearch):
    """IPM with the scale that moves the actual defence farthest: ``-scale mean``.

    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by mixing", AISTATS 2023
    (where the search is ``"expansion"`` with 20 evaluations, as in ByzFL).

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) == 4
    >>> OptimizedIPM()(updates, byzantine, defence=jaxfl.Mean())[4].round(2)
    Array([-200., -100.], dtype=float32)
    """

    @classmethod
    def example(cls) -> InformedAttack:
        return cls(evaluations=9, search="expansion")

    def line(
        self, mean: Float[Array, " d"], std: Float[Array, " d"]
    ) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        return jnp.zeros_like(mean), -mean
