"""Privacy of a client's whole message."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxfl.component import Component, Scalar, field
from jaxfl.numerics.rows import accumulator, safe_ratio


class MessagePrivacy(Component):
    """Clips a message to norm ``clip`` and adds ``N(0, (noise_multiplier * clip)^2)`` to it.

    ``x min(1, clip / |x|) + noise``, once per message, on the client. With ``clip = None``
    nothing is clipped and the noise has standard deviation ``noise_multiplier``: there is then
    no privacy guarantee at any epsilon, because a message may be arbitrarily large.

    The whole message is protected: adding or removing a client has sensitivity ``clip``,
    replacing one ``2 clip``.
    Abadi et al., "Deep learning with differential privacy", CCS 2016, on the message instead of
    the example.
    """

    clip: Scalar | None = field(default=None, above=0)
    noise_multiplier: Scalar = field(default=0.0, at_least=0)

    def privatise(self, message: Float[Array, " d"], key: Key[Array, ""]) -> Float[Array, " d"]:
        """One message, clipped and noised."""
        dtype = accumulator(message.dtype)
        value, std = message.astype(dtype), jnp.asarray(self.noise_multiplier, dtype)
        if self.clip is not None:
            clip = jnp.asarray(self.clip, dtype)
            norm = jnp.sqrt(jnp.sum(jnp.square(value)))
            value = value * jnp.where(norm > clip, safe_ratio(clip, norm), 1)
            std = std * clip
        return (value + std * jax.random.normal(key, value.shape, dtype)).astype(message.dtype)
