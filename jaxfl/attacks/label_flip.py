"""Poisoned labels."""

from typing import ClassVar

from jaxtyping import Array, Key

from jaxfl.attacks.base import Attack, ClientView
from jaxfl.types import Batch


class LabelFlip(Attack):
    """Attackers train honestly on labels ``classes - 1 - label``. Controls only its own data.

    Its messages are ordinary updates, so it combines with any aggregation and any number of
    local steps. Fang et al., "Local model poisoning attacks", USENIX Security 2020.
    """

    poisons: ClassVar[bool] = True
    crafts: ClassVar[bool] = False

    def poison(self, batch: Batch, client: ClientView, key: Key[Array, ""]) -> Batch:
        return batch.replace(labels=client.classes - 1 - batch.labels)
