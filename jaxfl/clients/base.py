"""What one client does in a round, and what the server does with it. Written for one client."""

import functools
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key
from scipy.stats import poisson

from jaxfl.component import Component, field
from jaxfl.models.objective import ModelState, Objective
from jaxfl.numerics.permutation import permute
from jaxfl.types import Batch, Context, PyTree, Spec, State, Struct


class Broadcast(Struct):
    """What the server sends to every client."""

    params: PyTree
    model_state: ModelState
    round: Int[Array, ""]
    server: State = ()
    """Memory of the algorithm's server half."""


class Samples(Struct):
    """One client's own data: how many samples, and how to get them by position."""

    count: Int[Array, ""]
    load: Callable[[Int[Array, " b"], Bool[Array, " b"], Key[Array, ""]], Batch] = struct.field(
        pytree_node=False
    )
    """Positions below ``count``, a mask and a key to the (poisoned) batch."""
    capacity: int = struct.field(pytree_node=False)
    """Samples of the largest client."""
    client: Int[Array, ""] | None = None
    """Whose they are: its number in the population; None: the server's."""
    overflow: float | None = struct.field(pytree_node=False, default=None)
    """Poisson sampling: every sample is in a batch independently with probability size / count;
    a batch has as many slots as are exceeded with this probability. None: batches of one size,
    disjoint within a pass."""

    def batch(
        self, step: Int[Array, ""] | int, size: int, order: Key[Array, ""], key: Key[Array, ""]
    ) -> Batch:
        """The step-th batch of one pass over the data in the random order ``order``."""
        count = jnp.maximum(self.count, 1)
        if self.overflow is None:
            place = step * size + jnp.arange(size, dtype=jnp.int32)
            taken = place < self.count
        else:
            # A Poisson sample is a binomial number of samples, and a uniform choice of as many.
            draw, order = jax.random.split(jax.random.fold_in(order, step))
            rate = jnp.minimum(size / count, 1.0)
            drawn = jax.random.binomial(draw, self.count.astype(rate.dtype), rate)
            place = jnp.arange(_slots(size, self.capacity, self.overflow), dtype=jnp.int32)
            taken = place < jnp.where(rate < 1, drawn, self.count)
        # Padding repeats the client's own samples: the loss masks it, batch statistics see it.
        return self.load(permute(place % count, self.count, order), taken, key)


@functools.lru_cache
def _slots(size: int, capacity: int, overflow: float) -> int:
    # Binomials of mean ``size`` are exceeded by the Poisson distribution of that mean.
    counts = np.arange(size, size + int(50 * np.sqrt(size)) + 200)
    return min(capacity, int(counts[np.argmax(poisson.sf(counts, size) <= overflow)]))


class Message(Struct):
    """What a client sends, and what is recorded about how it got there."""

    update: Float[Array, " m"]
    """A gradient, or ``w_before - w_after``: the server always subtracts. ``width * d`` numbers."""
    loss: Float[Array, ""]
    """Mean training loss over the client's steps."""
    model_state: ModelState
    steps: Float[Array, ""]
    """Local steps, in units of plain gradient steps."""


class ClientAlgorithm(Component):
    """How a client turns the model it received into an update. Abstract."""

    batch_size: int | None = field(default=None, at_least=1)
    """Samples per step; None: all that the client has. A client with fewer uses what it has."""

    gradients: ClassVar[bool] = False
    """Whether updates are gradients; otherwise they are differences of models."""
    width: ClassVar[int] = 1
    """How many vectors of the size of the model a message holds. All are attacked, clipped and
    aggregated as the one vector that they are."""
    private: ClassVar[bool] = False
    """Whether clients see their samples through ``objective.value_and_grad`` alone, so that
    privacy of examples covers all that they send. Such an algorithm says how often by ``uses``."""
    post_processes: ClassVar[bool] = False
    """Whether ``finish`` learns of clients from the aggregate alone, as central privacy needs."""

    def init(self, spec: Spec) -> State:
        """One client's memory at the start of a run."""
        return ()

    def init_server(self, spec: Spec) -> State:
        """The server half's memory at the start of a run."""
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

    def finish(
        self,
        server: State,
        aggregate: Float[Array, " m"],
        messages: Message,
        context: Context,
        share: Float[Array, ""],
    ) -> tuple[Float[Array, " d"], State]:
        """What the server's optimiser is given, from the aggregate of the messages.

        ``share`` of the population took part; with central privacy, which must not tell, the
        share that is expected.
        """
        return aggregate, server

    def uses(self, per_pass: int) -> tuple[int, int]:
        """Steps of a round whose passes over the client's samples take so many, and passes."""
        raise NotImplementedError

    def starting_loss(
        self, objective: Objective, broadcast: Broadcast, samples: Samples, message: Message
    ) -> Float[Array, ""]:
        """Mean loss of the model received over all of the client's samples. One pass over them."""
        size = self._size(samples)
        blocks = -(-samples.capacity // size)

        def block(total: Array, start: Array) -> tuple[Array, None]:
            place = start * size + jnp.arange(size, dtype=jnp.int32)
            batch = samples.load(
                place % jnp.maximum(samples.count, 1), place < samples.count, jax.random.key(0)
            )
            logits = objective.logits(broadcast.params, broadcast.model_state, batch.inputs)
            losses = objective.loss_function(logits, batch.labels)
            return total + jnp.sum(jnp.where(batch.mask, losses, 0)), None

        total, _ = jax.lax.scan(block, jnp.zeros(()), jnp.arange(blocks))
        return total / jnp.maximum(samples.count, 1)

    def _size(self, samples: Samples) -> int:
        return min(self.batch_size or samples.capacity, samples.capacity)
