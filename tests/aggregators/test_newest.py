"""RLR, FoundationFL, GAS, FedSECA and LASA against their formulas in plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.aggregators import (
    GAS,
    LASA,
    RLR,
    Anchored,
    CenteredClipping,
    FedSECA,
    FoolsGold,
    FoundationFL,
    Krum,
    Mean,
    Median,
    PerLayer,
    Pipeline,
    TrimmedMean,
    WeightedTrimmedMean,
    Zeno,
)
from jaxfl.preaggregators import NNM
from jaxfl.types import Context, Segment

N, D = 11, 24
SEGMENTS = (
    Segment("a.bias", 0, (4,), "bias"),
    Segment("a.kernel", 4, (3, 4), "kernel", last=True),
    Segment("b.scale", 16, (2,), "scale"),
    Segment("b.kernel", 18, (2, 3), "kernel"),
)
KINDS = ("random", "whole", "sparse", "skewed")


def draw(kind, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(N, D)) + 0.4
    if kind == "whole":
        x = random.integers(-1, 3, size=(N, D)).astype(float)
    if kind == "sparse":
        x *= random.random((N, D)) < 0.4
    if kind == "skewed":
        x *= random.lognormal(sigma=1.5, size=(N, 1))
    return x


def answer(rule, x, **known):
    with jax.enable_x64(True):
        context = Context.of(len(x), segments=SEGMENTS, **known)
        return jax.tree.map(np.asarray, rule.inspect(jnp.asarray(x), context=context))


def close(got, expected):
    size = max(1e-30, np.abs(expected).max())
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9 * size)


def clipped(x):
    norms = np.linalg.norm(x, axis=1)
    return x * np.minimum(1, np.median(norms) / norms)[:, None]


@pytest.mark.parametrize("kind", KINDS)
def test_rlr(kind):
    x = draw(kind)
    margin = np.abs(np.sign(x).sum(axis=0))
    for threshold in (0, 5, 11):
        turned = np.where(margin >= threshold, 1, -1)
        assert threshold == 0 or (turned == -1).any()
        close(answer(RLR(threshold=threshold), x).update, turned * x.mean(axis=0))
    of_median = np.where(margin >= 5, 1, -1) * np.median(x, axis=0)
    close(answer(RLR(rule=Median(), threshold=5), x).update, of_median)


def test_who_votes():
    x = draw("random")
    with_lost = np.vstack([x, np.full((1, D), np.nan)])
    close(answer(RLR(threshold=5), with_lost).update, answer(RLR(threshold=5), x).update)
    with pytest.raises(ValueError, match=r"RLR: threshold must be at most .* n = 11.* got 12"):
        answer(RLR(threshold=12), x)


def foundation(x, copies):
    high, low = x.max(axis=0), x.min(axis=0)
    scores = [min(np.linalg.norm(u - high), np.linalg.norm(u - low)) for u in x]
    return np.vstack([x, *[x[[int(np.argmax(scores))]]] * copies]), scores


@pytest.mark.parametrize("kind", KINDS)
def test_foundation_fl(kind):
    x = draw(kind)
    result = answer(FoundationFL(), x)
    several, scores = foundation(x, N // 2)
    close(result.update, np.median(several, axis=0))
    close(result.info.scores, np.array(scores))
    several, _ = foundation(x, 3)
    trimmed = np.sort(several, axis=0)[2:-2].mean(axis=0)
    close(answer(FoundationFL(rule=TrimmedMean(f=2), copies=3), x).update, trimmed)
    close(answer(FoundationFL(copies=0), x).update, np.median(x, axis=0))


def test_foundation_fl_copies_nothing_that_is_not_finite():
    x = draw("random")
    x[4, 2] = np.inf
    high, low = np.delete(x, 4, 0).max(axis=0), np.delete(x, 4, 0).min(axis=0)
    scores = [min(np.linalg.norm(u - high), np.linalg.norm(u - low)) for u in np.delete(x, 4, 0)]
    np.testing.assert_allclose(np.delete(answer(FoundationFL(), x).info.scores, 4), scores)
    with pytest.raises(ValueError, match="FoundationFL: rule must be a coordinatewise rule; got"):
        FoundationFL(rule=Krum(f=1))


def test_foundation_fl_refuses_weights_of_clients():
    """A copy would get the weight of the client at its place, or none."""
    FoundationFL(rule=WeightedTrimmedMean())
    with pytest.raises(ValueError, match=r"FoundationFL: .* WeightedTrimmedMean has weights of"):
        FoundationFL(rule=WeightedTrimmedMean(weights=np.full(N, 1 / N)))


def test_foundation_fl_needs_a_majority_of_real_clients():
    FoundationFL(rule=TrimmedMean(f=4)).check(10)
    with pytest.raises(ValueError, match=r"TrimmedMean needs n > 2f clients; got n = 10, f = 5"):
        FoundationFL(rule=TrimmedMean(f=5)).check(10)


def splitting(x, f, order, size, rule):
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    scores = sum(np.linalg.norm(x[:, g] - rule(x[:, g]), axis=1) for g in groups)
    kept = np.sort(np.argsort(scores, kind="stable")[: len(x) - f])
    return x[kept].mean(axis=0), scores


@pytest.mark.parametrize("kind", ["random", "skewed"])
@pytest.mark.parametrize("groups", [1, 5, D])
def test_gas(kind, groups):
    """With 5 groups of 24 coordinates the last has 4 instead of 5."""
    x, key = draw(kind), jax.random.key(3)
    with jax.enable_x64(True):
        order = np.asarray(jax.random.permutation(jax.random.split(key)[0], D))
    result = answer(GAS(f=3, groups=groups, rule=Median()), x, key=key)
    expected, scores = splitting(x, 3, order, -(-D // groups), lambda g: np.median(g, axis=0))
    close(result.update, expected)
    close(result.info.scores, scores)


def test_gas_with_every_coordinate_by_itself_needs_no_order():
    x = draw("random")
    away = np.abs(x - np.median(x, axis=0)).sum(axis=1)
    close(answer(GAS(f=2, groups=D, rule=Median()), x).info.scores, away)
    close(answer(GAS(f=0), x).update, x.mean(axis=0))


@pytest.mark.parametrize(
    "rule",
    [
        Pipeline(pre=[NNM(f=2)], rule=Median()),
        Anchored(rule=Mean(weighted=True)),
        FoundationFL(),
        WeightedTrimmedMean(weights=np.arange(1.0, N + 1)),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_gas_takes_wrapped_rules_without_memory(rule):
    """With one group the scores are distances to what the rule answers."""
    x = draw("random")
    gas = GAS(f=3, groups=1, rule=rule)
    result, reference = answer(gas, x), answer(rule, x).update
    close(result.info.scores, np.linalg.norm(x - np.asarray(reference), axis=1))
    assert gas.by_client == isinstance(rule, WeightedTrimmedMean)
    assert gas.by_samples == isinstance(rule, Anchored)


@pytest.mark.parametrize(
    "rule", [Zeno(f=1), FoolsGold(), PerLayer(rule=Mean()), Anchored(rule=CenteredClipping(tau=1))]
)
def test_gas_refuses_rules_that_need_more_than_rows(rule):
    with pytest.raises(ValueError, match=f"GAS: rule must have no .*; got {type(rule).__name__}"):
        GAS(f=1, rule=rule).check(N)


def elected(x, share):
    signs = np.sign(x).astype(int)
    votes = np.maximum(0, np.sign(signs @ signs.T).sum(axis=1))
    e = np.sign(votes @ signs)
    c = clipped(x)
    b = np.sign(c) * np.minimum(np.median(np.abs(c), axis=0), np.abs(c))
    if share:
        b = np.where(np.abs(x) > np.quantile(np.abs(x), share, axis=1)[:, None], b, 0)
    agreeing = e * b > 0
    answer = np.where(agreeing, b, 0).sum(axis=0) / np.maximum(agreeing.sum(axis=0), 1)
    return answer, votes / len(x)


@pytest.mark.parametrize("kind", KINDS)
def test_fedseca(kind):
    x = draw(kind)
    x[:3] *= -1
    for share in (0.0, 0.35, 0.9):
        result = answer(FedSECA(sparsity=share), x)
        expected, rho = elected(x, share)
        close(result.update, expected)
        np.testing.assert_allclose(result.info.scores, rho, atol=1e-6)
    assert rho.max() > rho.min()


@pytest.mark.parametrize("bits", [32, 64])
def test_fedseca_answers_nothing_where_two_camps_balance(bits):
    """40 clients that count alike, of whom half have either sign in every eighth coordinate."""
    random = np.random.default_rng(0)
    x = np.abs(random.normal(size=(50, 800))) * np.where(random.random((50, 800)) < 0.2, -1, 1)
    half = np.argsort(random.random((40, 100)), axis=0) < 20
    x[:40, ::8] = np.abs(x[:40, ::8]) * np.where(half, 1, -1)
    x[40:] = -x[:10]
    expected, rho = elected(x.astype(np.float32).astype(float), 0)
    assert set(np.round(50 * rho).astype(int)) == {0, 30}
    assert (expected[::8] == 0).all()
    with jax.enable_x64(bits == 64):
        for order in (np.arange(50), random.permutation(50)):
            result = FedSECA(sparsity=0.0).inspect(jnp.asarray(x[order], f"float{bits}"))
            np.testing.assert_array_equal(np.asarray(result.update) == 0, expected == 0)
            np.testing.assert_allclose(result.info.scores, rho[order], rtol=1e-6)


def zscores(v):
    return np.abs(v - np.median(v)) / v.std() if v.std() > 0 else np.zeros(len(v))


def layers(x, share, limit, sparse):
    c = clipped(x)
    weights = np.r_[4:16, 18:24]
    kept = int((1 - share) * len(weights))
    z = c.copy()
    if share:
        least = np.sort(np.abs(c[:, weights]), axis=1)[:, -kept]
        z[:, weights] = np.where(np.abs(c[:, weights]) > least[:, None], c[:, weights], 0)
    result, passed = [], []
    for a, b in ((0, 4), (4, 16), (16, 18), (18, 24)):
        part = z[:, a:b]
        count = np.abs(np.sign(part)).sum(axis=1)
        purity = np.divide(np.sign(part).sum(axis=1), count, out=np.zeros(len(x)), where=count > 0)
        ok = (zscores(np.linalg.norm(part, axis=1)) < limit) & (zscores(purity) < limit)
        ok = ok if ok.any() else np.ones(len(x), bool)
        result.append((part if sparse else c[:, a:b])[ok].mean(axis=0))
        passed.append(ok)
    return np.concatenate(result), passed


@pytest.mark.parametrize("kind", ["random", "sparse", "skewed"])
def test_lasa(kind):
    x = draw(kind)
    x[0] *= 30
    for share, limit, sparse in ((0.3, 1.0, True), (0.5, 2.0, False)):
        rule = LASA(sparsity=share, norm_limit=limit, sign_limit=limit, average_sparse=sparse)
        result = answer(rule, x)
        expected, passed = layers(x, share, limit, sparse)
        close(result.update, expected)
        np.testing.assert_array_equal(result.info.selected, np.any(passed, axis=0))
        shares = np.array([4, 12, 2, 6]) / D
        mean = sum(s * p / p.sum() for s, p in zip(shares, passed, strict=True))
        np.testing.assert_allclose(result.info.weights, mean, rtol=1e-6)
    assert not np.all(passed)
    close(answer(LASA(sparsity=0.0, norm_limit=9, sign_limit=9), x).update, clipped(x).mean(axis=0))


def test_lasa_needs_layers():
    with pytest.raises(ValueError, match="LASA needs the model's layers, which a bare matrix does"):
        LASA()(draw("random"))
