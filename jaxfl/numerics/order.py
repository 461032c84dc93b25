"""Order statistics down the columns of a matrix.

``jnp.sort`` along the leading axis is slow on every backend we care about. Two methods replace
it: for few rows a sorting network, unrolled as ``minimum``/``maximum`` of whole rows, of which
XLA keeps only the comparators that the wanted outputs depend on; for many rows a bisection on
the bits of the values, which reads the block once per bit and has no cliff.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

NETWORK_ROWS = 64
"""Most rows for which a network is used; past that compiling one takes up to minutes."""


@functools.cache
def sorting_network(n: int) -> tuple[tuple[int, int], ...]:
    """Comparators (i, j), i < j, that sort n values: Batcher's odd-even merge sort.

    Batcher, "Sorting networks and their applications", AFIPS 1968. O(n log^2 n) comparators.
    """
    comparators = []
    merged = 1
    while merged < n:
        distance = merged
        while distance >= 1:
            for first in range(distance % merged, n - distance, 2 * distance):
                for i in range(first, min(first + distance, n - distance)):
                    if i // (2 * merged) == (i + distance) // (2 * merged):
                        comparators.append((i, i + distance))
            distance //= 2
        merged *= 2
    return tuple(comparators)


def column_width(rows: int) -> int:
    """Columns per block that keep a block of this many float32 rows within a core's cache."""
    return max(256, min(4096, 2**16 // max(rows, 1) // 128 * 128))


def mean_of_ranks(values: Float[Array, "n c"], low: int, high: int) -> Float[Array, " c"]:
    """Per column, the mean of the values of rank low, ..., high - 1 in ascending order.

    The trimmed mean is ``(f, n - f)``, the median ``((n - 1) // 2, n // 2 + 1)``. NaN counts
    as +inf. The gradient goes to the values that are averaged.
    """
    n = values.shape[0]
    if not 0 <= low < high <= n:
        raise ValueError(f"ranks must satisfy 0 <= low < high <= {n}; got {low}, {high}")
    values = jnp.where(jnp.isnan(values), jnp.inf, values)
    if n > NETWORK_ROWS:
        return _mean_by_bisection(values, low, high)
    rows = list(values)
    for i, j in sorting_network(n):
        rows[i], rows[j] = jnp.minimum(rows[i], rows[j]), jnp.maximum(rows[i], rows[j])
    return functools.reduce(jnp.add, rows[low:high]) / (high - low)


def median(values: Float[Array, "n c"], *, lower: bool = False) -> Float[Array, " c"]:
    """Per column, the median: the mean of the two middle values where n is even.

    Args:
      values: the columns.
      lower: the smaller of the two middle values instead of their mean.
    """
    n = values.shape[0]
    low = (n - 1) // 2
    return mean_of_ranks(values, low, low + 1 if lower else n // 2 + 1)


def mean_of_nearest(
    values: Float[Array, "n c"], centre: Float[Array, " c"], k: int
) -> Float[Array, " c"]:
    """Per column, the mean of the k values nearest ``centre``; among equals the first rows win.

    NaN counts as +inf. The gradient goes to the values that are averaged, not to the centre.
    """
    values = jnp.where(jnp.isnan(values), jnp.inf, values)
    # Halved, the difference of two finite numbers is finite, so no infinity ties with it.
    near = smallest(jnp.abs(values / 2 - centre[None] / 2), k)
    return jnp.sum(jnp.where(near, values, 0), axis=0) / k


def of_rank(values: Float[Array, "n c"], k: Int[Array, ""] | int) -> Float[Array, " c"]:
    """Per column, the value of rank k = 0, ..., n - 1 in ascending order; ``k`` may be traced.

    NaN counts as +inf. No gradient.
    """
    values = jax.lax.stop_gradient(jnp.where(jnp.isnan(values), jnp.inf, values))
    bits = _kth_bits(_ordered_bits(values), k)[0]
    sign = jnp.array(1 << (values.dtype.itemsize * 8 - 1), bits.dtype)
    bits = jnp.where(bits & sign != 0, bits ^ sign, ~bits)
    return jax.lax.bitcast_convert_type(bits, values.dtype)


def smallest(values: Float[Array, "n c"], k: Int[Array, ""] | int) -> Bool[Array, "n c"]:
    """Per column, a mask of the k smallest values; among equals the lowest index wins.

    ``k`` may be traced. NaN counts as +inf. No gradient: a selection is a constant.
    """
    n = values.shape[0]
    values = jax.lax.stop_gradient(jnp.where(jnp.isnan(values), jnp.inf, values))
    k = jnp.clip(jnp.asarray(k, jnp.int32), 0, n)
    bits = _ordered_bits(values)
    last = _kth_bits(bits, jnp.maximum(k, 1) - 1)
    below, tied = bits < last, bits == last
    room = k - jnp.sum(below, axis=0, keepdims=True, dtype=jnp.int32)
    return below | (tied & (jnp.cumsum(tied, axis=0, dtype=jnp.int32) <= room))


def _mean_by_bisection(values: Array, low: int, high: int) -> Array:
    bits = jax.lax.stop_gradient(_ordered_bits(values))
    first, last = _kth_bits(bits, low), _kth_bits(bits, high - 1)

    def sum_where(mask: Array) -> Array:
        return jnp.sum(jnp.where(mask, values, 0), axis=0)

    def count(mask: Array) -> Array:
        return jnp.sum(mask, axis=0, dtype=jnp.int32)

    # Of the values equal to either end, only some are among the ranks.
    n_first, n_last = count(bits <= first) - low, high - count(bits < last)
    at_first = sum_where(bits == first) / count(bits == first)
    at_last = sum_where(bits == last) / count(bits == last)
    inner = sum_where((bits > first) & (bits < last))
    mean = (inner + n_first * at_first + n_last * at_last) / (high - low)
    return jnp.where((first == last)[0], at_first, mean)


def _ordered_bits(values: Array) -> Array:
    """Unsigned integers in the order of the floats; -0.0 and 0.0 are equal."""
    values = jnp.where(values == 0, 0, values)  # XLA would fold away -0.0 + 0.0
    width = values.dtype.itemsize * 8
    unsigned = jnp.dtype(f"uint{width}")
    bits = jax.lax.bitcast_convert_type(values, unsigned)
    sign = jnp.array(1 << (width - 1), unsigned)
    return jnp.where(bits & sign != 0, ~bits, bits | sign)


def _kth_bits(bits: Array, k: Array | int) -> Array:
    """Per column, as one row, the value of rank k: the largest v with at most k values below it."""
    width = bits.dtype.itemsize * 8

    def body(i: Array | int, found: Array) -> Array:
        bit = jnp.array(1, bits.dtype) << jnp.asarray(width - 1 - i, bits.dtype)
        trial = found | bit
        below = jnp.sum(bits < trial, axis=0, keepdims=True, dtype=jnp.int32)
        return jnp.where(below <= k, trial, found)

    return jax.lax.fori_loop(0, width, body, jnp.zeros((1, *bits.shape[1:]), bits.dtype))
