"""The models of the experiments, as configurations that build flax NNX modules."""

import abc
import itertools
import math
from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxfl.component import Component, capability, field
from jaxfl.models.convolution import max_pool, patches_convolution


class Model(Component):
    """A network without its parameters. Abstract: override ``build``.

    Configurations compare by value, so equal ones share compiled programs. Wherever one is taken,
    an NNX module or a function from ``nnx.Rngs`` to one is taken too.
    """

    convolves = capability(False)
    """Whether a weight meets many values of a sample, so that arithmetic outweighs messages."""

    @abc.abstractmethod
    def build(self, sample_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs) -> nnx.Module:
        """A module that maps inputs ``[b, *sample_shape]`` to logits ``[b, classes]``."""


class Softmax(Model):
    """Softmax regression: one linear layer.

    >>> jaxfl.models.Objective.of(jaxfl.models.Softmax(), (8, 8, 1), 10).dim
    650
    """

    def build(self, sample_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs) -> nnx.Module:
        return _Dense((math.prod(sample_shape), classes), 0.0, rngs)


class MLP(Model):
    """A multilayer perceptron with ReLU and optional dropout.

    >>> jaxfl.models.Objective.of(jaxfl.models.MLP(hidden=(64,)), (8, 8, 1), 10).dim
    4810
    """

    hidden: tuple[int, ...] = field(default=(128,), at_least=1)
    dropout: float = field(default=0.0, at_least=0, below=1)

    def build(self, sample_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs) -> nnx.Module:
        return _Dense((math.prod(sample_shape), *self.hidden, classes), self.dropout, rngs)


class SignGuardCNN(Model):
    """The CNN of the SignGuard code for 28x28 grey images; 51,710 parameters for 10 classes.

    conv 5x5 1-8, conv 3x3 8-16, conv 3x3 16-32, each followed by 2x2 pooling and ReLU, then
    dense 120, 84, classes with dropout after the hidden two.

    >>> jaxfl.models.Objective.of(jaxfl.models.SignGuardCNN(), (28, 28, 1), 10).dim
    51710

    Xu et al., "Byzantine-robust federated learning through collaborative malicious gradient
    filtering", ICDCS 2022.
    """

    name = "signguard_cnn"
    convolves = capability(True)

    dropout: float = field(default=0.5, at_least=0, below=1)

    def build(self, sample_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs) -> nnx.Module:
        if sample_shape != (28, 28, 1):
            raise ValueError(f"SignGuardCNN needs 28x28x1 images; got inputs of {sample_shape}")
        return _SignGuardCNN(classes, self.dropout, rngs)


class CNN(Model):
    """3x3 convolutions with these ``channels``, each with 2x2 pooling and ReLU, and a dense layer.

    The default has four convolutions and one dense layer, as the study of Krum with local privacy,
    which does not state their widths; 68,138 parameters for 32x32 colour images and 10 classes.

    >>> jaxfl.models.Objective.of(jaxfl.models.CNN(), (32, 32, 3), 10).dim
    68138
    """

    channels: tuple[int, ...] = field(default=(32, 32, 64, 64), at_least=1)
    convolves = capability(True)

    def build(self, sample_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs) -> nnx.Module:
        least = 2 ** len(self.channels)
        if len(sample_shape) != 3 or min(sample_shape[:2]) < least:
            raise ValueError(
                f"CNN of {len(self.channels)} convolutions needs images of at least "
                f"{least}x{least}; got inputs of {sample_shape}"
            )
        return _CNN(self.channels, sample_shape, classes, rngs)


class _CNN(nnx.Module):
    def __init__(
        self, channels: tuple[int, ...], shape: tuple[int, ...], classes: int, rngs: nnx.Rngs
    ) -> None:
        conv = partial(nnx.Conv, conv_general_dilated=patches_convolution, rngs=rngs)
        self.convs = nnx.List(
            [conv(a, b, (3, 3), padding=1) for a, b in itertools.pairwise((shape[2], *channels))]
        )
        height, width = (size // 2 ** len(channels) for size in shape[:2])
        self.head = _Dense((height * width * channels[-1], classes), 0.0, rngs)

    def __call__(self, x: Array | np.ndarray) -> Array:
        x = jnp.asarray(x)
        for conv in self.convs:
            x = nnx.relu(max_pool(conv(x)))
        return self.head(x)


class _Dense(nnx.Module):
    def __init__(self, sizes: tuple[int, ...], dropout: float, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None

    def __call__(self, x: Array | np.ndarray) -> Array:
        x = jnp.asarray(x).reshape(x.shape[0], -1)
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
            x = x if self.dropout is None else self.dropout(x)
        return self.layers[-1](x)


class _SignGuardCNN(nnx.Module):
    def __init__(self, classes: int, dropout: float, rngs: nnx.Rngs) -> None:
        conv = partial(nnx.Conv, conv_general_dilated=patches_convolution, rngs=rngs)
        self.convs = nnx.List(
            [
                conv(1, 8, (5, 5), padding="VALID"),
                conv(8, 16, (3, 3), padding=1),
                conv(16, 32, (3, 3), padding=1),
            ]
        )
        self.head = _Dense((288, 120, 84, classes), dropout, rngs)

    def __call__(self, x: Array | np.ndarray) -> Array:
        x = jnp.asarray(x)
        for conv in self.convs:
            # Pooling first: the same result as after the ReLU, for a quarter of the work.
            x = nnx.relu(max_pool(conv(x)))
        return self.head(x)
