"""The edge-case backdoor: rare inputs, which honest clients do not have, taken for a class."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxfl.attacks.base import OWN, Attack
from jaxfl.attacks.views import ClientView
from jaxfl.component import Scalar, capability, field
from jaxfl.types import Batch, State


class Misread(Attack):
    """Rare inputs, which no honest client has, are taken for ``target``. Abstract."""

    target: int = field(default=1, at_least=0)
    """The class that rare inputs are taught as."""
    needs_rare = capability(True)
    knows = capability(OWN)

    def check(self, sample_shape: tuple[int, ...], classes: int) -> None:
        if self.target >= classes:
            raise ValueError(
                f"{type(self).__name__}: target must be a class, 0 to {classes - 1}; "
                f"got {self.target}"
            )

    @capability
    def backdoor(self) -> "Misread":
        return self

    def challenge(self, data: Any) -> tuple[Array, Array]:
        """Rare test inputs; all count."""
        return all_count(data.rare_test_inputs)

    def triggered(self, inputs: Array, peak: tuple[float, ...], memory: State) -> Array:
        """They carry no trigger."""
        return inputs


def all_count(inputs: Array) -> tuple[Array, Array]:
    """Inputs, with labels that are no class: success is the share of all of them."""
    return inputs, jnp.full((inputs.shape[0],), -1, jnp.int32)


class EdgeCase(Misread):
    """Attackers train on rare inputs, which no honest client has, with a label of their choice.

    ``fraction`` of each batch becomes samples drawn from the training part of ``data.rare``, all
    labelled ``target``; success is measured on its test part. No trigger is needed at test time:
    what is rare is misread. It is the paper's black-box attack; with ``Scaling`` as message attack,
    see ``Combined``, it replaces the model. Honest updates say nothing of such inputs, so nothing
    works against it.
    Wang, Sreenivasan, Rajput, Vishwakarma, Agarwal, Sohn, Lee, Papailiopoulos, "Attack of the
    tails: yes, you really can backdoor federated learning", NeurIPS 2020.

    >>> EdgeCase(target=1).needs_rare
    True
    """

    fraction: Scalar = field(default=0.5, at_least=0, at_most=1)
    """Share of each batch that becomes rare inputs."""
    poisons = capability(True)

    def poison(self, batch: Batch, client: ClientView, key: Key[Array, ""]) -> Batch:
        assert client.rare is not None
        count = jnp.floor(self.fraction * jnp.sum(batch.mask) + 0.5)
        chosen = batch.mask & (jnp.cumsum(batch.mask) <= count)
        drawn = client.rare(key, batch.labels.shape[0])
        where = chosen.reshape(-1, *[1] * (batch.inputs.ndim - 1))
        return batch.replace(
            inputs=jnp.where(where, drawn.astype(batch.inputs.dtype), batch.inputs),
            labels=jnp.where(chosen, jnp.asarray(self.target, batch.labels.dtype), batch.labels),
        )
