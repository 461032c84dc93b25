"""What a model of texts learns where the answer to each word is the next one."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxfl.types import PADDING


def next_words(texts: Int[Array, "b t"]) -> Int[Array, "b t"]:
    """Of each word the one that follows it; padding where none does.

    >>> next_words(jnp.array([[5, 6, 7], [5, 6, 0]])).tolist()
    [[6, 7, 0], [6, 0, 0]]
    """
    return jnp.pad(texts[:, 1:], ((0, 0), (0, 1)), constant_values=PADDING)


def counted(labels: Int[Array, "b t"]) -> Int[Array, " b"]:
    """How many words of each text have a next one."""
    return jnp.sum(labels != PADDING, axis=1)


def mean_of_words(values: Float[Array, "b t"], labels: Int[Array, "b t"]) -> Float[Array, " b"]:
    """The mean in each text over the words that have a next one; 0 where none has."""
    total = jnp.sum(jnp.where(labels != PADDING, values, 0), axis=1)
    return total / jnp.maximum(counted(labels), 1)


def mean_over_words(values: Float[Array, " b"], labels: Int[Array, "b t"]) -> Float[Array, ""]:
    """The mean over all next words of all texts, from the means of the texts."""
    words = counted(labels)
    return jnp.sum(words * values) / jnp.maximum(jnp.sum(words), 1)


def next_word_entropy(
    logits: Float[Array, "b t v"], labels: Int[Array, "b t"]
) -> Float[Array, " b"]:
    """Each text's mean cross-entropy of its next words, in nats; padding counts nothing.

    ``(1 / |W|) sum_{t in W} -log softmax(logits_t)[labels_t]`` over the places W whose label is a
    word.

    Args:
      logits: of each word, for every word that may follow.
      labels: the word that does, 0 where none does (``next_words``).

    Returns:
      One number a text; 0 of a text of fewer than two words.

    >>> next_word_entropy(jnp.zeros((1, 3, 4)), jnp.array([[2, 1, 0]])).tolist()
    [1.3862943649291992]
    """
    entropies = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return mean_of_words(entropies, labels)
