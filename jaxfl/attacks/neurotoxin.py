"""Neurotoxin: a backdoor in the coordinates that honest clients leave alone."""

import math
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxfl.aggregators import Aggregator
from jaxfl.attacks.base import Attack
from jaxfl.attacks.data import Backdoor, LabelFlip
from jaxfl.attacks.views import AttackView, ClientView
from jaxfl.component import Scalar, capability, field
from jaxfl.models.objective import Objective
from jaxfl.numerics import rows
from jaxfl.numerics.order import smallest
from jaxfl.types import Batch, Spec, State


class Neurotoxin(Attack):
    """Trains ``attack`` in the share of coordinates that the model's last move changed least.

    In each local step the gradient is set to 0 in the other coordinates, those that honest clients
    are about to write over; what is sent is 0 there too. In the first round nothing is known of
    the model's moves, and all coordinates are used. ``attack`` poisons data, and may craft messages
    of what comes of it; ``most`` bounds the norm of what is sent.

    Zhang, Panda, Song, Yang, Mahoney, Mittal, Gonzalez, Ramchandran, "Neurotoxin: durable backdoors
    in federated learning", ICML 2022.

    >>> Neurotoxin(attack=jaxfl.Backdoor()).threat_model
    ('its data and its training and its messages', 'its own updates')
    """

    attack: Attack = Backdoor()
    """The attack on data."""
    share: float = field(default=0.95, above=0, at_most=1)
    """Share of the coordinates that is used, those that moved least."""
    most: Scalar | None = field(default=None, above=0)
    """Largest norm of what is sent; none: any."""
    poisons = capability(True)
    crafts = capability(True)
    trains = capability(True)
    follows_model = capability(True)

    @classmethod
    def example(cls) -> Attack:
        return cls(attack=LabelFlip())

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self.attack).__name__
        if self.attack.trains or not self.attack.poisons:
            raise ValueError(f"Neurotoxin: attack must be an attack on data; got {name}")
        if self.attack.learns:
            raise ValueError(f"Neurotoxin: {name} learns, which it does alone or in Onset")

    @capability
    def streams(self) -> bool:
        return self.attack.streams

    @capability
    def knows(self) -> str:
        return self.attack.knows

    @capability
    def probes(self) -> bool:
        return self.attack.probes

    @capability
    def made_for(self) -> tuple[type[Aggregator], ...]:
        return self.attack.made_for

    @capability
    def needs_root(self) -> bool:
        return self.attack.needs_root

    @capability
    def needs_rare(self) -> bool:
        return self.attack.needs_rare

    def check(self, sample_shape: tuple[int, ...], classes: int) -> None:
        self.attack.check(sample_shape, classes)

    def check_model(self, objective: Objective) -> None:
        self.attack.check_model(objective)

    @capability
    def backdoor(self) -> Any:
        return self.attack.backdoor

    def init(self, spec: Spec) -> State:
        own = jnp.zeros((spec.dim,), spec.dtype), jnp.array(False)
        return own, self.attack.init(spec)

    def observe(self, view: AttackView, state: State) -> State:
        assert view.params is not None
        (before, _), inner = state
        seen = view.params.astype(before.dtype), jnp.array(True)
        return seen, self.attack.observe(view, inner)

    def poison(self, batch: Batch, client: ClientView, key: Key[Array, ""]) -> Batch:
        return self.attack.poison(batch, client, key)

    def prepare(self, params: Float[Array, " d"], state: State) -> Bool[Array, " d"]:
        (before, seen), _ = state
        moved = jnp.abs(params.astype(before.dtype) - before)
        count = max(1, math.floor(Fraction(str(self.share)) * moved.shape[0]))
        return smallest(moved[:, None], count)[:, 0] | ~seen

    def bend(
        self, gradient: Float[Array, " d"], prepared: Bool[Array, " d"], client: ClientView
    ) -> Float[Array, " d"]:
        return jnp.where(prepared, gradient, 0)

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "a_or_1 d"], State]:
        assert view.params is not None
        mask = self.prepare(view.params, state)
        crafted, inner = self.attack.craft(view, state[1])
        crafted = jnp.where(mask[None], crafted, 0)
        if self.most is not None:
            norms = rows.safe_sqrt(rows.squared_norms(crafted))
            most = jnp.asarray(self.most, norms.dtype)
            shrink = rows.clip_factors(norms, most)
            crafted = crafted * shrink[:, None].astype(crafted.dtype)
        seen, _ = self.observe(view, state)
        return crafted, (seen, inner)
