"""Attacks made of attacks: one after the other, side by side, or on data and messages at once."""

import abc
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxfl.attacks.base import ALL, NOTHING, OWN, Attack
from jaxfl.attacks.data import LabelFlip
from jaxfl.attacks.simple import SignFlip
from jaxfl.attacks.statistical import IPM
from jaxfl.attacks.views import AttackView, ClientView
from jaxfl.component import MOST_SEED, capability, field
from jaxfl.types import Batch, Spec, State


def _parts_stream(attack: "_Combination") -> bool:
    return all(part.streams for part in attack.parts())


class _Combination(Attack):
    """What an attack inherits from the attacks that it is made of. Abstract."""

    @classmethod
    def threat(cls) -> tuple[str, str]:
        return "as its attacks", "as its attacks"

    @abc.abstractmethod
    def parts(self) -> tuple[Attack, ...]:
        """The attacks that it is made of."""

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
    def probes(self) -> bool:
        return any(part.probes for part in self.parts())

    @capability
    def follows_model(self) -> bool:
        return any(part.follows_model for part in self.parts())

    @capability
    def needs_root(self) -> bool:
        return any(part.needs_root for part in self.parts())

    @capability
    def knows(self) -> str:
        return max((part.knows for part in self.parts()), key=(NOTHING, OWN, ALL).index)

    def check(self, sample_shape: tuple[int, ...], classes: int) -> None:
        for part in self.parts():
            part.check(sample_shape, classes)

    @capability
    def backdoor(self) -> Any:
        found = (part.backdoor for part in self.parts())
        return next((part for part in found if part is not None), None)


class Onset(_Combination):
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

    streams = capability(_parts_stream)

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

    def poison(self, batch: Batch, client: ClientView, key: Key[Array, ""]) -> Batch:
        poisoned = self.attack.poison(batch, client, key)
        return _either(self._active(client.round), poisoned, batch)

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


class Combined(_Combination):
    """``data`` poisons what the attackers train on, ``message`` rewrites what comes of it.

    The backdoor of Bagdasaryan et al. is ``Combined(data=Backdoor(), message=Scaling(...))``.

    >>> Combined(data=jaxfl.LabelFlip(), message=jaxfl.Scaling(factor=5.0)).threat_model
    ('its data and its messages', 'its own updates')
    """

    data: Attack
    """What poisons the attackers' data."""
    message: Attack
    """What rewrites their messages."""

    streams = capability(_parts_stream)

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


class _Several(_Combination):
    """Several attacks, each with a memory of its own. Abstract."""

    attacks: tuple[Attack, ...]
    """The attacks among which rounds or attackers are divided."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.attacks:
            name = type(self).__name__
            raise ValueError(f"{name}: attacks must name at least one attack; got []")

    def parts(self) -> tuple[Attack, ...]:
        return self.attacks

    def init(self, spec: Spec) -> State:
        return tuple(attack.init(spec) for attack in self.attacks)

    def prepare(self, params: Float[Array, " d"], state: State) -> Any:
        pairs = zip(self.attacks, state, strict=True)
        return tuple(attack.prepare(params, memory) for attack, memory in pairs)

    @abc.abstractmethod
    def turn_of(self, client: ClientView) -> Int[Array, ""]:
        """Which of the attacks this client runs."""

    def poison(self, batch: Batch, client: ClientView, key: Key[Array, ""]) -> Batch:
        result, turn = batch, self.turn_of(client)
        for i, attack in enumerate(self.attacks):
            if attack.poisons:
                result = _either(turn == i, attack.poison(batch, client, key), result)
        return result

    def bend(
        self, gradient: Float[Array, " d"], prepared: Any, client: ClientView
    ) -> Float[Array, " d"]:
        result, turn = gradient, self.turn_of(client)
        for i, attack in enumerate(self.attacks):
            if attack.trains:
                bent = attack.bend(gradient, prepared[i], client)
                result = jnp.where(turn == i, bent, result)
        return result

    def observe(self, view: AttackView, state: State) -> State:
        pairs = zip(self.attacks, state, strict=True)
        return tuple(attack.observe(view, memory) for attack, memory in pairs)


class TimeVarying(_Several):
    """One attack for ``every`` rounds, then another: each drawn uniformly from ``attacks``.

    The schedule depends on this ``seed`` and the round alone: it is the same for all seeds of a
    run. Only the attack on messages of the round is computed.
    Xu et al., "Byzantine-robust federated learning through collaborative malicious gradient
    filtering", ICDCS 2022, Fig. 5 (a new attack every epoch).

    >>> TimeVarying(attacks=(jaxfl.SignFlip(), jaxfl.Zero())).threat_model
    ('its messages', 'its own updates')
    """

    every: int = field(default=1, at_least=1)
    """Rounds for which one attack lasts."""
    seed: int = field(default=0, at_least=0, at_most=MOST_SEED)
    """Of the schedule; the run's own seeds do not change it."""

    streams = capability(_parts_stream)

    @classmethod
    def example(cls) -> Attack:
        return cls(attacks=(IPM(scale=0.5), SignFlip(), LabelFlip()), seed=1)

    def turn(self, when: Int[Array, ""] | int) -> Int[Array, ""]:
        """Which attack it is in this round."""
        key = jax.random.fold_in(jax.random.key(self.seed), when // self.every)
        return jax.random.randint(key, (), 0, len(self.attacks))

    def turn_of(self, client: ClientView) -> Int[Array, ""]:
        return self.turn(client.round)

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "a d"], State]:
        watched = self.observe(view, state)

        def branch(i: int, attack: Attack) -> tuple[Array, State]:
            if not attack.crafts:
                return view.own_rows(), watched
            crafted, memory = attack.craft(view, state[i])
            return view.full(crafted), (*watched[:i], memory, *watched[i + 1 :])

        branches = [functools.partial(branch, i, a) for i, a in enumerate(self.attacks)]
        return jax.lax.switch(self.turn(view.round), branches)


class Mixed(_Several):
    """Different attackers run different attacks: attacker r the (r mod k)-th of ``attacks``.

    r counts the Byzantine clients of the population. Each attack crafts as if all attackers ran
    it. Cost: that of all its attacks.

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) >= 3
    >>> Mixed(attacks=(jaxfl.SignFlip(), jaxfl.Zero()))(updates, byzantine)[3:]
    Array([[-2., -0.],
       [ 0.,  0.]], dtype=float32)
    """

    streams = capability(_parts_stream)

    @classmethod
    def example(cls) -> Attack:
        return cls(attacks=(IPM(scale=0.5), SignFlip()))

    def turn_of(self, client: ClientView) -> Int[Array, ""]:
        return client.rank % len(self.attacks)

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "a d"], State]:
        mine, new_state = view.own_rows(), list(state)
        for i, attack in enumerate(self.attacks):
            if attack.crafts:
                own = view.replace(key=jax.random.fold_in(view.key, i))
                crafted, new_state[i] = attack.craft(own, state[i])
                turn = (view.ranks % len(self.attacks) == i)[:, None]
                mine = jnp.where(turn, view.full(crafted), mine)
        return mine, tuple(new_state)


def _either(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
