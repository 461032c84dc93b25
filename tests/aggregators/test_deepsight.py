"""DeepSight against plain NumPy and scikit-learn's HDBSCAN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import HDBSCAN

from jaxfl.aggregators import DeepSight
from jaxfl.aggregators.deepsight import energy_shares
from jaxfl.models import Objective, Softmax
from jaxfl.models.layers import segments
from jaxfl.types import Context, Segment

N, FEATURES, CLASSES = 18, 6, 4
D = (FEATURES + 1) * CLASSES
OBJECTIVE = Objective.of(Softmax(), (FEATURES,), CLASSES)
SAMPLE = jax.ShapeDtypeStruct((FEATURES,), "float64")
LAYERS = segments(OBJECTIVE, jax.ShapeDtypeStruct((2, FEATURES), "f4"))
RULE = DeepSight(samples=16)


def clients(seed):
    """Two kinds of honest clients, and six that want one class."""
    random = np.random.default_rng(seed)
    kinds = random.normal(size=(3, CLASSES, FEATURES + 1))
    kinds[2, 1:] *= 0.02
    x = kinds[np.repeat([0, 1, 2], 6)] + 0.05 * random.normal(size=(N, CLASSES, FEATURES + 1))
    x *= random.uniform(0.5, 2, size=(N, 1, 1))
    return np.concatenate([x[:, :, 0], x[:, :, 1:].transpose(0, 2, 1).reshape(N, -1)], axis=1)


def answer(x, rule=RULE, **known):
    with jax.enable_x64(True):
        given = {"key": jax.random.key(5), "objective": OBJECTIVE, "sample": SAMPLE}
        given |= {"segments": LAYERS, "params": jnp.asarray(start()), "client_chunk": 4} | known
        result = rule.inspect(jnp.asarray(x), context=Context.of(len(x), **given))
        return jax.tree.map(np.asarray, result)


def start():
    return 0.3 * np.random.default_rng(1).normal(size=D)


def labelled(distances, whole=False):
    model = HDBSCAN(5, min_samples=4, metric="precomputed", allow_single_cluster=whole, copy=True)
    return model.fit(distances).labels_


def apart(labels):
    return 1.0 - ((labels[:, None] == labels) & (labels >= 0)[:, None])


def away(points):
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


def answers(flat, inputs):
    logits = inputs @ flat[CLASSES:].reshape(FEATURES, CLASSES) + flat[:CLASSES]
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def deepsight(x, inputs):
    bias, kernel = x[:, :CLASSES], x[:, CLASSES:].reshape(N, FEATURES, CLASSES)
    energy = np.abs(bias) + np.abs(kernel).sum(axis=1)
    shares = energy**2 / (energy**2).sum(axis=1, keepdims=True)
    many = (shares > max(0.01, 1 / CLASSES) * shares.max(axis=1, keepdims=True)).sum(axis=1)
    suspect = many <= np.median(many) / 2
    unit = bias / np.linalg.norm(bias, axis=1, keepdims=True)
    by_answers = []
    for drawn in inputs:
        server = answers(start(), drawn) + 1e-6
        quotients = np.array([(answers(start() - row, drawn) / server).mean(axis=0) for row in x])
        by_answers.append(apart(labelled(away(quotients))))
    three = apart(labelled(1 - unit @ unit.T)), apart(labelled(away(shares)))
    final = labelled((sum(three) + np.mean(by_answers, axis=0)) / 3, whole=True)
    accepted = np.zeros(N, bool)
    for label in set(final) - {-1}:
        inside = final == label
        accepted |= inside & (suspect[inside].sum() < inside.sum() / 3)
    norms = np.linalg.norm(x, axis=1)
    clipped = x * np.minimum(1, np.median(norms) / norms)[:, None]
    return clipped[accepted].mean(axis=0), accepted, suspect


@pytest.mark.parametrize("seed", range(4))
def test_deepsight(seed):
    x = clients(seed)
    with jax.enable_x64(True):
        inputs = np.asarray(jax.random.uniform(jax.random.key(5), (3, 16, FEATURES), "float64"))
    expected, accepted, suspect = deepsight(x, inputs)
    result = answer(x)
    np.testing.assert_array_equal(result.info.selected, accepted)
    np.testing.assert_allclose(result.update, expected, atol=1e-12)
    assert suspect[12:].all()
    assert not suspect[:12].any()
    assert accepted.tolist() == [True] * 12 + [False] * 6


def test_shares_of_the_energy():
    kernel = np.zeros((1, 3, 10), np.float32)
    kernel[0, :, 3] = [1, -2, 3]
    shares = np.asarray(energy_shares(jnp.zeros((1, 10)), jnp.asarray(kernel.reshape(1, -1))))
    np.testing.assert_array_equal(shares, np.eye(10)[[3]])
    equal = np.asarray(energy_shares(jnp.full((1, 10), 2.0), jnp.full((1, 30), -5.0)))
    np.testing.assert_allclose(equal, 0.1, rtol=1e-6)


def test_without_suspects_updates_that_are_alike_are_averaged():
    x = np.tile(clients(0)[0], (N, 1))
    np.testing.assert_allclose(answer(x).update, x[0], atol=1e-12)
    np.testing.assert_array_equal(answer(0 * x).update, 0)


def test_deepsight_says_what_it_needs():
    x = clients(0)
    with pytest.raises(ValueError, match="DeepSight evaluates the model: pass context="):
        RULE(x, context=Context.of(N, segments=LAYERS))
    for layers, name in ((LAYERS[:1], LAYERS[0].name), ((Segment("a", 0, (D,), "other"),), "none")):
        with pytest.raises(ValueError, match=f"one output layer, .* parameters {name}"):
            answer(x, segments=layers)
    with pytest.raises(ValueError, match=r"DeepSight needs inputs of numbers, .* of int32"):
        answer(x, sample=jax.ShapeDtypeStruct((FEATURES,), "int32"))
