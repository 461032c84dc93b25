"""Clipping and noise on one message."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfl import MessagePrivacy


@pytest.mark.parametrize(("norm", "expected"), [(10.0, 2.0), (2.0, 2.0), (0.5, 0.5), (0.0, 0.0)])
def test_clipping_keeps_the_direction_and_bounds_the_norm(key, norm, expected):
    direction = np.random.default_rng(0).normal(size=50)
    message = (norm * direction / np.linalg.norm(direction)).astype(np.float32)
    clipped = MessagePrivacy(clip=2.0).message(jnp.asarray(message), key)
    np.testing.assert_allclose(np.linalg.norm(clipped), expected, rtol=1e-5)
    np.testing.assert_allclose(clipped, message * min(1, 2 / max(norm, 1e-9)), rtol=1e-5)


@pytest.mark.parametrize(
    ("privacy", "std"),
    [
        (MessagePrivacy(clip=2.0, noise_multiplier=1.5), 3.0),
        (MessagePrivacy(noise_multiplier=0.447), 0.447),
        (MessagePrivacy(clip=2.0), 0.0),
    ],
)
def test_noise_has_the_stated_deviation(key, privacy, std):
    message = jnp.zeros((20_000,))
    noise = np.asarray(privacy.message(message, key))
    assert np.std(noise) == pytest.approx(std, rel=0.03)
    assert abs(np.mean(noise)) <= 5 * std / np.sqrt(20_000)


def test_each_key_is_another_noise(key):
    privacy = MessagePrivacy(clip=1.0, noise_multiplier=1.0)
    keys = jax.random.split(key, 3)
    noise = jax.vmap(privacy.message, (None, 0))(jnp.zeros((5_000,)), keys)
    correlation = np.corrcoef(noise)
    assert np.abs(correlation - np.eye(3)).max() < 0.08


def test_precision_is_kept_for_half_width_messages(key):
    message = jnp.full((4096,), 0.5, jnp.bfloat16)  # in bfloat16 the sum of squares would stall
    clipped = MessagePrivacy(clip=1.0).message(message, key)
    assert clipped.dtype == jnp.bfloat16
    assert np.linalg.norm(np.asarray(clipped, np.float32)) == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("bad", [{"clip": 0}, {"clip": -1.0}, {"noise_multiplier": -0.1}])
def test_bad_numbers_are_refused(bad):
    with pytest.raises(ValueError, match=f"MessagePrivacy: {next(iter(bad))} must be"):
        MessagePrivacy(**bad)
