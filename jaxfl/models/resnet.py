"""Residual networks for small images."""

import itertools
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxfl.component import capability, field
from jaxfl.models.zoo import Computes, Dense, convolution

GROUPS = 32
"""Of group normalisation, where these divide the channels; else one a channel."""


class ResNet(Computes):
    """A residual network with the stem for small images; by default ResNet-18.

    A 3x3 convolution, then stages of ``blocks`` blocks of two 3x3 convolutions, every stage but
    the first at half the resolution, the mean over the image, and a dense layer. Where a block
    changes shape, a 1x1 convolution does so on its shortcut. ``blocks=(3, 3, 3)`` with
    ``channels=(16, 32, 64)`` is ResNet-20.

    ``norm="batch"`` normalises by the batch while training and by running averages in
    evaluation; the averages are those of the clients whose messages the server's rule kept.
    ``"group"`` normalises each image alone, as label skew and privacy of examples ask for.

    >>> jaxfl.models.Objective.of(jaxfl.models.ResNet(), (32, 32, 3), 10).dim
    11173962

    He et al., "Deep residual learning for image recognition", CVPR 2016; Hsieh et al., "The
    non-IID data quagmire of decentralized machine learning", ICML 2020.
    """

    name = "resnet"
    convolves = capability(True)

    blocks: tuple[int, ...] = field(default=(2, 2, 2, 2), at_least=1)
    """Blocks in each stage."""
    channels: tuple[int, ...] = field(default=(64, 128, 256, 512), at_least=1)
    """Channels in each stage."""
    norm: str = field(default="batch", choices=("batch", "group"))
    """Normalisation by the batch, or of each image alone."""

    def build(self, sample_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs) -> nnx.Module:
        if len(self.blocks) != len(self.channels) or not self.blocks:
            raise ValueError(
                "ResNet: blocks and channels must be as many, one of each a stage, and not empty; "
                f"got {self.blocks} and {self.channels}"
            )
        if len(sample_shape) != 3:
            raise ValueError(f"ResNet needs images; got inputs of {sample_shape}")
        return _ResNet(self, sample_shape[2], classes, rngs)


class _ResNet(nnx.Module):
    def __init__(self, model: ResNet, channels: int, classes: int, rngs: nnx.Rngs) -> None:
        conv = partial(convolution, padding=1, use_bias=False, rngs=rngs, dtype=model.dtype)
        widths = (model.channels[0], *model.channels)
        self.stem = conv(channels, widths[0], (3, 3))
        self.norm = _norm(model.norm, widths[0], rngs)
        blocks = []
        for stage, (before, width) in enumerate(itertools.pairwise(widths)):
            for first in (True, *[False] * (model.blocks[stage] - 1)):
                stride = 2 if first and stage else 1
                blocks.append(_Block(conv, model.norm, before if first else width, width, stride))
        self.blocks = nnx.List(blocks)
        self.head = Dense((widths[-1], classes), rngs, model.dtype)

    def __call__(self, x: Array | np.ndarray) -> Array:
        x = nnx.relu(self.norm(self.stem(jnp.asarray(x))))
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(x, axis=(1, 2)))


class _Block(nnx.Module):
    def __init__(self, conv: Any, norm: str, before: int, width: int, stride: int) -> None:
        rngs = conv.keywords["rngs"]
        self.first = conv(before, width, (3, 3), strides=(stride, stride))
        self.second = conv(width, width, (3, 3))
        self.norms = nnx.List([_norm(norm, width, rngs) for _ in range(2)])
        changes, strides = stride > 1 or before != width, (stride, stride)
        shortcut = conv(before, width, (1, 1), strides=strides, padding=0) if changes else None
        self.shortcut = shortcut
        if changes:
            self.norms.append(_norm(norm, width, rngs))

    def __call__(self, x: Array) -> Array:
        y = nnx.relu(self.norms[0](self.first(x)))
        y = self.norms[1](self.second(y))
        if self.shortcut is not None:
            x = self.norms[2](self.shortcut(x))
        return nnx.relu(x + y)


def _norm(norm: str, channels: int, rngs: nnx.Rngs) -> nnx.Module:
    """In the parameters' type, whatever the products are in: sums over thousands of pixels."""
    if norm == "batch":
        return nnx.BatchNorm(channels, momentum=0.9, rngs=rngs)
    groups = GROUPS if channels % GROUPS == 0 else channels
    return nnx.GroupNorm(channels, num_groups=groups, rngs=rngs)
