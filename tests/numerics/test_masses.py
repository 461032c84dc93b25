"""Masses stacked on each other, against sorting by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.numerics.masses import mass_inside, stacked


@pytest.mark.parametrize("n", [7, 70])  # comparisons, and a sort
def test_a_mass_lies_on_those_of_smaller_values(n):
    rng = np.random.default_rng(n)
    values = rng.integers(0, n // 2, (n, 12)).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = np.inf
    masses = rng.dirichlet(np.ones(n)).astype(np.float32)

    @jax.jit
    def inside_of(values, masses):
        some, own, below = stacked(values, masses)
        return some, below, mass_inside(own, below, jnp.float32(0.2), jnp.float32(0.8))

    some, below, kept = map(np.asarray, inside_of(values, masses))
    for column in range(values.shape[1]):
        order = np.argsort(values[:, column], kind="stable")
        top = np.cumsum(masses[order], dtype=np.float64)
        inside = np.clip(np.minimum(top, 0.8) - np.maximum(top - masses[order], 0.2), 0, None)
        mine = np.lexsort((below[:, column], some[:, column]))
        np.testing.assert_array_equal(some[mine, column], values[order, column])
        # Of equal values any may be the lower one.
        for value in np.unique(values):
            theirs = inside[values[order, column] == value].sum()
            assert kept[some[:, column] == value, column].sum() == pytest.approx(theirs, abs=1e-5)
