"""The models of the experiments, as configurations that build flax NNX modules."""

import abc
import itertools
import math
from functools import partial
from typing import Any

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

    >>> from flax import nnx
    >>> class Linear(jaxfl.models.Model):
    ...     def build(self, sample_shape, classes, rngs):
    ...         return nnx.Linear(sample_shape[0], classes, rngs=rngs)
    >>> jaxfl.models.Objective.of(Linear(), (8,), 3).dim
    27
    """

    convolves = capability(False)
    """Whether a weight meets many values of a sample, so that arithmetic outweighs messages."""

    @abc.abstractmethod
    def build(self, sample_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs) -> nnx.Module:
        """A module that maps inputs ``[b, *sample_shape]`` to logits ``[b, classes]``."""

    def check_public(self, public: int) -> None:
        """Raises ValueError where it knows other texts than the ``public`` that no client has."""


class Computes(Model):
    """A model whose products can be made in another type than its parameters are kept in.

    With ``compute="bfloat16"`` layers multiply and add biases in bfloat16, which accelerators do
    at twice the rate of float32 or more, and CPUs slowly. Parameters, gradients and logits are
    kept in float32, though rounded to bfloat16 by the products they come from; normalisation
    computes in float32.
    """

    compute: str = field(default="float32", choices=("float32", "bfloat16"))
    """The type in which layers multiply."""

    @property
    def dtype(self) -> Any:
        """For the layers; None: that of parameters and inputs."""
        return jnp.bfloat16 if self.compute == "bfloat16" else None


class Softmax(Computes):
    """Softmax regression: one linear layer.

    >>> jaxfl.models.Objective.of(jaxfl.models.Softmax(), (8, 8, 1), 10).dim
    650
    """

    def build(self, sample_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs) -> nnx.Module:
        return Dense((math.prod(sample_shape), classes), rngs, self.dtype)


class MLP(Computes):
    """A multilayer perceptron with ReLU and optional dropout.

    >>> jaxfl.models.Objective.of(jaxfl.models.MLP(hidden=(64,)), (8, 8, 1), 10).dim
    4810
    """

    hidden: tuple[int, ...] = field(default=(128,), at_least=1)
    """Widths of the hidden layers."""
    dropout: float = field(default=0.0, at_least=0, below=1)
    """Share of numbers dropped while training."""

    def build(self, sample_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs) -> nnx.Module:
        sizes = (math.prod(sample_shape), *self.hidden, classes)
        return Dense(sizes, rngs, self.dtype, dropout=self.dropout)


class SignGuardCNN(Computes):
    """The CNN of the SignGuard code for 28x28 grey images; 51,710 parameters for 10 classes.

    conv 5x5 1-8, conv 3x3 8-16, conv 3x3 16-32, each followed by 2x2 pooling and ReLU, then
    dense layers of the ``hidden`` widths with dropout after each, and classes. The code has two
    hidden ones; ``hidden=(120,)`` is the head of two dense layers that the paper states.

    >>> jaxfl.models.Objective.of(jaxfl.models.SignGuardCNN(), (28, 28, 1), 10).dim
    51710

    Xu et al., "Byzantine-robust federated learning through collaborative malicious gradient
    filtering", ICDCS 2022.
    """

    name = "signguard_cnn"
    convolves = capability(True)

    hidden: tuple[int, ...] = field(default=(120, 84), at_least=1)
    """Widths of the hidden dense layers."""
    dropout: float = field(default=0.5, at_least=0, below=1)
    """Share of numbers dropped while training."""

    def build(self, sample_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs) -> nnx.Module:
        if sample_shape != (28, 28, 1):
            raise ValueError(f"SignGuardCNN needs 28x28x1 images; got inputs of {sample_shape}")
        conv = partial(convolution, rngs=rngs, dtype=self.dtype)
        convs = [
            conv(1, 8, (5, 5), padding="VALID"),
            conv(8, 16, (3, 3), padding=1),
            conv(16, 32, (3, 3), padding=1),
        ]
        sizes = (288, *self.hidden, classes)
        return _Pooled(convs, Dense(sizes, rngs, self.dtype, dropout=self.dropout))


class FLTrustCNN(Computes):
    """The CNN of the FLTrust paper; 139,960 parameters for 28x28 grey images and 10 classes.

    conv 3x3 to 30 channels, conv 3x3 to 50, without padding, each followed by 2x2 pooling and
    ReLU, then dense 100 and classes; Xavier initialisation.

    >>> jaxfl.models.Objective.of(jaxfl.models.FLTrustCNN(), (28, 28, 1), 10).dim
    139960

    Cao et al., "FLTrust: Byzantine-robust federated learning via trust bootstrapping", NDSS 2021.
    """

    name = "fltrust_cnn"
    convolves = capability(True)

    def build(self, sample_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs) -> nnx.Module:
        if len(sample_shape) != 3 or min(sample_shape[:2]) < 10:
            raise ValueError(
                f"FLTrustCNN needs images of at least 10x10; got inputs of {sample_shape}"
            )
        xavier = nnx.initializers.xavier_uniform()
        conv = partial(
            convolution, padding="VALID", rngs=rngs, dtype=self.dtype, kernel_init=xavier
        )
        convs = [conv(sample_shape[2], 30, (3, 3)), conv(30, 50, (3, 3))]
        height, width = (((size - 2) // 2 - 2) // 2 for size in sample_shape[:2])
        sizes = (height * width * 50, 100, classes)
        return _Pooled(convs, Dense(sizes, rngs, self.dtype, kernel_init=xavier))


class CNN(Computes):
    """3x3 convolutions with these ``channels``, each with 2x2 pooling and ReLU, and a dense layer.

    The default has four convolutions and one dense layer, as the study of Krum with local privacy,
    which does not state their widths; 68,138 parameters for 32x32 colour images and 10 classes.

    >>> jaxfl.models.Objective.of(jaxfl.models.CNN(), (32, 32, 3), 10).dim
    68138
    """

    channels: tuple[int, ...] = field(default=(32, 32, 64, 64), at_least=1)
    """Channels of each convolution."""
    convolves = capability(True)

    def build(self, sample_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs) -> nnx.Module:
        least = 2 ** len(self.channels)
        if len(sample_shape) != 3 or min(sample_shape[:2]) < least:
            raise ValueError(
                f"CNN of {len(self.channels)} convolutions needs images of at least "
                f"{least}x{least}; got inputs of {sample_shape}"
            )
        conv = partial(convolution, rngs=rngs, dtype=self.dtype)
        channels = (sample_shape[2], *self.channels)
        convs = [conv(a, b, (3, 3), padding=1) for a, b in itertools.pairwise(channels)]
        height, width = (size // least for size in sample_shape[:2])
        sizes = (height * width * channels[-1], classes)
        return _Pooled(convs, Dense(sizes, rngs, self.dtype))


convolution = partial(nnx.Conv, conv_general_dilated=patches_convolution)
"""A layer that stays fast when vmapped over clients."""


class Dense(nnx.Module):
    """Dense layers with ReLU, and dropout, between them; answers float32 at least."""

    def __init__(
        self,
        sizes: tuple[int, ...],
        rngs: nnx.Rngs,
        dtype: Any = None,
        dropout: float = 0.0,
        **settings: Any,
    ) -> None:
        linear = partial(nnx.Linear, rngs=rngs, dtype=dtype, **settings)
        self.layers = nnx.List([linear(a, b) for a, b in itertools.pairwise(sizes)])
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None

    def __call__(self, x: Array | np.ndarray) -> Array:
        x = jnp.asarray(x).reshape(x.shape[0], -1)
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
            x = x if self.dropout is None else self.dropout(x)
        x = self.layers[-1](x)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class _Pooled(nnx.Module):
    """Convolutions, each with 2x2 pooling and ReLU, and a head."""

    def __init__(self, convs: list[nnx.Conv], head: nnx.Module) -> None:
        self.convs = nnx.List(convs)
        self.head = head

    def __call__(self, x: Array | np.ndarray) -> Array:
        x = jnp.asarray(x)
        for conv in self.convs:
            # Pooling first: the same result as after the ReLU, for a quarter of the work.
            x = nnx.relu(max_pool(conv(x)))
        return self.head(x)
