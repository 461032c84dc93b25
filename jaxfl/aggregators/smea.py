"""Smallest-maximum-eigenvalue averaging."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.aggregators.subsets import BestSubset, left_out, of_all_sets
from jaxfl.numerics.eigen import top_eigenpair
from jaxfl.numerics.gram import weighted_gram
from jaxfl.numerics.lapack import eigvalsh

_POWER_STEPS = 24


def smallest_spread(
    gram: Float[Array, "n n"], usable: Bool[Array, " n"], f: int
) -> Bool[Array, " n"]:
    """The n - f rows whose covariance has the smallest top eigenvalue; the first on a tie,
    which is what rounding cannot tell apart.

    Power steps on all subsets at once, which are products of matrices, bound every eigenvalue
    from below; exact eigenvalues are computed in the order of the bounds until no set that is left
    can be better, or tie and come first.

    Cost: O(C(n, f) n^2) at the rate of a matrix product, and O(n^3) for each subset examined.
    """
    n = usable.shape[0]
    table = jnp.asarray(left_out(n, f))
    bounds = _lower_bounds(gram, usable, f)
    count = len(table)
    chunk, index = max(1, min(32, 2**16 // n**2, count)), jnp.arange(count)

    def leading(values: Array, noise: Array) -> tuple[Array, Array, Array]:
        """The least value met, what it may be off by, and the first set that ties with it."""
        least = jnp.argmin(values)
        ties = values <= values[least] + noise[least]
        return values[least], noise[least], jnp.argmax(ties)

    def promising(carry: tuple[Array, ...]) -> Array:
        bounds, values, noise = carry
        value, slack, first = leading(values, noise)
        return (bounds < value - slack) | ((bounds <= value + slack) & (index < first))

    def unfinished(carry: tuple[Array, ...]) -> Array:
        return jnp.any(promising(carry))

    def examine(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        bounds, values, noise = carry
        _, chosen = jax.lax.top_k(-jnp.where(promising(carry), bounds, jnp.inf), chunk)
        value, slack = jax.vmap(lambda subset: _spread(gram, table[subset]))(chosen)
        value = jnp.where(jnp.isfinite(bounds[chosen]), value, jnp.inf)
        values, noise = values.at[chosen].set(value), noise.at[chosen].set(slack)
        return bounds.at[chosen].set(jnp.inf), values, noise

    start = bounds, jnp.full((count,), jnp.inf, gram.dtype), jnp.zeros((count,), gram.dtype)
    _, values, noise = jax.lax.while_loop(unfinished, examine, start)
    return jnp.ones((n,), bool).at[table[leading(values, noise)[2]]].set(False)


def _lower_bounds(gram: Array, usable: Array, f: int) -> Float[Array, " c"]:
    """Rayleigh quotients below the top eigenvalue of each subset; +inf with an unusable row."""
    n = usable.shape[0]
    start = jax.random.normal(jax.random.key(0), (n,), gram.dtype)
    scale = jnp.trace(gram)
    unit = gram / jnp.where(scale > 0, scale, 1)

    def bound(keep: Bool[Array, "b n"]) -> Float[Array, " b"]:
        def project(v: Array) -> Array:
            mean = jnp.sum(jnp.where(keep, v, 0), axis=1, keepdims=True) / (n - f)
            v = jnp.where(keep, v - mean, 0)
            norm = jnp.sqrt(jnp.sum(jnp.square(v), axis=1, keepdims=True))
            return v / jnp.where(norm > 0, norm, 1)

        def step(_: Array | int, v: Array) -> Array:
            return project(jnp.matmul(v, unit, precision="highest"))

        v = jax.lax.fori_loop(0, _POWER_STEPS, step, project(jnp.broadcast_to(start, keep.shape)))
        return jnp.sum(v * jnp.matmul(v, unit, precision="highest"), axis=1)

    bounds = of_all_sets(bound, usable, f)
    return jnp.maximum(bounds, 0) * jnp.where(scale > 0, scale, 1)


def _spread(gram: Array, rows: Int[Array, " f"]) -> tuple[Array, Array]:
    """The top eigenvalue of the scatter of all rows but these, and what it may be off by."""
    n, f = gram.shape[0], rows.shape[0]
    keep = jnp.ones((n,), bool).at[rows].set(False)
    kept = jnp.nonzero(keep, size=n - f)[0]
    own = gram[kept][:, kept]
    inner = weighted_gram(own, jnp.ones((n - f,), gram.dtype))
    return eigvalsh(inner)[-1], 64 * jnp.finfo(gram.dtype).eps * jnp.trace(own)


def small_spread(gram: Float[Array, "n n"], usable: Bool[Array, " n"], f: int) -> Bool[Array, " n"]:
    """Rows of small spread, n - f, greedily: the row farthest along the top eigenvector goes.

    Rows that are not usable go first. Cost: f top eigenvectors of an n x n matrix.
    """
    n = usable.shape[0]
    gone = n - jnp.sum(usable, dtype=jnp.int32)

    def drop(t: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        left, start = carry
        inside = left[:, None] & left[None, :]
        inner = jnp.where(inside, weighted_gram(gram, left.astype(gram.dtype)), 0)
        _, vector = top_eigenpair(inner, start)
        # On the rows left an eigenvector is in proportion to their projections on its direction.
        reach = jnp.where(left, jnp.abs(vector), -1)
        # Equal updates come out equal only up to rounding; the first of them goes.
        farthest = jnp.argmax(reach >= jnp.max(reach) * (1 - jnp.finfo(reach.dtype).eps ** 0.5))
        return left & ((jnp.arange(n) != farthest) | (t >= f - gone)), vector

    return jax.lax.fori_loop(0, f, drop, (usable, jnp.ones((n,), gram.dtype)))[0]


class SMEA(BestSubset):
    """The mean of the n - f updates whose covariance has the smallest top eigenvalue.

    Among equal ones the lexicographically first set of clients wins. Exact while there are at
    most 100,000 sets, C(n, f); beyond, the update farthest along the top eigenvector of those
    left is dropped f times, an approximation (``exact`` tells). Needs n > 2f; f = 0 is the mean.

    Cost: three reads of the matrix, n^2 d multiply-adds, and O(C(n, f) n^2) or f eigenvectors of
    an n x n matrix. Fails: ALIE-sized shifts within the honest covariance.
    Allouah, Guerraoui, Gupta, Pinot, Stephan, "On the privacy-robustness-utility trilemma in
    distributed learning", ICML 2023.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> SMEA(f=1)(updates).round(2)
    Array([2., 2.], dtype=float32)
    """

    def choose(
        self, gram: Float[Array, "n n"], usable: Bool[Array, " n"], *, exact: bool
    ) -> Bool[Array, " n"]:
        return (smallest_spread if exact else small_spread)(gram, usable, self.f)
