"""FLTrust: as much trust in an update as it points where the server's own does."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.aggregators.statistics import Statistics
from jaxfl.aggregators.weighting import WeightingRule
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics.rows import safe_ratio, squared_norms
from jaxfl.types import Context, Info, State


class FLTrust(WeightingRule):
    """The mean of updates cut or stretched to the server's own length, weighted by trust.

    ``sum_i t_i g_i |g_0| / |g_i| / sum_i t_i`` with trust ``t_i = max(0, cos(g_i, g_0))``, where
    g_0 is ``root_scale`` times ``context.root_update``, what a client with the server's own
    samples would send. Where nobody is trusted, or g_0 is zero or not finite, the answer is 0.
    (In the authors' code g_0 sums over the whole root set what the clients average over a batch:
    there root_scale is its size over theirs.)

    ``info.scores`` holds the cosines, ``info.weights`` the shares of trust.

    Needs ``context.root_update``. Cost: three reads of the matrix. No number of Byzantine clients
    makes the answer longer than |g_0|. Fails: root samples unlike the clients' data, attacks that
    know g_0.
    Cao, Fang, Liu, Gong, "FLTrust: Byzantine-robust federated learning via trust bootstrapping",
    NDSS 2021.

    >>> updates = jnp.array([[1, 2], [2, 1], [2, 3], [3, 2], [2, 2], [2, 2], [90, -90.0]])
    >>> context = jaxfl.Context.of(7, root_update=jnp.array([1.0, 1.0]))
    >>> FLTrust()(updates, context=context).round(2)
    Array([0.97999996, 0.97999996], dtype=float32)
    """

    name = "fltrust"
    root_scale: Scalar = field(default=1.0, above=0)
    """Multiplies the server's own update."""

    accepts_absent = capability(True)
    needs = capability(frozenset({"norms", "products"}))
    needs_root = capability(frozenset({"update"}))
    unanimous = capability(False)

    def references(self, state: State, context: Context, dim: int) -> Float[Array, "1 d"]:
        assert context.root_update is not None
        row = context.root_update[None]
        return jnp.where(jnp.isfinite(squared_norms(row))[:, None], row, 0)

    def weigh(
        self, statistics: Statistics, state: State, context: Context
    ) -> tuple[Float[Array, " m"], Info]:
        assert statistics.norms is not None
        assert statistics.reference_norms is not None
        cosines = statistics.reference_cosines()[:, 0]
        trust = jnp.maximum(cosines, 0)
        shares = safe_ratio(trust, jnp.sum(trust))
        length = jnp.asarray(self.root_scale, shares.dtype) * statistics.reference_norms[0]
        norms = jnp.where(statistics.usable, statistics.norms, 0)
        info = Info(selected=trust > 0, weights=shares, scores=cosines)
        return shares * safe_ratio(length, norms), info
