"""Several attacks in one program, one of which a number chooses."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxfl.attacks.base import ALL, Attack
from jaxfl.attacks.combined import parts_stream
from jaxfl.attacks.mixtures import Several
from jaxfl.attacks.views import AttackView, ClientView
from jaxfl.component import Scalar, capability, field
from jaxfl.types import Batch, State


class Branches(Several):
    """The attack of number ``which`` among ``attacks``, as it would be alone.

    Only that attack is computed, and the number is a leaf: a program that has been compiled for
    one of the attacks runs the others. The runner puts the attacks of a grid into one program so,
    where its experiment asks for it; in a file an attack has its own name.

    Needs attacks that do not learn. Cost: that of the attack; under ``vmap`` with different
    numbers, that of all. What its threat model says holds for the most that one of them knows.

    >>> from jaxfl.attacks.branches import Branches
    >>> updates, byzantine = jnp.array([[1.0], [3.0], [5.0]]), jnp.array([False, False, True])
    >>> Branches(attacks=(jaxfl.SignFlip(), jaxfl.Zero()), which=1)(updates, byzantine)
    Array([[1.],
           [3.],
           [0.]], dtype=float32)
    """

    which: Scalar = field(at_least=0)
    """The number of the attack."""

    streams = capability(parts_stream)

    @capability
    def backdoor(self) -> Any:
        return self.attacks[int(self.which)].backdoor

    @property
    def number(self) -> Int[Array, ""]:
        """Which of the attacks it is, in a program."""
        return jnp.asarray(self.which).astype(jnp.int32)

    def turn_of(self, client: ClientView) -> Int[Array, ""]:
        return self.number

    def poison(self, batch: Batch, client: ClientView, key: Key[Array, ""]) -> Batch:
        def branch(i: int, attack: Attack) -> Batch:
            return attack.poison(batch, self.seen_by(i, client), key)

        return self.one_of(branch, self.number)

    def prepare(self, params: Float[Array, " d"], state: State) -> Any:
        def prepared(i: int, attack: Attack) -> Any:
            made = functools.partial(attack.prepare, params, state[i])
            unused = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(made))
            return jax.lax.cond(self.number == i, made, lambda: unused)

        return tuple(prepared(i, attack) for i, attack in enumerate(self.attacks))

    def bend(
        self, gradient: Float[Array, " d"], prepared: Any, client: ClientView
    ) -> Float[Array, " d"]:
        def branch(i: int, attack: Attack) -> Float[Array, " d"]:
            return attack.bend(gradient, prepared[i], self.seen_by(i, client))

        return self.one_of(branch, self.number)

    def craft(self, view: AttackView, state: State) -> tuple[Float[Array, "a d"], State]:
        everybody = jnp.ones_like(view.honest)
        others = everybody.at[view.attackers].set(False, mode="drop")

        def branch(i: int, attack: Attack) -> tuple[Array, State]:
            if not attack.crafts:
                return view.own_rows(), state
            # One that knows less than others of the attacks is told no more than it would be.
            own = view if attack.knows == ALL else view.replace(honest=others)
            crafted, memory = attack.craft(own, state[i])
            return view.full(crafted), (*state[:i], memory, *state[i + 1 :])

        return self.one_of(branch, self.number)
