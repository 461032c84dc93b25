"""What is proved, held against rules by enumeration; floors and ceilings by their formulas."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfl
from benchmarks import kappa
from jaxfl.aggregators import BarrierClipping, GeometricMedian, GibbsMean, Mean
from jaxfl.aggregators.gibbs import gibbs_weights
from jaxfl.registry import AGGREGATORS
from jaxfl.robustness import (
    Empirical,
    IndependentHonesty,
    Ising,
    UniformSets,
    barrier_clipping,
    breakdown_floor,
    breakdown_probability,
    climb_kappa,
    dissimilarity,
    errors_and_variances,
    gibbs_ceilings,
    median_ceiling,
    oblivious_floor,
    oblivious_ratio,
    overlap_ceiling,
    ratios,
    ring,
    search_kappas,
    set_floors,
    uniform_floor,
    worst_floor,
)
from jaxfl.types import Context, segments_of

N, F = 7, 2
LAW = UniformSets(n=N, byzantine=F)
SETS, MASSES = LAW.support()


def by_hand(x, sets):
    """Means and variances of all sets."""
    means = np.array([x[s].mean(axis=0) for s in sets])
    spread = [np.square(x[s] - m).sum(axis=1).mean() for s, m in zip(sets, means, strict=True)]
    return means, np.array(spread)


@pytest.mark.parametrize("n", [5, 7, 12])
def test_the_oblivious_floor_of_a_uniform_law(n):
    for f in range(1, (n + 1) // 2):
        floor = oblivious_floor(UniformSets(n=n, byzantine=f).moments())
        assert floor == pytest.approx(f / (n * (n - f - 1)), rel=1e-9)


def test_no_rows_beat_the_oblivious_floor_and_no_weights_beat_those_of_the_law():
    law = IndependentHonesty(probabilities=[0.95, 0.9, 0.9, 0.8, 0.7, 0.6, 0.5])
    sets, masses = law.support()
    moments, rng = law.moments(), np.random.default_rng(0)
    floor, largest = oblivious_floor(moments), 0.0

    def ratio(x, weights):
        means, spread = by_hand(x, sets)
        away = np.square(weights @ x - means).sum(axis=1)
        return masses @ away / (masses @ spread)

    for _ in range(200):
        x = rng.normal(size=(7, 2)) * rng.lognormal(sigma=2, size=(7, 1))
        own = ratio(x, moments.weights)
        largest = max(largest, own)
        assert own <= floor * (1 + 1e-9)
        assert own <= min(ratio(x, rng.dirichlet(np.ones(7))) for _ in range(3)) + 1e-12
    # The power method on the pencil, from its definition.
    spread = np.diag(moments.weights) - moments.overlaps + np.ones((7, 7))
    step = np.linalg.solve(spread, moments.overlaps - np.outer(moments.weights, moments.weights))
    x = rng.normal(size=(7, 1))
    for _ in range(300):
        x = step @ x
        x = (x - x.mean()) / np.linalg.norm(x)
    assert 0.99 * floor <= ratio(x, moments.weights) <= floor * (1 + 1e-9)


def test_gradients_find_the_oblivious_floor():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(1).normal(size=(N, 2)))
        floor = oblivious_floor(LAW.moments())
        rule, sets, masses = Mean(), jnp.asarray(SETS), jnp.asarray(MASSES)
        found, place = climb_kappa(rule, sets, x, steps=20, masses=masses)
        # Of the mean under a uniform law, all rows have the same ratio.
        assert float(found) == pytest.approx(floor, rel=1e-6)
        assert float(oblivious_ratio(rule, place, sets, masses)) == pytest.approx(floor, rel=1e-6)


@jax.jit
def all_ratios(rule, x):
    return jax.vmap(lambda one: jnp.max(ratios(rule, one, jnp.asarray(SETS))))(x)


LEAST = GibbsMean(f=F, temperature=0.0)


def hard_rows(rng, count):
    """Random rows, of which some are equal, far, or on a line."""
    x = rng.normal(size=(count, N, 2)) * 10.0 ** rng.uniform(-2, 2, size=(count, N, 1))
    equal = rng.random((count, N, 1)) < 0.3
    return np.where(equal, x[:, :1], x)


@pytest.mark.parametrize("count", [1500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_the_set_of_least_variance_keeps_its_bound(count):
    ceiling = 4 * overlap_ceiling(SETS)
    assert ceiling == pytest.approx(4 * F / (N - 2 * F))
    with jax.enable_x64(True):
        x = hard_rows(np.random.default_rng(2), count)
        found = np.asarray(all_ratios(LEAST, jnp.asarray(x)))
        assert found.max() <= ceiling * (1 + 1e-6)
        # Two sets of nearly least variance that have few clients in common.
        line = np.array([0, 0, 1, 1, 1, 2 - 1e-6, 2 - 1e-6])[:, None] * np.ones((1, 2))
        hard = np.asarray(all_ratios(LEAST, jnp.asarray(line[None])))
        assert hard.max() > 0.98 * ceiling


def test_no_rule_is_below_the_floor_of_the_worst_set():
    """0 on the clients that S and S' share and v on the others of S: any finite ratio needs 0."""
    assert worst_floor(N, F) == pytest.approx(max(set_floors(SETS)))
    x = np.zeros((N, 1))
    x[:F] = 1.0
    s = np.arange(N) < N - F
    means, spread = by_hand(x, [s])
    assert means[0, 0] ** 2 / spread[0] == pytest.approx(worst_floor(N, F))
    with jax.enable_x64(True):
        for rule in (LEAST, GeometricMedian(), jaxfl.TrimmedMean(f=F)):
            assert float(all_ratios(rule, jnp.asarray(x[None]))[0]) >= worst_floor(N, F) - 1e-9


def test_floors_of_unequal_sets():
    sets = np.array([[1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1]], bool)
    np.testing.assert_allclose(set_floors(sets), [3 / 2 - 1, 3 / 2 - 1, 4 / 3 - 1])
    assert overlap_ceiling(sets) == pytest.approx(0.5)
    assert np.isinf(set_floors(np.array([[True, False], [False, True]]))).all()


def test_the_floor_of_a_uniform_law_by_its_construction():
    """g = v on a random f-set: whoever answers 0 in the other world is wrong by f / (n - f)."""
    rng, h = np.random.default_rng(3), N - F
    num, den = 0.0, 0.0
    for _ in range(4000):
        t = np.isin(np.arange(N), rng.permutation(N)[:F])
        s = np.isin(np.arange(N), rng.permutation(N)[:h])
        share = (t & s).sum() / h
        num, den = num + share**2, den + share * (1 - share)
    assert num / den >= uniform_floor(N, F) * 0.98


@pytest.mark.parametrize(
    "law",
    [
        IndependentHonesty(probabilities=[0.93, 0.81, 0.74, 0.66, 0.59, 0.55, 0.52]),
        Ising(graph=ring(8), coupling=0.4, external=0.1),
        IndependentHonesty(probabilities=np.linspace(0.5, 0.9, 11)),
    ],
    ids=["independent", "ising", "more clients"],
)
def test_no_weights_break_less_often_than_the_floor(law):
    """Over all sets, whatever their size: the law is not conditioned here."""
    n = law.clients
    sets = np.array(list(itertools.product((True, False), repeat=n)))
    masses = np.exp(law.log_masses(sets))
    masses /= masses.sum()
    floor, rng = breakdown_floor(sets, masses), np.random.default_rng(4)
    flipped = {s.tobytes(): m for s, m in zip(sets, masses, strict=True)}
    by_pairs = sum(min(m, flipped[(~s).tobytes()]) for s, m in zip(sets, masses, strict=True)) / 2
    assert floor == pytest.approx(by_pairs)
    for weights in (np.ones(n), *rng.random((50, n))):
        assert breakdown_probability(weights, sets, masses) >= floor - 1e-12
    if isinstance(law, IndependentHonesty) and n == 7:
        odds = np.log(law.probabilities / (1 - law.probabilities))
        assert breakdown_probability(odds, sets, masses) == pytest.approx(floor)
        assert breakdown_probability(np.ones(n), sets, masses) > 1.05 * floor


BLIND = [
    name
    for name, cls in AGGREGATORS.items()
    if cls.example(1).permutation_equivariant
    and not cls.example(1).needs_root
    and not cls.example(1).makes_inputs
    and name not in {"oracle", "zeno", "loss_rejection"}
]


@pytest.mark.slow
@pytest.mark.parametrize("name", BLIND)
def test_a_rule_that_does_not_know_the_clients_is_wrong_in_one_of_two_worlds(name):
    """One half of the clients is always honest; half of the rows are 0 and half v.

    Rules that break the tie by the clients' places are wrong where the honest ones are elsewhere.
    """
    rule = AGGREGATORS[name].example(1)
    v = np.array([30.0, 40.0])
    one = np.concatenate([np.zeros((4, 2)), np.tile(v, (4, 1))]).astype(np.float32)
    context = Context.of(8, params=jnp.zeros(2), segments=segments_of({"kernel": v}))
    answers = [np.asarray(rule(jnp.asarray(x), context=context)) for x in (one, one[::-1])]
    first = max(np.linalg.norm(answers[0]), np.linalg.norm(answers[1] - v))
    last = max(np.linalg.norm(answers[0] - v), np.linalg.norm(answers[1]))
    invariant = np.allclose(answers[0], answers[1], atol=1e-3)
    wrong = min(first, last) if invariant else max(first, last)
    assert wrong >= 25 * (1 - 1e-3)


@pytest.mark.parametrize("sure", [slice(0, 3), slice(3, 6)], ids=["first", "last"])
def test_a_rule_of_the_law_is_right_in_both_worlds(sure):
    """Wherever the always honest half is: ties of the anchor's median go to the first clients."""
    honest = np.zeros(6)
    honest[sure] = 1
    known = barrier_clipping(Empirical(sets=[honest, np.ones(6)], probabilities=[0.3, 0.7]))
    assert known.anchored
    assert known.weights[sure].sum() > 0.7
    v = np.array([30.0, 40.0])
    for rule in (known, known.replace(anchored=False)):
        for truth, other in ((0 * v, v), (v, 0 * v)):
            x = np.where(honest[:, None] > 0, truth, other)
            np.testing.assert_allclose(rule(jnp.asarray(x, jnp.float32)), truth, atol=1e-3)


def test_an_anchor_that_holds_fewer_rows_than_a_majority_cannot_follow_the_law():
    """More than half fall together: where a budget below n / 2 is broken, so is the anchor."""
    v = np.array([30.0, 40.0])
    x = jnp.asarray(np.concatenate([np.zeros((3, 2)), np.tile(v, (4, 1))]), jnp.float32)
    sure = BarrierClipping(weights=np.repeat([0.3, 0.025], [3, 4]))
    np.testing.assert_allclose(sure.replace(anchored=False)(x), 0, atol=1e-3)
    np.testing.assert_allclose(sure(x), v, atol=1e-3)


CLIPPED = BarrierClipping(anchored=False, scale=0.7, beta=0.45, iterations=200)


@jax.jit
@jax.vmap
def clipped_means_and_medians(x, weights):
    rule = CLIPPED.replace(weights=weights)
    centre = jaxfl.LogOddsMedian(honesty=jax.nn.sigmoid(weights), iterations=200)
    return [r.aggregate(x, (), Context.of(9)).update for r in (rule, centre)]


def radius_of(away, w):
    """0.7 times the root mean square of the smallest distances, those of a mass of 0.55."""
    order = np.argsort(away)
    taken = np.diff(np.minimum(np.cumsum(w[order]), 0.55), prepend=0)
    return 0.7 * np.sqrt(taken @ away[order] ** 2 / taken.sum())


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_the_bounds_of_the_median_and_of_the_clipped_mean_hold(count):
    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        x = rng.normal(size=(count, 9, 3))
        byzantine = np.arange(9)[None] < rng.integers(0, 4, (count, 1))
        x = np.where(byzantine[:, :, None], x * 10.0 ** rng.uniform(-1, 4, (count, 1, 1)), x)
        weights = rng.uniform(0.5, 2.0, (count, 9))
        found = clipped_means_and_medians(jnp.asarray(x), jnp.asarray(weights))
        answers, centres = map(np.asarray, found)
    omega = weights / weights.sum(axis=1, keepdims=True)
    checked, closest = 0, 0.0
    for row, w, bad, y, c in zip(x, omega, byzantine, answers, centres, strict=True):
        s, beta = ~bad, w[bad].sum()
        if beta >= 0.45:
            continue
        mean = row[s].mean(axis=0)
        spread = np.square(row[s] - mean).sum(axis=1).mean()
        # The median: for every point z, here the honest mean.
        reach = w[s] @ np.linalg.norm(row[s] - mean, axis=1)
        assert np.linalg.norm(c - mean) <= 2 / (1 - 2 * beta) * reach * (1 + 1e-6)
        # The rule's answer: one clipped step around c.
        away = np.linalg.norm(row - c, axis=1)
        radius = radius_of(away, w)
        assert radius**2 <= 0.7**2 * (w[s] @ away[s] ** 2) / 0.55 * (1 + 1e-9)
        q = w[s] / w[s].sum()
        chi = s.sum() * np.square(q - 1 / s.sum()).sum()
        bias = w[s].sum() * np.sqrt(chi * spread)
        clipping = w[s] @ np.maximum(away[s] - radius, 0)
        damage = beta * (np.linalg.norm(c - mean) + radius)
        ceiling = bias + clipping + damage
        assert np.linalg.norm(y - mean) <= ceiling * (1 + 1e-6)
        closest = max(closest, np.linalg.norm(y - mean) / ceiling)
        # And it is that step, so that the bound is of this rule.
        step = (w * np.minimum(1, radius / np.maximum(away, 1e-300))) @ (row - c)
        np.testing.assert_allclose(y, c + step, atol=1e-6 * (1 + np.abs(c).max() + radius))
        checked += 1
    assert checked > count / 2
    assert closest > 0.5  # the bound is no formality


def test_equal_weights_keep_the_medians_ceiling():
    with jax.enable_x64(True):
        x = hard_rows(np.random.default_rng(6), 500)
        found = np.asarray(all_ratios(GeometricMedian(iterations=200), jnp.asarray(x)))
    assert found.max() <= median_ceiling(N, N - F)
    with pytest.raises(ValueError, match="needs an honest majority; got 2 of 4"):
        median_ceiling(4, 2)


@pytest.mark.parametrize("eta", [0.1, 1.0, 10.0])
def test_the_entropy_bound_of_the_gibbs_mean(eta):
    """E |F - mean_S|^2 <= 2 r (2 E Var_S + H / eta) with the honest gradients at hand."""
    law = IndependentHonesty(probabilities=[0.95, 0.9, 0.85, 0.8, 0.7, 0.7, 0.6])
    sets, masses = law.support()
    rng, r = np.random.default_rng(7), overlap_ceiling(sets)
    for _ in range(6):
        g = rng.normal(size=(7, 2))
        errors, variances = [], []
        for s in sets:
            x = np.where(s[:, None], g, 10.0 ** rng.uniform(-1, 1) * rng.normal(size=(1, 2)))
            means, spread = by_hand(x, sets)
            q = masses * np.exp(-eta * (spread - spread.min()))
            own = g[s].mean(axis=0)
            errors.append(np.square(q @ means / q.sum() - own).sum())
            variances.append(np.square(g[s] - own).sum(axis=1).mean())
        assert masses @ errors <= 2 * r * (2 * masses @ variances + law.entropy() / eta)
        # The rule's own weights are these where eta is one over temperature and least variance.
        got = gibbs_weights(
            jnp.asarray(spread, jnp.float32),
            jnp.asarray(masses, jnp.float32),
            jnp.float32(1 / (eta * spread.min())),
            jnp.ones(len(sets), bool),
        )
        np.testing.assert_allclose(got, q / q.sum(), rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_every_ratio_of_the_gibbs_mean_is_below_its_ceiling():
    ceilings = gibbs_ceilings(SETS, MASSES, 0.5)
    np.testing.assert_allclose(ceilings, 4 / 3 * (2 + 0.5 * np.log(21)))
    rule = GibbsMean(f=F, temperature=0.5)
    with jax.enable_x64(True):
        x = jnp.asarray(hard_rows(np.random.default_rng(8), 500))
        found = np.asarray(all_ratios(rule, x))
        measured = errors_and_variances(rule, x[0], jnp.asarray(SETS))
        errors, variances = map(np.asarray, measured)
        _, spread = by_hand(np.asarray(x[0]), SETS)
    np.testing.assert_allclose(variances, spread, rtol=1e-9)
    assert found.max() <= ceilings.max()
    np.testing.assert_allclose((errors / variances).max(), found[0], rtol=1e-9)


@pytest.mark.slow
def test_dissimilarity_is_the_least_line_above_all_points():
    rng = np.random.default_rng(9)
    norms = rng.exponential(size=30)
    spread = 1 + 2 * norms + rng.normal(size=30) * 0.3
    g, b = dissimilarity(spread, norms)
    line = g**2 + b**2 * norms
    assert (line >= spread - 1e-9).all()
    best = np.square(line - spread).sum()
    for slope in np.linspace(0, 5, 501):
        height = max((spread - slope * norms).max(), 0)
        assert best <= np.square(height + slope * norms - spread).sum() + 1e-9
    assert dissimilarity(np.array([4.0]), np.array([1.0]))[0] == pytest.approx(2.0)
    with pytest.raises(ValueError, match="as many dispersions as squared norms"):
        dissimilarity(np.ones(3), np.ones(2))


def test_each_set_has_a_kappa_of_its_own():
    """The set of least variance, where all or one of two halves of five of seven are honest."""
    sets = np.ones((3, N), bool)
    sets[1, 5:] = sets[2, :2] = False
    masses = np.array([0.6, 0.2, 0.2])
    rule = GibbsMean(f=2, sets=sets, probabilities=masses, temperature=0.0)
    with jax.enable_x64(True):
        size = {"shape": (N, 1), "starts": 8, "steps": 60}
        found = np.asarray(search_kappas(rule, jnp.asarray(sets), jax.random.key(0), **size))
    assert (found >= 0.9 * set_floors(sets)).all()
    assert (found <= gibbs_ceilings(sets, masses, 0.0) * (1 + 1e-9)).all()
    assert masses @ found < 0.8 * found.max(), "the mean is not the largest"


def test_no_search_is_above_the_ceiling_of_the_anchor():
    make, bound = kappa.RULES["Anchored mean"]
    with jax.enable_x64(True):
        worst = kappa.search(make(F), N, F, starts=8, steps=20)
        learned = kappa.search_sets("weighted_trimming", kappa.LAWS["big cluster"], 2, 20)
    assert worst_floor(N, F) / 2 < worst <= bound(F / (N - 2 * F), N, F)
    assert learned.within
    assert learned.masses @ learned.kappas > learned.masses @ learned.floors / 2
