"""Clipping to a fixed norm."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.aggregators.mixing import PreAggregator
from jaxfl.aggregators.statistics import Statistics
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics.rows import safe_ratio
from jaxfl.types import Context


class Clipping(PreAggregator):
    """Scales every row down to norm ``tau``: ``x min(1, tau / |x|)``.

    ``tau`` is in the units of the updates, so neither scale nor translation carries through.
    Needs a threshold that suits the attack: none suits all; see ``ARC`` for one that adapts.
    Cost: one read of the matrix.
    Allouah et al., "Adaptive gradient clipping for robust federated learning", ICLR 2025.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> jaxfl.Pipeline(pre=[Clipping(tau=3.0)], rule=jaxfl.Mean())(updates).round(2)
    Array([1.9 , 1.29], dtype=float32)
    """

    tau: Scalar = field(default=2.0, above=0)
    """Largest norm, in the units of the updates."""
    needs = capability(frozenset({"norms"}))
    accepts_absent = capability(True)
    affine = capability(False)
    diagonal = capability(True)
    scale_equivariant = capability(False)
    unanimous = capability(False)
    in_units = capability(("tau",))

    @classmethod
    def example(cls, f: int = 2) -> "Clipping":
        return cls(tau=5.0)

    def mix(self, statistics: Statistics, context: Context) -> Float[Array, " m"]:
        norms = statistics.norms
        assert norms is not None
        tau = jnp.asarray(self.tau, norms.dtype)
        finite = jnp.where(statistics.usable, norms, 1)
        scale = jnp.where(finite > tau, safe_ratio(tau, finite), 1)
        return jnp.where(statistics.usable, scale, 0)
