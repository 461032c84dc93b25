"""The top eigenpair against all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.numerics.eigen import LARGEST_DENSE, top_eigenpair

PAIR = jax.jit(top_eigenpair)


def draw(n, kind):
    rng = np.random.default_rng(0)
    if kind == "zero":
        return np.zeros((n, n))
    if kind == "one":
        v = rng.normal(size=n)
        return np.outer(v, v)
    x = rng.normal(size=(n, 5 if kind == "thin" else 3 * n))
    return x @ x.T


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["thin", "wide", "one", "zero"])
@pytest.mark.parametrize("n", [1, 20, LARGEST_DENSE + 12])
def test_top_eigenpair(n, kind, double):
    matrix = draw(n, kind)
    values, vectors = np.linalg.eigh(matrix)
    for scale in (1, 1e-25, 1e25):
        with jax.enable_x64(double):
            # The start is orthogonal to the answer.
            start = jnp.asarray(vectors[:, 0], float)
            pair = PAIR(jnp.asarray(matrix * scale, float), start)
            value, vector = (np.asarray(leaf) for leaf in pair)
        tolerance = 1e-9 if double else 1e-4
        np.testing.assert_allclose(value / scale, values[-1], rtol=tolerance, atol=1e-30)
        np.testing.assert_allclose(np.linalg.norm(vector), 1, rtol=1e-5)
        if kind != "zero":
            overlap = abs(np.asarray(vector, float) @ vectors[:, -1])
            np.testing.assert_allclose(overlap, 1, atol=tolerance)
