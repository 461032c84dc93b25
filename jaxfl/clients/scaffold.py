"""SCAFFOLD: local steps corrected by control variates.

The server's memory follows from the aggregate alone: what a Byzantine client says about itself
is what its update says, and a robust rule guards both.
"""

from typing import ClassVar

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from jaxfl.clients.base import Broadcast, ClientAlgorithm, Message, Samples
from jaxfl.clients.local import Change, descend, local_length, uses_of
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
        length = local_length(self.learning_rate, self.steps, broadcast.round, state.dtype)
        return message, state - broadcast.server + message.update / length

    def finish(
        self,
        server: State,
        aggregate: Float[Array, " m"],
        messages: Message,
        context: Context,
        share: Float[Array, ""],
    ) -> tuple[Float[Array, " d"], State]:
        length = local_length(self.learning_rate, self.steps, context.round, server.dtype)
        return aggregate, server + share.astype(server.dtype) * (aggregate / length - server)


def _added(flat: Float[Array, " d"]) -> Change:
    """Adds a raveled vector to the gradient."""

    def change(gradient: PyTree, params: PyTree) -> PyTree:
        ravelled, unravel = ravel_pytree(gradient)
        return unravel(ravelled + flat)

    return change
