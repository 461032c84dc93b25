"""Rules that know a law of honest sets, against plain NumPy and against their definitions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inputs import D, N, close, draw, every_kind, inspect

import jaxfl
from jaxfl.aggregators import (
    Anchored,
    BarrierClipping,
    ExpectedMean,
    GibbsMean,
    LogOddsMedian,
    Mean,
    Pipeline,
    TrimmedMean,
    WeightedTrimmedMean,
)
from jaxfl.preaggregators import NNM, Bucketing, WeightedNNM
from jaxfl.types import Context

WHOLE = np.array([3, 1, 2, 1, 1, 2, 3, 1, 1, 2, 2])
"""Weights that are whole numbers: a client of weight 3 is as three clients."""
WEIGHTS = np.linspace(0.5, 1.5, N)
STEPS = 400
"""Enough for the geometric median to be exact, to compare with."""


def median(x, mass, steps=4000):
    """The weighted geometric median, by many plain steps; or a row, where that is it."""
    mass = mass / mass.sum()
    for i in range(len(x)):
        away = np.linalg.norm(x - x[i], axis=1)
        here = away == 0
        pull = ((mass / np.where(here, 1, away))[:, None] * (x - x[i]))[~here].sum(axis=0)
        if np.linalg.norm(pull) <= mass[here].sum():
            return x[i]
    z = mass @ x
    for _ in range(steps):
        b = mass / np.maximum(np.linalg.norm(x - z, axis=1), 1e-300)
        z = b @ x / b.sum()
    return z


def clipping(x, mass, beta, scale, budget):
    """BPC as its definition has it."""
    mass = mass / mass.sum()
    c = median(x, mass)
    r = np.linalg.norm(x - c, axis=1)
    order, left, total = np.argsort(r, kind="stable"), 1 - beta, 0.0
    for i in order:
        taken = min(left, mass[i])
        total, left = total + taken * r[i] ** 2, left - taken
    radius = scale * np.sqrt(total / (1 - beta))
    y = c + sum(
        w * min(1, radius / a) * (row - c) if a > 0 else 0
        for w, a, row in zip(mass, r, x, strict=True)
    )
    centre = median(x, np.ones(len(x)))
    limit = np.sort(np.linalg.norm(x - centre, axis=1))[len(x) - budget - 1]
    away = np.linalg.norm(y - centre)
    return centre + min(1, limit / away) * (y - centre) if away > 0 else y


CLIPPING = BarrierClipping(weights=WEIGHTS, beta=0.4, scale=0.9, budget=3, iterations=STEPS)


@every_kind
def test_barrier_clipping_is_its_definition(kind):
    x = draw(kind)
    got = inspect(CLIPPING, x, True).update
    expected = clipping(x, WEIGHTS, 0.4, 0.9, 3)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6 * max(np.abs(x).max(), 1e-30))


def test_without_weights_all_clients_weigh_the_same():
    x = draw(next(iter(every_kind.args[1])))
    got = inspect(BarrierClipping(iterations=STEPS), x, True)
    expected = clipping(x, np.ones(N), 0.49, 0.8, (N - 1) // 2)
    np.testing.assert_allclose(got.update, expected, atol=1e-7)
    np.testing.assert_allclose(got.info.weights @ x, got.update, atol=1e-12)
    default = inspect(BarrierClipping(), x, True).update
    np.testing.assert_allclose(default, got.update, atol=1e-3)


def test_barrier_clipping_without_clipping_is_the_weighted_mean():
    x = np.random.default_rng(3).normal(size=(N, D))
    rule = BarrierClipping(weights=WEIGHTS, scale=1e6, anchored=False)
    close(inspect(rule, x, True).update, WEIGHTS @ x / WEIGHTS.sum(), True)


def test_barrier_clipping_turns_with_the_updates():
    rng = np.random.default_rng(4)
    x, turn = rng.normal(size=(N, D)), np.linalg.qr(rng.normal(size=(D, D)))[0]
    x[:2] *= 30
    got = inspect(CLIPPING, x @ turn, True).update
    close(got, inspect(CLIPPING, x, True).update @ turn, True, scale=30)


@pytest.mark.parametrize("bad", [1e30, 1e6, np.nan, np.inf])
def test_the_anchor_holds_whatever_the_weights(bad):
    """Rows of the most trusted clients are anything: the answer is in the ball of the others."""
    x = np.random.default_rng(5).normal(size=(N, D))
    x[[0, 4, 7]] = bad
    trust = np.where(np.isin(np.arange(N), [0, 4, 7]), 100.0, 1.0)
    fine = np.isfinite(x).all(axis=1) & (np.abs(x).max(axis=1) < 1e15)
    centre = median(x[fine], np.ones(fine.sum()))
    limit = np.sort(np.linalg.norm(x[fine] - centre, axis=1))[N - 3 - 1]
    rules = [BarrierClipping(weights=trust, budget=3, iterations=STEPS)]
    if np.isfinite(bad):
        centre = median(x, np.ones(N))
        limit = np.sort(np.linalg.norm(x - centre, axis=1))[N - 3 - 1]
        rules.append(Anchored(rule=Mean(weighted=False), budget=3))
    for rule in rules:
        got = inspect(rule, x, True).update
        assert np.linalg.norm(got - centre) <= limit * (1 + 1e-5)


def test_the_anchors_bound_is_never_violated():
    """kappa_S <= 2 k + 2 (1 + k) h / (h - n + b + 1), k = (2h / (2h - n))^2, for any weights."""
    rng, budget = np.random.default_rng(6), 4
    rule = BarrierClipping(budget=budget)

    @jax.jit
    @jax.vmap
    def answers(x, weights):
        return rule.replace(weights=weights).aggregate(x, (), Context.of(N)).update

    with jax.enable_x64(True):
        count = 300
        x = rng.normal(size=(count, N, D))
        bad = rng.integers(0, budget + 1, count)
        scale = 10.0 ** rng.uniform(-2, 6, (count, 1, 1))
        byzantine = np.arange(N)[None, :] < bad[:, None]
        x = np.where(byzantine[:, :, None], scale * x, x)
        weights = rng.random((count, N)) ** 8 + np.where(byzantine, 10.0, 0)
        got = np.asarray(answers(jnp.asarray(x), jnp.asarray(weights)))
    for row, rows, f in zip(got, x, bad, strict=True):
        honest, h = rows[f:], N - f
        mean = honest.mean(axis=0)
        variance = np.square(honest - mean).sum(axis=1).mean()
        k = (2 * h / (2 * h - N)) ** 2
        bound = 2 * k + 2 * (1 + k) * h / (h - N + budget + 1)
        assert np.square(row - mean).sum() <= bound * variance


@every_kind
def test_the_log_odds_median_is_a_weighted_median(kind):
    x, honesty = draw(kind), np.linspace(0.3, 0.999, N)
    odds = np.clip(np.log(honesty / (1 - honesty)), 0, 6)
    got = inspect(LogOddsMedian(honesty=honesty, iterations=STEPS), x, True).update
    costs = [odds @ np.linalg.norm(x - point, axis=1) for point in (got, median(x, odds))]
    assert costs[0] <= costs[1] + 1e-9 * odds.sum() * np.abs(x).max()


def test_a_client_that_is_surely_honest_decides_alone():
    """Six in log-odds at most: enough for half of the weight here."""
    x = np.random.default_rng(2).normal(size=(N, D))
    rule = LogOddsMedian(honesty=np.where(np.arange(N) == 2, 1.0, 0.6))
    close(inspect(rule, x, True).update, x[2], True)


def test_the_expected_mean_has_the_weights_given():
    x = draw(next(iter(every_kind.args[1])))
    close(inspect(ExpectedMean(weights=WEIGHTS), x, True).update, WEIGHTS @ x / WEIGHTS.sum(), True)
    close(inspect(ExpectedMean(), x, True).update, x.mean(axis=0), True)


@every_kind
def test_weighted_trimming_is_trimming_of_copies(kind):
    """A client of weight 3 counts as three clients that send the same."""
    x, total, cut = draw(kind), WHOLE.sum(), 4
    copies = np.repeat(x, WHOLE, axis=0)
    expected = np.sort(copies, axis=0)[cut : total - cut].mean(axis=0)
    rule = WeightedTrimmedMean(trim=cut / total, weights=WHOLE / 7)
    close(inspect(rule, x, True).update, expected, True, scale=np.abs(x).max())


def test_weighted_trimming_of_many_rows():
    x, mass = np.random.default_rng(8).normal(size=(90, 4)), np.arange(90) % 3 + 1
    expected = np.sort(np.repeat(x, mass, axis=0), axis=0)[20:-20].mean(axis=0)
    rule = WeightedTrimmedMean(trim=20 / mass.sum(), weights=mass.astype(float))
    close(inspect(rule, x, True).update, expected, True)


def test_weighted_mixing_is_mixing_of_copies():
    x, total, cut = np.random.default_rng(7).normal(size=(N, D)), WHOLE.sum(), 5
    copies = np.repeat(x, WHOLE, axis=0)
    near = np.argsort(np.linalg.norm(x[:, None] - copies[None], axis=2), axis=1)[:, : total - cut]
    expected = copies[near].mean(axis=1)
    with jax.enable_x64(True):
        got = WeightedNNM(trim=cut / total, weights=WHOLE * 0.3)(jnp.asarray(x))
    close(got, expected, True)


@every_kind
def test_with_equal_weights_they_are_the_classical_rules(kind):
    x, f = draw(kind), 3
    weighted = Pipeline(
        pre=(WeightedNNM(trim=f / N),), rule=WeightedTrimmedMean(trim=f / N, weights=np.ones(N))
    )
    classical = Pipeline(pre=(NNM(f=f),), rule=TrimmedMean(f=f))
    scale = np.abs(x).max()
    close(inspect(weighted, x, True).update, inspect(classical, x, True).update, True, scale)


def variances(x, sets):
    return np.array([np.square(x[s] - x[s].mean(axis=0)).sum(axis=1).mean() for s in sets])


SETS = np.array(
    [np.isin(np.arange(N), out, invert=True) for out in itertools.combinations(range(N), 2)]
)


@every_kind
@pytest.mark.parametrize("given", [False, True], ids=["all sets", "a law's"])
def test_the_gibbs_mean_is_its_definition(kind, given):
    x, rng = draw(kind), np.random.default_rng(9)
    sets = SETS[::3] if given else SETS
    masses = rng.random(len(sets)) if given else np.ones(len(sets))
    rule = GibbsMean(f=2, temperature=0.3)
    if given:
        rule = rule.replace(sets=sets, probabilities=masses)
    spread = variances(x, sets)
    least = spread.min()
    odds = masses * np.exp(-(spread - least) / max(0.3 * least, 1e-300))
    expected = sum(q * x[s].mean(axis=0) for q, s in zip(odds / odds.sum(), sets, strict=True))
    got = inspect(rule, x, True)
    close(got.update, expected, True, scale=np.abs(x).max())
    close(got.info.weights @ x, expected, True, scale=np.abs(x).max())


def test_gibbs_at_both_ends():
    """At temperature 0 the set of least variance, at a high one the expected mean."""
    x, masses = np.random.default_rng(10).normal(size=(N, D)), np.arange(1.0, len(SETS) + 1)
    masses /= masses.sum()
    law = {"f": 2, "sets": SETS, "probabilities": masses}
    best = SETS[np.argmin(variances(x, SETS))]
    close(inspect(GibbsMean(temperature=0.0, **law), x, True).update, x[best].mean(axis=0), True)
    weights = masses @ (SETS / SETS.sum(axis=1, keepdims=True))
    close(inspect(GibbsMean(temperature=1e12, **law), x, True).update, weights @ x, True)


def test_anchored_leaves_alone_what_is_near():
    x = draw(next(iter(every_kind.args[1])))
    close(
        inspect(Anchored(rule=TrimmedMean(f=3)), x, True).update,
        np.sort(x, axis=0)[3:-3].mean(0),
        True,
    )


BAD = [
    (
        BarrierClipping(weights=np.ones(5)),
        "weights must be one number per client .* n = 11 or more",
    ),
    (BarrierClipping(weights=np.zeros(N)), "weights must not all be 0"),
    (BarrierClipping(budget=6), r"budget must be below n / 2; got budget = 6, n = 11"),
    (ExpectedMean(weights=0.5), r"got shape \(\)"),
    (LogOddsMedian(honesty=np.full(N, 0.5)), "above 1/2 for at least one client"),
    (WeightedTrimmedMean(weights=np.ones(3)), "weights must be one number per client"),
    (Pipeline(pre=(WeightedNNM(weights=np.ones(3)),), rule=Mean()), "WeightedNNM: weights must"),
    (
        Pipeline(pre=(Bucketing(size=2), WeightedNNM(weights=np.ones(N))), rule=Mean()),
        "WeightedNNM needs one row per client",
    ),
    (Anchored(budget=6), "Anchored: budget must be below n / 2"),
    (GibbsMean(f=1, sets=SETS), "leaving out at most f = 1"),
    (GibbsMean(f=2, sets=SETS, probabilities=np.ones(3)), "one per set"),
    (GibbsMean(f=9).replace(f=6), "GibbsMean needs n > 2f"),
]


@pytest.mark.parametrize(("rule", "message"), BAD, ids=[m[:25] for _, m in BAD])
def test_what_does_not_fit_is_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        rule(np.ones((N, 3), np.float32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BarrierClipping(beta=0.5), "beta must be .*below 0.5; got 0.5"),
        (lambda: WeightedTrimmedMean(trim=0.5), "trim must be .*below 0.5; got 0.5"),
        (lambda: WeightedNNM(trim=-0.1), "trim must be"),
        (lambda: LogOddsMedian(honesty=np.array([0.5, 1.1])), "honesty must be"),
        (lambda: GibbsMean(f=2)(np.ones((500, 2), np.float32)), "at most 100000 sets"),
    ],
)
def test_what_no_rule_can_have_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_clients_are_known_by_their_ids():
    """Of a population of 20 only some take part, in any order."""
    x, weights = draw(next(iter(every_kind.args[1]))), np.random.default_rng(11).random(20)
    ids = np.random.default_rng(12).permutation(20)[:N]
    context = Context.of(N, client_ids=jnp.asarray(ids, jnp.int32))
    got = inspect(ExpectedMean(weights=weights), x, True, context=context).update
    close(got, weights[ids] @ x / weights[ids].sum(), False)
    assert jaxfl.ExpectedMean(weights=weights).by_client
