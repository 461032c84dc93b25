"""Attacks that learn before their clients train: A3FL against plain NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfl
from jaxfl import A3FL, Combined, Mixed, Neurotoxin, Onset, Scaling
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
