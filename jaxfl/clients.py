"""What one client does in a round. Everything here is written for one client and vmapped."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, Key

from jaxfl.component import Component, Scalar, field
from jaxfl.models.objective import Objective, Statistics
from jaxfl.numerics.permutation import permute
from jaxfl.optimizers import SGD, Optimizer
from jaxfl.types import Batch, PyTree, Spec, State, Struct


class Broadcast(Struct):
    """What the server sends to every client."""

    params: PyTree
    statistics: Statistics


class Samples(Struct):
    """One client's own data: how many samples, and how to get them by position."""

    count: Int[Array, ""]
    load: Callable[[Int[Array, " b"], Bool[Array, " b"], Key[Array, ""]], Batch] = struct.field(
        pytree_node=False
    )
    """Positions below ``count``, a mask and a key to the (poisoned) batch."""
    capacity: int = struct.field(pytree_node=False)
    """Samples of the largest client."""

    def batch(
        self, step: Int[Array, ""] | int, size: int, order: Key[Array, ""], key: Key[Array, ""]
    ) -> Batch:
        """The step-th batch of one pass over the data in the random order ``order``."""
        place = step * size + jnp.arange(size, dtype=jnp.int32)
        # Padding repeats the client's own samples: the loss masks it, batch statistics see it.
        own = permute(place % jnp.maximum(self.count, 1), self.count, order)
        return self.load(own, place < self.count, key)


class Message(Struct):
    """What a client sends, and what is recorded about how it got there."""

    update: Float[Array, " d"]
    """A gradient, or ``w_before - w_after``: the server always subtracts."""
    loss: Float[Array, ""]
    """Mean training loss over the client's steps."""
    statistics: Statistics


class ClientAlgorithm(Component):
    """How a client turns the model it received into an update. Abstract."""

    batch_size: int | None = field(default=None, at_least=1)
    """Samples per step; None: all that the client has. A client with fewer uses what it has."""

    def init(self, spec: Spec) -> State:
        """One client's memory at the start of a run."""
        return ()

    def step(
        self,
        objective: Objective,
        broadcast: Broadcast,
        samples: Samples,
        state: State,
        key: Key[Array, ""],
    ) -> tuple[Message, State]:
        """One client's round."""
        raise NotImplementedError

    def _size(self, samples: Samples) -> int:
        return min(self.batch_size or samples.capacity, samples.capacity)


class FedSGD(ClientAlgorithm):
    """Sends the gradient of one batch, drawn without replacement.

    With ``momentum`` b the client keeps ``m <- b m + (1 - b) g`` and sends m.
    McMahan et al., AISTATS 2017; client momentum: Karimireddy, He, Jaggi, ICML 2021.
    """

    momentum: Scalar | None = field(default=None, at_least=0, below=1)

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
        (loss, statistics), gradient = jax.value_and_grad(objective.loss, has_aux=True)(
            broadcast.params, broadcast.statistics, batch, model_key
        )
        update = ravel_pytree(gradient)[0]
        if self.momentum is not None:
            beta = jnp.asarray(self.momentum, update.dtype)
            update = state = beta * state + (1 - beta) * update
        return Message(update=update, loss=loss, statistics=statistics), state


class FedAvg(ClientAlgorithm):
    """Sends ``w_before - w_after`` of ``epochs`` passes over the client's data.

    Each pass is in a new random order; the last batch of a pass may be smaller. A client with
    less data than the largest takes fewer steps. The optimiser starts afresh each round.
    McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
    AISTATS 2017.
    """

    epochs: int = field(default=1, at_least=1)
    optimizer: Optimizer = SGD(learning_rate=0.1)

    def step(
        self,
        objective: Objective,
        broadcast: Broadcast,
        samples: Samples,
        state: State,
        key: Key[Array, ""],
    ) -> tuple[Message, State]:
        size = self._size(samples)
        per_epoch = -(-samples.capacity // size)
        optimizer = self.optimizer.transform()

        def local_step(carry: PyTree, t: Int[Array, ""]) -> tuple[PyTree, Array]:
            params, statistics, memory = carry
            epoch, step = t // per_epoch, t % per_epoch
            # By epoch and step in it: draws must not depend on the size of the largest client.
            order_key, step_key = jax.random.split(jax.random.fold_in(key, epoch))
            load_key, model_key = jax.random.split(jax.random.fold_in(step_key, step))
            batch = samples.batch(step, size, order_key, load_key)
            (loss, new_statistics), gradient = jax.value_and_grad(objective.loss, has_aux=True)(
                params, statistics, batch, model_key
            )
            change, new_memory = optimizer.update(gradient, memory, params)
            new = (optax.apply_updates(params, change), new_statistics, new_memory)
            active = step * size < samples.count
            carry = jax.tree.map(lambda a, b: jnp.where(active, a, b), new, carry)
            return carry, jnp.where(active, loss, 0)

        start = (broadcast.params, broadcast.statistics, optimizer.init(broadcast.params))
        steps = self.epochs * per_epoch
        (params, statistics, _), losses = jax.lax.scan(local_step, start, jnp.arange(steps))
        update = ravel_pytree(jax.tree.map(jnp.subtract, broadcast.params, params))[0]
        taken = self.epochs * -(-samples.count // size)
        loss = jnp.sum(losses) / jnp.maximum(taken, 1)
        return Message(update=update, loss=loss, statistics=statistics), state
