"""Gram matrices in one pass, and how they change as the rows are weighted or recentred."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

from jaxfl.numerics.columns import on_cpu_or_else, sum_columns
from jaxfl.numerics.rows import accumulator, safe_ratio
from jaxfl.numerics.runs import in_turn

PRODUCT_WIDTH = 4096
"""Columns per block of a product of all rows with all rows, on a CPU."""
TOGETHER = ((128, 16), (512, 8))
"""Up to how many rows a CPU runs how many blocks beside each other: each keeps one core busy."""
FINE, COARSE, MOST_PARTS = 32, 100, 7
"""Least rows of a part on a CPU, where blocks run beside each other and where few or none do."""
LEAST_ELSEWHERE, MOST_ELSEWHERE = 200, 5
"""On other platforms: rows of the least part whose products run at full rate, and most parts."""


def centred_gram(
    rows: Float[Array, "n d"],
    references: Float[Array, "r d"],
    usable: Bool[Array, " n"],
    pilot: Int[Array, ""] | None,
) -> Float[Array, "m m"]:
    """Inner products of all rows and reference rows, after subtracting the row ``pilot``.

    Rows that are not usable count as equal to the pilot (their products are 0). Centring by a
    row near the others keeps ``|x|^2 + |y|^2 - 2 x.y`` from cancelling; without a pilot the
    products are about the origin, where the angles of short rows keep their precision.

    Cost: one read of the matrix, ``n^2 d`` multiply-adds; of rows cut into parts, pairs of which
    are multiplied once, 0.55 to 0.75 of them: from 64 rows on a CPU, from 400 elsewhere.
    """
    at = () if pilot is None else (pilot,)
    return _centred_gram(rows, references, usable, *at)


@in_turn
def _centred_gram(
    run: Integer[Array, ""], rows: Array, references: Array, usable: Array, *pilot: Array
) -> Array:
    dtype = accumulator(rows.dtype)
    keep = jnp.concatenate([usable[run], jnp.ones(references.shape[1], bool)])

    def block_gram(block: Array, reference: Array) -> Array:
        both = jnp.concatenate([block.astype(dtype), reference.astype(dtype)])
        centre = jnp.take(block, pilot[0][run], axis=0).astype(dtype)[None] if pilot else None

        def prepared(part: slice) -> Array:
            shifted = both[part] if centre is None else both[part] - centre
            return jnp.where(keep[part, None], shifted, 0)

        return _products_of_all(prepared, both.shape[0])

    return _sum_products(run, block_gram, rows, references)


def inner_products(rows: Float[Array, "n d"]) -> Float[Array, "n n"]:
    """Of all rows with all rows, in float32 or better. Cost: as ``centred_gram``."""
    return _inner_products(rows)


@in_turn
def _inner_products(run: Integer[Array, ""], rows: Array) -> Array:
    n, dtype = rows.shape[1], accumulator(rows.dtype)

    def block_products(block: Array) -> Array:
        return _products_of_all(lambda part: block[part].astype(dtype), n)

    return _sum_products(run, block_products, rows)


def _sum_products(
    run: Integer[Array, ""], block_products: Callable[..., Array], rows: Array, *more: Array
) -> Float[Array, "m m"]:
    together = next((blocks for most, blocks in TOGETHER if rows.shape[1] <= most), 1)
    return sum_columns(block_products, rows, *more, width=PRODUCT_WIDTH, together=together, run=run)


def _products_of_all(
    take: Callable[[slice], Float[Array, "_ c"]], count: int
) -> Float[Array, "m m"]:
    """Inner products of so many rows, taken in parts; what is below the diagonal is copied."""
    least = FINE if count <= TOGETHER[0][0] else COARSE
    on_cpu = max(1, min(MOST_PARTS, count // least))
    elsewhere = max(1, min(MOST_ELSEWHERE, count // LEAST_ELSEWHERE))
    if on_cpu == elsewhere:  # of few rows, as of most rounds: nothing is traced twice
        return _products_in_parts(take, count, on_cpu)
    return on_cpu_or_else(
        lambda: _products_in_parts(take, count, on_cpu),
        lambda: _products_in_parts(take, count, elsewhere),
    )


def _products_in_parts(
    take: Callable[[slice], Float[Array, "_ c"]], count: int, parts: int
) -> Float[Array, "m m"]:
    rows = 4 * -(-count // (4 * parts))  # vectors of a processor hold 4, 8 or 16 numbers
    taken = [take(slice(first, min(first + rows, count))) for first in range(0, count, rows)]
    products = {
        (i, j): jnp.matmul(taken[i], taken[j].T, precision="highest")
        for i in range(len(taken))
        for j in range(i, len(taken))
    }
    return jnp.block(
        [
            [products[i, j] if i <= j else products[j, i].T for j in range(len(taken))]
            for i in range(len(taken))
        ]
    )


def squared_distances(gram: Float[Array, "m m"], usable: Bool[Array, " m"]) -> Float[Array, "m m"]:
    """``|x_i - x_j|^2`` from inner products; +inf wherever a row is not usable, itself included."""
    squares = jnp.diagonal(gram)
    distances = jnp.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0)
    distances = jnp.where(jnp.eye(gram.shape[0], dtype=bool), 0, distances)
    return jnp.where(usable[:, None] & usable[None, :], distances, jnp.inf)


def weighted_gram(gram: Float[Array, "n n"], weights: Float[Array, " n"]) -> Float[Array, "n n"]:
    """Inner products about the weighted mean of the rows; weights are at least 0."""
    shares = safe_ratio(weights, jnp.sum(weights))
    to_mean = jnp.matmul(gram, shares, precision="highest")
    mean = jnp.dot(shares, to_mean, precision="highest")
    return gram - to_mean[:, None] - to_mean[None, :] + mean


def tame_gram(
    gram: Float[Array, "n n"], usable: Bool[Array, " n"]
) -> tuple[Float[Array, "n n"], Bool[Array, " n"]]:
    """The Gram matrix without the rows whose sums could overflow, and which rows are left."""
    limit = jnp.finfo(gram.dtype).max / (8 * gram.shape[0])
    usable = usable & (jnp.diagonal(gram) <= limit)
    return jnp.where(usable[:, None] & usable[None, :], gram, 0), usable


def squared_distances_to(
    gram: Float[Array, "n n"], weights: Float[Array, " n"]
) -> Float[Array, " n"]:
    """From every row to the point ``weights @ rows``; weights sum to 1."""
    products = jnp.matmul(gram, weights, precision="highest")
    own = jnp.dot(weights, products, precision="highest")
    return jnp.maximum(jnp.diagonal(gram) - 2 * products + own, 0)
