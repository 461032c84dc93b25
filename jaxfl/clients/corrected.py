"""Local steps that are corrected for the difference between clients, and so need memory.

The server's memory follows from the aggregate alone: what a Byzantine client says about itself
is what its update says, and a robust rule guards both.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from jaxfl.clients.base import Broadcast, ClientAlgorithm, Message, Samples
from jaxfl.clients.local import Change, LocalTraining, descend, uses_of
from jaxfl.component import Scalar, field
from jaxfl.models.objective import Objective
from jaxfl.optimizers import SGD, Schedule
from jaxfl.types import Context, PyTree, Spec, State


class SCAFFOLD(ClientAlgorithm):
    """Local steps along ``g - c_k + c``: control variates take out the clients' drift.

    After ``steps`` steps at rate r, ``c_k <- c_k - c + (w_before - w_k) / (steps r)`` (option II).
    Of its mean over the cohort the server needs only the mean of ``w_before - w_k``, so that is
    all that clients send: ``c <- c + |S| / K (aggregate / (steps r) - c)``.

    Memory: d numbers a client and at the server. Needs clients that come back.
    Karimireddy et al., "SCAFFOLD: stochastic controlled averaging for federated learning",
    ICML 2020, whose mean weighs all clients alike: ``Mean(weighted=False)``.
    """

    steps: int = field(default=10, at_least=1)
    learning_rate: Scalar | Schedule = field(default=0.1, above=0)

    private: ClassVar[bool] = True
    post_processes: ClassVar[bool] = True

    def uses(self, per_pass: int) -> tuple[int, int]:
        return uses_of(per_pass, steps=self.steps)

    def init(self, spec: Spec) -> State:
        return jnp.zeros((spec.dim,), spec.dtype)

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
        message = descend(
            *(objective, broadcast, samples, key, SGD(learning_rate=self.learning_rate)),
            size=self._size(samples),
            steps=self.steps,
            change=_added(broadcast.server - state),
        )
        length = _length(self.learning_rate, self.steps, broadcast.round, state.dtype)
        return message, state - broadcast.server + message.update / length

    def finish(
        self,
        server: State,
        aggregate: Float[Array, " m"],
        messages: Message,
        context: Context,
        share: Float[Array, ""],
    ) -> tuple[Float[Array, " d"], State]:
        length = _length(self.learning_rate, self.steps, context.round, server.dtype)
        return aggregate, server + share.astype(server.dtype) * (aggregate / length - server)


class FedDyn(LocalTraining):
    """Local training of ``F_k(w) - <h_k, w> + alpha / 2 |w - w_before|^2``.

    After it ``h_k <- h_k - alpha (w_k - w_before)``. The server keeps
    ``h <- h + alpha |S| / K aggregate`` and steps by ``aggregate + h / alpha``, so that its fixed
    points are those of the mean objective. Its optimiser should be SGD of rate 1.

    Memory: d numbers a client and at the server. Small alpha takes large steps: it diverges where
    local training moves far.
    Acar et al., "Federated learning based on dynamic regularization", ICLR 2021, whose mean weighs
    all clients alike: ``Mean(weighted=False)``.
    """

    alpha: Scalar = field(default=0.1, above=0)
    learning_rate: Scalar | Schedule = field(default=0.1, above=0)

    def init(self, spec: Spec) -> State:
        return jnp.zeros((spec.dim,), spec.dtype)

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
        start, unravel = ravel_pytree(broadcast.params)
        alpha = jnp.asarray(self.alpha, state.dtype)

        def dynamic(gradient: PyTree, params: PyTree) -> PyTree:
            flat = ravel_pytree(gradient)[0] - state + alpha * (ravel_pytree(params)[0] - start)
            return unravel(flat)

        optimizer = SGD(learning_rate=self.learning_rate)
        message = self.train(objective, broadcast, samples, key, optimizer, dynamic)
        return message, state + alpha * message.update

    def finish(
        self,
        server: State,
        aggregate: Float[Array, " m"],
        messages: Message,
        context: Context,
        share: Float[Array, ""],
    ) -> tuple[Float[Array, " d"], State]:
        alpha = jnp.asarray(self.alpha, server.dtype)
        server = server + alpha * share.astype(server.dtype) * aggregate
        # A round without anybody moves nothing.
        return jnp.where(share > 0, aggregate + server / alpha, 0), server


class MimeLite(ClientAlgorithm):
    """Local steps with the server's momentum: ``w <- w - r ((1 - b) g + b m)``, m held fixed.

    Clients also send the gradient G of all their samples at the model they received; the server
    keeps ``m <- b m + (1 - b) mean G``. A message is both vectors, the gradient times
    ``steps r`` so that they weigh about the same in distances: 2 d numbers, which attacks and
    rules take as one vector.

    Cost: one pass over the client's data more than FedAvg.
    Karimireddy et al., "Breaking the centralized barrier for cross-device federated learning",
    NeurIPS 2021 (MimeLite with SGD and momentum).
    """

    steps: int = field(default=10, at_least=1)
    learning_rate: Scalar | Schedule = field(default=0.1, above=0)
    momentum: Scalar = field(default=0.9, at_least=0, below=1)

    width: ClassVar[int] = 2
    post_processes: ClassVar[bool] = True

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
            *(objective, broadcast, samples, key, SGD(learning_rate=self.learning_rate)),
            size=self._size(samples),
            steps=self.steps,
            change=with_momentum,
        )
        gradient = self.full_gradient(objective, broadcast, samples, key)
        length = _length(self.learning_rate, self.steps, broadcast.round, momentum.dtype)
        return message.replace(update=jnp.concatenate([message.update, length * gradient])), state

    def full_gradient(
        self, objective: Objective, broadcast: Broadcast, samples: Samples, key: Key[Array, ""]
    ) -> Float[Array, " d"]:
        """The gradient of the mean loss over all samples: a pass of steps that do not move."""
        size = self._size(samples)
        blocks = -(-samples.capacity // size)
        order, key = jax.random.split(jax.random.fold_in(key, self.steps))

        def block(total: Array, i: Array) -> tuple[Array, None]:
            load_key, model_key = jax.random.split(jax.random.fold_in(key, i))
            batch = samples.batch(i, size, order, load_key)
            _, gradient = objective.value_and_grad(
                broadcast.params, broadcast.statistics, batch, model_key
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
        length = _length(self.learning_rate, self.steps, context.round, server.dtype)
        beta = jnp.asarray(self.momentum, server.dtype)
        moved = beta * server + (1 - beta) * gradient / length
        return update, jnp.where(share > 0, moved, server)


def _length(rate: Scalar | Schedule, steps: int, round: Array, dtype: Any) -> Array:  # noqa: A002
    """Number of steps times the learning rate of this round."""
    now = rate.rate(round) if isinstance(rate, Schedule) else rate
    return steps * jnp.asarray(now, dtype)


def _added(flat: Float[Array, " d"]) -> Change:
    """Adds a raveled vector to the gradient."""

    def change(gradient: PyTree, params: PyTree) -> PyTree:
        ravelled, unravel = ravel_pytree(gradient)
        return unravel(ravelled + flat)

    return change
