import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxfl.numerics.permutation import permute

permuted = jax.jit(permute)


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


@pytest.mark.parametrize("n", [5, 17, 50])
def test_pairs_of_images_are_uniform(n):
    keys = jax.random.split(jax.random.key(2), 5000)
    images = jax.jit(jax.vmap(lambda k: permute(jnp.array([0, 1]), jnp.int32(n), k)))(keys)
    first, second = np.asarray(images).T
    assert stats.chisquare(np.bincount(first, minlength=n)).pvalue > 1e-3
    assert stats.chisquare(np.bincount((second - first) % n, minlength=n)[1:]).pvalue > 1e-3


def test_keys_and_sizes_under_vmap_equal_a_loop():
    keys, sizes = jax.random.split(jax.random.key(3), 6), jnp.array([1, 2, 9, 33, 64, 100])
    together = jax.vmap(lambda n, k: permute(jnp.arange(100), n, k))(sizes, keys)
    for row, n, k in zip(together, sizes, keys, strict=True):
        np.testing.assert_array_equal(row, permuted(jnp.arange(100), n, k))
