"""Inversion of gradients against what is known of softmax regression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl.inversion import (
    Inversion,
    label_recovery,
    labels_of,
    matched,
    psnr,
    total_variation,
)
from jaxfl.models import Objective, Softmax
from jaxfl.models.layers import segments
from jaxfl.types import Segment

SHAPE, CLASSES = (4, 5), 6
OBJECTIVE = Objective.of(Softmax(), SHAPE, CLASSES)
SAMPLE = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
LAYERS = segments(OBJECTIVE, jax.ShapeDtypeStruct((2, *SHAPE), "f4"))
PARAMS, STATE = OBJECTIVE.init(jax.random.key(3))
random = np.random.default_rng(0)
IMAGES = random.uniform(size=(3, *SHAPE)).astype(np.float32)
LABELS = np.array([4, 2, 5])


def probabilities(images):
    kernel = np.asarray(PARAMS)[CLASSES:].reshape(-1, CLASSES)
    logits = images.reshape(len(images), -1) @ kernel + np.asarray(PARAMS)[:CLASSES]
    e = np.exp(logits)
    return e / e.sum(axis=1, keepdims=True)


def gradient(images, labels):
    """Of the mean loss, bias first."""
    error = (probabilities(images) - np.eye(CLASSES)[labels]) / len(labels)
    kernel = images.reshape(len(images), -1).T @ error
    return np.concatenate([error.sum(axis=0), kernel.ravel()]).astype(np.float32)


def reconstruct(attack, message, labels):
    run = jax.jit(attack.reconstruct, static_argnums=0, static_argnames="sample")
    given = (PARAMS, STATE, jnp.asarray(message), jnp.asarray(labels), jax.random.key(1))
    return run(OBJECTIVE, *given, sample=SAMPLE)


@pytest.mark.parametrize(("distance", "steps", "least"), [("squared", 60, 30), ("cosine", 400, 25)])
def test_one_image_is_found(distance, steps, least):
    """Its gradient by the kernel over that by the bias is the image: nothing is hidden."""
    message = gradient(IMAGES[:1], LABELS[:1])
    exact = message[CLASSES:].reshape(-1, CLASSES)[:, 0] / message[0]
    np.testing.assert_allclose(exact.reshape(SHAPE), IMAGES[0], atol=1e-5)
    attack = Inversion(distance=distance, steps=steps, smoothness=1e-4, restarts=2)
    found = reconstruct(attack, message, labels_of(message, LAYERS, 1))
    assert psnr(found.inputs, IMAGES[:1]) > least
    expected = gradient(np.asarray(found.inputs), LABELS[:1])
    if distance == "squared":
        expected = np.square(expected - message).sum()
    else:
        expected = 1 - expected @ message / np.linalg.norm(expected) / np.linalg.norm(message)
    np.testing.assert_allclose(found.distance, expected, atol=1e-6)
    # A message of noise alone shows nothing of it.
    noise = random.normal(size=message.shape).astype(np.float32)
    assert psnr(reconstruct(attack, noise, LABELS[:1]).inputs, IMAGES[:1]) < 15


def test_labels_are_read_off_the_bias():
    for image, label in zip(IMAGES, LABELS, strict=True):
        message = gradient(image[None], np.array([label]))
        assert labels_of(message, LAYERS, 1).tolist() == [label]
    several = np.array([4, 4, 2])
    shares = probabilities(IMAGES).mean(axis=0)
    message = gradient(IMAGES, several)
    assert labels_of(message, LAYERS, 3, shares).tolist() == [2, 4, 4]
    assert labels_of(message, LAYERS, 3).tolist() == [2, 4, 4]
    assert label_recovery(np.array([2, 4, 4]), several) == 1
    assert label_recovery(np.array([0, 4, 1]), several) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="labels_of needs a model whose output layer has a bias"):
        labels_of(message, (Segment("a.kernel", 0, (126,), "kernel"),), 1)


def test_what_is_measured():
    assert psnr(IMAGES, IMAGES) == np.inf
    error = np.square(IMAGES[0] - IMAGES[1]).mean()
    assert psnr(IMAGES[0], IMAGES[1], peak=2.0) == pytest.approx(10 * np.log10(4 / error), rel=1e-6)
    mixed = IMAGES[[2, 0, 1]] + np.float32(0.01)
    np.testing.assert_allclose(matched(mixed, IMAGES), IMAGES + 0.01, atol=1e-6)
    down, across = (np.abs(np.diff(IMAGES, axis=axis)).mean() for axis in (1, 2))
    np.testing.assert_allclose(total_variation(jnp.asarray(IMAGES)), down + across, rtol=1e-6)
    assert total_variation(jnp.ones((3, 7))) == 0
