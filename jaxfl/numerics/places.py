"""Reading and writing the rows at given places of a matrix, such as a part of a larger memory.

On a CPU, XLA's scatter takes several times as long as its rows' way through memory, and that of
several runs, under ``vmap``, copies all matrices into another order of axes first. Here a CPU
walks over long rows, those of all runs as if they were of one matrix, which is changed in place.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from jaxfl.numerics.columns import mesh_kind, on_cpu_or_else
from jaxfl.numerics.runs import alike, differentiable_as

LONG = 4096
"""Columns from which on a row is worth a step of a loop, which costs about a microsecond."""


def put_at(
    matrix: Float[Array, "k d"], places: Int[Array, " n"], rows: Float[Array, "n d"]
) -> Float[Array, "k d"]:
    """The matrix with these rows at these different places; those past its end are dropped."""
    return _put(matrix, places, rows)


def add_at(
    matrix: Float[Array, "k d"], places: Int[Array, " n"], rows: Float[Array, "n d"]
) -> Float[Array, "k d"]:
    """The matrix with these rows added at these places; those past its end are dropped."""
    return _add(matrix, places, rows)


def take_at(matrix: Float[Array, "k d"], places: Int[Array, " n"]) -> Float[Array, "n d"]:
    """The rows at these places, none of which may be past the end."""
    return _take(matrix, places)


def _of_all_runs(
    at_once: Callable[..., Array], row_by_row: Callable[..., Array]
) -> Callable[..., Array]:
    """Of a matrix, places in it, and rows; under ``vmap`` of all runs' rows as of one matrix."""

    def either(matrix: Array, *more: Array) -> Array:
        # Where devices share the matrix, a step for each row would be a message for each.
        if matrix.shape[1] < LONG or mesh_kind()[0] == "auto":
            return at_once(matrix, *more)
        return on_cpu_or_else(row_by_row, at_once, matrix, *more)

    one = jax.custom_batching.custom_vmap(either)

    @one.def_vmap
    def _(size: int, batched: list[bool], *arrays: Array) -> tuple[Array, bool]:
        matrices, places, *rows = alike(size, batched, arrays)
        k = matrices.shape[1]
        first = k * jnp.arange(size, dtype=places.dtype)[:, None]
        places = jnp.where(places < k, places + first, size * k)
        flat = (array.reshape(-1, *array.shape[2:]) for array in (matrices, places, *rows))
        result = whole(*flat)
        return result.reshape(size, -1, *result.shape[1:]), True

    whole = differentiable_as(at_once, one)
    return whole


def _walk(change: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    def row_by_row(matrix: Array, places: Array, rows: Array) -> Array:
        def body(i: Integer[Array, ""] | int, matrix: Array) -> Array:
            own = jax.lax.dynamic_slice_in_dim(matrix, places[i], 1)
            row = change(own, jax.lax.dynamic_slice_in_dim(rows, i, 1))
            row = jnp.where(places[i] < matrix.shape[0], row, own)
            return jax.lax.dynamic_update_slice_in_dim(matrix, row, places[i], axis=0)

        return jax.lax.fori_loop(0, places.shape[0], body, matrix)

    return row_by_row


def _taken_row_by_row(matrix: Array, places: Array) -> Array:
    def body(i: Integer[Array, ""] | int, taken: Array) -> Array:
        row = jax.lax.dynamic_slice_in_dim(matrix, places[i], 1)
        return jax.lax.dynamic_update_slice_in_dim(taken, row, i, axis=0)

    n = places.shape[0]
    return jax.lax.fori_loop(0, n, body, jnp.zeros((n, matrix.shape[1]), matrix.dtype))


_put = _of_all_runs(
    lambda matrix, places, rows: matrix.at[places].set(rows, mode="drop"),
    _walk(lambda own, row: row),
)
_add = _of_all_runs(
    lambda matrix, places, rows: matrix.at[places].add(rows, mode="drop"), _walk(jnp.add)
)
_take = _of_all_runs(
    lambda matrix, places: jnp.take(matrix, places, axis=0, mode="clip"), _taken_row_by_row
)
