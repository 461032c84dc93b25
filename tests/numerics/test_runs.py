"""Several runs in one program: what is computed in turn gives each run its own answer."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.numerics import columns
from jaxfl.numerics.runs import in_turn


@in_turn
def products(run, rows, centre):
    """In blocks of 2 columns."""
    return columns.sum_columns(
        lambda block, shift: (block - shift) @ (block - shift).T, rows, centre, width=2, run=run
    )


def expected(rows, centre):
    shifted = np.asarray(rows) - np.asarray(centre)
    return np.einsum("...ik,...jk->...ij", shifted, shifted)


ROWS = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 7)), jnp.float32)
CENTRES = jnp.asarray(np.random.default_rng(1).normal(size=(3, 1, 7)), jnp.float32)


def test_one_run():
    np.testing.assert_allclose(products(ROWS[0], CENTRES[0]), expected(ROWS[0], CENTRES[0]), 1e-5)


@pytest.mark.parametrize("axis", [0, None])
def test_each_of_several_runs(axis):
    centre = CENTRES if axis == 0 else CENTRES[1]
    got = jax.jit(jax.vmap(products, in_axes=(0, axis)))(ROWS, centre)
    np.testing.assert_allclose(got, expected(ROWS, centre), rtol=1e-5)


def test_runs_of_runs():
    got = jax.vmap(jax.vmap(products, in_axes=(0, None)), in_axes=(None, 0))(ROWS, CENTRES)
    np.testing.assert_allclose(got, expected(ROWS[None], CENTRES[:, None]), rtol=1e-5)


def test_gradients_of_several_runs_are_those_of_each():
    def total(rows, centre):
        return jnp.sum(products(rows, centre) ** 2)

    got = jax.vmap(jax.grad(total, argnums=(0, 1)))(ROWS, CENTRES)
    for run in range(3):
        plain = jax.grad(lambda r, c: jnp.sum(((r - c) @ (r - c).T) ** 2), argnums=(0, 1))
        for a, b in zip(got, plain(ROWS[run], CENTRES[run]), strict=True):
            np.testing.assert_allclose(a[run], b, rtol=1e-4)


def test_no_block_on_a_cpu_holds_several_runs():
    """They would not stay in the cache; nor is a run's matrix copied out of all of them."""
    text = jax.jit(jax.vmap(products)).lower(ROWS, CENTRES).as_text()
    dots = [line for line in text.splitlines() if "dot_general" in line]
    assert dots
    assert not any(re.search(r"tensor<\d+x\d+x\d+xf32>", line) for line in dots)
    slices = [line for line in text.splitlines() if "dynamic_slice" in line and "3x4x7" in line]
    assert slices
    assert not any("-> tensor<1x4x7xf32>" in line for line in slices)
