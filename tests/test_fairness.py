"""Fair weights and metrics, against plain NumPy that follows the papers' formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxfl.fairness import AFL, QFFL, TERM, Fairness, TailRisk
from jaxfl.metrics import fairness_metrics, minority
from jaxfl.robustness import IndependentHonesty, tail_objective, tail_risk, worst_objective
from jaxfl.types import Context, Spec

SPREAD = np.array([1e-8, 1e-4, 0.1, 1.0, 2.5, 30.0, 1e4])
measured_fairness = jax.jit(fairness_metrics)
farthest = jax.jit(minority, static_argnames="share")
HALVES = np.array([[str(c) in s for c in range(9)] for s in ("0123678", "02345", "45678")], float)
METRICS = ("mean", "variance", "worst_tenth", "best_tenth", "entropy", "gini", "jain")


def spec(population, cohort=None, dtype=np.float32):
    return Spec(population=population, cohort=cohort or population, dim=3, dtype=dtype)


@functools.partial(jax.jit, static_argnames="gradients")
def compiled(method, losses, norms, gradients, state, context):
    return method.weigh(losses, norms, gradients, state, context)


def weigh(method, losses, norms=None, *, gradients=True, state=None, dtype=np.float32, **known):
    losses = jnp.asarray(losses, dtype)
    norms = jnp.ones_like(losses) if norms is None else jnp.asarray(norms, dtype)
    state = method.init(spec(len(losses), dtype=dtype)) if state is None else state
    context = Context.of(len(losses), **jax.tree.map(jnp.asarray, known))
    return jax.device_get(compiled(method, losses, norms, gradients, state, context))


def step(method, losses, updates, gradients, **known):
    """The aggregate of a mean that weights all clients the same."""
    weighed = weigh(method, losses, np.sum(updates**2, axis=1), gradients=gradients, **known)
    return np.mean(weighed.factors[:, None] * updates, axis=0) * weighed.scale


def q_fedsgd(losses, gradients, q, lipschitz):
    """Algorithm 1 of the paper: w before - w after."""
    f = losses + 1e-10
    delta = f[:, None] ** q * gradients
    h = q * f ** (q - 1) * np.sum(gradients**2, axis=1) + lipschitz * f**q
    return delta.sum(axis=0) / h.sum()


def q_fedavg(losses, differences, q, lipschitz):
    """Algorithm 2 of the paper: w before - w after."""
    f = losses + 1e-10
    dw = lipschitz * differences
    delta = f[:, None] ** q * dw
    h = q * f ** (q - 1) * np.sum(dw**2, axis=1) + lipschitz * f**q
    return delta.sum(axis=0) / h.sum()


def h_of(losses, norms, q, c):
    """In units of the largest F^q."""
    f = np.asarray(losses, np.float64) + 1e-10
    return (f**q + c * q * f ** (q - 1) * norms) / np.max(f**q)


def simplex(point):
    """The nearest point of the simplex, by bisection for the threshold."""
    low, high = point.min() - 1, point.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(point - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(point - low, 0)


@pytest.mark.parametrize("q", [0, 0.1, 1, 5])
@pytest.mark.parametrize("lipschitz", [0.5, 1, 10])
def test_qffl_takes_the_paper_s_steps(q, lipschitz):
    rng = np.random.default_rng(0)
    losses, updates = rng.gamma(1, 2, 8), rng.normal(size=(8, 5))
    method = QFFL(q=q, lipschitz=lipschitz)
    sgd, avg = (reference(losses, updates, q, lipschitz) for reference in (q_fedsgd, q_fedavg))
    with jax.enable_x64(True):
        got_sgd, got_avg = (
            step(method, losses, updates, g, dtype=np.float64) for g in (True, False)
        )
    np.testing.assert_allclose(got_sgd / lipschitz, sgd, rtol=1e-9)
    np.testing.assert_allclose(got_avg, avg, rtol=1e-9)
    single = step(method, losses, updates.astype(np.float32), True)
    np.testing.assert_allclose(single / lipschitz, sgd, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("q", [0.1, 0.5, 1, 5])
@pytest.mark.parametrize("gradients", [True, False])
def test_qffl_is_finite_and_right_for_extreme_losses(q, gradients):
    norms, c = np.geomspace(1e3, 1e-3, len(SPREAD)), 0.5 if gradients else 2
    got = weigh(QFFL(q=q, lipschitz=2), SPREAD, norms, gradients=gradients)
    f = SPREAD + 1e-10
    np.testing.assert_allclose(got.factors, (f / f.max()) ** q, rtol=1e-4, atol=1e-37)
    scale = len(SPREAD) / h_of(SPREAD, norms, q, c).sum()
    np.testing.assert_allclose(got.scale, scale, rtol=1e-4)


@pytest.mark.parametrize("q", [0, 0.1, 1, 5])
@pytest.mark.parametrize("cap", [None, 1, 3])
def test_qffl_is_finite_whatever_is_claimed(q, cap):
    huge = float(np.finfo(np.float32).max)
    losses = [0, 0, 1e-30, 1e-8, 1, 1e4, huge, -1, -huge]
    for order in (slice(None), slice(None, None, -1)):
        norms = [huge, 0, 1e-38, 1e10, 1, 1e38, 1, 1, 0][order]
        for gradients in (True, False):
            method = QFFL(q=q, lipschitz=1e-3, cap=cap)
            got = weigh(method, losses, norms, gradients=gradients)
            assert np.isfinite(got.factors).all()
            assert np.isfinite(got.scale)
            assert got.factors.max() == 1


@pytest.mark.parametrize("n", [1, 2, 7, 8])
@pytest.mark.parametrize("cap", [1, 1.5, 3])
def test_qffl_s_cap_is_in_medians(n, cap):
    rng = np.random.default_rng(n)
    losses, norms = rng.gamma(1, 1, n), 10 ** rng.uniform(-3, 3, n)
    with jax.enable_x64(True):
        method = QFFL(q=2, lipschitz=4, cap=cap)
        got = weigh(method, losses, norms, dtype=np.float64)
    powers = (losses + 1e-10) ** 2
    powers = np.minimum(powers, cap * np.median(powers))
    powers /= powers.max()
    np.testing.assert_allclose(got.factors, powers, rtol=1e-9)
    h = powers * (1 + 0.25 * 2 * norms / (losses + 1e-10))
    expected = n / np.minimum(h, cap * np.median(h)).sum()
    np.testing.assert_allclose(got.scale, expected, rtol=1e-9)


def test_a_lie_about_h_moves_a_capped_step_little():
    losses, norms = np.ones(9), np.ones(9)
    lie = np.where(np.arange(9) < 2, 1e12, norms)
    honest, lied = (
        float(weigh(QFFL(q=1, lipschitz=1, cap=3), losses, n).scale) for n in (norms, lie)
    )
    assert honest == pytest.approx(1 / 2)
    assert lied == pytest.approx(9 / (7 * 2 + 2 * 6))
    assert float(weigh(QFFL(q=1, lipschitz=1), losses, lie).scale) < 1e-10


@pytest.mark.parametrize(
    "method", [QFFL(q=0, lipschitz=3), TERM(tilt=0), AFL(rate=0), TailRisk(alpha=0)]
)
@pytest.mark.parametrize("n", [1, 7, 49, 100])
def test_what_reduces_to_the_plain_algorithm_is_exactly_one(method, n):
    rng = np.random.default_rng(n)
    method = method.replace(cap=1) if n == 7 and isinstance(method, QFFL) else method
    losses, norms = rng.gamma(1, 2, n), rng.gamma(1, 2, n)
    losses[0] = 0
    state, present = method.init(spec(n)), np.ones(n, bool)
    for turn in range(3):
        got = weigh(method, losses, norms, state=state, present=present)
        assert np.all(got.factors[present] == 1)
        assert got.scale == 1
        state, present = got.state, np.arange(n) % (2 + turn) == 0
        losses[-1], norms[n // 2] = np.nan, np.inf


@pytest.mark.parametrize(
    "method",
    [
        QFFL(q=2, lipschitz=3, cap=2),
        TERM(tilt=-1.5),
        AFL(rate=0.1),
        TailRisk(alpha=0.6),
        TailRisk(alpha=0.6, sets=HALVES),
    ],
    ids=repr,
)
def test_absent_slots_do_not_matter(method):
    rng = np.random.default_rng(3)
    losses, norms = rng.gamma(1, 2, 9), rng.gamma(1, 2, 9)
    present = np.array([1, 1, 0, 1, 0, 0, 1, 1, 0], bool)
    ids = np.where(present, [3, 0, 9, 8, 9, 9, 1, 2, 9], 9)
    state = method.init(spec(9))
    alone = weigh(method, losses[present], norms[present], state=state, client_ids=ids[present])
    for junk in (0, 1e30, np.nan, np.inf, -np.inf):
        filled = np.where(present, losses, junk), np.where(present, norms, junk)
        got = weigh(method, *filled, state=state, present=present, client_ids=ids)
        np.testing.assert_allclose(got.factors[present], alone.factors, rtol=1e-6)
        np.testing.assert_allclose(got.scale, alone.scale, rtol=1e-6)
        assert np.isfinite(got.factors).all()
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), got.state, alone.state
        )
    # An empty slot may also carry another client's number.
    got = weigh(
        method, losses, norms, state=state, present=present, client_ids=np.where(present, ids, 3)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), got.state, alone.state)
    nobody = weigh(method, losses * np.nan, norms, state=state, present=np.zeros(9, bool))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(nobody))


@pytest.mark.parametrize(
    "method", [QFFL(q=2, lipschitz=3), TERM(tilt=0.7), AFL(rate=0.1), TailRisk(alpha=0.7)]
)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("what", ["loss", "norm", "both"])
def test_a_client_that_is_not_finite_counts_as_the_worst(method, bad, what):
    losses, norms = np.array([0.3, 1.2, 0.8, 2.0, 0.1]), np.array([1.0, 2, 3, 4, 5])
    repaired, good = losses.copy(), np.arange(5) != 2
    repaired[2] = 2.0
    if what != "norm":
        losses[2] = bad
    if what != "loss":
        losses[2] = bad if what == "both" else 1e30
        norms[2] = bad
    got = weigh(method, losses, norms)
    expected = weigh(method, repaired, np.ones(5))
    np.testing.assert_allclose(got.factors, expected.factors, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got.state, expected.state
    )
    scale = 1
    if isinstance(method, QFFL):
        scale = 4 / h_of(losses[good], norms[good], 2, 1 / 3).sum()
    np.testing.assert_allclose(got.scale, scale, rtol=1e-5)


@pytest.mark.parametrize(
    "method", [QFFL(q=2, lipschitz=3, cap=3), TERM(tilt=0.7), AFL(rate=0.1), TailRisk(alpha=0.5)]
)
def test_nobody_finite_is_the_plain_round(method):
    got = weigh(method, [np.nan, np.inf, -np.inf], [np.inf, 1, 2])
    assert np.all(got.factors == 1)
    assert got.scale == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got.state))


@pytest.mark.parametrize("tilt", [-3, -0.1, 0.5, 20])
def test_term_is_a_softmax(tilt):
    rng = np.random.default_rng(1)
    losses, present = rng.gamma(1, 2, 10), np.arange(10) % 3 != 0
    weights = np.exp(tilt * losses) * present
    with jax.enable_x64(True):
        got = weigh(TERM(tilt=tilt), losses, dtype=np.float64, present=present)
    np.testing.assert_allclose(got.factors, 6 * weights / weights.sum(), rtol=1e-9)
    assert got.scale == 1
    assert got.state == ()


def test_term_s_factors_are_the_gradient_of_its_objective():
    losses, tilt = jnp.asarray([0.3, 1.2, 0.8, 2.0]), 1.7
    gradient = jax.grad(lambda f: jax.nn.logsumexp(tilt * f) / tilt)(losses)
    np.testing.assert_allclose(weigh(TERM(tilt=tilt), losses).factors / 4, gradient, rtol=1e-5)


def tail_factors(losses, sets, masses, alpha):
    """n times the slope of ``min_t t + E (L_S - t)_+ / (1 - alpha)``: the least t is one of L_S."""
    means = np.array([losses[s > 0].mean() for s in sets])
    masses = masses / masses.sum()
    t = min(means, key=lambda t: t + masses @ np.maximum(means - t, 0) / (1 - alpha))
    q = np.where(means > t, masses, 0) / (1 - alpha)
    q[np.argmax(means == t)] = 1 - q.sum()
    return len(losses) * q @ (sets / sets.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.75, 0.9, 0.999])
def test_tail_risk_has_the_slope_of_the_conditional_value_at_risk(alpha):
    rng = np.random.default_rng(8)
    for n, k in ((4, 3), (9, 40), (6, 1)):
        losses, masses = rng.gamma(1, 2, n), rng.gamma(1, 1, k)
        sets = rng.random((k, n)) < 0.6
        sets[:, 0] |= ~sets.any(axis=1)
        sets = sets.astype(float)
        method = TailRisk(alpha=alpha, sets=sets, probabilities=masses)
        with jax.enable_x64(True):
            got = weigh(method, losses, dtype=np.float64)
            slope = jax.grad(tail_objective)(
                jnp.asarray(losses),
                jnp.asarray(sets > 0),
                jnp.asarray(masses / masses.sum()),
                alpha,
            )
        np.testing.assert_allclose(got.factors, tail_factors(losses, sets, masses, alpha), 1e-9)
        np.testing.assert_allclose(got.factors / n, slope, rtol=1e-9, atol=1e-12)
        assert got.factors.max() <= n / sets.sum(axis=1).min() + 1e-9
        assert got.scale == 1


@pytest.mark.parametrize("f", [0, 1, 3, 6])
def test_tail_risk_without_sets_goes_from_the_mean_to_the_worst_case(f):
    losses = np.random.default_rng(9).gamma(1, 2, 8)
    got = weigh(TailRisk(alpha=f / 8), losses).factors
    largest = losses >= np.sort(losses)[f]
    np.testing.assert_allclose(got, np.where(largest, 8 / (8 - f), 0), rtol=1e-6)
    slope = jax.grad(worst_objective)(jnp.asarray(losses, jnp.float32), f)
    np.testing.assert_allclose(got / 8, slope, rtol=1e-6)


def test_tail_risk_of_a_law_goes_from_its_expectation_to_its_worst_set():
    law = IndependentHonesty(probabilities=np.linspace(0.55, 0.95, 8))
    losses = np.random.default_rng(10).gamma(1, 2, 8)
    expected = 8 * law.moments().weights
    np.testing.assert_allclose(
        weigh(tail_risk(law, alpha=0.0), losses).factors, expected, rtol=1e-5
    )
    sets, _ = law.support()
    worst = max(sets, key=lambda s: losses[s].mean())
    got = weigh(tail_risk(law, alpha=0.999999), losses).factors
    np.testing.assert_allclose(got, 8 * worst / worst.sum(), rtol=1e-4, atol=1e-6)


def test_tail_risk_counts_equal_losses_alike():
    losses = np.array([2.0, 1, 2, 3, 2])
    got = weigh(TailRisk(alpha=0.5), losses).factors
    np.testing.assert_allclose(got, [1, 0, 1, 2, 1], rtol=1e-6)


@pytest.mark.parametrize("tilt", [-1e3, -1, 0, 1, 1e3, 1e30])
def test_term_and_afl_are_finite_for_extreme_losses(tilt):
    huge = float(np.finfo(np.float32).max)
    for losses in (SPREAD, [huge, 1, huge, 0], [huge, -huge, 0, 1]):
        got = weigh(TERM(tilt=tilt), losses).factors
        assert np.isfinite(got).all()
        assert float(jnp.sum(got)) == pytest.approx(len(losses), rel=1e-5)
        after = weigh(AFL(rate=abs(tilt)), losses).state
        assert float(jnp.sum(after)) == pytest.approx(1, rel=1e-5)
        assert np.all(after >= 0)


def test_afl_s_rounds():
    """Cohorts of 4 of 10 clients, sometimes one absent, for 30 rounds."""
    rng, method = np.random.default_rng(2), AFL(rate=0.05)
    weights = np.full(10, 0.1)
    with jax.enable_x64(True):
        state = method.init(spec(10, 4, np.float64))
        for turn in range(30):
            ids, losses = rng.permutation(10)[:4], rng.gamma(1, 2, 4)
            present = np.arange(4) != turn % 7
            known = {"client_ids": np.where(present, ids, 10), "present": present}
            got = weigh(method, losses, state=state, dtype=np.float64, **known)
            own = weights[ids] * present
            expected = present.sum() * own / own.sum() if own.sum() else np.ones(4)
            np.testing.assert_allclose(
                got.factors[present], expected[present], rtol=1e-9, atol=1e-12
            )
            weights[ids[present]] += 0.05 * losses[present]
            weights, state = simplex(weights), got.state
            np.testing.assert_allclose(state, weights, rtol=1e-9, atol=1e-12)
    assert np.sum(weights == 0) > 0


@pytest.mark.parametrize(("cohort", "rate"), [(6, 0.2), (4, 0.01)])
def test_afl_ends_at_the_worst_client(cohort, rate):
    losses = jnp.asarray([0.5, 1.0, 0.2, 1.4, 0.9, 1.3])

    def turn(state, key):
        ids = jax.random.permutation(key, 6)[:cohort]
        context = Context.of(cohort, client_ids=ids)
        own = losses[ids]
        state = AFL(rate=rate).weigh(own, own, True, state, context).state
        return state, state

    keys = jax.random.split(jax.random.key(0), 2000)
    end, states = jax.lax.scan(turn, AFL(rate=rate).init(spec(6)), keys)
    if cohort == 6:
        np.testing.assert_array_equal(end, losses == 1.4)
    else:
        # Who is absent loses weight, so lambda is the worst client's on average only.
        assert int(jnp.argmax(states[1000:].mean(axis=0))) == 3


def test_afl_s_cohort_without_weight_is_averaged():
    state = jnp.asarray([1.0, 0, 0, 0])
    got = weigh(AFL(rate=0.1), [1, 2], state=state, client_ids=np.array([1, 3]))
    np.testing.assert_array_equal(got.factors, [1, 1])
    assert float(got.state[3]) > float(got.state[1]) > 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64, jnp.bfloat16])
def test_types_survive_a_scan(dtype):
    """scan itself refuses a state whose type changes."""
    with jax.enable_x64(True):
        methods = QFFL(q=1, lipschitz=1, cap=3), AFL(rate=0.1), TERM(tilt=1), TailRisk(alpha=0.5)
        for method in methods:

            def body(state, losses, method=method):
                weighed = method.weigh(losses, losses, False, state, Context.of(4))
                return weighed.state, (weighed.factors, weighed.scale)

            start = method.init(spec(4, dtype=dtype))
            losses = jax.ShapeDtypeStruct((3, 4), dtype)
            _, (factors, scale) = jax.eval_shape(
                lambda s, x, body=body: jax.lax.scan(body, s, x), start, losses
            )
            wide = np.float64 if dtype == np.float64 else np.float32
            assert factors.dtype == scale.dtype == wide
            assert all(leaf.dtype == wide for leaf in jax.tree.leaves(start))


def test_numbers_are_swept_by_vmap():
    rng = np.random.default_rng(5)
    losses, norms = (jnp.asarray(rng.gamma(1, 2, 6), jnp.float32) for _ in range(2))
    many = QFFL(q=np.array([0, 0.5, 5]), lipschitz=np.array([1, 2, 3]), cap=np.array([1, 2, 3]))

    @jax.jit
    def one(method):
        return method.weigh(losses, norms, True, (), Context.of(6))

    swept = jax.vmap(one)(many)
    for i in range(3):
        alone = one(jax.tree.map(lambda leaf, i=i: leaf[i], many))
        np.testing.assert_allclose(swept.factors[i], alone.factors, rtol=1e-6)
        np.testing.assert_allclose(swept.scale[i], alone.scale, rtol=1e-6)
    assert np.all(swept.factors[0] == 1)
    assert swept.scale[0] == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QFFL(q=-0.1, lipschitz=1), "QFFL: q must be at least 0"),
        (lambda: QFFL(q=1, lipschitz=0), "QFFL: lipschitz must be above 0"),
        (lambda: QFFL(q=1, lipschitz=1, cap=0), "QFFL: cap must be at least 1"),
        (lambda: AFL(rate=-1), "AFL: rate must be at least 0"),
        (lambda: TERM(tilt=np.nan), "TERM: tilt must be finite"),
        (lambda: TailRisk(alpha=1), "TailRisk: alpha must be at least 0 and below 1"),
        (lambda: TailRisk(alpha=0, sets=2 * HALVES), "sets must be at least 0 and at most 1"),
        (lambda: TailRisk(alpha=0, sets=HALVES).check(8), r"masks \[k, 8\] of the population"),
        (lambda: TailRisk(alpha=0, sets=0 * HALVES).check(9), "none of them empty"),
        (lambda: TailRisk(alpha=0, sets=HALVES[0]).check(9), r"masks \[k, 9\]"),
        (
            lambda: TailRisk(alpha=0, sets=HALVES, probabilities=np.ones(2)).check(9),
            r"3 numbers, one per set and not all 0; got shape \(2,\)",
        ),
        (
            lambda: TailRisk(alpha=0, sets=HALVES, probabilities=np.zeros(3)).check(9),
            "one per set and not all 0",
        ),
        (lambda: TailRisk(alpha=0, probabilities=np.ones(3)).check(9), "and there are none"),
    ],
)
def test_bad_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_base_is_abstract():
    assert TERM(tilt=1.0).init(spec(3)) == ()  # inherited
    with pytest.raises(TypeError, match=r"abstract method '?weigh"):
        Fairness()


positive = st.lists(st.floats(2**-20, 2**14, width=32), min_size=2, max_size=12)


@settings(deadline=None, max_examples=50)
@given(losses=positive, low=st.floats(0, 4), more=st.floats(0.1, 2))
def test_a_larger_q_or_tilt_puts_more_weight_on_larger_losses(losses, low, more):
    losses = np.pad(losses, (0, 12 - len(losses)), mode="edge").astype(np.float32)
    order = np.argsort(losses, kind="stable")
    for name, method in (("q", QFFL(q=0, lipschitz=1)), ("tilt", TERM(tilt=0))):
        less, greater = (
            np.asarray(weigh(method.replace(**{name: value}), losses).factors, np.float64)[order]
            for value in (low, low + more)
        )
        # The worst clients' share of the weight, of however many of them.
        heavier, lighter = (np.cumsum(f[::-1]) / f.sum() for f in (greater, less))
        assert np.all(heavier >= lighter - 1e-5)
        assert np.all(np.diff(greater) >= 0)


@settings(deadline=None, max_examples=50)
@given(
    start=st.lists(st.floats(0, 1, width=32), min_size=6, max_size=6).filter(
        lambda x: sum(x) > 0.1
    ),
    losses=st.lists(st.floats(0, width=32), min_size=4, max_size=4),
    present=st.lists(st.booleans(), min_size=4, max_size=4),
    rate=st.sampled_from([0.0, 1e-3, 1.0, 1e6]),
)
def test_afl_stays_in_the_simplex(start, losses, present, rate):
    state = jnp.asarray(np.array(start) / np.sum(start), jnp.float32)
    known = {"client_ids": np.array([4, 0, 2, 5]), "present": np.array(present)}
    after = np.asarray(weigh(AFL(rate=rate), losses, state=state, **known).state)
    assert np.all(after >= 0)
    assert after.sum() == pytest.approx(1, rel=1e-5)


def metrics_of(accuracy, counted):
    """Of the definitions, with means over pairs of clients for Gini."""
    x = np.sort(accuracy[counted & ~np.isnan(accuracy)])
    k, tenth = len(x), -(-np.sum(counted & ~np.isnan(accuracy)) // 10)
    shares = x / x.sum() if x.sum() else np.full(k, 1 / k)
    logs = np.log(shares, where=shares > 0, out=np.zeros(k))
    pairs = np.abs(x[:, None] - x[None, :]).mean()
    return {
        "mean": np.mean(x),
        "variance": np.var(x),
        "worst_tenth": np.mean(x[:tenth]),
        "best_tenth": np.mean(x[k - tenth :]),
        "entropy": -np.sum(shares * logs) / np.log(k) if k > 1 else 1,
        "gini": pairs / (2 * np.mean(x)) if x.sum() else 0,
        "jain": np.sum(x) ** 2 / (k * np.sum(x**2)) if x.sum() else 1,
    }


@pytest.mark.parametrize("clients", [1, 2, 9, 10, 11, 30, 101])
def test_metrics(clients):
    rng = np.random.default_rng(clients)
    draws = [rng.beta(5, 2, clients), rng.integers(0, 3, clients) / 2, np.eye(clients)[0]]
    for accuracy in draws:
        for counted in (np.ones(clients, bool), np.arange(clients) % 3 < 2):
            measured = np.where(rng.random(clients) < 0.1, np.nan, accuracy)
            measured[0] = accuracy[0]
            expected = metrics_of(measured, counted)
            with jax.enable_x64(True):
                double = measured_fairness(jnp.asarray(measured), jnp.asarray(counted))
            single = measured_fairness(jnp.asarray(measured, jnp.float32), jnp.asarray(counted))
            for name in METRICS:
                value = getattr(double, name)
                np.testing.assert_allclose(
                    value, expected[name], rtol=1e-9, atol=1e-12, err_msg=name
                )
                value = getattr(single, name)
                np.testing.assert_allclose(
                    value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name
                )


@pytest.mark.parametrize("level", [0.0, 1e-30, 0.3, 1.0])
@pytest.mark.parametrize("clients", [1, 7, 100])
def test_equal_accuracies_are_perfectly_fair(level, clients):
    got = measured_fairness(jnp.full(clients, level, jnp.float32), jnp.ones(clients, bool))
    np.testing.assert_allclose(got.entropy, 1, atol=1e-6)
    np.testing.assert_allclose(got.gini, 0, atol=1e-6)
    np.testing.assert_allclose(got.jain, 1, atol=1e-6)
    np.testing.assert_allclose([got.worst_tenth, got.best_tenth], level, rtol=1e-6)
    np.testing.assert_allclose(got.variance, 0, atol=1e-12)


def test_metrics_of_nobody_are_nan_and_vmap_works():
    accuracy = jnp.asarray([[0.5, 1.0, 0.0], [np.nan] * 3, [0.2, 0.4, np.nan]])
    counted = jnp.asarray([[True, True, False], [True] * 3, [True, True, True]])
    got = jax.jit(jax.vmap(fairness_metrics))(accuracy, counted)
    for name in METRICS:
        values = np.asarray(getattr(got, name))
        assert np.isnan(values[1])
        expected = [
            metrics_of(np.asarray(accuracy)[i], np.asarray(counted)[i])[name] for i in (0, 2)
        ]
        np.testing.assert_allclose(values[[0, 2]], expected, rtol=1e-5, atol=1e-7)


@settings(deadline=None, max_examples=50)
@given(data=st.data(), values=st.lists(st.integers(0, 1000), min_size=20, max_size=20))
def test_metrics_have_their_ranges_whatever_the_order(data, values):
    accuracy = np.array(values, np.float32) / 1000
    counted = np.array(data.draw(st.lists(st.booleans(), min_size=20, max_size=20)))
    counted[0] = True
    order = np.array(data.draw(st.permutations(range(20))))
    got = measured_fairness(jnp.asarray(accuracy), jnp.asarray(counted))
    other = measured_fairness(jnp.asarray(accuracy[order]), jnp.asarray(counted[order]))
    jax.tree.map(np.testing.assert_array_equal, got, other)
    k = counted.sum()
    assert 0 <= got.entropy <= 1
    assert 0 <= got.gini <= 1 - 1 / k + 1e-5
    assert 1 / k - 1e-5 <= got.jain <= 1
    assert got.worst_tenth <= got.mean + 1e-6
    assert got.mean <= got.best_tenth + 1e-6
    assert 0 <= got.variance <= 0.25 + 1e-6


def most_unlike(histogram, counted, size):
    shares = histogram[counted] / histogram[counted].sum(axis=1, keepdims=True)
    distances = np.abs(shares - shares.mean(axis=0)).sum(axis=1) / 2
    chosen = np.flatnonzero(counted)[np.lexsort((np.arange(len(shares)), -distances))[:size]]
    return np.isin(np.arange(len(histogram)), chosen)


@pytest.mark.parametrize(("clients", "share", "size"), [(15, 0.2, 3), (11, 0.2, 3), (100, 0.07, 7)])
def test_minority_is_farthest_from_the_mean_distribution(clients, share, size):
    rng = np.random.default_rng(clients)
    histogram = np.round(200 * rng.dirichlet(np.full(4, 0.5), clients + 4)) * rng.integers(
        1, 9, (clients + 4, 1)
    )
    counted = np.arange(clients + 4) >= 3
    histogram[clients + 3] = 0
    effective = counted & (histogram.sum(axis=1) > 0)
    assert effective.sum() == clients
    got = farthest(jnp.asarray(histogram, jnp.float32), jnp.asarray(counted), share=share)
    np.testing.assert_array_equal(got, most_unlike(histogram, effective, size))


def test_minority_s_ties_go_by_number():
    eye = jnp.asarray(np.eye(10)[np.random.default_rng(0).permutation(10)] * 7, jnp.float32)
    got = farthest(eye, jnp.ones(10, bool), share=0.3)
    np.testing.assert_array_equal(got, np.arange(10) < 3)
    got = farthest(eye, jnp.asarray(np.arange(10) % 2 == 1))
    np.testing.assert_array_equal(got, np.arange(10) == 1)


def test_minority_of_nobody_and_everybody():
    histogram = jnp.asarray([[3.0, 1.0], [1.0, 3.0], [0.0, 0.0]])
    everyone, nobody = jnp.asarray([True] * 3), jnp.asarray([False] * 3)
    assert not farthest(histogram, nobody, share=0.2).any()
    assert not farthest(jnp.zeros((3, 2)), everyone, share=0.2).any()
    whole = farthest(histogram, everyone, share=1.0)
    np.testing.assert_array_equal(whole, [True, True, False])
    assert not farthest(histogram, everyone, share=0.0).any()
    with pytest.raises(ValueError, match=r"share must be at least 0 and at most 1; got 1\.5"):
        minority(histogram, everyone, 1.5)


@pytest.mark.parametrize("gradients", [True, False])
def test_qffl_shows_its_h(gradients):
    losses, squares, q, smooth = (
        np.array([0.5, 2.0, 1.0, np.nan]),
        np.array([1.0, 4, 9, 1]),
        2.0,
        3.0,
    )
    weighed = weigh(QFFL(q=q, lipschitz=smooth), losses, squares, gradients=gradients)
    c = 1 / smooth if gradients else smooth
    h = losses**q * (1 + c * q * squares / losses) / 2.0**q
    np.testing.assert_allclose(weighed.h, np.nan_to_num(h), rtol=1e-5)
