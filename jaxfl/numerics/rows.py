"""Statistics of the rows of a matrix that are sums over its columns, and their combinations.

What a weighting rule needs of ``[n, d]`` updates is small: this module has the passes that make
it, ``gram`` the one over all pairs, and the pass that combines the rows at the end.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.numerics.columns import map_columns, sum_columns
from jaxfl.numerics.runs import alongside, in_all_runs
from jaxfl.numerics.stream import NeedsMatrix, Stream, Watch

Rows = Float[Array, "n d"] | Stream
"""A matrix, or rows that are computed whenever they are read."""

Mixing = Float[Array, "m n"] | Float[Array, " n"]
"""How m rows are made of n: a matrix on their left, or a factor for each of as many rows."""

WIDTH = 8192
"""Columns per block of combinations of rows, and of other passes that form a row or a few."""


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """The type that sums over ``dtype`` are kept in: float32 or better."""
    return jnp.promote_types(dtype, jnp.float32)


def squared_norms(rows: Float[Array, "*n d"] | Stream) -> Float[Array, "*n"]:
    """Sum of squares of each row, in float32 or better; overflow gives inf."""
    if isinstance(rows, Stream):
        return rows.kept.numbers
    return jnp.sum(jnp.square(rows.astype(accumulator(rows.dtype))), axis=-1)


def watching(mask: Bool[Array, " n"]) -> Watch:
    """What a first pass over streamed rows keeps: each row's squared norm, and the sum of the
    finite rows under the mask.
    """

    def watch(block: Array, index: Array, inside: Array) -> tuple[Array, Array]:
        squares = squared_norms(block)
        finite = jnp.isfinite(squares)
        counted = (mask[index] & inside & finite).astype(squares.dtype)
        nothing = jnp.zeros((0, block.shape[1]), block.dtype)
        return weighted_sum(counted, block, nothing, jnp.all(finite)), squares

    return watch


def watched_mean(rows: Rows, mask: Bool[Array, " n"]) -> Float[Array, " d"]:
    """The mean of the rows under the mask, the finite ones that a stream was made to watch."""
    count = jnp.maximum(jnp.sum(mask), 1)
    if isinstance(rows, Stream):
        return (rows.kept.total / count).astype(rows.dtype)
    return combine(mask / count, rows, jnp.zeros((0, rows.shape[1]), rows.dtype))


def held(rows: Rows) -> Float[Array, "n d"]:
    """The matrix; raises ``NeedsMatrix`` for a stream."""
    if isinstance(rows, Stream):
        raise NeedsMatrix("all rows are needed at once, and these are streamed")
    return rows


def matrix_of(rows: Rows) -> Float[Array, "n d"]:
    """The rows, held."""
    return rows.take(jnp.arange(rows.shape[0])) if isinstance(rows, Stream) else rows


def each(function: Callable[..., Array], rows: Rows, *own: Array) -> Rows:
    """``function(row, ...)`` of every row and its share of ``own``, as a matrix or as a stream."""
    if isinstance(rows, Stream):
        return rows.each(function, *own)
    return jax.vmap(function)(rows, *own)


def squared_offsets(rows: Rows, point: Float[Array, " d"]) -> Float[Array, " n"]:
    """``|x_i - point|^2`` of every row, in float32 or better, in one read of the matrix."""
    if isinstance(rows, Stream):
        return rows.map(lambda block, index: squared_offsets(block, point))
    dtype = accumulator(rows.dtype)
    return jnp.sum(jnp.square(rows.astype(dtype) - point.astype(dtype)[None, :]), axis=-1)


def sign_shares(rows: Rows) -> Float[Array, "n 2"]:
    """The share of each row's coordinates that is positive, and negative; NaN is neither."""
    if isinstance(rows, Stream):
        return rows.map(lambda block, index: sign_shares(block))

    def counted(block: Array) -> Array:
        positive, negative = (jnp.sum(x, axis=1, dtype=jnp.int32) for x in (block > 0, block < 0))
        return jnp.stack([positive, negative], axis=1)

    return sum_columns(counted, rows, width=_wide(rows)) / rows.shape[1]


def median_row(norms: Float[Array, " n"], usable: Bool[Array, " n"]) -> Int[Array, ""]:
    """Index of the usable row of (lower) median norm: f < n/2 rows cannot move it far."""
    order = jnp.argsort(jnp.where(usable, norms, jnp.inf))
    count = jnp.sum(usable, dtype=jnp.int32)
    return order[jnp.maximum(count - 1, 0) // 2]


def masked_median(values: Float[Array, " n"], mask: Bool[Array, " n"]) -> Float[Array, ""]:
    """The median of the values under the mask (the mean of the two middle ones); 0 of none."""
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf))
    count = jnp.sum(mask, dtype=jnp.int32)
    lower, upper = ordered[jnp.maximum(count - 1, 0) // 2], ordered[count // 2]
    return jnp.where(count > 0, lower / 2 + upper / 2, 0)


def products(rows: Float[Array, "n d"], references: Float[Array, "r d"]) -> Float[Array, "n r"]:
    """Inner products of rows and references; those of a row that is not finite are not finite.

    Cost: one read of the matrix for a few references.
    """
    dtype = accumulator(rows.dtype)

    def block_products(block: Array, reference: Array) -> Array:
        both = block.astype(dtype), reference.astype(dtype).T
        return jnp.matmul(*both, precision=jax.lax.Precision.HIGHEST)

    return sum_columns(block_products, rows, references, width=_wide(rows))


def look(
    rows: Rows, references: Float[Array, "r d"], columns: Int[Array, " s"] | None
) -> tuple[Float[Array, "n r"], Float[Array, "n s"] | None]:
    """Products with the references, and the values in some columns, in one pass over a stream."""
    if isinstance(rows, Stream):
        return rows.map(lambda block, index: look(block, references, columns))
    found = products(rows, references) if references.shape[0] else _no_products(rows)
    return found, None if columns is None else jnp.take(rows, columns, axis=1, mode="clip")


def _no_products(rows: Float[Array, "n d"]) -> Float[Array, "n 0"]:
    return jnp.zeros((rows.shape[0], 0), accumulator(rows.dtype))


def combine(
    weights: Float[Array, " m"],
    rows: Rows,
    references: Float[Array, "r d"],
    clean: Bool[Array, ""] | bool = False,
) -> Float[Array, " d"]:
    """``weights @ [rows; references]``, where a row of weight 0 counts as 0 even if it is NaN.

    Args:
      weights: one for each row and reference.
      rows: the matrix.
      references: more rows, always finite.
      clean: whether all rows are known to be finite, which saves looking for those to leave out.

    Cost: one read of the matrix where ``clean``, about two otherwise.
    """
    return weighted_sum(weights, rows, references, clean).astype(rows.dtype)


def weighted_sum(
    weights: Float[Array, " m"],
    rows: Rows,
    references: Float[Array, "r d"],
    clean: Bool[Array, ""] | bool = False,
) -> Float[Array, " d"]:
    """As ``combine``, in float32 or better."""
    n = rows.shape[0]
    if isinstance(rows, Stream):
        return _streamed_sum(weights, rows, references, clean)
    dtype = accumulator(rows.dtype)
    used = weights[:n] != 0

    def block_sum(block: Array, reference: Array) -> Array:
        shares = alongside(weights[:n].astype(dtype), block)
        total = jnp.matmul(shares, block.astype(dtype), precision="highest")
        if reference.shape[0]:
            own = weights[n:].astype(dtype), reference.astype(dtype)
            total += jnp.matmul(*own, precision="highest")
        return total

    def masked(block: Array, reference: Array) -> Array:
        return block_sum(jnp.where(used[:, None], block, 0), reference)

    def whole() -> Array:
        return map_columns(block_sum, rows, references, width=_wide(rows))

    def careful() -> Array:
        return map_columns(masked, rows, references, width=WIDTH)

    if clean is False:
        return careful()
    return jax.lax.cond(in_all_runs(jnp.asarray(clean)), whole, careful)


def _streamed_sum(
    weights: Float[Array, " m"],
    rows: Stream,
    references: Float[Array, "r d"],
    clean: Bool[Array, ""] | bool,
) -> Float[Array, " d"]:
    n = rows.shape[0]

    def block_sum(block: Array, index: Array, inside: Array) -> Array:
        shares = jnp.where(inside, weights[:n][index], 0)
        return weighted_sum(shares, block, references[:0], clean)

    total = rows.sum(block_sum)
    if not references.shape[0]:
        return total
    own = weights[n:].astype(total.dtype), references.astype(total.dtype)
    return total + jnp.matmul(*own, precision="highest")


def _wide(rows: Float[Array, "n d"]) -> int:
    """Columns per block of a product that streams the matrix: no block where types agree."""
    return rows.shape[1] if rows.dtype == accumulator(rows.dtype) else WIDTH


def mix_rows(mixing: Mixing, rows: Float[Array, "n c"]) -> Float[Array, "m c"]:
    """``mixing @ rows``; or each row times its factor, where ``mixing`` is a vector."""
    if mixing.ndim == 1:
        return mixing[:, None] * rows
    return jnp.matmul(mixing, rows, precision="highest")


def safe_sqrt(x: Array) -> Array:
    """Square root with gradient 0 at 0; NaN of what is negative or NaN."""
    zero = x == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, x)))


def safe_ratio(a: Array, b: Array) -> Array:
    """``a / b``, and 0 where b is 0."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))


def clip_factors(norms: Float[Array, " n"], most: Float[Array, ""]) -> Float[Array, " n"]:
    """By what rows of these norms are multiplied so that none is longer than ``most``."""
    return jnp.where(norms > most, safe_ratio(most, norms), 1)
