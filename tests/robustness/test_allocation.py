"""The barrier portfolio, and rules made for a law."""

import numpy as np
import pytest
import scipy.optimize

from jaxfl.robustness import (
    Clusters,
    Empirical,
    GaussianCopula,
    IndependentHonesty,
    Ising,
    UniformSets,
    allocation,
    barrier,
    barrier_clipping,
    barrier_portfolio,
    expected_mean,
    gibbs_mean,
    log_odds_median,
    mass_quantile,
    portfolio,
    ring,
    scenarios,
    weighted_trimming,
)
from jaxfl.robustness.allocation import barrier_slope, on_simplex

LAW = IndependentHonesty(probabilities=[0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
SETS, MASSES = LAW.support()
W = LAW.moments().weights


def cost(omega, penalty):
    total = 0.0
    for s, mass in zip(SETS, MASSES, strict=True):
        m = omega[~s].sum()
        psi = (m / (1 - 2 * m)) ** 2 if m <= 0.4 else 4 + 100 * (m - 0.4)
        total += mass * psi
    return penalty * total + np.square(omega - W).sum()


def test_the_barrier_is_convex_and_smooth():
    m = np.linspace(0, 1, 2001)
    slopes = np.diff(barrier(m)) / np.diff(m)
    assert (np.diff(slopes) > -1e-6).all()
    at, h = 0.4, 1e-7
    left = (barrier(np.array([at])) - barrier(np.array([at - h]))) / h
    right = (barrier(np.array([at + h])) - barrier(np.array([at]))) / h
    np.testing.assert_allclose(left, right, rtol=1e-4)
    np.testing.assert_allclose(barrier(np.array([0.1, 0.4])), [1 / 64, 4])


@pytest.mark.parametrize("cap", [None, 0.2])
def test_the_portfolio_is_that_of_a_general_solver(cap):
    got = barrier_portfolio(SETS, MASSES, W, cap=cap)
    found = scipy.optimize.minimize(
        cost,
        np.full(8, 1 / 8),
        args=(0.5,),
        method="SLSQP",
        bounds=[(0, cap or 1)] * 8,
        constraints={"type": "eq", "fun": lambda omega: omega.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(got, found.x, atol=1e-4)
    assert cost(got, 0.5) <= cost(found.x, 0.5) + 1e-9
    # The conditions of optimality: inside the bounds all slopes agree, at them they point outwards.
    step = 1e-6 * np.eye(8)
    slopes = np.array([(cost(got + e, 0.5) - cost(got - e, 0.5)) / 2e-6 for e in step])
    inside = (got > 1e-6) & (got < (cap or 1) - 1e-6)
    level = slopes[inside].mean()
    assert np.abs(slopes[inside] - level).max() < 1e-5
    assert (slopes[got <= 1e-6] >= level - 1e-5).all()
    assert (slopes[got >= (cap or 1) - 1e-6] <= level + 1e-5).all()


@pytest.mark.parametrize("penalty", [0.05, 5.0, 500.0])
@pytest.mark.parametrize("cap", [None, 1.25 / 8])
def test_the_portfolio_is_found_in_few_steps(monkeypatch, penalty, cap):
    """Near the least value differences of values are all rounding: steps must not hang on them."""
    count = 0

    def projected(point, top):
        nonlocal count
        count += 1
        return on_simplex(point, top)

    monkeypatch.setattr(allocation, "on_simplex", projected)
    random = np.random.default_rng(0)
    sets = random.random((400, 8)) < random.uniform(0.3, 0.99, 8)
    sets = sets[2 * sets.sum(axis=1) > 8]
    masses = random.dirichlet(np.ones(len(sets)))
    weights = masses @ (sets / sets.sum(axis=1, keepdims=True))
    omega = barrier_portfolio(sets, masses, weights, penalty=penalty, cap=cap)
    assert count < 2_000
    slopes = penalty * masses * barrier_slope(~sets @ omega) @ ~sets + 2 * (omega - weights)
    inside = (omega > 1e-9) & (omega < (cap or 1) - 1e-9)
    assert np.ptp(slopes[inside]) < 1e-7 * (1 + np.abs(slopes).max())


def test_the_portfolio_at_its_ends():
    np.testing.assert_allclose(barrier_portfolio(SETS, MASSES, W, penalty=0.0), W, atol=1e-9)
    np.testing.assert_array_equal(portfolio(UniformSets(n=9, byzantine=3)), np.full(9, 1 / 9))
    # The marginals of a ring are sums over all sets: equal up to how a processor adds.
    on_a_ring = portfolio(Ising(graph=ring(6), external=0.3))
    np.testing.assert_allclose(on_a_ring, np.full(6, 1 / 6), rtol=1e-14)
    never = IndependentHonesty(probabilities=[0.9] * 6 + [0.0])
    assert portfolio(never)[-1] == 0
    assert (portfolio(never)[:-1] > 0.1).all()


def test_the_portfolio_follows_the_clients():
    order = np.random.default_rng(0).permutation(8)
    moved = barrier_portfolio(SETS[:, order], MASSES, W[order])
    np.testing.assert_allclose(moved, barrier_portfolio(SETS, MASSES, W)[order], atol=1e-7)


def test_the_portfolio_keeps_less_in_byzantine_hands():
    """Than equal weights, in the mean of the barrier; the most reliable clients weigh most."""
    omega = barrier_portfolio(SETS, MASSES, W)
    risk = [MASSES @ barrier((~SETS) @ weights) for weights in (omega, np.full(8, 1 / 8))]
    assert risk[0] < 0.5 * risk[1]
    assert (np.diff(omega) < 0).all()


BAD = [
    ({"cap": 0.1}, "cap >= 1 / n, .* got cap = 0.1, n = 8"),
    ({"penalty": -1.0}, "penalty >= 0; got -1.0"),
    ({"weights": W[:3]}, r"got shapes \(\d+,\) and \(3,\)"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD)
def test_bad_portfolios_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        barrier_portfolio(**({"sets": SETS, "masses": MASSES, "weights": W} | wrong))


def test_scenarios_are_all_sets_or_drawn_ones():
    sets, masses = scenarios(LAW)
    np.testing.assert_array_equal(sets, SETS)
    np.testing.assert_array_equal(masses, MASSES)
    for law in (
        GaussianCopula(graph=ring(5), probabilities=0.8),
        IndependentHonesty(probabilities=[0.9] * 30),
        UniformSets(n=20, byzantine=8),
    ):
        sets, masses = scenarios(law, samples=500)
        assert sets.shape == (500, law.clients)
        np.testing.assert_allclose(masses.sum(), 1)


def test_the_quantile_of_byzantine_mass():
    omega, held = np.arange(1.0, 9), (~SETS) @ np.arange(1.0, 9)
    for q in (0.5, 0.95, 0.999):
        m = mass_quantile(LAW, omega, q)
        assert MASSES[held <= m].sum() >= q - 1e-9
        assert MASSES[held < m].sum() < q


def test_rules_of_a_law_hold_what_was_learned():
    moments = LAW.moments()
    np.testing.assert_array_equal(expected_mean(LAW).weights, moments.weights)
    np.testing.assert_array_equal(log_odds_median(LAW).honesty, moments.honesty)
    rule = barrier_clipping(LAW)
    np.testing.assert_allclose(rule.weights, barrier_portfolio(SETS, MASSES, W), atol=1e-12)
    assert (rule.beta, rule.budget) == (0.49, 3)
    hard = barrier_clipping(UniformSets(n=10, byzantine=2), hard=True)
    np.testing.assert_allclose(hard.beta, 0.2)
    gibbs = gibbs_mean(LAW, temperature=0.5)
    np.testing.assert_array_equal(gibbs.sets, SETS)
    np.testing.assert_array_equal(gibbs.probabilities, MASSES)
    assert (gibbs.f, gibbs.temperature) == (3, 0.5)
    trimming = weighted_trimming(UniformSets(n=10, byzantine=2))
    assert trimming.rule.rule.trim == trimming.rule.pre[0].trim == pytest.approx(0.2)


def test_doubt_bounds_what_anybody_can_hold():
    robust = barrier_clipping(LAW, doubt=0.3)
    assert robust.weights.max() <= 1.25 / 8 + 1e-9
    assert barrier_clipping(LAW).weights.max() > 1.25 / 8
    with pytest.raises(ValueError, match=r"doubt must be a number from 0 to 1; got 1.5"):
        portfolio(LAW, doubt=1.5)


def test_a_law_whose_budget_is_no_minority_has_an_anchor_of_one():
    law = Empirical(sets=[[1, 1, 0, 0], [1, 1, 1, 1]], probabilities=[0.3, 0.7])
    assert barrier_clipping(law).budget == 1


def test_a_cluster_that_falls_together_gets_less():
    law = Clusters(groups=(0,) * 5 + (1,) * 4 + (2,) * 3, corruption=[0.3, 0.01, 0.01])
    omega = portfolio(law)
    assert omega[:5].sum() < 0.35 < 5 / 12
    np.testing.assert_allclose(np.ptp(omega[:5]), 0, atol=1e-12)
