"""Rivals of ``benchmarks.training`` start from our weights, in PyTorch's layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.training import MODELS, in_their_order
from jaxfl.models import Objective


def convolved(images, kernel, bias):
    """3x3, padded by one, channels first."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, kernel) + bias[:, None, None]


def theirs(images, weights):
    """The network as PyTorch writes it: convolutions with pooling and ReLU, dense layers."""
    layers = list(zip(weights[::2], weights[1::2], strict=True))
    values = images
    for i, (weight, bias) in enumerate(layers):
        if weight.ndim == 4:
            values = convolved(values, weight, bias)
            n, channels, side, _ = values.shape
            pairs = values.reshape(n, channels, side // 2, 2, side // 2, 2)
            values = np.maximum(pairs.max((3, 5)), 0)
            continue
        values = values.reshape(len(values), -1) @ weight.T + bias
        if i + 1 < len(layers):
            values = np.maximum(values, 0)
    return values


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_our_weights_give_the_same_network_in_their_order(name):
    random = np.random.default_rng(0)
    shape = (32, 32, 3) if name == "cnn" else (28, 28, 1)
    objective = Objective.of(MODELS[name], shape, 10)
    flat, state = objective.init(jax.random.key(0))
    flat += 0.05 * random.normal(size=flat.shape).astype(np.float32)  # biases begin at 0
    images = jnp.asarray(random.normal(size=(3, *shape)), np.float32)
    parameters = objective.unravel(flat)
    ours = objective.logits(parameters, state, images)
    found = theirs(np.moveaxis(np.asarray(images), -1, 1), in_their_order(parameters))
    assert np.ptp(ours) > 1
    np.testing.assert_allclose(found, ours, rtol=1e-4, atol=1e-4)
