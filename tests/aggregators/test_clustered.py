"""ClippedClustering and FLAME against their definitions, with scikit-learn's and SciPy's trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from sklearn.cluster import AgglomerativeClustering

from jaxfl.aggregators import FLAME, ClippedClustering, Pipeline
from jaxfl.preaggregators import Bucketing
from jaxfl.types import Context, Spec

N, D, ROUNDS = 11, 40, 5
KINDS = ("random", "tied", "skewed", "sparse", "tiny")


def draw_rounds(kind="random", seed=0):
    """Rounds of updates of mixed norms, 4 of 11 turned away from the others."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROUNDS, 1, D)) + rng.normal(size=(ROUNDS, N, D))
    x[:, :4] -= 3 * x.mean(1, keepdims=True)
    x *= rng.uniform(0.2, 5, size=(ROUNDS, N, 1))
    if kind == "tied":
        x[:, 6], x[:, 7] = x[:, 5], 2 * x[:, 5]
    if kind == "skewed":
        x = x * np.exp(np.abs(x) / 4)
    if kind == "sparse":
        x *= rng.random(size=x.shape) < 0.3
        x[:, 4] = 0
    return x * 1e-12 if kind == "tiny" else x


def cosine_distances(x):
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    unit = x / np.where(norms == 0, 1, norms)
    distances = np.maximum(1 - unit @ unit.T, 0)
    np.fill_diagonal(distances, 0)
    return distances


def clipped(x, most):
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return x * np.minimum(1, most / np.where(norms == 0, 1, norms))


def larger_cluster(x, linkage="average"):
    model = AgglomerativeClustering(n_clusters=2, metric="precomputed", linkage=linkage)
    labels = model.fit(cosine_distances(x)).labels_
    return labels == np.argmax(np.bincount(labels))


def first_majority(x):
    tree = hierarchy.linkage(squareform(cosine_distances(x), checks=False), "single")
    level = tree[np.argmax(tree[:, 3] > len(x) / 2), 2]
    labels = hierarchy.fcluster(tree, level * (1 + 1e-12), "distance")
    return labels == np.argmax(np.bincount(labels))


aggregate = jax.jit(lambda rule, x, state, context: rule.aggregate(x, state, context))


def run_rounds(rule, rounds, dtype):
    state, results = rule.init(Spec(population=N, cohort=N, dim=D, dtype=dtype)), []
    for x in rounds:
        results.append(aggregate(rule, jnp.asarray(x, dtype), state, Context.of(N)))
        state = results[-1].state
    return results


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("window", [3, 1000])
def test_clipped_clustering(window, dtype):
    rtol = 1e-9 if dtype == "float64" else 1e-4
    for kind in KINDS:
        rounds = draw_rounds(kind).astype(dtype).astype(np.float64)
        with jax.enable_x64(dtype == "float64"):
            results = run_rounds(ClippedClustering(window=window), rounds, dtype)
        for t, (x, result) in enumerate(zip(rounds, results, strict=True)):
            norms = np.linalg.norm(rounds[max(0, t - window + 1) : t + 1], axis=2)
            kept = larger_cluster(x)
            np.testing.assert_array_equal(result.info.selected, kept, err_msg=f"{kind} {t}")
            expected = clipped(x, np.median(norms))[kept].mean(0)
            scale = np.abs(x[kept]).max()
            np.testing.assert_allclose(result.update, expected, rtol=rtol, atol=rtol * scale)


def test_clipped_clustering_by_single_linkage():
    rule, chosen = ClippedClustering(linkage="single"), 0
    rounds = np.random.default_rng(0).normal(size=(ROUNDS, N, D)).astype(np.float32)
    for x, result in zip(rounds, run_rounds(rule, rounds, "float32"), strict=True):
        kept = larger_cluster(x.astype(float), "single")
        np.testing.assert_array_equal(result.info.selected, kept)
        chosen += np.any(kept != larger_cluster(x.astype(float)))
    assert chosen


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_flame(dtype):
    rtol = 1e-9 if dtype == "float64" else 1e-4
    for kind in KINDS:
        rounds = draw_rounds(kind).astype(dtype).astype(np.float64)
        with jax.enable_x64(dtype == "float64"):
            results = run_rounds(FLAME(noise_factor=None), rounds, dtype)
        for t, (x, result) in enumerate(zip(rounds, results, strict=True)):
            kept = first_majority(x)
            np.testing.assert_array_equal(result.info.selected, kept, err_msg=f"{kind} {t}")
            expected = clipped(x, np.median(np.linalg.norm(x, axis=1)))[kept].mean(0)
            scale = np.abs(x[kept]).max()
            np.testing.assert_allclose(result.update, expected, rtol=rtol, atol=rtol * scale)


def test_turned_clients_are_left_out():
    for rule in (ClippedClustering(), FLAME()):
        for x in draw_rounds().astype(np.float32):
            selected = rule.inspect(x).info.selected
            assert not np.any(selected[:4])
            assert np.sum(selected) > N / 2


def test_flame_adds_noise_in_units_of_the_median_norm():
    rng = np.random.default_rng(0)
    x = (1 + 0.1 * rng.normal(size=(N, 20_000))).astype(np.float32)
    median = np.median(np.linalg.norm(x, axis=1))
    quiet = FLAME(noise_factor=None)(x)
    for factor in (0.001, 0.01):
        one = FLAME(noise_factor=factor)(x, context=Context.of(N, key=jax.random.key(1))) - quiet
        two = FLAME(noise_factor=factor)(x, context=Context.of(N, key=jax.random.key(2))) - quiet
        np.testing.assert_allclose(np.std(one), factor * median, rtol=0.03)
        assert abs(np.mean(one)) < 4 * factor * median / np.sqrt(x.shape[1])
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.05


def test_dropped_rows_leave_no_norm():
    rounds = draw_rounds().astype(np.float32)
    rounds[1, 2] = np.nan
    rounds[2, 3] = 1e30
    results = run_rounds(ClippedClustering(window=2), rounds, "float32")
    norms = np.asarray(results[2].state.norms)
    np.testing.assert_array_equal(np.argwhere(norms < 0), [[0, 3], [1, 2]])
    kept = np.linalg.norm(rounds[1:3].astype(np.float64), axis=2)[norms[::-1] >= 0]
    rest = np.delete(rounds[2], 3, axis=0).astype(np.float64)
    expected = clipped(rest, np.median(kept))[larger_cluster(rest)].mean(0)
    np.testing.assert_allclose(results[2].update, expected, rtol=1e-4, atol=1e-4)


def test_memory_fits_the_rows_that_pre_aggregation_hands_on():
    rule = Pipeline(pre=(Bucketing(size=2),), rule=ClippedClustering(window=4))
    result = run_rounds(rule, draw_rounds()[:1].astype(np.float32), "float32")[0]
    assert result.state.norms.shape == (4, 6)
    assert np.all(result.state.norms[0] > 0)
    np.testing.assert_array_equal(result.state.norms[1:], -1)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_clients(n):
    x = draw_rounds()[0, :n].astype(np.float32)
    for rule in (ClippedClustering(), FLAME(noise_factor=None)):
        result = rule.inspect(x)
        assert np.isfinite(result.update).all()
        assert np.any(result.info.selected)


@pytest.mark.parametrize(
    ("cls", "fields"),
    [(ClippedClustering, {"window": 0}), (FLAME, {"noise_factor": -0.1})],
)
def test_bad_fields(cls, fields):
    with pytest.raises(ValueError, match=f"{cls.__name__}: {next(iter(fields))} must be at least"):
        cls(**fields)
