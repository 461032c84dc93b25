"""Rows at places of a matrix, against NumPy; of several runs, in place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.numerics.places import LONG, add_at, put_at, take_at

RUNS, K, N = 2, 5, 3
PLACES = np.array([[4, 0, 2], [5, 3, 1]])  # one past the end


def draw(d):
    random = np.random.default_rng(0)
    matrices = random.normal(size=(RUNS, K, d)).astype("f4")
    return matrices, random.normal(size=(RUNS, N, d)).astype("f4")


def expected(function, matrix, places, rows):
    if function is take_at:
        return matrix[np.minimum(places, K - 1)]
    result = matrix.copy()
    for place, row in zip(places, rows, strict=True):
        if place < K:
            result[place] = row if function is put_at else result[place] + row
    return result


def called(function, matrix, places, rows):
    return function(matrix, places) if function is take_at else function(matrix, places, rows)


@pytest.mark.parametrize("d", [7, LONG])
@pytest.mark.parametrize("function", [put_at, add_at, take_at])
def test_rows_at_places(function, d):
    """Alone, of several runs, and of several runs several times."""
    matrices, rows = draw(d)
    places = np.minimum(PLACES, K - 1) if function is take_at else PLACES
    want = np.stack([expected(function, *one) for one in zip(matrices, places, rows, strict=True)])

    def one(matrix, places, rows):
        return called(function, matrix, places, rows)

    arguments = jnp.asarray(matrices), jnp.asarray(places), jnp.asarray(rows)
    np.testing.assert_array_equal(one(*(x[1] for x in arguments)), want[1])
    np.testing.assert_array_equal(jax.vmap(one)(*arguments), want)
    shared = jax.vmap(one, in_axes=(None, 0, None))(arguments[0][0], arguments[1], arguments[2][0])
    alike = [expected(function, matrices[0], own, rows[0]) for own in places]
    np.testing.assert_array_equal(shared, alike)
    twice = jax.vmap(jax.vmap(one))(*(jnp.stack([x, x[::-1]]) for x in arguments))
    np.testing.assert_array_equal(twice, [want, want[::-1]])


def test_gradients_reach_rows_and_matrix():
    matrices, rows = (jnp.asarray(x[1]) for x in draw(LONG))

    def total(matrix, rows):
        return jnp.sum(put_at(matrix, jnp.asarray(PLACES[1]), rows)[:, 0] * jnp.arange(1.0, 6))

    of_matrix, of_rows = jax.grad(total, argnums=(0, 1))(matrices, rows)
    assert of_matrix[:, 0].tolist() == [1, 0, 3, 0, 5]
    assert of_rows[:, 0].tolist() == [0, 4, 2]


@pytest.mark.default_compiler
def test_several_runs_are_changed_in_place():
    """No copy of the matrices, which XLA's own scatter of a batch makes."""
    shapes = [(RUNS, 40, LONG), (RUNS, 20, LONG)]
    matrices, rows = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    places = jax.ShapeDtypeStruct((RUNS, 20), jnp.int32)

    def temporary(function):
        program = jax.jit(jax.vmap(function), donate_argnums=0).lower(matrices, places, rows)
        return program.compile().memory_analysis().temp_size_in_bytes

    assert temporary(add_at) < 10_000
    assert temporary(put_at) < 10_000
    assert temporary(lambda m, p, r: m.at[p].add(r)) > 20 * LONG * 4
