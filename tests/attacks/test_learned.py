"""Attacks that learn before their clients train, against plain NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfl
from jaxfl import (
    A3FL,
    SGD,
    AlternatingMinimisation,
    Combined,
    FedAvg,
    Mixed,
    Neurotoxin,
    NormClipping,
    Onset,
    Scaling,
)
from jaxfl.attacks.views import ClientView, Learning
from jaxfl.models import Objective, Softmax
from jaxfl.types import Batch, Spec

SHAPE, CLASSES, COUNT = (4, 4), 3, 6
OBJECTIVE = Objective.of(Softmax(), SHAPE, CLASSES)
D = OBJECTIVE.dim
random = np.random.default_rng(0)
INPUTS = random.uniform(size=(8, *SHAPE))
LABELS = np.arange(8) % CLASSES
PARAMS = 0.3 * random.normal(size=D)
RARE = random.uniform(size=(3, *SHAPE))


def own(valid=COUNT):
    batch = Batch(jnp.asarray(INPUTS), jnp.asarray(LABELS), jnp.arange(8) < valid)
    _, rest = OBJECTIVE.init(jax.random.key(0))
    return Learning(
        params=jnp.asarray(PARAMS),
        model_state=rest,
        round=jnp.int32(0),
        key=jax.random.key(1),
        objective=OBJECTIVE,
        load=lambda size: jax.tree.map(lambda x: x[:size], batch),
        floor=(0.0,),
        peak=(1.0,),
        rare=lambda size: jnp.asarray(RARE[:size]),
    )


def learn(attack, trigger):
    with jax.enable_x64(True):
        return np.asarray(attack.learn(own(), jnp.asarray(trigger)))


def stamped(trigger):
    images = INPUTS[:COUNT].copy()
    images[:, 1:, 1:] = trigger[::-1, ::-1, 0]
    return images


def gradients(flat, images, labels):
    """Of the mean loss: by the parameters, and by the pixels."""
    x, kernel = images.reshape(len(images), -1), flat[CLASSES:].reshape(-1, CLASSES)
    logits = x @ kernel + flat[:CLASSES]
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    error = (e / e.sum(axis=1, keepdims=True) - np.eye(CLASSES)[labels]) / len(x)
    by_params = np.concatenate([error.sum(axis=0), (x.T @ error).ravel()])
    return by_params, (error @ kernel.T).reshape(images.shape)


def a3fl(trigger, target, steps, rate, weight, hardening, hardening_rate):
    labels, hard, velocity = LABELS[:COUNT], PARAMS.copy(), np.zeros(D)
    for _ in range(hardening):
        gradient, _ = gradients(hard, stamped(trigger), labels)
        velocity = 0.9 * velocity + gradient + 5e-4 * hard
        hard = hard - hardening_rate * velocity
    one, other = (gradients(w, INPUTS[:COUNT], labels)[0][CLASSES:] for w in (PARAMS, hard))
    agree = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    for _ in range(steps):
        wanted = np.full(COUNT, target)
        by_pixel = gradients(PARAMS, stamped(trigger), wanted)[1]
        by_pixel = by_pixel + weight * agree * gradients(hard, stamped(trigger), wanted)[1]
        slope = by_pixel.sum(axis=0)[1:, 1:][::-1, ::-1, None]
        trigger = np.clip(trigger - rate * np.sign(slope), 0, 1)
    return trigger


@pytest.mark.parametrize("weight", [0.0, 100.0])
def test_a3fl(weight):
    start = np.random.default_rng(3).uniform(size=(3, 3, 1))
    given = {"target": 1, "steps": 4, "rate": 0.1, "weight": weight}
    given |= {"hardening": 5, "hardening_rate": 5.0}
    expected = a3fl(start, **given)
    got = learn(A3FL(size=3, samples=8, **given), start)
    np.testing.assert_allclose(got, expected, atol=1e-12)
    assert {0.0, 1.0} & set(got.ravel())
    if weight:
        assert not np.array_equal(expected, a3fl(start, **(given | {"weight": 0.0})))


def test_one_step_moves_every_pixel_by_the_rate():
    start = np.full((3, 3, 1), 0.5)
    moved = learn(A3FL(size=3, steps=1, rate=0.25, weight=0.0, hardening=0), start) - 0.5
    np.testing.assert_allclose(np.abs(moved), 0.25)


def test_attackers_stamp_what_was_learned():
    attack = A3FL(size=2, fraction=0.5, target=2)
    trigger = jnp.asarray([[0.1, 0.2], [0.3, 0.4]])[..., None]
    view = ClientView(0, jnp.array(True), jnp.int32(3), 0, CLASSES, memory=trigger)
    batch = Batch(jnp.zeros((4, *SHAPE)), jnp.zeros(4, jnp.int32), jnp.ones(4, bool))
    poisoned = attack.poison(batch, view, jax.random.key(0))
    assert poisoned.labels.tolist() == [2, 2, 0, 0]
    corner = np.asarray(poisoned.inputs[0])[2:, 2:]
    np.testing.assert_allclose(corner, [[0.4, 0.3], [0.2, 0.1]])
    assert not np.asarray(poisoned.inputs[2:]).any()
    coloured = attack.triggered(jnp.zeros((1, 4, 4, 3)), (1.0,), jnp.ones((2, 2, 3)))
    assert float(coloured.sum()) == 12
    assert attack.init(Spec(4, 4, D, sample_shape=(4, 4, 3))).shape == (2, 2, 3)


def test_who_learns_alone():
    for made in (
        lambda: Combined(data=A3FL(), message=Scaling(factor=2.0)),
        lambda: Mixed(attacks=(A3FL(),)),
    ):
        with pytest.raises(ValueError, match="A3FL learns, which it does alone or in Onset"):
            made()
    with pytest.raises(
        ValueError, match="Neurotoxin: A3FL learns, which it does alone or in Onset"
    ):
        Neurotoxin(attack=A3FL())


@pytest.mark.slow
def test_a_learned_trigger_works_in_a_window():
    """It learns while the attack lasts, and stays as it was then."""
    attack = Onset(attack=A3FL(size=2, samples=16, rate=0.02, target=1), start=1, end=3)
    data = jaxfl.data.digits().split(jaxfl.data.IID(), 6)
    federation = jaxfl.Federation(attack=attack, byzantine=2)
    simulation = jaxfl.Simulation(federation, data, Softmax(), evaluate_every=1)
    found = [np.asarray(simulation.state.attack)]
    for _ in range(4):
        simulation.run(1)
        found.append(np.asarray(simulation.state.attack))
    same = [np.array_equal(a, b) for a, b in itertools.pairwise(found)]
    assert same == [True, False, False, True]
    assert found[-1].min() >= 0
    assert found[-1].max() <= 1


def alternating(target, count, boost, pull, turns, steps, rate, momentum):
    """What is sent, by gradients in NumPy; both kinds of steps have a momentum of their own."""
    images, labels = INPUTS[:COUNT], LABELS[:COUNT]
    honest, velocity = PARAMS.copy(), np.zeros(D)
    for _ in range(turns * steps):
        velocity = momentum * velocity + gradients(honest, images, labels)[0]
        honest = honest - rate * velocity
    model, velocity, hidden = PARAMS.copy(), np.zeros(D), np.zeros(D)
    for _ in range(turns):
        for _ in range(steps):
            slope = gradients(model, images, labels)[0] + pull * (model - honest)
            velocity = momentum * velocity + slope
            model = model - rate * velocity
        rare = RARE[:count]
        hidden = momentum * hidden + gradients(model, rare, np.full(len(rare), target))[0]
        model = model - boost * rate * hidden
    return PARAMS - model


def sent_by(attack):
    return np.asarray(attack.learn(own(), jnp.zeros(D)))


@pytest.mark.parametrize("pull", [0.0, 0.5])
def test_alternating_minimisation(pull):
    given = {"target": 2, "count": 2, "boost": 3.0, "pull": pull, "turns": 3, "steps": 2}
    attack = AlternatingMinimisation(
        samples=8, optimizer=SGD(learning_rate=0.5, momentum=0.9), **given
    )
    expected = alternating(**given, rate=0.5, momentum=0.9)
    np.testing.assert_allclose(sent_by(attack), expected, atol=2e-6)
    other = alternating(**(given | {"pull": 0.25}), rate=0.5, momentum=0.9)
    assert np.abs(expected - other).max() > 1e-3


def test_the_boost_of_one_step_is_exact():
    attack = AlternatingMinimisation(target=1, turns=1, steps=3, samples=8)
    none, one, ten = (sent_by(attack.replace(boost=b)) for b in (0.0, 1.0, 10.0))
    np.testing.assert_allclose(ten - none, 10 * (one - none), atol=2e-6)
    assert np.abs(one - none).max() > 1e-3


def test_without_boost_or_pull_it_is_honest_training():
    honest = AlternatingMinimisation(turns=2, steps=3, samples=8, boost=0.0, pull=0.0)
    expected = alternating(1, 1, 0.0, 0.0, 2, 3, 0.1, 0.0)
    np.testing.assert_allclose(sent_by(honest), expected, atol=2e-6)


def test_one_attacker_has_an_input_misread_and_a_clip_of_norms_prevents_it():
    data = jaxfl.data.digits().set_apart(jaxfl.data.RareData(label=7, size=3))
    data = data.split(jaxfl.data.IID(), 5)
    attack = AlternatingMinimisation(target=1, count=2, boost=5.0, turns=2, steps=2)
    federation = jaxfl.Federation(
        algorithm=FedAvg(batch_size=64),
        optimizer=SGD(learning_rate=1.0),
        attack=attack,
        byzantine=1,
    )
    success = {}
    for rule in (jaxfl.Mean(), NormClipping(tau=0.1)):
        part = federation.replace(aggregator=rule)
        simulation = jaxfl.Simulation(part, data, Softmax(), evaluate_every=5)
        sent = simulation.messages()
        success[type(rule).__name__] = float(simulation.run(5).evaluations.attack_success[-1])
    assert success == {"Mean": 1.0, "NormClipping": 0.0}
    row = np.asarray(sent.sent[sent.byzantine])[0]
    assert np.linalg.norm(row) > np.linalg.norm(sent.own, axis=1).max()
