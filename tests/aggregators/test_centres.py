"""Huber's centre, Bayesian aggregation, sequential clipping, clusters by angles: in plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering

from jaxfl.aggregators import (
    BayesianAggregation,
    CenteredClipping,
    CosineClustering,
    Huber,
    SequentialCenteredClipping,
)
from jaxfl.aggregators.sequential_clipping import buckets_of
from jaxfl.types import Context

N, D = 11, 24


def draw(seed=0, outliers=2):
    random = np.random.default_rng(seed)
    x = random.normal(size=(N, D)) + 0.3
    x[:outliers] = 9 * random.normal(size=(outliers, D))
    return x


def answer(rule, x, state=None, **known):
    with jax.enable_x64(True):
        context = Context.of(len(x), **known)
        return jax.tree.map(np.asarray, rule.inspect(jnp.asarray(x), context=context, state=state))


def close(got, expected, rtol=1e-9):
    np.testing.assert_allclose(got, expected, rtol=0, atol=rtol * np.abs(expected).max())


def clip(x, most):
    norms = np.linalg.norm(x, axis=-1, keepdims=True)
    return x * np.minimum(1, most / np.where(norms == 0, 1, norms))


def weiszfeld(x, sizes, reach, steps):
    w = np.median(x, axis=0)
    for _ in range(steps):
        a = sizes * np.minimum(1, reach / np.linalg.norm(x - w, axis=1))
        w = a @ x / a.sum()
    return w


@pytest.mark.parametrize(("weighted", "threshold"), [(False, None), (True, 3.0), (True, None)])
def test_huber(weighted, threshold):
    x, sizes = draw(), np.arange(1, N + 1) / (N * (N + 1) / 2)
    used = sizes if weighted else np.ones(N)
    middle = np.median(np.linalg.norm(x - np.median(x, axis=0), axis=1))
    reach = (0.7 * middle if threshold is None else threshold) * np.sqrt(used.mean() / used)
    rule = Huber(threshold=threshold, factor=0.7, weighted=weighted, iterations=200)
    got = answer(rule, x, weights=jnp.asarray(sizes)).update
    close(got, weiszfeld(x, used, reach, 200), 1e-8)
    # Where it stands, the clipped pulls cancel.
    away = x - got
    pulls = used[:, None] * away * np.minimum(1, reach / np.linalg.norm(away, axis=1))[:, None]
    np.testing.assert_allclose(pulls.sum(axis=0), 0, atol=1e-7)


def test_huber_between_mean_and_geometric_median():
    x = draw()
    close(answer(Huber(threshold=1e9, iterations=200), x).update, x.mean(axis=0))
    near = answer(Huber(threshold=1e-3, iterations=200), x).update
    away = x - near
    unit = away / np.linalg.norm(away, axis=1, keepdims=True)
    np.testing.assert_allclose(unit.sum(axis=0), 0, atol=1e-3)
    clipped = answer(CenteredClipping(tau=3.0, iterations=300), x).update
    close(answer(Huber(threshold=3.0, iterations=200), x).update, clipped, 1e-6)


def bayesian(x):
    p = np.ones(len(x))
    theta = p @ x / p.sum()
    while True:
        squares = np.square(x - theta).sum(axis=1)
        level = 0.5 * (squares / (p @ squares / p.sum()) + np.log(2 * np.pi))
        p = np.exp(-(level - level.min()))
        before, theta = theta, p @ x / p.sum()
        if np.linalg.norm(theta - before) <= 1e-3 * np.linalg.norm(before):
            return theta, p / p.sum()


@pytest.mark.parametrize("seed", range(3))
def test_bayesian_aggregation(seed):
    x = draw(seed, outliers=seed)
    got = answer(BayesianAggregation(), x)
    theta, p = bayesian(x)
    close(got.update, theta)
    close(got.info.weights, p)
    tiny = answer(BayesianAggregation(), 1e-6 * x).update
    close(tiny, 1e-6 * theta, 1e-6)


def test_bayesian_aggregation_trusts_the_tighter_half():
    random = np.random.default_rng(0)
    x = random.normal(size=(10, D)) * 0.3 + 1
    for attackers in (3, 6):
        lies = x.copy()
        lies[:attackers] = -2
        honest = lies[attackers:].mean(axis=0)
        update = answer(BayesianAggregation(), lies).update
        near = np.linalg.norm(update - honest) < np.linalg.norm(update + 2)
        assert near == (attackers == 3)


def one_round(x, v, buckets, tau, average_first, clip_twice):
    start = v
    for bucket in buckets:
        members = bucket[bucket >= 0]
        if not len(members):
            continue
        own = x[members]
        if clip_twice:
            own = start + clip(own - start, tau)
        if average_first:
            v = v + clip(own.mean(axis=0) - v, tau)
        else:
            v = v + clip(own - v, tau).mean(axis=0)
    return v


@pytest.mark.parametrize(
    ("average_first", "clip_twice"), [(False, False), (True, False), (False, True)]
)
def test_sequential_centred_clipping(average_first, clip_twice):
    tau, size, v, state = 1.5, 4, np.zeros(D), None
    rule = SequentialCenteredClipping(
        tau=tau, size=size, average_first=average_first, clip_twice=clip_twice
    )
    for turn in range(3):
        x, key = draw(turn), jax.random.key(turn)
        norms = np.linalg.norm(x, axis=1) * max(np.linalg.norm(v), 1e-300)
        with jax.enable_x64(True):
            cosines = jnp.asarray(x @ v / norms)
            buckets = np.asarray(buckets_of(cosines, jnp.asarray(turn == 0), size, key))
        v = one_round(x, v, buckets, tau, average_first, clip_twice)
        result = answer(rule, x, state, key=key)
        close(result.update, v)
        state = result.state


@pytest.mark.parametrize(("n", "size"), [(11, 3), (12, 4), (2, 3), (7, 7)])
def test_buckets_hold_every_client_once(n, size):
    cosines = np.random.default_rng(n).normal(size=n)
    for first in (True, False):
        buckets = np.asarray(
            buckets_of(jnp.asarray(cosines), jnp.array(first), size, jax.random.key(n))
        )
        assert sorted(buckets[buckets >= 0]) == list(range(n))
        sizes = (buckets >= 0).sum(axis=1)
        if first:
            used = sizes[sizes > 0]
            assert len(used) == max(n // size, 1)
            assert used.max() - used.min() <= 1
        else:
            # One client of each stratum of the sorted cosines.
            strata = np.array_split(np.argsort(cosines), size)
            for bucket in buckets:
                own = [i for i, s in enumerate(strata) for row in bucket if row in s]
                assert len(own) == len(set(own))


def test_one_bucket_is_a_step_of_centred_clipping():
    x, v = draw(), np.full(D, 0.1)
    with jax.enable_x64(True):
        state = jnp.asarray(v)
    got = answer(SequentialCenteredClipping(tau=2.0, size=N), x, state).update
    close(got, answer(CenteredClipping(tau=2.0, iterations=1), x, state).update)


@pytest.mark.parametrize("linkage", ["complete", "single"])
def test_cosine_clustering(linkage):
    for seed in range(5):
        x = draw(seed, outliers=0)
        x[:4] -= 2
        x *= np.random.default_rng(seed).uniform(0.2, 5, size=(N, 1))
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        cosines = unit @ unit.T
        model = AgglomerativeClustering(n_clusters=2, metric="precomputed", linkage=linkage)
        labels = model.fit(1 - cosines).labels_
        kept = labels == np.argmax(np.bincount(labels))
        result = answer(CosineClustering(linkage=linkage), x)
        np.testing.assert_array_equal(result.info.selected, kept)
        close(result.update, x[kept].mean(axis=0))
        nearest = cosines[np.ix_(kept, ~kept)].max()
        for gate, closed in ((nearest - 1e-6, True), (nearest + 1e-6, False)):
            gated = answer(CosineClustering(linkage=linkage, gate=gate), x)
            np.testing.assert_array_equal(gated.info.selected, kept | closed)
