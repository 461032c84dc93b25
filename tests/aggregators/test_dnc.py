"""DnC against the singular value decomposition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.aggregators import DnC
from jaxfl.types import Context


def draw(kind="random", n=11, d=30, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    if kind == "attacked":
        x[:2] += 3
    if kind == "skewed":
        x = np.exp(x)
    if kind == "sparse":
        x *= rng.random(size=x.shape) < 0.2
    return x * 1e-12 if kind == "tiny" else x


def reference(x, f, samples, keep):
    counts = np.zeros(len(x), int)
    for columns in samples:
        part = x[:, columns]
        centred = part - part.mean(0)
        _, _, vectors = np.linalg.svd(centred, full_matrices=False)
        scores = np.square(centred @ vectors[0])
        counts[np.argsort(scores, kind="stable")[:keep]] += 1
    kept = counts == counts.max()
    return kept, x[kept].mean(0)


@pytest.mark.parametrize("kind", ["random", "attacked", "skewed", "sparse", "tiny"])
@pytest.mark.parametrize("f", [0, 2, 5])
@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
def test_dnc_over_all_coordinates(kind, f, dtype):
    x = draw(kind).astype(dtype)
    kept, expected = reference(x.astype(np.float64), f, [slice(None)], 11 - f)
    with jax.enable_x64(dtype == "float64"):
        result = DnC(f=f).inspect(jnp.asarray(x))
    np.testing.assert_array_equal(result.info.selected, kept)
    rtol = 1e-9 if dtype == "float64" else 1e-4
    np.testing.assert_allclose(result.update, expected, rtol=rtol, atol=rtol * np.abs(x).max())


@pytest.mark.parametrize("iterations", [1, 3])
def test_dnc_over_samples_of_coordinates(iterations):
    x = draw(d=40)
    rule = DnC(f=3, iterations=iterations, columns_per_sample=7)
    context = Context.of(11, key=jax.random.key(4))
    samples = np.asarray(rule.columns(40, context)).reshape(iterations, 7)
    assert all(len(set(sample)) == 7 for sample in samples.tolist())
    assert len(np.unique(samples, axis=0)) == iterations
    kept, expected = reference(x, 3, samples, 8)
    result = rule.inspect(x.astype(np.float32), context=context)
    np.testing.assert_array_equal(result.info.selected, kept)
    np.testing.assert_allclose(result.update, expected, rtol=1e-4, atol=1e-5)


def test_dnc_falls_back_on_those_kept_most_often():
    """Six of eight are dropped each time, other ones: nobody is kept always."""
    x = draw(n=8, d=60)
    rule = DnC(f=3, iterations=6, columns_per_sample=5, c=2.0)
    context = Context.of(8)
    samples = np.asarray(rule.columns(60, context)).reshape(6, 5)
    kept, expected = reference(x, 3, samples, 2)
    result = rule.inspect(x.astype(np.float32), context=context)
    np.testing.assert_array_equal(result.info.selected, kept)
    np.testing.assert_allclose(result.update, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("c", "kept"), [(1.0, 9), (2.0, 7), (10 / 11, 9), (0.5, 10)])
def test_how_many_are_kept(c, kept):
    result = DnC(f=2, c=c).inspect(draw().astype(np.float32))
    assert np.sum(result.info.selected) == kept


def test_dnc_finds_a_shift_that_norms_do_not_show():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20, 400)).astype(np.float32)
    x[:4] = 0.75 * x[:4] + 0.6
    assert not DnC(f=4).inspect(x).info.selected[:4].any()


def test_dnc_must_keep_something():
    with pytest.raises(ValueError, match=r"DnC: c must keep at least one .* got c = 4\.0, f = 5"):
        DnC(f=5, c=4.0)(draw().astype(np.float32))
