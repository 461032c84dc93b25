"""Barrier clipping that learns whom to trust, beside NumPy; its solver beside the offline one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfl
from jaxfl.aggregators import BarrierClipping, ReputationClipping
from jaxfl.aggregators.portfolio import barrier_portfolio, on_simplex
from jaxfl.aggregators.reputation import Reputation
from jaxfl.robustness import allocation
from jaxfl.types import Context, Spec

N, D, ROUNDS = 9, 30, 12


@pytest.mark.parametrize("cap", [1.0, 1.25])
@pytest.mark.parametrize("penalty", [0.0, 0.5, 5.0])
def test_the_portfolio_in_the_program_is_the_one_offline(cap, penalty):
    random = np.random.default_rng(0)
    honesty = random.uniform(0.3, 0.99, N)
    sets = random.random((400, N)) < honesty
    sets = sets[2 * sets.sum(axis=1) > N]
    masses = random.dirichlet(np.ones(len(sets)))
    weights = masses @ (sets / sets.sum(axis=1, keepdims=True))
    top = 1.0 if cap == 1 else cap / N
    want = allocation.barrier_portfolio(sets, masses, weights, penalty=penalty, cap=top)
    got = jax.jit(barrier_portfolio, static_argnums=5)(
        jnp.asarray(~sets, jnp.float32),
        *(jnp.asarray(x, jnp.float32) for x in (masses, weights, penalty, top)),
        50,
    )
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert np.ptp(want) > 1e-2


def test_the_projection_is_the_nearest_point():
    random = np.random.default_rng(1)
    for point in random.normal(size=(20, 6)):
        got = on_simplex(jnp.asarray(point, jnp.float32), jnp.float32(0.3))
        np.testing.assert_allclose(got, allocation.on_simplex(point, 0.3), atol=1e-6)


def rounds(rule, updates, present):
    """The rule's answers and memories over rounds; absent clients are left out."""
    state = rule.init(Spec(population=N, cohort=N, dim=D, dtype=jnp.dtype("float32")))
    step = jax.jit(rule.checked)
    for number, (now, here) in enumerate(zip(updates, present, strict=True)):
        context = Context(
            key=jax.random.key(number),
            round=jnp.int32(number),
            weights=jnp.full(N, 1 / N),
            client_ids=jnp.where(here, jnp.arange(N), N),
            learning_rate=jnp.ones(()),
            present=jnp.asarray(here),
        )
        answer = step(jnp.asarray(now), state, context)
        state = answer.state
        yield answer, state


@pytest.fixture(scope="module")
def run():
    """Client 8 is far in every round, client 7 from round 6 on; 0 is absent in every third."""
    random = np.random.default_rng(2)
    updates = random.normal(size=(ROUNDS, N, D)).astype("f4")
    updates[:, 8] += 50
    updates[6:, 7] += 50
    present = np.ones((ROUNDS, N), bool)
    present[::3, 0] = False
    return updates, present


def test_it_remembers_who_was_far(run):
    updates, present = run
    rule = ReputationClipping(decay=0.9, every=100)
    near, far = np.zeros(N), np.zeros(N)
    for number, (answer, state) in enumerate(rounds(rule, updates, present)):
        plain = BarrierClipping().inspect(updates[number][present[number]])
        np.testing.assert_allclose(answer.update, plain.update, atol=1e-5)  # weights still equal
        scores = np.full(N, np.inf)
        scores[present[number]] = plain.info.scores
        for client in np.flatnonzero(present[number]):
            near[client] = 0.9 * near[client] + (scores[client] <= 2)
            far[client] = 0.9 * far[client] + (scores[client] > 2)
        np.testing.assert_allclose(state.near, near, rtol=1e-5)
        np.testing.assert_allclose(state.far, far, rtol=1e-5)
    assert far[8] > 7
    assert far[7] > 4
    assert far[:7].max() < 1


def test_weights_follow_what_was_seen(run):
    *_, (_, state) = rounds(ReputationClipping(every=4), *run)
    weights = np.asarray(state.weights)
    assert weights.sum() == pytest.approx(1)
    assert weights.max() <= 1.25 / N + 1e-6
    assert weights[8] < 0.4 * weights[:7].min()
    assert weights[7] < 0.8 * weights[:7].min()
    # As the offline solver has it, from other drawn scenarios of the same beliefs.
    near, far = (np.asarray(x, np.float64) for x in (state.near, state.far))
    honesty = np.clip((1 + near) / (2 + near + far), 0.05, 0.99)
    random = np.random.default_rng(3)
    believed = random.random((20_000, N)) < honesty
    believed = believed[2 * believed.sum(axis=1) > N]
    doubted = np.argsort(random.random((20_000, N)), axis=1) >= 3
    sets = np.concatenate([believed, doubted])
    masses = np.concatenate(
        [np.full(len(s), m / len(s)) for s, m in ((believed, 0.7), (doubted, 0.3))]
    )
    shares = masses @ (sets / sets.sum(axis=1, keepdims=True))
    want = allocation.barrier_portfolio(sets, masses, shares, cap=1.25 / N)
    np.testing.assert_allclose(weights, want, atol=0.02)


def test_who_behaves_first_gains_no_more_than_the_cap(run):
    """Three of nine are nearer than anybody for long: without a cap they would hold half."""
    random = np.random.default_rng(4)
    updates = random.normal(size=(40, N, D)).astype("f4")
    updates[:, 3:] *= np.linspace(1, 9, 6, dtype="f4")[:, None]
    present = np.ones((40, N), bool)
    held = {}
    for name, rule in {
        "bounded": ReputationClipping(every=20),
        "free": ReputationClipping(every=20, cap=float(N), doubt=0.0),
    }.items():
        *_, (_, state) = rounds(rule, updates, present)
        held[name] = float(state.weights[:3].sum())
    assert held["bounded"] <= 1.25 * 3 / N + 1e-5
    assert held["free"] > held["bounded"] + 0.1


def test_given_weights_are_those_of_the_first_rounds():
    given = np.linspace(1, 2, N)
    rule = ReputationClipping(weights=given)
    state = rule.init(Spec(population=N, cohort=N, dim=D, dtype=jnp.dtype("float32")))
    assert isinstance(state, Reputation)
    np.testing.assert_allclose(state.weights, given / given.sum(), rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cap": 0.9}, "cap must be .*1"),
        ({"every": 0}, "every must be"),
        ({"doubt": 1.5}, "doubt must be"),
        ({"decay": -0.1}, "decay must be"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        jaxfl.ReputationClipping(**fields)
