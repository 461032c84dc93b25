"""Laws of honest sets against enumeration that is written here, and what is refused."""

import itertools
import math

import jax
import jaxtyping
import numpy as np
import pytest
import scipy.stats

from jaxfl.robustness import (
    Clusters,
    Empirical,
    GaussianCopula,
    IndependentHonesty,
    Ising,
    UniformSets,
    adjacency,
    block_model,
    nearest_neighbours,
    quantile,
    ring,
    weighted_trimming,
    worst_objective,
)

N = 8
P = np.array([0.98, 0.98, 0.9, 0.8, 0.7, 0.6, 0.5, 0.45])
FIELD = np.linspace(-0.1, 0.5, N)
GROUPS = (0, 0, 0, 1, 1, 2, 2, 2)
SETS = [[1] * 8, [1] * 5 + [0] * 3, [0] * 2 + [1] * 6, [1] * 8, [1] * 4 + [0] * 4]
LAWS = {
    "uniform": UniformSets(n=N, byzantine=3),
    "independent": IndependentHonesty(probabilities=P, budget=2),
    "clusters": Clusters(
        groups=GROUPS, corruption=[0.3, 0.2, 0.1], within=[1.0, 0.8, 0.5], background=0.05
    ),
    "ising": Ising(graph=ring(N), coupling=0.4, external=FIELD),
    "empirical": Empirical(sets=SETS, probabilities=[1, 2, 3, 4, 5], budget=3),
}
EVERY = [np.array(row, bool) for row in itertools.product((True, False), repeat=N)]


def independent(s, p):
    return np.prod(np.where(s, p, 1 - p))


def clusters(s):
    total = 0.0
    for struck in itertools.product((0, 1), repeat=3):
        share = math.prod(
            r if hit else 1 - r for r, hit in zip((0.3, 0.2, 0.1), struck, strict=True)
        )
        p = [1 - (1.0, 0.8, 0.5)[g] if struck[g] else 0.95 for g in GROUPS]
        total += share * independent(s, np.array(p))
    return total


def ising(s):
    spins = np.where(s, 1, -1)
    edges = sum(spins[i] * spins[(i + 1) % N] for i in range(N))
    return np.exp(FIELD @ spins + 0.4 * edges)


MASS = {
    "uniform": lambda s: float(np.sum(~s) == 3),
    "independent": lambda s: independent(s, P) * (np.sum(~s) <= 2),
    "clusters": lambda s: clusters(s) * (np.sum(~s) <= 3),
    "ising": lambda s: ising(s) * (np.sum(~s) <= 3),
    "empirical": lambda s: sum(
        w
        for row, w in zip(SETS, range(1, 6), strict=True)
        if row == s.astype(int).tolist() and sum(row) >= 5
    ),
}
each_law = pytest.mark.parametrize("name", LAWS)


def expected(name):
    """Probabilities of all 2^n sets, by the formula above; and of the budget."""
    raw = np.array([MASS[name](s) for s in EVERY], float)
    everything = {
        "independent": 1.0,
        "clusters": 1.0,
        "ising": sum(map(ising, EVERY)),
        "empirical": 15.0,
    }
    return raw / raw.sum(), raw.sum() / everything.get(name, raw.sum())


@each_law
def test_moments_are_those_of_all_sets(name):
    masses, accepted = expected(name)
    moments = LAWS[name].moments()
    pairs, weights, overlaps = np.zeros((N, N)), np.zeros(N), np.zeros((N, N))
    for s, mass in zip(EVERY, masses, strict=True):
        pairs += mass * np.outer(s, s)
        if s.any():
            weights += mass * s / s.sum()
            overlaps += mass * np.outer(s, s) / s.sum() ** 2
    assert moments.errors is None
    np.testing.assert_allclose(moments.pairs, pairs, atol=1e-10)
    np.testing.assert_allclose(moments.honesty, np.diagonal(pairs), atol=1e-10)
    np.testing.assert_allclose(moments.weights, weights, atol=1e-10)
    np.testing.assert_allclose(moments.overlaps, overlaps, atol=1e-10)
    np.testing.assert_allclose(moments.acceptance, accepted, rtol=1e-10)
    np.testing.assert_allclose(moments.weights.sum(), 1, atol=1e-12)
    sizes = np.array([np.sum(~s) for s in EVERY])
    corruption = moments.corruption
    np.testing.assert_allclose(np.trace(corruption), masses @ sizes, atol=1e-10)
    np.testing.assert_allclose(corruption.sum(), masses @ sizes**2, atol=1e-10)
    assert np.array_equal(corruption, corruption.T)
    assert np.linalg.eigvalsh(corruption).min() > -1e-12


@each_law
def test_the_support_is_all_sets_with_their_probabilities(name):
    masses, _ = expected(name)
    sets, found = LAWS[name].support()
    known = {s.tobytes(): m for s, m in zip(sets, found, strict=True)}
    assert len(known) == len(sets) == np.sum(masses > 0)
    for s, mass in zip(EVERY, masses, strict=True):
        assert known.get(s.tobytes(), 0.0) == pytest.approx(mass, abs=1e-12)
    entropy = -sum(m * np.log(m) for m in masses if m > 0)
    assert LAWS[name].entropy() == pytest.approx(entropy)


def distance(law, draws, seed=1):
    """Total variation between a sample and the support, and the sample."""
    drawn = np.asarray(law.sample(jax.random.key(seed), draws))
    n = law.clients
    places = 1 << np.arange(n)
    seen = np.bincount(drawn @ places, minlength=2**n) / draws
    sets, masses = law.support()
    seen[sets @ places] -= masses
    return np.abs(seen).sum() / 2, drawn


@each_law
def test_samples_follow_the_law(name):
    law = LAWS[name]
    apart, drawn = distance(law, 40_000)
    # Sampling noise alone is at most 0.2 over the square root of draws by sets: 163 at most.
    assert apart < 0.03
    assert (~drawn).sum(axis=1).max() <= law.most_byzantine


@pytest.mark.slow
@pytest.mark.parametrize(
    "law",
    [
        UniformSets(n=10, byzantine=4),
        IndependentHonesty(probabilities=np.linspace(0.4, 0.99, 10)),
        Clusters(groups=(0, 0, 0, 1, 1, 2, 2, 2, 3, 3), corruption=[0.35, 0.2, 0.1, 0.02]),
        Ising(graph=ring(10), coupling=0.55, external=0.22),
        Empirical(sets=np.array(LAWS["independent"].support()[0])),
    ],
    ids=lambda law: type(law).__name__,
)
def test_two_hundred_thousand_samples_are_within_two_percent(law):
    apart, _ = distance(law, 200_000)
    assert apart < 0.02
    for seed in range(0 if isinstance(law, Ising) else 4):  # each move of a chain is looked at
        drawn = law.sample(jax.random.key(100 + seed), 200_000)
        assert int((~drawn).sum(axis=1).max()) <= law.most_byzantine


@pytest.mark.slow
def test_a_million_draws_of_the_copula_keep_its_budget():
    law = GaussianCopula(graph=ring(10), probabilities=np.linspace(0.5, 0.95, 10), budget=3)
    largest = 0
    for seed in range(5):
        drawn = law.sample(jax.random.key(200 + seed), 200_000)
        largest = max(largest, int((~drawn).sum(axis=1).max()))
    assert largest == 3


def test_the_copula_has_the_marginals_asked_for():
    law = GaussianCopula(graph=ring(6), probabilities=np.linspace(0.5, 0.9, 6), budget=2)
    laplacian = 2 * np.eye(6) - ring(6)
    covariance = np.linalg.inv(laplacian + 0.1 * np.eye(6))
    scale = np.sqrt(np.diagonal(covariance))
    covariance /= np.outer(scale, scale)
    z = np.random.default_rng(0).multivariate_normal(np.zeros(6), covariance, size=200_000)
    honest = z <= scipy.stats.norm.ppf(np.linspace(0.5, 0.9, 6))
    p, pairs = law.unconditioned()
    np.testing.assert_allclose(p, np.linspace(0.5, 0.9, 6), atol=1e-12)
    np.testing.assert_allclose(pairs, honest.T.astype(float) @ honest / len(z), atol=5e-3)
    kept = honest[(~honest).sum(axis=1) <= 2]
    moments = law.moments(samples=20_000)
    assert moments.errors is not None
    assert moments.acceptance == pytest.approx(
        len(kept) / len(z), abs=5 * moments.errors.acceptance
    )
    away = np.abs(moments.honesty - kept.mean(axis=0)) / moments.errors.honesty
    assert away.max() < 5
    shares = (kept / kept.sum(axis=1, keepdims=True)).mean(axis=0)
    assert (np.abs(moments.weights - shares) / moments.errors.weights).max() < 5
    drawn = np.asarray(law.sample(jax.random.key(3), 20_000))
    assert (~drawn).sum(axis=1).max() <= 2
    np.testing.assert_allclose(drawn.mean(axis=0), kept.mean(axis=0), atol=0.02)


def on_a_ring(n, coupling, external, most):
    """``P(at most so many Byzantine)`` of an Ising ring, by its transfer matrix."""
    total = np.zeros(n + 1)
    for first in (1, -1):
        ways = {first: np.eye(n + 1)[int(first < 0)] * np.exp(external * first)}
        for _ in range(n - 1):
            ways = {
                s: np.exp(external * s)
                * sum(np.roll(w, int(s < 0)) * np.exp(coupling * s * b) for b, w in ways.items())
                for s in (1, -1)
            }
        total += sum(w * np.exp(coupling * s * first) for s, w in ways.items())
    return total[: most + 1].sum() / total.sum()


@pytest.mark.slow
def test_a_rare_budget_beyond_enumeration():
    """4e-4 of all sets keep it: that takes several splits."""
    of_many, of_few = (Ising(graph=ring(n), coupling=0.3, external=-0.5) for n in (24, 12))
    exact, moments = on_a_ring(24, 0.3, -0.5, 11), of_many.moments(samples=256)
    assert exact < 1e-3
    assert abs(moments.acceptance / exact - 1) < 0.3
    assert of_few.moments().acceptance == pytest.approx(on_a_ring(12, 0.3, -0.5, 5))


def test_laws_beyond_enumeration():
    """The larger sizes have exact moments where there is a formula, and estimates elsewhere."""
    p = np.linspace(0.6, 0.99, 40)
    exact = IndependentHonesty(probabilities=p).moments()
    drawn = np.asarray(IndependentHonesty(probabilities=p).sample(jax.random.key(0), 20_000))
    np.testing.assert_allclose(exact.honesty, drawn.mean(axis=0), atol=0.02)
    law = Ising(graph=ring(24), coupling=0.3, external=0.4)
    moments = law.moments(samples=2_000)
    assert moments.errors is not None
    found = (moments.acceptance - on_a_ring(24, 0.3, 0.4, 11)) / moments.errors.acceptance
    assert abs(found) < 5
    spread = np.ptp(moments.honesty) / moments.errors.honesty.max()
    assert spread < 8  # all clients of the ring are alike
    with pytest.raises(ValueError, match=r"Ising: sets are enumerated for n <= 20 .* n = 24"):
        law.support()


def test_a_law_is_an_argument_of_a_program():
    """Leaves are swept by vmap; equal laws are one compilation."""
    laws = [LAWS["ising"].replace(coupling=j) for j in (0.0, 0.8)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *laws)
    key = jax.random.key(0)
    both = jax.jit(jax.vmap(lambda law: law.draw(key, 500)))(stacked)
    for law, drawn in zip(laws, both, strict=True):
        np.testing.assert_array_equal(drawn, law.sample(key, 500))
    agree = [np.mean(d[:, :-1] == d[:, 1:]) for d in np.asarray(both)]
    assert agree[1] > agree[0] + 0.05


def test_known_symmetries():
    assert len(set(LAWS["uniform"].orbits())) == 1
    assert len(set(Ising(graph=ring(5)).orbits())) == 1
    assert len(set(LAWS["ising"].orbits())) == N
    law = Clusters(groups=(0, 0, 1, 1, 2), corruption=[0.1, 0.1, 0.1])
    assert law.orbits().tolist() in ([0, 0, 0, 0, 1], [1, 1, 1, 1, 0])
    assert len(set(IndependentHonesty(probabilities=[0.5, 0.5, 0.9]).orbits())) == 2


class Drawn:
    """A graph as networkx has it, for those who have networkx."""

    nodes = ("a", "b", "c")

    def edges(self, data, default):
        assert (data, default) == ("weight", 1.0)
        return [("a", "c", 1.0), ("b", "c", 2.0)]


def test_graphs():
    assert adjacency(Drawn()).tolist() == [[0, 0, 1], [0, 0, 2], [1, 2, 0]]
    assert Ising(graph=Drawn()).clients == 3
    assert GaussianCopula(graph=Drawn(), probabilities=0.9).clients == 3
    five = ring(5)
    assert (five.sum(axis=0) == 2).all()
    assert all(five[i, (i + 1) % 5] == 1 for i in range(5))
    labels = np.array([[9, 1, 0], [8, 2, 0], [0, 1, 9], [0, 2, 8], [5, 5, 0]])
    shares = labels / 10
    near = nearest_neighbours(labels * 3, k=1)
    for i in range(5):
        far = [np.abs(shares[i] - shares[j]).sum() if j != i else 9 for j in range(5)]
        assert near[i, int(np.argmin(far))] == near[int(np.argmin(far)), i] == 1
    blocks = block_model([0] * 20 + [1] * 20, inside=0.9, between=0.1, seed=3)
    assert np.array_equal(blocks, blocks.T)
    assert blocks[:20, :20].mean() > 0.75
    assert blocks[:20, 20:].mean() < 0.2


BAD = [
    (
        lambda: IndependentHonesty(probabilities=[0.5, 1.5]),
        "probabilities must be .*at most 1; got",
    ),
    (lambda: IndependentHonesty(probabilities=0.5), "one number per client; got shape"),
    (
        lambda: IndependentHonesty(probabilities=[0.9] * 4, budget=2),
        r"budget must be below n / 2.*S = \[0, 1\] and S' = \[2, 3\] are honest sets and disjoint",
    ),
    (
        lambda: IndependentHonesty(probabilities=[1e-4] * 5),
        "Byzantine.* probability of 1e-06 .* got",
    ),
    (
        lambda: UniformSets(n=5, byzantine=3),
        r"byzantine must be below n / 2.*S = \[0, 1\] and S' = \[3, 4\] are honest",
    ),
    (lambda: UniformSets(n=4, byzantine=-1), "byzantine must be at least 0"),
    (lambda: Ising(graph=[[0, 1], [0, 0]]), "Ising: graph must be symmetric"),
    (lambda: Ising(graph=np.zeros((2, 3))), "Ising: graph must be a matrix .*shape \\(2, 3\\)"),
    (lambda: Ising(graph=ring(5), external=[0.1] * 4), "external must be one number or 5 of them"),
    (lambda: Ising(graph=ring(5), external=-20.0), "probability of 1e-06 or more"),
    (lambda: Ising(graph=ring(24), external=-20.0), "probability of 1e-06 or more; got 0"),
    (lambda: Ising(graph=ring(40), budget=20), r"\[0, 1, ..., 18, 19\] and S' = \[20, 21, ..., 38"),
    (lambda: GaussianCopula(graph=ring(5), probabilities=[0.5] * 4), "one number or 5 of them"),
    (lambda: GaussianCopula(graph=ring(5), probabilities=-0.1), "probabilities must be at least 0"),
    (lambda: GaussianCopula(graph=ring(5), probabilities=0.5).support(), "no formula"),
    (lambda: Clusters(groups=(0, 2), corruption=0.1), r"groups must be numbers .*got \[0, 2\]"),
    (lambda: Clusters(groups=(0, 0, 1), corruption=[0.1] * 3), "one number or 2 of them"),
    (lambda: Clusters(groups=(0, 0, 1), corruption=2.0), "corruption must be"),
    (lambda: Empirical(sets=[[1, 0], [1, 0.5]]), "sets must be a matrix"),
    (lambda: Empirical(sets=[[1, 0]], probabilities=[1, 2]), "1 numbers, one per set"),
    (lambda: Empirical(sets=[[1, 1, 0], [1, 1, 1]], probabilities=[1, 0], budget=0), "got 0"),
    (
        lambda: Empirical(sets=[[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]),
        r"disjoint; got S = \[2, 3\] and S' = \[0, 1\]",
    ),
    (lambda: UniformSets(n=40, byzantine=9).support(), "up to 100000 sets are enumerated"),
    (lambda: IndependentHonesty(probabilities=[0.9] * 21).support(), "n <= 20 .*; got n = 21"),
    (
        lambda: UniformSets(n=5, byzantine=1).sample(jax.random.key(0), 0),
        "count must be an integer",
    ),
    (lambda: ring(2), "ring: n must be an integer, at least 3; got 2"),
    (lambda: ring(4.5), "ring: n must be an integer, at least 3; got 4.5"),
    (lambda: block_model([0, 1], inside=1.2, between=0.0), "inside must be a number from 0 to 1"),
    (lambda: nearest_neighbours([[1, 0], [0, 1]], k=2), "k must be .* at most 1; got 2"),
    (lambda: nearest_neighbours([[1, 0], [0, 1]], k=1.0), "k must be an integer, .*; got 1.0"),
    (lambda: nearest_neighbours([[1, 0], [1]], k=1), "histograms must be numbers, in rows of one"),
    (lambda: nearest_neighbours([[1, 0], [0, 0]], k=1), "samples at every client"),
    (lambda: adjacency(ring(4), n=5), "a matrix of 5 clients"),
    (lambda: adjacency(-ring(4)), "at least 0"),
    (
        lambda: adjacency([[0, 1], [1]]),
        r"graph must be numbers, .*; got \[\[0, 1\], \[1\]\]",
    ),
    (lambda: Ising(graph=[[0, 1], [1]]), "Ising: graph must be numbers, in rows of one length"),
    (lambda: Empirical(sets=[[1, 0], [1]]), "Empirical: sets must be numbers, in rows of one"),
    (
        lambda: GaussianCopula(graph=ring(5), probabilities=0.9).moments(samples=0),
        "GaussianCopula: samples must be an integer, at least 1; got 0",
    ),
    (lambda: weighted_trimming(UniformSets(n=5, byzantine=1), quantile=1.5), "quantile must be a"),
    (lambda: quantile(np.arange(9.0), 2.0), "quantile: level must be a number from 0 to 1; got 2"),
    (lambda: worst_objective(np.arange(4.0), 1.5), "f must be an integer, .*; got 1.5"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[m[:30] for _, m in BAD])
def test_bad_input_is_one_clear_error(make, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("p", "fits"), [(5e-7, False), (1e-6, False), (4e-6, True), (1e-4, True)])
def test_a_copula_is_refused_by_the_probability_of_its_budget(p, fits):
    """At most one of three Byzantine: two or three of them below the threshold, exactly."""
    laplacian = 2 * np.eye(3) - ring(3)
    correlation = np.linalg.inv(laplacian + 0.1 * np.eye(3))
    correlation /= correlation[0, 0]
    low = np.full(3, scipy.stats.norm.ppf(p))
    two, three = (
        scipy.stats.multivariate_normal.cdf(low[:k], cov=correlation[:k, :k]) for k in (2, 3)
    )
    exact = 3 * two - 2 * three
    assert (exact >= 1e-6) == fits
    if fits:
        law = GaussianCopula(graph=ring(3), probabilities=p, budget=1)
        assert law._acceptance(2**12)[0] == pytest.approx(exact, rel=0.2)
    else:
        with pytest.raises(ValueError, match=r"at most 1 Byzantine .* 1e-06 or more; got"):
            GaussianCopula(graph=ring(3), probabilities=p, budget=1)
