"""Attacks made of attacks: one after the other, side by side, or on data and messages at once."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxfl.aggregators import Aggregator
from jaxfl.attacks.base import ALL, NOTHING, OWN, Attack
from jaxfl.attacks.data import LabelFlip
from jaxfl.attacks.statistical import IPM
from jaxfl.attacks.views import AttackView, ClientView, Learning
from jaxfl.component import capability, field
from jaxfl.models.objective import Objective
from jaxfl.types import Batch, Spec, State


def parts_stream(attack: "Combination") -> bool:
    """Whether all parts of the attack stream."""
    return all(part.streams for part in attack.parts())


class Combination(Attack):
    """What an attack inherits from the attacks that it is made of. Abstract."""

    @classmethod
    def threat(cls) -> tuple[str, str]:
        return "as its attacks", "as its attacks"

    @abc.abstractmethod
    def parts(self) -> tuple[Attack, ...]:
        """The attacks that it is made of."""

    def __post_init__(self) -> None:
        super().__post_init__()
        learner = next((part for part in self.parts() if part.learns), None)
        if learner is not None and type(self).learn is Combination.learn:
            raise ValueError(
                f"{type(self).__name__}: {type(learner).__name__} learns, which it does alone "
                "or in Onset"
            )

    def learn(self, own: Learning, state: State) -> State:
        return state

    @abc.abstractmethod
    def poison(self, batch: Batch, client: ClientView, key: Key[Array, ""]) -> Batch: ...

    @abc.abstractmethod
    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "a_or_1 d"], State]: ...

    @capability
    def poisons(self) -> bool:
        return any(part.poisons for part in self.parts())

    @capability
    def crafts(self) -> bool:
        return any(part.crafts for part in self.parts())

    @capability
    def trains(self) -> bool:
        return any(part.trains for part in self.parts())

    @abc.abstractmethod
    def bend(
        self, gradient: Float[Array, " d"], prepared: Any, client: ClientView
    ) -> Float[Array, " d"]: ...

    @capability
    def learns(self) -> bool:
        return any(part.learns for part in self.parts())

    @capability
    def needs_rare(self) -> bool:
        return any(part.needs_rare for part in self.parts())

    @capability
    def probes(self) -> bool:
        return any(part.probes for part in self.parts())

    @capability
    def made_for(self) -> tuple[type[Aggregator], ...]:
        return tuple(rule for part in self.parts() for rule in part.made_for)

    @capability
    def follows_model(self) -> bool:
        return any(part.follows_model for part in self.parts())

    @capability
    def needs_root(self) -> bool:
        return any(part.needs_root for part in self.parts())

    @capability
    def knows(self) -> str:
        known = (part.knows for part in self.parts())
        return max(known, key=(NOTHING, OWN, ALL).index, default=NOTHING)

    def check(self, sample_shape: tuple[int, ...], classes: int) -> None:
        for part in self.parts():
            part.check(sample_shape, classes)

    def check_model(self, objective: Objective) -> None:
        for part in self.parts():
            part.check_model(objective)

    @capability
    def backdoor(self) -> Any:
        found = (part.backdoor for part in self.parts())
        return next((part for part in found if part is not None), None)


class Onset(Combination):
    """Any attack, honest behaviour before round ``start`` and from round ``end`` on (None: never).

    How long a backdoor outlives its attackers: ``jaxfl.durability.durability``.

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) == 4
    >>> Onset(attack=jaxfl.SignFlip(), start=10)(updates, byzantine)[4]  # round 0
    Array([4., 4.], dtype=float32)
    """

    attack: Attack
    """What begins in round ``start``."""
    start: int = field(at_least=0)
    """The first round of the attack, from 0."""
    end: int | None = field(default=None, at_least=1)
    """The first round without it again; none: it does not end."""

    streams = capability(parts_stream)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"Onset: end must be after start = {self.start}; got {self.end}")

    @classmethod
    def example(cls) -> Attack:
        return cls(attack=IPM(scale=0.5), start=0)

    def parts(self) -> tuple[Attack, ...]:
        return (self.attack,)

    def init(self, spec: Spec) -> State:
        return self.attack.init(spec)

    def observe(self, view: AttackView, state: State) -> State:
        return self.attack.observe(view, state)

    def learn(self, own: Learning, state: State) -> State:
        if not self.learns:
            return state
        return jax.lax.cond(
            self._active(own.round), lambda: self.attack.learn(own, state), lambda: state
        )

    def poison(self, batch: Batch, client: ClientView, key: Key[Array, ""]) -> Batch:
        poisoned = self.attack.poison(batch, client, key)
        return either(self._active(client.round), poisoned, batch)

    def prepare(self, params: Float[Array, " d"], state: State) -> Any:
        return self.attack.prepare(params, state)

    def bend(
        self, gradient: Float[Array, " d"], prepared: Any, client: ClientView
    ) -> Float[Array, " d"]:
        bent = self.attack.bend(gradient, prepared, client)
        return jnp.where(self._active(client.round), bent, gradient)

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "a d"], State]:
        def attack() -> tuple[Array, State]:
            crafted, new_state = self.attack.craft(view, state)
            return view.full(crafted), new_state

        def wait() -> tuple[Array, State]:
            return view.own_rows(), self.observe(view, state)

        return jax.lax.cond(self._active(view.round), attack, wait)

    def _active(self, when: Int[Array, ""]) -> Bool[Array, ""]:
        active = when >= self.start
        return active if self.end is None else active & (when < self.end)


class Combined(Combination):
    """``data`` poisons what the attackers train on, ``message`` rewrites what comes of it.

    The backdoor of Bagdasaryan et al. is ``Combined(data=Backdoor(), message=Scaling(...))``.

    >>> Combined(data=jaxfl.LabelFlip(), message=jaxfl.Scaling(factor=5.0)).threat_model
    ('its data and its messages', 'its own updates')
    """

    data: Attack
    """What poisons the attackers' data."""
    message: Attack
    """What rewrites their messages."""

    streams = capability(parts_stream)

    @classmethod
    def example(cls) -> Attack:
        return cls(data=LabelFlip(), message=IPM(scale=0.5))

    def __post_init__(self) -> None:
        super().__post_init__()
        alone = not (self.data.crafts or self.message.poisons or self.trains)
        if not (self.data.poisons and self.message.crafts and alone):
            raise ValueError(
                "Combined: data must be an attack on data and message one on messages; got "
                f"{type(self.data).__name__} and {type(self.message).__name__}"
            )

    def parts(self) -> tuple[Attack, ...]:
        return (self.data, self.message)

    def init(self, spec: Spec) -> State:
        return self.message.init(spec)

    def observe(self, view: AttackView, state: State) -> State:
        return self.message.observe(view, state)

    def poison(self, batch: Batch, client: ClientView, key: Key[Array, ""]) -> Batch:
        return self.data.poison(batch, client, key)

    def bend(
        self, gradient: Float[Array, " d"], prepared: Any, client: ClientView
    ) -> Float[Array, " d"]:
        return gradient

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "a_or_1 d"], State]:
        return self.message.craft(view, state)


def either(condition: Array, new: Any, old: Any) -> Any:
    """``new`` under the condition, else ``old``; pytrees of arrays."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
