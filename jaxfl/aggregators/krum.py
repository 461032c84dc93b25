"""Krum and Multi-Krum: updates that lie close to many others."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.aggregators.base import needs_more_than
from jaxfl.aggregators.statistics import Statistics
from jaxfl.aggregators.weighting import WeightingRule
from jaxfl.component import capability, field
from jaxfl.numerics.order import smallest
from jaxfl.numerics.rows import safe_ratio, safe_sqrt
from jaxfl.types import Context, Info, State, present_count


def krum_scores(
    squared_distances: Float[Array, "n n"], neighbours: Int[Array, ""] | int, power: int = 2
) -> Float[Array, " n"]:
    """Sum of powers of each row's distances to its nearest other rows; +inf where undefined.

    Args:
      squared_distances: symmetric, +inf to rows that do not count.
      neighbours: how many of the other rows to sum over, at least 1.
      power: 1, 2 or 4, of the distance; fourth powers come in units common to all rows, in which
        they neither overflow nor vanish.
    """
    others = _others(squared_distances)
    return _summed(others, smallest(others, jnp.maximum(neighbours, 1)), power)


def krum_picks(
    squared_distances: Float[Array, "n n"],
    usable: Bool[Array, " n"],
    picks: int,
    neighbours: Int[Array, ""] | int,
    *,
    least: int = 1,
    power: int = 2,
) -> Bool[Array, "picks n"]:
    """The winners of several rounds of Krum; each winner is removed before the next round.

    In round t, counted from 0, every row that is left is scored by its distances to its
    ``max(neighbours - t, least)`` nearest rows that are left, and the smallest score wins. With 0
    neighbours the first row left wins. Once no usable row is left, a round has no winner.

    Cost: O(n^2) a round, because sets of neighbours are kept from round to round. Every round
    counts one neighbour fewer. A row that had the winner among its neighbours loses just that
    one; any other row drops its farthest neighbour.
    """
    n = squared_distances.shape[0]
    others = _others(squared_distances)
    index = jnp.arange(n)[:, None]

    def pick(t: Array | int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        left, near, won = carry
        nearest = jnp.min(jnp.where(left[:, None], others, jnp.inf), axis=0)
        count = jnp.maximum(neighbours - t, least)
        scores = jnp.where(
            count > 1, _summed(others, near, power), jnp.where(count > 0, nearest, 0)
        )
        # A row whose score overflows still comes before those that are gone.
        scores = jnp.where(left, jnp.minimum(scores, jnp.finfo(scores.dtype).max), jnp.inf)
        best = jnp.argmin(scores)
        winner = index[:, 0] == best
        lost = near[best]
        near = near & ~winner[:, None]
        farthest = jnp.max(jnp.where(near, others, -1), axis=0)
        last = jnp.max(jnp.where(near & (others == farthest[None]), index, -1), axis=0)
        near = near & (lost[None] | (index != last[None]))
        return left & ~winner, near, won.at[t].set(winner & left)

    near = smallest(others, jnp.maximum(neighbours, 1))
    start = usable, near, jnp.zeros((picks, n), bool)
    return jax.lax.fori_loop(0, picks, pick, start)[2]


def _others(squared_distances: Array) -> Array:
    itself = jnp.eye(squared_distances.shape[0], dtype=bool)
    return jax.lax.stop_gradient(jnp.where(itself, jnp.inf, squared_distances))


def _summed(others: Array, near: Array, power: int, noise: Array | float = 0.0) -> Array:
    kept = jnp.where(near, others + noise, 0)
    if power == 1:
        kept = safe_sqrt(kept)
    if power == 4:
        reach = jnp.min(jnp.max(jnp.where(near, others, 0), axis=0))
        kept = jnp.square(kept / jnp.where((reach > 0) & jnp.isfinite(reach), reach, 1))
    return jnp.sum(kept, axis=0)


def _rounding(statistics: Statistics) -> Array:
    """What squared distances made of inner products may be off by."""
    assert statistics.gram is not None
    squares = jnp.diagonal(statistics.gram)
    noise = 8 * jnp.finfo(squares.dtype).eps * (squares[:, None] + squares[None, :])
    return jax.lax.stop_gradient(jnp.where(jnp.isfinite(noise), noise, 0))


def _answer(
    statistics: Statistics, selected: Bool[Array, " n"], scores: Float[Array, " n"]
) -> tuple[Array, Info]:
    selected = selected & statistics.usable
    weights = selected.astype(scores.dtype)
    weights = safe_ratio(weights, jnp.sum(weights))
    return weights, Info(selected=selected, weights=weights, scores=scores)


def _check_neighbours(rule: "Krum | MultiKrum", n: int) -> None:
    needs_more_than(rule, n, 2 * rule.f + 3, "n >= 2f + 3")
    if rule.neighbours is not None and rule.neighbours > n - rule.f - 1:
        raise ValueError(
            f"{type(rule).__name__} needs neighbours <= n - f - 1; "
            f"got neighbours = {rule.neighbours}, n = {n}, f = {rule.f}"
        )


class Krum(WeightingRule):
    """The one update with the smallest sum of squared distances to its nearest others.

    ``neighbours`` of them count, n - f - 2 unless given (ByzFL counts n - f - 1, the code of
    Shejwalkar and Houmansadr n - f - 3); ``power`` is the power of the distance that is summed
    (1 and 4 also occur in published codes). Needs n >= 2f + 3. Among scores
    that are equal up to rounding the first client wins. ``info.scores`` holds the scores, lower
    is better; with ``power=4`` up to a common factor.

    Cost: three reads of the matrix and n^2 d multiply-adds. Fails: inner-product manipulation
    with a small factor, ALIE, any f equal updates near the cluster; and it follows one client,
    so its variance is that of one client.
    Blanchard et al., "Machine learning with adversaries", NeurIPS 2017.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> Krum(f=1)(updates).round(2)
    Array([2., 2.], dtype=float32)
    """

    f: int = field(at_least=0)
    neighbours: int | None = field(default=None, at_least=1)
    """How many of the nearest others count; none: n - f - 2."""
    power: int = field(default=2, choices=(1, 2, 4))
    """Power of the distance that is summed."""
    accepts_absent = capability(True)
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)
    differentiable = capability(True)

    def check(self, n: int) -> None:
        _check_neighbours(self, n)

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " n"], Info]:
        # Rows dropped as non-finite are clients, and count among the f.
        count = present_count(context, statistics.usable.shape[0]) - self.f - 2
        neighbours = count if self.neighbours is None else self.neighbours
        others = _others(statistics.squared_distances())
        near = smallest(others, jnp.maximum(neighbours, 1))
        scores = _summed(others, near, self.power)
        # The smallest true score is no larger than this; what is not above it ties.
        most = jnp.min(_summed(others, near, self.power, _rounding(statistics)))
        best = jax.nn.one_hot(jnp.argmax(scores <= most), scores.shape[0], dtype=bool)
        return _answer(statistics, best, scores)


class MultiKrum(WeightingRule):
    """The mean of the q updates with the best Krum scores; q = n - f - 2 unless given.

    ``iterative`` picks the best, removes it and scores the rest again, with one neighbour fewer,
    until q are picked: n - 2f - 2 unless given (Shejwalkar and Houmansadr, "Manipulating the
    Byzantine", NDSS 2021; their code has ``neighbours=n-f-3``). ``neighbours``, ``power`` and
    ``info.scores`` (those of the first round) as for Krum.

    Needs n >= 2f + 3; q <= n - f, or n - f - 2 where iterative. Cost: as Krum; O(n^2) more for
    each iterative pick. Fails: as Krum, with less variance.
    Blanchard et al., "Machine learning with adversaries", NeurIPS 2017.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> MultiKrum(f=1).inspect(updates).info.selected.tolist()
    [True, True, False, False, True, True, False]
    """

    f: int = field(at_least=0)
    q: int | None = field(default=None, at_least=1)
    """How many updates are averaged; none: n - f - 2, or n - 2f - 2 where iterative."""
    neighbours: int | None = field(default=None, at_least=1)
    """How many of the nearest others count; none: n - f - 2."""
    power: int = field(default=2, choices=(1, 2, 4))
    """Power of the distance that is summed."""
    iterative: bool = False
    """Whether the others are scored again after each pick."""
    accepts_absent = capability(True)
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)
    differentiable = capability(True)

    def check(self, n: int) -> None:
        _check_neighbours(self, n)
        most, bound = (n - self.f - 2, "n - f - 2") if self.iterative else (n - self.f, "n - f")
        if self.q is not None and self.q > most:
            raise ValueError(
                f"MultiKrum needs q <= {bound}; got q = {self.q}, n = {n}, f = {self.f}"
            )

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " n"], Info]:
        distances = statistics.squared_distances()
        count = present_count(context, distances.shape[0]) - self.f - 2
        neighbours = count if self.neighbours is None else self.neighbours
        scores = krum_scores(distances, neighbours, self.power)
        if not self.iterative:
            kept = jnp.maximum(count, 1) if self.q is None else self.q
            return _answer(statistics, smallest(scores[:, None], kept)[:, 0], scores)
        rounds = scores.shape[0] - 2 * self.f - 2 if self.q is None else self.q
        kept = jnp.maximum(count - self.f, 1) if self.q is None else self.q
        picks = krum_picks(distances, statistics.usable, rounds, neighbours, power=self.power)
        selected = jnp.any(picks & (jnp.arange(rounds) < kept)[:, None], axis=0)
        return _answer(statistics, selected, scores)
