"""Noise is JAX's own, bit for bit, and every other draw is left to JAX."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import enable_x64

from jaxfl.devices import working_set
from jaxfl.numerics import noise

LAWS = {"normal": jax.random.normal, "laplace": jax.random.laplace}
SINGLE, DOUBLE, HALF = (np.dtype(name) for name in (jnp.float32, jnp.float64, jnp.bfloat16))


@pytest.fixture(params=LAWS)
def law(request):
    """Our draw and JAX's, of one distribution."""
    return getattr(noise, request.param), LAWS[request.param]


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 0), (101_771,)])
def test_draws_are_those_of_jax_random(law, shape):
    ours, theirs = (jax.jit(one, static_argnums=(1, 2)) for one in law)
    for seed in (0, 1, 2**31, 2**32 - 1):
        key = jax.random.fold_in(jax.random.key(seed), seed)
        drawn, expected = ours(key, shape, SINGLE), theirs(key, shape, SINGLE)
        assert drawn.dtype == expected.dtype
        np.testing.assert_array_equal(drawn, expected)


@pytest.mark.default_compiler  # the quickest one rounds logarithms otherwise in JAX 0.12
def test_every_key_of_a_vmap_draws_its_own(law):
    keys = jax.random.split(jax.random.key(5), 6)
    drawn, expected = (jax.vmap(partial(one, shape=(40,), dtype=SINGLE))(keys) for one in law)
    np.testing.assert_array_equal(drawn, expected)
    assert len(np.unique(np.asarray(drawn))) == 240


def test_bits_that_cannot_be_drawn_in_parts_are_left_to_jax(law):
    ours, theirs = law
    key = jax.random.key(3)
    with jax.threefry_partitionable(False):
        np.testing.assert_array_equal(ours(key, (9,), SINGLE), theirs(key, (9,), SINGLE))
    with jax.threefry_partitionable(True):
        np.testing.assert_array_equal(ours(key, (9,), SINGLE), theirs(key, (9,), SINGLE))


def test_a_draw_needs_no_more_memory_than_jaxs(law):
    ours, theirs = (
        working_set(partial(one, shape=(100,), dtype=SINGLE), jax.random.key(0)) for one in law
    )
    assert 0 < ours <= theirs


def test_other_types_and_generators_are_left_to_jax(law):
    ours, theirs = law
    key, other = jax.random.key(3), jax.random.key(3, impl="rbg")
    np.testing.assert_array_equal(ours(key, (9,), HALF), theirs(key, (9,), HALF))
    np.testing.assert_array_equal(ours(other, (9,), SINGLE), theirs(other, (9,), SINGLE))
    with enable_x64():
        drawn = ours(key, (9,), DOUBLE)
        assert drawn.dtype == DOUBLE
        np.testing.assert_array_equal(drawn, theirs(key, (9,), DOUBLE))
