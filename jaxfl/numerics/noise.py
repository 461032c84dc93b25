"""Normal and Laplace draws, bit for bit those of ``jax.random``, in one pass.

Noise on many long vectors takes long to draw. On a CPU ``jax.random`` runs the rounds of its
generator as a loop over arrays in memory; written out, they fuse with the map to the distribution
and with what uses the noise, in a third of the processor time.

The generator is Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror, Shaw, "Parallel random
numbers: as easy as 1, 2, 3", SC 2011), counting elements, as JAX counts them unless its flag
``jax_threefry_partitionable`` is off. A draw that is none of these is left to ``jax.random``.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, UInt32

ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
PARITY = 0x1BD11BDA
"""The constant of the third word of the key."""
LOWEST = np.nextafter(np.float32(-1), np.float32(0))


def normal(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike) -> Float[Array, "..."]:
    """Independent standard normals, ``jax.random.normal``'s to the bit."""
    if not _written_out(key, shape, dtype):
        return jax.random.normal(key, shape, dtype)
    uniform = _uniform(_bits(key, shape))
    return np.float32(math.sqrt(2)) * jax.lax.erf_inv(uniform)


def laplace(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike) -> Float[Array, "..."]:
    """Independent Laplacians of scale 1, ``jax.random.laplace``'s to the bit."""
    if not _written_out(key, shape, dtype):
        return jax.random.laplace(key, shape, dtype)
    uniform = _uniform(_bits(key, shape))
    return jnp.sign(uniform) * jnp.log1p(-jnp.abs(uniform))


def _written_out(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike) -> bool:
    """Whether the draw is one that this module makes; any other is JAX's own."""
    threefry = str(jax.random.key_impl(key)) == "threefry2x32"
    counted = jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
    return threefry and counted and dtype == jnp.float32 and math.prod(shape) < 2**32


def _bits(key: Key[Array, ""], shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """32 random bits for every element, from the element's place in row-major order."""
    first, second = jax.random.key_data(key).reshape(2)
    keys = (first, second, first ^ second ^ np.uint32(PARITY))
    high = jnp.broadcast_to(keys[0], shape)
    low = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape) + keys[1]
    for group in range(5):
        for rotation in ROTATIONS[4 * (group % 2) :][:4]:
            high = high + low
            low = high ^ (low << np.uint32(rotation) | low >> np.uint32(32 - rotation))
        high = high + keys[(group + 1) % 3]
        low = low + keys[(group + 2) % 3] + np.uint32(group + 1)
    return high ^ low


def _uniform(bits: UInt32[Array, "..."]) -> Float[Array, "..."]:
    """In (-1, 1): 23 bits, as the fraction of a float32 in [1, 2)."""
    fraction = bits >> np.uint32(9) | np.float32(1).view(np.uint32)
    unit = jax.lax.bitcast_convert_type(fraction, jnp.float32) - 1
    return jnp.maximum(LOWEST, unit * (1 - LOWEST) + LOWEST)
