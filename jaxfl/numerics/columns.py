"""Functions of a matrix's columns, run block by block and device by device.

A pass over an ``[n, d]`` matrix is fast when each block of columns is read once and stays in
cache while everything wanted of it is computed, and it is parallel because blocks do not depend
on each other. Both facts live here and nowhere else: inside a mesh the columns are split over
its devices, and on a CPU each device walks its columns in blocks.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from jaxtyping import Array, Integer

AXIS = "shards"
"""Name of the one mesh axis, over which columns, or other independent parts, are split."""
LEAST = 512
"""Columns of the narrowest block that is worth running beside others."""


def mesh_kind() -> tuple[str, int]:
    """How the surrounding program is mapped: ``("single" | "auto" | "manual", devices)``.

    ``auto``: inside ``jit`` under a mesh (the ``shard_map`` way); ``manual``: inside an SPMD
    region that already runs once per device (``pmap``, or the body of a ``shard_map``).
    """
    mesh: AbstractMesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or AXIS not in mesh.axis_names:
        return "single", 1
    kind = mesh.axis_types[mesh.axis_names.index(AXIS)]
    return ("manual" if kind == AxisType.Manual else "auto"), mesh.shape[AXIS]


def map_columns(function: Callable[..., Array], *arrays: Array, width: int) -> Array:
    """``function`` applied to blocks of columns, results laid side by side.

    Args:
      function: maps blocks ``[..., c]`` of every array to one block ``[..., c]``, each output
        column depending only on the input columns above it.
      *arrays: matrices or vectors with a common last axis of length d.
      width: columns per block on a CPU; other backends fuse the whole matrix.

    Returns:
      An array with last axis d.
    """
    return _over_devices(partial(map_blocks, function, width=width), arrays, summed=False)


def map_blocks(function: Callable[..., Array], *arrays: Array, width: int) -> Array:
    """``map_columns`` on each device by itself, for arrays that all devices have whole."""
    if arrays[0].shape[-1] <= width:
        return function(*arrays)
    return on_cpu_or_else(partial(_in_blocks, function, width), function, *arrays)


def on_cpu_or_else(cpu: Callable[..., Any], other: Callable[..., Any], *args: Array) -> Any:
    """``cpu(*args)`` on a CPU and ``other(*args)`` elsewhere.

    Decided by the platform that the program is compiled for, which is not the default backend
    where it is placed on other devices or exported; a program holds one of the two.
    """
    return jax.lax.platform_dependent(*args, cpu=cpu, default=other)


def _in_blocks(function: Callable[..., Array], width: int, *arrays: Array) -> Array:
    d = arrays[0].shape[-1]
    blocks = [jax.ShapeDtypeStruct((*a.shape[:-1], width), a.dtype) for a in arrays]
    out = jax.eval_shape(function, *blocks)

    # The last block is moved left to fit: slices clamp, overlapping columns agree.
    def body(i: Array | int, result: Array) -> Array:
        block = function(*(_columns(a, i * width, width) for a in arrays))
        return jax.lax.dynamic_update_slice_in_dim(result, block, i * width, axis=-1)

    result = jnp.zeros((*out.shape[:-1], d), out.dtype)
    return jax.lax.fori_loop(0, -(-d // width), body, result)


def sum_columns(
    function: Callable[..., Array],
    *arrays: Array,
    width: int,
    together: int = 1,
    run: Integer[Array, ""] | None = None,
) -> Array:
    """The sum of ``function`` over blocks of columns: Gram matrices, norms, products.

    Args:
      function: maps blocks ``[..., c]`` to an array whose shape does not depend on c, and is a
        sum over columns to which a column of zeros adds nothing.
      *arrays: arrays with a common last axis of length d.
      width: most columns per block on a CPU; other backends fuse the whole matrix.
      together: blocks in one step of the loop. A CPU runs what does not depend on each other on
        all its cores once there are about ten such things; a small product alone keeps one busy.
        Fewer than 512 columns for each are one block.
      run: which of several runs, where all arrays lead by an axis of runs; see ``runs.in_turn``.
    """

    def in_blocks(*arrays: Array) -> Array:
        d = arrays[0].shape[-1]
        steps = -(-d // (width * together))
        wide = d // (steps * together)
        stride = wide * together

        def block(start: Array | int) -> Array:
            return function(*(_columns(a, start, wide, run) for a in arrays))

        def body(i: Array | int, total: Array) -> Array:
            blocks = [block(i * stride + k * wide) for k in range(together)]
            if together == 1:
                return total + blocks[0]
            return total + jnp.sum(jnp.stack(blocks), axis=0)

        rest = function(*(_columns(a, steps * stride, d - steps * stride, run) for a in arrays))
        return jax.lax.fori_loop(0, steps, body, rest)

    def whole(*arrays: Array) -> Array:
        return function(*(_columns(a, 0, a.shape[-1], run) for a in arrays))

    def local(*arrays: Array) -> Array:
        if arrays[0].shape[-1] <= (width if together == 1 else LEAST * together):
            return whole(*arrays)
        return on_cpu_or_else(in_blocks, whole, *arrays)

    return _over_devices(local, arrays, summed=True)


def _columns(
    array: Array, start: Array | int, width: int, run: Integer[Array, ""] | None = None
) -> Array:
    """A block of columns, of one run where the array leads by an axis of runs."""
    if run is None:
        return jax.lax.dynamic_slice_in_dim(array, start, width, axis=-1)
    inner = array.shape[1:-1]
    starts = [jnp.asarray(at, run.dtype) for at in (run, *(0 for _ in inner), start)]
    return jax.lax.dynamic_slice(array, starts, (1, *inner, width))[0]


def _over_devices(local: Callable[..., Any], arrays: tuple[Array, ...], *, summed: bool) -> Any:
    kind, devices = mesh_kind()
    if kind != "auto" or devices == 1:
        return local(*arrays)
    d = arrays[0].shape[-1]
    pad = -d % devices
    arrays = tuple(jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, pad)]) for a in arrays)
    specs = tuple(PartitionSpec(*[None] * (a.ndim - 1), AXIS) for a in arrays)

    def shard(*shards: Array) -> Array:
        result = local(*shards)
        return jax.lax.psum(result, AXIS) if summed else result

    if summed:
        out_specs = PartitionSpec()
    else:
        rank = jax.eval_shape(local, *arrays).ndim
        out_specs = PartitionSpec(*[None] * (rank - 1), AXIS)
    result = jax.shard_map(shard, in_specs=specs, out_specs=out_specs, check_vma=False)(*arrays)
    return result if summed else result[..., :d]
