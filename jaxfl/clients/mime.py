"""MimeLite: local steps with the server's momentum."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from jaxfl.clients.base import Broadcast, ClientAlgorithm, Message, Samples
from jaxfl.clients.local import descend, effective_rate
from jaxfl.component import Scalar, capability, field
from jaxfl.models.objective import Objective
from jaxfl.optimizers import SGD, Schedule
from jaxfl.types import Context, PyTree, Spec, State


class MimeLite(ClientAlgorithm):
    """Local steps with the server's momentum: ``w <- w - r ((1 - b) g + b m)``, m held fixed.

    Clients also send the gradient G over all their samples at the model they received; the server
    keeps ``m <- b m + (1 - b) mean G``. A message is both vectors, 2 d numbers, which attacks and
    rules treat as one. G is sent times ``steps r``, so that both halves weigh about the same in
    distances between messages.

    Cost: one pass over the client's data more than FedAvg.

    >>> jaxfl.MimeLite(momentum=0.9).width
    2

    Karimireddy et al., "Breaking the centralized barrier for cross-device federated learning",
    NeurIPS 2021 (MimeLite with SGD and momentum).
    """

    steps: int = field(default=10, at_least=1)
    """Local steps."""
    learning_rate: Scalar | Schedule = field(default=0.1, above=0)
    """Of local steps; a schedule counts rounds."""
    momentum: Scalar = field(default=0.9, at_least=0, below=1)
    """The server's, b, held fixed in local steps."""

    width = capability(2)
    post_processes = capability(True)

    def init_server(self, spec: Spec) -> State:
        return jnp.zeros((spec.dim,), spec.dtype)

    def step(
        self,
        objective: Objective,
        broadcast: Broadcast,
        samples: Samples,
        state: State,
        key: Key[Array, ""],
    ) -> tuple[Message, State]:
        momentum = broadcast.server
        beta = jnp.asarray(self.momentum, momentum.dtype)
        unravel = ravel_pytree(broadcast.params)[1]

        def with_momentum(gradient: PyTree, params: PyTree) -> PyTree:
            return unravel((1 - beta) * ravel_pytree(gradient)[0] + beta * momentum)

        message = descend(
            objective,
            broadcast,
            samples,
            key,
            SGD(learning_rate=self.learning_rate),
            size=self._size(samples),
            steps=self.steps,
            change=with_momentum,
        )
        gradient = self.full_gradient(objective, broadcast, samples, key)
        scale = effective_rate(self.learning_rate, self.steps, broadcast.round, momentum.dtype)
        return message.replace(update=jnp.concatenate([message.update, scale * gradient])), state

    def full_gradient(
        self, objective: Objective, broadcast: Broadcast, samples: Samples, key: Key[Array, ""]
    ) -> Float[Array, " d"]:
        """The gradient of the mean loss over all of the client's samples, batch by batch."""
        size = self._size(samples)
        blocks = -(-samples.capacity // size)
        order, key = jax.random.split(jax.random.fold_in(key, self.steps))

        def block(total: Array, i: Array) -> tuple[Array, None]:
            load_key, model_key = jax.random.split(jax.random.fold_in(key, i))
            batch = samples.batch(i, size, order, load_key)
            _, gradient = objective.value_and_grad(
                broadcast.params, broadcast.model_state, batch, model_key
            )
            return total + jnp.sum(batch.mask) * ravel_pytree(gradient)[0], None

        total, _ = jax.lax.scan(block, jnp.zeros_like(broadcast.server), jnp.arange(blocks))
        return total / jnp.maximum(samples.count, 1)

    def finish(
        self,
        server: State,
        aggregate: Float[Array, " m"],
        messages: Message,
        context: Context,
        share: Float[Array, ""],
    ) -> tuple[Float[Array, " d"], State]:
        update, gradient = jnp.split(aggregate, 2)
        scale = effective_rate(self.learning_rate, self.steps, context.round, server.dtype)
        beta = jnp.asarray(self.momentum, server.dtype)
        moved = beta * server + (1 - beta) * gradient / scale
        return update, jnp.where(share > 0, moved, server)
