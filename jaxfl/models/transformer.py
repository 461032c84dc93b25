"""A small transformer for texts."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxfl.component import field
from jaxfl.models.zoo import Computes, Dense
from jaxfl.types import PADDING


class Transformer(Computes):
    """A transformer encoder: blocks of attention and of a dense layer, the mean, a dense head.

    Word vectors and learned positions go through ``layers`` blocks that normalise first; the mean
    over the words of a text goes to the ``head``. Inputs are rows of word ids, padded by id 0, as
    ``jaxfl.data.ag_news`` makes them with the same ``vocabulary``; padding is not read. A text
    without a word gives the bias of the head. The layers of a block are ``qkv`` (queries, keys and
    values in one product), ``out``, ``up`` and ``down``; the names are what ``LoRA`` adapts.

    Small on purpose: a federation of it is simulated on a laptop.

    >>> jaxfl.models.Objective.of(jaxfl.models.Transformer(vocabulary=5_000), (64,), 4).dim
    424452

    Vaswani et al., "Attention is all you need", NeurIPS 2017; Xiong et al., "On layer
    normalization in the transformer architecture", ICML 2020.
    """

    vocabulary: int = field(default=8_192, at_least=3)
    """How many ids of words there are."""
    width: int = field(default=64, at_least=1)
    """Length of a word's vector, in every layer."""
    layers: int = field(default=2, at_least=1)
    """Blocks on top of one another."""
    heads: int = field(default=4, at_least=1)
    """Attentions side by side in a block; they divide the width."""
    hidden: int = field(default=256, at_least=1)
    """Width inside a block's dense part."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise ValueError(
                f"Transformer: heads must divide width = {self.width}; got {self.heads}"
            )

    def build(self, sample_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs) -> nnx.Module:
        if len(sample_shape) != 1:
            raise ValueError(f"Transformer needs rows of word ids; got inputs of {sample_shape}")
        return Encoder(self, sample_shape[0], classes, rngs)


class NextWord(Transformer):
    """A transformer that answers, for each word of a text, which word comes next.

    As ``Transformer``, but no word looks at a later one, and instead of a mean and a head the
    answer to each word are its products with all word vectors, ``logits[t] = E norm(x[t])``: the
    output layer is tied to the embedding, so it adds no number to a message. Answers are
    ``[b, t, vocabulary]``.

    Learns from data whose labels are the next words, such as ``ag_news(next_words=True)`` of the
    same ``vocabulary``; the loss of a text is the mean cross-entropy over its next words
    (``next_word_entropy``). In ``LoRA`` there is no head to train: ``trained=()``.

    >>> jaxfl.models.Objective.of(jaxfl.models.NextWord(vocabulary=5_000), (64,), 5_000).dim
    424192

    Press, Wolf, "Using the output embedding to improve language models", EACL 2017.
    """

    def build(self, sample_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs) -> nnx.Module:
        if len(sample_shape) != 1:
            raise ValueError(f"NextWord needs rows of word ids; got inputs of {sample_shape}")
        return Decoder(self, sample_shape[0], rngs)


class _Reader(nnx.Module):
    """Words, positions and the blocks on them."""

    def __init__(self, model: Transformer, length: int, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Embed(model.vocabulary, model.width, rngs=rngs)
        small = nnx.initializers.normal(0.02)
        self.positions = nnx.Param(small(rngs.params(), (length, model.width)))
        self.blocks = nnx.List([_Block(model, rngs) for _ in range(model.layers)])
        self.norm = nnx.LayerNorm(model.width, rngs=rngs)
        self.dtype = model.dtype

    def states(
        self, words: Int[Array, "b t"], looks: Bool[Array, "#b #t t"]
    ) -> Float[Array, "b t width"]:
        """Each word after all blocks, normalised; ``looks`` is at which words it looks."""
        x: Any = self.embedding(words) + self.positions[None, : words.shape[1]]
        x = x if self.dtype is None else x.astype(self.dtype)
        for block in self.blocks:
            x = block(x, looks)
        return self.norm(x).astype(jnp.float32)


class Encoder(_Reader):
    """What ``Transformer`` builds: ``read`` is all but the head."""

    def __init__(self, model: Transformer, length: int, classes: int, rngs: nnx.Rngs) -> None:
        super().__init__(model, length, rngs)
        self.head = Dense((model.width, classes), rngs, model.dtype)

    def read(self, words: Array | np.ndarray) -> Float[Array, "b width"]:
        """The mean over the words of each text; 0 of a text without a word."""
        words = jnp.asarray(words)
        seen = words != PADDING
        x = jnp.where(seen[:, :, None], self.states(words, seen[:, None, :]), 0)
        return jnp.sum(x, axis=1) / jnp.maximum(jnp.sum(seen, axis=1), 1)[:, None]

    def __call__(self, words: Array | np.ndarray) -> Array:
        return self.head(self.read(words))


class Decoder(_Reader):
    """What ``NextWord`` builds."""

    def __call__(self, words: Array | np.ndarray) -> Float[Array, "b t v"]:
        words = jnp.asarray(words)
        # Padding is at the end, after every word that is looked from.
        before = jnp.tri(words.shape[1], dtype=bool)[None]
        return self.embedding.attend(self.states(words, before)).astype(jnp.float32)


class _Block(nnx.Module):
    """Attention of every word to the words it looks at, then a dense layer on each word."""

    def __init__(self, model: Transformer, rngs: nnx.Rngs) -> None:
        width, kind = model.width, model.dtype
        self.attention_norm = nnx.LayerNorm(width, dtype=kind, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, dtype=kind, rngs=rngs)
        self.out = nnx.Linear(width, width, dtype=kind, rngs=rngs)
        self.dense_norm = nnx.LayerNorm(width, dtype=kind, rngs=rngs)
        self.up = nnx.Linear(width, model.hidden, dtype=kind, rngs=rngs)
        self.down = nnx.Linear(model.hidden, width, dtype=kind, rngs=rngs)
        self.heads = model.heads

    def __call__(self, x: Array, looks: Bool[Array, "#b #t t"]) -> Array:
        x = x + self.out(self._attend(self.qkv(self.attention_norm(x)), looks))
        return x + self.down(nnx.relu(self.up(self.dense_norm(x))))

    def _attend(self, qkv: Float[Array, "b t w3"], looks: Bool[Array, "#b #t t"]) -> Array:
        b, t, wide = qkv.shape
        parts = qkv.reshape(b, t, 3, self.heads, wide // 3 // self.heads)
        query, key, value = (parts[:, :, i] for i in range(3))
        scores = jnp.einsum("bqhc,bkhc->bhqk", query, key) / math.sqrt(query.shape[-1])
        # Finite: a text without a word has a softmax, which nothing reads.
        scores = jnp.where(looks[:, None], scores, jnp.finfo(scores.dtype).min)
        shares = jax.nn.softmax(scores, axis=-1)
        return jnp.einsum("bhqk,bkhc->bqhc", shares, value).reshape(b, t, wide // 3)
