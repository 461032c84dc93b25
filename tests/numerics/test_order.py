import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from references import mean_near_median

from jaxfl.numerics import network, order

mean_of_ranks = jax.jit(order.mean_of_ranks, static_argnums=(1, 2))
smallest = jax.jit(order.smallest)
SIZES = [1, 2, 3, 7, 50, 129, 200]


def sort_with_network(rows):
    rows = list(rows)
    for i, j in network.sorting_network(len(rows)):
        rows[i], rows[j] = np.minimum(rows[i], rows[j]), np.maximum(rows[i], rows[j])
    return np.stack(rows)


def sorted_mean(values, low, high):
    """NaN counts as +inf."""
    values = np.where(np.isnan(values), np.inf, values.astype(np.float64))
    with np.errstate(invalid="ignore"):
        return np.sort(values, axis=0)[low:high].mean(0)


def stable_smallest(values, k):
    values = np.where(np.isnan(values), np.inf, values)
    mask = np.zeros(values.shape, bool)
    np.put_along_axis(mask, np.argsort(values, axis=0, kind="stable")[:k], True, axis=0)
    return mask


@pytest.mark.parametrize("n", range(1, 17))
def test_network_sorts_every_zero_one_input(n):
    # Knuth's 0-1 principle: then it sorts every input.
    inputs = (np.arange(2**n, dtype=np.uint32)[None, :] >> np.arange(n)[:, None] & 1).astype(bool)
    np.testing.assert_array_equal(sort_with_network(inputs), np.sort(inputs, axis=0))


@pytest.mark.parametrize("n", [17, 31, 33, 50, 100, 127, 128])
def test_network_sorts_random_inputs(n):
    rng = np.random.default_rng(n)
    few_values = rng.integers(0, 2, (n, 500))
    many_values = rng.permuted(np.tile(np.arange(n)[:, None], 500), axis=0)
    for inputs in (few_values, many_values):
        np.testing.assert_array_equal(sort_with_network(inputs), np.sort(inputs, axis=0))


@pytest.mark.parametrize("n", [1, 2, 5, 100])
def test_comparators_point_down_and_stay_inside(n):
    assert all(0 <= i < j < n for i, j in network.sorting_network(n))


@pytest.mark.parametrize("n", SIZES)
def test_mean_of_ranks(n):
    """Each column is one difficulty: plain, ties, both infinities, NaN, signed zeros, all equal."""
    rng = np.random.default_rng(n)
    values = rng.normal(size=(n, 6)).astype(np.float32)
    values[:, 1] = rng.integers(0, 3, n)
    values[rng.random(n) < 0.2, 2] = np.inf
    values[0, 2] = -np.inf if n > 2 else 1
    values[rng.random(n) < 0.1, 3] = np.nan
    values[:, 4] = rng.choice(np.float32([-0.0, 0.0, 1.0]), n)
    values[:, 5] = -2.5
    low = n // 4
    got = mean_of_ranks(values, low, n - low)
    np.testing.assert_allclose(got, sorted_mean(values, low, n - low), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("n", [7, 131])
@pytest.mark.parametrize("end", ["first", "last", "middle", "all"])
def test_mean_of_any_ranks(n, end):
    low, high = {"first": (0, 1), "last": (n - 1, n), "middle": (2, 4), "all": (0, n)}[end]
    values = np.random.default_rng(0).integers(-3, 4, (n, 20)).astype(np.float32)
    got = mean_of_ranks(values, low, high)
    np.testing.assert_allclose(got, sorted_mean(values, low, high), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(-1, 2), (2, 2), (3, 2), (0, 6)])
def test_impossible_ranks(low, high):
    with pytest.raises(ValueError, match="ranks must satisfy"):
        order.mean_of_ranks(jnp.zeros((5, 1)), low, high)


@pytest.mark.parametrize("n", [1, 2, 9, 10, 133, 134, 400])
def test_median(n):
    values = np.random.default_rng(n).normal(size=(n, 9)).astype(np.float32)
    values[:, 5:] = np.random.default_rng(n).integers(0, 2, (n, 4))
    np.testing.assert_allclose(jax.jit(order.median)(values), np.median(values, 0), rtol=1e-6)
    lower = jax.jit(functools.partial(order.median, lower=True))(values)
    np.testing.assert_array_equal(lower, np.sort(values, 0)[(n - 1) // 2])


@jax.jit
def gradient_of_a_mean(values):
    return jax.grad(lambda v: order.mean_of_ranks(v, 2, len(v) - 3).sum())(values)


@pytest.mark.parametrize("n", [9, 130])
def test_gradient_goes_to_the_averaged_values(n):
    values = np.random.default_rng(0).normal(size=(n, 5)).astype(np.float32)
    gradient = gradient_of_a_mean(values)
    ranks = np.argsort(np.argsort(values, axis=0), axis=0)
    expected = np.where((ranks >= 2) & (ranks < n - 3), 1 / (n - 5), 0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


@jax.jit
def of_those_before(values, low, high):
    """Of ranks that are traced, and values after which only +inf come."""

    def mean(values):
        return order.mean_of_ranks(values, low, high)

    def nearest(values):
        return order.mean_of_nearest(values, low, high, high)

    return [(f(values), jax.grad(lambda v, f=f: f(v).sum())(values)) for f in (mean, nearest)]


@pytest.mark.parametrize(
    "n",
    [9, pytest.param(130, marks=pytest.mark.slow)],  # compiles for half a minute
)
def test_traced_ranks_are_as_known_ones_of_fewer_rows(n):
    values = np.random.default_rng(0).normal(size=(n, 12)).astype(np.float32)
    values[:, 6:] = np.random.default_rng(0).integers(0, 3, (n, 6))
    absent = np.random.default_rng(1).permutation(n + 3) < 3
    padded = np.full((n + 3, 12), np.inf, np.float32)
    padded[~absent] = values
    values = jnp.asarray(values)
    for low, high in ((2, n - 3), (0, n), ((n - 1) // 2, n // 2 + 1), (1, 3), (3, 4)):
        known = (
            lambda v, low=low, high=high: order.mean_of_ranks(v, low, high),
            lambda v, low=low, high=high: order.mean_of_nearest(v, low, high, high),
        )
        found = of_those_before(padded, low, high)
        for (mean, gradient), expected in zip(found, known, strict=True):
            np.testing.assert_allclose(mean, expected(values), rtol=1e-5, atol=1e-6)
            slope = jax.grad(lambda v, f=expected: f(v).sum())(values)
            np.testing.assert_allclose(gradient[~absent], slope, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(gradient[absent], 0)


@pytest.mark.parametrize("n", [9, 130])
def test_gradient_is_finite_at_ties_and_infinities(n):
    values = np.random.default_rng(0).integers(0, 2, (n, 5)).astype(np.float32)
    values[0], values[1] = np.inf, -np.inf
    gradient = gradient_of_a_mean(values)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(np.sum(gradient, axis=0), 1, rtol=1e-5)


@pytest.mark.parametrize("k", [0, 1, 2, 5, 9, 12])
def test_smallest(k):
    rng = np.random.default_rng(k)
    values = rng.normal(size=(9, 40)).astype(np.float32)
    values[:, 10:20] = rng.integers(0, 3, (9, 10))
    values[:, 20:30] = rng.choice(np.float32([-0.0, 0.0, np.nan, np.inf, -np.inf]), (9, 10))
    values[:, 30:] = 4
    np.testing.assert_array_equal(smallest(values, k), stable_smallest(values, k))


@pytest.mark.parametrize("n", [150, 300])
def test_smallest_of_many_rows(n):
    rng = np.random.default_rng(n)
    values = rng.normal(size=(n, 12)).astype(np.float32)
    values[:, 4:8] = rng.integers(0, 3, (n, 4))
    values[:, 8:] = rng.choice(np.float32([0, np.nan, -np.inf]), (n, 4))
    for k in (0, 1, n // 3, n - 1, n):
        np.testing.assert_array_equal(smallest(values, k), stable_smallest(values, k))


@pytest.mark.parametrize("n", [193, 5000])
def test_smallest_of_one_long_column(n):
    rng = np.random.default_rng(n)
    drawn = rng.normal(size=n), rng.integers(0, 3, n), rng.choice([0, -0.0, np.nan, -np.inf], n)
    for column in drawn:
        values = column.astype(np.float32)[:, None]
        for k in (0, 1, n // 3, n - 1, n):
            np.testing.assert_array_equal(smallest(values, k), stable_smallest(values, k))


def test_smallest_in_blocks_of_columns():
    values = np.random.default_rng(0).integers(0, 9, (300, 4500)).astype(np.float32)
    assert order.column_width(300) < 4500
    np.testing.assert_array_equal(smallest(values, 100), stable_smallest(values, 100))


nearest_mean = jax.jit(order.mean_of_nearest, static_argnums=(1, 2, 3))


@pytest.mark.parametrize(
    ("n", "k"), [(1, 1), (2, 2), (9, 1), (9, 7), (64, 48), (65, 1), (65, 49), (200, 150)]
)
def test_mean_of_nearest(n, k):
    """A column for each difficulty: plain, ties, ties about the median, infinities, all equal."""
    rng = np.random.default_rng(n)
    values = rng.normal(size=(n, 6)).astype(np.float32)
    values[:, 1] = rng.integers(0, 3, n)
    values[:, 2] = rng.permutation(np.resize(np.float32([-1, 1]), n))
    values[: n // 4, 3] = rng.choice(np.float32([np.inf, -np.inf, np.nan, 1e30]), n // 4)
    values[:, 4] = -2.5
    values[: n // 2, 5] = 0
    got = nearest_mean(values, (n - 1) // 2, n // 2 + 1, k)
    np.testing.assert_allclose(got, mean_near_median(values, k), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [0, 6])
def test_impossible_number_of_nearest(k):
    with pytest.raises(ValueError, match=f"k must be from 1 to 5; got {k}"):
        order.mean_of_nearest(jnp.zeros((5, 1)), 2, 3, k)


def test_smallest_takes_the_first_of_signed_zeros():
    values = np.float32([[0.0], [-0.0], [1.0]])
    np.testing.assert_array_equal(smallest(values, 1)[:, 0], [True, False, False])


def test_smallest_compiles_once_for_every_k():
    values = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    traced = []

    @jax.jit
    def counted(values, k):
        traced.append(k)
        return order.smallest(values, k)

    for k in range(7):
        np.testing.assert_array_equal(counted(values, k), stable_smallest(values, k))
    assert len(traced) == 1


def test_smallest_per_column_k_by_vmap():
    values = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    got = jax.vmap(lambda v, k: order.smallest(v[:, None], k)[:, 0], in_axes=(1, 0), out_axes=1)(
        values, jnp.arange(4)
    )
    np.testing.assert_array_equal(np.sum(got, axis=0), np.arange(4))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_smallest_in_half_precision(dtype):
    values = jnp.asarray(np.random.default_rng(0).normal(size=(8, 5)), dtype)
    np.testing.assert_array_equal(smallest(values, 3), stable_smallest(np.asarray(values), 3))


def test_double_precision():
    values = np.random.default_rng(0).normal(size=(130, 5))
    with jax.enable_x64(True):
        got = np.asarray(order.mean_of_ranks(jnp.asarray(values), 30, 100))
    np.testing.assert_allclose(got, sorted_mean(values, 30, 100), rtol=1e-13)


FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=False)


@settings(max_examples=20, deadline=None)
@given(hnp.arrays(np.float32, (6, 3), elements=FLOATS), st.integers(0, 6))
def test_smallest_of_anything(values, k):
    np.testing.assert_array_equal(smallest(values, k), stable_smallest(values, k))


@settings(max_examples=20, deadline=None)
@given(hnp.arrays(np.float32, (7, 3), elements=FLOATS))
def test_one_rank_of_anything(values):
    got = mean_of_ranks(values, 3, 4)
    np.testing.assert_array_equal(got, sorted_mean(values, 3, 4).astype(np.float32))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (4, 6), (1, 7), (0, 12)])
def test_both_methods_agree(monkeypatch, low, high):
    values = np.random.default_rng(1).integers(0, 9, (12, 30)).astype(np.float32)
    by_network = jax.jit(lambda v: order.mean_of_ranks(v, low, high))(values)
    monkeypatch.setattr(network, "ROWS", 0)
    by_digits = jax.jit(lambda v: order.mean_of_ranks(v, low, high))(values)
    np.testing.assert_allclose(by_network, by_digits, rtol=1e-6)


@pytest.mark.parametrize("rows", [0, 1, 15])
def test_few_rows_are_one_block(rows):
    assert order.column_width(rows) == np.iinfo(np.int32).max


@pytest.mark.parametrize("rows", [16, 50, 64, 65, 128, 1000, 10_000, 10**7])
def test_block_width_fits_the_cache_in_whole_lines(rows):
    width = order.column_width(rows)
    assert width >= 64
    assert width * rows <= max(2**20, 64 * rows)
    assert width % 64 == 0


of_rank = jax.jit(order.of_rank)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_value_of_rank(n, dtype):
    with jax.enable_x64(dtype == np.float64):
        values = np.random.default_rng(n).standard_normal((n, 6)).astype(dtype)
        values[:, 1] = np.round(values[:, 1])  # ties, 0.0 and -0.0
        values[n // 2 :, 2] = np.nan
        values[0, 3:5] = -np.inf, np.inf
        ordered = np.sort(np.where(np.isnan(values), np.inf, values), axis=0)
        for k in sorted({0, n // 2, n - 1}):
            got = of_rank(values, k)
            assert got.dtype == dtype
            np.testing.assert_array_equal(got, ordered[k])
