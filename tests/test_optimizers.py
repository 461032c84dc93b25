"""Optimisers and schedules, against formulas and against optax."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxfl import SGD, Adam, CosineDecay, Schedule, StepDecay, Yogi

GRADIENTS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def descend(transform, start):
    w, memory, path = jnp.asarray(start), transform.init(jnp.asarray(start)), []
    for g in GRADIENTS:
        change, memory = transform.update(jnp.asarray(g), memory, w)
        w = optax.apply_updates(w, change)
        path.append(np.asarray(w))
    return np.stack(path)


def test_sgd_is_the_textbooks():
    w, v, expected = np.ones(4), 0.0, []
    for g in GRADIENTS:
        v = 0.9 * v + g + 0.05 * w
        w = w - 0.1 * v
        expected.append(w)
    sgd = SGD(learning_rate=0.1, momentum=0.9, weight_decay=0.05)
    np.testing.assert_allclose(descend(sgd.transform(), np.ones(4, "f4")), expected, rtol=1e-5)
    plain = descend(SGD(learning_rate=0.1).transform(), np.zeros(4, "f4"))
    np.testing.assert_allclose(plain, -0.1 * np.cumsum(GRADIENTS, axis=0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Adam(learning_rate=0.01, b1=0.8), optax.adam(0.01, b1=0.8)),
        (Yogi(learning_rate=0.01, b2=0.9), optax.yogi(0.01, b2=0.9)),
    ],
)
def test_adaptive_optimisers_are_optax(ours, theirs):
    start = np.ones(4, "f4")
    np.testing.assert_allclose(descend(ours.transform(), start), descend(theirs, start), rtol=1e-5)


def test_schedules():
    steps = jnp.arange(12)
    decay = StepDecay(initial=0.8, boundaries=[3, 7], factor=0.5)
    expected = [0.8] * 3 + [0.4] * 4 + [0.2] * 5
    np.testing.assert_allclose([decay.rate(s) for s in steps], expected, rtol=1e-6)
    cosine = CosineDecay(initial=1.0, steps=10, final=0.2)
    expected = 0.2 + 0.8 * (1 + np.cos(np.pi * np.minimum(np.arange(12) / 10, 1))) / 2
    np.testing.assert_allclose([cosine.rate(s) for s in steps], expected, rtol=1e-5)


def test_a_schedule_counts_the_servers_steps():
    rate = StepDecay(initial=1.0, boundaries=[2], factor=0.1)
    path = descend(SGD(learning_rate=rate).transform(), np.zeros(4, "f4"))
    scale = np.array([1, 1, 0.1, 0.1, 0.1])[:, None]
    np.testing.assert_allclose(path, -np.cumsum(scale * GRADIENTS, axis=0), rtol=1e-4, atol=1e-6)


class Constant(Schedule):
    def rate(self, step):
        return 2


@pytest.mark.parametrize("rate", [2, Constant(), StepDecay(initial=2.0)])
def test_the_rate_of_a_step_is_a_float(rate):
    found = SGD(learning_rate=rate).rate(jnp.int32(0))
    assert (float(found), found.dtype) == (2, np.float32)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"learning_rate": 0}, "SGD: learning_rate must be above 0; got 0"),
        ({"learning_rate": "fast"}, "SGD: learning_rate must be a number or Schedule"),
        ({"momentum": 1.0}, "SGD: momentum must be at least 0 and below 1; got 1"),
        ({"weight_decay": -1}, "SGD: weight_decay must be at least 0; got -1"),
    ],
)
def test_bad_numbers_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        SGD(**bad)
