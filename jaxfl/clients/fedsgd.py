"""FedSGD: every client sends one gradient a round."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from jaxfl.clients.base import Broadcast, ClientAlgorithm, Message, Samples
from jaxfl.component import Scalar, capability, field
from jaxfl.models.objective import Objective
from jaxfl.types import Spec, State


class FedSGD(ClientAlgorithm):
    """Sends the gradient of one batch, drawn without replacement.

    With ``momentum`` b the client keeps ``m <- b m + (1 - b) g`` and sends m.

    >>> jaxfl.FedSGD(batch_size=32).gradients
    True

    McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
    AISTATS 2017; client momentum: Karimireddy, He, Jaggi, "Learning from history for Byzantine
    robust optimization", ICML 2021.
    """

    name = "fedsgd"

    momentum: Scalar | None = field(default=None, at_least=0, below=1)
    """The client's, b; none: the gradient itself is sent."""

    gradients = capability(True)
    private = capability(True)
    post_processes = capability(True)

    def uses(self, per_pass: int) -> tuple[int, int]:
        return 1, 1

    def init(self, spec: Spec) -> State:
        return () if self.momentum is None else jnp.zeros((spec.dim,), spec.dtype)

    def step(
        self,
        objective: Objective,
        broadcast: Broadcast,
        samples: Samples,
        state: State,
        key: Key[Array, ""],
    ) -> tuple[Message, State]:
        order_key, load_key, model_key = jax.random.split(key, 3)
        batch = samples.batch(0, self._size(samples), order_key, load_key)
        (loss, model_state), gradient = objective.value_and_grad(
            broadcast.params, broadcast.model_state, batch, model_key
        )
        update = ravel_pytree(gradient)[0]
        if self.momentum is not None:
            beta = jnp.asarray(self.momentum, update.dtype)
            update = state = beta * state + (1 - beta) * update
        message = Message(update=update, loss=loss, model_state=model_state, steps=jnp.ones(()))
        return message, state

    def starting_loss(
        self, objective: Objective, broadcast: Broadcast, samples: Samples, message: Message
    ) -> Float[Array, ""]:
        """The mean loss of the batch, which was computed anyway."""
        return message.loss
