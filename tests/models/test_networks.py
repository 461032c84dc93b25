"""The papers' larger networks: sizes, and each against the same network by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxfl import Federation, FedSGD, Simulation
from jaxfl.data import IID, from_arrays
from jaxfl.models import (
    CNN,
    MLP,
    Augmented,
    FLTrustCNN,
    Model,
    Objective,
    ResNet,
    SignGuardCNN,
    Softmax,
    TextRNN,
)
from jaxfl.types import Batch

GREY, COLOUR, TEXT = (28, 28, 1), (32, 32, 3), (50,)


def lstm(size, hidden):
    """Kernels of input and memory, and a bias, of four gates."""
    return 4 * hidden * (size + hidden + 1)


@pytest.mark.parametrize(
    ("model", "shape", "classes", "dim"),
    [
        (FLTrustCNN(), GREY, 10, 300 + 13_550 + 1_250 * 100 + 100 + 1_010),
        (FLTrustCNN(), COLOUR, 10, 840 + 13_550 + 1_800 * 100 + 100 + 1_010),
        (SignGuardCNN(hidden=(120,)), GREY, 10, 208 + 1_168 + 4_640 + 288 * 120 + 120 + 1_210),
        (ResNet(), COLOUR, 10, 11_173_962),
        (ResNet(norm="group"), COLOUR, 10, 11_173_962),
        (ResNet(blocks=(3, 3, 3), channels=(16, 32, 64)), COLOUR, 10, 272_474),
        (
            TextRNN(),
            TEXT,
            4,
            20_000 * 300 + 2 * lstm(300, 128) + 2 * lstm(256, 128) + 256 * 4 + 4,
        ),
    ],
)
def test_sizes(model, shape, classes, dim):
    assert Objective.of(model, shape, classes).dim == dim


@pytest.mark.parametrize(
    ("model", "shape", "text"),
    [
        (FLTrustCNN(), (9, 28, 1), "FLTrustCNN needs images of at least 10x10"),
        (FLTrustCNN(), (28,), "FLTrustCNN needs images"),
        (ResNet(), (28,), "ResNet needs images"),
        (ResNet(blocks=(1, 1)), COLOUR, "blocks and channels must be as many"),
        (ResNet(blocks=(), channels=()), COLOUR, "and not empty"),
        (TextRNN(), COLOUR, "TextRNN needs rows of word ids"),
        (Augmented(model=MLP()), (28,), "Augmented needs images"),
    ],
)
def test_inputs_that_do_not_fit(model, shape, text):
    with pytest.raises(ValueError, match=text):
        Objective.of(model, shape, 10)


def draw(model, shape, classes=3, batch=4):
    objective = Objective.of(model, shape, classes)
    flat, rest = objective.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    flat = jnp.asarray(rng.normal(0, 0.3, flat.shape), flat.dtype)  # biases and scales too
    return objective, flat, rest, rng.normal(size=(batch, *shape)).astype("f4")


def by_hand_conv(x, kernel, stride=1, padding=0):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def test_fltrusts_cnn_by_hand():
    objective, flat, rest, x = draw(FLTrustCNN(), (12, 11, 2))
    parameters = nnx.to_pure_dict(objective.unravel(flat))
    h = jnp.asarray(x)
    for i in range(2):
        conv = parameters["convs"][i]
        h = jax.nn.relu(by_hand_conv(h, conv["kernel"]) + conv["bias"][None, None, None])
        rows, columns = (size // 2 * 2 for size in h.shape[1:3])
        h = h[:, :rows, :columns].reshape(4, rows // 2, 2, columns // 2, 2, -1).max(axis=(2, 4))
    first, last = (parameters["head"]["layers"][i] for i in range(2))
    h = jax.nn.relu(h.reshape(4, -1) @ first["kernel"] + first["bias"][None])
    expected = h @ last["kernel"] + last["bias"][None]
    np.testing.assert_allclose(objective.module(flat, rest)(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_residual_network_by_hand(norm):
    """In training: two stages, the second at half the resolution and with a shortcut."""
    model = ResNet(blocks=(1, 1), channels=(4, 64), norm=norm)
    objective, flat, rest, x = draw(model, (6, 6, 2))
    parameters = nnx.to_pure_dict(objective.unravel(flat))

    def normalised(h, p):
        if norm == "batch":
            mean, variance = (f(h, axis=(0, 1, 2), keepdims=True) for f in (np.mean, np.var))
            normal = (h - mean) / np.sqrt(variance + 1e-5)
        else:  # a group a channel, or two channels a group
            groups = 32 if h.shape[-1] == 64 else h.shape[-1]
            parts = h.reshape(*h.shape[:3], groups, -1)
            mean, variance = (f(parts, axis=(1, 2, 4), keepdims=True) for f in (np.mean, np.var))
            normal = ((parts - mean) / np.sqrt(variance + 1e-6)).reshape(h.shape)
        return normal * p["scale"] + p["bias"]

    def convolved(h, p, stride=1, padding=1):
        return np.asarray(by_hand_conv(jnp.asarray(h), p["kernel"], stride, padding), "f8")

    parameters = jax.tree.map(np.asarray, parameters)
    h = np.maximum(normalised(convolved(x, parameters["stem"]), parameters["norm"]), 0)
    for i, stride in enumerate((1, 2)):
        p = parameters["blocks"][i]
        y = np.maximum(normalised(convolved(h, p["first"], stride), p["norms"][0]), 0)
        y = normalised(convolved(y, p["second"]), p["norms"][1])
        if i:
            h = normalised(convolved(h, p["shortcut"], 2, 0), p["norms"][2])
        else:
            assert p.get("shortcut") is None
        h = np.maximum(h + y, 0)
    layer = parameters["head"]["layers"][0]
    logits = h.mean(axis=(1, 2)) @ layer["kernel"] + layer["bias"]
    labels = np.array([0, 1, 2, 1])
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(4), labels]
    batch = Batch(jnp.asarray(x), jnp.asarray(labels), jnp.ones(4, bool))
    loss, after = jax.jit(objective.loss)(objective.unravel(flat), rest, batch, jax.random.key(1))
    np.testing.assert_allclose(loss, losses.mean(), rtol=1e-3)
    assert bool(jax.tree.leaves(after)) == (norm == "batch")


def test_a_recurrent_network_by_hand():
    """Both directions of both layers step by step, over words without their padding."""
    model = TextRNN(vocabulary=11, embedding=3, hidden=2)
    objective, flat, rest, _ = draw(model, (5,))
    parameters = jax.tree.map(np.asarray, nnx.to_pure_dict(objective.unravel(flat)))
    texts = np.array([[3, 1, 10, 2, 4], [5, 6, 0, 0, 0], [7, 0, 0, 0, 0], [0, 0, 0, 0, 0]])

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def read(words, p):
        c, h, seen = np.zeros(2), np.zeros(2), []
        for x in words:
            p_i, p_h = p["cell"]["dense_i"], p["cell"]["dense_h"]
            gates = x @ p_i["kernel"] + h @ p_h["kernel"] + p_h["bias"]
            i, f, g, o = np.split(gates, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            seen.append(h)
        return seen

    expected = []
    for text in texts:
        x = [parameters["embedding"]["embedding"][word] for word in text[text > 0]]
        end = np.zeros(4)
        for i in range(2):
            layer = parameters["layers"][i]
            forward, backward = read(x, layer["forward_rnn"]), read(x[::-1], layer["backward_rnn"])
            if x:
                end = np.concatenate([forward[-1], backward[-1]])
            x = [np.concatenate(pair) for pair in zip(forward, backward[::-1], strict=True)]
        head = parameters["head"]["layers"][0]
        expected.append(end @ head["kernel"] + head["bias"])
    got = jax.jit(objective.logits)(objective.unravel(flat), rest, jnp.asarray(texts, jnp.int32))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


class Echo(Model):
    """Answers its input."""

    def build(self, sample_shape, classes, rngs):
        return nnx.Sequential(lambda x: x)


@pytest.mark.parametrize("flip", [True, False])
def test_crops_and_reflections(flip):
    shape, count = (3, 4, 2), 200
    image = np.random.default_rng(0).normal(size=shape).astype("f4")
    module = Augmented(model=Echo(), padding=1, flip=flip).build(shape, 10, nnx.Rngs(0))
    module.train()
    wide = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    windows = [wide[i : i + 3, j : j + 4] for i, j in itertools.product(range(3), range(3))]
    windows += [window[:, ::-1] for window in windows] if flip else []
    got = np.asarray(module(np.stack([image] * count)))
    which = [[np.array_equal(x, window) for window in windows] for x in got]
    assert np.sum(which, axis=1).tolist() == [1] * count
    counts = np.sum(which, axis=0)
    assert len(counts) == (18 if flip else 9)
    assert counts.min() > 0
    assert counts.max() < 3 * count / len(counts)
    assert not np.array_equal(module(np.stack([image] * count)), got)
    module.eval()
    np.testing.assert_array_equal(module(image[None])[0], image)


def test_augmented_images_are_drawn_by_key(key):
    objective = Objective.of(Augmented(model=Softmax()), (8, 8, 1), 3)
    flat, rest = objective.init(key)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 1)), jnp.float32)
    batch = Batch(x, jnp.zeros(4, jnp.int32), jnp.ones(4, bool))
    parameters, loss = objective.unravel(flat), jax.jit(objective.loss)
    losses = [float(loss(parameters, rest, batch, k)[0]) for k in (*jax.random.split(key), key)]
    assert len(set(losses)) == 3
    assert losses[2] == float(loss(parameters, rest, batch, key)[0])


NETWORKS = {
    "softmax": (Softmax, (8, 8, 1), {}),
    "mlp": (MLP, (8, 8, 1), {"hidden": (16,)}),
    "cnn": (CNN, (8, 8, 3), {"channels": (4, 4)}),
    "signguard": (SignGuardCNN, GREY, {"dropout": 0.0}),
    "fltrust": (FLTrustCNN, (10, 10, 1), {}),
    "resnet": (ResNet, (8, 8, 3), {"blocks": (1, 1), "channels": (4, 8)}),
    "text": (TextRNN, (5,), {"vocabulary": 9, "embedding": 4, "hidden": 4}),
}


@pytest.mark.parametrize(
    "name",
    [
        *("mlp", "text"),
        *(pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS if n not in ("mlp", "text")),
    ],
)
def test_products_in_bfloat16(name):
    """Forward and, for word vectors, back: their gradients are sums that stay exact."""
    cls, shape, settings = NETWORKS[name]
    exact, rough = (
        Objective.of(cls(compute=compute, **settings), shape, 3)
        for compute in ("float32", "bfloat16")
    )
    flat, rest = exact.init(jax.random.key(0))
    assert rough.dtype == jnp.float32
    rng = np.random.default_rng(0)
    x = rng.integers(0, 9, (6, *shape)) if name == "text" else rng.normal(size=(6, *shape))
    x = jnp.asarray(x, jnp.int32 if name == "text" else jnp.float32)
    parameters = exact.unravel(flat)
    batch = Batch(x, jnp.zeros(6, jnp.int32), jnp.ones(6, bool))
    back = jax.make_jaxpr(jax.grad(lambda p: rough.loss(p, rest, batch, jax.random.key(0))[0]))
    sums = [line for line in str(back(parameters)).splitlines() if "scatter-add[" in line]
    assert (":f32[9,4] = " in "".join(sums)) == (name == "text")
    assert ":bf16[9,4] = " not in "".join(sums)
    text = str(jax.make_jaxpr(rough.logits)(parameters, rest, x))
    products = [line for line in text.splitlines() if "dot_general[" in line]
    assert products
    assert all(":bf16[" in line for line in products)
    one, other = (jax.jit(o.logits)(parameters, rest, x) for o in (exact, rough))
    assert other.dtype == jnp.float32
    scale = float(jnp.max(jnp.abs(one)))
    assert 0 < float(jnp.max(jnp.abs(one - other))) < 0.05 * scale


@pytest.mark.slow
def test_running_averages_serve_in_evaluation():
    """A network of one block whose statistics are not those that it starts with."""
    objective, flat, rest, x = draw(ResNet(blocks=(1,), channels=(4,)), (4, 4, 1))
    rest = jax.tree.map(lambda s: s + jnp.arange(4.0) / 3, rest)
    module = objective.module(flat, rest)
    assert [n.use_running_average for n in (module.norm, *module.blocks[0].norms)] == [True] * 3
    alone = np.concatenate([module(image[None]) for image in x])
    np.testing.assert_allclose(module(x), alone, rtol=1e-4, atol=1e-5)
    before, stem = module.norm, module.stem(jnp.asarray(x))
    mean, variance = np.asarray(before.mean[...]), np.asarray(before.var[...])
    expected = (np.asarray(stem) - mean) / np.sqrt(variance + 1e-5)
    expected = expected * np.asarray(before.scale[...]) + np.asarray(before.bias[...])
    np.testing.assert_allclose(before(stem), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["augmented", "resnet", "text"])
def test_rounds_of_clients(name):
    """All clients at once give what they give one after another."""
    rng = np.random.default_rng(0)
    if name == "text":
        model, shape = TextRNN(vocabulary=9, embedding=3, hidden=2), (5,)
        inputs = rng.integers(0, 9, (24, *shape)).astype("i4")
    else:
        model, shape = ResNet(blocks=(1,), channels=(4,)), (4, 4, 1)
        inputs = rng.normal(size=(24, *shape)).astype("f4")
    if name == "augmented":
        model = Augmented(model=Softmax(), padding=1)
    data = from_arrays(inputs, np.arange(24) % 3, inputs[:3], np.arange(3)).split(IID(), 4)
    ends = []
    for chunk in (4, 1):
        federation = Federation(algorithm=FedSGD(batch_size=3))
        simulation = Simulation(federation, data, model, evaluate_every=2, client_chunk=chunk)
        history = simulation.run(2)
        assert np.isfinite(history.state.params).all()
        ends.append(jax.device_get((history.state.params, history.state.model_state)))
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    sent = simulation.messages().sent
    assert len(np.unique(np.round(sent, 5), axis=0)) == 4
