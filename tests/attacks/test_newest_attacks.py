"""MPAF, PoisonedFL, ROP and the hybrid sparse attack against plain NumPy; windows and lifespans."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import NumpySoftmax, client_arrays, ragged
from scipy.stats import binom

from jaxfl import SGD, FedAvg, Federation
from jaxfl.aggregators import Mean
from jaxfl.attacks import (
    ALIE,
    MPAF,
    ROP,
    Attack,
    Combined,
    Mixed,
    Neurotoxin,
    Onset,
    PoisonedFL,
    SignFlip,
    Sparse,
    TimeVarying,
)
from jaxfl.attacks.base import attack_rows
from jaxfl.attacks.views import Defence
from jaxfl.component import capability
from jaxfl.durability import durability
from jaxfl.models import Objective, Softmax
from jaxfl.plan import make_plan
from jaxfl.round import answer, exchanged, receive
from jaxfl.state import init_state
from jaxfl.types import Context, Segment, Spec

N, D, MOST, RATE = 9, 30, 3, 0.5
BYZANTINE = np.isin(np.arange(N), [1, 4, 5])
LAYERS = (
    Segment("a.bias", 0, (4,), "bias"),
    Segment("a.kernel", 4, (5, 4), "kernel"),
    Segment("b.kernel", 24, (3, 2), "kernel"),
)


@jax.jit
def one_round(attack, x, byzantine, params, when, state, key):
    known = {"params": params, "round": when, "learning_rate": jnp.asarray(RATE)}
    context = Context.of(N, segments=LAYERS, **known)
    defence = Defence(aggregator=Mean(), state=(), context=context)
    return attack_rows(attack, x, byzantine, state, context, key, defence, MOST)


class Run:
    """An attack's crafted rows, round by round, in double precision."""

    def __init__(self, attack):
        self.attack, self.turn = attack, 0
        with jax.enable_x64(True):
            self.state = attack.init(Spec(N, N, D, MOST, np.dtype("f8")))

    def sends(self, x, params, byzantine=BYZANTINE):
        with jax.enable_x64(True):
            given = *map(jnp.asarray, (x, byzantine, params)), jnp.asarray(self.turn, jnp.int32)
            rows, self.state = one_round(self.attack, *given, self.state, jax.random.key(self.turn))
        self.turn += 1
        rows = np.asarray(rows)
        np.testing.assert_array_equal(rows[~byzantine], x[~byzantine])
        assert (rows[byzantine] == rows[1]).all()
        return rows[1]


def draw(seed):
    return np.random.default_rng(seed).normal(size=(N, D)) + 0.3


def walk(seed, steps):
    return np.cumsum(np.random.default_rng(seed).normal(size=(steps, D)), axis=0)


@pytest.mark.parametrize("base", ["initial", "random"])
def test_mpaf(base):
    run, path = Run(MPAF(factor=3.0, base=base)), walk(0, 4)
    for turn, params in enumerate(path):
        sent = run.sends(draw(turn), params)
        target = params - RATE * sent / 3.0
        if turn == 0:
            first = target
        np.testing.assert_allclose(target, first, atol=1e-12)
    # A server that takes 1 / factor of that step is at the base model.
    same = np.allclose(first, path[0])
    assert same == (base == "initial")
    for a, b in ((0, 4), (4, 24), (24, 30)):
        np.testing.assert_allclose(np.sort(first[a:b]), np.sort(path[0][a:b]))


@pytest.mark.parametrize("attack", [MPAF(factor=3.0), PoisonedFL(), ROP(z=1.0)])
def test_at_a_rate_of_nothing_what_is_sent_is_finite(monkeypatch, attack):
    monkeypatch.setitem(globals(), "RATE", 0.0)
    one_round.clear_cache()
    run = Run(attack)
    for turn, params in enumerate(walk(0, 3)):
        assert np.isfinite(run.sends(draw(turn), params)).all()
    one_round.clear_cache()


class FakeClients:
    """PoisonedFL, from its authors' description, with the signs it has drawn."""

    def __init__(self, signs, factor, period, decay, least):
        self.signs, self.factor, self.period = signs, factor, period
        self.decay, self.least, self.turn = decay, least, 0
        self.pushed = np.zeros(D)

    def sends(self, w, sampled=True):
        if self.turn == 0:
            self.before, self.turn = w, 1
            return np.zeros(D)
        if (self.turn - 1) % self.period == 0:
            self.start = w
        if self.turn % self.period == 0:
            moved = np.where(w == self.start, w, w - self.start)
            least = next(k for k in range(D + 1) if binom.sf(k, D, 0.5) < 0.01)
            # The normal approximation of the paper's constants, within one of the exact point.
            quantile = int(np.ceil(D / 2 + 2.3263 * np.sqrt(D) / 2))
            assert abs(least - quantile) <= 1
            if np.sum(np.sign(moved) == self.signs) < quantile:
                smaller = self.decay * self.factor
                self.factor = smaller if smaller >= self.least else self.factor
        g = w - self.before
        v = np.abs(g - self.pushed * np.linalg.norm(g) / (np.linalg.norm(self.pushed) + 1e-9))
        v /= np.linalg.norm(v) + 1e-9
        if sampled:
            self.pushed = self.factor * np.linalg.norm(g) * v * self.signs
        self.before, self.turn = w, self.turn + 1
        return self.pushed


@pytest.mark.parametrize("follows", [False, True])
def test_poisoned_fl(follows):
    """A model that does not give way weakens the push, down to a limit; one that does, does not."""
    attack = PoisonedFL(factor=2.0, period=3, decay=0.7, least=0.9)
    run, path, mine = Run(attack), walk(1, 12), None
    extra = np.zeros(D)
    for turn, params in enumerate(path):
        sent = run.sends(draw(turn), params + extra)
        if turn == 0:
            assert set(np.unique(run.state.signs)) == {-1, 1}
            mine = FakeClients(np.asarray(run.state.signs), 2.0, 3, 0.7, 0.9)
        pushed = mine.sends(params + extra)
        np.testing.assert_allclose(sent, -pushed / RATE, rtol=1e-6, atol=1e-9)
        if turn:
            assert (-sent * mine.signs >= 0).all()
        if follows:
            extra = extra + 20 * mine.signs
    # 2, then 1.4 and 0.98; 0.686 would be below the least.
    assert mine.factor == (2.0 if follows else pytest.approx(0.98))


def test_poisoned_fl_watches_the_model_while_another_attack_has_its_turn():
    """g is the move of the last round, not that since its own last turn."""
    attack = TimeVarying(attacks=(PoisonedFL(period=3), ALIE(z=1.0)), seed=1)
    run, path, mine, waited = Run(attack), walk(5, 16), None, 0
    for turn, params in enumerate(path):
        sent = run.sends(draw(turn), params)
        with jax.enable_x64(True):
            poisons = int(attack.turn(turn)) == 0
        if poisons:
            if mine is None:
                mine = FakeClients(np.asarray(run.state[0].signs), 8.0, 3, 0.7, 0.5)
            np.testing.assert_allclose(sent, -mine.sends(params) / RATE, rtol=1e-6, atol=1e-9)
        elif mine is not None:
            mine.before, waited = params, waited + 1
    assert mine.turn > 3
    assert waited > 3


def test_poisoned_fl_remembers_what_it_last_asked_for():
    """A round in which no fake client is sampled asks for nothing: the last push stays."""
    run, path, mine = Run(PoisonedFL(period=3)), walk(6, 10), None
    for turn, params in enumerate(path):
        sampled = turn not in (2, 3, 6)
        sent = run.sends(draw(turn), params, BYZANTINE & sampled)
        if mine is None:
            mine = FakeClients(np.asarray(run.state.signs), 8.0, 3, 0.7, 0.5)
        pushed = mine.sends(params, sampled)
        if sampled:
            np.testing.assert_allclose(sent, -pushed / RATE, rtol=1e-6, atol=1e-9)


def test_poisoned_fl_by_hand():
    """g = (3, 4), asked for last (1, 0), signs (1, -1): 40 (1, -2) / sqrt 5, over the rate."""
    run = Run(PoisonedFL())
    run.sends(draw(0), np.zeros(D))
    two = np.eye(D)[:2]
    signs = np.where(np.arange(D) == 1, -1.0, 1.0)
    run.state = run.state.replace(signs=signs, pushed=two[0])
    sent = run.sends(draw(1), 3 * two[0] + 4 * two[1])
    expected = np.zeros(D)
    expected[:2] = -40 / RATE * np.array([1, -2]) / np.sqrt(5)
    np.testing.assert_allclose(sent, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("angle", [270.0, 90.0, 180.0, 30.0])
def test_rop(angle):
    attack = ROP(z=2.5, angle=angle, relocation=0.8, inertia=0.7)
    run, path = Run(attack), walk(2, 3)
    for turn, params in enumerate(path):
        x = draw(turn)
        mean = x[~BYZANTINE].mean(axis=0)
        last = (path[turn - 1] - params) / RATE if turn else np.zeros(D)
        r = 0.7 * last + 0.3 * mean if turn else mean
        place = 0.8 * last + 0.2 * mean
        q = 1 - r * r.sum() / (r @ r)
        turned = np.deg2rad(angle)
        p = np.sin(turned) * q / np.linalg.norm(q) + np.cos(turned) * r / np.linalg.norm(r)
        sent = run.sends(x, params)
        np.testing.assert_allclose(sent, place + 2.5 * p / np.linalg.norm(p), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(np.linalg.norm(sent - place), 2.5)
        if angle in (90, 270):
            np.testing.assert_allclose((sent - place) @ r, 0, atol=1e-9)


def test_the_sparse_attack():
    attack = Sparse(strength=4.0, z=0.5, fraction=0.2)
    run, path, mask = Run(attack), walk(3, 3), np.zeros(D, bool)
    for turn, params in enumerate(path):
        x = draw(turn)
        honest = x[~BYZANTINE]
        mean, std = honest.mean(axis=0), honest.std(axis=0, ddof=1)
        if turn == 0:
            saliency = np.abs(params * mean)
            for a, b, count in ((4, 24, 4), (24, 30, 1)):
                mask[a + np.argsort(-saliency[a:b])[:count]] = True
        expected = mean - np.where(mask, 4.0, 0.5) * std
        np.testing.assert_allclose(run.sends(x, params), expected, rtol=1e-9)
    assert mask.sum() == 5


def test_the_sparse_attack_of_one_strength_is_alie():
    x, params = draw(0), walk(3, 1)[0]
    sparse = Run(Sparse(strength=1.2, z=1.2)).sends(x, params)
    np.testing.assert_allclose(sparse, Run(ALIE(z=1.2)).sends(x, params), rtol=1e-12)
    context = Context.of(N, params=jnp.asarray(params, jnp.float32))
    defence = Defence(aggregator=Mean(), state=(), context=context)
    known = {"context": context, "key": jax.random.key(0), "defence": defence}
    state = Sparse().init(Spec(N, N, D, MOST))
    with pytest.raises(ValueError, match="Sparse needs the model's layers: use it in a simulation"):
        attack_rows(
            Sparse(), jnp.asarray(x), jnp.asarray(BYZANTINE), state, max_byzantine=MOST, **known
        )


def test_a_window():
    attack = Onset(attack=SignFlip(), start=2, end=4)
    x = draw(0)[:, :20]
    for when in range(6):
        context = Context.of(N, round=jnp.int32(when))
        sent = attack(x, BYZANTINE, context=context)
        turned = 2 <= when < 4
        np.testing.assert_array_equal(
            sent[BYZANTINE], (-1 if turned else 1) * jnp.asarray(x[BYZANTINE])
        )
    with pytest.raises(ValueError, match="Onset: end must be after start = 4; got 4"):
        Onset(attack=SignFlip(), start=4, end=4)


@pytest.mark.parametrize(
    ("success", "expected"),
    [
        ((0.9, 0.4, 0.6, 0.3), (True, 4, 2, False)),
        ((0.9, 0.8, 0.7, 0.6), (True, 6, None, True)),
        ((0.4, 0.8, 0.7, 0.6), (False, 0, 0, False)),
        ((0.9, 0.4, 0.3, 0.6), (True, 6, 2, True)),
    ],
)
def test_durability(success, expected):
    """Measured every second round; attackers leave after round 10."""
    rounds = np.arange(2, 18, 2)
    got = durability(rounds, np.array([0.1, 0.5, 0.7, 0.9, *success]), left=10)
    assert (got.planted, got.lifespan, got.first_crossing, got.censored) == expected
    assert got.area == pytest.approx(sum(success))
    with pytest.raises(ValueError, match="no evaluation after round left = 20; the last is 16"):
        durability(rounds, np.ones(8), left=20)
    with pytest.raises(ValueError, match="threshold must be at least 0 and below 1; got"):
        durability(rounds, np.ones(8), left=10, threshold=1.0)


class OfOneClass(Attack):
    """Attackers call everything class 1."""

    poisons = capability(True)

    def poison(self, batch, client, key):
        return batch.replace(labels=jnp.ones_like(batch.labels))


def local_training(model, start, inputs, labels, mask, epochs, rate, momentum):
    """Gradient descent with momentum on all samples, gradients 0 outside the mask."""
    w, velocity = start.copy(), np.zeros_like(start)
    for _ in range(epochs):
        velocity = momentum * velocity + mask * model.gradient(w, inputs, labels)
        w = w - rate * velocity
    return start - w


def neurotoxin_rounds(attack, rounds=3):
    """Per round: the parameters, and what is sent."""
    clients, model = ragged(), Objective.of(Softmax(), (4,), 3)
    federation = Federation(
        algorithm=FedAvg(epochs=3, optimizer=SGD(learning_rate=0.3, momentum=0.5)),
        attack=attack,
        byzantine=2,
        aggregator=Mean(weighted=False),
        optimizer=SGD(learning_rate=1.0),
    )
    plan = make_plan(federation, clients, Softmax())

    def step(state, _):
        received = receive(federation, plan, clients, state)
        after, _ = answer(federation, plan, state, received, jnp.zeros(5, bool))
        return after, (state.params, exchanged(received))

    start = init_state(federation, plan, 0)
    _, (params, told) = jax.jit(lambda start: jax.lax.scan(step, start, length=rounds))(start)
    each = [jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), told) for i in range(rounds)]
    found = list(zip(np.asarray(params, float), each, strict=True))
    return clients, NumpySoftmax(model, 4, 3), found


@pytest.mark.parametrize("most", [pytest.param(None, marks=pytest.mark.slow), 0.2])
def test_neurotoxin(most):
    share, before = 0.4, None
    attack = Neurotoxin(attack=OfOneClass(), share=share, most=most)
    clients, model, found = neurotoxin_rounds(attack)
    for params, told in found:
        kept = np.ones(15, bool)
        if before is not None:
            moved = np.abs(params - before)
            kept = np.isin(np.arange(15), np.argsort(moved, kind="stable")[: int(share * 15)])
        before = params
        for place, client in enumerate(np.asarray(told.ids)):
            inputs, labels = client_arrays(clients, client)
            poisoned = bool(told.byzantine[place])
            labels = np.ones_like(labels) if poisoned else labels
            mask = kept if poisoned else np.ones(15)
            expected = local_training(model, params, inputs, labels, mask, 3, 0.3, 0.5)
            if poisoned and most is not None:
                expected *= min(1, most / np.linalg.norm(expected))
            np.testing.assert_allclose(told.sent[place], expected, rtol=1e-4, atol=1e-5)
    assert kept.sum() == 6


def test_neurotoxin_in_a_window():
    """An attacker outside its window trains on its whole gradient."""
    toxin = Neurotoxin(attack=OfOneClass(), share=0.4)
    _, _, found = neurotoxin_rounds(Onset(attack=toxin, start=0, end=2))
    zeros = [
        (np.asarray(told.sent)[np.asarray(told.byzantine)] == 0).sum(axis=1) for _, told in found
    ]
    assert [z.tolist() for z in zeros] == [[0, 0], [9, 9], [0, 0]]


@pytest.mark.slow
def test_neurotoxin_beside_another_attack():
    toxin = Neurotoxin(attack=OfOneClass(), share=0.4)
    _, _, found = neurotoxin_rounds(Mixed(attacks=(toxin, OfOneClass())), rounds=2)
    sent = np.asarray(found[1][1].sent)[np.asarray(found[1][1].byzantine)]
    assert sorted((sent == 0).sum(axis=1).tolist()) == [0, 9]


def test_what_neurotoxin_is_made_of():
    for wrong in (SignFlip(), Neurotoxin()):
        with pytest.raises(ValueError, match="Neurotoxin: attack must be an attack on data; got"):
            Neurotoxin(attack=wrong)
    with pytest.raises(
        ValueError, match="Combined: data must be an attack on data and message one"
    ):
        Combined(data=Neurotoxin(), message=SignFlip())
    with pytest.raises(TypeError, match="Quiet declares trains but does not override bend"):

        class Quiet(Attack):
            trains = capability(True)
