import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxfl.numerics.permutation import permute

permuted = jax.jit(permute)
pairs = jax.jit(jax.vmap(lambda k, n: permute(jnp.array([0, 1]), n, k), (0, None)))
batches = jax.jit(
    jax.vmap(lambda k, n, b: permute(jnp.arange(b), n, k), (0, None, None)), static_argnums=2
)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 100, 255, 256, 257, 1000])
def test_is_a_bijection(n):
    for seed in range(5):
        images = permuted(jnp.arange(1000), jnp.int32(n), jax.random.key(seed))
        np.testing.assert_array_equal(np.sort(images[:n]), np.arange(n))
        np.testing.assert_array_equal(images[n:], 0)


def test_is_injective_on_a_part_of_a_huge_range():
    n = 2**31 - 1
    images = np.asarray(permuted(jnp.arange(1000), jnp.int32(n), jax.random.key(0)))
    assert len(set(images.tolist())) == 1000
    assert images.min() >= 0
    assert images.max() > n // 2


def test_an_image_depends_on_its_index_alone(key):
    whole = permuted(jnp.arange(1000), jnp.int32(50), key)
    part = permuted(jnp.array([[7], [3]]), jnp.int32(50), key)
    np.testing.assert_array_equal(part, [[whole[7]], [whole[3]]])


def test_an_empty_range_is_harmless(key):
    np.testing.assert_array_equal(permuted(jnp.arange(4), jnp.int32(0), key), 0)


@pytest.mark.parametrize("n", [3, 4])
def test_every_permutation_is_as_likely(n):
    keys = jax.random.split(jax.random.key(1), 6000)
    images = jax.jit(jax.vmap(lambda k: permute(jnp.arange(n), jnp.int32(n), k)))(keys)
    counts = Counter(map(tuple, np.asarray(images).tolist()))
    observed = [*counts.values(), *[0] * (math.factorial(n) - len(counts))]
    assert stats.chisquare(observed).pvalue > 1e-3


@pytest.mark.parametrize("n", [2, 3, 5, 6, 7, 8, 17, 20, 33, 64, 65, 100, 200])
def test_pairs_of_images_are_uniform(n):
    """As Pearson's statistic of all ordered pairs, and of either image alone, sees it."""
    keys = jax.random.split(jax.random.key(3), 50_000)
    drawn = np.asarray(pairs(keys, jnp.int32(n)))
    counts = np.bincount(drawn[:, 0] * n + drawn[:, 1], minlength=n * n).reshape(n, n)
    assert np.trace(counts) == 0
    for observed in (counts[~np.eye(n, dtype=bool)], counts.sum(0), counts.sum(1)):
        assert stats.chisquare(observed).pvalue > 1e-4


@pytest.mark.parametrize(
    "n", [65, 200, *(pytest.param(n, marks=pytest.mark.slow) for n in (100, 257))]
)
def test_many_pairs_of_a_permutation_are_uniform(n):
    """Eight pairs of each permutation, 400,000 in all: 6 or more draws of each that can be.

    So many cells still hide what fewer of them show: pairs by their difference, by their sum, and
    by the bits in which two images differ, as a network of two halves might treat them.
    """
    keys = jax.random.split(jax.random.key(4), 50_000)
    drawn = jax.jit(jax.vmap(lambda key: permute(jnp.arange(16), n, key)))(keys)
    first, second = np.asarray(drawn).reshape(-1, 2).T
    counts = np.bincount(first * n + second, minlength=n * n)
    one, other = np.nonzero(~np.eye(n, dtype=bool))
    observed = counts[one * n + other]
    assert observed.sum() == len(first)
    for cells in (np.arange(len(one)), (one - other) % n, (one + other) % n, one ^ other):
        seen, size = np.bincount(cells, weights=observed), np.bincount(cells)
        expected = len(first) * size[size > 0] / len(one)
        assert stats.chisquare(seen[size > 0], expected).pvalue > 1e-4


@pytest.mark.parametrize("n", [5, 8, 20, 64])
def test_a_batch_takes_every_sample_as_often(n):
    """Batches of half a client's samples: inclusion of one, and of two together."""
    size = -(-n // 2)
    keys = jax.random.split(jax.random.key(6), 8192)
    drawn = batches(keys, jnp.int32(n), size)
    member = jax.nn.one_hot(drawn, n).sum(1)  # exactly size of each row are 1
    share = size / n
    together = share * (size - 1) / max(n - 1, 1)
    single = np.asarray(member.mean(0))
    both = np.asarray(jnp.matmul(member.T, member, precision="highest")) / len(keys)
    for seen, expected in ((single, share), (both[~np.eye(n, dtype=bool)], together)):
        spread = math.sqrt(expected * (1 - expected) / len(keys))
        assert np.abs(seen - expected).max() <= 5 * spread


@pytest.mark.parametrize("n", [1, 7, 63, 64, 65, 1000])
def test_what_is_known_before_tracing_changes_nothing(n, key):
    index = jnp.arange(100)
    expected = permuted(index, jnp.int32(n), key)
    np.testing.assert_array_equal(jax.jit(permute, static_argnums=1)(index, n, key), expected)
    bounded = jax.jit(permute, static_argnames="most")(index, jnp.int32(n), key, most=n)
    np.testing.assert_array_equal(bounded, expected)
    np.testing.assert_array_equal(permuted(np.arange(8), jnp.int32(n), key), expected[:8])


def test_keys_and_sizes_under_vmap_equal_a_loop():
    keys, sizes = jax.random.split(jax.random.key(3), 6), jnp.array([1, 2, 9, 33, 64, 100])
    together = jax.jit(jax.vmap(lambda n, k: permute(jnp.arange(100), n, k)))(sizes, keys)
    for row, n, k in zip(together, sizes, keys, strict=True):
        np.testing.assert_array_equal(row, permuted(jnp.arange(100), n, k))
