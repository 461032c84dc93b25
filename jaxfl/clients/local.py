"""Several local steps a round: FedAvg, FedProx and FedNova, and what all of these share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from jaxfl.clients.base import Broadcast, ClientAlgorithm, Message, Samples
from jaxfl.component import Scalar, capability, field
from jaxfl.models.objective import Objective
from jaxfl.optimizers import SGD, Optimizer, Schedule
from jaxfl.types import Context, PyTree, State

Change = Callable[[PyTree, PyTree], PyTree]
"""``change(gradient, params)`` is the direction that the local optimiser is given."""


def unchanged(gradient: PyTree, params: PyTree) -> PyTree:
    """The gradient itself."""
    return gradient


def pull(strength: Scalar, towards: PyTree) -> Change:
    """Adds the gradient of ``strength / 2 |params - towards|^2``."""

    def change(gradient: PyTree, params: PyTree) -> PyTree:
        return jax.tree.map(
            lambda g, w, to: g + jnp.asarray(strength, g.dtype) * (w - to),
            gradient,
            params,
            towards,
        )

    return change


def descend(
    objective: Objective,
    broadcast: Broadcast,
    samples: Samples,
    key: Key[Array, ""],
    optimizer: Optimizer,
    *,
    size: int,
    epochs: int = 1,
    steps: int | None = None,
    change: Change = unchanged,
) -> Message:
    """Trains the received model on a client's samples.

    Args:
      objective: the model and its loss.
      broadcast: what the server sent.
      samples: the client's data.
      key: the client's own randomness.
      optimizer: the local one; a learning-rate schedule is read at the number of the round.
      size: samples in a batch; the last batch of a pass may be smaller.
      epochs: passes over the data, each in a new random order.
      steps: if given, exactly so many steps instead, over as many passes as they need.
      change: turns a gradient into the direction that the optimiser is given.

    Returns:
      The message: the difference of models, the mean loss and the number of steps.
    """
    per_epoch = -(-samples.capacity // size)
    own = jnp.maximum(-(-samples.count // size), 1)
    transform = optimizer.transform(at=broadcast.round)

    def local_step(carry: PyTree, t: Array) -> tuple[PyTree, Array]:
        params, model_state, memory = carry
        in_pass = per_epoch if steps is None else own
        epoch, step = t // in_pass, t % in_pass
        # Keys by epoch and step within it, so that no draw depends on the largest client's size.
        order_key, step_key = jax.random.split(jax.random.fold_in(key, epoch))
        load_key, model_key = jax.random.split(jax.random.fold_in(step_key, step))
        batch = samples.batch(step, size, order_key, load_key)
        (loss, new_model_state), gradient = objective.value_and_grad(
            params, model_state, batch, model_key
        )
        move, new_memory = transform.update(change(gradient, params), memory, params)
        new = (optax.apply_updates(params, move), new_model_state, new_memory)
        active = step * size < samples.count
        carry = jax.tree.map(lambda a, b: jnp.where(active, a, b), new, carry)
        return carry, jnp.where(active, loss, 0)

    start = (broadcast.params, broadcast.model_state, transform.init(broadcast.params))
    total = epochs * per_epoch if steps is None else steps
    (params, model_state, _), losses = jax.lax.scan(local_step, start, jnp.arange(total))
    taken = epochs * -(-samples.count // size) if steps is None else jnp.asarray(steps)
    return Message(
        update=ravel_pytree(jax.tree.map(jnp.subtract, broadcast.params, params))[0],
        loss=jnp.sum(losses) / jnp.maximum(taken, 1),
        model_state=model_state,
        steps=taken.astype(jnp.float32),
    )


def steps_and_passes(per_pass: int, epochs: int = 1, steps: int | None = None) -> tuple[int, int]:
    """The steps of ``descend`` and the passes over the data that these begin; see ``uses``."""
    return (epochs * per_pass, epochs) if steps is None else (steps, -(-steps // per_pass))


class LocalTraining(ClientAlgorithm):
    """Algorithms with ``epochs`` passes over the client's data, or ``steps`` steps. Abstract."""

    epochs: int = field(default=1, at_least=1)
    """Passes over the client's data."""
    steps: int | None = field(default=None, at_least=1)
    """Steps of every client, in place of passes."""

    def uses(self, per_pass: int) -> tuple[int, int]:
        return steps_and_passes(per_pass, self.epochs, self.steps)

    def train(
        self,
        objective: Objective,
        broadcast: Broadcast,
        samples: Samples,
        key: Key[Array, ""],
        optimizer: Optimizer,
        change: Change = unchanged,
    ) -> Message:
        """``descend`` over as many passes or steps as the fields say."""
        return descend(
            objective,
            broadcast,
            samples,
            key,
            optimizer,
            size=self._size(samples),
            epochs=self.epochs,
            steps=self.steps,
            change=change,
        )


class FedAvg(LocalTraining):
    """Sends ``w_before - w_after`` after ``epochs`` passes over the client's data.

    Each pass is in a new random order; the last batch of a pass may be smaller. Clients with less
    data take fewer steps; with ``steps`` set, every client takes that many instead. The optimiser
    starts afresh each round; a learning-rate schedule counts rounds.

    >>> jaxfl.FedAvg(batch_size=32, epochs=2).uses(per_pass=5)
    (10, 2)

    McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
    AISTATS 2017.
    """

    name = "fedavg"

    optimizer: Optimizer = SGD(learning_rate=0.1)
    """Of local steps; it starts afresh each round."""

    private = capability(True)
    post_processes = capability(True)

    def step(
        self,
        objective: Objective,
        broadcast: Broadcast,
        samples: Samples,
        state: State,
        key: Key[Array, ""],
    ) -> tuple[Message, State]:
        return self.train(objective, broadcast, samples, key, self.optimizer), state


class FedProx(LocalTraining):
    """FedAvg that minimises ``F_k(w) + mu / 2 |w - w_before|^2`` instead.

    mu = 0 is FedAvg. A large mu keeps clients near the model they received.

    >>> jaxfl.FedProx(mu=0.1, steps=10).uses(per_pass=4)
    (10, 3)

    Li et al., "Federated optimization in heterogeneous networks", MLSys 2020.
    """

    name = "fedprox"

    mu: Scalar = field(default=0.01, at_least=0)
    """Weight of the pull towards the received model."""
    optimizer: Optimizer = SGD(learning_rate=0.1)
    """Of local steps; it starts afresh each round."""

    private = capability(True)
    post_processes = capability(True)

    def step(
        self,
        objective: Objective,
        broadcast: Broadcast,
        samples: Samples,
        state: State,
        key: Key[Array, ""],
    ) -> tuple[Message, State]:
        towards = pull(self.mu, broadcast.params)
        message = self.train(objective, broadcast, samples, key, self.optimizer, towards)
        return message, state


class FedNova(ClientAlgorithm):
    """FedAvg whose clients divide their update by their own number of steps.

    Client k sends ``(w_before - w_k) / a_k`` and the server steps by ``sum_k p_k a_k`` times the
    aggregate, with p_k the clients' weights: clients with more steps do not pull the model to
    their own optimum. a_k is the number t of steps; with momentum b it is
    ``(t - b (1 - b^t) / (1 - b)) / (1 - b)``. The server knows a_k from the clients' numbers of
    samples. Where all clients take equally many steps, this is FedAvg.

    >>> jaxfl.FedNova(epochs=3).uses(per_pass=5)
    (15, 3)

    Wang et al., "Tackling the objective inconsistency problem in heterogeneous federated
    optimization", NeurIPS 2020.
    """

    name = "fednova"

    epochs: int = field(default=1, at_least=1)
    """Passes over the client's data."""
    learning_rate: Scalar | Schedule = field(default=0.1, above=0)
    """Of local steps; a schedule counts rounds."""
    momentum: Scalar | None = field(default=None, at_least=0, below=1)
    """Of local steps; none: plain SGD."""

    private = capability(True)

    def uses(self, per_pass: int) -> tuple[int, int]:
        return steps_and_passes(per_pass, self.epochs)

    def step(
        self,
        objective: Objective,
        broadcast: Broadcast,
        samples: Samples,
        state: State,
        key: Key[Array, ""],
    ) -> tuple[Message, State]:
        message = descend(
            objective,
            broadcast,
            samples,
            key,
            SGD(learning_rate=self.learning_rate, momentum=self.momentum),
            size=self._size(samples),
            epochs=self.epochs,
        )
        effort = jnp.maximum(jnp.asarray(message.steps), 1)
        if self.momentum is not None:
            beta = jnp.asarray(self.momentum, effort.dtype)
            effort = (effort - beta * (1 - beta**effort) / (1 - beta)) / (1 - beta)
        update = message.update / effort.astype(message.update.dtype)
        return message.replace(update=update, steps=effort), state

    def finish(
        self,
        server: State,
        aggregate: Float[Array, " m"],
        messages: Message,
        context: Context,
        share: Float[Array, ""],
    ) -> tuple[Float[Array, " d"], State]:
        effective = jnp.sum(context.weights * messages.steps)
        return aggregate * effective.astype(aggregate.dtype), server


def effective_rate(rate: Scalar | Schedule, steps: int, round: Array, dtype: Any) -> Array:  # noqa: A002
    """The learning rate of a round times its number of local steps.

    Dividing ``w_before - w_after`` by it gives the mean direction of the local steps.
    """
    now = rate.checked(round) if isinstance(rate, Schedule) else rate
    return steps * jnp.asarray(now, dtype)
