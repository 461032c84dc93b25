"""Local privacy: of a client's whole message, against the server."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from jaxfl.component import Scalar, capability, field
from jaxfl.numerics.rows import accumulator
from jaxfl.privacy.base import Privacy, clipped, draw
from jaxfl.privacy.deployment import (
    GAUSSIAN,
    LAPLACE,
    MESSAGE,
    NOBODY,
    SMALLEST,
    Deployment,
    Release,
)

UNCLIPPED = "without a clip a message may be arbitrarily large"


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

    >>> message = jnp.array([3.0, 4.0])
    >>> MessagePrivacy(clip=1.0, noise_multiplier=0.0).message(message, jax.random.key(0)).round(1)
    Array([0.6, 0.8], dtype=float32)

    Dwork et al., "Calibrating noise to sensitivity in private data analysis", TCC 2006; Abadi et
    al., "Deep learning with differential privacy", CCS 2016, on the message instead of the example.
    """

    name = "message"
    clip: Scalar | None = field(default=None, at_least=SMALLEST)
    """Largest norm of a message; none: no clip and no guarantee."""
    mechanism: str = field(default=GAUSSIAN, choices=(GAUSSIAN, LAPLACE))
    """The noise, and with it the norm: Euclidean, or the sum of magnitudes."""
    clip_byzantine: bool | None = None
    """Whether crafted messages are clipped; none: as ``noise_order`` implies."""

    protects = capability(MESSAGE)
    trusts = capability(NOBODY)

    @capability
    def reach(self) -> Scalar | None:
        return self.clip

    @capability
    def norm(self) -> int:
        return 1 if self.mechanism == LAPLACE else 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip is None and self.clip_byzantine is not None:
            raise ValueError("MessagePrivacy: clip_byzantine needs a clip")

    def message(
        self,
        message: Float[Array, " d"],
        key: Key[Array, ""],
        crafted: Bool[Array, ""] | bool = False,
    ) -> Float[Array, " d"]:
        """One message, clipped and noised."""
        value = self._clipped(message)
        if self.clip_byzantine is False:
            value = jnp.where(crafted, message.astype(value.dtype), value)
        scale = jnp.asarray(self.multiplier(), value.dtype)
        if self.clip is not None:
            scale = scale * jnp.asarray(self.clip, value.dtype)
        return (value + scale * draw(self.mechanism, key, value)).astype(message.dtype)

    def crafted(self, message: Float[Array, " d"]) -> Float[Array, " d"]:
        return self._clipped(message).astype(message.dtype) if self.clip_byzantine else message

    def releases(self, run: Deployment) -> Sequence[Release]:
        if self.clip is None:
            return ()
        return (Release(float(np.min(self.multiplier())), run.taken, kind=self.mechanism),)

    def neighbours(self, run: Deployment) -> str:
        return "the message replaced by nothing"

    def caveats(self, run: Deployment) -> tuple[str, ...]:
        return (*((UNCLIPPED,) if self.clip is None else ()), *super().caveats(run))

    def _clipped(self, message: Float[Array, " d"]) -> Float[Array, " d"]:
        """The message clipped, where there is a clip; float32 or better."""
        value = message.astype(accumulator(message.dtype))
        if self.clip is None:
            return value
        return clipped(value, jnp.asarray(self.clip, value.dtype), self.norm)
