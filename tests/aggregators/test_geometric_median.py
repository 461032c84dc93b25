"""Variants of the geometric median and the auto-weighted one."""

import jax.numpy as jnp
import numpy as np
import pytest
import references
from inputs import both_types, close, draw, every_kind, inspect, random, tied
from scipy import optimize

from jaxfl.aggregators import AutoGM, GeometricMedian
from jaxfl.types import Context

MASS = np.arange(1, 12) / 66


def settings(kind):
    return draw(kind) + (0 if kind.__name__ == "tiny" else 0.25)


@both_types
@every_kind
@pytest.mark.parametrize(("start", "steps"), [("zero", 3), ("zero", 8), ("mean", 5)])
def test_the_steps_of_other_codes(kind, start, steps, double):
    """RFA's and ByzFL's: from 0, with an absolute nu."""
    x = settings(kind)
    rule = GeometricMedian(start=start, absolute=True, nu=0.1, iterations=steps, weighted=True)
    context = Context.of(11, weights=jnp.asarray(MASS, jnp.float32))
    mass = np.asarray(np.float32(MASS), float)
    z = np.zeros(x.shape[1]) if start == "zero" else mass @ x / mass.sum()
    expected = references.weiszfeld(x, z, steps, 0.1, mass)
    close(inspect(rule, x, double, context=context).update, expected, double, np.abs(x).max())


@both_types
@pytest.mark.parametrize("reweightings", [1, 2])
def test_reweightings(reweightings, double):
    x = draw(random)
    rule = GeometricMedian(reweightings=reweightings, iterations=400)
    mass, z = np.ones(11), x.mean(0)
    for again in range(reweightings + 1):
        if again:
            mass = mass * np.exp(-np.linalg.norm(x - z, axis=1))
        z = references.weiszfeld(x, x.mean(0), 4000, 1e-12, mass)
    np.testing.assert_allclose(inspect(rule, x, double).update, z, atol=2e-4)


@both_types
def test_a_row_that_is_the_median_is_met_exactly(double):
    found = 0
    for seed in range(20):
        x = np.random.default_rng(seed).normal(size=(6, 2)).astype(np.float32).astype(float)
        x[5] = x[:5].mean(0).astype(np.float32)
        best = optimize.minimize(
            lambda z, x=x: np.linalg.norm(x - z, axis=1).sum(), x[5], method="Nelder-Mead", tol=1e-9
        )
        away = np.linalg.norm(x - best.x, axis=1)
        is_row = away.min() < 1e-6
        got = inspect(GeometricMedian(), x, double).update
        if is_row:
            np.testing.assert_array_equal(got, x[np.argmin(away)])
        else:
            assert np.linalg.norm(x - got, axis=1).min() > 0
        found += is_row
    assert 0 < found < 20


def test_equal_rows_share_the_weight_of_the_one_they_are():
    x = draw(random)
    x[2:8] = x[2]
    result = inspect(GeometricMedian(), x, False)
    close(result.info.weights, np.isin(np.arange(11), range(2, 8)) / 6, False)


def test_sample_counts_move_the_median():
    x = draw(tied)
    weights = jnp.where(jnp.arange(11) == 4, 0.6, 0.04)
    context = Context.of(11, weights=weights)
    rule = GeometricMedian(weighted=True)
    np.testing.assert_allclose(inspect(rule, x, False, context=context).update, x[4], atol=1e-6)


def automatic_weights(distances, lamb):
    """argmin of a.d + lamb/2 |a|^2 on the simplex, by bisection for eta."""
    low, high = distances.min(), distances.max() + lamb
    for _ in range(200):
        eta = (low + high) / 2
        total = np.maximum(eta - distances, 0).sum() / lamb
        low, high = (low, eta) if total > 1 else (eta, high)
    weights = np.maximum(high - distances, 0)
    return weights / weights.sum()


def auto_gm(x, lamb, turns=16, steps=4000):
    mass, z = np.full(len(x), 1 / len(x)), x.mean(0)
    for turn in range(turns + 1):
        if turn:
            mass = automatic_weights(np.linalg.norm(x - z, axis=1), lamb)
        z = references.weiszfeld(x, mass @ x, steps, 1e-13, mass)
    return z


def cost(x, z, lamb):
    """Over the best weights for z."""
    distances = np.linalg.norm(x - z, axis=1)
    a = automatic_weights(distances, lamb)
    return a @ distances + lamb / 2 * a @ a


@both_types
@pytest.mark.parametrize("lamb", [2.0, 10.0, 1000.0])
def test_auto_gm(lamb, double):
    x = draw(random)
    rule = AutoGM(lamb=lamb, steps=400)
    tolerance = 1e-7 if double else 1e-3
    got = inspect(rule, x, double).update
    np.testing.assert_allclose(got, auto_gm(x, lamb), atol=tolerance)


@pytest.mark.parametrize("lamb", [2.0, 10.0, 1000.0])
def test_auto_gm_minimises_its_cost(lamb):
    x = draw(random)[:, :3]
    z = inspect(AutoGM(lamb=lamb, iterations=64), x, True).update
    best = optimize.minimize(lambda z: cost(x, z, lamb), z, method="Nelder-Mead", tol=1e-10)
    assert cost(x, z, lamb) <= best.fun * (1 + 1e-6)


def test_auto_gm_between_its_limits():
    x = draw(random)
    plain = inspect(GeometricMedian(), x, True).update
    np.testing.assert_allclose(inspect(AutoGM(lamb=1e9), x, True).update, plain, atol=1e-5)
    assert np.min(np.linalg.norm(x - inspect(AutoGM(lamb=1e-6), x, True).update, axis=1)) < 1e-6


def test_auto_gm_leaves_far_rows_out():
    x = draw(random)
    x[:2] = 1e6
    result = inspect(AutoGM(lamb=20.0), x, False)
    np.testing.assert_array_equal(result.info.weights[:2], 0)
    assert (result.info.weights[2:] > 0).all()
