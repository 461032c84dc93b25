"""Attacks that start late."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxfl.attacks.base import Attack, AttackView, ClientView, Defence, own_rows
from jaxfl.component import field
from jaxfl.types import Batch, Spec, State


class Onset(Attack):
    """Any attack, honest behaviour before round ``start``."""

    attack: Attack
    start: int = field(at_least=0)

    @property
    def poisons(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.attack.poisons

    @property
    def crafts(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.attack.crafts

    def init(self, spec: Spec) -> State:
        return self.attack.init(spec)

    def poison(self, batch: Batch, client: ClientView, key: Key[Array, ""]) -> Batch:
        started = client.round >= self.start
        poisoned = self.attack.poison(batch, client, key)
        return jax.tree.map(lambda new, old: jnp.where(started, new, old), poisoned, batch)

    def craft(
        self,
        updates: Float[Array, "n d"],
        state: State,
        view: AttackView,
        key: Key[Array, ""],
        defence: Defence,
    ) -> tuple[Float[Array, "a d"], State]:
        started = view.round >= self.start
        rows, new_state = self.attack.craft(updates, state, view, key, defence)
        rows = jnp.where(started, rows.astype(updates.dtype), own_rows(updates, view))
        return rows, jax.tree.map(lambda new, old: jnp.where(started, new, old), new_state, state)
