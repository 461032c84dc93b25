"""Order statistics on a GPU in one pass over the matrix: Pallas kernels (Triton).

A block of columns is read once into registers. Few rows are sorted there by a network, a column to
a thread; of many, the values of the two ranks wanted are found by bisection on the bits, and the
mean of what lies between them, or nearest that mean, is taken from the same registers. Tested in
interpret mode, and lowered for CUDA, on machines without a GPU; it has not run on one yet.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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
    values: Float[Array, "n c"],
    low: int,
    high: int,
    nearest: int | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, " c"]:
    """Per column, the mean of the values of rank low, ..., high - 1; NaN counts as +inf.

    Args:
      values: float32, at most ``MOST_ROWS`` rows.
      low: first rank, from 0.
      high: past the last rank.
      nearest: the mean of so many values nearest that mean instead; among equals the first rows.
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
        block = [jnp.where(jnp.isnan(row), jnp.inf, row) for row in block]
        ordered = network.in_order(block)
        mean = functools.reduce(jnp.add, ordered[low:high]) / (high - low)
        return mean if nearest is None else _mean_of_few_nearest(block, ordered, mean, nearest)

    def of_many(values_ref: Any, first: Array, own: Array) -> Array:
        row = jax.lax.broadcasted_iota(jnp.int32, (rows, width), 0)
        column = first + jax.lax.broadcasted_iota(jnp.int32, (rows, width), 1)
        inside = (row < n) & (column < c)
        block = triton.load(values_ref.at[row, column], mask=inside, other=jnp.inf)
        block = jnp.where(jnp.isnan(block), jnp.inf, block)
        mean = _mean_of_ranks(block, low, high)
        if nearest is None:
            return mean
        return _mean_of_nearest(jnp.where(row < n, block, jnp.nan), mean, nearest, row)

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


def distances(values: Array, centre: Array) -> Array:
    """Halved, so that the distance of two finite numbers is finite and ties with no infinity;
    what is no number is infinitely far.
    """
    apart = jnp.abs(values / 2 - centre / 2)
    return jnp.where(jnp.isnan(apart), jnp.inf, apart)


def _mean_of_few_nearest(block: list[Array], ordered: list[Array], centre: Array, k: int) -> Array:
    # The k nearest are neighbours in ascending order, and the farthest of them is at one end.
    ends = [distances(row, centre) for row in ordered]
    windows = [jnp.maximum(ends[i], ends[i + k - 1]) for i in range(len(ends) - k + 1)]
    radius = functools.reduce(jnp.minimum, windows)
    apart = [distances(row, centre) for row in block]
    room = k - functools.reduce(jnp.add, [(d < radius).astype(jnp.int32) for d in apart])
    total, earlier = jnp.zeros_like(centre), jnp.zeros_like(room)
    for row, distance in zip(block, apart, strict=True):
        ties = distance == radius
        total += jnp.where((distance < radius) | (ties & (earlier < room)), row, 0.0)
        earlier += ties.astype(jnp.int32)
    return jnp.where(radius == 0, centre, total / k)


def _mean_of_nearest(
    block: Float[Array, "r w"], centre: Float[Array, " w"], k: int, row: Int[Array, "r w"]
) -> Float[Array, " w"]:
    """Of one block; rows that pad it are NaN, behind all others."""
    apart = distances(block, centre[None, :])
    # Distances are not negative, so that their bits are in their order; padding comes last.
    keys = jax.lax.bitcast_convert_type(apart, jnp.int32) + jnp.isnan(block).astype(jnp.int32)
    last = _of_rank(keys, k - 1)[None, :]
    room = k - jnp.sum((keys < last).astype(jnp.int32), axis=0)
    # The rows of those that tie for the last places, in order; others come after all rows.
    places = jnp.where(keys == last, row, MOST_ROWS)
    upto = _of_rank(places, room - 1)
    taken = (keys < last) | (places <= upto[None, :])
    radius = jax.lax.bitcast_convert_type(last, jnp.float32)[0]
    total = jnp.sum(jnp.where(taken, block, 0.0), axis=0)
    return jnp.where(radius == 0, centre, total / k)


def _flip(bits: Array) -> Array:
    """Between the bits of floats and signed integers in the same order; its own inverse."""
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _of_rank(keys: Array, rank: Array | int) -> Array:
    """The largest key with at most ``rank`` keys below it, bit by bit from the sign."""

    def step(i: Array, found: Array) -> Array:
        trial = found ^ (jnp.int32(1) << (31 - i).astype(jnp.int32))
        below = jnp.sum((keys < trial[None, :]).astype(jnp.int32), axis=0)
        return jnp.where(below <= rank, trial, found)

    lowest = jnp.full(keys.shape[1:], jnp.iinfo(jnp.int32).min, jnp.int32)
    return jax.lax.fori_loop(0, 32, step, lowest)
