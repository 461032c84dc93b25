"""The robust learning rate: steps are reversed where too few clients agree on their sign."""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxfl.aggregators.base import Aggregator
from jaxfl.aggregators.mean import Mean
from jaxfl.aggregators.wrapping import Wrapper
from jaxfl.component import Scalar, capability, field
from jaxfl.numerics import columns, rows
from jaxfl.numerics.runs import alongside
from jaxfl.types import Aggregated, Context, State, present_mask


class RLR(Wrapper):
    """The answer of ``rule``, reversed in coordinates where the vote on the sign is close.

    ``r_j A(G)_j`` with ``r_j = 1`` where ``|sum_i sign(g_ij)| >= threshold``, else -1. The
    threshold is a number of votes, not a share: 4 of 10 and 8 of 40 clients in the authors' runs.
    0 gives the rule itself. Every client has one vote whatever its number of samples; a zero votes
    for neither sign.

    Needs threshold <= n, honest clients that agree. Cost: one read of the matrix besides the
    rule's. Fails: heterogeneous clients, as most coordinates then miss the threshold and the model
    climbs; f clients also push any margin up to n - f below a threshold above n - 2f.
    Ozdayi, Kantarcioglu, Gel, "Defending against backdoors in federated learning with robust
    learning rate", AAAI 2021.

    >>> updates = jnp.array([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, -1.0]])
    >>> RLR(threshold=4)(updates)
    Array([ 1. , -0.6], dtype=float32)
    """

    name = "rlr"
    rule: Aggregator = Mean()
    """The rule whose answer is reversed."""
    threshold: Scalar = field(default=8.0, at_least=0)
    """Votes by which one sign must lead the other."""
    translation_equivariant = capability(False)

    def check(self, n: int) -> None:
        super().check(n)
        if not isinstance(self.threshold, Tracer) and np.max(self.threshold) > n:
            raise ValueError(
                f"RLR: threshold must be at most the number of clients, n = {n}, or every step "
                f"is reversed; got {float(np.max(self.threshold)):g}"
            )

    def aggregate(self, updates: Float[Array, "n d"], state: State, context: Context) -> Aggregated:
        result = self.rule.checked(updates, state, context)
        finite = jnp.isfinite(rows.squared_norms(updates))
        voters = finite & present_mask(context, updates.shape[0])

        def margin(block: Array) -> Array:
            votes = jnp.where(voters[:, None], jnp.sign(block), 0).astype(jnp.float32)
            ones = alongside(jnp.ones((votes.shape[0],), votes.dtype), votes)
            return jnp.abs(jnp.matmul(ones, votes, precision="highest"))

        margins = columns.map_columns(margin, updates, width=rows.WIDTH)
        agreed = margins >= jnp.asarray(self.threshold, margins.dtype)
        return result.replace(update=jnp.where(agreed, result.update, -result.update))
