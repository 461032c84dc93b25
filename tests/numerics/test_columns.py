import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.numerics import columns
from jaxfl.numerics.columns import map_columns, mesh_kind, sum_columns

WIDTHS = [1, 7, 16, 48, 50, 64]
"""Against 50 columns: remainders 0, 1 and more, exactly one block, and less than a block."""


@pytest.fixture
def matrix():
    return np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32)


@pytest.mark.parametrize("width", WIDTHS)
def test_map_covers_every_column_once(matrix, width):
    got = jax.jit(lambda m: map_columns(lambda b: b.sum(0), m, width=width))(matrix)
    np.testing.assert_allclose(got, matrix.sum(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_map_of_several_arrays_of_other_ranks(matrix, width):
    vector = jnp.arange(50, dtype=jnp.float32)
    got = map_columns(lambda m, v: m * v[None], jnp.asarray(matrix), vector, width=width)
    np.testing.assert_allclose(got, matrix * np.asarray(vector), rtol=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_sum_counts_every_column_once(matrix, width):
    got = jax.jit(lambda m: sum_columns(lambda b: b @ b.T, m, width=width))(matrix)
    np.testing.assert_allclose(got, matrix @ matrix.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", WIDTHS)
def test_sum_of_several_arrays(matrix, width):
    vector = jnp.arange(50, dtype=jnp.float32)
    got = sum_columns(lambda m, v: m @ v, jnp.asarray(matrix), vector, width=width)
    np.testing.assert_allclose(got, matrix @ vector, rtol=1e-5, atol=1e-4)


def test_blocks_are_no_wider_than_asked(matrix):
    seen = []

    def function(block):
        seen.append(block.shape[-1])
        return block.sum(0)

    map_columns(function, jnp.asarray(matrix), width=16)
    assert set(seen) == {16}


def test_result_type_may_differ(matrix):
    got = map_columns(lambda b: b[0] > 0, jnp.asarray(matrix), width=16)
    np.testing.assert_array_equal(got, matrix[0] > 0)


@pytest.mark.parametrize("width", [16, 64])
def test_closures_over_pytrees(matrix, width):
    scales = {"scale": jnp.arange(4.0), "shift": (jnp.float32(2),)}

    @jax.jit
    def run(matrix, scales):
        def function(block):
            return scales["scale"] @ block + scales["shift"][0]

        return map_columns(function, matrix, width=width)

    np.testing.assert_allclose(run(matrix, scales), np.arange(4.0) @ matrix + 2, rtol=1e-4)


@pytest.mark.parametrize("width", [16, 64])
def test_under_vmap(matrix, width):
    batch = np.stack([matrix, 2 * matrix, -matrix])
    mapped = jax.vmap(lambda m: map_columns(lambda b: b.max(0), m, width=width))(batch)
    summed = jax.vmap(lambda m: sum_columns(lambda b: b.sum(1), m, width=width))(batch)
    np.testing.assert_allclose(mapped, batch.max(1))
    np.testing.assert_allclose(summed, batch.sum(2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [16, 64])
def test_gradient(matrix, width):
    def loss(m):
        squares = map_columns(lambda b: jnp.square(b).sum(0), m, width=width)
        return squares.sum() + sum_columns(lambda b: b.sum(), m, width=width)

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(matrix), 2 * matrix + 1, rtol=1e-5)


@pytest.mark.parametrize("columns", [2047, 2048, 2049, 4096, 20_001])
def test_blocks_that_run_together_add_up(columns):
    matrix = jax.random.normal(jax.random.key(0), (3, columns))
    seen = []

    def products(block):
        seen.append(block.shape[-1])
        return block @ block.T

    def total(m):
        return sum_columns(products, m, width=1024, together=4)

    exact = np.asarray(matrix, np.float64)
    np.testing.assert_allclose(jax.jit(total)(matrix), exact @ exact.T, rtol=1e-4, atol=1e-2)
    blocks = [width for width in seen if width < columns]  # whole, it is traced for GPUs
    assert columns <= 2048 or max(blocks) <= 1024
    pair = jnp.stack([matrix, -2 * matrix])
    np.testing.assert_allclose(jax.vmap(total)(pair)[1], 4 * total(matrix), rtol=1e-4, atol=1e-2)
    slope = jax.jit(jax.grad(lambda m: jnp.trace(total(m))))(matrix)
    np.testing.assert_allclose(slope, 2 * matrix, rtol=1e-5)


def test_a_single_device_has_no_mesh():
    assert mesh_kind() == ("single", 1)


def test_mesh_kinds():
    mesh = jax.make_mesh((1,), (columns.AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    seen = []
    with jax.set_mesh(mesh):
        jax.jit(lambda x: seen.append(mesh_kind()) or x)(jnp.ones(1))
        spec = jax.sharding.PartitionSpec(columns.AXIS)
        jax.jit(
            jax.shard_map(lambda x: seen.append(mesh_kind()) or x, in_specs=spec, out_specs=spec)
        )(jnp.ones(1))
    assert seen == [("auto", 1), ("manual", 1)]
