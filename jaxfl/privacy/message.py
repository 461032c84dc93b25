"""Local privacy: of a client's whole message, against the server."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxfl.component import Scalar, field
from jaxfl.numerics.rows import accumulator
from jaxfl.privacy.base import GAUSSIAN, LAPLACE, Privacy, clipped, draw


class MessagePrivacy(Privacy):
    """Clips a message to norm ``clip`` and adds noise of scale ``noise_multiplier * clip`` to it.

    ``x min(1, clip / |x|) + noise``, once per message, on the client: Gaussian noise of that
    standard deviation with the Euclidean norm, or Laplacian noise of that parameter with the sum
    of magnitudes. A message that is not finite counts as zero. With ``clip = None`` nothing is
    clipped and the noise has scale ``noise_multiplier``: there is then no privacy guarantee at
    any epsilon, because a message may be arbitrarily large.

    The whole message is protected, also from the server: replacing it by nothing has sensitivity
    ``clip``, by another ``2 clip``; clipping a mean gives no 1 / batch for an example.
    ``clip_byzantine`` says whether what attackers craft is clipped to ``clip`` as well; None: as
    the order of noise and attack implies (see ``Federation.noise_order``).
    Dwork et al., "Calibrating noise to sensitivity in private data analysis", TCC 2006; Abadi et
    al., "Deep learning with differential privacy", CCS 2016, on the message instead of the example.
    """

    clip: Scalar | None = field(default=None, above=0)
    mechanism: str = field(default=GAUSSIAN, choices=(GAUSSIAN, LAPLACE))
    clip_byzantine: bool | None = None

    protects: ClassVar[str] = "a client's whole message"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip is None and self.clip_byzantine is not None:
            raise ValueError("MessagePrivacy: clip_byzantine needs a clip")

    def bound(self, message: Float[Array, " d"]) -> Float[Array, " d"]:
        """The message clipped, where there is a clip; float32 or better."""
        value = message.astype(accumulator(message.dtype))
        if self.clip is None:
            return value
        order = 1 if self.mechanism == LAPLACE else 2
        return clipped(value, jnp.asarray(self.clip, value.dtype), order)

    def cover(self, message: Float[Array, " d"], key: Key[Array, ""]) -> Float[Array, " d"]:
        """The message noised; float32 or better."""
        value = message.astype(accumulator(message.dtype))
        scale = jnp.asarray(self.multiplier(), value.dtype)
        if self.clip is not None:
            scale = scale * jnp.asarray(self.clip, value.dtype)
        return value + scale * draw(self.mechanism, key, value)

    def privatise(self, message: Float[Array, " d"], key: Key[Array, ""]) -> Float[Array, " d"]:
        """One message, clipped and noised."""
        return self.cover(self.bound(message), key).astype(message.dtype)
