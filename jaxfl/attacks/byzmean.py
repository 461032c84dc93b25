"""ByzMean: make the mean of all messages whatever another attack wants it to be."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxfl.aggregators import Aggregator
from jaxfl.attacks.base import Attack
from jaxfl.attacks.informed import EVERYBODY, AttackByMoments, check_inner, mean_of_known
from jaxfl.attacks.statistical import ALIE
from jaxfl.attacks.views import AttackView
from jaxfl.component import capability
from jaxfl.numerics.rows import safe_ratio
from jaxfl.types import Spec, State


class ByzMean(AttackByMoments):
    """Half of the attackers send ``target``, what ``attack`` crafts; the rest make up the mean.

    Of m attackers ``floor(m / 2)`` send the target, which is the first row that ``attack`` crafts.
    The others send ``((n - floor(m / 2)) target - sum of the honest) / (m - floor(m / 2))``, so
    that the mean of all n messages is the target; where the defence weighs clients by their
    samples, as ``Mean()`` does, so do the attackers. With partial knowledge, h times the mean of
    the attackers' own updates stands for the sum over the h honest clients, and the mean misses
    the target by as much as that is off. The paper's code reckons with all n updates before the
    attack, ``((h - floor(m / 2)) target - sum of all) / (m - floor(m / 2))``, which does not make
    up the mean; so does ``knowledge="everybody"``.

    Xu et al., "Byzantine-robust federated learning through collaborative malicious gradient
    filtering", ICDCS 2022 (with ALIE of z 0.3 inside).

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) >= 3
    >>> ByzMean(attack=jaxfl.Zero())(updates, byzantine).mean(axis=0)
    Array([0., 0.], dtype=float32)
    """

    attack: Attack | None = None
    """None: ALIE of z 0.3 with the same knowledge."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attack is None:
            object.__setattr__(self, "attack", ALIE(z=0.3, knowledge=self.knowledge))
        check_inner(self, self.inner)

    @property
    def inner(self) -> Attack:
        """The attack that makes the target."""
        assert self.attack is not None
        return self.attack

    @capability
    def needs_root(self) -> bool:
        return self.inner.needs_root

    @capability
    def probes(self) -> bool:
        return self.inner.probes

    @capability
    def made_for(self) -> tuple[type[Aggregator], ...]:
        return self.inner.made_for

    @capability
    def follows_model(self) -> bool:
        return self.inner.follows_model

    def init(self, spec: Spec) -> State:
        return self.inner.init(spec)

    def observe(self, view: AttackView, state: State) -> State:
        return self.inner.observe(view, state)

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "a d"], State]:
        crafted, state = self.inner.craft(view, state)
        by_samples = view.defence.aggregator.by_samples
        shares = view.weights if by_samples else jnp.ones_like(view.weights)
        mean = mean_of_known(view.updates, self.known(view), shares)
        target = crafted[0].astype(mean.dtype)
        first = jnp.arange(view.attackers.shape[0]) < view.count // 2
        honest = jnp.sum(jnp.where(view.honest, shares, 0))
        own = shares.at[view.attackers].get(mode="fill", fill_value=0)
        rest = jnp.sum(jnp.where(first, 0, own))
        # ((h + rest) target - h mean) / rest without large sums.
        balance = target + safe_ratio(honest, rest).astype(mean.dtype) * (target - mean)
        if self.knowledge == EVERYBODY:
            beyond = safe_ratio(jnp.sum(own), rest).astype(mean.dtype)
            balance -= beyond * (target + mean)
        return jnp.where(first[:, None], target[None], balance[None]), state
