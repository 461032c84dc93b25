"""Who takes part."""

import jax
import numpy as np
import pytest
from scipy.stats import binom, chisquare

from jaxfl import Full, Poisson, Uniform


def test_full_is_everybody(key):
    ids, present = Full().sample(7, key)
    assert ids.tolist() == list(range(7))
    assert present is None


@pytest.mark.parametrize(
    ("fraction", "population", "cohort"), [(0.25, 100, 25), (0.1, 5, 1), (1.0, 9, 9), (0.3, 10, 3)]
)
def test_uniform_draws_distinct_clients(key, fraction, population, cohort):
    participation = Uniform(fraction=fraction)
    draw = jax.jit(jax.vmap(lambda k: participation.sample(population, k)[0]))
    drawn = draw(jax.random.split(key, 400))
    assert drawn.shape == (400, cohort)
    assert all(len(set(row)) == cohort for row in drawn.tolist())
    counts = np.bincount(np.asarray(drawn).ravel(), minlength=population) / 400
    share = cohort / population
    assert np.abs(counts - share).max() < 5 * np.sqrt(share * (1 - share) / 400) + 1e-9


def test_poisson_draws_each_client_by_itself(key):
    participation = Poisson(rate=0.2, overflow=1e-6)
    slots = participation.cohort(60)
    assert binom.sf(slots, 60, 0.2) <= 1e-6 < binom.sf(slots - 1, 60, 0.2)
    draw = jax.jit(jax.vmap(lambda k: participation.sample(60, k)))
    ids, present = draw(jax.random.split(key, 500))
    assert ids.shape == (500, slots)
    np.testing.assert_array_equal(ids < 60, present)
    sizes = np.sum(present, axis=1)
    assert np.mean(sizes) == pytest.approx(12, abs=5 * np.sqrt(60 * 0.16 / 500))
    assert np.var(sizes) == pytest.approx(60 * 0.16, rel=0.3)
    counts = np.bincount(np.asarray(ids)[np.asarray(present)], minlength=60) / 500
    assert np.abs(counts - 0.2).max() < 5 * np.sqrt(0.16 / 500)
    assert all(
        len(set(r[p])) == p.sum() for r, p in zip(np.asarray(ids), np.asarray(present), strict=True)
    )


@pytest.mark.parametrize("bad", [0, -0.1, 1.5, "half", True])
def test_bad_fractions_are_refused(bad):
    with pytest.raises(ValueError, match="Uniform: fraction must be"):
        Uniform(fraction=bad)
    with pytest.raises(ValueError, match="Poisson: rate must be"):
        Poisson(rate=bad)


def test_cohorts_of_large_populations_have_the_same_law(key, monkeypatch):
    """Drawn without sorting: every client as often, all different, Poisson's numbers binomial."""
    monkeypatch.setattr("jaxfl.participation.SORTED", 100)
    keys = jax.random.split(key, 2000)
    draw = jax.jit(jax.vmap(lambda k: Uniform(fraction=0.1).sample(200, k)[0]))
    drawn = np.asarray(draw(keys))
    assert drawn.shape == (2000, 20)
    assert all(len(set(row)) == 20 for row in drawn.tolist())
    counts = np.bincount(drawn.ravel(), minlength=200)
    assert chisquare(counts).pvalue > 1e-3
    pairs = drawn[:, 0] // 20 * 10 + drawn[:, 1] // 20
    assert chisquare(np.bincount(pairs, minlength=100), _of_pairs(200, 10)).pvalue > 1e-3

    rate = Poisson(rate=0.1, overflow=1e-6)
    draw = jax.jit(jax.vmap(lambda k: rate.sample(200, k)))
    ids, present = (np.asarray(x) for x in draw(keys))
    np.testing.assert_array_equal(ids < 200, present)
    assert all(len(set(r[p])) == p.sum() for r, p in zip(ids, present, strict=True))
    sizes = present.sum(axis=1)
    assert np.mean(sizes) == pytest.approx(20, abs=5 * np.sqrt(18 / 2000))
    assert np.var(sizes) == pytest.approx(18, rel=0.2)
    assert chisquare(np.bincount(ids[present], minlength=200)).pvalue > 1e-3


def _of_pairs(population, groups):
    """How often of 2000 times the first two of a cohort are of two groups."""
    size = population // groups
    different = 2000 * size**2 / (population * (population - 1))
    same = 2000 * size * (size - 1) / (population * (population - 1))
    return np.where(np.eye(groups, dtype=bool), same, different).ravel()
