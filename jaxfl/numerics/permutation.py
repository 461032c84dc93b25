"""A random permutation of [0, n), evaluated one element at a time.

Drawing a batch without replacement by sorting random numbers costs as much as the whole data
set; a keyed bijection costs only the batch, for any n known at run time. It is a Feistel network
on the smallest even number of bits that holds n, walked until it lands below n (Black and Rogaway,
"Ciphers with arbitrary finite domains", CT-RSA 2002).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, UInt

_ROUNDS = 6


def permute(index: Int[Array, "*s"], n: Int[Array, ""], key: Key[Array, ""]) -> Int[Array, "*s"]:
    """The images of ``index`` under a random permutation of [0, n); indices >= n give 0.

    Distinct indices below n have distinct images; ``key`` chooses the permutation.

    Cost: a few dozen integer operations per index, at most 4 walks each on average.
    """
    size = jnp.maximum(n, 1).astype(jnp.uint32)
    # Bits needed for n - 1, rounded up to an even number: two equal halves.
    bits = 32 - jax.lax.clz(size - 1)
    half = jnp.maximum((bits + 1) // 2, 1)
    mask = (jnp.uint32(1) << half) - 1
    round_keys = jax.random.bits(key, (_ROUNDS,), jnp.uint32)

    def encrypt(x: UInt[Array, "*s"]) -> UInt[Array, "*s"]:
        left, right = x >> half, x & mask
        for i in range(_ROUNDS):
            left, right = right, left ^ (_mix(right ^ round_keys[i]) & mask)
        return (left << half) | right

    def walk(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        x, outside = carry
        x = jnp.where(outside, encrypt(x), x)
        return x, x >= size

    valid = index < n
    start = jnp.where(valid, index, 0).astype(jnp.uint32)
    walked, _ = jax.lax.while_loop(
        lambda carry: jnp.any(carry[1]), walk, (start, jnp.ones(start.shape, bool))
    )
    return jnp.where(valid, walked, 0).astype(jnp.int32)


def _mix(x: Array) -> Array:
    """The finaliser of MurmurHash3: every output bit depends on every input bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
