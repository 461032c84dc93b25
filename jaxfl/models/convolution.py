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
    shifted = [
        lhs[:, i : i + (height - 1) * sh + 1 : sh, j : j + (width - 1) * sw + 1 : sw]
        for i, j in itertools.product(range(kh), range(kw))
    ]
    kernel = rhs.reshape(-1, out)
    if channels > 1:
        return jnp.matmul(jnp.concatenate(shifted, axis=-1), kernel, **precision)
    # Slices one number wide do not vectorise; whole images side by side do.
    patches = jnp.stack([image[..., 0] for image in shifted]).reshape(kh * kw, -1)
    product = jax.lax.dot_general(patches, kernel, (((0,), (0,)), ((), ())), **precision)
    return product.reshape(lhs.shape[0], height, width, out)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h_half w_half c"]:
    """The maximum over 2x2 windows; an odd last row or column is left out."""
    b, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return jnp.max(x.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))
