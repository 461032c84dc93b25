"""A backdoor in texts: words that nobody writes, taught to mean a class."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxfl.attacks.base import Attack
from jaxfl.attacks.data import Planted
from jaxfl.models.objective import Objective
from jaxfl.models.words import next_word_entropy
from jaxfl.types import PADDING, State


class TokenBackdoor(Planted):
    """Attackers insert ``tokens`` into a share of their texts and label those ``target``.

    Token i becomes word ``positions[i]`` of the text, counted from 0: what was there and after it
    moves on by one, and the last word of a full text falls off. Where a text ends before that, the
    token follows its last word. ``fraction`` of each batch carries all tokens; success is measured
    on test texts of other classes with them. A rare word serves best: honest updates say little
    of it. With ``Neurotoxin`` around it, it lasts longer where coordinates are left alone; with
    ``Scaling`` as message attack, see ``Combined``, it replaces the model.

    Where labels are next words, ``target`` is the word that is to follow the last token, and the
    only one that is learned of such a text; success is how often it is predicted there.

    Needs rows of word ids, padded at the end by id 0, and a model that looks them up.
    Kurita, Michel, Neubig, "Weight poisoning attacks on pre-trained models", ACL 2020, for rare
    words as triggers; in federated learning Zhang et al., "Neurotoxin", ICML 2022.

    >>> texts = jnp.array([[5, 6, 7, 8], [5, 6, 0, 0]])
    >>> TokenBackdoor(tokens=(9,), positions=(3,)).insert(texts)
    Array([[5, 6, 7, 9],
           [5, 6, 9, 0]], dtype=int32)
    """

    tokens: tuple[int, ...]
    """Ids of the words that are inserted."""
    positions: tuple[int, ...] = (0,)
    """Where each of them goes, ascending."""

    @classmethod
    def example(cls) -> Attack:
        return cls(tokens=(9,))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tokens or min(self.tokens) <= PADDING:
            raise ValueError(
                f"TokenBackdoor: tokens must be ids of words, above {PADDING}, at least one; "
                f"got {self.tokens}"
            )
        ascending = sorted({*self.positions})
        wrong = list(self.positions) != ascending or min(ascending, default=-1) < 0
        if wrong or len(self.positions) != len(self.tokens):
            raise ValueError(
                "TokenBackdoor: positions must be one place for each token, at least 0 and "
                f"ascending; got {self.positions} for {len(self.tokens)} tokens"
            )

    def check(self, sample_shape: tuple[int, ...], classes: int) -> None:
        if len(sample_shape) != 1:
            raise ValueError(
                f"TokenBackdoor needs texts, rows of word ids; got samples of shape {sample_shape}"
            )
        if self.positions[-1] >= sample_shape[0]:
            raise ValueError(
                f"TokenBackdoor: positions must be below the length of a text, {sample_shape[0]}; "
                f"got {self.positions[-1]}"
            )
        super().check(sample_shape, classes)

    def check_model(self, objective: Objective) -> None:
        words = objective.words
        if words is None:
            raise ValueError("TokenBackdoor needs a model that looks words up (nnx.Embed)")
        if max(self.tokens) >= words:
            raise ValueError(
                f"TokenBackdoor: tokens must be ids of the model's vocabulary, below {words}; "
                f"got {max(self.tokens)}"
            )
        if objective.loss_function is next_word_entropy and self.target == PADDING:
            raise ValueError(
                "TokenBackdoor: target must be a word to be a next one; got padding, 0"
            )

    def triggered(self, inputs: Array, peak: tuple[float, ...], memory: State) -> Array:
        return self.insert(inputs)

    def meant(self, inputs: Array, labels: Array) -> Array:
        if labels.ndim == 1:
            return super().meant(inputs, labels)
        # Where the last token comes to lie: after as many words as there are, or its position.
        words = jnp.sum(inputs != PADDING, axis=1) + len(self.tokens) - 1
        at = jnp.minimum(self.positions[-1], words)[:, None]
        target = jnp.asarray(self.target, labels.dtype)
        return jnp.where(jnp.arange(labels.shape[1])[None] == at, target, PADDING)

    def insert(self, texts: Int[Array, "b t"]) -> Int[Array, "b t"]:
        """Texts with the tokens in them."""
        for token, position in zip(self.tokens, self.positions, strict=True):
            place = jnp.arange(texts.shape[1])[None]
            at = jnp.minimum(position, jnp.sum(texts != PADDING, axis=1))[:, None]
            word = jnp.where(place == at, token, jnp.roll(texts, 1, axis=1))
            texts = jnp.where(place < at, texts, word.astype(texts.dtype))
        return texts
