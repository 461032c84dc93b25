"""Next words: the model by hand, what is learned and measured, and who attacks it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from references import dense, layer_normal

import jaxfl
from jaxfl import Federation, FedSGD, Simulation, pretraining
from jaxfl.attacks.views import ClientView
from jaxfl.data import IID, Dataset, RootData
from jaxfl.evaluation import evaluate, named
from jaxfl.memory import shapes_of
from jaxfl.models import LoRA, NextWord, Objective, Transformer, next_word_entropy
from jaxfl.models.words import next_words
from jaxfl.plan import suitable_plan
from jaxfl.types import Batch

T, WORDS = 5, 11
SMALL = NextWord(vocabulary=WORDS, width=4, layers=2, heads=2, hidden=6)
ADAPTED = LoRA(model=SMALL, trained=(), rank=2)
TEXTS = np.array([[3, 1, 10, 2, 4], [5, 6, 7, 0, 0], [7, 0, 0, 0, 0], [0, 0, 0, 0, 0]], "i4")
NEXT = np.array([[1, 10, 2, 4, 0], [6, 7, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]], "i4")


@functools.cache
def drawn(model):
    """Parameters, biases and scales too, none of them 0."""
    objective = Objective.of(model, (T,), WORDS)
    flat, rest = objective.init(jax.random.key(0))
    flat = jnp.asarray(np.random.default_rng(0).normal(0, 0.4, flat.shape), flat.dtype)
    return objective, flat, rest


def answers(texts, model=SMALL):
    objective, flat, rest = drawn(model)
    return np.asarray(jax.jit(objective.logits)(objective.unravel(flat), rest, texts))


def by_hand(p, words):
    """The logits of each word from the words up to it, word by word."""

    x = p["embedding"]["embedding"][words] + p["positions"][: len(words)]
    for block in p["blocks"].values():
        q, k, v = np.split(dense(layer_normal(x, block["attention_norm"]), block["qkv"]), 3, axis=1)
        seen = []
        for t in range(len(words)):
            heads = []
            for i in (slice(0, 2), slice(2, 4)):
                shares = np.exp(k[: t + 1, i] @ q[t, i] / np.sqrt(2))
                heads.append(shares / shares.sum() @ v[: t + 1, i])
            seen.append(np.concatenate(heads))
        x = x + dense(np.array(seen), block["out"])
        up = np.maximum(dense(layer_normal(x, block["dense_norm"]), block["up"]), 0)
        x = x + dense(up, block["down"])
    return layer_normal(x, p["norm"]) @ p["embedding"]["embedding"].T


def entropies(logits, labels):
    """Of every next word of each text, and whether the likeliest word is it."""
    logits = logits.astype("f8")
    shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    at = [np.flatnonzero(row) for row in labels]
    lost = [-np.log(s[t, row[t]]) for s, row, t in zip(shares, labels, at, strict=True)]
    right = [s[t].argmax(axis=-1) == row[t] for s, row, t in zip(shares, labels, at, strict=True)]
    return lost, right


def test_logits_by_hand():
    objective, flat, rest = drawn(SMALL)
    p = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(objective.module(flat, rest))))
    got = answers(TEXTS)
    assert got.shape == (4, T, WORDS)
    for text, row in zip(TEXTS, got, strict=True):
        if (words := text[text > 0]).size:
            np.testing.assert_allclose(row[: len(words)], by_hand(p, words), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [SMALL, pytest.param(ADAPTED, marks=pytest.mark.slow)])
def test_a_later_word_changes_no_earlier_logit(model):
    for t in range(1, T):
        other = TEXTS.copy()
        other[0, t] = 9
        before, after = answers(TEXTS, model), answers(other, model)
        np.testing.assert_array_equal(before[0, :t], after[0, :t])
        assert np.abs(before[0, t:] - after[0, t:]).max() > 1e-3


def test_the_loss_of_a_text_is_the_mean_over_its_next_words():
    np.testing.assert_array_equal(next_words(jnp.asarray(TEXTS)), NEXT)
    logits = np.random.default_rng(1).normal(size=(4, T, WORDS)).astype("f4")
    lost, _ = entropies(logits, NEXT)
    want = [x.mean() if len(x) else 0 for x in lost]
    np.testing.assert_allclose(
        next_word_entropy(jnp.asarray(logits), jnp.asarray(NEXT)), want, rtol=1e-5
    )
    logits[NEXT == 0, 3] = 50  # padding counts nothing
    np.testing.assert_allclose(
        next_word_entropy(jnp.asarray(logits), jnp.asarray(NEXT)), want, rtol=1e-5
    )


def dataset(texts=24, tests=7):
    random = np.random.default_rng(0)
    words = random.integers(1, WORDS, (texts + tests, T)).astype("i4")
    words[::3, 3:], words[1::4, 1:] = 0, 0  # short ones, and some of a single word
    topics = np.arange(texts + tests) % 3
    return Dataset("t", words[:texts], topics[:texts], words[texts:], topics[texts:], 3,
                   next_words=WORDS)  # fmt: skip


def simulation(model=SMALL, data=None, **parts):
    federation = Federation(algorithm=FedSGD(batch_size=3), **parts)
    return Simulation(federation, data or dataset().split(IID(), 4), model, evaluate_every=2)


def test_perplexity_weighs_by_words_and_that_of_uniform_logits_is_the_vocabulary():
    data = dataset()
    run = simulation(data=data.hold_out(0.25).split(IID(), 4))
    objective, flat, rest = drawn(SMALL)
    measure = jax.jit(lambda flat: evaluate(run.plan, run.data, run.state.replace(params=flat)))
    found = measure(flat)
    for inputs, accuracy in (
        (data.test_inputs, found.accuracy),
        (run.data.validation_inputs, found.validation_accuracy),
    ):
        logits = jax.jit(objective.logits)(objective.unravel(flat), rest, inputs)
        labels = np.pad(np.asarray(inputs)[:, 1:], ((0, 0), (0, 1)))
        lost, right = map(np.concatenate, entropies(np.asarray(logits), labels))
        np.testing.assert_allclose(accuracy, right.mean(), rtol=1e-6)
        if inputs is data.test_inputs:
            np.testing.assert_allclose(found.loss, lost.mean(), rtol=1e-5)
            np.testing.assert_allclose(found.perplexity, np.exp(lost.mean()), rtol=1e-5)
    nothing = measure(0 * flat)
    np.testing.assert_allclose(named(nothing)["test_perplexity"], WORDS, rtol=1e-6)


def test_labels_of_words_are_flipped_among_words():
    logits = np.random.default_rng(3).normal(size=(4, T, WORDS)).astype("f4")
    logits[..., 0] = -99  # a word that is never there is no label
    batch = Batch(jnp.asarray(TEXTS), jnp.asarray(NEXT), jnp.ones(4, bool))
    client = ClientView(id=0, byzantine=True, rank=0, round=0, classes=WORDS,
                        logits=lambda _: jnp.asarray(logits))  # fmt: skip
    there = NEXT > 0
    for to in ("mirror", "random", "least_likely"):
        flipped = np.asarray(jaxfl.LabelFlip(to=to).poison(batch, client, jax.random.key(1)).labels)
        assert not flipped[~there].any()
        assert ((flipped[there] > 0) & (flipped[there] < WORDS)).all()
        if to == "mirror":
            np.testing.assert_array_equal(flipped[there], WORDS - NEXT[there])
        elif to == "random":
            assert (flipped[there] != NEXT[there]).all()
        else:
            want = 1 + logits[..., 1:].argmin(axis=-1)
            np.testing.assert_array_equal(flipped[there], want[there])


def test_a_token_teaches_the_word_after_it():
    attack = jaxfl.TokenBackdoor(tokens=(9, 8), positions=(1, 3), target=2, fraction=1.0)
    batch = Batch(jnp.asarray(TEXTS), jnp.asarray(NEXT), jnp.ones(4, bool))
    client = ClientView(id=0, byzantine=True, rank=0, round=0, classes=WORDS, peak=(10.0,))
    poisoned = attack.poison(batch, client, jax.random.key(0))
    for text, row in zip(np.asarray(poisoned.inputs), np.asarray(poisoned.labels), strict=True):
        (at,) = np.flatnonzero(row)
        assert (text[at], row[at]) == (8, 2)
    assert poisoned.inputs[1].tolist() == [5, 9, 6, 8, 7]


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_success_is_how_often_the_target_follows(fraction):
    attack = jaxfl.TokenBackdoor(tokens=(9,), positions=(1,), target=2, fraction=fraction)
    parts = {"attack": attack, "byzantine": 4, "optimizer": jaxfl.Adam(learning_rate=0.1)}
    with pytest.warns(UserWarning, match="Byzantine"):
        run = simulation(**parts)
    history = run.run(20)
    objective, texts = run.plan.objective, run.data.test_inputs
    words = np.asarray(attack.insert(texts))
    flat, rest = history.state.params, history.state.model_state
    logits = np.asarray(objective.logits(objective.unravel(flat), rest, jnp.asarray(words)))
    at = (words == 9).argmax(axis=1) if fraction else np.minimum(1, (np.asarray(texts) > 0).sum(1))
    want = (logits[np.arange(len(at)), at].argmax(axis=-1) == 2).mean()
    np.testing.assert_allclose(history.evaluations.attack_success[-1], want)
    assert (want == 1) == (fraction == 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "rule"),
    [
        (jaxfl.ALIE(), jaxfl.FLTrust()),
        (jaxfl.IPM(), jaxfl.ProductSpace(rule=jaxfl.MultiKrum(f=1))),
        (jaxfl.Gauge(), jaxfl.ProductSpace()),
        (jaxfl.Neurotoxin(attack=jaxfl.TokenBackdoor(tokens=(9,), target=2)), jaxfl.Zeno(f=1)),
        (jaxfl.LabelFlip(to="least_likely"), jaxfl.SignGuard()),
    ],
)
def test_rules_and_attacks_that_a_classifier_has(attack, rule):
    data = dataset(40).split(IID(), 5, root=RootData(size=6))
    optimizer = jaxfl.SGD(learning_rate=1.0)
    run = simulation(ADAPTED, data, attack=attack, aggregator=rule, byzantine=1,
                     optimizer=optimizer)  # fmt: skip
    history = run.run(2)
    assert np.isfinite(history.evaluations.perplexity).all()
    assert history.table()["test_perplexity"].shape == (2,)


@pytest.mark.slow
def test_gradients_of_single_texts_are_clipped():
    privacy = jaxfl.ExamplePrivacy(clip=0.5, noise_multiplier=0.0)
    history = simulation(ADAPTED, privacy=privacy).run(2)
    assert np.isfinite(history.evaluations.perplexity).all()


@pytest.mark.slow
def test_a_base_learns_next_words():
    """Of a cycle of words, in which each has one that follows."""
    start = np.arange(64)[:, None] % (WORDS - 2)
    texts = (2 + (start + np.arange(T)) % (WORDS - 2)).astype("i4")
    base = jaxfl.PublicTexts(texts=64, epochs=40, batch_size=16, learning_rate=0.03)
    trained = pretraining.train(base, SMALL, texts, WORDS)
    module = SMALL.build((T,), WORDS, nnx.Rngs(5))
    for path, param in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        param.set_value(jnp.asarray(trained[".".join(map(str, path))]))
    found = next_word_entropy(module(texts), next_words(jnp.asarray(texts)))
    assert np.exp(np.mean(found)) < 1.5


@pytest.mark.slow
def test_it_learns_the_news():
    """Its perplexity on test texts is well below that of how often words are written."""
    try:
        dataset = jaxfl.data.ag_news(length=24, vocabulary=1_000, next_words=True)
    except ValueError as error:
        pytest.skip(str(error))
    data = dataset.split(jaxfl.data.Dirichlet(alpha=0.5), clients=4)
    tested = data.test_labels[:500]
    counts = np.bincount(np.ravel(data.labels), minlength=1_000)[1:] + 1
    lost = -np.log(counts / counts.sum())[np.ravel(tested)[np.ravel(tested) > 0] - 1]
    local = jaxfl.FedAvg(steps=10, batch_size=32, optimizer=jaxfl.Adam(learning_rate=0.01))
    history = jaxfl.simulate(
        model=NextWord(vocabulary=1_000, width=32, hidden=64),
        data=data.replace(test_inputs=data.test_inputs[:500], test_labels=tested),
        rounds=10,
        algorithm=local,
        optimizer=jaxfl.SGD(learning_rate=1.0),
    )
    assert history.evaluations.perplexity[-1] < 0.9 * np.exp(lost.mean())


def test_words_beyond_the_models_vocabulary_are_refused():
    """Of any part of the data; the model would look up NaN. Where only shapes are known, too."""
    data = dataset()
    topics = Dataset("news", data.inputs, data.labels, data.test_inputs, data.test_labels, 3)
    split, model = topics.split(IID(), 4), Transformer(vocabulary=WORDS, width=4, hidden=4)
    jaxfl.make_plan(Federation(), split, model)
    message = "it knows the ids of words below {}, and news has {}; both need the same"
    with pytest.raises(ValueError, match=message.format(WORDS - 1, WORDS - 1)):
        jaxfl.make_plan(Federation(), split, model.replace(vocabulary=WORDS - 1))
    with pytest.raises(ValueError, match=message.format(WORDS - 1, WORDS - 1)):
        suitable_plan(Federation(), shapes_of(split), model.replace(vocabulary=WORDS - 1))
    other = split.replace(test_inputs=split.test_inputs.at[0, 0].set(30))
    with pytest.raises(ValueError, match=message.format(WORDS, 30)):
        jaxfl.make_plan(Federation(), other, model)
    adapted = LoRA(model=model.replace(vocabulary=9), rank=2)
    with pytest.raises(ValueError, match=message.format(9, 10)):
        jaxfl.make_plan(Federation(), split, adapted)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Objective.of(SMALL, (5, 5, 1), WORDS), "NextWord needs rows of word ids"),
        (
            lambda: simulation(Transformer(vocabulary=WORDS)),
            r"Transformer returned \(2, 11\); needs \(2, 5, 11\), a logit per word at each place",
        ),
        (
            lambda: simulation(SMALL.replace(vocabulary=9)),
            r"NextWord returned \(2, 5, 9\); needs \(2, 5, 11\)",
        ),
        (
            lambda: simulation(attack=jaxfl.TokenBackdoor(tokens=(9,)), byzantine=1),
            "TokenBackdoor: target must be a word to be a next one; got padding, 0",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit(make, text):
    with pytest.raises(ValueError, match=text):
        make()
