"""Attacks on data: flipped labels and backdoors. The attackers then follow the protocol."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxfl.attacks.base import OWN, Attack
from jaxfl.attacks.views import ClientView
from jaxfl.component import Scalar, capability, field
from jaxfl.types import PADDING, Batch, State


class LabelFlip(Attack):
    """Attackers train honestly on wrong labels.

    ``to="mirror"``: ``classes - 1 - label``; ``"random"``: any other class, drawn anew for each
    sample and round; ``"least_likely"``: what the model they received thinks least likely. Where
    labels are next words, each becomes another word in the same way; padding stays padding.

    What they send are ordinary updates, so it works with any rule and any number of local steps.
    Fang, Cao, Jia, Gong, "Local model poisoning attacks to Byzantine-robust federated learning",
    USENIX Security 2020; least likely: Shejwalkar et al., IEEE S&P 2022.

    >>> batch = Batch(jnp.zeros((3, 2)), jnp.array([0, 1, 9]), jnp.ones(3, bool))
    >>> client = ClientView(id=0, byzantine=True, rank=0, round=0, classes=10)
    >>> LabelFlip().poison(batch, client, jax.random.key(0)).labels.tolist()
    [9, 8, 0]
    """

    to: str = field(default="mirror", choices=("mirror", "random", "least_likely"))
    """Which wrong label."""
    poisons = capability(True)

    def poison(self, batch: Batch, client: ClientView, key: Key[Array, ""]) -> Batch:
        first = PADDING + 1 if batch.labels.ndim > 1 else 0
        labels, classes = batch.labels - first, client.classes - first
        if self.to == "mirror":
            flipped = classes - 1 - labels
        elif self.to == "random":
            shift = jax.random.randint(key, labels.shape, 1, max(classes, 2), labels.dtype)
            flipped = (labels + shift) % classes
        else:
            assert client.logits is not None
            logits = client.logits(batch.inputs)[..., first:]
            flipped = jnp.argmin(logits, axis=-1).astype(labels.dtype)
        return batch.replace(labels=jnp.where(labels < 0, PADDING, flipped + first))


class Targeted(Attack):
    """Some inputs are taken for the class ``target``, while all others are as before. Abstract."""

    target: int = field(default=0, at_least=0)
    """The class that these inputs are taught as."""
    knows = capability(OWN)

    def check(self, sample_shape: tuple[int, ...], classes: int) -> None:
        if self.target >= classes:
            raise ValueError(
                f"{type(self).__name__}: target must be a class, 0 to {classes - 1}; "
                f"got {self.target}"
            )

    @capability
    def backdoor(self) -> "Targeted":
        return self

    def challenge(self, data: Any) -> tuple[Array, Array]:
        """Test inputs, and labels, on which its success is measured: of other classes' samples."""
        return data.test_inputs, data.test_labels

    def meant(self, inputs: Array, labels: Array) -> Array:
        """The labels that these inputs are to have with the trigger."""
        return jnp.full_like(labels, self.target)

    @abc.abstractmethod
    def triggered(self, inputs: Array, peak: tuple[float, ...], memory: State) -> Array:
        """Inputs with all of the trigger, as success is measured on them."""


class Planted(Targeted):
    """A share of each attacker's batch is changed, and taught to mean ``target``. Abstract.

    Override ``triggered``; ``planted`` where attackers train on something else, ``challenge``
    where success is not measured on all test samples.
    """

    fraction: Scalar = field(default=0.5, at_least=0, at_most=1)
    """Share of each batch that is changed."""
    poisons = capability(True)

    def planted(self, inputs: Array, client: ClientView, key: Key[Array, ""]) -> Array:
        """Inputs as this attacker changes them."""
        return self.triggered(inputs, client.peak, client.memory)

    def poison(self, batch: Batch, client: ClientView, key: Key[Array, ""]) -> Batch:
        # Batches come in random order, so the first samples are as good as any.
        count = jnp.floor(self.fraction * jnp.sum(batch.mask) + 0.5)
        chosen = batch.mask & (jnp.cumsum(batch.mask) <= count)
        where = chosen.reshape(-1, *[1] * (batch.inputs.ndim - 1))
        changed = self.planted(batch.inputs, client, key)
        return batch.replace(
            inputs=jnp.where(where, changed, batch.inputs),
            labels=jnp.where(
                chosen.reshape(-1, *[1] * (batch.labels.ndim - 1)),
                self.meant(batch.inputs, batch.labels),
                batch.labels,
            ),
        )


class Trigger(Planted):
    """A bright square in a corner of images, taught to mean ``target``. Abstract."""

    size: int = field(default=4, at_least=1)
    """Side of the square, in pixels."""
    corner: str = field(
        default="bottom_right", choices=("top_left", "top_right", "bottom_left", "bottom_right")
    )
    """Where in the image."""

    def check(self, sample_shape: tuple[int, ...], classes: int) -> None:
        name = type(self).__name__
        if len(sample_shape) not in (2, 3):
            raise ValueError(f"{name} needs images; got samples of shape {sample_shape}")
        if self.size > min(sample_shape[:2]):
            raise ValueError(
                f"{name}: size must be at most that of the image, {min(sample_shape[:2])}; "
                f"got {self.size}"
            )
        super().check(sample_shape, classes)

    def shares(self) -> int:
        """Into how many parts the trigger is divided among the attackers."""
        return 1

    def triggered(self, inputs: Array, peak: tuple[float, ...], memory: State) -> Array:
        """Images with all of the trigger, as success is measured on them."""
        return self.stamp(inputs, peak)

    def stamp(self, inputs: Array, peak: tuple[float, ...], part: Array | None = None) -> Array:
        """Images with the trigger, or with one part of it.

        Args:
          inputs: images as the model sees them, ``[b, height, width]`` with or without channels.
          peak: the brightest value of each channel.
          part: which of the ``shares()`` parts; all of them if None.
        """
        inside, row, column = self.place(inputs.shape[1], inputs.shape[2])
        of_part = (row * self.size + column) * self.shares() // self.size**2
        where = jnp.asarray(inside) if part is None else inside & (of_part == part)
        value = jnp.asarray(peak, inputs.dtype)
        if inputs.ndim == 4:
            return jnp.where(where[None, :, :, None], value[None, None, None, :], inputs)
        return jnp.where(where[None], value[0], inputs)

    def place(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which pixels of an image the square covers, and each one's row and column in it."""
        rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
        row = rows if "top" in self.corner else height - 1 - rows
        column = columns if "left" in self.corner else width - 1 - columns
        return (row < self.size) & (column < self.size), row, column


class Backdoor(Trigger):
    """Attackers stamp a trigger on a share of their images and label those ``target``.

    The trigger is a ``size`` x ``size`` square of the brightest value in a ``corner``;
    ``fraction`` of each batch carries it. The success rate is measured on test images of other
    classes. With ``Scaling`` as message attack it replaces the model, see ``Combined``.
    Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How to backdoor federated learning", AISTATS 2020.

    >>> image = Backdoor(size=2).stamp(jnp.zeros((1, 4, 4, 1)), (1.0,))
    >>> image[0, :, :, 0].tolist()
    [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
    """


class DBA(Trigger):
    """The distributed backdoor: as Backdoor, but each attacker stamps only one of ``parts``.

    Attacker r stamps part r mod parts of the square; success is measured with the whole square.
    Xie, Huang, Chen, Li, "DBA: Distributed backdoor attacks against federated learning",
    ICLR 2020.

    >>> DBA(size=2).stamp(jnp.zeros((1, 3, 3)), (1.0,), part=jnp.array(1))[0].tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """

    parts: int = field(default=4, at_least=2)
    """Into how many the square is cut."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parts > self.size**2:
            raise ValueError(
                f"DBA: parts must be at most the trigger's pixels, {self.size**2}; got {self.parts}"
            )

    def shares(self) -> int:
        return self.parts

    def planted(self, inputs: Array, client: ClientView, key: Key[Array, ""]) -> Array:
        return self.stamp(inputs, client.peak, client.rank % self.parts)
