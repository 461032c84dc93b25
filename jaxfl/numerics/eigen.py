"""The largest eigenvalue of a small symmetric matrix."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.numerics.lapack import eigh

LARGEST_DENSE = 128
"""Up to this size all eigenvectors are computed: cheaper than iterating."""
_STEPS = 32
_CYCLES = 32


def top_eigenpair(
    matrix: Float[Array, "n n"], start: Float[Array, " n"]
) -> tuple[Float[Array, ""], Float[Array, " n"]]:
    """The largest eigenvalue of a positive semi-definite matrix and a unit eigenvector.

    Large matrices are met by Lanczos steps, orthogonalised in full and restarted from the best
    vector found until its residual is at the level of rounding (Saad, "Numerical methods for
    large eigenvalue problems", 2011, chapter 6). No gradient.

    Args:
      matrix: symmetric, positive semi-definite, finite.
      start: where to start, such as the vector of a similar matrix; any vector serves.

    Cost: O(n^3) up to n = 128, O(n^2) a step beyond; a step costs no more than one read of the
    matrix, and a start close to the answer saves most of them.
    """
    n = matrix.shape[0]
    matrix, start = jax.lax.stop_gradient((matrix, start))
    # In units of the trace: squares of the entries must neither overflow nor vanish.
    scale = jnp.trace(matrix)
    scale = jnp.where(scale > 0, scale, 1)
    matrix = matrix / scale
    if n <= LARGEST_DENSE:
        values, vectors = eigh(matrix)
        return jnp.maximum(values[-1], 0) * scale, vectors[:, -1]

    eps = jnp.finfo(matrix.dtype).eps
    # A start that misses the answer would never find it.
    stray = jax.random.normal(jax.random.key(0), (n,), matrix.dtype)
    start = _unit(_unit(start) + 0.01 * _unit(stray))

    def unfinished(carry: tuple[Array, ...]) -> Array:
        cycle, value, _, residual = carry
        return (cycle < _CYCLES) & ~(residual <= 2 * n**0.5 * eps * value)

    def improve(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        return carry[0] + 1, *_lanczos(matrix, carry[2])

    infinite = jnp.array(jnp.inf, matrix.dtype)
    first = (jnp.zeros((), jnp.int32), jnp.zeros((), matrix.dtype), start, infinite)
    _, value, vector, _ = jax.lax.while_loop(unfinished, improve, first)
    return jnp.maximum(value, 0) * scale, vector


def _lanczos(matrix: Array, start: Array) -> tuple[Array, Array, Array]:
    """The best pair of one Krylov space, and the norm of its residual."""
    n = matrix.shape[0]

    def step(j: Array | int, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        basis, diagonal, beside, vector = carry
        basis = basis.at[j].set(vector)
        image = _product(matrix, vector)
        diagonal = diagonal.at[j].set(_product(vector, image))
        for _ in range(2):
            image = image - _product(_product(basis, image), basis)
        norm = jnp.sqrt(jnp.sum(jnp.square(image)))
        # Within rounding of an invariant space there is nothing left to add.
        norm = jnp.where(norm > n * jnp.finfo(norm.dtype).eps * jnp.abs(diagonal[0]), norm, 0)
        vector = jnp.where(norm > 0, image / jnp.where(norm > 0, norm, 1), 0)
        return basis, diagonal, beside.at[j].set(norm), vector

    empty = jnp.zeros((_STEPS,), matrix.dtype)
    carry = jnp.zeros((_STEPS, n), matrix.dtype), empty, empty, start
    basis, diagonal, beside, _ = jax.lax.fori_loop(0, _STEPS, step, carry)
    small = jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1)
    values, vectors = eigh(small)
    best = vectors[:, -1]
    # Of a matrix of zeros every vector is an eigenvector, but that of ``small`` may mean none.
    vector = jnp.where(values[-1] > 0, _product(best, basis), start)
    return values[-1], _unit(vector), beside[-1] * jnp.abs(best[-1])


def _unit(vector: Array) -> Array:
    norm = jnp.sqrt(jnp.sum(jnp.square(vector)))
    return vector / jnp.where(norm > 0, norm, 1)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
