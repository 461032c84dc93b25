"""Order statistics down the columns of a matrix.

``jnp.sort`` along the leading axis is slow on every backend we care about. Two methods replace
it, and this module picks: for few rows a sorting network, for many a search for the bits of the
values wanted (``digits``). On a GPU either is one kernel that reads the matrix once (``kernels``),
where the ranks wanted are known as the program is made.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxfl.numerics import columns, digits, kernels, network
from jaxfl.numerics.runs import in_all_runs

FUSED_ROWS = 15
"""Most rows that XLA reads and reduces in one loop on a CPU.

In blocks, that loop would look up the block's place for every element and not be vectorised: the
whole matrix at once is 13 times as fast. More rows are copied block by block, then reduced.
"""
CACHED = 2**19
"""Elements in a block for ``digits``: their keys, a byte each, fill half of a core's cache."""


Whole = Int[Array, ""] | int
"""A rank or a count; traced where it depends on how many rows count, those left out being +inf.
What is known as the program is made serves faster."""


def column_width(rows: int) -> int:
    """Columns in a block of this many rows that suit a CPU's vectors and caches.

    ``columns.map_columns`` takes the whole matrix where it is narrower.
    """
    if rows <= FUSED_ROWS:
        return 2**31 - 1
    if rows <= network.ROWS:
        return 2**16 // rows // 128 * 128
    # An odd number of cache lines: at a power of two all rows would share a few cache sets.
    return 64 * (CACHED // 64 // rows | 1)


def mean_of_ranks(values: Float[Array, "n c"], low: Whole, high: Whole) -> Float[Array, " c"]:
    """Per column, the mean of the values of rank low, ..., high - 1 in ascending order.

    The trimmed mean is ``(f, n - f)``, the median ``((n - 1) // 2, n // 2 + 1)``. NaN counts
    as +inf. The gradient goes to the values that are averaged; among equals to the first rows.
    """
    if isinstance(low, int) and isinstance(high, int):
        return _mean_of_ranks(values, *_ranks(values.shape[0], low, high))
    return _mean_between(_without_nan(values), jnp.int32(low), jnp.int32(high))


def _ranks(n: int, low: int, high: int) -> tuple[int, int]:
    if not 0 <= low < high <= n:
        raise ValueError(f"ranks must satisfy 0 <= low < high <= {n}; got {low}, {high}")
    return low, high


def middle(n: Whole, *, lower: bool = False) -> tuple[Whole, Whole]:
    """The ranks whose mean is the median of n values; of the two middle ones the lower alone."""
    low = (n - 1) // 2
    return low, low + 1 if lower else n // 2 + 1


def median(
    values: Float[Array, "n c"], count: Whole | None = None, *, lower: bool = False
) -> Float[Array, " c"]:
    """Per column, the median: the mean of the two middle values where n is even.

    Args:
      values: the columns.
      count: of how many values, those left out being +inf; None: of all.
      lower: the smaller of the two middle values instead of their mean.
    """
    count = values.shape[0] if count is None else count
    return mean_of_ranks(values, *middle(count, lower=lower))


def mean_of_nearest(
    values: Float[Array, "n c"], low: Whole, high: Whole, k: Whole
) -> Float[Array, " c"]:
    """Per column, the mean of the k values nearest ``mean_of_ranks(values, low, high)``.

    Among equals the first rows win. NaN counts as +inf. The gradient goes to the values that are
    averaged, not to the mean that they are near.
    """
    if isinstance(low, int) and isinstance(high, int) and isinstance(k, int):
        n = values.shape[0]
        if not 1 <= k <= n:
            raise ValueError(f"k must be from 1 to {n}; got {k}")
        return _mean_of_nearest(values, *_ranks(n, low, high), k)
    values = _without_nan(values)
    centre = _once(mean_of_ranks(jax.lax.stop_gradient(values), low, high))
    return _mean_where(smallest(kernels.distances(values, centre[None]), k), values, k)


def of_rank(values: Float[Array, "n c"], k: Whole) -> Float[Array, " c"]:
    """Per column, the value of rank k = 0, ..., n - 1 in ascending order; ``k`` may be traced.

    NaN counts as +inf. No gradient.
    """
    values = _without_nan(jax.lax.stop_gradient(values))
    return digits.floats(digits.kth(digits.ordered_bits(values), k).element, values.dtype)


def median_where(values: Float[Array, "n c"], mask: Bool[Array, " n"]) -> Float[Array, " c"]:
    """Per column, the median of the rows under the mask; 0 where there are none. No gradient.

    By bits alone, which of several runs at once moves fewer bytes than ``median`` by a count.
    """
    count = jnp.sum(mask, dtype=jnp.int32)
    values = jnp.where(mask[:, None], values, jnp.inf)
    lower, upper = (of_rank(values, k) for k in (jnp.maximum(count - 1, 0) // 2, count // 2))
    return jnp.where(count > 0, lower / 2 + upper / 2, 0)


def of_rank_of_many(values: Float[Array, " n"], k: Whole) -> Float[Array, ""]:
    """As ``of_rank``, of one column that may have millions of rows."""
    values = _without_nan(jax.lax.stop_gradient(values))
    return digits.floats(digits.kth_of_many(digits.ordered_bits(values), k), values.dtype)


def smallest(values: Float[Array, "n c"], k: Whole) -> Bool[Array, "n c"]:
    """Per column, a mask of the k smallest values; among equals the lowest index wins.

    ``k`` may be traced. NaN counts as +inf. No gradient: a selection is a constant.
    """
    n, c = values.shape
    k = jnp.clip(jnp.asarray(k, jnp.int32), 0, n)
    values = _without_nan(jax.lax.stop_gradient(values))
    if c == 1 and n > digits.ONE_TILE:
        return _smallest_of_many(values[:, 0], k)[:, None]
    return columns.map_blocks(lambda v: _smallest(v, k), values, width=column_width(n))


def _without_nan(values: Array) -> Array:
    return jnp.where(jnp.isnan(values), jnp.inf, values)


def by_xla(
    values: Float[Array, "n c"], low: int, high: int, nearest: int | None = None
) -> Float[Array, " c"]:
    """``kernels.mean_of_ranks`` by XLA's own operations, which serve on every platform."""
    few = values.shape[0] <= network.ROWS
    mean = (_mean_of_few_ranks if few else _mean_of_many_ranks)(values, low, high)
    return mean if nearest is None else _mean_near(_without_nan(values), mean, nearest)


def _by_platform(values: Array, low: int, high: int, nearest: int | None = None) -> Array:
    asked = {"low": low, "high": high, "nearest": nearest}
    elsewhere = functools.partial(by_xla, **asked)
    if not kernels.serves(values):
        return elsewhere(values)
    on_gpu = functools.partial(kernels.mean_of_ranks, **asked)
    return jax.lax.platform_dependent(values, cuda=on_gpu, rocm=on_gpu, default=elsewhere)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _mean_of_ranks(values: Array, low: int, high: int) -> Array:
    return _by_platform(values, low, high)


def _mean_of_few_ranks(values: Array, low: int, high: int) -> Array:
    ranks = network.sorted_rows(_without_nan(values))[low:high]
    return functools.reduce(jnp.add, ranks)[0] / (high - low)


def _mean_of_many_ranks(values: Array, low: int, high: int) -> Array:
    values = _without_nan(values)
    if high - low > 2:
        return _mean_between_ends(values, low, high)
    bits = digits.ordered_bits(values)
    first = digits.kth(bits, low)
    lower = digits.floats(first.element, values.dtype)
    if high - low == 1:
        return lower
    return (lower + digits.floats(digits.following(bits, first, low), values.dtype)) / 2


def _mean_between_ends(values: Array, low: Whole, high: Whole) -> Array:
    """From the first and the last value of the ranks, and the sum of those between them."""
    bits = digits.ordered_bits(values)
    first, last = digits.kth(bits, low), digits.kth(bits, high - 1)
    lower, upper = (digits.floats(end.element, values.dtype) for end in (first, last))

    def inner(row: Array) -> Array:
        return jnp.where((row > lower[None]) & (row < upper[None]), row, 0)

    # Of the values equal to either end, only some are among the ranks.
    n_first = (first.upto - low).astype(values.dtype)
    n_last = (high - last.below).astype(values.dtype)
    total = digits.total(inner, digits.tiled(values, jnp.zeros((), values.dtype)))
    mean = (total + n_first * lower + n_last * upper) / (high - low)
    return jnp.where(lower == upper, lower, mean)


@_mean_of_ranks.defjvp
def _mean_of_ranks_jvp(low: int, high: int, primals: tuple, tangents: tuple) -> tuple:
    (values,), (tangent,) = primals, tangents
    averaged = smallest(values, high) & ~smallest(values, low)
    return _mean_of_ranks(values, low, high), _mean_where(averaged, tangent, high - low)


@jax.custom_jvp
def _mean_between(values: Array, low: Array, high: Array) -> Array:
    if values.shape[0] > network.ROWS:
        return _mean_between_ends(values, low, high)
    ranks = enumerate(network.sorted_rows(values))
    taken = [jnp.where((low <= i) & (i < high), row, 0) for i, row in ranks]
    return functools.reduce(jnp.add, taken)[0] / (high - low)


@_mean_between.defjvp
def _mean_between_jvp(primals: tuple, tangents: tuple) -> tuple:
    values, low, high = primals
    averaged = smallest(values, high) & ~smallest(values, low)
    return _mean_between(values, low, high), _mean_where(averaged, tangents[0], high - low)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _mean_of_nearest(values: Array, low: int, high: int, k: int) -> Array:
    return _by_platform(values, low, high, k)


def _mean_near(values: Array, centre: Array, k: int) -> Array:
    centre = _once(centre)
    radius, count = _radius(values, centre, k)

    def within(row: Array) -> Array:
        return jnp.where(kernels.distances(row, centre[None]) <= radius[None], row, 0)

    def all_within() -> Array:
        return digits.total(within, digits.tiled(values, jnp.zeros((), values.dtype))) / k

    def first_within() -> Array:
        return _mean_where(smallest(kernels.distances(values, centre[None]), k), values, k)

    # As a rule no value ties with the farthest one taken, or all that do equal the centre.
    clear = jnp.all((count == k) | (radius == 0))
    nearest = jax.lax.cond(in_all_runs(clear), all_within, first_within)
    return jnp.where(radius == 0, centre, nearest)


def _radius(values: Array, centre: Array, k: int) -> tuple[Array, Array]:
    """The k-th smallest distance from the centre, and how many are not above it."""
    n, dtype = values.shape[0], values.dtype
    if n > network.ROWS:
        rank = digits.kth(digits.ordered_bits(kernels.distances(values, centre[None])), k - 1)
        return digits.floats(rank.element, dtype), rank.upto
    # The k nearest are neighbours in ascending order, and the farthest of them is at one end.
    ranks = [kernels.distances(row, centre[None]) for row in network.sorted_rows(values)]
    windows = [jnp.maximum(ranks[i], ranks[i + k - 1]) for i in range(n - k + 1)]
    radius = _once(functools.reduce(jnp.minimum, windows)[0])

    def within(row: Array) -> Array:
        return (kernels.distances(row, centre[None]) <= radius[None]).astype(dtype)

    return radius, digits.total(within, values[None])


@_mean_of_nearest.defjvp
def _mean_of_nearest_jvp(low: int, high: int, k: int, primals: tuple, tangents: tuple) -> tuple:
    (values,), (tangent,) = primals, tangents
    centre = _mean_of_ranks(values, low, high)
    near = smallest(kernels.distances(_without_nan(values), centre[None]), k)
    return _mean_of_nearest(values, low, high, k), _mean_where(near, tangent, k)


def _once(row: Array) -> Array:
    """The row, as the result of a product, which XLA never fuses.

    A network is but elementwise operations: on a CPU, XLA would repeat it for each of the
    elements that a row is broadcast to.
    """
    padded = jnp.pad(row[None], ((0, 1), (0, 0)))
    return jnp.matmul(jnp.ones((2,), row.dtype), padded, precision="highest")


def _mean_where(mask: Array, values: Array, count: Whole) -> Array:
    """Of ``count`` values in each column, as a product: XLA sums a leading axis slowly on a CPU."""
    ones = jnp.ones(values.shape[:1], values.dtype)
    return jnp.matmul(ones, jnp.where(mask, values, 0), precision="highest") / count


def _smallest_of_many(values: Array, k: Array) -> Array:
    """Of one column, which may have millions of rows: tiles of it would be walked row by row."""
    bits = digits.ordered_bits(values)
    last = digits.kth_of_many(bits, jnp.maximum(k, 1) - 1)
    below, ties = bits < last, bits == last
    room = k - jnp.sum(below, dtype=jnp.int32)
    return below | (ties & (jnp.cumsum(ties, dtype=jnp.int32) <= room))


def _smallest(values: Array, k: Array) -> Array:
    n = values.shape[0]
    bits = digits.ordered_bits(values)
    last = digits.kth(bits, jnp.maximum(k, 1) - 1)
    room = k - last.below
    ties = bits == last.element[None]
    index = jnp.arange(n, dtype=jnp.uint16 if n < 2**16 - 1 else jnp.uint32)[:, None]

    def last_taken() -> Array:
        candidates = jnp.where(ties, index, index.dtype.type(n))
        return digits.kth(candidates, jnp.maximum(room, 1) - 1).element

    # As a rule there is room for all that tie, and no need to search for the last one taken.
    upto = jax.lax.cond(
        in_all_runs(jnp.all(last.upto <= k)),
        lambda: jnp.full(room.shape, n - 1, index.dtype),
        last_taken,
    )
    return (bits < last.element[None]) | (ties & (index <= upto[None]) & (room > 0)[None])
