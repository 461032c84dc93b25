"""What a fair method is, and what the methods share."""

import abc
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxfl.component import Component, Scalar
from jaxfl.contracts import expect, expect_like, name_of, own_code
from jaxfl.numerics import rows
from jaxfl.types import Context, Spec, State, Struct, present_mask


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

    def check(self, clients: int) -> None:
        """Raises ValueError where the method does not fit a population of so many clients."""

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


def completed(
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


def product(factor: Scalar, losses: Float[Array, " n"]) -> Float[Array, " n"]:
    """``factor * losses``, kept finite."""
    limit = jnp.finfo(losses.dtype).max
    return jnp.clip(jnp.asarray(factor, losses.dtype) * losses, -limit, limit)


def shares_of(weights: Float[Array, " n"], mask: Bool[Array, " n"]) -> Float[Array, " n"]:
    """Weights divided by their mean under the mask, where weights are 0 outside of it.

    Where all weights are 0, all under the mask count the same.
    """
    largest = jnp.max(weights)
    # In units of the largest, equal weights give exactly 1.
    weights = jnp.where(largest > 0, rows.safe_ratio(weights, largest), mask)
    return jnp.sum(mask) * weights / jnp.maximum(jnp.sum(weights), 1)
