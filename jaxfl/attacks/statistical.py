"""ALIE, IPM, Min-Max and Min-Sum: rows made of the mean and deviation of the known updates."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.attacks.informed import AttackByMoments, InformedAttack, mean_and_std, mean_of_known
from jaxfl.attacks.views import AttackView
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics import columns, rows
from jaxfl.numerics.gram import centred_gram, squared_distances
from jaxfl.numerics.stream import Stream
from jaxfl.types import State

DIRECTIONS = ("std", "unit", "sign")


class ALIE(AttackByMoments):
    """A little is enough: all attackers send ``mean + sign * z * std`` of the known updates.

    With ``z=None``, z follows from the numbers of clients and attackers in the cohort, see
    ``z_max``. With few attackers that is 0, and they send the mean.
    Baruch, Baruch, Goldberg, "A little is enough", NeurIPS 2019.

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) == 4
    >>> [f"{x:.2f}" for x in ALIE(z=1.0)(updates, byzantine)[4]]
    ['1.18', '0.18']
    """

    z: Scalar | None = field(default=None)
    """How many standard deviations from the mean; none: as many as hide."""
    sign: int = field(default=-1, choices=(-1, 1))
    """Which side of the mean."""
    streams = capability(True)

    @classmethod
    def example(cls) -> InformedAttack:
        return cls(z=1.5)

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "1 d"], State]:
        mean, std = mean_and_std(view.updates, self.known(view))
        z = self.z
        if z is None:
            z = supported(jnp.sum(view.honest) + view.count, view.count)
        return (mean + self.sign * jnp.asarray(z, mean.dtype) * std)[None], state


def z_max(n: int, m: int) -> float:
    """The largest z at which ALIE's m attackers among n clients still hide, never below 0.

    ``Phi^-1((n - floor(n/2 + 1)) / (n - m))``, Phi being the standard normal distribution
    function: if honest values are normal, enough of them lie beyond the attackers' that the two
    together are expected to be a majority.

    Raises:
      ValueError: m is negative or not below n.
    """
    if not 0 <= m < n:
        raise ValueError(f"z_max needs 0 <= m < n; got n = {n}, m = {m}")
    return float(supported(jnp.asarray(n), jnp.asarray(m)))


def supported(n: Int[Array, ""], m: Int[Array, ""]) -> Float[Array, ""]:
    """As ``z_max``, of numbers that are known at run time only; finite for every m."""
    # If attackers are the majority, the share is 1 or more and z infinite, so it is capped.
    share = jnp.minimum((n - (n // 2 + 1)) / jnp.maximum(n - m, 1), (n - 1) / n)
    return jnp.maximum(jax.scipy.stats.norm.ppf(share), 0)


class IPM(AttackByMoments):
    """Inner-product manipulation: all attackers send ``-scale`` times the known mean.

    A small scale (0.1) defeats distance-based rules where the variance is large. With h honest
    clients and m attackers, a scale above h / m reverses the mean of all messages.
    Xie, Koyejo, Gupta, "Fall of empires", UAI 2019 (where the scale is called epsilon).

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) == 4
    >>> IPM(scale=1.0)(updates, byzantine)[4].round(2)
    Array([-2., -1.], dtype=float32)
    """

    scale: Scalar = field(default=0.1, at_least=0)
    """Multiplies the known mean, which is turned around."""
    streams = capability(True)

    @classmethod
    def example(cls) -> InformedAttack:
        return cls(scale=0.5)

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "1 d"], State]:
        mean = mean_of_known(view.updates, self.known(view))
        return -jnp.asarray(self.scale, mean.dtype) * mean[None], state


def direction_of(
    kind: str, mean: Float[Array, " d"], std: Float[Array, " d"]
) -> Float[Array, " d"]:
    """The direction p of a perturbation: ``-std``, ``-mean / |mean|`` or ``-sign(mean)``."""
    if kind == "std":
        return -std
    if kind == "sign":
        return -jnp.sign(mean)
    return -rows.safe_ratio(mean, jnp.linalg.norm(mean))


def offsets(
    updates: rows.Rows,
    known: Bool[Array, " n"],
    mean: Float[Array, " d"],
    direction: Float[Array, " d"],
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """``|mean - g_i|^2`` and ``<mean - g_i, direction>`` of the known rows; 0 for others."""
    if isinstance(updates, Stream):
        return updates.map(lambda block, index: offsets(block, known[index], mean, direction))

    def block_sums(block: Array, mean: Array, direction: Array) -> Array:
        away = jnp.where(known[:, None], mean[None] - block.astype(mean.dtype), 0)
        along = jnp.matmul(away, direction, precision="highest")
        return jnp.stack([jnp.sum(jnp.square(away), axis=1), along])

    squares, along = columns.sum_columns(block_sums, updates, mean, direction, width=rows.WIDTH)
    return squares, along


class MinMax(AttackByMoments):
    """All attackers send ``mean + gamma p``, no farther from any update than two updates are.

    The row sent is x, the known updates are g_i, and gamma is the largest number at which
    ``max_i |x - g_i| <= max_ij |g_i - g_j|``. It needs no search: each update gives a quadratic
    equation. The ``direction`` p is minus the standard deviation of each coordinate
    (``"std"``), minus the mean at length 1 (``"unit"``), or minus its signs (``"sign"``).

    Shejwalkar, Houmansadr, "Manipulating the Byzantine", NDSS 2021.

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) == 4
    >>> [f"{x:.2f}" for x in MinMax()(updates, byzantine)[4]]
    ['1.18', '0.18']
    """

    direction: str = field(default="std", choices=DIRECTIONS)
    """Minus the deviations, the unit mean, or the mean's signs."""

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "1 d"], State]:
        known = self.known(view)
        mean, std = mean_and_std(view.updates, known)
        p = direction_of(self.direction, mean, std)
        squares, along = offsets(view.updates, known, mean, p)
        pilot = rows.median_row(squares, known)
        nothing = jnp.zeros((0, p.shape[0]), view.updates.dtype)
        gram = centred_gram(view.updates, nothing, known, pilot)
        distances = squared_distances(gram, known)
        reach = jnp.max(jnp.where(jnp.isfinite(distances), distances, 0))
        size = rows.squared_norms(p)
        # |mean + gamma p - g_i|^2 = squares + 2 gamma along + gamma^2 size, at most reach.
        room = jnp.maximum(reach - squares, 0)
        root = jnp.sqrt(jnp.square(along) + size * room)
        largest = jnp.where(
            along > 0, rows.safe_ratio(room, root + along), rows.safe_ratio(root - along, size)
        )
        gamma = jnp.min(jnp.where(known, largest, jnp.inf))
        return (mean + jnp.where(jnp.any(known) & (size > 0), gamma, 0) * p)[None], state


class MinSum(AttackByMoments):
    """As MinMax, but with the sum of squared distances bounded by that of one of the updates.

    In symbols, ``sum_i |x - g_i|^2 <= max_i sum_j |g_i - g_j|^2``. With ``bound="min"`` the right
    side is the least of these sums, as in the authors' code. Deviations from the mean sum to 0, so
    the largest gamma is a distance divided by |p|: that of the farthest (with ``"min"``, the
    nearest) update from the mean. ``direction`` as in MinMax.

    Shejwalkar, Houmansadr, "Manipulating the Byzantine", NDSS 2021.

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) == 4
    >>> [f"{x:.2f}" for x in MinSum()(updates, byzantine)[4]]
    ['1.29', '0.29']
    """

    direction: str = field(default="std", choices=DIRECTIONS)
    """Minus the deviations, the unit mean, or the mean's signs."""
    bound: str = field(default="max", choices=("max", "min"))
    """Whose sum of squared distances is not exceeded: the largest, or the least."""
    streams = capability(True)

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "1 d"], State]:
        known = self.known(view)
        mean, std = mean_and_std(view.updates, known)
        p = direction_of(self.direction, mean, std)
        squares, _ = offsets(view.updates, known, mean, p)
        if self.bound == "max":
            reach = jnp.max(jnp.where(known, squares, 0))
        else:
            reach = jnp.min(jnp.where(known, squares, jnp.inf))
        gamma = rows.safe_sqrt(rows.safe_ratio(reach, rows.squared_norms(p)))
        return (mean + jnp.where(jnp.any(known), gamma, 0) * p)[None], state
