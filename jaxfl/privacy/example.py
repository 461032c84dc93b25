"""Privacy of one example of one client: DP-SGD inside the client's steps."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key

from jaxfl.clients import ClientAlgorithm, Samples
from jaxfl.clients.base import slots
from jaxfl.component import Scalar, capability, field, promises
from jaxfl.models.objective import ModelState, Objective
from jaxfl.models.per_example import clipped_sum
from jaxfl.numerics.rows import accumulator
from jaxfl.privacy.base import Privacy, draw
from jaxfl.privacy.deployment import EXAMPLE, GAUSSIAN, NOBODY, SMALLEST, Deployment, Release
from jaxfl.types import Batch, PyTree

POISSON, FIXED = "poisson", "fixed"

LIKE_POISSON = "samples of a fixed size are accounted as Poisson samples at half the noise"
"""For one release that is a theorem (one replaced by another); for many it is common practice."""


class ExamplePrivacy(Privacy):
    """DP-SGD on every client: ``(sum_i g_i min(1, clip / |g_i|) + noise) / expected batch``.

    g_i is the gradient of one example, the noise N(0, (noise_multiplier clip)^2) is drawn once
    per step, and the divisor is the expected size of the batch, which does not tell who is in it.
    ``sampling`` is ``"poisson"`` (every sample independently with probability batch / samples;
    the program has as many slots as are exceeded with probability ``overflow``, whose price in
    delta is paid) or ``"fixed"`` (batches of one size, as without privacy).

    Protects one example of one client, also from the server, which sees noisy sums only. How many
    samples a client has is no secret: the divisor tells, and with it the size of the noise. Works
    in every algorithm whose clients use their samples through gradients alone, and with every
    model without batch normalisation. ``microbatch`` examples at a time bound the memory; None:
    all at once where the model's layers allow norms without gradients, else 16.

    >>> ExamplePrivacy(clip=1.0, noise_multiplier=1.1).protects
    'one example of one client'

    Abadi et al., "Deep learning with differential privacy", CCS 2016.
    """

    name = "example"
    clip: Scalar = field(default=1.0, at_least=SMALLEST)
    """Largest norm of an example's gradient."""
    sampling: str = field(default=POISSON, choices=(POISSON, FIXED))
    """How a batch is drawn."""
    overflow: float = field(default=1e-18, above=0, below=1)
    """Probability that a batch exceeds its slots."""
    microbatch: int | None = field(default=None, at_least=1)
    """Examples at a time; none: all, or 16 where a layer needs gradients for norms."""

    protects = capability(EXAMPLE)
    trusts = capability(NOBODY)

    @capability
    def reach(self) -> Scalar | None:
        return self.clip

    def check(self, algorithm: ClientAlgorithm, noise_order: str, expected: int) -> None:
        super().check(algorithm, noise_order, expected)
        if not promises(algorithm, "private"):
            raise ValueError(
                f"{type(algorithm).__name__} sends more than gradients of samples, which "
                f"{type(self).__name__} does not cover"
            )

    def samples(self, samples: Samples) -> Samples:
        return samples.replace(overflow=self.overflow if self.sampling == POISSON else None)

    def objective(
        self, objective: Objective, count: Int[Array, ""], batch_size: int | None
    ) -> "PrivateObjective":
        """The objective of a client with so many samples, whose gradients are private."""
        expected = count if batch_size is None else jnp.minimum(batch_size, count)
        overflow = self.overflow if self.sampling == POISSON else None
        return PrivateObjective(
            **vars(objective),
            plain=objective,
            privacy=self,
            expected=jnp.maximum(expected, 1),
            most=None if batch_size is None else slots(batch_size, overflow),
        )

    def releases(self, run: Deployment) -> Sequence[Release]:
        # The client that is worst off counts: few samples are sampled often.
        return tuple(dict.fromkeys(self._of_client(run, size) for size in run.sizes))

    def _of_client(self, run: Deployment, samples: int) -> Release:
        """What is released about one example of a client with so many."""
        multiplier, algorithm = float(np.min(self.multiplier())), run.algorithm
        size = min(algorithm.batch_size or samples, samples)
        steps, passes = algorithm.checked_uses(-(-samples // size))
        if self.sampling != FIXED:
            lost = steps * run.taken * self.overflow if size < samples else 0.0
            return Release(multiplier, steps * run.taken, size / samples, lost)
        if algorithm.gradients:
            return Release(multiplier / 2, steps * run.taken, size / samples)
        # A pass has every example in one batch: no sampling, one release.
        return Release(multiplier / 2, passes * run.taken)

    def replaces(self, run: Deployment) -> bool:
        # In a batch of fixed size another example takes the place.
        return self.sampling == FIXED

    def neighbours(self, run: Deployment) -> str:
        other = "another" if self.replaces(run) else "nothing"
        return f"one example replaced by {other}; numbers of samples are public"

    def caveats(self, run: Deployment) -> tuple[str, ...]:
        alike = self.sampling == FIXED and run.algorithm.gradients
        return (*((LIKE_POISSON,) if alike else ()), *super().caveats(run))


@dataclasses.dataclass(frozen=True, eq=False)
class PrivateObjective(Objective):
    """An objective whose gradient is clipped by example and noised. Lives within one round."""

    plain: Objective
    privacy: ExamplePrivacy
    expected: Array
    """Expected size of a batch."""
    most: int | None
    """Slots of a batch, for which epsilon is counted; None: all samples of the client."""

    def value_and_grad(
        self, params: PyTree, model_state: ModelState, batch: Batch, key: Key[Array, ""]
    ) -> tuple[tuple[Float[Array, ""], ModelState], PyTree]:
        size = batch.labels.shape[0]
        if self.most is not None and size > self.most:
            raise ValueError(
                f"{type(self.privacy).__name__}: a gradient of {size} samples; epsilon is counted "
                f"for batches of batch_size, which have at most {self.most}"
            )
        model_key, noise_key = jax.random.split(key)
        loss, model_state, total = clipped_sum(
            self.plain,
            params,
            model_state,
            batch,
            model_key,
            self.privacy.clip,
            microbatch=self.privacy.microbatch,
        )
        flat, unravel = ravel_pytree(total)
        value = flat.astype(accumulator(flat.dtype))
        scale = jnp.asarray(self.privacy.multiplier(), value.dtype)
        scale = scale * jnp.asarray(self.privacy.clip, value.dtype)
        noisy = value + scale * draw(GAUSSIAN, noise_key, value)
        return (loss, model_state), unravel((noisy / self.expected).astype(flat.dtype))
