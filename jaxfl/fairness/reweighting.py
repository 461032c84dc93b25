"""Weights that follow the losses smoothly (q-FFL, TERM) or over the rounds (AFL)."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jaxfl.component import Scalar, field
from jaxfl.fairness.base import Fairness, Weighed, completed, product, shares_of
from jaxfl.numerics import rows
from jaxfl.types import Context, Spec, State, present_mask

FLOOR = 1e-10
"""Added to a loss before its logarithm or a negative power is taken."""


class QFFL(Fairness):
    """q-FedSGD and q-FedAvg: steps on ``sum_k F_k^(q+1) / (q + 1)``.

    Updates are multiplied by F_k^q and their mean divided by the mean of

        h_k = F_k^q (1 + c q |u_k|^2 / F_k),  c = 1/L for gradients, L for differences of models,

    an estimate of the local Lipschitz constant over L. The powers F_k^q are divided by the largest
    of them, which cancels; with q = 0 all factors are 1. The paper's step results from a server's
    learning rate of 1/L for gradients and 1 for differences; its L is 1 over the clients' learning
    rate. ``cap``, for robust rules, limits F_k^q and h_k to so many times their medians; a client
    whose loss or update is not finite has no h_k.

    Losses are believed: without a robust rule, a client that overstates its loss leads the step,
    and if it does so by a factor above 10^(38/q), all other updates vanish in float32. To robust
    rules a large q looks like an attack, because honest updates differ by F_k^q.

    >>> losses, context = jnp.array([1.0, 2.0]), jaxfl.Context.of(2)
    >>> fair = jaxfl.QFFL(q=1.0, lipschitz=1.0).weigh(losses, jnp.zeros(2), True, (), context)
    >>> [round(float(factor), 3) for factor in fair.factors]
    [0.5, 1.0]

    Li, Sanjabi, Beirami, Smith, "Fair resource allocation in federated learning", ICLR 2020.
    """

    q: Scalar = field(at_least=0)
    """How much more the badly served count; 0: not at all."""
    lipschitz: Scalar = field(above=0)
    """L, 1 over the clients' learning rate."""
    cap: Scalar | None = field(default=None, at_least=1)
    """Limits the powers of losses and h, to so many times their medians; none: no limit."""

    def weigh(
        self,
        losses: Float[Array, " n"],
        squared_norms: Float[Array, " n"],
        gradients: bool,
        state: State,
        context: Context,
    ) -> Weighed:
        losses, usable = completed(losses, squared_norms, context)
        dtype = losses.dtype
        q, log_l = jnp.asarray(self.q, dtype), jnp.log(jnp.asarray(self.lipschitz, dtype))
        logs = jnp.log(jnp.maximum(losses, 0) + FLOOR)
        powers = self._capped(q * (logs - jnp.max(logs)), usable)
        powers = jnp.where(powers == jnp.max(powers), 0, powers - jnp.max(powers))
        # F^(q-1) |u|^2 may overflow, and is 0 where q is: only its logarithm is formed.
        curvature = jnp.log(q) + (-log_l if gradients else log_l)
        curvature += jnp.log(jnp.where(usable, squared_norms, 0).astype(dtype))
        log_h = self._capped(powers + jax.nn.softplus(curvature - logs), usable)
        scale = _inverse_mean(log_h, usable)
        h = jnp.where(usable, jnp.exp(log_h), 0)
        return Weighed(factors=jnp.exp(powers), scale=scale, state=state, h=h)

    def _capped(self, logs: Float[Array, " n"], usable: Bool[Array, " n"]) -> Float[Array, " n"]:
        """Logarithms of numbers limited to ``cap`` times their median."""
        if self.cap is None:
            return logs
        most = jnp.log(jnp.asarray(self.cap, logs.dtype)) + _log_median(logs, usable)
        return jnp.minimum(logs, most)


class AFL(Fairness):
    """Agnostic learning: minimises the worst mixture of clients, ``max_lambda sum_k lambda_k F_k``.

    Clients are weighted by lambda, scaled to a mean of 1 over those present. Then lambda ascends:
    ``rate F_k`` is added for those present, and the result is projected onto the simplex. The
    memory is lambda for the whole population.

    The weight moves to the clients of largest loss, be they hard, noisy or lying. In a cohort
    without any weight, all clients count the same. Slow where cohorts are small, and absent
    clients lose weight to those present.

    >>> fair = jaxfl.AFL(rate=0.1)
    >>> context = jaxfl.Context.of(2)
    >>> weighed = fair.weigh(jnp.array([1.0, 2.0]), jnp.ones(2), True, jnp.full(2, 0.5), context)
    >>> [round(float(share), 3) for share in weighed.state]
    [0.45, 0.55]

    Mohri, Sivek, Suresh, "Agnostic federated learning", ICML 2019.
    """

    rate: Scalar = field(at_least=0)
    """Of the ascent of the clients' weights."""

    def init(self, spec: Spec) -> State:
        dtype = rows.accumulator(jnp.dtype(spec.dtype))
        return jnp.full((spec.population,), 1 / spec.population, dtype)

    def weigh(
        self,
        losses: Float[Array, " n"],
        squared_norms: Float[Array, " n"],
        gradients: bool,
        state: State,
        context: Context,
    ) -> Weighed:
        losses, _ = completed(losses, squared_norms, context)
        present = present_mask(context, losses.shape[0])
        own = state.at[context.client_ids].get(mode="clip")
        factors = shares_of(jnp.where(present, own, 0), present)

        gain = jnp.where(present, product(self.rate, losses), 0).astype(state.dtype)
        risen = state.at[context.client_ids].add(gain, mode="drop")
        # The projection ignores a constant, and how far below the largest a number is beyond 1:
        # taking both out keeps the projection's sums small.
        risen = jnp.maximum(risen - jnp.max(risen), -2)
        risen = optax.projections.projection_simplex(risen).astype(state.dtype)
        one = jnp.ones((), factors.dtype)
        return Weighed(factors=factors, scale=one, state=risen)


class TERM(Fairness):
    """Tilted losses: steps on ``log(mean_k exp(tilt F_k)) / tilt``.

    Factors are the softmax of tilt F_k over the clients present, times their number. A positive
    tilt favours the clients of largest loss, a negative one those of smallest, which leaves out
    outliers.

    With a positive tilt, one client that overstates its loss takes the whole step. The right tilt
    depends on the unit of the losses.

    >>> losses, context = jnp.array([0.0, jnp.log(3.0)]), jaxfl.Context.of(2)
    >>> weighed = jaxfl.TERM(tilt=1.0).weigh(losses, jnp.ones(2), True, (), context)
    >>> [round(float(factor), 3) for factor in weighed.factors]
    [0.5, 1.5]

    Li, Beirami, Sanjabi, Smith, "Tilted empirical risk minimization", ICLR 2021.
    """

    tilt: Scalar
    """Positive: the largest losses count more; negative: less."""

    def weigh(
        self,
        losses: Float[Array, " n"],
        squared_norms: Float[Array, " n"],
        gradients: bool,
        state: State,
        context: Context,
    ) -> Weighed:
        losses, _ = completed(losses, squared_norms, context)
        present = present_mask(context, losses.shape[0])
        exponents = product(self.tilt, losses)
        tilted = jnp.where(present, jnp.exp(exponents - jnp.max(exponents)), 0)
        one = jnp.ones((), losses.dtype)
        return Weighed(factors=shares_of(tilted, present), scale=one, state=state)


def _log_median(logs: Float[Array, " n"], mask: Bool[Array, " n"]) -> Float[Array, ""]:
    """Logarithm of the median of ``exp(logs)`` under the mask; infinite for an empty mask."""
    ordered = jnp.sort(jnp.where(mask, logs, jnp.inf))
    count = jnp.sum(mask)
    lower, upper = ordered[jnp.maximum(count - 1, 0) // 2], ordered[count // 2]
    below = jnp.where(count > 0, lower - upper, 0)
    return upper + jnp.log((1 + jnp.exp(below)) / 2)


def _inverse_mean(logs: Float[Array, " n"], mask: Bool[Array, " n"]) -> Float[Array, ""]:
    """1 over the mean of ``exp(logs)`` under the mask, kept finite; 1 for an empty mask."""
    count = jnp.sum(mask)
    largest = jnp.where(count > 0, jnp.max(jnp.where(mask, logs, -jnp.inf)), 0)
    total = jnp.sum(jnp.where(mask, jnp.exp(logs - largest), 0))
    inverse = count / jnp.maximum(total, 1) * jnp.exp(-largest)
    return jnp.where(count > 0, jnp.minimum(inverse, jnp.finfo(logs.dtype).max), 1)
