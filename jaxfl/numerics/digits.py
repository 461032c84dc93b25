"""Selection among many rows: a binary search for the bits of the value of a given rank.

A value is the largest v with at most k values below it. Its bits are found eight at a time:
eight more bits of every element make a key of one byte, and eight passes that count the keys
below a trial find the next eight bits of v. The work does not depend on the values.

On a CPU, vectors of bytes hold four times as many elements as vectors of floats. XLA makes such
vectors only in a loop over columns that holds no wider type, so rows are added up one by one,
in bytes as far as a byte counts.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt

ONE_TILE = 192
"""Most rows in a single tile; a byte would count 255, but XLA breaks up loops of so many."""
TILES = 16
"""Least tiles where there are several: with fewer, XLA fuses the bytes into the sum of tiles."""
TILE_ROWS = 64
"""Most rows in one of several tiles: longer ones gain nothing and take longer to compile."""


def ordered_bits(values: Float[Array, "*shape"]) -> UInt[Array, "*shape"]:
    """Unsigned integers in the order of the floats; -0.0 and 0.0 are equal."""
    values = jnp.where(values == 0, 0, values)  # XLA would fold away -0.0 + 0.0
    unsigned = jnp.dtype(f"uint{values.dtype.itemsize * 8}")
    bits = jax.lax.bitcast_convert_type(values, unsigned)
    return jnp.where(bits & _sign(unsigned) != 0, ~bits, bits | _sign(unsigned))


def floats(bits: UInt[Array, "*shape"], dtype: jnp.dtype) -> Float[Array, "*shape"]:
    """The floats whose ``ordered_bits`` these are."""
    sign = _sign(bits.dtype)
    bits = jnp.where(bits & sign != 0, bits ^ sign, ~bits)
    return jax.lax.bitcast_convert_type(bits, dtype)


def tiled(rows: Array, fill: Array) -> Array:
    """The rows ``[n, c]`` in m tiles of r, ``[m, r, c]``, the last filled up."""
    n, c = rows.shape
    if n <= ONE_TILE:
        return rows[None]
    r = min(TILE_ROWS, -(-n // TILES))
    m = -(-n // r)
    return jnp.pad(rows, ((0, m * r - n), (0, 0)), constant_values=fill).reshape(m, r, c)


def fold(
    combine: Callable[[Array, Array], Array], term: Callable[[Array], Array], tiles: Array
) -> Array:
    """For each tile, ``combine`` over ``term`` of its rows: ``[m, r, c]`` to ``[m, c]``."""
    return functools.reduce(combine, [term(tiles[:, i]) for i in range(tiles.shape[1])])


def total(term: Callable[[Array], Array], tiles: Array) -> Array:
    """Per column, the sum of ``term`` over all rows, in floats."""
    partial = fold(jnp.add, term, tiles)
    # A product is never fused: as a sum, it would be made anew for each element that needs it.
    ones = jnp.ones((partial.shape[0],), partial.dtype)
    return partial[0] if partial.shape[0] == 1 else jnp.matmul(ones, partial, precision="highest")


class Rank(NamedTuple):
    """The element of some rank, for each column."""

    element: UInt[Array, " c"]
    below: Array
    """How many elements are smaller."""
    upto: Array
    """How many are smaller or equal."""


def kth(elements: UInt[Array, "n c"], k: Array | int) -> Rank:
    """Per column, the element of rank k, from 0, in ascending order.

    Args:
      elements: below the largest value of their type.
      k: one rank, or one for each column; may be traced.

    Cost: for each byte of the type, one pass over the elements and eight over as many bytes.
    """
    n, c = elements.shape
    dtype = elements.dtype
    width = dtype.itemsize * 8
    tiles = tiled(elements, jnp.array(np.iinfo(dtype).max, dtype))
    counts = np.min_scalar_type(n)  # the narrowest unsigned integers
    k = jnp.broadcast_to(jnp.asarray(k), (c,)).astype(counts)

    def next_byte(i: Array | int, carry: Rank) -> Rank:
        # Elements that begin otherwise are above any trial (those below wrap round), or counted.
        start = carry.element << 8
        rest = (tiles >> jnp.asarray(width - 8 - 8 * i, dtype)) - start[None, None]
        keys = jnp.minimum(rest, 255).astype(jnp.uint8)

        def narrowed(rank: Rank, trial: Array, count: Array) -> Rank:
            fits = count <= k
            return Rank(
                element=jnp.where(fits, trial, rank.element),
                below=jnp.where(fits, count, rank.below),
                upto=jnp.where(fits, rank.upto, count),
            )

        def next_bit(_: Array | int, state: tuple) -> tuple:
            # The bit is carried as a row: an index in this loop would cost its vectorisation. A
            # count is used a step after it was made: it would be made for each of its uses.
            *counted, bit = state
            rank = narrowed(*counted)
            trial = rank.element | bit
            partial = fold(jnp.add, lambda row: (row < trial[None]).astype(jnp.uint8), keys)
            count = functools.reduce(jnp.add, [tile.astype(counts) for tile in partial])
            return rank, trial, carry.below + count, bit >> 1

        none = jnp.zeros((c,), jnp.uint8)
        first = carry._replace(element=none), none, carry.below, jnp.full_like(none, 128)
        *counted, _ = jax.lax.fori_loop(0, 8, next_bit, first)
        found = narrowed(*counted)
        return found._replace(element=start | found.element.astype(dtype))

    none = Rank(jnp.zeros((c,), dtype), jnp.zeros((c,), counts), jnp.full((c,), n, counts))
    found = jax.lax.fori_loop(0, width // 8, next_byte, none)
    return Rank(found.element, found.below.astype(jnp.int32), found.upto.astype(jnp.int32))


def kth_of_many(elements: UInt[Array, " n"], k: Array | int) -> UInt[Array, ""]:
    """The element of rank k of a long vector. Cost: one pass for each bit."""
    width = elements.dtype.itemsize * 8

    def next_bit(i: Array | int, found: Array) -> Array:
        trial = found | (jnp.array(1, elements.dtype) << jnp.asarray(width - 1 - i, found.dtype))
        return jnp.where(jnp.sum(elements < trial, dtype=jnp.int32) <= k, trial, found)

    return jax.lax.fori_loop(0, width, next_bit, jnp.zeros((), elements.dtype))


def following(elements: UInt[Array, "n c"], rank: Rank, k: int) -> UInt[Array, " c"]:
    """Per column, the element of rank k + 1, where ``rank`` is that of rank k."""
    most = jnp.array(np.iinfo(elements.dtype).max, elements.dtype)

    def above(row: Array) -> Array:
        return jnp.where(row > rank.element[None], row, most)

    least = functools.reduce(jnp.minimum, fold(jnp.minimum, above, tiled(elements, most)))
    return jnp.where(rank.upto > k + 1, rank.element, least)


def _sign(unsigned: jnp.dtype) -> Array:
    return jnp.array(1 << (unsigned.itemsize * 8 - 1), unsigned)
