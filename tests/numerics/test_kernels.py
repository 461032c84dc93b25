"""The GPU kernel, in interpret mode against NumPy, and lowered for CUDA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.numerics import kernels


def draw(kind, n, c):
    random = np.random.default_rng(n)
    x = random.normal(size=(n, c)).astype(np.float32)
    if kind == "tied":
        x = np.round(x)
        x[x == 1] = -0.0
    if kind == "wild":
        x *= np.float32(10) ** random.integers(-30, 30, size=x.shape)
        x[0], x[1, ::2], x[2, ::3] = np.nan, np.inf, -np.inf
    return x


# A rank below those of NaN and +inf, whose means with finite values are no numbers.
@pytest.mark.parametrize("kind", ["random", "tied", "wild"])
@pytest.mark.parametrize(
    ("n", "low", "high"), [(3, 0, 1), (65, 32, 33), (100, 49, 51), (200, 50, 150)]
)
def test_mean_of_ranks(kind, n, low, high):
    x = draw(kind, n, 150)  # no multiple of a block
    got = kernels.mean_of_ranks(jnp.asarray(x), low, high, interpret=True)
    ordered = np.sort(np.where(np.isnan(x), np.inf, x).astype(np.float64), axis=0)[low:high]
    size = np.abs(np.where(np.isfinite(ordered), ordered, 0)).max(0)
    expected = ordered.mean(0)
    np.testing.assert_array_equal(np.isinf(got), np.isinf(expected))
    finite = np.isfinite(expected)
    error = np.abs(np.asarray(got, np.float64)[finite] - expected[finite])
    assert (error <= 1e-5 * size[finite]).all()


def test_a_vmapped_kernel():
    x = np.stack([draw("random", 70, 40), draw("tied", 70, 40)])
    got = jax.vmap(lambda m: kernels.mean_of_ranks(m, 34, 36, interpret=True))(jnp.asarray(x))
    np.testing.assert_allclose(got, np.median(x, axis=1), rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize("n", [100, 1000])
def test_the_kernel_lowers_for_a_gpu(n):
    call = jax.jit(lambda x: kernels.mean_of_ranks(x, n // 2 - 1, n // 2 + 1))
    try:
        lowered = call.trace(jnp.zeros((n, 1000))).lower(lowering_platforms=("cuda",))
    except RuntimeError as error:
        pytest.skip(f"this JAX lowers for a GPU only where it knows one: {error}")
    assert "triton" in lowered.as_text()


def test_a_cpu_does_not_use_it():
    assert not kernels.serves(jnp.zeros((100, 10)))
