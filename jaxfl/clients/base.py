"""The interface of client algorithms.

An algorithm has a client's half, ``step``, written for a single client (the round maps it over
the cohort), and a server's half, ``finish``, which turns the aggregate into a direction.
"""

import abc
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from jaxfl.arguments import integer
from jaxfl.component import Component, capability, field
from jaxfl.contracts import asked, expect, expect_like, name_of, own_code
from jaxfl.models.objective import ModelState, Objective
from jaxfl.numerics.permutation import permute
from jaxfl.types import Batch, Context, PyTree, Spec, State, Struct


class Broadcast(Struct):
    """What the server sends to every client."""

    params: PyTree
    model_state: ModelState
    round: Int[Array, ""]
    server: State = ()
    """The memory of the algorithm's server half."""


class Samples(Struct):
    """One client's own data: how many samples, and how to get them by position."""

    count: Int[Array, ""]
    load: Callable[[Int[Array, " b"], Bool[Array, " b"], Key[Array, ""]], Batch] = struct.field(
        pytree_node=False
    )
    """``load(positions, mask, key)`` is the batch at these positions, all below ``count``;
    poisoned where an attack poisons the client's data."""
    capacity: int = struct.field(pytree_node=False)
    """Samples of the largest client."""
    client: Int[Array, ""] | None = None
    """The owner's number in the population; None where the owner is the server."""
    overflow: float | None = struct.field(pytree_node=False, default=None)
    """None: batches of one size, disjoint within a pass over the data. A probability: Poisson
    sampling, where every sample is in a batch independently with probability size / count. Batches
    then have a fixed number of slots, chosen so that more samples are drawn than there are slots
    with at most this probability; those beyond the last slot are dropped."""

    def batch(
        self, step: Int[Array, ""] | int, size: int, order: Key[Array, ""], key: Key[Array, ""]
    ) -> Batch:
        """Batch number ``step`` of a pass over the data.

        Args:
          step: from 0.
          size: samples in a batch; with Poisson sampling, on average.
          order: chooses the random order of this pass.
          key: for data that is poisoned at random.
        """
        count = jnp.maximum(self.count, 1)
        if self.overflow is None:
            place = step * size + jnp.arange(size, dtype=jnp.int32)
            taken = place < self.count
        else:
            # A Poisson sample is a uniform choice of a binomial number of samples.
            draw, order = jax.random.split(jax.random.fold_in(order, step))
            rate = jnp.minimum(size / count, 1.0)
            drawn = jax.random.binomial(draw, self.count.astype(rate.dtype), rate)
            most = min(self.capacity, slots(size, self.overflow))
            place = jnp.arange(most, dtype=jnp.int32)
            taken = place < jnp.where(rate < 1, drawn, self.count)
        # Padding repeats the client's own samples: the loss masks them, but batch statistics
        # are computed from them too.
        own = permute(place % count, self.count, order, most=self.capacity)
        return self.load(own, taken, key)


@functools.lru_cache
def slots(size: int, overflow: float | None) -> int:
    """Of a batch of ``size`` samples, drawn as ``Samples.overflow`` says, of a client with many."""
    if overflow is None:
        return size
    from scipy.special import pdtrc  # slow to import

    # The tail of a binomial of mean ``size`` is below that of the Poisson of the same mean.
    counts = np.arange(size, size + int(50 * np.sqrt(size)) + 200)
    return int(counts[np.argmax(pdtrc(counts, size) <= overflow)])


class Message(Struct):
    """What a client sends, and what is recorded about how it was computed."""

    update: Float[Array, " m"]
    """A gradient, or ``w_before - w_after``, so that the server always subtracts; ``m`` is
    ``width`` times the number of parameters, d."""
    loss: Float[Array, ""]
    """Mean training loss over the client's steps."""
    model_state: ModelState
    steps: Float[Array, ""]
    """Local steps, in units of plain gradient steps."""


class ClientAlgorithm(Component):
    """How a client turns the model it received into an update. Abstract: override ``step``.

    The flags below say what other parts may assume of an algorithm; each is overridden as
    ``private = capability(True)``. Those on which privacy rests, ``private`` and
    ``post_processes``, hold for a subclass only while it changes nothing; else it says them anew.

    Raises:
      ValueError: ``private`` is set but ``uses`` is not overridden.

    >>> jaxfl.FedSGD().gradients, jaxfl.FedAvg().gradients
    (True, False)
    """

    batch_size: int | None = field(default=None, at_least=1)
    """Samples per step; None: all that the client has. A client with fewer uses what it has."""

    gradients = capability(False)
    """Whether updates are gradients; otherwise they are differences of models."""
    width = capability(1)
    """How many vectors of the model's size a message holds, concatenated. Attacks, clipping and
    aggregation treat them as one long vector."""
    private = capability(False)
    """Whether what a client sends depends on its samples through the gradients of
    ``objective.value_and_grad`` alone, each of a batch of ``batch_size`` and with a key of its own:
    by the key the noise is drawn. Privacy of examples noises these, and so covers it; the loss
    beside them is left as it is, for the record. Such an algorithm also overrides ``uses``."""
    personalises = capability(False)
    """Whether clients use, and are evaluated by, models of their own; see ``personal``."""
    post_processes = capability(False)
    """Whether ``finish`` knows the clients only through the aggregate. Mechanisms of privacy that
    noise it ask for that: what is computed from a private aggregate alone is private too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.private and type(self).uses is ClientAlgorithm.uses:
            raise ValueError(
                f"{type(self).__name__}: an algorithm with private = capability(True) must "
                "override uses(), from which the privacy of examples is computed"
            )

    def init(self, spec: Spec) -> State:
        """One client's memory at the start of a run."""
        return ()

    def init_server(self, spec: Spec) -> State:
        """The memory of the server's half at the start of a run."""
        return ()

    @classmethod
    def personal(cls, memory: State, received: Float[Array, " d"]) -> Float[Array, " d"]:
        """The parameters that one client uses: from its memory, and the server's."""
        return received

    @property
    def personal_class(self) -> "type[ClientAlgorithm] | None":
        """The class whose ``personal`` is asked; None where clients use the server's model."""
        return type(self) if self.personalises else None

    @abc.abstractmethod
    def step(
        self,
        objective: Objective,
        broadcast: Broadcast,
        samples: Samples,
        state: State,
        key: Key[Array, ""],
    ) -> tuple[Message, State]:
        """One client's work in a round.

        Args:
          objective: the model and its loss.
          broadcast: what the server sent.
          samples: the client's data.
          state: the client's memory: what ``init`` or its last step returned.
          key: this client's own randomness.

        Returns:
          The message to the server and the client's new memory.
        """

    def checked_step(
        self,
        objective: Objective,
        broadcast: Broadcast,
        samples: Samples,
        state: State,
        key: Key[Array, ""],
    ) -> tuple[Message, State]:
        """``step``, whose answer is looked at as it is traced.

        Raises:
          ValueError: a class of one's own answers something else than it should.
        """
        with own_code(self, ".step"):
            message, memory = self.step(objective, broadcast, samples, state, key)
        name = f"{name_of(self)}.step returned"
        if not isinstance(message, Message):
            raise ValueError(f"{name} {type(message).__name__}; needs a Message and the memory")
        size = self.width * sum(leaf.size for leaf in jax.tree.leaves(broadcast.params))
        expect(f"{name} an update", message.update, (size,), "width numbers per parameter")
        expect(f"{name} a loss", message.loss, (), "the mean over the steps")
        expect(f"{name} steps", message.steps, (), "how many, as a float")
        expect_like(f"{name} a model_state", message.model_state, broadcast.model_state)
        expect_like(f"{name} the memory", memory, state)
        return message, memory

    def finish(
        self,
        server: State,
        aggregate: Float[Array, " m"],
        messages: Message,
        context: Context,
        share: Float[Array, ""],
    ) -> tuple[Float[Array, " d"], State]:
        """The server's half: from the aggregate to the direction its optimiser is given.

        Args:
          server: the server half's memory.
          aggregate: the aggregate of the messages.
          messages: of all clients in the cohort as the rule is given them, and 0 from those who
            are absent; not to be read where ``post_processes``. Losses are NaN where there is a
            mechanism of privacy, and so are steps unless the algorithm is ``private``: no noise
            covers them.
          context: what else the server knows.
          share: the share of the population that took part; with central privacy, which must
            not reveal it, the expected share.

        Returns:
          The direction, which the optimiser descends, and the server half's new memory.
        """
        return aggregate, server

    def checked_finish(
        self,
        server: State,
        aggregate: Float[Array, " m"],
        messages: Message,
        context: Context,
        share: Float[Array, ""],
    ) -> tuple[Float[Array, " d"], State]:
        """``finish``, looked at as ``checked_step`` does."""
        with own_code(self, ".finish"):
            direction, memory = self.finish(server, aggregate, messages, context, share)
        name, size = f"{name_of(self)}.finish returned", aggregate.shape[0] // self.width
        expect(f"{name} a direction", direction, (size,), "one number per parameter")
        expect_like(f"{name} the server's memory", memory, server)
        return direction, memory

    def uses(self, per_pass: int) -> tuple[int, int]:
        """How often a round uses the client's samples; only asked where ``private``.

        Args:
          per_pass: gradient steps in one pass over the samples.

        Returns:
          Gradient steps in a round, and the passes over the samples that these begin; (0, 0),
          which nothing is computed from, where an algorithm does not say.
        """
        return 0, 0

    def checked_uses(self, per_pass: int) -> tuple[int, int]:
        """``uses``, looked at as ``checked_step`` does."""
        used = asked(self, "uses", per_pass)
        if not isinstance(used, tuple | list) or len(used) != 2:
            raise ValueError(f"{name_of(self)}.uses returned {used!r}; needs (steps, passes)")
        steps, passes = used
        return (
            integer(steps, f"steps of {name_of(self)}.uses", 1),
            integer(passes, f"passes of {name_of(self)}.uses", 1),
        )

    def starting_loss(
        self, objective: Objective, broadcast: Broadcast, samples: Samples, message: Message
    ) -> Float[Array, ""]:
        """The loss of the received model, which fairness weighs clients by.

        The mean over all of the client's samples, in evaluation mode. An algorithm that computes
        such a loss anyway may return that one instead.

        Cost: one forward pass over the samples.
        """
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
