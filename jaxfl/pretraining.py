"""A base for language models, trained on public texts and kept."""

import functools
import hashlib
import io
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxfl.component import field
from jaxfl.data.text import public_ag_news
from jaxfl.files import user_cache, write_aside
from jaxfl.models.adapters import Base
from jaxfl.models.transformer import Encoder, NextWord, Transformer
from jaxfl.models.words import mean_over_words, next_word_entropy, next_words
from jaxfl.models.zoo import Model
from jaxfl.types import PADDING, PyTree

FORM = 1
"""Number of this way of training: another one makes another file."""
SHORTEST = 1e-6
"""Length below which a text's vector is not made a unit one."""


class PublicTexts(Base):
    """A ``Transformer`` trained on public texts of AG News, without their labels.

    The words of each text are dealt at random to two halves; the model learns which halves belong
    together, among those of ``batch_size`` texts (a softmax over cosines by ``temperature``, with
    Adam, warm-up and cosine decay). The head is left as it is drawn. A ``NextWord`` learns the
    next words of whole texts instead, all words of a batch counting the same, which takes longer by
    the products with the vocabulary.

    The texts are those that ``ag_news(public=...)`` with the same number, length and vocabulary
    leaves out, so that no client has them. Training takes minutes on two cores, once: the
    parameters are kept in the user's cache folder, in a file named by a checksum over the texts
    and all settings, written whole.

    >>> jaxfl.PublicTexts(texts=1_000).epochs
    5

    Contrastive halves of texts: Logeswaran, Lee, "An efficient framework for learning sentence
    representations", ICLR 2018; Gao, Yao, Chen, "SimCSE", EMNLP 2021.
    """

    texts: int = field(default=15_000, at_least=2)
    """How many texts."""
    epochs: int = field(default=5, at_least=1)
    """Passes over them."""
    batch_size: int = field(default=128, at_least=2)
    """Texts that are told from one another; at most as many as there are."""
    learning_rate: float = field(default=5e-3, above=0)
    """The highest of the schedule."""
    temperature: float = field(default=0.1, above=0)
    """What cosines are divided by."""
    seed: int = field(default=0, at_least=0)
    """Of the start, the order and the halves."""

    def check_public(self, public: int) -> None:
        if public != self.texts:
            raise ValueError(
                f"PublicTexts: the data must leave out the base's {self.texts:,} texts, "
                f"data.public = {self.texts}, or clients have them and ids mean other words; "
                f"got {public}"
            )

    def weights(
        self, model: Model, sample_shape: tuple[int, ...], classes: int
    ) -> Mapping[str, np.ndarray]:
        """The trained parameters; read from the cache folder, or trained now and kept there.

        Raises:
          ValueError: the model is no ``Transformer``, or the texts are not there.
        """
        if not isinstance(model, Transformer):
            raise ValueError(f"PublicTexts trains a Transformer; got {type(model).__name__}")
        if len(sample_shape) != 1:
            raise ValueError(f"PublicTexts needs rows of word ids; got inputs of {sample_shape}")
        return _weights(self, model, sample_shape[0], classes)


@functools.lru_cache(maxsize=4)
def _weights(
    base: PublicTexts, model: Transformer, length: int, classes: int
) -> Mapping[str, np.ndarray]:
    words = public_ag_news(base.texts, length, model.vocabulary)
    settings = repr((FORM, base, model, length, classes)).encode()
    digest = hashlib.sha256(settings + words.tobytes()).hexdigest()
    path = user_cache() / "bases" / f"{digest}.npz"
    kept = _load(path)
    if kept is not None:
        return kept
    warnings.warn(
        f"training the public base of {base.texts:,} texts, which takes minutes; it is kept in "
        f"{path.parent}",
        stacklevel=2,
    )
    # A model may be built while something else is traced.
    with jax.ensure_compile_time_eval():
        trained = train(base, model, words, classes)
    content = io.BytesIO()
    np.savez(content, **trained)  # pyright: ignore[reportArgumentType]
    write_aside(path, content.getvalue())
    return trained


def _load(path: Path) -> Mapping[str, np.ndarray] | None:
    """The parameters in a file; None where there is none, or it is damaged."""
    try:
        # Not by its name: NumPy leaves a damaged file open. A zip archive has its own checksums.
        with np.load(io.BytesIO(path.read_bytes())) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile):
        return None


def train(
    base: PublicTexts, model: Transformer, words: Int[np.ndarray, "n t"], classes: int
) -> Mapping[str, np.ndarray]:
    """The parameters, but the head's, after training on these texts; by their path."""
    module = model.build(words.shape[1:], classes, nnx.Rngs(base.seed))
    graph, params, _ = nnx.split(module, nnx.Param, ...)
    size = min(base.batch_size, len(words))
    steps = len(words) // size
    whole = base.epochs * steps
    rate = optax.warmup_cosine_decay_schedule(
        0.0, base.learning_rate, max(1, whole // 20), max(2, whole)
    )
    optimizer = optax.adamw(rate, weight_decay=0.01)

    def loss(params: PyTree, batch: Array, key: Array) -> Float[Array, ""]:
        reader: Any = nnx.merge(graph, params)
        if isinstance(model, NextWord):
            following = next_words(batch)
            return mean_over_words(next_word_entropy(reader(batch), following), following)
        return _loss(reader, batch, base.temperature, key)

    @jax.jit
    def step(params: PyTree, memory: PyTree, batch: Array, key: Array) -> tuple[PyTree, PyTree]:
        change, memory = optimizer.update(jax.grad(loss)(params, batch, key), memory, params)
        return optax.apply_updates(params, change), memory

    random, memory = np.random.default_rng(base.seed), optimizer.init(params)
    keys = iter(jax.random.split(jax.random.key(base.seed), whole))
    for _ in range(base.epochs):
        for batch in random.permutation(len(words))[: steps * size].reshape(steps, size):
            params, memory = step(params, memory, jnp.asarray(words[batch]), next(keys))
    named = {".".join(map(str, path)): value[...] for path, value in nnx.to_flat_state(params)}
    return {k: np.asarray(v) for k, v in named.items() if not k.startswith("head.")}


def _loss(
    encoder: Encoder, words: Int[Array, "b t"], temperature: float, key: Key[Array, ""]
) -> Float[Array, ""]:
    """Mean cross-entropy of finding each half's other half, in both directions."""
    # In a random order with padding last, even and odd places are two halves.
    place = jax.random.uniform(key, words.shape) + (words == PADDING)
    mixed = jnp.take_along_axis(words, jnp.argsort(place, axis=1), axis=1)
    mixed = jnp.pad(mixed, ((0, 0), (0, words.shape[1] % 2)))  # as many of either
    found = encoder.read(jnp.concatenate([mixed[:, 0::2], mixed[:, 1::2]]))
    found /= jnp.maximum(jnp.linalg.norm(found, axis=1, keepdims=True), SHORTEST)
    one, other = jnp.split(found, 2)
    cosines = jnp.matmul(one, other.T, precision="highest") / temperature
    own = jnp.arange(words.shape[0])
    entropy = optax.softmax_cross_entropy_with_integer_labels
    return (jnp.mean(entropy(cosines, own)) + jnp.mean(entropy(cosines.T, own))) / 2
