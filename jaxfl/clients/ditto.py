"""Ditto: beside its share of the common model, each client trains one of its own."""

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Key

from jaxfl.clients.base import Broadcast, Message, Samples
from jaxfl.clients.local import LocalTraining, pull
from jaxfl.component import Scalar, capability, field
from jaxfl.models.objective import Objective
from jaxfl.optimizers import SGD, Optimizer
from jaxfl.types import Spec, State, Struct


class Personal(Struct):
    """A client's own model, and whether it has begun."""

    params: Float[Array, " d"]
    begun: Bool[Array, ""]


class Ditto(LocalTraining):
    """FedAvg whose clients also keep a model of their own, ``F_k(v_k) + lam / 2 |v_k - w|^2``.

    What a client sends is FedAvg's, so any rule guards the common model w. In the same round, by
    the same batches and optimiser, its own v_k takes as many steps
    ``v_k <- v_k - r (grad F_k(v_k) + lam (v_k - w))``, with w as it was received, and stays with
    the client. A client is evaluated by its own v_k: ``client_accuracy`` and the metrics of
    fairness are of these models, the test accuracy is of w. A client that has not taken part yet
    uses w. lam = 0 is training alone; a large lam is w itself, with which a w that attackers have
    ruined ruins v_k, too. Needs ``r (1 + lam)`` below 2 over the curvature.

    v_k begins as the first model that the client receives (the paper's: as the first of all,
    which is the same where all take part). Running averages of batch normalisation are the
    server's. A mechanism of privacy of examples noises the steps of v_k as it does those of w;
    since v_k is never sent, it counts those of w only.

    Memory: d numbers for each client. Cost: two local trainings, and one evaluation a client.

    >>> jaxfl.Ditto(lam=0.5, steps=10).uses(per_pass=4)
    (10, 3)

    Li, Hu, Beirami, Smith, "Ditto: fair and robust federated learning through personalization",
    ICML 2021.
    """

    lam: Scalar = field(default=1.0, at_least=0)
    """Weight of the pull of a client's own model towards the received one."""
    optimizer: Optimizer = SGD(learning_rate=0.1)
    """Of local steps; it starts afresh each round."""

    personalises = capability(True)
    private = capability(True)
    post_processes = capability(True)

    def init(self, spec: Spec) -> State:
        return Personal(params=jnp.zeros((spec.dim,), spec.dtype), begun=jnp.zeros((), bool))

    @classmethod
    def personal(cls, memory: State, received: Float[Array, " d"]) -> Float[Array, " d"]:
        return jnp.where(memory.begun, memory.params, received)

    def step(
        self,
        objective: Objective,
        broadcast: Broadcast,
        samples: Samples,
        state: State,
        key: Key[Array, ""],
    ) -> tuple[Message, State]:
        received, unravel = ravel_pytree(broadcast.params)
        start = self.personal(state, received)
        towards = pull(self.lam, broadcast.params)
        message = self.train(objective, broadcast, samples, key, self.optimizer)
        alone = broadcast.replace(params=unravel(start))
        own = self.train(objective, alone, samples, key, self.optimizer, towards)
        return message, Personal(params=start - own.update, begun=jnp.ones((), bool))
