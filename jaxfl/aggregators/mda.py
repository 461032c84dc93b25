"""Minimum-diameter averaging."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.aggregators.base import needs_more_than
from jaxfl.aggregators.statistics import Statistics
from jaxfl.aggregators.weighting import WeightingRule
from jaxfl.component import capability, field
from jaxfl.numerics.network import sorting_network
from jaxfl.numerics.rows import safe_ratio, safe_sqrt
from jaxfl.types import Context, Info, State

MOST_EXACT = 16
"""Largest f for which the smallest diameter is searched for: 2^f leaves."""


def smallest_diameter(
    squared_distances: Float[Array, "n n"], f: int
) -> tuple[Bool[Array, " n"], Float[Array, ""]]:
    """The n - f rows of smallest diameter, exactly; the first such set in lexicographic order.

    To shrink the diameter one row of the farthest pair must go: f binary choices. The search is
    run twice: for the diameter, and for every way to stay within it.

    Args:
      squared_distances: only those above the diagonal are read.
      f: how many rows to leave out, 1 <= f < n / 2.

    Returns:
      Which rows are kept, and their squared diameter.

    Cost: O(f^2 n^2) to list the pairs that matter, O(2^f f^2) for each search.
    """
    first, second, length = conflicts(squared_distances, f)
    _, unresolved = _deletions(first, second, length >= 0, f)
    # The pairs come in descending order.
    diameter = jnp.min(jnp.max(jnp.where(unresolved, length[:, None], 0), axis=0))
    deleted, unresolved = _deletions(first, second, length > diameter, f)
    n = squared_distances.shape[0]
    return _first_kept(deleted, ~jnp.any(unresolved, axis=0), n), diameter


def conflicts(
    squared_distances: Float[Array, "n n"], f: int
) -> tuple[Int[Array, " k"], Int[Array, " k"], Float[Array, " k"]]:
    """The longest f (f + 1) + 1 pairs of rows, longest first, at most f + 1 of them at a row.

    Which f rows hit all pairs longer than some length is decided by these alone: a row in more
    than f such pairs must be one of them, and f rows hit at most f (f + 1) of the pairs. Padded
    by pairs of length -1.
    """
    n = squared_distances.shape[0]
    upper = jnp.arange(n)[:, None] < jnp.arange(n)[None, :]
    lengths = jnp.where(upper, squared_distances, -1)

    def take(k: Array | int, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        lengths, degree, first, second, length = carry
        free = degree <= f
        open_lengths = jnp.where(free[:, None] & free[None, :], lengths, -1)
        i = jnp.argmax(jnp.max(open_lengths, axis=1))
        j = jnp.argmax(open_lengths[i])
        return (
            lengths.at[i, j].set(-1),
            degree.at[i].add(1).at[j].add(1),
            first.at[k].set(i.astype(first.dtype)),
            second.at[k].set(j.astype(second.dtype)),
            length.at[k].set(open_lengths[i, j]),
        )

    size = f * (f + 1) + 1
    index = jnp.zeros((size,), jnp.int32)
    start = lengths, jnp.zeros((n,), jnp.int32), index, index, jnp.zeros((size,), lengths.dtype)
    return jax.lax.fori_loop(0, size, take, start)[2:]


def _deletions(
    first: Int[Array, " k"], second: Int[Array, " k"], unresolved: Bool[Array, " k"], f: int
) -> tuple[Int[Array, "f leaves"], Bool[Array, "k leaves"]]:
    """All 2^f ways to delete one row of the longest unresolved pair, f times over.

    Returns the deleted rows of each leaf, -1 where nothing was left to resolve, and the pairs
    still unresolved. Every minimal set of at most f rows that resolves all pairs is a leaf.
    """
    k = first.shape[0]
    deleted = jnp.full((f, 1), -1)
    unresolved = unresolved[:, None]
    for depth in range(f):
        longest = jnp.min(jnp.where(unresolved, jnp.arange(k)[:, None], k), axis=0)
        leaves = []
        for ends in (first, second):
            row = jnp.where(longest < k, ends[jnp.minimum(longest, k - 1)], -1)
            touched = (first[:, None] == row[None]) | (second[:, None] == row[None])
            leaves.append((deleted.at[depth].set(row), unresolved & ~touched))
        deleted, unresolved = (jnp.concatenate(pair, axis=1) for pair in zip(*leaves, strict=True))
    return deleted, unresolved


def _first_kept(
    deleted: Int[Array, "f leaves"], feasible: Bool[Array, " leaves"], n: int
) -> Bool[Array, " n"]:
    """Of the feasible leaves, each filled up by its last rows, the lexicographically first set."""
    f = deleted.shape[0]
    slots = jnp.arange(f)[:, None]
    for row in range(n - 1, n - 1 - f, -1):
        known = jnp.any(deleted == row, axis=0)
        slot = jnp.min(jnp.where(deleted == -1, slots, f), axis=0)
        deleted = jnp.where((slots == slot[None]) & ~known[None], row, deleted)
    rows = list(deleted)
    for i, j in sorting_network(f):
        rows[i], rows[j] = jnp.minimum(rows[i], rows[j]), jnp.maximum(rows[i], rows[j])
    # The first set of kept rows leaves out the last set of deleted ones.
    kept = jnp.ones((n,), bool)
    for row in rows:
        last = jnp.max(jnp.where(feasible, row, -1))
        feasible = feasible & (row == last)
        kept = kept & (jnp.arange(n) != last)
    return kept


def small_diameter(
    squared_distances: Float[Array, "n n"], usable: Bool[Array, " n"], f: int
) -> Bool[Array, " n"]:
    """Rows of small diameter, n - f, greedily: of the farthest pair the row farther from all goes.

    "Farther" is by the sum of distances to the rows left; on a tie the later row goes. Rows that
    are not usable go first.

    Cost: O(n^2) for each of the f rows.
    """
    n = usable.shape[0]
    index = jnp.arange(n)
    lengths = jnp.where(index[:, None] < index[None, :], squared_distances, -1)
    gone = n - jnp.sum(usable, dtype=jnp.int32)

    def drop(t: Array | int, left: Array) -> Array:
        inside = jnp.where(left[:, None] & left[None, :], lengths, -1)
        i = jnp.argmax(jnp.max(inside, axis=1))
        j = jnp.argmax(inside[i])
        far = [jnp.sum(jnp.where(left, safe_sqrt(squared_distances[row]), 0)) for row in (i, j)]
        dropped = jnp.where(far[0] > far[1], i, j)
        return left & ((index != dropped) | (t >= f - gone))

    return jax.lax.fori_loop(0, f, drop, usable)


class MDA(WeightingRule):
    """The mean of the n - f updates whose diameter, their largest distance, is smallest.

    Among equal diameters the lexicographically first set of clients wins. Exact for f <= 16,
    whatever n; beyond, the farther row of the farthest pair left is dropped f times, an
    approximation (``exact`` tells). Needs n > 2f; f = 0 is the mean.

    Cost: three reads of the matrix, n^2 d multiply-adds, and 2^f leaves of a search or O(f n^2).
    Fails: attackers inside the diameter of the honest updates (Min-Max is made for it).
    El-Mhamdi, Guerraoui, Guirguis, Hoang, Rouault, "Genuinely distributed Byzantine machine
    learning", PODC 2020.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> MDA(f=1).inspect(updates).info.selected.tolist()
    [True, True, True, True, True, True, False]
    """

    f: int = field(at_least=0)
    accepts_absent = capability(False)
    scale_equivariant = capability(True)
    translation_equivariant = capability(True)
    differentiable = capability(True)

    def exact(self, n: int) -> bool:
        """Whether the set chosen among n updates is sure to have the smallest diameter."""
        return self.f <= MOST_EXACT

    def check(self, n: int) -> None:
        needs_more_than(self, n, 2 * self.f + 1, "n > 2f")

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " n"], Info]:
        usable, m = statistics.usable, statistics.usable.shape[0]
        distances = jax.lax.stop_gradient(statistics.squared_distances())
        selected = usable
        if self.f > 0 and self.exact(m):
            selected = usable & smallest_diameter(distances, self.f)[0]
        elif self.f > 0:
            selected = small_diameter(distances, usable, self.f)
        weights = selected.astype(distances.dtype)
        weights = safe_ratio(weights, jnp.sum(weights))
        return weights, Info(selected=selected, weights=weights)
