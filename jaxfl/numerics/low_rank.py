"""Changes of a product of two thin factors, compared and combined without forming any product.

The layer is ``A B`` with ``A [in, r]`` and ``B [r, out]``. A change ``(a, b)`` of the factors, of
which a step takes ``rate`` times, changes the layer by ``rate`` times

    P = (A B - (A - rate a) (B - rate b)) / rate = a (B - rate b) + A b,

of rank 2 r. All functions take any number of changes, as ``a [m, in, r]`` and ``b [m, r, out]``.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.numerics.lapack import qr, svd
from jaxfl.numerics.rows import safe_ratio


class Factors(NamedTuple):
    """The factors of a layer, or of changes of them."""

    a: Float[Array, "*m i r"]
    b: Float[Array, "*m r o"]


def inner_products(
    base: Factors, left: Factors, right: Factors, rate: Float[Array, ""]
) -> Float[Array, "m k"]:
    """``<P_i, Q_j>`` between the changes on the left and those on the right.

    The four terms of ``<a (B - rate b) + A b, ...>`` are kept apart, so nothing cancels where
    changes are short. Cost: ``2 m k r^2 (in + out)`` operations, ``2 m k r^2`` numbers.
    """

    def products(expression: str, *terms: Array) -> Array:
        return jnp.einsum(expression, *terms, precision="highest")

    def of(change: Factors) -> tuple[Array, Array]:
        """``A^T a`` and ``B b^T``."""
        own_a = products("ir,mis->mrs", base.a, change.a)
        return own_a, products("ro,mso->mrs", base.b, change.b)

    (left_a, left_b), (right_a, right_b) = of(left), of(right)
    aa = products("mir,kis->mkrs", left.a, right.a)
    bb = products("mro,kso->mkrs", left.b, right.b)
    base_aa = products("ir,is->rs", base.a, base.a)
    base_bb = products("ro,so->rs", base.b, base.b)
    # B_i = B - rate b_i: products of B_i with b_j, and with B_j.
    new_b = right_b[None] - rate * bb
    b_new = jnp.swapaxes(left_b, 1, 2)[:, None] - rate * bb
    new_new = base_bb[None, None] - rate * right_b[None] - rate * b_new
    terms = (
        aa * new_new,
        jnp.swapaxes(left_a, 1, 2)[:, None] * new_b,
        right_a[None] * b_new,
        base_aa[None, None] * bb,
    )
    return jnp.sum(sum(terms, jnp.zeros_like(aa)), axis=(2, 3))


def squared_norms(base: Factors, change: Factors, rate: Float[Array, ""]) -> Float[Array, " m"]:
    """``|P_i|^2`` of each change, from ``r x r`` products."""
    new = base.b[None] - rate * change.b

    def gram(expression: str, x: Array, y: Array) -> Array:
        return jnp.einsum(expression, x, y, precision="highest")

    own = gram("mir,mis->mrs", change.a, change.a) * gram("mro,mso->mrs", new, new)
    cross = gram("mir,is->mrs", change.a, base.a) * gram("mro,mso->mrs", new, change.b)
    kept = gram("ir,is->rs", base.a, base.a)[None] * gram("mro,mso->mrs", change.b, change.b)
    return jnp.maximum(jnp.sum(own + 2 * cross + kept, axis=(1, 2)), 0)


def combined(
    base: Factors, change: Factors, weights: Float[Array, " m"], rate: Float[Array, ""]
) -> Factors:
    """The change of the factors whose layer is the best of rank r after the weighted sum of P.

    The layer to be met, ``A B - rate sum_i w_i P_i``, is the product of ``[A, a_1, ...]`` and
    ``[B - rate sum_i w_i b_i; -rate w_1 (B - rate b_1); ...]``. QR of either and the SVD of the
    small core (of the layer itself, where that is smaller) give its r largest directions, which is
    the nearest layer of rank r. Of its many factors those are taken whose A has orthogonal columns
    as long as A's are on average, turned to lie as near to A as they can: a balanced pair would
    start near 0 where B does, and learn
    slowly. Cost: ``O((in + out) (m r)^2)`` where ``m r`` is below both sides, else that of an SVD
    of the layer.
    """
    r = base.a.shape[-1]
    thin = jnp.concatenate([base.a[None], change.a])
    shares = weights[:, None, None]
    first = base.b - rate * jnp.sum(shares * change.b, axis=0)
    rest = -rate * shares * (base.b[None] - rate * change.b)
    left = jnp.swapaxes(thin, 0, 1).reshape(base.a.shape[0], -1)
    right = jnp.concatenate([first[None], rest]).reshape(-1, base.b.shape[-1])
    columns, rows = _largest(left, right, r)
    x, _, y = svd(jnp.matmul(columns.T, base.a, precision="highest"))
    turn = jnp.matmul(x, y, precision="highest")
    length = jnp.sqrt(jnp.sum(jnp.square(base.a)) / r)
    length = jnp.where(length == 0, 1, length)
    new_a = length * jnp.matmul(columns, turn, precision="highest")
    new_b = jnp.matmul(turn.T, rows, precision="highest") / length
    # A server that takes no step (a rate of 0) stays where it is.
    return Factors(safe_ratio(base.a - new_a, rate), safe_ratio(base.b - new_b, rate))


def _largest(
    left: Float[Array, "i k"], right: Float[Array, "k o"], r: int
) -> tuple[Float[Array, "i r"], Float[Array, "r o"]]:
    """The r largest directions of the product: orthonormal columns, and rows of their sizes."""
    if left.shape[1] >= min(left.shape[0], right.shape[1]):
        whole = jnp.matmul(left, right, precision="highest")
        u, sizes, v = svd(whole)
        return u[:, :r], sizes[:r, None] * v[:r]
    q_left, r_left = qr(left)
    q_right, r_right = qr(right.T)
    core = jnp.matmul(r_left, r_right.T, precision="highest")
    u, sizes, v = svd(core)
    columns = jnp.matmul(q_left, u[:, :r], precision="highest")
    return columns, jnp.matmul(sizes[:r, None] * v[:r], q_right.T, precision="highest")
