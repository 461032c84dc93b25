"""Every rule against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from scipy import optimize

from jaxfl.aggregators import (
    CenteredClipping,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MultiKrum,
    Oracle,
    Pipeline,
    TrimmedMean,
)
from jaxfl.preaggregators import Bucketing
from jaxfl.types import Context, Spec

pytestmark = pytest.mark.grouped_by("name")


def draw(n=11, d=30, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def close(got, expected, rtol=1e-4, atol=2e-5):
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, rtol=rtol, atol=atol)


def shares(n):
    return np.arange(1, n + 1, dtype=np.float32) / np.float32(n * (n + 1) / 2)


def test_mean():
    x = draw()
    close(Mean()(x), references.mean(x))


def test_mean_weights_clients_by_their_samples():
    x, w = draw(), shares(11)
    context = Context.of(11, weights=jnp.asarray(w))
    close(Mean()(x, context=context), w @ x)
    close(Mean(weighted=False)(x, context=context), references.mean(x))


def test_mean_leaves_out_rows_that_are_not_finite():
    x, w = draw(), shares(11)
    x[3] = np.nan
    context = Context.of(11, weights=jnp.asarray(w))
    rest = np.delete(w, 3) / np.delete(w, 3).sum()
    result = Mean().inspect(x, context=context)
    close(result.update, rest @ np.delete(x, 3, axis=0))
    close(result.info.weights, np.insert(rest, 3, 0))
    np.testing.assert_array_equal(result.info.selected, np.arange(11) != 3)


def test_oracle_is_the_weighted_mean_of_the_honest():
    x, w, byzantine = draw(), shares(11), np.arange(11) < 3
    context = Context.of(11, weights=jnp.asarray(w), byzantine=jnp.asarray(byzantine))
    close(Oracle()(x, context=context), w[3:] / w[3:].sum() @ x[3:])


def test_oracle_needs_the_truth():
    with pytest.raises(ValueError, match=r"Oracle needs context\.byzantine"):
        Oracle()(draw())


def test_oracle_needs_one_row_per_client():
    rule = Pipeline(pre=[Bucketing(size=2)], rule=Oracle())
    context = Context.of(11, byzantine=jnp.arange(11) < 3)
    with pytest.raises(ValueError, match="it would get 6 of 11 clients"):
        rule(draw(), context=context)


@pytest.mark.parametrize("n", [1, 2, 9, 10, 50, 130])
def test_median(n):
    x = draw(n)
    close(Median()(x), references.median(x))


def test_median_over_several_blocks_of_columns():
    x = draw(5, 9000)
    close(Median()(x), references.median(x))


@pytest.mark.parametrize(("n", "f"), [(1, 0), (3, 1), (10, 3), (11, 5), (50, 10), (130, 40)])
def test_trimmed_mean(n, f):
    x = draw(n)
    close(TrimmedMean(f=f)(x), references.trimmed_mean(x, f))


def test_trimmed_mean_keeps_its_precision_beside_huge_values():
    x = draw()
    x[:2] = 1e20
    close(TrimmedMean(f=2)(x), references.trimmed_mean(x, 2))


@pytest.mark.parametrize(("n", "f"), [(3, 0), (7, 2), (11, 1), (50, 12)])
def test_krum(n, f):
    x = draw(n)
    result = Krum(f=f).inspect(x)
    scores = references.krum_scores(x.astype(np.float64), f)
    close(result.info.scores, scores)
    np.testing.assert_array_equal(result.update, x[np.argmin(scores)])
    np.testing.assert_array_equal(result.info.selected, np.arange(n) == np.argmin(scores))


def test_krum_takes_the_first_of_equal_scores():
    x = draw()
    x[:] = x[0]
    np.testing.assert_array_equal(Krum(f=2).inspect(x).info.selected, np.arange(11) == 0)


@pytest.mark.parametrize(("n", "f", "q"), [(11, 2, None), (11, 2, 9), (11, 2, 1), (7, 0, 7)])
def test_multi_krum(n, f, q):
    x = draw(n)
    result = MultiKrum(f=f, q=q).inspect(x)
    close(result.update, references.multi_krum(x.astype(np.float64), f, q))
    assert np.sum(result.info.selected) == (n - f - 2 if q is None else q)
    close(result.info.weights, result.info.selected / np.sum(result.info.selected))


def test_multi_krum_refuses_too_many():
    with pytest.raises(ValueError, match="MultiKrum needs q <= n - f; got q = 10, n = 11, f = 2"):
        MultiKrum(f=2, q=10)(draw())


def test_krum_keeps_its_precision_far_from_the_origin():
    x = 1000 + 0.01 * draw()
    scores = references.krum_scores(x.astype(np.float64), 2)
    close(Krum(f=2).inspect(x).info.scores, scores)


@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 3), (5, 2), (11, 30), (50, 30)])
def test_geometric_median(n, d):
    x = draw(n, d)
    close(GeometricMedian()(x), references.geometric_median(x.astype(np.float64)), atol=2e-3)


def test_geometric_median_minimises_the_sum_of_distances():
    x = draw(9, 4).astype(np.float64)

    def objective(z):
        return np.linalg.norm(x - z, axis=1).sum()

    best = optimize.minimize(objective, x.mean(0), method="Nelder-Mead", tol=1e-10)
    got = np.asarray(GeometricMedian()(x.astype(np.float32)), np.float64)
    assert objective(got) <= best.fun * (1 + 1e-4)


def test_geometric_median_of_a_majority_of_equal_rows_is_that_row():
    x = draw()
    x[:7] = 3
    close(GeometricMedian()(x), np.full(30, 3), atol=1e-3)


def test_geometric_median_ignores_the_size_of_outliers():
    near, far = draw(), draw()
    near[:2] *= 1e3
    far[:2] *= 1e12
    close(GeometricMedian()(far), GeometricMedian()(near), atol=5e-3)


@pytest.mark.parametrize("tau", [0.5, 5.0, 100.0])
@pytest.mark.parametrize("iterations", [1, 3])
def test_centered_clipping_remembers_its_output(tau, iterations):
    first, second = 3 + draw(), 3 + draw(seed=1)
    rule = CenteredClipping(tau=tau, iterations=iterations)
    one = rule.inspect(first)
    two = rule.inspect(second, state=one.state)
    expected = references.centered_clipping(first, np.zeros(30), tau, iterations)
    close(one.update, expected)
    expected = references.centered_clipping(second, expected, tau, iterations)
    close(two.update, expected)
    np.testing.assert_array_equal(two.state, two.update)


def test_centered_clipping_weights_rebuild_the_step():
    x = draw()
    result = CenteredClipping(tau=2.0).inspect(x)
    close(result.update, result.info.weights @ x)  # from 0, which has weight but adds nothing
    assert np.sum(result.info.weights) < 1


def test_centered_clipping_of_nothing_usable_stays():
    v = draw(1)[0]
    result = CenteredClipping().inspect(np.full((5, 30), np.nan, np.float32), state=jnp.asarray(v))
    close(result.update, v)


def test_centered_clipping_scan_equals_a_loop():
    rounds, rule = np.stack([draw(seed=s) for s in range(4)]), CenteredClipping(tau=1.0)
    start = rule.init(Spec(population=11, cohort=11, dim=30))

    def step(state, x):
        result = rule.aggregate(x, state, Context.of(11))
        return result.state, result.update

    _, scanned = jax.jit(lambda v, r: jax.lax.scan(step, v, r))(start, rounds)
    v = np.zeros(30)
    for x, got in zip(rounds, scanned, strict=True):
        v = references.centered_clipping(x, v, 1.0, 3)
        close(got, v)


@pytest.mark.parametrize("rule", [Krum(f=2), GeometricMedian(), CenteredClipping()], ids=repr)
def test_rows_just_below_overflow_are_harmless(rule):
    """Squared norms of 3e38 are finite in float32, but sums of two of them are not."""
    x = draw()
    x[:2] = np.float32(np.sqrt(3e38 / 30))
    result = rule.inspect(x)
    assert np.isfinite(result.update).all()
    assert np.linalg.norm(result.update) < 31
