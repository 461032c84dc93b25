"""FedDyn: local training with a penalty that is updated every round."""

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from jaxfl.clients.base import Broadcast, Message, Samples
from jaxfl.clients.local import LocalTraining
from jaxfl.component import Scalar, capability, field
from jaxfl.models.objective import Objective
from jaxfl.optimizers import SGD, Schedule
from jaxfl.types import Context, PyTree, Spec, State


class FedDyn(LocalTraining):
    """Clients minimise ``F_k(w) - <h_k, w> + alpha / 2 |w - w_before|^2`` by local steps.

    Afterwards client k updates its memory, ``h_k <- h_k - alpha (w_k - w_before)``. The server
    keeps ``h <- h + alpha |S| / K aggregate``, with |S| of the K clients in the cohort, and steps
    by ``aggregate + h / alpha``: its fixed points are those of the mean objective. The server's
    optimiser should be SGD with learning rate 1.

    Memory: d numbers for each client, and d at the server. A small alpha makes large server steps,
    which diverge where local training moves the model far.

    >>> jaxfl.FedDyn(alpha=0.1, steps=10).uses(per_pass=4)
    (10, 3)

    Acar et al., "Federated learning based on dynamic regularization", ICLR 2021, whose mean weighs
    all clients alike: ``Mean(weighted=False)``.
    """

    name = "feddyn"

    alpha: Scalar = field(default=0.1, above=0)
    """Weight of the pull towards the received model."""
    learning_rate: Scalar | Schedule = field(default=0.1, above=0)
    """Of local steps; a schedule counts rounds."""

    private = capability(True)
    post_processes = capability(True)

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
        # A round in which nobody took part moves nothing.
        return jnp.where(share > 0, aggregate + server / alpha, 0), server
