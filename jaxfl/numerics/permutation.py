"""A random permutation of [0, n), evaluated one element at a time.

Drawing a batch without replacement by sorting random numbers costs as much as the whole data
set; a keyed bijection costs only the batch, for any n known at run time. It is a Feistel network
on the smallest even number of bits that holds n, walked until it lands below n (Black and Rogaway,
"Ciphers with arbitrary finite domains", CT-RSA 2002). On few elements such a network is far from
uniform, but there ranks of random numbers cost no more than the batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, UInt

EXACT = 64
"""Up to so many elements every permutation is equally likely. Past it the network has halves of
at least four bits, and pairs of images are uniform within what millions of draws can tell."""
_ROUNDS = 6


def permute(
    index: Int[Array, "*s"],
    n: Int[Array, ""] | int,
    key: Key[Array, ""],
    *,
    most: int | None = None,
) -> Int[Array, "*s"]:
    """The images of ``index`` under a random permutation of [0, n); indices >= n give 0.

    Distinct indices below n have distinct images; ``key`` chooses the permutation.

    Args:
      index: at least 0.
      n: how many elements are permuted; an int where it is known before tracing.
      key: chooses the permutation.
      most: n is at most this; None: it may be any number. Spares what larger n would need.

    Cost: where n may be at most ``EXACT``, 64 random words and 64 comparisons of each of as many
    indices at most; where it may be more, a few dozen integer operations per index, at most 4
    walks each on average.
    """
    if isinstance(n, int):
        return (_by_ranks if n <= EXACT else _by_network)(index, n, key)
    if most is not None and most <= EXACT:
        return _by_ranks(index, n, key)
    return jnp.where(n <= EXACT, _by_ranks(index, n, key), _by_network(index, n, key))


def _by_ranks(index: Int[Array, "*s"], n: Array | int, key: Array) -> Int[Array, "*s"]:
    """``index`` goes to the rank of its random word among the first n; ties by index."""
    place = jnp.arange(EXACT, dtype=jnp.int32)
    words = jax.random.bits(key, (EXACT,), jnp.uint32)
    valid = index < n
    own = jnp.where(valid, index, 0)
    few = own.size <= EXACT
    asked = own.reshape(-1) if few else place
    word = words[asked]
    before = words[None, :] < word[:, None]
    before |= (words[None, :] == word[:, None]) & (place[None, :] < asked[:, None])
    rank = jnp.sum(before & (place < n)[None, :], axis=1, dtype=jnp.int32)
    return jnp.where(valid, rank.reshape(own.shape) if few else rank[own], 0)


def _by_network(index: Int[Array, "*s"], n: Array | int, key: Array) -> Int[Array, "*s"]:
    size = jnp.maximum(jnp.int32(n), 1).astype(jnp.uint32)
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
