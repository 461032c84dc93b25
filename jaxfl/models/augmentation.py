"""Models that see their training images slightly changed."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxfl.component import capability, field
from jaxfl.models.zoo import Model


class Augmented(Model):
    """A ``model`` that trains on random crops and reflections of its images.

    Each image is padded by ``padding`` pixels of zero on every side, which is the mean colour of
    normalised images, a window of its own size is cut at random, and with ``flip`` it is mirrored
    left to right with probability 1/2: drawn anew for every image and step, inside the compiled
    round. In evaluation images stay as they are.

    >>> jaxfl.models.Augmented(model=jaxfl.models.CNN()).padding
    4
    """

    model: Model
    """What learns from the changed images."""
    padding: int = field(default=4, at_least=0)
    """Zero pixels on every side, before a window is cut."""
    flip: bool = True
    """Whether images are mirrored with probability 1/2."""

    @capability
    def convolves(self) -> bool:
        return self.model.convolves

    def build(self, sample_shape: tuple[int, ...], classes: int, rngs: nnx.Rngs) -> nnx.Module:
        if len(sample_shape) != 3:
            raise ValueError(f"Augmented needs images; got inputs of {sample_shape}")
        return _Augmented(self, self.model.build(sample_shape, classes, rngs), rngs)


class _Augmented(nnx.Module):
    def __init__(self, settings: Augmented, model: nnx.Module, rngs: nnx.Rngs) -> None:
        self.padding, self.flip = settings.padding, settings.flip
        self.model = model
        self.stream = rngs.augmentation.fork()
        self.deterministic = False

    def __call__(self, x: Array | np.ndarray) -> Array:
        x = jnp.asarray(x)
        if not self.deterministic:
            shift, mirror = jax.random.split(self.stream())
            x = self._cropped(x, shift)
            if self.flip:
                mirrored = jax.random.bernoulli(mirror, 0.5, (x.shape[0], 1, 1, 1))
                x = jnp.where(mirrored, x[:, :, ::-1], x)
        return self.model(x)

    def _cropped(self, x: Array, key: Array) -> Array:
        most = self.padding
        wide = jnp.pad(x, ((0, 0), (most, most), (most, most), (0, 0)))
        corners = jax.random.randint(key, (x.shape[0], 2), 0, 2 * most + 1)

        def window(image: Array, corner: Array) -> Array:
            return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), x.shape[1:])

        return jax.vmap(window)(wide, corners)
