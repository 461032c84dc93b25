import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.numerics import digits

SIZES = [1, 2, 192, 193, 260, 1100]
"""One tile, the least number of tiles, long tiles; with and without rows to fill up."""
TYPES = [np.uint8, np.uint16, np.uint32]


def draw(n, dtype, seed=0):
    """Columns: spread over the whole type, few values, all equal, the extremes."""
    rng = np.random.default_rng(seed)
    most = np.iinfo(dtype).max
    columns = [
        rng.integers(0, most, (n, 3), dtype),
        rng.integers(7, 10, (n, 2), dtype),
        np.full((n, 1), 5, dtype),
        rng.choice(np.array([0, most - 1], dtype), (n, 1)),
    ]
    return np.concatenate(columns, axis=1)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("n", SIZES)
def test_kth(n, dtype):
    elements = draw(n, dtype)
    kth = jax.jit(digits.kth)
    for k in {0, n // 3, n - 1}:
        rank = kth(elements, k)
        expected = np.sort(elements, axis=0)[k]
        np.testing.assert_array_equal(rank.element, expected)
        np.testing.assert_array_equal(rank.below, (elements < expected).sum(0))
        np.testing.assert_array_equal(rank.upto, (elements <= expected).sum(0))


@pytest.mark.parametrize("dtype", TYPES)
def test_kth_of_many(dtype):
    elements = draw(70_000, dtype)
    kth = jax.jit(digits.kth_of_many)
    for column in elements.T:
        for k in (0, 20_000, 69_999):
            assert kth(column, k) == np.sort(column)[k]


@pytest.mark.parametrize("n", [9, 300])
def test_kth_takes_a_rank_for_each_column(n):
    elements = draw(n, np.uint32)
    k = np.arange(7) * (n - 1) // 6
    expected = np.take_along_axis(np.sort(elements, axis=0), k[None], axis=0)[0]
    np.testing.assert_array_equal(jax.jit(digits.kth)(elements, k).element, expected)


def test_kth_in_double_precision():
    values = np.random.default_rng(0).normal(size=(200, 4))
    with jax.enable_x64(True):
        rank = digits.kth(digits.ordered_bits(jnp.asarray(values)), 77)
        got = np.asarray(digits.floats(rank.element, jnp.dtype("float64")))
    np.testing.assert_array_equal(got, np.sort(values, axis=0)[77])


@pytest.mark.parametrize("n", SIZES[1:])
def test_following(n):
    elements = jnp.asarray(draw(n, np.uint32))
    for k in {0, n // 3, n - 2}:
        rank = jax.jit(digits.kth)(elements, k)
        got = jax.jit(digits.following, static_argnums=2)(elements, rank, k)
        np.testing.assert_array_equal(got, np.sort(elements, axis=0)[k + 1])


@pytest.mark.parametrize("n", SIZES)
def test_total(n):
    values = np.random.default_rng(n).integers(-9, 9, (n, 4)).astype(np.float32)

    @jax.jit
    def total(values):
        tiles = digits.tiled(values, jnp.zeros((), values.dtype))
        return digits.total(lambda row: jnp.where(row > 2, row, 0), tiles)

    np.testing.assert_array_equal(total(values), np.where(values > 2, values, 0).sum(0))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_bits_are_in_the_order_of_the_floats(dtype):
    dtype = jnp.dtype(dtype)
    least, most = float(jnp.finfo(dtype).smallest_normal), float(jnp.finfo(dtype).max)
    values = jnp.array([-jnp.inf, -most, -1, -least, -0.0, 0, least, 1, most, jnp.inf], dtype)
    bits = np.asarray(digits.ordered_bits(values)).astype(np.int64)
    assert (np.diff(bits[[0, 1, 2, 3, 4, 6, 7, 8, 9]]) > 0).all()
    assert bits[4] == bits[5]
    np.testing.assert_array_equal(digits.floats(digits.ordered_bits(values), dtype), values)
