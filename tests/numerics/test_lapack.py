"""Decompositions under vmap: NumPy's answers, and on a CPU no call for a batch."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfl
from jaxfl.numerics import lapack

X = np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype(np.float32)
SYMMETRIC = X @ np.swapaxes(X, -1, -2)
WAYS = {
    "eigh": (SYMMETRIC, lambda v: (v[1] * v[0][..., None, :]) @ np.swapaxes(v[1], -1, -2)),
    "eigvalsh": (SYMMETRIC, lambda v: v),
    "pinv": (SYMMETRIC, np.linalg.inv),
    "svd": (X, lambda v: (v[0] * v[1][..., None, :]) @ v[2]),
    "qr": (X, lambda v: v[0] @ v[1]),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_batch_is_taken_one_by_one(name):
    matrices, again = WAYS[name]
    program = jax.jit(jax.vmap(jax.vmap(getattr(lapack, name)))).lower(matrices).compile()
    expected = np.linalg.eigvalsh(SYMMETRIC) if name == "eigvalsh" else matrices
    scale = np.abs(expected).max()
    np.testing.assert_allclose(again(program(matrices)), expected, rtol=0, atol=1e-4 * scale)
    calls = re.findall(r"= \(?([^=]*?) custom-call\(.*lapack", program.as_text())
    assert calls
    for shapes in calls:
        assert not re.search(r"f32\[\d+,\d+,\d+", shapes), f"a call for a batch: {shapes}"


def test_gradients_are_those_of_jax():
    top = lambda function: jax.grad(lambda m: function(m)[-1])  # noqa: E731
    matrix = jnp.asarray(SYMMETRIC[0, 0])
    np.testing.assert_array_equal(top(lapack.eigvalsh)(matrix), top(jnp.linalg.eigvalsh)(matrix))


def test_nothing_else_calls_lapack_in_a_round():
    """Laws of honest sets decompose matrices too, before any round and one at a time."""
    called = re.compile(r"jnp\.linalg\.(eigh|eigvalsh|svd|qr|pinv|inv|solve|cholesky|lstsq|det)\b")
    root = Path(jaxfl.__file__).parent
    users = {
        p.relative_to(root).as_posix() for p in root.rglob("*.py") if called.search(p.read_text())
    }
    assert users == {"numerics/lapack.py", "robustness/copula.py", "programs.py"}
