"""What all mechanisms share: a clip, noise, and the delta that they are reported at."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxfl.component import Component, Scalar, field
from jaxfl.numerics.noise import laplace, normal
from jaxfl.types import State

GAUSSIAN, LAPLACE = "gaussian", "laplace"
NOISE_FIRST, ATTACK_FIRST = "noise_then_attack", "attack_then_noise"


class Privacy(Component):
    """A mechanism of differential privacy. Abstract.

    ``noise_multiplier`` is the noise in units of the clip; 0 is no noise and no privacy. Instead
    of it, ``epsilon`` may be given: ``jaxfl.accounting.calibrate`` then finds the least noise that
    keeps a run of known length within (epsilon, delta), and runs by ``simulate`` or from a file
    do so by themselves.
    """

    noise_multiplier: Scalar | None = field(default=None, at_least=0)
    epsilon: float | None = field(default=None, above=0)
    """Target; only without ``noise_multiplier``."""
    delta: float = field(default=1e-5, above=0, below=1)

    protects: ClassVar[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_multiplier is not None and self.epsilon is not None:
            raise ValueError(
                f"{type(self).__name__}: give noise_multiplier or epsilon, not both; got "
                f"{self.noise_multiplier} and {self.epsilon}"
            )

    @property
    def calibrated(self) -> bool:
        """Whether the noise is known; otherwise ``epsilon`` says what it should reach."""
        return self.epsilon is None

    def init(self, dim: int) -> State:
        """The server's memory at the start of a run, for messages of so many numbers."""
        return ()

    def multiplier(self) -> Scalar:
        """The noise multiplier; 0 where none was given."""
        return 0.0 if self.noise_multiplier is None else self.noise_multiplier


def clipped(
    value: Float[Array, " d"], clip: Float[Array, ""], order: int = 2
) -> Float[Array, " d"]:
    """``value`` scaled down to norm ``clip``; zero where its norm is not finite."""
    largest = jnp.max(jnp.abs(value), initial=0)
    # Squares of large float32 overflow; a power of two scales without rounding.
    scale = jnp.where(largest > 2.0**30, jnp.asarray(2.0**-80, value.dtype), 1)
    small = value * scale
    norm = jnp.sum(jnp.abs(small)) if order == 1 else jnp.sqrt(jnp.sum(jnp.square(small)))
    bounded = small * (clip / jnp.where(norm > 0, norm, 1))
    return jnp.where(jnp.isfinite(largest), jnp.where(norm > clip * scale, bounded, value), 0)


def draw(kind: str, key: Key[Array, ""], like: Float[Array, " d"]) -> Float[Array, " d"]:
    """Noise of scale 1: standard deviation for a Gaussian, parameter b for a Laplacian."""
    sample = laplace if kind == LAPLACE else normal
    return sample(key, like.shape, like.dtype)
