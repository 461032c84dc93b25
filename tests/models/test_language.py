"""The transformer by hand; adapters on a frozen base; the base and its file."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from references import dense, layer_normal

import jaxfl
from jaxfl import PublicTexts, pretraining
from jaxfl.data import IID, from_arrays
from jaxfl.identity import describe
from jaxfl.models import CNN, MLP, Base, Frozen, LoRA, Objective, Softmax, TextRNN, Transformer
from jaxfl.models.layers import segments
from jaxfl.types import Batch

T, WORDS, CLASSES = 5, 11, 3
SMALL = Transformer(vocabulary=WORDS, width=4, layers=2, heads=2, hidden=6)
TEXTS = np.array([[3, 1, 10, 2, 4], [5, 6, 0, 0, 0], [7, 0, 0, 0, 0], [0, 0, 0, 0, 0]], "i4")
ADAPTED = LoRA(model=SMALL, rank=2)
LAST = ("layers.1",)


@functools.cache
def objective_of(model):
    return Objective.of(model, (T,), CLASSES)


def drawn(model):
    """Parameters, biases and scales too, none of them 0."""
    objective = objective_of(model)
    flat, rest = objective.init(jax.random.key(0))
    flat = jnp.asarray(np.random.default_rng(0).normal(0, 0.4, flat.shape), flat.dtype)
    return objective, flat, rest


def by_hand(p, texts):
    """The logits, text by text, from what words there are."""

    answers = []
    for text in texts:
        words = text[text > 0]
        x = p["embedding"]["embedding"][words] + p["positions"][: len(words)]
        for block in p["blocks"].values():
            q, k, v = np.split(
                dense(layer_normal(x, block["attention_norm"]), block["qkv"]), 3, axis=1
            )
            heads = []
            for i in (slice(0, 2), slice(2, 4)):
                shares = np.exp(q[:, i] @ k[:, i].T / np.sqrt(2))
                heads.append(shares / shares.sum(axis=1, keepdims=True) @ v[:, i])
            x = x + dense(np.concatenate(heads, axis=1), block["out"])
            up = np.maximum(dense(layer_normal(x, block["dense_norm"]), block["up"]), 0)
            x = x + dense(up, block["down"])
        mean = layer_normal(x, p["norm"]).mean(axis=0) if len(words) else np.zeros(4)
        answers.append(dense(mean, p["head"]["layers"][0]))
    return np.array(answers)


def pure(module):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module)))


def test_a_transformer_by_hand():
    objective, flat, rest = drawn(SMALL)
    want = by_hand(pure(objective.module(flat, rest)), TEXTS)
    got = jax.jit(objective.logits)(objective.unravel(flat), rest, TEXTS)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_sizes():
    block = 4 * 64**2 + 4 * 64 + 2 * 64 * 256 + 256 + 64 + 4 * 64
    whole = 8_192 * 64 + 64 * 64 + 2 * block + 2 * 64 + 64 * 4 + 4
    assert Objective.of(Transformer(), (64,), 4).dim == whole
    adapters = 2 * 2 * ((4 + 3 * 4) + (4 + 4))
    assert objective_of(ADAPTED).dim == adapters + 4 * 3 + 3


def test_bfloat16():
    exact, flat, rest = drawn(SMALL)
    rough = Objective.of(SMALL.replace(compute="bfloat16"), (T,), CLASSES)
    one, other = (
        jax.jit(o.logits)(o.unravel(flat), rest, TEXTS) for o in (exact, rough)
    )  # fmt: skip
    assert other.dtype == jnp.float32
    assert 0 < np.abs(one - other).max() < 0.05 * np.abs(one).max()


@pytest.mark.parametrize("adapted", ["ab", "b"])
def test_adapters_by_hand(adapted):
    """The base's layers with x W + x A B, and no gradient to anything else."""
    objective, flat, rest = drawn(ADAPTED.replace(adapted=adapted))
    module = objective.module(flat, rest)
    p = pure(module)
    for block in p["blocks"].values():
        for name in ("qkv", "out"):
            layer = block[name]
            own = layer["base_module"]
            block[name] = {
                "kernel": own["kernel"] + layer["lora_a"] @ layer["lora_b"],
                "bias": own["bias"],
            }
    got = jax.jit(objective.logits)(objective.unravel(flat), rest, TEXTS)
    np.testing.assert_allclose(got, by_hand(p, TEXTS), rtol=1e-4, atol=1e-5)
    frozen = isinstance(module.blocks[0].qkv.lora_a, Frozen)
    assert frozen == (adapted == "b")
    kinds = [s.kind for s in segments(objective, jax.ShapeDtypeStruct((2, T), jnp.int32))]
    factors = ["lora_a", "lora_b"] if adapted == "ab" else ["lora_b"]
    assert kinds == [*(factors * 4), "bias", "kernel"]


def test_it_starts_at_the_base_with_orthonormal_columns():
    model = LoRA(model=Softmax(), targets=("layers.0",), trained=(), rank=2, scale=3.0)
    objective = objective_of(model)
    flat, rest = objective.init(jax.random.key(1))
    layer = objective.module(flat, rest).layers[0]
    np.testing.assert_allclose(layer.lora_a.T @ layer.lora_a[...], 9 * np.eye(2), atol=1e-5)
    assert not np.any(layer.lora_b[...])


def test_the_base_is_in_no_state_and_the_same_for_every_seed():
    objective = objective_of(ADAPTED)
    (one, rest), (two, _) = (objective.init(jax.random.key(seed)) for seed in (0, 1))
    assert not jax.tree.leaves(rest)
    assert not np.array_equal(one, two)
    embedded = [objective.module(x, rest).embedding.embedding for x in (one, two)]
    np.testing.assert_array_equal(*(x[...] for x in embedded))
    again = Objective.of(ADAPTED, (T,), CLASSES)
    assert (objective, hash(objective)) == (again, hash(again))
    assert objective.frozen.digest in str(describe(objective))


class Known(Base):
    """A base of fives."""

    size: int = WORDS

    def weights(self, model, sample_shape, classes):
        return {"embedding.embedding": np.full((self.size, 4), 5.0, "f4")}


class Untouched(Base):
    """A base that is never to be trained."""

    def weights(self, model, sample_shape, classes):
        raise AssertionError("trained for nothing")


UNTOUCHED = ADAPTED.replace(base=Untouched())


def test_another_base_is_another_objective():
    plain, known = objective_of(ADAPTED), objective_of(ADAPTED.replace(base=Known()))
    assert plain != known
    flat, rest = known.init(jax.random.key(0))
    np.testing.assert_array_equal(known.module(flat, rest).embedding.embedding[...], 5)


@pytest.mark.slow
def test_rounds_of_clients():
    """All at once give what they give one after another; the base is a constant of neither."""
    random = np.random.default_rng(0)
    texts = random.integers(0, WORDS, (24, T)).astype("i4")
    data = from_arrays(texts, np.arange(24) % CLASSES, texts[:3], np.arange(3)).split(IID(), 4)
    ends = []
    for chunk in (4, 1):
        federation = jaxfl.Federation(aggregator=jaxfl.ProductSpace())
        simulation = jaxfl.Simulation(
            federation, data, ADAPTED, evaluate_every=2, client_chunk=chunk
        )
        history = simulation.run(2)
        ends.append(np.asarray(history.state.params))
        assert simulation.messages().sent.shape == (4, objective_of(ADAPTED).dim)
    assert np.isfinite(ends[0]).all()
    np.testing.assert_allclose(*ends, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Transformer(heads=3), "heads must divide width = 64; got 3"),
        (lambda: Objective.of(SMALL, (5, 5, 1), 3), "Transformer needs rows of word ids"),
        (lambda: LoRA(rank=0), "rank must be at least 1; got 0"),
        (
            lambda: Objective.of(UNTOUCHED.replace(rank=5), (T,), 3),
            r"rank must be at most 4, the smaller side of blocks.0.qkv, which is 4 x 12; got 5",
        ),
        (
            lambda: Objective.of(UNTOUCHED.replace(targets=("query",)), (T,), 3),
            "targets must name modules of the model; got 'query', and there are .*blocks.0.qkv",
        ),
        (
            lambda: Objective.of(UNTOUCHED.replace(trained=("tail",)), (T,), 3),
            "trained must name modules of the model; got 'tail'",
        ),
        (
            lambda: Objective.of(UNTOUCHED.replace(targets=("embedding",)), (T,), 3),
            "must be dense layers .*; embedding is a Embed",
        ),
        (
            lambda: UNTOUCHED.replace(model=MLP(), targets=LAST, trained=LAST).build(
                (8,), 3, nnx.Rngs(0)
            ),
            "layers.1 is both among targets and trained",
        ),
        (lambda: LoRA(targets=(), trained=()), "there is nothing to train"),
        (
            lambda: Objective.of(ADAPTED.replace(base=Known(size=3)), (T,), 3),
            r"base has embedding.embedding of shape \(3, 4\); the model's is \(11, 4\)",
        ),
        (
            lambda: Objective.of(LoRA(model=TextRNN(), base=PublicTexts(), targets=()), (T,), 3),
            "PublicTexts trains a Transformer; got TextRNN",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_a_base_of_texts_that_clients_have_is_refused(monkeypatch):
    """Before the base is trained, whichever way the numbers differ."""
    monkeypatch.setattr(PublicTexts, "weights", lambda *_: {})
    model = ADAPTED.replace(base=PublicTexts(texts=15_000))
    texts = np.ones((4, T), np.int32)
    labels = np.arange(4) % CLASSES

    def planned(public):
        dataset = jaxfl.data.Dataset("texts", texts, labels, texts, labels, CLASSES, public=public)
        return jaxfl.make_plan(jaxfl.Federation(), dataset.split(IID(), 2), model)

    assert planned(15_000).spec.population == 2
    for public in (0, 14_000):
        with pytest.raises(ValueError, match=rf"data.public = 15000, .* words; got {public}$"):
            planned(public)


@pytest.mark.slow
def test_a_base_tells_topics_apart():
    """Texts of two topics, each with words of its own, some of them short."""
    random = np.random.default_rng(0)
    topic = np.arange(64) % 2
    words = random.integers(2, 6, (64, 6)) + 5 * topic[:, None]
    words[::3, 4:] = 0
    base = PublicTexts(texts=64, epochs=20, batch_size=32, learning_rate=0.03)
    model = SMALL.replace(layers=1)
    trained = pretraining.train(base, model, words.astype("i4"), 2)
    module = model.build((6,), 2, nnx.Rngs(5))
    for path, param in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        name = ".".join(map(str, path))
        assert (name in trained) == (not name.startswith("head."))
        param.set_value(jnp.asarray(trained.get(name, param[...])))
    read = np.asarray(module.read(words))
    read = read / np.linalg.norm(read, axis=1, keepdims=True)
    cosines, same = read @ read.T, topic[:, None] == topic
    assert cosines[same].mean() > 0.5 + cosines[~same].mean()


def test_a_base_is_trained_once_and_kept(tmp_path, monkeypatch):
    asked, made = [], []

    def public(texts, length, vocabulary):
        asked.append((texts, length, vocabulary))
        return np.full((texts, length), 3, "i4")

    def train(base, model, words, classes):
        made.append(base)
        assert words.shape == (base.texts, T)
        return {"embedding.embedding": np.full((WORDS, 4), base.epochs, "f4")}

    def embedded(base):
        pretraining._weights.cache_clear()  # as in another process
        return set(np.ravel(base.weights(SMALL, (T,), 2)["embedding.embedding"]).tolist())

    monkeypatch.setattr(pretraining, "public_ag_news", public)
    monkeypatch.setattr(pretraining, "train", train)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    base = PublicTexts(texts=9, epochs=7)
    with pytest.warns(UserWarning, match="training the public base of 9 texts"):
        assert embedded(base) == {7}
    assert asked == [(9, T, WORDS)]
    (file,) = (tmp_path / "jaxfl" / "bases").iterdir()
    content = file.read_bytes()
    assert embedded(base) == {7}
    assert made == [base]
    file.write_bytes(content[: len(content) // 2])  # damaged: made anew
    with pytest.warns(UserWarning, match="training"):
        assert embedded(base) == {7}
    assert file.read_bytes() == content
    with pytest.warns(UserWarning, match="training"):
        assert embedded(base.replace(epochs=2)) == {2}
    assert len(list(file.parent.iterdir())) == 2
    pretraining._weights.cache_clear()


def test_a_gradient_of_the_adapters_is_that_of_the_whole_model():
    """By autodiff of the same layers with all their parameters."""
    objective, flat, rest = drawn(LoRA(model=Softmax(), targets=("layers.0",), trained=(), rank=2))
    x = np.random.default_rng(1).normal(size=(4, T)).astype("f4")
    labels = np.array([0, 1, 2, 1])
    batch = Batch(jnp.asarray(x), jnp.asarray(labels), jnp.ones(4, bool))
    _, found = objective.value_and_grad(objective.unravel(flat), rest, batch, jax.random.key(0))
    layer = pure(objective.module(flat, rest))["layers"][0]
    logits = x @ (layer["base_module"]["kernel"] + layer["lora_a"] @ layer["lora_b"])
    logits = logits + layer["base_module"]["bias"]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    whole = x.T @ (shares - np.eye(3)[labels]) / 4
    own = jax.tree.map(np.asarray, nnx.to_pure_dict(found))["layers"][0]
    np.testing.assert_allclose(own["lora_a"], whole @ layer["lora_b"].T, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(own["lora_b"], layer["lora_a"].T @ whole, rtol=1e-4, atol=1e-6)


def test_convolutions_are_not_targets():
    model = LoRA(model=CNN(channels=(2,)), targets=("convs.0",))
    with pytest.raises(ValueError, match=r"convs\.0 is a Conv"):
        Objective.of(model, (8, 8, 1), 3)
