"""Fairness between clients: weights by their losses."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jaxfl.component import Component, Scalar, field
from jaxfl.contracts import expect, expect_like, name_of, own_code
from jaxfl.numerics import rows
from jaxfl.types import Context, Spec, State, Struct, present_mask

FLOOR = 1e-10
"""Added to a loss before its logarithm or a negative power is taken."""


class Weighed(Struct):
    """What a fair method makes of a round's losses.

    >>> Weighed(factors=np.array([0.5, 1.0]), scale=np.array(1.0), state=()).h is None
    True
    """

    factors: Float[Array, " n"]
    """Multiply the clients' updates before the aggregator sees them."""
    scale: Float[Array, ""]
    """Multiplies the aggregate; the updates too, before a rule that is not equivariant to scale."""
    state: State
    h: Float[Array, " n"] | None = None
    """The h_k of ``QFFL``, in units of the largest F_k^q; 0 for a client that has none."""


class Fairness(Component):
    """Weighs clients by their losses, so that badly served ones count for more. Abstract.

    The formulas are those of the papers, for a mean in which all clients weigh the same; weights
    by numbers of samples multiply the factors. A client whose loss or update is not finite is
    given the largest loss among the other clients. Empty slots change nothing.

    >>> class ByLoss(jaxfl.Fairness):
    ...     def weigh(self, losses, squared_norms, gradients, state, context):
    ...         return Weighed(factors=losses, scale=1 / losses.mean(), state=state)
    >>> losses = np.array([1.0, 3.0], np.float32)
    >>> ByLoss().weigh(losses, losses, True, (), jaxfl.Context.of(2)).scale
    np.float32(0.5)
    """

    def init(self, spec: Spec) -> State:
        """The memory at the start of a run."""
        return ()

    @abc.abstractmethod
    def weigh(
        self,
        losses: Float[Array, " n"],
        squared_norms: Float[Array, " n"],
        gradients: bool,
        state: State,
        context: Context,
    ) -> Weighed:
        """The factors of one round.

        Args:
          losses: F_k, each client's training loss at the start of the round.
          squared_norms: |u_k|^2 of each client's update.
          gradients: whether updates are gradients, rather than differences of models.
          state: what ``init`` or the last round returned.
          context: who is present.
        """

    def checked(
        self,
        losses: Float[Array, " n"],
        squared_norms: Float[Array, " n"],
        gradients: bool,
        state: State,
        context: Context,
    ) -> Weighed:
        """``weigh``, whose answer is looked at as it is traced.

        Raises:
          ValueError: a class of one's own answers something else than it should.
        """
        with own_code(self, ".weigh"):
            weighed: Any = self.weigh(losses, squared_norms, gradients, state, context)
        name = f"{name_of(self)}.weigh returned"
        if not isinstance(weighed, Weighed):
            raise ValueError(f"{name} {type(weighed).__name__}; needs Weighed")
        expect(f"{name} factors", weighed.factors, losses.shape, "one per client")
        expect(f"{name} a scale", weighed.scale, (), "one for the aggregate")
        expect_like(f"{name} the memory", weighed.state, state)
        return weighed


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
        losses, usable = _completed(losses, squared_norms, context)
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
        losses, _ = _completed(losses, squared_norms, context)
        present = present_mask(context, losses.shape[0])
        own = state.at[context.client_ids].get(mode="clip")
        factors = _shares(jnp.where(present, own, 0), present)

        gain = jnp.where(present, _product(self.rate, losses), 0).astype(state.dtype)
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
        losses, _ = _completed(losses, squared_norms, context)
        present = present_mask(context, losses.shape[0])
        exponents = _product(self.tilt, losses)
        tilted = jnp.where(present, jnp.exp(exponents - jnp.max(exponents)), 0)
        one = jnp.ones((), losses.dtype)
        return Weighed(factors=_shares(tilted, present), scale=one, state=state)


def _completed(
    losses: Float[Array, " n"], squared_norms: Float[Array, " n"], context: Context
) -> tuple[Float[Array, " n"], Bool[Array, " n"]]:
    """The losses, and which clients are usable; others are given the largest usable loss.

    Without any usable client, that is 0.
    """
    losses = losses.astype(rows.accumulator(losses.dtype))
    usable = jnp.isfinite(losses) & jnp.isfinite(squared_norms)
    usable &= present_mask(context, losses.shape[0])
    largest = jnp.max(jnp.where(usable, losses, -jnp.inf))
    return jnp.where(usable, losses, jnp.where(jnp.any(usable), largest, 0)), usable


def _product(factor: Scalar, losses: Float[Array, " n"]) -> Float[Array, " n"]:
    """``factor * losses``, kept finite."""
    limit = jnp.finfo(losses.dtype).max
    return jnp.clip(jnp.asarray(factor, losses.dtype) * losses, -limit, limit)


def _shares(weights: Float[Array, " n"], mask: Bool[Array, " n"]) -> Float[Array, " n"]:
    """Weights divided by their mean under the mask, where weights are 0 outside of it.

    Where all weights are 0, all under the mask count the same.
    """
    largest = jnp.max(weights)
    # In units of the largest, equal weights give exactly 1.
    weights = jnp.where(largest > 0, rows.safe_ratio(weights, largest), mask)
    return jnp.sum(mask) * weights / jnp.maximum(jnp.sum(weights), 1)


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
