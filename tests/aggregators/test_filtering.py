"""CAF and MoNNA against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inputs import both_types, close, draw, every_kind, inspect, random

from jaxfl.aggregators import (
    CAF,
    CenteredClipping,
    FoolsGold,
    GeometricMedian,
    Mean,
    Median,
    MoNNA,
    Pipeline,
)
from jaxfl.preaggregators import Bucketing
from jaxfl.types import Context


def caf(x, f, over="weighted", steps=1000):
    """From the definition, with the d x d covariance."""
    n, best = len(x), np.inf
    c = np.ones(n)
    answer = x.mean(0)
    while c.sum() > n - 2 * f and steps > 0:
        steps -= 1
        mean = c @ x / c.sum()
        covariance = ((x - mean) * c[:, None]).T @ (x - mean) / c.sum()
        values, vectors = np.linalg.eigh(covariance)
        if values[-1] < best:
            best, answer = values[-1], mean
        t = np.square((x - mean) @ vectors[:, -1]) * (1 if over == "all" else c > 0)
        if t.max() <= 1e-28 * np.square(x).max():
            break
        c = c * (1 - t / t.max())
    return answer


def monna(x, f, pivot):
    distances = np.linalg.norm(x - pivot, axis=1)
    return x[np.argsort(distances, kind="stable")[: len(x) - f]].mean(0)


@both_types
@every_kind
def test_caf(kind, double):
    x = draw(kind)
    for f in (0, 1, 2, 5):
        close(inspect(CAF(f=f), x, double).update, caf(x, f), double, np.abs(x).max())


@both_types
def test_caf_of_more_rows_than_all_eigenvectors_are_computed_for(double):
    x = np.random.default_rng(0).normal(size=(150, 12)) * np.geomspace(1, 3, 12)
    x[:20] += 4
    x = x.astype(np.float32).astype(float)
    close(inspect(CAF(f=25), x, double).update, caf(x, 25), double)


def test_caf_takes_outliers_out_wholly():
    x = draw(random)
    x[:2] *= [[1e6], [1e9]]
    result = inspect(CAF(f=2), x, False)
    np.testing.assert_array_equal(result.info.weights[:2], 0)
    close(np.sum(result.info.weights), 1, False)


@both_types
def test_caf_that_divides_by_the_largest_of_all_projections(double):
    x = draw(random)
    x[:2] += [[3], [5]]
    for f in (0, 1, 2):
        expected = caf(x, f, "all")
        close(inspect(CAF(f=f, over="all"), x, double).update, expected, double)
    if double:
        # So many steps that the reference, too, moves by far more than the rows are changed by.
        expected, rng = caf(x, 5, "all"), np.random.default_rng(0)
        rounded = [x * (1 + 2.0**-52 * rng.choice([-1, 1], x.shape)) for _ in range(8)]
        moved = max(np.abs(caf(r, 5, "all") - expected).max() for r in rounded)
        assert moved < 1e-7
        got = inspect(CAF(f=5, over="all"), x, True).update
        np.testing.assert_allclose(got, expected, rtol=0, atol=10 * moved)
    assert np.abs(caf(x, 5, "all") - caf(x, 5)).max() > 1e-3


def test_a_row_that_is_out_keeps_the_others_weights_up_in_that_reading():
    """Two outliers, far and very far: CAF takes out both, the other reading the farther alone."""
    x = draw(random)
    x[:2] = [[1e3], [1e6]]
    x[10] = np.nan  # as good as not there
    both, far = (inspect(CAF(f=2, over=over), x, False) for over in ("weighted", "all"))
    np.testing.assert_array_equal(np.asarray(both.info.weights[:2]) > 0, [False, False])
    np.testing.assert_array_equal(np.asarray(far.info.weights[:2]) > 0, [True, False])
    assert np.abs(both.update).max() < 3
    assert np.abs(far.update).min() > 50


@both_types
@every_kind
def test_monna(kind, double):
    x = draw(kind)
    for f, trusted in [(0, 0), (2, 0), (5, 3)]:
        result = inspect(MoNNA(f=f, trusted=trusted), x, double)
        assert result.info.selected.sum() == 11 - f
        assert result.info.selected[trusted]
        close(result.update, monna(x, f, x[trusted]), double, np.abs(x).max())


def test_monna_takes_the_first_of_equal_distances():
    x = np.array([[0.0], [1], [-1], [1], [3]])
    np.testing.assert_array_equal(
        inspect(MoNNA(f=2), x, False).info.selected, [True, True, True, False, False]
    )


@both_types
@pytest.mark.parametrize(
    "pivot",
    [Mean(), GeometricMedian(), GeometricMedian(start="zero", iterations=3), Median()],
    ids=repr,
)
def test_monna_around_a_rule(pivot, double):
    x = draw(random)
    middle = inspect(pivot, x, double).update
    close(inspect(MoNNA(f=3, pivot=pivot), x, double).update, monna(x, 3, middle), double)


def test_monna_around_the_median_of_mixed_rows():
    x, mixing = draw(random), np.kron(np.eye(4), [[1 / 3, 1 / 3, 1 / 3]])[:, :11]
    mixing[3] *= 1.5  # the last group has two
    mixed = mixing @ x
    rule = Pipeline(pre=(Bucketing(size=3),), rule=MoNNA(f=1, pivot=Median()))
    order = np.asarray(jax.random.permutation(jax.random.key(0), 11))
    got = rule.inspect(jnp.asarray(x[order], jnp.float32), context=Context.of(11)).update
    close(got, monna(mixed, 1, np.median(mixed, axis=0)), False)


def test_an_unusable_trusted_row_gives_nothing():
    x = draw(random).astype(np.float32)
    x[4] = np.nan
    np.testing.assert_array_equal(MoNNA(f=2, trusted=4)(x), 0)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (MoNNA(f=2, trusted=11), "MoNNA needs trusted < n; got trusted = 11, n = 11"),
        (MoNNA(f=2, pivot=FoolsGold()), "pivot must be a weighting or a coordinatewise rule, not"),
        (MoNNA(f=2, pivot=CenteredClipping()), "pivot must have no memory; CenteredClipping"),
    ],
)
def test_what_monna_refuses(rule, message):
    with pytest.raises(ValueError, match=message):
        rule(draw(random))


def test_absent_rows_count_in_neither_half():
    x, present = draw(random).astype(np.float32), np.arange(11) % 5 > 0
    context = Context.of(11, present=jnp.asarray(present))
    got = CAF(f=2).inspect(x, context=context).update
    close(got, caf(x[present].astype(float), 2), False)


def test_gradients_of_large_matrices_pass():
    x = np.random.default_rng(0).normal(size=(140, 5)).astype(np.float32)
    gradient = jax.grad(lambda x: jnp.sum(CAF(f=30)(x)))(x)
    assert np.isfinite(gradient).all()
