"""Weights that minimise the mean over the worst honest sets, or over the worst clients."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxfl.component import Scalar, field
from jaxfl.fairness.base import Fairness, Weighed, completed, shares_of
from jaxfl.numerics import rows
from jaxfl.numerics.masses import mass_of_largest
from jaxfl.types import Context, State, present_mask


class TailRisk(Fairness):
    """Steps on the conditional value at risk of the loss over the sets that can be honest.

    ``L_S`` is the mean loss of the clients in a set S of ``sets``, which occur with
    ``probabilities``. The objective is the mean over the largest L_S, those of a mass 1 - alpha,

        min_t t + E (L_S - t)_+ / (1 - alpha),

    and the factor of client i is n times its derivative in F_i, ``n sum_S q_S 1{i in S} / |S|``,
    where q_S is what S has of that mass, over all of it. With alpha = 0 that is the expected
    objective, ``sum_i w_i F_i``; with alpha near 1 the worst set that can occur. Without ``sets``
    each client is a set of its own: the objective is the mean of the (1 - alpha) n largest losses,
    with alpha = f / n the worst mean over n - f clients, and with alpha = 0 all factors are 1.

    In a cohort a set is those of its clients who are present; one without any does not occur.

    Losses are believed. But no factor exceeds n / |S| of the smallest set, or 1 / (1 - alpha)
    without sets, whatever a client says: that much weight, and no more, goes to who overstates.
    The objective has kinks where sets tie, and steps go back and forth across them; equal losses
    count alike. Cost: O(k n) for k sets.

    >>> fair = jaxfl.TailRisk(alpha=0.5)
    >>> losses, context = jnp.array([1.0, 4.0, 2.0, 3.0]), jaxfl.Context.of(4)
    >>> fair.weigh(losses, jnp.ones(4), True, (), context).factors.tolist()
    [0.0, 2.0, 0.0, 2.0]

    Laguel, Pillutla, Malick, Harchaoui, "A superquantile approach to federated learning with
    heterogeneous devices", CISS 2021, for sets of one client; Rockafellar, Uryasev, "Optimization
    of conditional value-at-risk", Journal of Risk 2000.
    """

    alpha: Scalar = field(at_least=0, below=1)
    """1 less the share that counts: 0 is the expectation, near 1 the worst."""
    sets: Scalar | None = field(default=None, at_least=0, at_most=1)
    """Masks of the sets that can be honest, [k, n] over the population; none: each client alone."""
    probabilities: Scalar | None = field(default=None, at_least=0)
    """Of these sets, [k]; none: all alike."""

    def __post_init__(self) -> None:
        if np.asarray(self.sets).dtype.kind == "b":
            object.__setattr__(self, "sets", np.asarray(self.sets, np.float64))
        super().__post_init__()

    def check(self, clients: int) -> None:
        if self.sets is None:
            if self.probabilities is not None:
                raise ValueError("TailRisk: probabilities are of sets, and there are none")
            return
        sets = np.asarray(self.sets)
        if sets.ndim != 2 or sets.shape[1] != clients or not (sets > 0).any(axis=1).all():
            raise ValueError(
                f"TailRisk: sets must be masks [k, {clients}] of the population, none of them "
                f"empty; got shape {sets.shape}"
            )
        if self.probabilities is None:
            return
        masses = np.asarray(self.probabilities)
        if masses.shape != sets.shape[:1] or not masses.sum() > 0:
            raise ValueError(
                f"TailRisk: probabilities must be {len(sets)} numbers, one per set and not all 0; "
                f"got shape {masses.shape}"
            )

    def weigh(
        self,
        losses: Float[Array, " n"],
        squared_norms: Float[Array, " n"],
        gradients: bool,
        state: State,
        context: Context,
    ) -> Weighed:
        losses, _ = completed(losses, squared_norms, context)
        present, dtype = present_mask(context, losses.shape[0]), losses.dtype
        if self.sets is None:
            weights = self._tail(losses, present.astype(dtype))
        else:
            members = (jnp.asarray(self.sets)[:, context.client_ids] > 0) & present[None]
            sizes = jnp.sum(members, axis=1, dtype=dtype)
            shares = rows.safe_ratio(members.astype(dtype), sizes[:, None])
            masses = jnp.ones(sizes.shape, dtype)
            if self.probabilities is not None:
                masses = jnp.asarray(self.probabilities, dtype)
            means = jnp.matmul(shares, losses, precision="highest")
            tail = self._tail(means, jnp.where(sizes > 0, masses, 0))
            weights = jnp.matmul(tail, shares, precision="highest")
        one = jnp.ones((), dtype)
        return Weighed(factors=shares_of(weights, present), scale=one, state=state)

    def _tail(self, values: Float[Array, " k"], masses: Float[Array, " k"]) -> Float[Array, " k"]:
        return mass_of_largest(values, masses, 1 - jnp.asarray(self.alpha, values.dtype))
