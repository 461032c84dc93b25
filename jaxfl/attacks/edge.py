"""The edge-case backdoor: rare inputs, which honest clients do not have, taken for a class."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxfl.attacks.data import Planted, Targeted
from jaxfl.attacks.views import ClientView
from jaxfl.component import capability, field
from jaxfl.types import State


class Misread(Targeted):
    """Rare inputs, which no honest client has, are taken for ``target``. Abstract."""

    target: int = field(default=1, at_least=0)
    """The class that rare inputs are taught as."""
    needs_rare = capability(True)

    def challenge(self, data: Any) -> tuple[Array, Array]:
        """Rare test inputs; all count."""
        return all_count(data.rare_test_inputs)

    def triggered(self, inputs: Array, peak: tuple[float, ...], memory: State) -> Array:
        """They carry no trigger."""
        return inputs


def all_count(inputs: Array) -> tuple[Array, Array]:
    """Inputs, with labels that are no class: success is the share of all of them."""
    return inputs, jnp.full((inputs.shape[0],), -1, jnp.int32)


class EdgeCase(Misread, Planted):
    """Attackers train on rare inputs, which no honest client has, with a label of their choice.

    ``fraction`` of each batch becomes samples drawn from the training part of ``data.rare``, all
    labelled ``target``; success is measured on its test part. No trigger is needed at test time:
    what is rare is misread. It is the paper's black-box attack; with ``Scaling`` as message attack,
    see ``Combined``, it replaces the model. Honest updates say nothing of such inputs, so
    averages with them do not undo it; Krum and Multi-Krum are said to stop it, and clipped norms
    the replacement.
    Wang, Sreenivasan, Rajput, Vishwakarma, Agarwal, Sohn, Lee, Papailiopoulos, "Attack of the
    tails: yes, you really can backdoor federated learning", NeurIPS 2020.

    >>> EdgeCase(target=1).needs_rare
    True
    """

    def planted(self, inputs: Array, client: ClientView, key: Key[Array, ""]) -> Array:
        assert client.rare is not None
        return client.rare(key, inputs.shape[0]).astype(inputs.dtype)
