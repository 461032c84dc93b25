"""Norm screening and clipping against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inputs import both_types

from jaxfl.aggregators import CGE, NBS, TNBS, Mean, NormClipping, Pipeline
from jaxfl.preaggregators import Clipping
from jaxfl.types import Context

KINDS = ("random", "tied", "skewed", "sparse", "tiny")


def draw(kind="random", n=11, d=30, seed=0):
    """Updates of mixed norms, in float64."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * rng.uniform(0.5, 3, size=(n, 1))
    if kind == "tied":
        x[3], x[7], x[5] = x[1], -x[1], x[0]
    if kind == "skewed":
        x = np.exp(2 * x)
    if kind == "sparse":
        x *= rng.random(size=x.shape) < 0.1
        x[2] = 0
    return x * 1e-12 if kind == "tiny" else x


def kept_by_norm(x, low, high):
    order = np.argsort(np.linalg.norm(x, axis=1), kind="stable")
    return np.sort(order[low : len(x) - high])


def clipped(x, tau):
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return x * np.minimum(1, tau / np.where(norms == 0, 1, norms))


CASES = [
    (CGE(f=0), lambda x: x.mean(0)),
    (CGE(f=3), lambda x: x[kept_by_norm(x, 0, 3)].mean(0)),
    (CGE(f=3, average=False), lambda x: x[kept_by_norm(x, 0, 3)].sum(0)),
    (NBS(f=2), lambda x: x[kept_by_norm(x, 0, 2)].mean(0)),
    (NBS(f=2, beta=0.3), lambda x: x[kept_by_norm(x, 0, 4)].mean(0)),
    (NBS(f=2, beta=0.0), lambda x: x.mean(0)),
    (TNBS(f=2), lambda x: x[kept_by_norm(x, 2, 2)].mean(0)),
    (TNBS(f=2, low=1), lambda x: x[kept_by_norm(x, 1, 2)].mean(0)),
    (TNBS(f=2, low=0, high=5), lambda x: x[kept_by_norm(x, 0, 5)].mean(0)),
    (TNBS(f=2, quantile=0.3), lambda x: x[kept_by_norm(x, 3, 3)].mean(0)),
    (TNBS(f=9, quantile=0.05), lambda x: x.mean(0)),
    (NormClipping(), lambda x: clipped(x, np.median(np.linalg.norm(x, axis=1))).mean(0)),
    (NormClipping(tau=4.0), lambda x: clipped(x, 4.0).mean(0)),
    (Pipeline(pre=(Clipping(tau=4.0),), rule=Mean()), lambda x: clipped(x, 4.0).mean(0)),
]


def test_screening_after_clipping():
    x = draw().astype(np.float32)
    x *= (np.arange(1, 12) / np.linalg.norm(x, axis=1))[:, None]
    got = Pipeline(pre=(Clipping(tau=9.5),), rule=TNBS(f=0, low=3, high=0))(x)
    np.testing.assert_allclose(got, clipped(x, 9.5)[3:].mean(0), rtol=1e-5, atol=1e-5)


@both_types
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rule", "reference"), CASES, ids=[repr(rule) for rule, _ in CASES])
def test_parity(rule, reference, kind, double):
    x = draw(kind).astype(np.float64 if double else np.float32)
    rtol, atol = (1e-9, 1e-9) if double else (1e-4, 1e-5)
    with jax.enable_x64(double):
        got = rule(jnp.asarray(x))
    expected = reference(x.astype(np.float64))
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol * np.abs(x).max())


@pytest.mark.parametrize(("n", "p", "low"), [(100, 0.29, 29), (30, 0.1, 3), (10, 0.3, 3)])
def test_quantiles_are_exact(n, p, low):
    """In floats 0.29 * 100 is 28.999999999999996."""
    x = np.arange(1, n + 1, dtype=np.float32)[:, None]
    selected = TNBS(f=0, quantile=p).inspect(x).info.selected
    np.testing.assert_array_equal(np.flatnonzero(selected), np.arange(low, n - low))


def test_dropped_rows_are_the_largest():
    x = draw().astype(np.float32)
    x[4], x[6] = np.nan, 1e30
    rest = np.delete(x, [4, 6], axis=0)
    np.testing.assert_allclose(NBS(f=2)(x), rest.mean(0), rtol=1e-5, atol=1e-6)
    order = np.argsort(np.linalg.norm(rest, axis=1))
    np.testing.assert_allclose(TNBS(f=2)(x), rest[order[2:]].mean(0), rtol=1e-5, atol=1e-6)


def test_norm_clipping_adds_noise_of_the_given_deviation():
    x = np.zeros((5, 20_000), np.float32)
    rule = NormClipping(tau=1.0, noise_std=0.3)
    one = rule(x, context=Context.of(5, key=jax.random.key(1)))
    again = rule(x, context=Context.of(5, key=jax.random.key(1)))
    other = rule(x, context=Context.of(5, key=jax.random.key(2)))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.1
    np.testing.assert_allclose([np.std(one), np.mean(one)], [0.3, 0], atol=0.01)
    np.testing.assert_array_equal(NormClipping(tau=1.0)(x), 0)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (NBS(f=0, beta=0.95), "NBS: beta must leave at least one of n = 11 clients; got 0.95"),
        (TNBS(f=0, low=1, quantile=0.1), "TNBS: give either quantile or low and high, not both"),
        (TNBS(f=0, low=5, high=6), "got n = 11, f = 0, low = 5, high = 6"),
    ],
)
def test_screening_must_leave_something(rule, message):
    with pytest.raises(ValueError, match=message):
        rule(draw())


@pytest.mark.parametrize("fields", [{"beta": 1.0}, {"beta": -0.1}])
def test_beta_is_a_share(fields):
    with pytest.raises(ValueError, match="NBS: beta must be at least 0 and below 1"):
        NBS(f=1, **fields)


@pytest.mark.parametrize("tau", [0.0, -1.0])
def test_tau_is_positive(tau):
    for cls in (NormClipping, Clipping):
        with pytest.raises(ValueError, match=f"{cls.__name__}: tau must be above 0"):
            cls(tau=tau)


def test_scores_are_the_norms():
    x = draw().astype(np.float32)
    for rule in (CGE(f=2), NBS(f=2), TNBS(f=2), NormClipping()):
        scores = rule.inspect(x).info.scores
        np.testing.assert_allclose(scores, np.linalg.norm(x, axis=1), rtol=1e-5)
