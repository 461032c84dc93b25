"""Minimum-variance averaging."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxfl.aggregators.subsets import BestSubset, left_out, of_all_sets
from jaxfl.numerics.gram import squared_distances

_ROUNDINGS = 64
"""Sums that differ by no more than so many roundings are equal."""


def least_variance(
    distances: Float[Array, "n n"], usable: Bool[Array, " n"], f: int
) -> Bool[Array, " n"]:
    """The n - f rows whose squared distances have the smallest sum; the first set on a tie.

    Args:
      distances: squared; whatever they are where a row is not usable.
      usable: rows that may be kept; where there are fewer than n - f, any set is the answer.
      f: how many rows are left out.

    Cost: a product of the sets with the distances, O(C(n, f) n^2).
    """
    n = usable.shape[0]
    known = jnp.where(usable[:, None] & usable[None, :], distances, 0)

    def total(keep: Bool[Array, "b n"]) -> Float[Array, " b"]:
        shares = keep.astype(known.dtype)
        return jnp.sum(shares * jnp.matmul(shares, known, precision="highest"), axis=1)

    totals = of_all_sets(total, usable, f)
    least = jnp.min(totals)
    first = jnp.argmax(totals <= least * (1 + _ROUNDINGS * jnp.finfo(known.dtype).eps))
    return jnp.ones((n,), bool).at[jnp.asarray(left_out(n, f))[first]].set(False)


def small_variance(
    distances: Float[Array, "n n"], usable: Bool[Array, " n"], f: int
) -> Bool[Array, " n"]:
    """Rows of small variance, n - f, greedily: the row farthest from the others goes, f times.

    Rows that are not usable go first; of equally far ones the last. Cost: O(f n^2).
    """
    n = usable.shape[0]
    gone = n - jnp.sum(usable, dtype=jnp.int32)

    def drop(t: Array | int, left: Array) -> Array:
        inside = left[:, None] & left[None, :]
        far = jnp.where(left, jnp.sum(jnp.where(inside, distances, 0), axis=1), -1)
        most = jnp.max(far) * (1 - _ROUNDINGS * jnp.finfo(far.dtype).eps)
        last = n - 1 - jnp.argmax((far >= most)[::-1])
        return left & ((jnp.arange(n) != last) | (t >= f - gone))

    return jax.lax.fori_loop(0, f, drop, usable)


class MinimumVariance(BestSubset):
    """The mean of the n - f updates of smallest variance.

    That is the set S of n - f clients with the smallest ``sum_{i, j in S} |x_i - x_j|^2``; among
    equal ones the lexicographically first. Exact while there are at most 100,000 sets, C(n, f);
    beyond, the update with the largest sum of squared distances to those left is dropped f times,
    an approximation (``exact`` tells). Needs n > 2f; f = 0 is the mean.

    Cost: three reads of the matrix, n^2 d multiply-adds, and O(C(n, f) n^2) or O(f n^2). Fails:
    ALIE-sized shifts within the honest variance.
    Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine learning with adversaries: Byzantine
    tolerant gradient descent", NeurIPS 2017, section 1, as what Krum makes affordable.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> MinimumVariance(f=1)(updates).round(2)
    Array([2., 2.], dtype=float32)
    """

    def choose(
        self, gram: Float[Array, "n n"], usable: Bool[Array, " n"], *, exact: bool
    ) -> Bool[Array, " n"]:
        choose = least_variance if exact else small_variance
        return choose(squared_distances(gram, usable), usable, self.f)
