"""Recurrent networks for texts."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxfl.component import field
from jaxfl.models.zoo import Computes, Dense
from jaxfl.types import PADDING


class TextRNN(Computes):
    """Word vectors, bidirectional LSTMs, and a dense layer on what they remember at their ends.

    Inputs are rows of word ids, padded at the end by id 0, as ``jaxfl.data.ag_news`` makes them
    with the same ``vocabulary``; padding is not read. A text without a word gives the bias of the
    dense layer. The defaults are our choice: the SignGuard paper names the network, not its
    sizes.

    >>> jaxfl.models.Objective.of(jaxfl.models.TextRNN(vocabulary=5_000), (50,), 4).dim
    2334564

    Xu et al., "Byzantine-robust federated learning through collaborative malicious gradient
    filtering", ICDCS 2022; Hochreiter, Schmidhuber, "Long short-term memory", 1997.
    """

    name = "text_rnn"

    vocabulary: int = field(default=20_000, at_least=3)
    """How many ids of words there are."""
    embedding: int = field(default=300, at_least=1)
    """Length of a word's vector."""
    hidden: int = field(default=128, at_least=1)
    """Width of an LSTM, in each direction."""
    layers: int = field(default=2, at_least=1)
    """LSTMs on top of one another."""
    dropout: float = field(default=0.0, at_least=0, below=1)
    """Share of numbers dropped while training."""

    def build(self, sample_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs) -> nnx.Module:
        if len(sample_shape) != 1:
            raise ValueError(f"TextRNN needs rows of word ids; got inputs of {sample_shape}")
        return _TextRNN(self, classes, rngs)


class _TextRNN(nnx.Module):
    def __init__(self, model: TextRNN, classes: int, rngs: nnx.Rngs) -> None:
        # Rows are taken before they are rounded: their gradients, sums over words, stay exact.
        self.embedding = nnx.Embed(model.vocabulary, model.embedding, rngs=rngs)
        self.dtype = model.dtype
        cell = partial(
            nnx.OptimizedLSTMCell, hidden_features=model.hidden, dtype=model.dtype, rngs=rngs
        )
        sizes = (model.embedding, *[2 * model.hidden] * (model.layers - 1))
        self.layers = nnx.List(
            [
                nnx.Bidirectional(*(nnx.RNN(cell(size), rngs=False) for _ in range(2)), rngs=False)
                for size in sizes
            ]
        )
        self.dropout = nnx.Dropout(model.dropout, rngs=rngs) if model.dropout else None
        self.head = Dense((2 * model.hidden, classes), rngs, model.dtype)
        self.hidden = model.hidden

    def __call__(self, words: Array | np.ndarray) -> Array:
        words = jnp.asarray(words)
        lengths = jnp.sum(words != PADDING, axis=1)
        x: Any = self.embedding(words)
        ends: Any = ()  # what both directions remember after their last word
        x = x if self.dtype is None else x.astype(self.dtype)
        nothing = jnp.zeros((x.shape[0], self.hidden), x.dtype)
        start = (nothing, nothing)
        for layer in self.layers:
            x = x if self.dropout is None else self.dropout(x)
            ends, x = layer(x, initial_carry=(start, start), seq_lengths=lengths, return_carry=True)
        (_, forward), (_, backward) = ends
        read = jnp.concatenate([forward, backward], axis=-1)
        return self.head(jnp.where(lengths[:, None] > 0, read, 0))
