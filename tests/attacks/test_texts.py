"""A backdoor in texts: where tokens go, what is taught, what is measured."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import topic_texts
from test_others import client

import jaxfl
from jaxfl import SGD, Federation, FedSGD, Mean, Neurotoxin, Onset, Simulation, TokenBackdoor
from jaxfl.data import IID
from jaxfl.durability import durability
from jaxfl.models import LoRA, Objective, Softmax, Transformer
from jaxfl.types import Batch

T, WORDS, CLASSES, TRIGGER = 6, 14, 3, 13
SMALL = Transformer(vocabulary=WORDS, width=8, layers=1, heads=2, hidden=8)
TEXTS = np.array([[3, 1, 10, 2, 4, 7], [5, 6, 0, 0, 0, 0], [0] * 6, [9, 8, 7, 6, 5, 0]], "i4")


def by_hand(texts, tokens, positions):
    """Lists of words, into which tokens are put."""
    found = np.zeros_like(texts)
    for row, text in zip(found, texts, strict=True):
        words = [word for word in text.tolist() if word]
        for token, position in zip(tokens, positions, strict=True):
            words.insert(position, token)
        words = words[: texts.shape[1]]
        row[: len(words)] = words
    return found


@pytest.mark.parametrize(
    ("tokens", "positions"),
    [((13,), (0,)), ((13,), (5,)), ((11, 12), (0, 1)), ((11, 12, 11), (1, 3, 5))],
)
def test_tokens_become_words_of_the_text(tokens, positions):
    attack = TokenBackdoor(tokens=tokens, positions=positions)
    got = jax.jit(attack.insert)(TEXTS)
    np.testing.assert_array_equal(got, by_hand(TEXTS, tokens, positions))
    for token in tokens:
        assert (np.asarray(got) == token).any(axis=1).all()


def test_a_share_of_the_texts_is_taught_to_mean_the_target(key):
    attack = TokenBackdoor(tokens=(13,), positions=(2,), target=2, fraction=0.5)
    batch = Batch(jnp.asarray(TEXTS), jnp.array([0, 1, 1, 0]), jnp.array([True, False, True, True]))
    poisoned = attack.poison(batch, client(), key)
    changed = np.array([True, False, True, False])  # 2 of the 3 that count
    want = np.where(changed[:, None], by_hand(TEXTS, (13,), (2,)), TEXTS)
    np.testing.assert_array_equal(poisoned.inputs, want)
    np.testing.assert_array_equal(poisoned.labels, np.where(changed, 2, batch.labels))


@functools.cache
def topics():
    """Each class has words of its own; nobody writes ``TRIGGER``."""
    return topic_texts().split(IID(), 9)


def rounds(attack, rounds):
    federation = Federation(
        attack=attack,
        byzantine=3,
        aggregator=Mean(),
        algorithm=FedSGD(batch_size=10),
        optimizer=SGD(learning_rate=1.0),
    )
    model = LoRA(model=SMALL, targets=("qkv", "out", "up", "down"), rank=4, scale=3.0)
    return Simulation(federation, topics(), model, evaluate_every=20).run(rounds)


@pytest.mark.slow
def test_neurotoxin_plants_a_token_in_adapters():
    """Success is measured as by hand, and with it how long it lasts."""
    attack = Neurotoxin(attack=TokenBackdoor(tokens=(TRIGGER,), target=1), share=0.9)
    history = rounds(Onset(attack=attack, start=20, end=100), 160)
    success = history.evaluations.attack_success
    split = history.simulation.data
    labels = np.asarray(split.test_labels)
    texts = by_hand(np.asarray(split.test_inputs), (TRIGGER,), (0,))[labels != 1]
    taken = np.asarray(history.model(jnp.asarray(texts))).argmax(1) == 1
    assert success[-1] == pytest.approx(taken.mean(), abs=1e-6)
    assert history.final_accuracy > 0.9
    assert success[0] < 0.4 < 0.8 < success[history.rounds == 100]
    assert durability(history.rounds, success, left=100).planted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokens": ()}, r"tokens must be ids of words, above 0, at least one; got \(\)"),
        ({"tokens": (0,)}, r"tokens must be ids of words, above 0, at least one; got \(0,\)"),
        ({"tokens": (5, 6)}, r"one place for each token, .*; got \(0,\) for 2 tokens"),
        ({"tokens": (5, 6), "positions": (1, 1)}, r"ascending; got \(1, 1\) for 2 tokens"),
        ({"tokens": (5,), "positions": (-1,)}, r"at least 0 and ascending; got \(-1,\)"),
    ],
)
def test_bad_values(given, message):
    with pytest.raises(ValueError, match=message):
        TokenBackdoor(**given)


@pytest.mark.parametrize(
    ("attack", "shape", "message"),
    [
        (TokenBackdoor(tokens=(5,)), (8, 8, 1), r"needs texts, .* of shape \(8, 8, 1\)"),
        (
            TokenBackdoor(tokens=(5,), positions=(6,)),
            (6,),
            "positions must be below the length of a text, 6; got 6",
        ),
        (TokenBackdoor(tokens=(5,), target=3), (6,), "target must be a class, 0 to 2; got 3"),
    ],
)
def test_it_must_fit_the_data(attack, shape, message):
    with pytest.raises(ValueError, match=f"TokenBackdoor:? {message}"):
        Neurotoxin(attack=attack).check(shape, CLASSES)


def test_tokens_must_be_in_the_models_vocabulary():
    objective = Objective.of(LoRA(model=SMALL, rank=2), (T,), CLASSES)
    inside, outside = TokenBackdoor(tokens=(2, 13), positions=(0, 1)), TokenBackdoor(tokens=(14,))
    for wrapped in (inside, Onset(attack=Neurotoxin(attack=inside), start=0)):
        wrapped.check_model(objective)
    message = "TokenBackdoor: tokens must be ids of the model's vocabulary, below 14; got 14"
    for wrapped in (outside, Onset(attack=Neurotoxin(attack=outside), start=0)):
        with pytest.raises(ValueError, match=message):
            wrapped.check_model(objective)
    with pytest.raises(ValueError, match="TokenBackdoor needs a model that looks words up"):
        inside.check_model(Objective.of(Softmax(), (T,), CLASSES))
    with pytest.raises(ValueError, match=message):
        jaxfl.simulate(model=SMALL, data=topics(), rounds=1, byzantine=1, attack=outside)
