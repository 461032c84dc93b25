"""Matrices on which rules are compared with their formulas."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

N, D = 11, 6


def random(rng):
    return rng.normal(size=(N, D))


def tied(rng):
    """Integers: equal distances are equal to the last bit."""
    return rng.integers(-1, 2, size=(N, D)).astype(float)


def skewed(rng):
    return rng.lognormal(sigma=2, size=(N, D))


def sparse(rng):
    return rng.normal(size=(N, D)) * (rng.random((N, D)) < 0.3)


def tiny(rng):
    return 1e-15 * rng.normal(size=(N, D))


def one_column(rng):
    """Numbers on a line, padded so that all kinds make one program of a rule."""
    return np.pad(rng.normal(size=(N, 1)), ((0, 0), (0, D - 1)))


def equal(rng):
    return np.tile(rng.normal(size=D), (N, 1))


KINDS = [random, tied, skewed, sparse, tiny, one_column, equal]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
both_types = pytest.mark.parametrize(
    "double",
    [pytest.param(False, marks=pytest.mark.slow), True],
    ids=["float32", "float64"],
)
"""The fast suite compares in double precision; the contract tests are in single precision."""


def draw(kind, seed=0):
    """A matrix whose values float32 holds exactly."""
    return kind(np.random.default_rng(seed)).astype(np.float32).astype(np.float64)


def inspect(rule, x, double, **known):
    """The answer in float32 or float64."""
    with jax.enable_x64(True) if double else contextlib.nullcontext():
        return jax.tree.map(np.asarray, rule.inspect(jnp.asarray(x, float), **known))


def close(got, expected, double, scale=None):
    """To rtol 1e-9 or 1e-4 of the size of the input."""
    scale = np.abs(expected).max() if scale is None else scale
    tolerance = 1e-9 if double else 1e-4
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(scale, 1e-30))
