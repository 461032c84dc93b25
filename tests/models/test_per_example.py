"""Clipped sums of per-example gradients: both ways against a loop over the examples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxfl.models import MLP, Objective, SignGuardCNN, Softmax, patches_convolution, per_example
from jaxfl.models.per_example import check_per_example, clipped_sum, uses_ghost_norms
from jaxfl.types import Batch


class Convolutions(nnx.Module):
    """Default convolutions: strides, every padding, a compute type of their own, one dimension."""

    def __init__(self, rngs):
        self.one = nnx.Conv(2, 4, (3, 2), strides=(2, 1), padding="SAME", rngs=rngs)
        self.two = nnx.Conv(4, 3, (2, 2), padding="CIRCULAR", use_bias=False, rngs=rngs)
        self.three = nnx.Conv(3, 3, (2, 3), padding=((1, 0), (2, 1)), strides=2, rngs=rngs)
        self.four = nnx.Conv(3, 4, 3, padding="CAUSAL", dtype=jnp.float32, rngs=rngs)
        self.head = nnx.Linear(4, 3, use_bias=False, rngs=rngs)

    def __call__(self, x):
        x = nnx.tanh(self.three(nnx.tanh(self.two(nnx.tanh(self.one(x))))))
        x = self.four(x.reshape(x.shape[0], -1, 3))
        return self.head(jnp.mean(x, axis=1))


class Sequence(nnx.Module):
    def __init__(self, rngs):
        self.one = nnx.Linear(3, 5, rngs=rngs)
        self.two = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.two(jnp.max(nnx.tanh(self.one(x)), axis=1))


class Jointly(nnx.Module):
    """Its examples see each other, unless each is alone."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.layer(x) * jnp.sum(x**2)


class Normalised(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), conv_general_dilated=patches_convolution, rngs=rngs)
        self.norm = nnx.GroupNorm(4, num_groups=2, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(nnx.relu(self.norm(self.conv(x))))
        return self.head(jnp.mean(x, axis=(1, 2)))


class Repeated(nnx.Module):
    def __init__(self, rngs):
        self.one = nnx.Linear(5, 5, rngs=rngs)
        self.two = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.two(nnx.tanh(self.one(nnx.tanh(self.one(x)))))


class SharedKernel(Repeated):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.three = nnx.Linear(5, 5, rngs=rngs)
        self.three.kernel = self.one.kernel

    def __call__(self, x):
        return self.two(nnx.tanh(self.three(nnx.tanh(self.one(x)))))


class Peeking(Repeated):
    """Uses a kernel outside of its layer."""

    def __call__(self, x):
        return self.two(nnx.tanh(self.one(x)) @ self.one.kernel[...].T)


class Rewritten(Repeated):
    """Calls a layer with other parameters than its own."""

    def __call__(self, x):
        self.one.kernel[...] = 2 * self.one.kernel[...]
        return self.two(nnx.tanh(self.one(x)))


class Scaled(Repeated):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, x):
        return self.two(self.scale[...] * nnx.tanh(self.one(x)))


class Checkpointed(Repeated):
    def __call__(self, x):
        return self.two(nnx.remat(lambda layer, x: nnx.tanh(layer(x)))(self.one, x))


class Unused(Repeated):
    def __call__(self, x):
        return self.two(x)


class Dilated(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (2, 2), kernel_dilation=2, feature_group_count=1, rngs=rngs)

    def __call__(self, x):
        return jnp.mean(self.conv(x), axis=(1, 2))


class Words(nnx.Module):
    def __init__(self, rngs):
        self.table = nnx.Embed(11, 5, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.mean(self.table(x), axis=1))


class BatchNormalised(nnx.Module):
    def __init__(self, rngs):
        self.layer, self.norm = nnx.Linear(5, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.layer(x))


GHOST = {
    "softmax": (Softmax(), (5,)),
    "mlp": (MLP(hidden=[7, 6]), (5,)),
    "dropout": (MLP(hidden=[40], dropout=0.5), (5,)),
    "cnn": (SignGuardCNN(), (28, 28, 1)),
    "convolutions": (Convolutions, (7, 6, 2)),
    "sequence": (Sequence, (4, 3)),
    "jointly": (Jointly, (5,)),
}
MATERIALISED = {
    "normalised": (Normalised, (6, 5, 2)),
    "repeated": (Repeated, (5,)),
    "shared_kernel": (SharedKernel, (5,)),
    "peeking": (Peeking, (5,)),
    "rewritten": (Rewritten, (5,)),
    "scaled": (Scaled, (5,)),
    "checkpointed": (Checkpointed, (5,)),
    "unused": (Unused, (5,)),
    "dilated": (Dilated, (6, 5, 2)),
    "words": (Words, (4,)),
}
MODELS = GHOST | MATERIALISED
EXHAUSTIVE = ("cnn", "softmax", "unused", "dropout", "convolutions")
"""Models whose kinds of layers others have too, or that take long to compile."""


def compiled():
    """A ``clipped_sum`` of its own, which does not reuse what others have traced."""
    return jax.jit(functools.partial(clipped_sum), static_argnums=(0, 6))


step = compiled()


def setup(name, size=7, clients=None, dtype=np.float32):
    """An objective, parameters, state, a batch (of each client) with a gap, and a clip."""
    model, shape = MODELS[name]
    objective = Objective.of(model, shape, 3)
    flat, statistics = objective.init(jax.random.key(1))
    params = jax.tree.map(lambda p: p.astype(dtype), objective.unravel(flat))
    rng = np.random.default_rng(2)
    lead = (size,) if clients is None else (clients, size)
    x = (
        rng.integers(0, 11, (*lead, *shape))
        if name == "words"
        else rng.normal(size=(*lead, *shape))
    )
    x = jnp.asarray(x, jnp.int32 if name == "words" else dtype)
    mask = np.ones(lead, bool)
    mask[..., 1] = False
    labels = jnp.asarray(rng.integers(0, 3, lead), jnp.int32)
    return objective, params, statistics, Batch(x, labels, jnp.asarray(mask))


@functools.cache
def gradient_of(objective):
    return jax.jit(jax.grad(objective.loss, has_aux=True))


def each(objective, params, statistics, batch, key):
    """Gradients of the unmasked examples, one after the other, as matrices' rows."""
    gradient = gradient_of(objective)
    for i in np.flatnonzero(batch.mask):
        one = Batch(batch.inputs[i : i + 1], batch.labels[i : i + 1], jnp.ones(1, bool))
        yield raveled(gradient(params, statistics, one, jax.random.fold_in(key, i))[0])


def raveled(tree):
    return np.concatenate([np.asarray(g, np.float64).ravel() for g in jax.tree.leaves(tree)])


def loop(objective, params, statistics, batch, key, clip):
    total = np.zeros(objective.dim)
    for g in each(objective, params, statistics, batch, key):
        norm = np.linalg.norm(g)
        if np.isfinite(norm):
            total += g * min(1, clip / norm) if norm else g
    return total


def middle_clip(*args):
    """A clip that half of the gradients exceed."""
    return float(np.median([np.linalg.norm(g) for g in each(*args)]))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in EXHAUSTIVE else ()) for name in MODELS],
)
def test_both_ways_equal_a_loop(name, key, monkeypatch):
    objective, params, statistics, batch = setup(name)
    sample = jax.ShapeDtypeStruct(batch.inputs.shape[1:], batch.inputs.dtype)
    assert uses_ghost_norms(objective, sample) == (name in GHOST)
    clip = middle_clip(objective, params, statistics, batch, key)
    expected = loop(objective, params, statistics, batch, key, clip)
    for way in (step, compiled()) if name in GHOST and name != "cnn" else (step,):
        loss, after, got = way(objective, params, statistics, batch, key, clip)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(raveled(got), expected, rtol=1e-4, atol=2e-6 * scale)
        assert jax.tree.structure(got) == jax.tree.structure(params)
        plain, plain_after = jax.jit(objective.loss)(params, statistics, batch, key)
        assert jax.tree.structure(after) == jax.tree.structure(plain_after)
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(plain_after), strict=True):
            assert jnp.all(a == b)
        if name not in ("cnn", "dropout", "normalised", "jointly"):
            np.testing.assert_allclose(loss, plain, rtol=1e-5)
        monkeypatch.setattr(per_example, "ghost_shapes", lambda *_: None)


@pytest.mark.parametrize(
    "name",
    ["mlp", *(pytest.param(n, marks=pytest.mark.slow) for n in ("convolutions", "normalised"))],
)
def test_both_ways_in_double_precision(name, key, monkeypatch):
    with jax.enable_x64(True):
        if name == "convolutions":
            monkeypatch.setitem(MODELS, name, (_DoubleConvolutions, MODELS[name][1]))
        problem = setup(name, dtype=np.float64)
        clip = middle_clip(*problem, key)
        expected = loop(*problem, key, clip)
        _, _, got = compiled()(*problem, key, clip, 3)
        monkeypatch.setattr(per_example, "ghost_shapes", lambda *_: None)
        _, _, other = compiled()(*problem, key, clip, 3)
        assert {g.dtype for g in jax.tree.leaves((got, other))} == {np.dtype("float64")}
    np.testing.assert_allclose(raveled(got), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(raveled(other), expected, rtol=1e-10, atol=1e-10)


class _DoubleConvolutions(Convolutions):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.four.dtype = None


@pytest.mark.parametrize("name", ["dropout", "convolutions", "normalised"])
@pytest.mark.parametrize("microbatch", [pytest.param(None, marks=pytest.mark.slow), 3])
def test_mapped_over_clients_in_a_scan(name, microbatch, key):
    objective, params, statistics, batch = setup(name, clients=3)
    stacked = jax.tree.map(lambda p: jnp.stack([p, 2 * p, 3 * p]), params)
    keys = jax.random.split(key, 3)
    clips = jnp.asarray([0.01, 0.3, 1e6])

    @jax.jit
    def run(params):
        def step(params, _):
            def client(params, batch, key, clip):
                return clipped_sum(objective, params, statistics, batch, key, clip, microbatch)

            return params, jax.vmap(client)(params, batch, keys, clips)[2]

        return jax.tree.map(lambda g: g[0], jax.lax.scan(step, params, length=1)[1])

    got = run(stacked)
    for i in range(3):
        own = jax.tree.map(lambda x, i=i: x[i], (got, stacked, batch))
        expected = loop(objective, own[1], statistics, own[2], keys[i], float(clips[i]))
        scale = np.abs(expected).max()
        np.testing.assert_allclose(raveled(own[0]), expected, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("name", ["mlp", "convolutions", "normalised"])
def test_masked_and_broken_examples_add_nothing(name, key):
    objective, params, statistics, batch = setup(name)
    clean = step(objective, params, statistics, batch, key, 0.5)[2]
    masked = batch.replace(inputs=batch.inputs.at[1].set(jnp.nan))
    loss, _, got = step(objective, params, statistics, masked, key, 0.5)
    np.testing.assert_array_equal(raveled(got), raveled(clean))
    assert jnp.isfinite(loss)
    others = batch.replace(mask=batch.mask.at[3].set(False))
    without = loop(objective, params, statistics, others, key, 0.5)
    for bad in (jnp.nan, jnp.inf, 3e38):
        broken = batch.replace(inputs=batch.inputs.at[3].set(bad))
        expected = loop(objective, params, statistics, broken, key, 0.5)
        got = raveled(step(objective, params, statistics, broken, key, 0.5)[2])
        # Whether the gradient of what is so large overflows, the order of its sums decides.
        if bad != 3e38 or not np.allclose(got, expected, rtol=1e-4, atol=1e-6):
            np.testing.assert_allclose(got, without, rtol=1e-4, atol=1e-6)
    nothing = batch.replace(mask=jnp.zeros(7, bool), inputs=jnp.full_like(batch.inputs, jnp.nan))
    loss, _, got = step(objective, params, statistics, nothing, key, 0.5)
    assert loss == 0
    assert not raveled(got).any()


@pytest.mark.parametrize("name", ["mlp", "convolutions", "repeated"])
def test_a_clip_above_all_norms_is_the_plain_gradient(name, key):
    objective, params, statistics, batch = setup(name)
    _, _, got = step(objective, params, statistics, batch, key, 1e6)
    plain, _ = gradient_of(objective)(params, statistics, batch, key)
    expected = raveled(plain) * 6
    np.testing.assert_allclose(raveled(got), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["dropout", "convolutions", "sequence", "normalised"])
def test_an_example_more_or_less_changes_the_sum_by_at_most_the_clip(name, key):
    objective, params, statistics, batch = setup(name)
    rng = np.random.default_rng(3)
    most = 0.0
    for trial in range(40):
        scales = 10.0 ** rng.uniform(-30, 30, 7) if trial % 2 else 10.0 ** rng.uniform(-2, 4, 7)
        x = rng.normal(size=batch.inputs.shape) * scales.reshape(7, *[1] * (batch.inputs.ndim - 1))
        weights = jax.tree.map(lambda p, s=10.0 ** rng.uniform(-1, 1): p * s, params)
        clip = 10.0 ** rng.uniform(-3, 1)
        mask = rng.random(7) < 0.5
        i = rng.integers(7)
        sums = []
        for present in (False, True):
            mask[i] = present
            neighbour = Batch(jnp.asarray(x, jnp.float32), batch.labels, jnp.asarray(mask))
            out = step(
                objective, weights, statistics, neighbour, jax.random.fold_in(key, trial), clip
            )
            sums.append(raveled(out[2]))
        assert np.isfinite(sums).all()
        change = np.linalg.norm(sums[1] - sums[0]) / clip
        assert change <= 1 + 1e-5
        most = max(most, change)
    assert most > 0.99


def test_factors_too_small_to_square_are_not_taken_for_zero():
    class Pair(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(2, 2, use_bias=False, rngs=rngs)

        def __call__(self, x):
            return 1e-21 * self.layer(x)

    objective = Objective.of(Pair, (2,), 2)
    flat, statistics = objective.init(jax.random.key(0))
    batch = Batch(jnp.full((1, 2), 1e18), jnp.zeros(1, jnp.int32), jnp.ones(1, bool))
    clip = 1e-5
    args = (objective, objective.unravel(flat), statistics, batch, jax.random.key(0), clip)
    norms = [np.linalg.norm(g) for g in each(*args[:-1])]
    assert norms[0] > 10 * clip
    assert np.linalg.norm(raveled(step(*args)[2])) <= clip * (1 + 1e-5)


@pytest.mark.parametrize("name", ["mlp", "convolutions", "repeated"])
def test_half_precision_parameters(name, key):
    objective, params, statistics, batch = setup(name, dtype=jnp.bfloat16)
    exact = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    full = batch.replace(inputs=batch.inputs.astype(jnp.float32))
    clip = middle_clip(objective, exact, statistics, full, key)
    expected = loop(objective, exact, statistics, full, key, clip)
    _, _, got = step(objective, params, statistics, batch, key, clip)
    assert {g.dtype for g in jax.tree.leaves(got)} == {np.dtype(jnp.bfloat16)}
    assert np.linalg.norm(raveled(got) - expected) < 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize("microbatch", [1, 2, 7, 100])
def test_microbatches_do_not_change_the_sum(microbatch, key):
    problem = setup("normalised")
    expected = step(*problem, key, 0.3)
    got = step(*problem, key, 0.3, microbatch)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(raveled(got[2]), raveled(expected[2]), rtol=1e-4, atol=1e-6)


@pytest.mark.default_compiler
def test_microbatches_bound_the_memory(key):
    objective, params, statistics, batch = setup("repeated", size=4096)

    def memory(microbatch):
        lowered = step.lower(objective, params, statistics, batch, key, 0.1, microbatch)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert memory(16) < memory(4096) / 3
    assert memory(None) == memory(16), "the default, of whole gradients"


@pytest.mark.default_compiler
def test_one_forward_and_one_backward_pass(key):
    objective = Objective.of(MLP(hidden=[128]), (784,), 10)
    flat, statistics = objective.init(key)
    params = objective.unravel(flat)
    batch = Batch(jnp.ones((50, 784)), jnp.zeros(50, jnp.int32), jnp.ones(50, bool))

    def ours(params):
        return clipped_sum(objective, params, statistics, batch, key, 0.1)

    def plain(params):
        return jax.value_and_grad(objective.loss, has_aux=True)(params, statistics, batch, key)

    flops = [jax.jit(f).lower(params).compile().cost_analysis()["flops"] for f in (ours, plain)]
    assert flops[0] < 1.1 * flops[1]
    # Two products forward, one error back, two gradients; the dropped forward pass has two more.
    text = str(jax.make_jaxpr(ours)(params))
    assert text.count("dot_general[") == 5 + 2


def test_which_way_without_a_sample():
    assert uses_ghost_norms(Objective.of(SignGuardCNN(), (28, 28, 1), 10))
    with pytest.raises(ValueError, match="shape and type of one sample"):
        uses_ghost_norms(Objective.of(Repeated, (5,), 3))


class Counted(nnx.Variable):
    """Of a kind that nobody here knows."""


class Remembers(nnx.Module):
    """Writes the mean of what it saw into a variable that is not trained."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(5, 3, rngs=rngs)
        self.seen = Counted(jnp.zeros(()))

    def __call__(self, x):
        self.seen[...] = x.mean()
        return self.layer(x)


def test_what_travels_beside_the_parameters_is_refused():
    with pytest.raises(ValueError, match=r"not trained \(Counted\) cannot be private"):
        check_per_example(Objective.of(Remembers, (5,), 3))


def test_parameters_of_half_precision_are_refused():
    """The sum of clipped gradients would be rounded before its noise."""

    def make(rngs):
        return nnx.Linear(5, 3, rngs=rngs, param_dtype=jnp.bfloat16)

    with pytest.raises(ValueError, match="parameters in bfloat16 cannot be private"):
        check_per_example(Objective.of(make, (5,), 3))


def test_batch_normalisation_is_refused():
    with pytest.raises(ValueError, match=r"use nnx\.GroupNorm"):
        check_per_example(Objective.of(BatchNormalised, (5,), 3))
    for model, shape in MODELS.values():
        check_per_example(Objective.of(model, shape, 3))


@pytest.mark.filterwarnings("ignore:optax.global_norm:DeprecationWarning")
@pytest.mark.parametrize("name", ["mlp", "convolutions", "repeated"])
def test_the_sum_is_that_of_jax_privacy(name, key):
    clipping = pytest.importorskip("jax_privacy.clipping")
    objective, params, statistics, batch = setup(name)

    def loss(params, inputs, labels):
        return objective.loss(params, statistics, Batch(inputs, labels, jnp.ones(1, bool)), key)[0]

    theirs = clipping.clipped_grad(loss, batch_argnums=(1, 2), l2_clip_norm=0.4)
    expected = jax.jit(theirs)(params, batch.inputs, batch.labels, is_padding_example=~batch.mask)
    got = step(objective, params, statistics, batch, key, 0.4)[2]
    np.testing.assert_allclose(raveled(got), raveled(expected), rtol=1e-4, atol=1e-6)
