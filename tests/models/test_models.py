"""Models: convolutions against XLA's, the papers' sizes, modes and parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxfl.models import MLP, Objective, SignGuardCNN, Softmax, max_pool, patches_convolution
from jaxfl.types import Batch

NHWC = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize("padding", ["VALID", "SAME", [(1, 1), (1, 1)], [(0, 2), (1, 0)]])
@pytest.mark.parametrize(
    ("strides", "channels"), [((1, 1), 6), ((2, 2), 6), ((2, 1), 3), ((3, 2), 3)]
)
@pytest.mark.parametrize("kernel", [pytest.param((3, 3), marks=pytest.mark.slow), (2, 5)])
def test_convolution_and_its_gradients_equal_xlas(padding, strides, channels, kernel):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 9, 11, channels)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(*kernel, channels, 4)), jnp.float32)

    def ours(x, w):
        return patches_convolution(x, w, strides, padding)

    def xlas(x, w):
        return jax.lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=NHWC)

    def output_and_gradients(f, x, w):
        """The gradients are those of the sum of the outputs' sines."""
        y, pull = jax.vjp(f, x, w)
        return y, pull(jnp.cos(y))

    both = jax.jit(lambda x, w: [output_and_gradients(f, x, w) for f in (ours, xlas)])
    (y, got), (other, expected) = both(x, w)
    np.testing.assert_allclose(y, other, rtol=1e-4, atol=1e-4)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_convolution_refuses_what_it_cannot_do():
    x, w = jnp.zeros((1, 5, 5, 2)), jnp.zeros((3, 3, 2, 2))
    with pytest.raises(ValueError, match="no dilated and no grouped"):
        patches_convolution(x, w, (1, 1), "VALID", feature_group_count=2)
    with pytest.raises(ValueError, match="no dilated and no grouped"):
        patches_convolution(x, w, (1, 1), "VALID", rhs_dilation=(2, 2))


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (2, 2)])
def test_pooling_equals_a_loop(size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("f4")
    expected = np.stack(
        [
            [
                x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max(axis=(1, 2))
                for j in range(size[1] // 2)
            ]
            for i in range(size[0] // 2)
        ]
    ).transpose(2, 0, 1, 3)
    np.testing.assert_array_equal(max_pool(jnp.asarray(x)), expected)


def test_sizes_are_the_papers():
    assert Objective.of(SignGuardCNN(), (28, 28, 1), 10).dim == 51_710
    assert Objective.of(MLP(hidden=[128]), (28, 28, 1), 10).dim == 784 * 128 + 128 + 1290
    assert Objective.of(Softmax(), (8, 8, 1), 10).dim == 650
    with pytest.raises(ValueError, match="needs 28x28x1 images"):
        Objective.of(SignGuardCNN(), (32, 32, 3), 10)


def test_the_cnn_is_the_network_it_says_it_is(key):
    objective = Objective.of(SignGuardCNN(), (28, 28, 1), 10)
    flat, rest = objective.init(key)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 28, 28, 1)), jnp.float32)

    @jax.jit
    def by_hand(flat, h):
        parameters = nnx.to_pure_dict(objective.unravel(flat))
        for i, pad in enumerate((0, 1, 1)):
            conv = parameters["convs"][i]
            h = jax.lax.conv_general_dilated(
                h, conv["kernel"], (1, 1), [(pad, pad)] * 2, dimension_numbers=NHWC
            )
            h = jax.nn.relu(h + conv["bias"][None, None, None])
            window = (1, 2, 2, 1)
            h = -jax.lax.reduce_window(-h, jnp.inf, jax.lax.min, window, window, "VALID")
        h = h.reshape(3, -1)
        for i in range(3):
            layer = parameters["head"]["layers"][i]
            h = h @ layer["kernel"] + layer["bias"][None]
            h = jax.nn.relu(h) if i < 2 else h
        return h

    got = jax.jit(lambda flat, x: objective.module(flat, rest)(x))(flat, x)
    np.testing.assert_allclose(got, by_hand(flat, x), rtol=1e-4, atol=1e-4)


def test_equal_configurations_are_one_objective():
    one, two = (Objective.of(MLP(hidden=[7], dropout=0.2), (4,), 3) for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    assert one != Objective.of(MLP(hidden=[8], dropout=0.2), (4,), 3)


def test_ravel_and_unravel(key):
    objective = Objective.of(MLP(hidden=[5, 4]), (6,), 3)
    flat, _ = objective.init(key)
    again = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(objective.unravel(flat))])
    np.testing.assert_array_equal(flat, again)


def test_dropout_is_drawn_per_key_and_off_in_evaluation(key):
    objective = Objective.of(MLP(hidden=[64], dropout=0.5), (6,), 3)
    flat, rest = objective.init(key)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)
    batch = Batch(x, jnp.zeros(4, jnp.int32), jnp.ones(4, bool))
    keys = jax.random.split(key, 3)
    parameters = objective.unravel(flat)
    loss = jax.jit(objective.loss)
    losses = [float(loss(parameters, rest, batch, k)[0]) for k in (*keys, keys[0])]
    assert len(set(losses)) == 3
    assert losses[3] == losses[0]
    first, second = (objective.evaluate(flat, rest, x, batch.labels)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_the_loss_is_the_mean_over_the_mask(key):
    objective = Objective.of(Softmax(), (6,), 3)
    flat, rest = objective.init(key)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.float32)
    labels = jnp.asarray([0, 1, 2, 0, 1])
    mask = jnp.asarray([True, False, True, True, False])
    losses, correct = objective.evaluate(flat, rest, x, labels)
    got, _ = objective.loss(objective.unravel(flat), rest, Batch(x, labels, mask), key)
    np.testing.assert_allclose(got, np.mean(np.asarray(losses)[np.asarray(mask)]), rtol=1e-5)
    logits = np.asarray(objective.module(flat, rest)(x))
    np.testing.assert_array_equal(correct, logits.argmax(1) == np.asarray(labels))
    x = x.at[1, 2].set(np.nan).at[2].set(3e38)
    _, correct = objective.evaluate(flat * 9, rest, x, jnp.zeros(5, jnp.int32))
    logits = np.asarray(objective.module(flat * 9, rest)(x))
    expected = np.where(np.isfinite(logits).all(1), logits.argmax(1) == 0, np.nan)
    assert np.isnan(expected).tolist() == [False, True, True, False, False]
    np.testing.assert_array_equal(correct, expected)
