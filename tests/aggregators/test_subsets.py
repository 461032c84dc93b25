"""MDA, SMEA and the set of minimum variance against enumeration."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import both_types, close, draw, every_kind, inspect, random

from jaxfl.aggregators import MDA, SMEA, MinimumVariance
from jaxfl.aggregators.mda import small_diameter, smallest_diameter
from jaxfl.aggregators.subsets import left_out


def subsets(n, f):
    return [list(s) for s in itertools.combinations(range(n), n - f)]


def diameters(x, f):
    distances = references.squared_distances(x)
    return np.array([distances[np.ix_(s, s)].max() for s in subsets(len(x), f)])


def spreads(x, f):
    top = []
    for s in subsets(len(x), f):
        centred = x[s] - x[s].mean(0)
        top.append(np.linalg.eigvalsh(centred @ centred.T)[-1])
    return np.array(top)


def variances(x, f):
    return np.array([np.square(x[s] - x[s].mean(0)).sum() for s in subsets(len(x), f)])


def greedy_variance(x, f):
    distances, left = references.squared_distances(x), list(range(len(x)))
    for _ in range(f):
        del left[np.argmax(distances[np.ix_(left, left)].sum(1))]
    return left


def greedy_diameter(x, f):
    distances, left = np.sqrt(references.squared_distances(x)), list(range(len(x)))
    for _ in range(f):
        inside = np.triu(distances[np.ix_(left, left)], 1)
        i, j = np.unravel_index(np.argmax(inside), inside.shape)
        full = distances[np.ix_(left, left)]
        del left[i if full[i].sum() > full[j].sum() * (1 + 1e-12) else j]
    return left


def greedy_spread(x, f):
    left = list(range(len(x)))
    for _ in range(f):
        centred = x[left] - x[left].mean(0)
        vector = np.linalg.svd(centred, full_matrices=False)[2][0]
        del left[np.argmax(np.square(centred @ vector))]
    return left


@both_types
@every_kind
@pytest.mark.parametrize(
    ("rule", "measure"), [(MDA, diameters), (SMEA, spreads), (MinimumVariance, variances)]
)
def test_the_best_subset_wins(kind, rule, measure, double):
    x = draw(kind)
    for f in (1, 2, 5):
        result = inspect(rule(f=f), x, double)
        values, sets = measure(x, f), subsets(11, f)
        chosen = sets.index(list(np.flatnonzero(result.info.selected)))
        near = values.min() * (1 + (1e-9 if double else 1e-4)) + 1e-9 * np.square(x).max()
        assert values[chosen] <= near
        if np.sum(values <= near) == 1 or (rule is MDA and kind.__name__ in ("tied", "equal")):
            assert chosen == np.argmin(values)
        close(result.update, x[sets[chosen]].mean(0), double, np.abs(x).max())
        assert rule(f=f).exact(11)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.sampled_from([(7, 3), (9, 2), (10, 4), (12, 3)]))
def test_the_smallest_diameter_is_the_first_of_the_smallest(seed, size):
    """Integers on a line have many equal diameters."""
    (n, f), rng = size, np.random.default_rng(seed)
    x = rng.integers(0, 5, size=(n, 1)).astype(float)
    kept, diameter = _search(jnp.asarray(references.squared_distances(x), jnp.float32), f)
    values = diameters(x, f)
    assert diameter == values.min()
    assert list(np.flatnonzero(kept)) == subsets(n, f)[int(np.argmin(values))]


@functools.partial(jax.jit, static_argnums=0)
def kept_by(rule, x):
    return jax.vmap(lambda x: rule.inspect(x).info.selected)(x)


@pytest.mark.parametrize("f", [2, 4])
@pytest.mark.parametrize(("rule", "measure"), [(SMEA, spreads), (MinimumVariance, variances)])
def test_the_first_of_equal_sets_whatever_rounding_says(rule, measure, f):
    """Points of a grid: copies and mirror images have equal spreads."""
    x = np.random.default_rng(1).integers(0, 2, size=(60, 9, 2))
    for rows, kept in zip(x, kept_by(rule(f=f), jnp.float32(x) / 3), strict=True):
        values = measure(rows.astype(float), f)
        first = np.flatnonzero(values <= values.min() + 1e-9)[0]
        assert list(np.flatnonzero(kept)) == subsets(9, f)[first]


_search = jax.jit(smallest_diameter, static_argnums=1)


def test_subsets_are_in_order():
    kept = [[i for i in range(6) if i not in row] for row in left_out(6, 2)]
    assert kept == subsets(6, 2)


@pytest.mark.parametrize("outliers", [4, 8])
def test_a_wide_search_beats_the_greedy_one(outliers):
    x = np.random.default_rng(0).normal(size=(40, 3))
    x[:outliers] += 6
    kept, diameter = _search(jnp.asarray(references.squared_distances(x), jnp.float32), 8)
    greedy = greedy_diameter(x, 8)
    assert diameter <= references.squared_distances(x[greedy]).max() * (1 + 1e-5)
    left = references.squared_distances(x[np.asarray(kept)]).max()
    np.testing.assert_allclose(left, diameter, rtol=1e-5)
    assert kept.sum() == 32


@both_types
def test_the_greedy_ways(double):
    x = np.random.default_rng(0).normal(size=(41, 4)).astype(np.float32).astype(float)
    assert not MDA(f=17).exact(41)
    assert not SMEA(f=17).exact(41)
    result = inspect(MDA(f=17), x, double)
    assert list(np.flatnonzero(result.info.selected)) == greedy_diameter(x, 17)
    result = inspect(SMEA(f=17), x, double)
    assert list(np.flatnonzero(result.info.selected)) == greedy_spread(x, 17)
    result = inspect(MinimumVariance(f=17), x, double)
    assert list(np.flatnonzero(result.info.selected)) == greedy_variance(x, 17)


@pytest.mark.parametrize(
    "rule", [r(f=f) for r in (MDA, SMEA, MinimumVariance) for f in (2, 17)], ids=repr
)
def test_unusable_rows_go_first(rule):
    x = np.random.default_rng(0).normal(size=(41, 4)).astype(np.float32)
    x[[3, 30]] = np.nan
    result = rule.inspect(x)
    assert not np.asarray(result.info.selected)[[3, 30]].any()
    assert result.info.selected.sum() == 41 - rule.f
    assert np.isfinite(result.update).all()


def test_a_tie_of_the_greedy_diameter_drops_the_later_row():
    x = np.array([[0.0], [1.0], [2.0]])
    distances = jnp.asarray(references.squared_distances(x), jnp.float32)
    kept = small_diameter(distances, jnp.ones(3, bool), 1)
    np.testing.assert_array_equal(kept, [True, True, False])


@pytest.mark.parametrize("rule", [MDA(f=0), SMEA(f=0), MinimumVariance(f=0)], ids=repr)
def test_one_row(rule):
    x = draw(random)[:1].astype(np.float32)
    np.testing.assert_array_equal(rule(x), x[0])
