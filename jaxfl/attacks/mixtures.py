"""Several attacks in turn, or at once."""

import abc
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxfl.arguments import MOST_SEED
from jaxfl.attacks.base import Attack
from jaxfl.attacks.combined import Combination, either, parts_stream
from jaxfl.attacks.data import LabelFlip
from jaxfl.attacks.simple import SignFlip
from jaxfl.attacks.statistical import IPM
from jaxfl.attacks.views import AttackView, ClientView
from jaxfl.component import capability, field
from jaxfl.types import Batch, Spec, State


class Several(Combination):
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

    def one_of(self, branch: Callable[[int, Attack], Any], number: Int[Array, ""]) -> Any:
        """What ``branch`` gives for the attack of this number; no other is computed."""
        branches = [functools.partial(branch, i, a) for i, a in enumerate(self.attacks)]
        return jax.lax.switch(number, branches)

    def seen_by(self, number: int, client: ClientView) -> ClientView:
        """The client as this one of the attacks is told of it: with a memory of its own."""
        return client.replace(memory=client.memory[number]) if client.memory else client

    def poison(self, batch: Batch, client: ClientView, key: Key[Array, ""]) -> Batch:
        result, turn = batch, self.turn_of(client)
        for i, attack in enumerate(self.attacks):
            if attack.poisons:
                poisoned = attack.poison(batch, self.seen_by(i, client), key)
                result = either(turn == i, poisoned, result)
        return result

    def bend(
        self, gradient: Float[Array, " d"], prepared: Any, client: ClientView
    ) -> Float[Array, " d"]:
        result, turn = gradient, self.turn_of(client)
        for i, attack in enumerate(self.attacks):
            if attack.trains:
                bent = attack.bend(gradient, prepared[i], self.seen_by(i, client))
                result = jnp.where(turn == i, bent, result)
        return result

    def observe(self, view: AttackView, state: State) -> State:
        pairs = zip(self.attacks, state, strict=True)
        return tuple(attack.observe(view, memory) for attack, memory in pairs)


class TimeVarying(Several):
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

    streams = capability(parts_stream)

    @classmethod
    def example(cls) -> Attack:
        return cls(attacks=(IPM(scale=0.5), SignFlip(), LabelFlip()), seed=1)

    def turn(self, when: Int[Array, ""] | int) -> Int[Array, ""]:
        """Which attack it is in this round."""
        key = jax.random.fold_in(jax.random.key(self.seed), when // self.every)
        return jax.random.randint(key, (), 0, len(self.attacks), jnp.int32)

    def turn_of(self, client: ClientView) -> Int[Array, ""]:
        return self.turn(client.round)

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "a d"], State]:
        watched = self.observe(view, state)

        def branch(i: int, attack: Attack) -> tuple[Array, State]:
            if not attack.crafts:
                return view.own_rows(), watched
            crafted, memory = attack.craft(view, state[i])
            return view.full(crafted), (*watched[:i], memory, *watched[i + 1 :])

        return self.one_of(branch, self.turn(view.round))


class Mixed(Several):
    """Different attackers run different attacks: attacker r the (r mod k)-th of ``attacks``.

    r counts the Byzantine clients of the population. Each attack crafts as if all attackers ran
    it. Cost: that of all its attacks.

    >>> updates = jnp.array([[1, 1], [3, 1], [2, 2], [2, 0], [4, 4.0]])
    >>> byzantine = jnp.arange(5) >= 3
    >>> Mixed(attacks=(jaxfl.SignFlip(), jaxfl.Zero()))(updates, byzantine)[3:]
    Array([[-2., -0.],
       [ 0.,  0.]], dtype=float32)
    """

    streams = capability(parts_stream)

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
