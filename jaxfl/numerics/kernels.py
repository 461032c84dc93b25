"""Order statistics on a GPU in one pass over the matrix: Pallas kernels (Triton).

A block of columns is read once into registers. Few rows are sorted there by a network, a column to
a thread; of many, the values of the two ranks wanted are found by bisection on the bits, and the
mean of what lies between them is taken from the same registers. Tested in interpret mode, and
lowered for CUDA, on machines without a GPU; it has not run on one yet.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.numerics import network

MOST_ROWS = 2048
"""Past this a block of 16 columns, one memory transaction wide, does not fit the registers."""
_ELEMENTS = 16_384
"""Elements in a block: 64 registers of each of 256 threads."""
_WARPS = 8


def serves(values: Float[Array, "n c"]) -> bool:
    """Whether the kernel is for this type and number of rows."""
    return values.shape[0] <= MOST_ROWS and values.dtype == jnp.float32


def mean_of_ranks(
    values: Float[Array, "n c"], low: int, high: int, *, interpret: bool = False
) -> Float[Array, " c"]:
    """Per column, the mean of the values of rank low, ..., high - 1; NaN counts as +inf.

    Args:
      values: float32, at most ``MOST_ROWS`` rows.
      low: first rank, from 0.
      high: past the last rank.
      interpret: runs the kernel's operations one by one on any backend, for tests.

    Cost: one read of the matrix.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton  # slow to import, and only GPUs want it

    n, c = values.shape
    few, rows = n <= network.ROWS, pl.next_power_of_2(n)
    width = 32 * _WARPS if few else max(16, min(128, _ELEMENTS // rows))
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    options: dict[str, Any] = {}
    if not interpret:
        options["compiler_params"] = triton.CompilerParams(num_warps=_WARPS)

    def of_few(values_ref: Any, _: Array, own: Array) -> Array:
        block = [triton.load(values_ref.at[i, own], mask=own < c, other=jnp.inf) for i in range(n)]
        ordered = network.in_order([jnp.where(jnp.isnan(row), jnp.inf, row) for row in block])
        return functools.reduce(jnp.add, ordered[low:high]) / (high - low)

    def of_many(values_ref: Any, first: Array, own: Array) -> Array:
        row = jax.lax.broadcasted_iota(jnp.int32, (rows, width), 0)
        column = first + jax.lax.broadcasted_iota(jnp.int32, (rows, width), 1)
        inside = (row < n) & (column < c)
        block = triton.load(values_ref.at[row, column], mask=inside, other=jnp.inf)
        return _mean_of_ranks(block, low, high)

    def kernel(values_ref: Any, output_ref: Any) -> None:
        first = pl.program_id(0) * width
        own = first + jnp.arange(width)
        mean = (of_few if few else of_many)(values_ref, first, own)
        triton.store(output_ref.at[own], mean, mask=own < c)

    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((c,), values.dtype),
        grid=(pl.cdiv(c, width),),
        in_specs=[anywhere],
        out_specs=anywhere,
        interpret=interpret,
        **options,
    )(values)


def _mean_of_ranks(block: Float[Array, "r w"], low: int, high: int) -> Float[Array, " w"]:
    """Of one block; rows that pad it are +inf, beyond every rank asked for."""
    block = jnp.where(jnp.isnan(block), jnp.inf, block)
    keys = _flip(jax.lax.bitcast_convert_type(jnp.where(block == 0, 0.0, block), jnp.int32))
    first, last = _of_rank(keys, low), _of_rank(keys, high - 1)
    lower, upper = (jax.lax.bitcast_convert_type(_flip(key), jnp.float32) for key in (first, last))

    def count(mask: Array) -> Array:
        return jnp.sum(mask.astype(jnp.float32), axis=0)

    between = (keys > first[None, :]) & (keys < last[None, :])
    inner = jnp.sum(jnp.where(between, block, 0.0), axis=0)
    # Of the values equal to either end, only some are among the ranks.
    n_first = count(keys <= first[None, :]) - low
    n_last = high - count(keys < last[None, :])
    mean = (inner + n_first * lower + n_last * upper) / (high - low)
    return jnp.where(first == last, lower, mean)


def _flip(bits: Array) -> Array:
    """Between the bits of floats and signed integers in the same order; its own inverse."""
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _of_rank(keys: Array, rank: int) -> Array:
    """The largest key with at most ``rank`` keys below it, bit by bit from the sign."""

    def step(i: Array, found: Array) -> Array:
        trial = found ^ (jnp.int32(1) << (31 - i).astype(jnp.int32))
        below = jnp.sum((keys < trial[None, :]).astype(jnp.int32), axis=0)
        return jnp.where(below <= rank, trial, found)

    lowest = jnp.full(keys.shape[1:], jnp.iinfo(jnp.int32).min, jnp.int32)
    return jax.lax.fori_loop(0, 32, step, lowest)
