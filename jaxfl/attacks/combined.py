"""Attacks made of attacks: one after the other, side by side, or on data and messages at once."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxfl.attacks.base import ALL, NOTHING, OWN, Attack, AttackView, ClientView, Defence, own_rows
from jaxfl.component import field
from jaxfl.types import Batch, Spec, State


class _Combination(Attack):
    """What an attack inherits from the attacks that it is made of. Abstract."""

    @classmethod
    def threat(cls) -> tuple[str, str]:
        return "as its attacks", "as its attacks"

    def parts(self) -> tuple[Attack, ...]:
        raise NotImplementedError

    @property
    def poisons(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(part.poisons for part in self.parts())

    @property
    def crafts(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(part.crafts for part in self.parts())

    @property
    def probes(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(part.probes for part in self.parts())

    @property
    def follows_model(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(part.follows_model for part in self.parts())

    @property
    def needs_root(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(part.needs_root for part in self.parts())

    @property
    def knows(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return max((part.knows for part in self.parts()), key=(NOTHING, OWN, ALL).index)

    def check(self, sample_shape: tuple[int, ...], classes: int) -> None:
        for part in self.parts():
            part.check(sample_shape, classes)

    @property
    def backdoor(self) -> Any:
        found = (part.backdoor for part in self.parts())
        return next((part for part in found if part is not None), None)


class Onset(_Combination):
    """Any attack, honest behaviour before round ``start``."""

    attack: Attack
    start: int = field(at_least=0)

    def parts(self) -> tuple[Attack, ...]:
        return (self.attack,)

    def init(self, spec: Spec) -> State:
        return self.attack.init(spec)

    def observe(self, state: State, view: AttackView) -> State:
        return self.attack.observe(state, view)

    def poison(self, batch: Batch, client: ClientView, key: Key[Array, ""]) -> Batch:
        started = client.round >= self.start
        return _either(started, self.attack.poison(batch, client, key), batch)

    def craft(
        self,
        updates: Float[Array, "n d"],
        state: State,
        view: AttackView,
        key: Key[Array, ""],
        defence: Defence,
    ) -> tuple[Float[Array, "a d"], State]:
        def attack() -> tuple[Array, State]:
            crafted, new_state = self.attack.craft(updates, state, view, key, defence)
            return view.full(updates, crafted), new_state

        def wait() -> tuple[Array, State]:
            return own_rows(updates, view), self.observe(state, view)

        return jax.lax.cond(view.round >= self.start, attack, wait)


class Combined(_Combination):
    """``data`` poisons what the attackers train on, ``message`` rewrites what comes of it.

    The backdoor of Bagdasaryan et al. is ``Combined(data=Backdoor(), message=Scaling(...))``.
    """

    data: Attack
    message: Attack

    def __post_init__(self) -> None:
        super().__post_init__()
        alone = not (self.data.crafts or self.message.poisons)
        if not (self.data.poisons and self.message.crafts and alone):
            raise ValueError(
                "Combined: data must be an attack on data and message one on messages; got "
                f"{type(self.data).__name__} and {type(self.message).__name__}"
            )

    def parts(self) -> tuple[Attack, ...]:
        return (self.data, self.message)

    def init(self, spec: Spec) -> State:
        return self.message.init(spec)

    def observe(self, state: State, view: AttackView) -> State:
        return self.message.observe(state, view)

    def poison(self, batch: Batch, client: ClientView, key: Key[Array, ""]) -> Batch:
        return self.data.poison(batch, client, key)

    def craft(
        self,
        updates: Float[Array, "n d"],
        state: State,
        view: AttackView,
        key: Key[Array, ""],
        defence: Defence,
    ) -> tuple[Float[Array, "a_or_1 d"], State]:
        return self.message.craft(updates, state, view, key, defence)


class _Several(_Combination):
    """Several attacks, each with a memory of its own. Abstract."""

    attacks: tuple[Attack, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.attacks:
            name = type(self).__name__
            raise ValueError(f"{name}: attacks must name at least one attack; got []")

    def parts(self) -> tuple[Attack, ...]:
        return self.attacks

    def init(self, spec: Spec) -> State:
        return tuple(attack.init(spec) for attack in self.attacks)

    def observe(self, state: State, view: AttackView) -> State:
        pairs = zip(self.attacks, state, strict=True)
        return tuple(attack.observe(memory, view) for attack, memory in pairs)


class TimeVarying(_Several):
    """One attack for ``every`` rounds, then another: each drawn uniformly from ``attacks``.

    The schedule is that of ``seed`` and the round alone, the same for all seeds of a run. Only
    the attack of the round is computed, but all of them where several seeds run in one program.
    Xu et al., "Byzantine-robust federated learning through collaborative malicious gradient
    filtering", ICDCS 2022, Fig. 5 (a new attack every epoch).
    """

    every: int = field(default=1, at_least=1)
    seed: int = field(default=0, at_least=0)

    def turn(self, when: Int[Array, ""] | int) -> Int[Array, ""]:
        """Which attack it is in this round."""
        key = jax.random.fold_in(jax.random.key(self.seed), when // self.every)
        return jax.random.randint(key, (), 0, len(self.attacks))

    def poison(self, batch: Batch, client: ClientView, key: Key[Array, ""]) -> Batch:
        turn = self.turn(client.round)
        return _one_of(self.attacks, turn, batch, client, key)

    def craft(
        self,
        updates: Float[Array, "n d"],
        state: State,
        view: AttackView,
        key: Key[Array, ""],
        defence: Defence,
    ) -> tuple[Float[Array, "a d"], State]:
        watched = self.observe(state, view)

        def branch(i: int, attack: Attack) -> tuple[Array, State]:
            if not attack.crafts:
                return own_rows(updates, view), watched
            crafted, memory = attack.craft(updates, state[i], view, key, defence)
            return view.full(updates, crafted), (*watched[:i], memory, *watched[i + 1 :])

        branches = [functools.partial(branch, i, a) for i, a in enumerate(self.attacks)]
        return jax.lax.switch(self.turn(view.round), branches)


class Mixed(_Several):
    """Different attackers run different attacks: attacker r the (r mod k)-th of ``attacks``.

    r counts the Byzantine clients of the population. Each attack believes that all attackers are
    its own. Cost: that of all its attacks.
    """

    def poison(self, batch: Batch, client: ClientView, key: Key[Array, ""]) -> Batch:
        return _one_of(self.attacks, client.rank % len(self.attacks), batch, client, key)

    def craft(
        self,
        updates: Float[Array, "n d"],
        state: State,
        view: AttackView,
        key: Key[Array, ""],
        defence: Defence,
    ) -> tuple[Float[Array, "a d"], State]:
        mine, new_state = own_rows(updates, view), list(state)
        for i, attack in enumerate(self.attacks):
            if attack.crafts:
                own_key = jax.random.fold_in(key, i)
                crafted, new_state[i] = attack.craft(updates, state[i], view, own_key, defence)
                turn = (view.ranks % len(self.attacks) == i)[:, None]
                mine = jnp.where(turn, view.full(updates, crafted), mine)
        return mine, tuple(new_state)


def _either(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _one_of(
    attacks: Iterable[Attack],
    turn: Int[Array, ""],
    batch: Batch,
    client: ClientView,
    key: Key[Array, ""],
) -> Batch:
    result = batch
    for i, attack in enumerate(attacks):
        if attack.poisons:
            result = _either(turn == i, attack.poison(batch, client, key), result)
    return result
