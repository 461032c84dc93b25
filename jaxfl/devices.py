"""The client axis over chunks, devices and hosts.

Two ways to use several devices, chosen by one word and with the same results to rounding:

``"shard_map"``: the round is one global program. Clients are mapped over the mesh, then the update
matrix is laid out anew by columns, so that sorting and inner products run on d / devices
coordinates each (see ``numerics.columns``). This is the way over several hosts.

``"pmap"``: the round is one SPMD program. Every device computes its share of the clients, the
updates are gathered, and each device aggregates the whole matrix.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxfl.machine import process_memory
from jaxfl.numerics.columns import AXIS, mesh_kind
from jaxfl.numerics.rows import Rows
from jaxfl.numerics.stream import Stream
from jaxfl.types import PyTree

Device = Any
"""A ``jax.Device``."""

WAYS = ("shard_map", "pmap")

CPU_WORKING_SET = 64 * 2**20
"""Bytes that all of a chunk's intermediate results should stay under on a CPU. Most of them are
dead or fused before the next, so this is several times the caches; found by measurement."""


def map_clients(
    function: Callable[[PyTree, PyTree], PyTree], shared: PyTree, arguments: PyTree, *, chunk: int
) -> PyTree:
    """``function(shared, client)`` over the clients: chunks in sequence, each chunk vmapped.

    Inside a mesh each device takes an equal share of the clients; numbers that do not divide
    are padded with copies of client 0, which are computed and dropped. ``function`` must take
    every array it reads as an argument: closed-over ones belong to the mesh around it.

    Args:
      function: one client's work.
      shared: arrays that every client reads.
      arguments: arrays with a leading client axis.
      chunk: clients vmapped at once.
    """
    n = jax.tree.leaves(arguments)[0].shape[0]
    kind, devices = mesh_kind()

    def local(shared: PyTree, arguments: PyTree) -> PyTree:
        count = jax.tree.leaves(arguments)[0].shape[0]
        one = functools.partial(function, shared)
        if chunk >= count:
            return jax.vmap(one)(arguments)
        return jax.lax.map(one, arguments, batch_size=chunk if chunk > 1 else None)

    if kind == "single" or devices == 1:
        return local(shared, arguments)
    share = -(-n // devices)
    pad = share * devices - n
    padded = jax.tree.map(lambda x: jnp.concatenate([x, x[:1].repeat(pad, axis=0)]), arguments)
    if kind == "auto":
        split = PartitionSpec(AXIS)
        result = jax.shard_map(
            local, in_specs=(PartitionSpec(), split), out_specs=split, check_vma=False
        )(shared, padded)
    else:
        start = jax.lax.axis_index(AXIS) * share
        mine = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, share), padded)
        result = jax.lax.all_gather(local(shared, mine), AXIS, tiled=True)
    return jax.tree.map(lambda x: x[:n], result)


def device_of(tree: PyTree) -> Device:
    """The first of this process's devices on which the arrays are: that which will run."""
    held = (leaf.devices() for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array))
    holders = next(held, None) or {jax.local_devices()[0]}
    mine = [device for device in holders if device.process_index == jax.process_index()]
    return min(mine, key=lambda device: device.id)


def memory_of_device(device: Device) -> int | None:
    """Bytes of a device's memory, or what this process may take where that is the CPU's.

    None: unknown.
    """
    stats = device.memory_stats() or {}
    return int(stats["bytes_limit"]) if "bytes_limit" in stats else process_memory()


def by_columns(matrix: Rows) -> Rows:
    """Lays an ``[n, d]`` matrix out by columns over the mesh: one all-to-all, no gather."""
    kind, devices = mesh_kind()
    if isinstance(matrix, Stream) or kind != "auto" or devices == 1:
        return matrix
    return jax.lax.with_sharding_constraint(matrix, PartitionSpec(None, AXIS))


def replicate(array: Array) -> Array:
    """Lays an array out whole on every device of the mesh: one gather, not one at each use."""
    kind, devices = mesh_kind()
    if kind != "auto" or devices == 1:
        return array
    return jax.lax.with_sharding_constraint(array, PartitionSpec())


def working_set(function: Callable[..., PyTree], *arguments: PyTree) -> int:
    """Bytes of all real intermediate results of one call, as if each lived to its end.

    Integers do not count: random bits fuse with what they become, and other ones are few.
    """

    def size(jaxpr: Any) -> int:
        total = 0
        for equation in jaxpr.eqns:
            total += sum(
                v.aval.size * v.aval.dtype.itemsize
                for v in equation.outvars
                if jnp.issubdtype(v.aval.dtype, jnp.inexact)
            )
            for parameter in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
            ):
                inner = getattr(parameter, "jaxpr", parameter)
                total += size(inner) if hasattr(inner, "eqns") else 0
        return total

    return size(jax.make_jaxpr(function)(*arguments).jaxpr)


def choose_chunk(clients: int, bytes_per_client: int, device: Device) -> int:
    """How many clients to vmap at once on such a device.

    On a CPU as many as stay under ``CPU_WORKING_SET``; elsewhere as many as fit a quarter of the
    device's memory.
    The result divides ``clients`` evenly where that costs less than half of it, because a
    remainder is compiled a second time.
    """
    budget = CPU_WORKING_SET
    if device.platform != "cpu":
        statistics = device.memory_stats() or {}
        budget = statistics.get("bytes_limit", 2**33) // 4
    most = min(max(budget // max(bytes_per_client, 1), 1), clients)
    divisors = [c for c in range(1, most + 1) if clients % c == 0]
    return divisors[-1] if divisors[-1] * 2 >= most else most


def make_mesh(devices: Sequence[Device]) -> Mesh:
    """The 1-D mesh over these devices."""
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def apart(tree: PyTree) -> PyTree:
    """The tree with memory of its own for every leaf, as a program needs that takes it over.

    A part's memory may begin as one array of zeros in several places.
    """
    seen: set[int] = set()

    def own(leaf: Array) -> Array:
        known = id(leaf) in seen
        seen.add(id(leaf))
        return jnp.copy(leaf) if known else leaf

    return jax.tree.map(own, tree)


def copy_to(tree: PyTree, devices: Sequence[Device] | None) -> PyTree:
    """The arrays whole on every one of these devices, so that no later call has to move them."""
    if devices is None:
        return tree
    if len(devices) == 1:
        return jax.device_put(tree, devices[0])
    whole = NamedSharding(make_mesh(devices), PartitionSpec())

    def place(leaf: Array) -> Array:
        if jax.process_count() == 1 or leaf.sharding == whole:
            return jax.device_put(leaf, whole)
        # ``device_put`` would compare what several processes put, and NaN differs from NaN.
        mine = np.asarray(leaf)
        return jax.make_array_from_callback(mine.shape, whole, lambda index: mine[index])

    def put(leaf: Array) -> Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            # Not by ``device_put``, which refuses keys where there are several processes.
            bits = place(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))
        return place(leaf)

    return jax.tree.map(put, jax.tree.map(jnp.asarray, tree))


def check_way(way: str) -> None:
    """Raises ValueError for an unknown way of using several devices."""
    if way not in WAYS:
        raise ValueError(f"devices: way must be one of {', '.join(WAYS)}; got {way!r}")


def compile_for(
    function: Callable[..., PyTree],
    *,
    way: str = "shard_map",
    devices: Sequence[Device] | None = None,
    donate: tuple[int, ...] = (),
) -> Callable[..., PyTree]:
    """Compiles a pure function of positional pytrees for one or several devices.

    Args:
      function: calls ``map_clients`` and ``numerics.columns`` somewhere inside.
      way: ``"shard_map"`` or ``"pmap"``; without effect on one device.
      devices: defaults to the first device alone.
      donate: positions of arguments whose memory the result may take.

    Raises:
      ValueError: an unknown way.
    """
    check_way(way)
    devices = list(devices or jax.devices()[:1])
    if len(devices) == 1:
        return _on_one(function, devices[0], donate)
    if way == "shard_map":
        return _on_mesh(function, devices, donate)
    return _on_all(function, devices, donate)


def _on_one(
    function: Callable[..., PyTree], device: Device, donate: tuple[int, ...]
) -> Callable[..., PyTree]:
    jitted = jax.jit(function, donate_argnums=donate)

    def call(*arguments: PyTree) -> PyTree:
        with jax.default_device(device):
            return jitted(*arguments)

    return call


def _on_mesh(
    function: Callable[..., PyTree], devices: Sequence[Device], donate: tuple[int, ...]
) -> Callable[..., PyTree]:
    mesh = make_mesh(devices)
    whole = NamedSharding(mesh, PartitionSpec())
    jitted = jax.jit(function, donate_argnums=donate, out_shardings=whole)

    def call(*arguments: PyTree) -> PyTree:
        placed = copy_to(arguments, devices)
        with jax.set_mesh(mesh):
            return jitted(*placed)

    return call


def _on_all(
    function: Callable[..., PyTree], devices: Sequence[Device], donate: tuple[int, ...]
) -> Callable[..., PyTree]:
    """``pmap`` over the devices; it needs to know how many arguments there are."""
    mapped: dict[int, Callable[..., PyTree]] = {}

    def call(*arguments: PyTree) -> PyTree:
        if len(arguments) not in mapped:
            mapped[len(arguments)] = jax.pmap(
                lambda _, *a: function(*a),
                axis_name=AXIS,
                in_axes=(0, *[None] * len(arguments)),  # pyright: ignore[reportArgumentType]
                out_axes=None,  # pyright: ignore[reportArgumentType]
                devices=devices,
                donate_argnums=tuple(1 + position for position in donate),
            )
        return mapped[len(arguments)](jnp.arange(len(devices)), *arguments)

    return call
