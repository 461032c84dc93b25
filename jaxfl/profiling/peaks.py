"""What a device does at best: measured once, and kept in the user's cache folder."""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxfl.files import user_cache, write_aside
from jaxfl.profiling.result import Peaks

SIDE = 2048
"""Of the square matrices whose product is timed."""
COPIED = 2**28
"""Bytes of the array that is changed in place: far more than caches hold."""
_REPEATS = 5


def machine_peaks(path: Path | None = None) -> Peaks:
    """The peaks of the first device, from the file or measured now and written there.

    Args:
      path: default ``peaks.json`` in the user's cache folder. Delete it to measure anew: what was
        measured on a busy machine is too low.
    """
    path = user_cache() / "peaks.json" if path is None else path
    device, cores = jax.devices()[0].device_kind, _cores()
    key = f"{device}, {cores} cores"
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        known = json.loads(path.read_bytes())
    with suppress(KeyError, TypeError):
        return Peaks(**known[key])
    peaks = Peaks(device=device, cores=cores, flops=gemm_rate(), bytes=copy_rate())
    known = known if isinstance(known, dict) else {}
    with suppress(OSError):
        write_aside(path, json.dumps(known | {key: dataclasses.asdict(peaks)}, indent=1).encode())
    return peaks


def gemm_rate(side: int = SIDE) -> float:
    """Operations a second of a product of two square float32 matrices."""
    matrix = jnp.full((side, side), 0.5, jnp.float32)
    product = jax.jit(jnp.matmul)
    return 2 * side**3 / _best(lambda: product(matrix, matrix))


def copy_rate(size: int = COPIED) -> float:
    """Bytes a second, read and written, of a float32 array changed in place.

    In place, because a new array costs the faults of its pages, which are not the memory's speed.
    """
    array = jnp.zeros((size // 4,), jnp.float32)
    change = jax.jit(lambda x: x + 1, donate_argnums=0)

    def step() -> Any:
        nonlocal array
        array = change(array)
        return array

    return 2 * size / _best(step)


def _best(run: Callable[[], Any]) -> float:
    times = []
    for _ in range(1 + _REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _cores() -> int:
    """Cores that this process may use."""
    own = getattr(os, "sched_getaffinity", None)
    return len(own(0)) if own else os.cpu_count() or 1
