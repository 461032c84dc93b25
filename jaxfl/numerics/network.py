"""Sorting few rows by a network: ``minimum`` and ``maximum`` of whole rows, unrolled.

Every column is sorted alike, without branches, and XLA keeps only the comparators that the
wanted rows depend on.
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

ROWS = 64
"""Most rows for which a network is used: compiling one for more takes seconds to minutes."""


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


def sorted_rows(values: Float[Array, "n c"]) -> list[Float[Array, "1 c"]]:
    """Per column, the values in ascending order, as a list of rows. None may be NaN."""
    # Kept as matrices: XLA gives up fusing where reshapes stand between the comparators.
    return in_order(jnp.split(values, values.shape[0]))


def in_order(rows: list[Array]) -> list[Array]:
    """Arrays of one shape, exchanged element by element until they ascend. None may be NaN."""
    rows = list(rows)
    for i, j in sorting_network(len(rows)):
        rows[i], rows[j] = jnp.minimum(rows[i], rows[j]), jnp.maximum(rows[i], rows[j])
    return rows
