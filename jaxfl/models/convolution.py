"""A convolution and a pooling that stay fast when vmapped over clients.

A vmapped ``lax.conv`` has a kernel per client, which backends run as a slow grouped convolution
(on a CPU about eight times slower than this). As patches times a matrix it is a batched matrix
product, the operation every backend is best at.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

FEW = 4
"""Up to so many channels, slices of single columns are too narrow to vectorise."""
COLUMNS, OUTPUTS = (1, 2, 4), 64
"""How many neighbouring outputs a row of the product may then make, and the most numbers of it."""
MOST_RUNS = 32
"""Of wider images a slice for each of a row's runs would make large programs."""


def patches_convolution(
    lhs: Float[Array, "b h w c"],
    rhs: Float[Array, "kh kw c o"],
    window_strides: Sequence[int],
    padding: Any,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    **precision: Any,
) -> Float[Array, "b h_out w_out o"]:
    """A two-dimensional convolution as shifted slices and one matrix product.

    Takes the place of ``jax.lax.conv_general_dilated`` in ``nnx.Conv(conv_general_dilated=...)``.
    Of images of few channels, a row of the product makes several neighbouring outputs: fewer
    numbers are copied, at the price of products with zeros beside the kernel, by which a pixel
    that is not finite makes NaN of up to three columns beside its own.

    Raises:
      ValueError: for dilated or grouped convolutions, which it does not do.
    """
    dilations = (*(lhs_dilation or ()), *(rhs_dilation or ()))
    if any(d != 1 for d in dilations) or feature_group_count != 1:
        raise ValueError("patches_convolution does no dilated and no grouped convolutions")
    (kh, kw, channels, out), (sh, sw) = rhs.shape, window_strides
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(lhs.shape[1:3], (kh, kw), (sh, sw), padding)
    lhs = jnp.pad(lhs, ((0, 0), *((int(a), int(b)) for a, b in padding), (0, 0)))
    height, width = (lhs.shape[1] - kh) // sh + 1, (lhs.shape[2] - kw) // sw + 1
    together = max(t for t in COLUMNS if width % t == 0 and (t == 1 or t * out <= OUTPUTS))
    if channels <= FEW and 0 < width // together <= MOST_RUNS:
        patches = _windows(lhs, (kh, kw), (sh, sw), (height, width), together)
        kernel = _side_by_side(rhs, sw, together).reshape(-1, together * out)
    else:
        shifted = [
            lhs[:, i : i + (height - 1) * sh + 1 : sh, j : j + (width - 1) * sw + 1 : sw]
            for i, j in itertools.product(range(kh), range(kw))
        ]
        patches, kernel = jnp.concatenate(shifted, axis=-1), rhs.reshape(-1, out)
    # As a matrix: of more axes, the kernel's gradient would copy its other factor, transposed.
    product = jnp.matmul(patches.reshape(-1, kernel.shape[0]), kernel, **precision)
    return product.reshape(lhs.shape[0], height, width, out)


def _windows(
    images: Float[Array, "b h w c"],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    size: tuple[int, int],
    together: int,
) -> Float[Array, "b h_out w_parts p"]:
    """What ``together`` neighbouring outputs of a row see, one row of the kernel after another.

    Columns with their channels are runs of numbers, which are copied whole.
    """
    (kh, kw), (sh, sw), (height, width) = kernel, strides, size
    b, h, w, channels = images.shape
    rows = images.reshape(b, h, w * channels)
    span, step = (sw * (together - 1) + kw) * channels, sw * together * channels
    runs = [rows[..., at : at + span] for at in range(0, step * (width // together), step)]
    seen = jnp.stack(runs, axis=2)
    shifted = [seen[:, i : i + (height - 1) * sh + 1 : sh] for i in range(kh)]
    return jnp.concatenate(shifted, axis=-1)


def _side_by_side(
    kernel: Float[Array, "kh kw c o"], stride: int, together: int
) -> Float[Array, "kh span c t o"]:
    """The kernel at each of ``together`` neighbouring places of what they see; 0 elsewhere."""
    none, last = (0, 0), stride * (together - 1)
    at = [(stride * t, last - stride * t) for t in range(together)]
    return jnp.stack([jnp.pad(kernel, (none, pad, none, none)) for pad in at], axis=3)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h_half w_half c"]:
    """The maximum over 2x2 windows; an odd last row or column is left out."""
    b, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return jnp.max(x.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))
