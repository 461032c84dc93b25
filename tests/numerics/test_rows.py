import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxfl.numerics import rows
from jaxfl.numerics.gram import centred_gram, inner_products, squared_distances


@jax.jit
def distances(x, usable, extra):
    pilot = rows.median_row(jnp.sqrt(rows.squared_norms(x)), usable)
    gram = centred_gram(x, extra, usable, pilot)
    return squared_distances(gram, jnp.concatenate([usable, jnp.ones(len(extra), bool)]))


def draw(n=7, d=60, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def measured(x, extra=None):
    extra = np.zeros((0, x.shape[1]), np.float32) if extra is None else extra
    with np.errstate(over="ignore"):
        usable = np.isfinite(np.square(x.astype(np.float32)).sum(1))
    return np.asarray(distances(x, usable, extra))


@pytest.mark.parametrize("d", [60, 2 * rows.WIDTH + 5])
def test_squared_norms(d):
    x = draw(3, d)
    expected = np.square(x.astype(np.float64)).sum(1)
    np.testing.assert_allclose(rows.squared_norms(jnp.asarray(x)), expected, rtol=1e-5)


def test_squared_norms_overflow_to_infinity():
    x = np.float32([[1e30, 0], [np.nan, 0], [-np.inf, 0], [3, 4]])
    norms = np.asarray(rows.squared_norms(jnp.asarray(x)))
    np.testing.assert_array_equal(np.isfinite(norms), [False, False, False, True])
    assert norms[3] == 25


def test_squared_norms_of_half_precision_accumulate_in_single():
    x = jnp.full((1, 4096), 1.0, jnp.bfloat16)
    assert rows.squared_norms(x).dtype == jnp.float32
    assert float(rows.squared_norms(x)[0]) == 4096


@pytest.mark.parametrize(
    ("norms", "usable", "expected"),
    [
        ([3, 1, 2], [1, 1, 1], 2),
        ([4, 3, 1, 2], [1, 1, 1, 1], 3),
        ([1, 2, 3, 4, 5], [0, 0, 1, 1, 1], 3),
        ([np.inf, np.inf, 7], [0, 0, 1], 2),
        ([np.nan, 2, 1], [0, 1, 1], 2),
    ],
)
def test_median_row(norms, usable, expected):
    got = rows.median_row(jnp.float32(jnp.asarray(norms)), jnp.asarray(usable, bool))
    assert int(got) == expected


@pytest.mark.parametrize("d", [1, 60, 2 * rows.WIDTH + 5])
def test_distances(d):
    x, extra = draw(6, d), draw(2, d, seed=1)
    expected = references.squared_distances(np.concatenate([x, extra]).astype(np.float64))
    np.testing.assert_allclose(measured(x, extra), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [5, 64, 65, 97, 300, 401, 1003])
def test_gram_is_centred_at_the_pilot(n):
    x, extra, usable = draw(n), draw(2, seed=1), np.arange(n) != 4
    gram = centred_gram(jnp.asarray(x), jnp.asarray(extra), jnp.asarray(usable), jnp.int32(2))
    centred = (np.concatenate([x, extra]) - x[2]).astype(np.float64)
    centred[4] = 0
    np.testing.assert_allclose(gram, centred @ centred.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(gram, gram.T)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 20_000), (64, 9_000), (100, 9_000), (601, 5_000)])
def test_inner_products(n, d, dtype):
    x = jnp.asarray(draw(n, d), dtype)
    got = jax.jit(inner_products)(x)
    exact = np.asarray(x, np.float64)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, exact @ exact.T, rtol=1e-4, atol=1e-5 * d)


def test_without_a_pilot_short_rows_keep_their_angles():
    x = draw()
    x[:3] /= 1000
    none, everyone = jnp.zeros((0, x.shape[1])), jnp.ones(len(x), bool)
    gram = np.asarray(centred_gram(jnp.asarray(x), none, everyone, None))
    exact = x.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1)
    scale = norms[:, None] * norms
    np.testing.assert_allclose(gram / scale, exact @ exact.T / scale, rtol=0, atol=1e-6)


def test_gram_of_a_dropped_row_is_zero():
    x, usable = draw(5), np.arange(5) != 3
    x[3] = np.nan
    nothing = jnp.zeros((0, 60))
    gram = centred_gram(jnp.asarray(x), nothing, jnp.asarray(usable), jnp.int32(2))
    np.testing.assert_array_equal(gram[3], 0)
    np.testing.assert_array_equal(gram[:, 3], 0)
    assert np.isfinite(gram).all()


def test_distances_survive_a_large_common_offset():
    noise = draw() * 0.01
    x = np.float32(1000) + noise
    expected = references.squared_distances(x.astype(np.float64))
    np.testing.assert_allclose(measured(x), expected, rtol=1e-4)


@pytest.mark.parametrize("size", [1e3, 1e9, 1e18])
def test_a_huge_row_leaves_other_distances_exact(size):
    x = draw()
    x[2] *= np.float32(size / np.linalg.norm(x[2]))
    expected = references.squared_distances(x.astype(np.float64))
    np.testing.assert_allclose(measured(x), expected, rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_a_dropped_row_is_infinitely_far_and_changes_nothing(bad):
    x = draw()
    x[2, 5] = bad
    got = measured(x)
    assert np.isinf(got[2]).all()
    assert np.isinf(got[:, 2]).all()
    rest = np.delete(x, 2, axis=0).astype(np.float64)
    kept = np.delete(np.delete(got, 2, axis=0), 2, axis=1)
    np.testing.assert_allclose(kept, references.squared_distances(rest), rtol=1e-4, atol=1e-5)


def test_equal_rows_have_distance_zero():
    np.testing.assert_array_equal(measured(np.full((4, 9), 3.7, np.float32)), np.zeros((4, 4)))


@settings(max_examples=20, deadline=None)
@given(
    hnp.arrays(np.float32, (4, 5), elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False))
)
def test_distances_are_a_premetric(x):
    got = measured(x)
    assert (got >= 0).all()
    assert (np.diagonal(got) == 0).all()
    np.testing.assert_allclose(got, got.T)


def combined(weights, x, extra=None):
    extra = np.zeros((0, x.shape[1]), x.dtype) if extra is None else extra
    return rows.combine(jnp.asarray(weights), jnp.asarray(x), jnp.asarray(extra))


@pytest.mark.parametrize("d", [60, 2 * rows.WIDTH + 5])
def test_combine(d):
    x, extra = draw(3, d), draw(2, d, seed=1)
    weights = np.float32([0.5, -1, 0.25, 2, 3])
    expected = weights[:3] @ x + weights[3:] @ extra
    np.testing.assert_allclose(combined(weights, x, extra), expected, rtol=1e-4, atol=1e-5)


def test_combine_ignores_rows_of_weight_zero():
    x = draw(3)
    x[1] = np.nan
    got = combined(np.float32([0.5, 0, 0.5]), x)
    np.testing.assert_allclose(got, (x[0] + x[2]) / 2, rtol=1e-5)


def test_combine_keeps_the_type_and_sums_in_single():
    x = jnp.ones((1000, 2), jnp.bfloat16)
    got = rows.combine(jnp.full((1000,), 1e-3), x, jnp.zeros((0, 2), jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got.astype(jnp.float32), [1, 1])


def test_safe_sqrt():
    x = jnp.float32(jnp.array([0, 4, 9]))
    np.testing.assert_allclose(rows.safe_sqrt(x), [0, 2, 3])
    gradient = jax.grad(lambda x: rows.safe_sqrt(x).sum())(x)
    np.testing.assert_allclose(gradient, [0, 1 / 4, 1 / 6])


def test_safe_ratio():
    a, b = jnp.float32(jnp.array([1, 3])), jnp.float32(jnp.array([0, 2]))
    np.testing.assert_allclose(rows.safe_ratio(a, b), [0, 1.5])
    gradient = jax.grad(lambda b: rows.safe_ratio(a, b).sum())(b)
    np.testing.assert_allclose(gradient, [0, -0.75])
