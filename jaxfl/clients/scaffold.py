"""SCAFFOLD: local steps corrected by control variates.

The server's control variate is computed from the aggregate alone. So a Byzantine client cannot
lie about its own control variate separately: all it sends is its update, and a robust rule that
guards the model guards the control variate too.
"""

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from jaxfl.clients.base import Broadcast, ClientAlgorithm, Message, Samples
from jaxfl.clients.local import Change, descend, effective_rate, steps_and_passes
from jaxfl.component import Scalar, capability, field
from jaxfl.models.objective import Objective
from jaxfl.optimizers import SGD, Schedule
from jaxfl.types import Context, PyTree, Spec, State


class SCAFFOLD(ClientAlgorithm):
    """Local steps along ``g - c_k + c``: control variates c_k, c correct the clients' drift.

    After ``steps`` steps at learning rate r, client k sets
    ``c_k <- c_k - c + (w_before - w_k) / (steps r)`` (the paper's option II). The server's c is to
    follow the mean of the c_k, for which the mean of ``w_before - w_k`` is enough, so clients send
    nothing else: ``c <- c + |S| / K (aggregate / (steps r) - c)``, with |S| of the K clients in
    the cohort.

    Memory: d numbers for each client, and d at the server. Corrects nothing where clients take
    part only once.

    >>> jaxfl.SCAFFOLD(steps=10).uses(per_pass=4)
    (10, 3)

    Karimireddy et al., "SCAFFOLD: stochastic controlled averaging for federated learning",
    ICML 2020, whose mean weighs all clients alike: ``Mean(weighted=False)``.
    """

    steps: int = field(default=10, at_least=1)
    """Local steps."""
    learning_rate: Scalar | Schedule = field(default=0.1, above=0)
    """Of local steps; a schedule counts rounds."""

    private = capability(True)
    post_processes = capability(True)

    def uses(self, per_pass: int) -> tuple[int, int]:
        return steps_and_passes(per_pass, steps=self.steps)

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
            objective,
            broadcast,
            samples,
            key,
            SGD(learning_rate=self.learning_rate),
            size=self._size(samples),
            steps=self.steps,
            change=_added(broadcast.server - state),
        )
        scale = effective_rate(self.learning_rate, self.steps, broadcast.round, state.dtype)
        return message, state - broadcast.server + message.update / scale

    def finish(
        self,
        server: State,
        aggregate: Float[Array, " m"],
        messages: Message,
        context: Context,
        share: Float[Array, ""],
    ) -> tuple[Float[Array, " d"], State]:
        scale = effective_rate(self.learning_rate, self.steps, context.round, server.dtype)
        return aggregate, server + share.astype(server.dtype) * (aggregate / scale - server)


def _added(flat: Float[Array, " d"]) -> Change:
    """The change that adds a flat vector to the gradient."""

    def change(gradient: PyTree, params: PyTree) -> PyTree:
        ravelled, unravel = ravel_pytree(gradient)
        return unravel(ravelled + flat)

    return change
