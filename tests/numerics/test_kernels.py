"""The GPU kernel, in interpret mode against NumPy, and lowered for CUDA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from references import mean_near_median

from jaxfl.aggregators import Median
from jaxfl.numerics import kernels, order
from jaxfl.types import Context

ON_A_GPU = pytest.mark.filterwarnings(
    "ignore:The Pallas Triton backend is deprecated:DeprecationWarning"
)


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
    ("n", "low", "high"),
    [(3, 0, 1), (9, 3, 6), (16, 7, 9), (65, 32, 33), (100, 49, 51), (200, 50, 150)],
)
def test_mean_of_ranks(kind, n, low, high):
    x = draw(kind, n, 300)  # no multiple of a block
    got = kernels.mean_of_ranks(jnp.asarray(x), low, high, interpret=True)
    ordered = np.sort(np.where(np.isnan(x), np.inf, x).astype(np.float64), axis=0)[low:high]
    size = np.abs(np.where(np.isfinite(ordered), ordered, 0)).max(0)
    expected = ordered.mean(0)
    np.testing.assert_array_equal(np.isinf(got), np.isinf(expected))
    finite = np.isfinite(expected)
    error = np.abs(np.asarray(got, np.float64)[finite] - expected[finite])
    assert (error <= 1e-5 * size[finite]).all()


# The quick compiler would write out what a network's rows are made of, once for every use.
@pytest.mark.default_compiler
@pytest.mark.parametrize("kind", ["random", "tied", "wild"])
@pytest.mark.parametrize(("n", "k"), [(3, 1), (9, 7), (16, 16), (65, 40), (100, 80)])
def test_mean_of_nearest(kind, n, k):
    """About the median: ties go to the first rows, as in the reference and on a CPU."""
    x = draw(kind, n, 300)
    low, high = order.middle(n)
    got = np.asarray(kernels.mean_of_ranks(jnp.asarray(x), low, high, k, interpret=True))
    expected = mean_near_median(x, k)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected))
    finite = np.isfinite(expected)
    size = np.abs(np.where(np.isfinite(x), x, 0)).max(0)[finite]
    assert (np.abs(got[finite] - expected[finite]) <= 1e-5 * size).all()
    if kind == "tied":
        here = jax.jit(order.mean_of_nearest, static_argnums=(1, 2, 3))(
            jnp.asarray(x), low, high, k
        )
        np.testing.assert_allclose(got, here, rtol=1e-6, atol=1e-6)


def test_a_vmapped_kernel():
    x = np.stack([draw("random", 70, 40), draw("tied", 70, 40)])
    got = jax.vmap(lambda m: kernels.mean_of_ranks(m, 34, 36, interpret=True))(jnp.asarray(x))
    np.testing.assert_allclose(got, np.median(x, axis=1), rtol=1e-6, atol=1e-6)


def lowered_for(platform, function, x):
    try:
        return jax.jit(function).trace(x).lower(lowering_platforms=(platform,)).as_text()
    except RuntimeError as error:
        pytest.skip(f"this JAX lowers for a GPU only where it knows one: {error}")


@ON_A_GPU
@pytest.mark.parametrize("n", [50, 100, 1000])
def test_the_kernel_lowers_for_a_gpu(n):
    def call(x):
        nearest = kernels.mean_of_ranks(x, n // 2 - 1, n // 2 + 1, n - 5)
        return kernels.mean_of_ranks(x, n // 2 - 1, n // 2 + 1), nearest

    assert lowered_for("cuda", call, jnp.zeros((n, 1000))).count("__gpu$xla.gpu.triton") == 2


@ON_A_GPU
@pytest.mark.parametrize("n", [50, 100])
def test_the_platform_that_runs_decides(n):
    """Not the default one: of the same rule, placed here or there."""
    x = jnp.zeros((n, 20_000))

    def rule(x):
        return Median().aggregate(x, (), Context.of(n)).update

    here, there = lowered_for("cpu", rule, x), lowered_for("cuda", rule, x)
    assert "triton" in there
    assert "triton" not in here
    assert "stablehlo.while" in here  # the columns are walked in blocks
    assert "stablehlo.while" not in there
    placed = jax.jit(rule).lower(jax.device_put(x, jax.devices("cpu")[0])).as_text()
    assert "triton" not in placed


@ON_A_GPU
def test_an_export_holds_the_program_of_its_platform():
    triton = export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")
    median = jax.jit(order.median)
    try:
        exported = export.export(median, platforms=["cuda"], disabled_checks=[triton])(
            jnp.zeros((100, 1000))
        )
    except RuntimeError as error:
        pytest.skip(f"this JAX lowers for a GPU only where it knows one: {error}")
    assert "triton" in exported.mlir_module()


def test_types_and_sizes_that_it_serves():
    assert kernels.serves(jnp.zeros((100, 10)))
    assert not kernels.serves(jnp.zeros((kernels.MOST_ROWS + 1, 10)))
    assert not kernels.serves(jnp.zeros((100, 10), jnp.bfloat16))
